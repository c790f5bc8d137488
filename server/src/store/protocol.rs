//! The words of the script calls: letters in arguments and codes in replies. Some letters are stored, too (in lease
//! values, states and memories), so none may change.

use super::shared::shared;
use crate::domain::record;

/// Lanes that one call of counts.lua counts.
pub(super) const LANES_PER_COUNT: usize = 1_000;
/// Bytes of a record that list.lua reads where the payload is not asked for: mostly all but the payload, which is last.
pub(super) const LISTED_RECORD_BYTES: usize = record::LARGE_BYTES;
/// What is only pruned may wait this long for others of its kind.
pub(super) const TIDY_MS: u64 = 5_000;

/// How long it is noted when the policy of a queue changed.
pub(super) const POLICY_CHANGES_MS: u64 = 3_600_000;

shared! {
    /// enqueue.lua: what the jobs of a group say beside their records.
    mod enqueue as "ENQUEUE_" {
        /// The broker made the ids: nothing else is said.
        NEW_IDS: &str = "n";
        /// The caller made the ids: nothing else is said.
        GIVEN_IDS: &str = "p";
        /// Each job says when it starts, until when, and its unique key.
        WITH_OPTIONS: &str = "x";
        /// No group: the version of the policy that the jobs were made with, and the most jobs that may wait ('' any
        /// number; a minus before it: store all jobs of the call or none).
        WITH_POLICY: &str = "v";
        /// The state of a job that was not stored because too many wait.
        FULL: &str = "F";
        /// The same, and each job may replace one that waits.
        REPLACING: &str = "y";
        /// Arguments of each job in a group without options.
        STRIDE: usize = 2;
        /// Arguments of each job in a group with options.
        OPTIONS_STRIDE: usize = 6;
        /// First byte of a start time: so many milliseconds from now.
        START_IN: u8 = b'd';
        /// First byte of a start time: absolute milliseconds.
        START_AT: u8 = b'a';
        /// Behind the state of a job that was there: the new one has replaced it.
        REPLACED: &str = "r";
    }
}

shared! {
    /// The values of the enqueue gate of a queue. None: a plain queue.
    mod gate as "GATE_" {
        /// It takes no new jobs.
        PAUSED: &str = "1";
        /// It has a policy, whose version follows.
        POLICY: &str = "v";
    }
}

shared! {
    /// Until when a unique key is held; stored in the state hash.
    mod scope as "SCOPE_" {
        /// Until the first lease.
        LEASED: &str = "L";
        /// Until the job ends.
        SETTLED: &str = "S";
        /// For a time, whatever becomes of the job.
        WINDOW: &str = "W";
    }
}

shared! {
    /// enqueue.lua: what becomes of a second job with the same unique key; behind the scope.
    mod conflict as "CONFLICT_" {
        /// The first job is the answer.
        KEEP: u8 = b'-';
        /// The first job becomes the second one, if it still waits.
        REPLACE: u8 = b'R';
        /// The same, and it waits anew.
        DEBOUNCE: u8 = b'D';
    }
}

shared! {
    /// lease.lua: how a fetch ended.
    mod verdict as "VERDICT_" {
        /// There are no more jobs for these demands, or each got all it asked for.
        DONE: i64 = 0;
        /// The queue is paused.
        PAUSED: i64 = 1;
        /// There may be more: fetch again at once.
        AGAIN: i64 = 2;
        /// The next job is larger than what each demand has left, or must be the only one of a lease call.
        BLOCKED_BY_SIZE: i64 = 3;
        /// As `AGAIN`, and the last job must be the only one of its delivery.
        LAST_IS_ALONE: i64 = 4;
    }
}

shared! {
    /// lease.lua: values that stand in the place of the next due time.
    mod next_due as "NEXT_DUE_" {
        /// No job is scheduled.
        NONE: i64 = -1;
        /// Nothing was done: the request id was used with another request.
        REQUEST_ID_REUSED: i64 = -2;
        /// Nothing was done: one of several request ids was used before.
        AMONG_REPEATED: i64 = -3;
    }
}

shared! {
    /// ack.lua: what follows the ids of a run.
    mod ack as "ACK_" {
        /// Nothing.
        PLAIN: &str = "p";
        /// The result of each job.
        WITH_RESULTS: &str = "r";
    }
}

