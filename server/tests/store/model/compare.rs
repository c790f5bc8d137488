//! Compares the keys with the model.

use std::collections::BTreeMap;

use bananas_broker::domain::JobState;
use bananas_harness::keyspace::{Id, number};

use super::{drive::Drive, operation::Operation};

impl Drive<'_> {
    /// Asserts that the keys are as the model says.
    pub(super) fn compare(&self, operation: &Operation) {
        let (all, model) = (&self.after, &self.model);
        let of = |state: JobState| model.jobs.iter().filter(move |(_, job)| job.state == state);
        let lanes: BTreeMap<&String, Vec<(&Id, u64)>> = all
            .lanes
            .iter()
            .map(|(lane, entries)| (lane, entries.iter().map(|entry| (&entry.id, entry.ms)).collect()))
            .collect();
        let expected: BTreeMap<&String, Vec<(&Id, u64)>> = model
            .lanes
            .iter()
            .map(|(lane, slots)| (lane, slots.iter().map(|slot| (&slot.id, slot.ms)).collect()))
            .collect();
        assert_eq!(lanes, expected, "lanes after {operation:?}");
        let mut graves: BTreeMap<(Id, String), u64> = BTreeMap::new();
        for (lane, slots) in &model.lanes {
            for slot in slots.iter().filter(|slot| slot.buried) {
                *graves.entry((slot.id.clone(), lane.clone())).or_default() += 1;
            }
        }
        assert_eq!(all.tombstones, graves, "tombstones after {operation:?}");
        let due: BTreeMap<Id, u64> = of(JobState::Scheduled)
            .map(|(id, job)| (id.clone(), job.due_ms))
            .collect();
        assert_eq!(all.scheduled, due, "SCHEDULED after {operation:?}");
        let leases: Vec<(&Id, Vec<u8>, u64)> = all
            .leases
            .iter()
            .map(|(id, lease)| (id, lease.nonce.clone(), lease.ms))
            .collect();
        let held = of(JobState::Leased).filter_map(|(id, job)| Some((id, job.lease?)));
        let expected: Vec<_> = held
            .clone()
            .map(|(id, lease)| (id, lease.nonce.to_vec(), lease.since_ms))
            .collect();
        assert_eq!(leases, expected, "LEASED after {operation:?}");
        let deadlines: BTreeMap<Id, u64> = held.map(|(id, lease)| (id.clone(), lease.deadline_ms)).collect();
        assert_eq!(all.deadlines, deadlines, "deadlines after {operation:?}");
        let dead: Vec<&Id> = of(JobState::Dead).map(|(id, _)| id).collect();
        assert_eq!(all.dead.keys().collect::<Vec<_>>(), dead, "DEAD after {operation:?}");
        let kept: BTreeMap<Id, u64> = model
            .jobs
            .iter()
            .filter(|(_, job)| job.state.is_final() && job.state != JobState::Dead)
            .map(|(id, job)| (id.clone(), job.kept_until_ms))
            .collect();
        assert_eq!(all.settled, kept, "retained after {operation:?}");
        assert_eq!(all.unique, model.unique, "unique keys after {operation:?}");
        assert_eq!(all.windows, model.windows, "unique keys of windows after {operation:?}");
        assert_eq!(all.memory, model.memory, "remembered ids after {operation:?}");
        let start_by: BTreeMap<Id, u64> = model
            .jobs
            .iter()
            .filter_map(|(id, job)| Some((id.clone(), job.start_by_ms?)))
            .collect();
        // A start_by that passed while a worker held the job is checked again later.
        let same = |(id, ms): (&Id, &u64)| start_by.get(id).is_some_and(|expected| expected <= ms);
        assert!(
            all.start_by.len() == start_by.len() && all.start_by.iter().all(same),
            "start_by after {operation:?}: {:?} instead of {start_by:?}",
            all.start_by
        );
        for (id, job) in &model.jobs {
            let field = |name: &str| all.states.get(id).and_then(|state| state.get(name));
            let count = |name: &str| field(name).map_or(0, |value| number(value) as u32);
            assert_eq!(
                (count("a"), count("l")),
                (job.attempts, job.losses),
                "attempts and losses after {operation:?}"
            );
            let lines = all.logs.get(id).map_or(0, Vec::len) as u32;
            assert_eq!(
                (count("lg"), lines),
                (job.log_lines, job.log_lines),
                "log lines after {operation:?}"
            );
            assert_eq!(
                (count("ed"), count("rn")),
                (job.edits, job.redrives),
                "edits and redrives after {operation:?}"
            );
            let debounce = job
                .debounce
                .map(|(first, due)| [&first.to_be_bytes()[2..], &due.to_be_bytes()[2..]].concat());
            assert_eq!(field("uf"), debounce.as_ref(), "debounce after {operation:?}");
            let letter = job.state.is_final().then(|| vec![job.state.letter() as u8]);
            assert_eq!(field("st"), letter.as_ref(), "final state after {operation:?}");
        }
        assert_eq!(all.meta.contains_key("pa"), model.paused);
        let gate = all.meta.get("ep").map(|gate| gate == b"1");
        let expected = if model.takes_no_jobs {
            Some(true)
        } else {
            self.policy.as_ref().map(|_| false)
        };
        assert_eq!(gate, expected, "the enqueue gate after {operation:?}");
    }
}
