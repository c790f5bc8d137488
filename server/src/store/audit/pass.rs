//! One pass over the keys of a queue: all names, the members of every set and hash, the entries of every lane.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::{
    Audit,
    facts::{Facts, Question, Record},
    finding::{AuditProgress, FindingKind, readable},
    judge::{Entries, judge, waits_in_lane},
    marks::Marks,
    names::{Name, is_lane, name},
    pages::Walk,
    recheck::{MOST_SUSPECTS, Other, may_hold, number, read_entry, tombstone_counts, window},
};
use crate::{
    domain::{Error, record::flag},
    store::{
        keys::part,
        layout::unique,
        protocol::{audit, fact},
    },
};

/// The tombstones of one lane: how many entries of a job, and the flags of those that were seen.
type Tombstones = HashMap<Bytes, (usize, Vec<u8>)>;

/// What a pass gathers.
struct Pass {
    /// The first pass checks everything that it sees, the others only the records and entries that fall to them.
    is_first: bool,
    marks: Marks,
    lanes: BTreeSet<Vec<u8>>,
    tombstones: HashMap<Vec<u8>, Tombstones>,
}

impl Audit<'_> {
    pub(super) async fn pass(&mut self, number: u32, passes: u32) -> Result<(), Error> {
        let mut pass = Pass {
            is_first: number == 0,
            marks: Marks::new(number, passes),
            lanes: BTreeSet::new(),
            tombstones: HashMap::new(),
        };
        self.all_keys(&mut pass).await?;
        self.indexed_lanes(&mut pass).await?;
        if pass.is_first {
            if !self.is_foreign(part::POLICY) {
                self.suspects.others.insert(Other::Policy);
            }
            self.sets(&mut pass).await?;
            self.unique_keys().await?;
            self.tombstone_counts().await?;
        }
        self.tombstones(&mut pass).await?;
        for lane in std::mem::take(&mut pass.lanes) {
            self.lane(&mut pass, &lane).await?;
        }
        // Nothing was seen of them but the record.
        loop {
            let unplaced = pass.marks.take_unplaced(MOST_SUSPECTS);
            if unplaced.is_empty() {
                return Ok(());
            }
            for id in unplaced {
                self.suspect(id, None, true).await?;
            }
        }
    }

    fn progress(&mut self) -> &mut AuditProgress {
        &mut self.summary.progress
    }

    fn is_foreign(&self, part: &str) -> bool {
        self.foreign.contains(part.as_bytes())
    }

    async fn all_keys(&mut self, pass: &mut Pass) -> Result<(), Error> {
        let mut cursor = 0;
        loop {
            let (next, ends) = self.reader.key_names(cursor).await?;
            self.progress().keys += ends.len() as u64;
            let (mut records, mut of_jobs, mut rest) = (Vec::new(), Vec::new(), Vec::new());
            for end in &ends {
                match name(end) {
                    Name::Record(id) if pass.marks.covers(id) => records.push(end.slice_ref(id)),
                    Name::OfJob(id) if pass.is_first => of_jobs.push(end.slice_ref(id)),
                    Name::Lane(_) => rest.push(end.clone()),
                    Name::Record(_) | Name::OfJob(_) => {}
                    _ if pass.is_first => rest.push(end.clone()),
                    _ => {}
                }
            }
            self.jobs(pass, records).await?;
            self.jobs(pass, of_jobs).await?;
            self.other_keys(pass, &rest).await?;
            self.say_progress().await;
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Checks what can be said of jobs without their lanes, and marks those that must have an entry.
    async fn jobs(&mut self, pass: &mut Pass, ids: Vec<Bytes>) -> Result<(), Error> {
        for facts in self.reader.facts(&ids).await? {
            if !judge(&facts, None).is_empty() {
                self.suspect(facts.id().clone(), None, false).await?;
            }
            if let Record::Own(lane) = facts.record()
                && waits_in_lane(&facts)
                && pass.marks.covers(facts.id())
            {
                pass.marks.waits(facts.id(), &lane, facts.has(fact::STATE));
            }
        }
        Ok(())
    }

    /// Checks the name, the type and the time to live of keys that are not those of a job.
    async fn other_keys(&mut self, pass: &mut Pass, ends: &[Bytes]) -> Result<(), Error> {
        let questions: Vec<Question> = ends.iter().map(|end| (audit::KEY, end.to_vec())).collect();
        for (end, answer) in ends.iter().zip(self.reader.ask(&questions).await?) {
            let (kind, ttl) = (readable(&answer[0]), readable(&answer[1]));
            if kind == "none" {
                continue;
            }
            let expected = match name(end) {
                Name::Single(expected) => expected,
                Name::Lane(lane) => {
                    if kind == "list" {
                        pass.lanes.insert(lane.to_vec());
                    }
                    "list"
                }
                Name::Memory(generation) => {
                    self.suspects.others.insert(Other::Memory(generation));
                    "hash"
                }
                Name::Request => "hash",
                Name::SetAside => continue,
                Name::Unknown | Name::Record(_) | Name::OfJob(_) => {
                    let detail = format!("no broker writes such a key; it is a {kind}");
                    self.key_is_wrong(FindingKind::UnknownKey, end, detail).await?;
                    continue;
                }
            };
            if !pass.is_first {
                continue;
            }
            if kind != expected {
                self.foreign.insert(end.to_vec());
                let detail = format!("it is a {kind} and must be a {expected}");
                self.key_is_wrong(FindingKind::ForeignType, end, detail).await?;
            } else if ttl.starts_with('-') == (name(end) == Name::Request) {
                let detail = if ttl.starts_with('-') {
                    "it must have a time to live".to_owned()
                } else {
                    format!("it expires in {ttl} ms and must not")
                };
                self.key_is_wrong(FindingKind::Expiry, end, detail).await?;
            }
        }
        Ok(())
    }

    async fn indexed_lanes(&mut self, pass: &mut Pass) -> Result<(), Error> {
        if self.is_foreign(part::LANES) {
            return Ok(());
        }
        let mut indexed = BTreeSet::new();
        let mut cursor = 0;
        loop {
            let (next, page) = self.reader.members("ZSCAN", part::LANES, cursor).await?;
            indexed.extend(page.into_iter().map(|(lane, _)| lane.to_vec()));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        if pass.is_first {
            let lanes = pass.lanes.union(&indexed).filter(|lane| !lane.is_empty());
            self.suspects.others.extend(lanes.cloned().map(Other::Lane));
            self.recheck_if_many().await?;
        }
        let foreign = |lane: &[u8]| self.foreign.contains(&[part::LANE.as_bytes(), lane].concat());
        let sound = indexed.into_iter().filter(|lane| is_lane(lane) && !foreign(lane));
        pass.lanes.extend(sound);
        Ok(())
    }

    /// Checks the jobs that the sets and hashes name.
    async fn sets(&mut self, pass: &mut Pass) -> Result<(), Error> {
        let sets = [
            ("HSCAN", part::LEASES),
            ("ZSCAN", part::DEADLINES),
            ("ZSCAN", part::SCHEDULED),
            ("ZSCAN", part::DEAD),
            ("ZSCAN", part::SETTLED),
            ("ZSCAN", part::START_BY),
            ("HSCAN", part::QUARANTINE),
        ];
        for (command, part) in sets {
            let mut cursor = 0;
            while !self.is_foreign(part) {
                let (next, page) = self.reader.members(command, part, cursor).await?;
                self.progress().entries += page.len() as u64;
                // A member at +inf is no job: it keeps the deadlines out of a slow encoding.
                let jobs = page
                    .into_iter()
                    .filter(|(_, score)| command == "HSCAN" || &score[..] != b"inf");
                self.jobs(pass, jobs.map(|(id, _)| id).collect()).await?;
                self.say_progress().await;
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn unique_keys(&mut self) -> Result<(), Error> {
        let (mut cursor, mut windows) = (0, BTreeSet::new());
        while !self.is_foreign(part::UNIQUE) {
            let (next, page) = self.reader.members("HSCAN", part::UNIQUE, cursor).await?;
            self.progress().entries += page.len() as u64;
            let ids: Vec<Bytes> = page
                .iter()
                .map(|(_, holder)| holder.slice(..holder.len().min(16)))
                .collect();
            let facts: Vec<Facts> = self.reader.facts(&ids).await?;
            for ((key, holder), facts) in page.iter().zip(facts) {
                if holder.len() == unique::WINDOW_BYTES {
                    windows.insert(key.to_vec());
                } else if !may_hold(&facts, key) {
                    self.suspects.others.insert(Other::Unique(key.to_vec()));
                    self.recheck_if_many().await?;
                }
            }
            self.windows(std::mem::take(&mut windows)).await?;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        while !self.is_foreign(part::UNIQUE_WINDOWS) {
            let (next, page) = self.reader.members("ZSCAN", part::UNIQUE_WINDOWS, cursor).await?;
            self.windows(page.into_iter().map(|(key, _)| key.to_vec()).collect())
                .await?;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Compares the windows of unique keys with the set of windows.
    async fn windows(&mut self, keys: BTreeSet<Vec<u8>>) -> Result<(), Error> {
        let questions: Vec<Question> = keys.iter().map(|key| (audit::UNIQUE, key.clone())).collect();
        for (key, answer) in keys.into_iter().zip(self.reader.ask(&questions).await?) {
            if window(&answer).is_some() {
                self.suspects.others.insert(Other::Window(key));
                self.recheck_if_many().await?;
            }
        }
        Ok(())
    }

    async fn tombstone_counts(&mut self) -> Result<(), Error> {
        if self.is_foreign(part::TOMBSTONES) || self.is_foreign(part::TOMBSTONE_COUNTS) {
            return Ok(());
        }
        let wrong = tombstone_counts(self.reader, None).await?;
        self.suspects
            .others
            .extend(wrong.into_keys().map(Other::TombstoneCount));
        Ok(())
    }

    /// Reads the tombstones of the jobs that fall to this pass.
    async fn tombstones(&mut self, pass: &mut Pass) -> Result<(), Error> {
        let mut cursor = 0;
        while !self.is_foreign(part::TOMBSTONES) {
            let (next, page) = self.reader.members("HSCAN", part::TOMBSTONES, cursor).await?;
            for (field, count) in page {
                let id = field.slice(..field.len().min(16));
                if pass.marks.covers(&id) {
                    let of_lane = pass.tombstones.entry(field[id.len()..].to_vec()).or_default();
                    of_lane.insert(id, (number(&count), Vec::new()));
                }
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        // Of a lane that is gone, there are too many.
        for (lane, jobs) in &pass.tombstones {
            if !pass.lanes.contains(lane) && is_lane(lane) {
                for id in jobs.keys() {
                    self.suspect(id.clone(), Some(lane), true).await?;
                }
            }
        }
        Ok(())
    }

    async fn lane(&mut self, pass: &mut Pass, lane: &[u8]) -> Result<(), Error> {
        let mut tombstones = pass.tombstones.remove(lane).unwrap_or_default();
        let mut walk = Walk::new(format!("{}{}", part::LANE, String::from_utf8_lossy(lane)));
        while let Some(entries) = walk.next(self.reader).await? {
            self.progress().entries += entries.len() as u64;
            let mut living = Vec::new();
            for entry in &entries {
                let Some((id, flags)) = read_entry(entry) else {
                    if pass.is_first {
                        let detail = format!("the entry \"{}\" is none", readable(entry));
                        let end = [part::LANE.as_bytes(), lane].concat();
                        self.key_is_wrong(FindingKind::MalformedEntry, &end, detail).await?;
                    }
                    continue;
                };
                match tombstones.get_mut(&id) {
                    _ if !pass.marks.covers(&id) => {}
                    Some((_, seen)) => seen.push(flags),
                    None => living.push((id, flags)),
                }
            }
            self.living(pass, lane, living).await?;
            self.say_progress().await;
        }
        for (id, (count, flags)) in tombstones {
            if flags.len() < count {
                self.suspect(id.clone(), Some(lane), true).await?;
            }
            let living = flags.len().saturating_sub(count);
            let living = flags.into_iter().take(living).map(|flags| (id.clone(), flags));
            self.living(pass, lane, living.collect()).await?;
        }
        Ok(())
    }

    /// Checks living entries of a lane.
    async fn living(&mut self, pass: &mut Pass, lane: &[u8], entries: Vec<(Bytes, u8)>) -> Result<(), Error> {
        let number = pass.marks.lane(lane);
        let mut unknown = Vec::new();
        for (id, flags) in entries {
            match pass.marks.entry(&id) {
                Some(mark) if mark.waits => {
                    let unmarked = mark.has_state && flags & flag::STATE == 0;
                    if mark.lane != number || mark.entries > 1 || unmarked {
                        self.suspect(id, Some(lane), true).await?;
                    }
                }
                mark => {
                    if mark.is_some() {
                        self.suspect(id.clone(), Some(lane), true).await?;
                    }
                    unknown.push((id, flags));
                }
            }
        }
        let ids: Vec<Bytes> = unknown.iter().map(|(id, _)| id.clone()).collect();
        for (facts, (id, flags)) in self.reader.facts(&ids).await?.into_iter().zip(unknown) {
            let entries = Entries {
                lane: lane.to_vec(),
                flags: vec![flags],
                tombstones: 0,
            };
            if !judge(&facts, Some(&[entries])).is_empty() {
                self.suspect(id, Some(lane), true).await?;
            }
        }
        Ok(())
    }
}