shared! {
    /// nack.lua: what to do with a job; stored in the memory of settled ids.
    mod nack as "NACK_" {
        /// Run again, after the backoff or a delay.
        RETRY: &str = "T";
        /// The worker did not start it: back to the head of its lane.
        RELEASE: &str = "L";
        /// No worker has it: back to the head of its lane.
        UNDELIVERED: &str = "G";
        /// As `UNDELIVERED`, and counted as a delivery that no worker confirmed.
        UNCONFIRMED: &str = "U";
        /// Run later.
        SNOOZE: &str = "Z";
        /// Dead at once.
        DEAD_LETTER: &str = "D";
        /// Cancelled at once.
        DISCARD: &str = "C";
        /// Set aside: the broker cannot read the record.
        QUARANTINE: &str = "Q";
        /// Arguments of each job.
        STRIDE: usize = 8;
        /// The first argument that belongs to a job.
        FIRST: usize = 10;
        /// Releases in a row, without an attempt in between, before a job is delayed.
        FREE_RELEASES: u32 = 5;
        /// First delay of a job that was released too often, in milliseconds; it doubles each time.
        RELEASE_DELAY_MS: u64 = 250;
        /// Longest delay of a job that was released too often, in milliseconds.
        RELEASE_DELAY_MAX_MS: u64 = 10_000;
    }
}

shared! {
    /// ack.lua and nack.lua: what became of a settlement.
    mod code as "CODE_" {
        /// Applied.
        APPLIED: i64 = 0;
        /// Settled in the same way before.
        ALREADY: i64 = 1;
        /// The lease is lost.
        LEASE_LOST: i64 = 2;
        /// Settled in another way before.
        OTHERWISE: i64 = 3;
    }
}

shared! {
    /// extend.lua: who moves the deadline (first byte of that argument), and the replies that are no remaining time.
    mod extend as "EXTEND_" {
        /// The holder.
        HOLDER: u8 = b'h';
        /// The holder, for exactly this term.
        EXACTLY: u8 = b's';
        /// The stream that owns the lease.
        OWNER: u8 = b'k';
        /// The stream that owns the lease, and ends.
        LEAVING: u8 = b'e';
        /// A stream that owns the lease from now on.
        TAKING: u8 = b't';
        /// Arguments of each lease.
        STRIDE: usize = 7;
        /// Behind the percentage: log lines follow. A number of the call (4 bytes), then each line behind its length (2
        /// bytes).
        LOG_MARK: &str = ";";
        /// Bytes of the number of the call.
        LOG_CALL_BYTES: usize = 4;
        /// The lease is lost.
        LEASE_LOST: i64 = -1;
        /// The attempt timeout is reached.
        TIMEOUT_REACHED: i64 = -2;
        /// Another stream owns the lease.
        OTHER_OWNER: i64 = -3;
        /// This lease was settled.
        SETTLED: i64 = -4;
    }
}

shared! {
    /// First byte of a message on the channel of a queue.
    mod notify as "NOTIFY_" {
        /// A lane was empty and is not any more: tag of the broker, lane.
        LANE_READY: &str = "r";
        /// A scheduled job is due before all others: tag of the broker, time in milliseconds.
        DUE_EARLIER: &str = "z";
        /// A job for which a call waits has settled: id.
        SETTLED: &str = "d";
        /// A leased job is to be cancelled: tag of the broker, id, grace in milliseconds (4 bytes), reason.
        CANCEL: &str = "c";
    }
}

shared! {
    /// due_index.lua: what is reported of a queue.
    mod due as "DUE_" {
        /// A job is about to be stored in it.
        USED: &str = "u";
        /// It exists.
        KNOWN: &str = "k";
        /// Something falls due in it, so many milliseconds from now.
        WITHIN: &str = "d";
        /// It was deleted.
        DELETED: &str = "x";
        /// Its maintenance has run.
        MAINTAINED: &str = "v";
    }
}

shared! {
    /// wait_job.lua: what is no state of a settled job.
    mod wait as "WAIT_" {
        /// The job is not settled.
        UNSETTLED: &str = "";
        /// There is no such job.
        UNKNOWN: &str = "?";
    }
}

