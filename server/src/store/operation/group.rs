//! The groups of AnalyzeJobs, as step.lua stores them.

use crate::domain::JobId;

/// A group of AnalyzeJobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// The job type; empty for all that found no room.
    pub job_type: String,
    /// The type of the failure.
    pub failure_type: String,
    /// The beginning of the message, without digits.
    pub message: String,
    /// How many jobs.
    pub jobs: u64,
    /// The earliest time, in milliseconds.
    pub first_ms: u64,
    /// The latest time.
    pub last_ms: u64,
    /// The first job.
    pub sample: Option<JobId>,
    /// Jobs by the hour since 1970.
    pub hours: Vec<(u64, u64)>,
}

/// Reads a group: the name of its field behind the prefix (job type, failure type and message, with a zero byte between
/// them) and its value.
pub(super) fn read(name: &str, value: &[u8]) -> Option<GroupView> {
    let mut texts = name.splitn(3, '\0');
    let (job_type, failure_type, message) = (texts.next()?, texts.next()?, texts.next()?);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let (fixed, hours) = value.split_at_checked(34)?;
    let hours = hours
        .chunks_exact(8)
        .map(|hour| (number(&hour[..4]), number(&hour[4..])));
    let mut hours: Vec<(u64, u64)> = hours.collect();
    hours.sort_unstable();
    Some(GroupView {
        job_type: job_type.to_owned(),
        failure_type: failure_type.to_owned(),
        // It may be cut inside a character.
        message: message.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned(),
        jobs: number(&fixed[..6]),
        first_ms: number(&fixed[6..12]),
        last_ms: number(&fixed[12..18]),
        sample: JobId::from_slice(&fixed[18..]),
        hours,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_read_as_the_script_writes_it() {
        let value = [
            &[0, 0, 0, 0, 1, 2][..],
            &[0, 0, 0, 0, 0, 7],
            &[0, 0, 0, 0, 0, 9],
            &[3; 16],
            &[0, 0, 0, 5, 0, 0, 1, 0],
        ]
        .concat();
        let group = read("send\0Timeout\0after # s\u{fffd}", &value).unwrap();
        assert_eq!(
            (&*group.job_type, &*group.failure_type, &*group.message),
            ("send", "Timeout", "after # s")
        );
        assert_eq!((group.jobs, group.first_ms, group.last_ms), (258, 7, 9));
        assert_eq!((group.sample, group.hours), (Some(JobId([3; 16])), vec![(5, 256)]));
        assert!(read("send\0Timeout\0", &value[..33]).is_none());
    }
}
