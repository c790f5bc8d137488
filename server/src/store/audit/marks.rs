//! What one pass remembers of the jobs that wait in lanes: which have a record, and which have an entry.

use std::collections::HashMap;

use bytes::Bytes;

/// Ids that a pass holds at most.
pub(super) const MOST_MARKS: usize = 2_000_000;
/// Ready jobs that a pass is planned for: more may come while it runs.
const PLANNED: u64 = 1_500_000;

/// A job of which a pass has seen the record, an entry, or both.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// The number of its own lane.
    pub(super) lane: u32,
    /// It had a record and was in no other place.
    pub(super) waits: bool,
    /// It has a state hash.
    pub(super) has_state: bool,
    /// Living entries that were seen.
    pub(super) entries: u8,
}

/// The marks of one pass, which takes every id whose hash falls to it.
#[derive(Debug)]
pub(super) struct Marks {
    pass: u32,
    passes: u32,
    by_id: HashMap<[u8; 16], Mark>,
    lanes: HashMap<Vec<u8>, u32>,
}

/// Passes that a queue with so many ready jobs takes.
pub(super) fn passes(ready: u64) -> u32 {
    u32::try_from(ready / PLANNED).unwrap_or(u32::MAX).saturating_add(1)
}

impl Marks {
    /// No marks yet; `pass` counts from 0.
    pub(super) fn new(pass: u32, passes: u32) -> Self {
        Self {
            pass,
            passes,
            by_id: HashMap::new(),
            lanes: HashMap::new(),
        }
    }

    /// Whether an id falls to this pass.
    pub(super) fn covers(&self, id: &[u8]) -> bool {
        // FNV-1a: ids of version 7 begin with the time, so their first bytes would make uneven passes.
        let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = id.iter().fold(0xcbf2_9ce4_8422_2325, mix);
        (hash >> 32) % u64::from(self.passes) == u64::from(self.pass)
    }

    /// The number of a lane.
    pub(super) fn lane(&mut self, lane: &[u8]) -> u32 {
        if let Some(number) = self.lanes.get(lane) {
            return *number;
        }
        let number = self.lanes.len() as u32;
        self.lanes.insert(lane.to_vec(), number);
        number
    }

    /// Notes a job that has a record and is in no place but, perhaps, a lane. False: there is no room for it.
    pub(super) fn waits(&mut self, id: &[u8], lane: &[u8], has_state: bool) -> bool {
        let lane = self.lane(lane);
        self.insert(
            id,
            Mark {
                lane,
                waits: true,
                has_state,
                entries: 0,
            },
        )
    }

    fn insert(&mut self, id: &[u8], mark: Mark) -> bool {
        let Ok(id) = id.try_into() else { return true };
        if self.by_id.len() >= MOST_MARKS && !self.by_id.contains_key(&id) {
            return false;
        }
        self.by_id.entry(id).or_insert(mark);
        true
    }

    /// Notes a living entry of a job; returns its mark if there was one.
    pub(super) fn entry(&mut self, id: &[u8]) -> Option<Mark> {
        let id: [u8; 16] = id.try_into().ok()?;
        if let Some(mark) = self.by_id.get_mut(&id) {
            mark.entries = mark.entries.saturating_add(1);
            return Some(*mark);
        }
        self.insert(
            &id,
            Mark {
                entries: 1,
                ..Mark::default()
            },
        );
        None
    }

    /// Takes up to `most` jobs out that have a record and no entry.
    pub(super) fn take_unplaced(&mut self, most: usize) -> Vec<Bytes> {
        self.by_id.retain(|_, mark| mark.waits && mark.entries == 0);
        let ids: Vec<[u8; 16]> = self.by_id.keys().take(most).copied().collect();
        for id in &ids {
            self.by_id.remove(id);
        }
        ids.into_iter().map(|id| Bytes::copy_from_slice(&id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_falls_to_one_pass() {
        let passes = passes(4_000_000);
        assert_eq!(passes, 3);
        let all: Vec<Marks> = (0..passes).map(|pass| Marks::new(pass, passes)).collect();
        let mut sizes = [0; 3];
        for number in 0..3_000_u128 {
            let id = (number << 80).to_be_bytes();
            let covering: Vec<usize> = (0..3).filter(|&pass| all[pass].covers(&id)).collect();
            assert_eq!(covering.len(), 1);
            sizes[covering[0]] += 1;
        }
        assert!(sizes.iter().all(|size| (800..1_200).contains(size)), "{sizes:?}");
    }

    #[test]
    fn what_has_a_record_and_no_entry_is_unplaced() {
        let mut marks = Marks::new(0, 1);
        for id in [[1; 16], [2; 16], [3; 16]] {
            assert!(marks.waits(&id, b"5:send", false));
        }
        assert!(marks.entry(&[2; 16]).is_some() && marks.entry(&[9; 16]).is_none());
        let mut unplaced = marks.take_unplaced(9);
        unplaced.sort();
        assert!(unplaced.len() == 2 && unplaced[0][..] == [1; 16] && unplaced[1][..] == [3; 16]);
        assert!(marks.take_unplaced(9).is_empty());
    }
}