shared! {
    /// audit.lua and repair.lua: what a question or a repair is about.
    mod audit as "AUDIT_" {
        /// A job, by its id.
        JOB: &str = "j";
        /// A lane and its place in the lane index.
        LANE: &str = "r";
        /// The tombstones of one job in one lane: id and lane.
        TOMBSTONES: &str = "c";
        /// The number of tombstones of a lane.
        LANE_TOMBSTONES: &str = "n";
        /// A unique key.
        UNIQUE: &str = "u";
        /// The window that holds a unique key.
        WINDOW: &str = "w";
        /// A generation of the memory, by its number.
        MEMORY: &str = "d";
        /// The policy of the queue.
        POLICY: &str = "p";
        /// A key, by its end.
        KEY: &str = "k";
    }
}

shared! {
    /// The states of an operation, as stored; and operation.lua: what to do with it, what became of it.
    mod operation_word as "OPERATION_" {
        /// Brokers continue it.
        IS_RUNNING: &str = "R";
        /// It waits to be resumed.
        IS_PAUSED: &str = "P";
        /// It has acted on all jobs.
        IS_DONE: &str = "D";
        /// It was cancelled.
        IS_CANCELLED: &str = "C";
        /// A broker could not continue it.
        IS_FAILED: &str = "F";
        /// Start it.
        VERB_BEGIN: &str = "b";
        /// Pause it.
        VERB_PAUSE: &str = "p";
        /// Resume it.
        VERB_RESUME: &str = "r";
        /// Cancel it.
        VERB_CANCEL: &str = "c";
        /// It cannot be continued.
        VERB_FAIL: &str = "f";
        /// It was started, paused, resumed or cancelled.
        CODE_CHANGED: i64 = 0;
        /// The same operation was started before, or it has ended.
        CODE_SAME: i64 = 1;
        /// Its id names another operation.
        CODE_OTHER: i64 = 2;
        /// Too many have not ended.
        CODE_TOO_MANY: i64 = 3;
        /// There is none.
        CODE_UNKNOWN: i64 = 4;
    }
}

shared! {
    /// The facts of a job, in the order in which audit.lua tells them.
    mod fact as "FACT_" {
        /// The first bytes of its record.
        RECORD: usize = 1;
        /// Whether it has a state hash.
        STATE: usize = 2;
        /// The letter of its final state.
        FINAL: usize = 3;
        /// The unique key that it knows to be its own.
        UNIQUE_KEY: usize = 4;
        /// Until when it holds that key.
        UNIQUE_SCOPE: usize = 5;
        /// Who holds that key.
        HOLDER: usize = 6;
        /// Counters of its state hash; each move out of a lease changes them or the memory.
        COUNTERS: usize = 7;
        /// Its lease without the holder.
        LEASE: usize = 8;
        /// Whether the lease has a deadline.
        DEADLINE: usize = 9;
        /// Its due time, if it is scheduled.
        SCHEDULED: usize = 10;
        /// Its time of death, if it is dead.
        DEAD: usize = 11;
        /// The end of its retention, if it is settled and retained.
        SETTLED: usize = 12;
        /// When it must have started.
        START_BY: usize = 13;
        /// Whether it is in quarantine.
        QUARANTINED: usize = 14;
        /// Whether there is a record of it in quarantine.
        SET_ASIDE: usize = 15;
        /// What is remembered of its id.
        MEMORY: usize = 16;
        /// Which of its keys expire: the letters of their names.
        EXPIRES: usize = 17;
        /// Lines of its log.
        LOG: usize = 18;
        /// How many facts there are.
        COUNT: usize = 18;
        /// The last byte of a record that is a fact: it covers the head of every job.
        RECORD_BYTES: usize = 79;
        /// The last byte of a policy that is read: the number of its version stands before.
        POLICY_BYTES: usize = 23;
        /// Stands for a value that is there.
        PRESENT: &str = "+";
        /// Stands for a key of another type, or an empty value.
        FOREIGN: &str = "!";
    }
}

shared! {
    /// step.lua and delete_queue.lua: how a step ended.
    mod step as "STEP_" {
        /// In the place of an act: count the jobs in groups.
        ANALYZE: &str = "a";
        /// There is more to do, at once or after a wait.
        MORE: &str = "m";
        /// That was the end of the operation.
        ENDED: &str = "e";
        /// It has ended before, and is kept for a while.
        KEPT: &str = "k";
        /// It is paused, or there is none.
        IDLE: &str = "i";
        /// It was kept long enough, and is deleted.
        GONE: &str = "g";
    }
}

shared! {
    /// repair.lua: the steps of the repair of a job.
    mod repair as "REPAIR_" {
        /// Arguments of a step: kind and three values.
        STRIDE: usize = 4;
        /// Put it where it belongs: letter of its final state or '', due time or ''.
        PLACE: &str = "p";
        /// Take it out of a set or the leases: the end of that key.
        LEAVE: &str = "l";
        /// Set its tombstones in a lane: lane, number before, number after.
        TOMBSTONES: &str = "c";
        /// Set record and state aside: reason.
        QUARANTINE: &str = "q";
        /// List it in quarantine: reason.
        LIST_QUARANTINED: &str = "+";
        /// Remove it from the list of the quarantine.
        UNLIST_QUARANTINED: &str = "-";
        /// Give its lease a deadline: now.
        DEADLINE: &str = "d";
        /// Say in its lease that it has a state hash.
        MARK_LEASE: &str = "m";
        /// Set the letter of its final state; '' removes it.
        FINAL: &str = "f";
        /// Remove its state hash.
        FORGET_STATE: &str = "s";
        /// Set its state hash aside, which is a key of another type.
        SET_STATE_ASIDE: &str = "a";
        /// Give it its unique key: key.
        TAKE_UNIQUE_KEY: &str = "u";
        /// Let it know no unique key any more.
        DROP_UNIQUE_KEY: &str = "v";
        /// Its keys do not expire.
        PERSIST: &str = "e";
        /// Remove its log.
        FORGET_LOG: &str = "g";
    }
}

shared! {
    /// The acts on a job (lua/lib/acts/).
    mod act as "ACT_" {
        /// Put a settled job back.
        REDRIVE: &str = "r";
        /// Make a scheduled job ready.
        RUN_NOW: &str = "n";
        /// Cancel it.
        CANCEL: &str = "c";
        /// Delete it.
        DELETE: &str = "d";
        /// Give it another priority.
        REPRIORITIZE: &str = "p";
        /// Take it from its holder.
        EXPIRE_LEASE: &str = "x";
        /// Write a new record of a job that waits or is dead.
        EDIT: &str = "e";
        /// Write a new record of a job that waits.
        RESTAMP: &str = "s";
    }
}

shared! {
    /// What became of an act.
    mod outcome as "OUTCOME_" {
        /// It is done.
        DONE: i64 = 0;
        /// There is no such job.
        NOT_FOUND: i64 = 1;
        /// The state of the job does not allow it.
        WRONG_STATE: i64 = 2;
        /// Another job has its unique key.
        UNIQUE_TAKEN: i64 = 3;
        /// Its record cannot be read.
        UNREADABLE: i64 = 4;
        /// Its record is not the one that the new one was made from.
        STALE_ETAG: i64 = 5;
    }
}

shared! {
    /// import.lua: what became of a job.
    mod import as "IMPORT_" {
        /// It is stored.
        STORED: i64 = 0;
        /// A job with its id is there, or ended in another way.
        DUPLICATE: i64 = 1;
        /// Another job has its unique key.
        UNIQUE_TAKEN: i64 = 2;
    }
}

shared! {
    /// turn.lua: what is reported of an operation, and how brokers take turns.
    mod turn as "TURN_" {
        /// It exists, or is about to be written.
        ADD: &str = "a";
        /// A step has run; when the next one may.
        NEXT: &str = "n";
        /// It is not to be continued now.
        IDLE: &str = "i";
        /// It is gone.
        GONE: &str = "g";
        /// Microseconds of Redis that each microsecond of a step stands for: a tenth of its time.
        PACE: u64 = 10;
        /// Reserved for a step until its time is reported, in microseconds.
        RESERVED_US: u64 = 10_000;
        /// An operation is left to the broker that took it this long, in milliseconds.
        LEFT_MS: u64 = 1_000;
        /// One that could not be continued is tried once more after this long, in milliseconds.
        IDLE_MS: u64 = 5_000;
    }
}

shared! {
    /// list.lua: how much of each job it returns.
    mod list as "LIST_" {
        /// The beginning of the record; no failure, progress or result.
        STATE: &str = "s";
        /// Without the data of the result, the checkpoint and the stack, and mostly without a large payload.
        BASIC: &str = "b";
        /// All.
        FULL: &str = "f";
    }
}
