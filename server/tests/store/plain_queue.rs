//! What the jobs of a plain queue cost Redis: exactly these calls and these commands, compared byte for byte with
//! `plain_queue.txt`. A feature that a queue does not use adds nothing to them. Ids, nonces and times are masked.
//!
//! A change that is meant to alter them writes the file anew with `BANANAS_WRITE_EXPECTED=1`.

use std::fmt::Write as _;

use bananas_broker::{
    domain::{JobId, Nonce},
    store::{AckItem, NackAction, Start},
};
use bananas_harness::redis_server::RedisServer;

use crate::{
    space::{Draft, LONG_MS, Space, draft, extend, nack, unique},
    watching::{Run, watch},
};

const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/store/plain_queue.txt");
/// A time of this test is in a window of this length, in milliseconds.
const WINDOW_MS: u64 = 30 * 24 * 3_600_000;

#[tokio::test]
async fn a_plain_queue_sends_redis_the_same_commands_as_ever() {
    let server = RedisServer::start().await;
    let mut mask = Mask::default();
    let mut base = String::new();
    let mut runs = watch(&server, async || {
        // The scripts are loaded here, so that the calls have names.
        let space = Space::new(&server).await;
        mask.from_ms = space.now_ms().await - 10_000;
        base = space.keys.base().to_owned();
        mask.names.push((base.clone().into_bytes(), "<queue>:".to_owned()));
        live(&space, &mut mask).await;
    })
    .await;
    runs.retain(|run| run.call[1].starts_with(base.as_bytes()));
    // The tag of the broker is the first argument of an enqueue.
    mask.names.push((runs[0].call[6].clone(), "<broker>".to_owned()));
    let seen = render(&runs, &mask);
    if std::env::var_os("BANANAS_WRITE_EXPECTED").is_some() {
        std::fs::write(EXPECTED, &seen).unwrap();
    }
    let expected = std::fs::read_to_string(EXPECTED).unwrap();
    let differing = expected.lines().zip(seen.lines()).find(|(before, now)| before != now);
    assert_eq!(differing, None, "the first line that differs: before, and now");
    assert_eq!(expected.lines().count(), seen.lines().count(), "{seen}");
}

/// The jobs of a plain queue go through every step of their lives.
async fn live(space: &Space, mask: &mut Mask) {
    mask.store(
        space,
        vec![Draft {
            id_is_new: true,
            ..draft()
        }],
    )
    .await;
    let given = mask.store(space, vec![draft(), draft(), draft()]).await;
    let later = Draft {
        start: Start::In(LONG_MS),
        ..draft()
    };
    let bounded = Draft {
        start_by_ms: Some(space.now_ms().await + LONG_MS),
        job_type: "bounded",
        ..draft()
    };
    let single = Draft {
        unique: unique("key"),
        job_type: "single",
        ..draft()
    };
    // Later than the jobs before them, so that the order of the lanes does not depend on the millisecond.
    space.pass(space.now_ms().await).await;
    mask.store(space, vec![later, bounded, single]).await;
    let repeated: Vec<_> = given.iter().map(|id| Draft { id: *id, ..draft() }.item()).collect();
    space.enqueue(&repeated).await;

    let (first, nonce) = space.lease_one().await;
    mask.name(&nonce);
    space.extend(&extend(first.job_id, nonce, LONG_MS)).await.unwrap();
    space.ack(first.job_id, nonce).await.unwrap();
    let batch = space.lease(5).await;
    mask.name(&batch.nonce);
    let ids: Vec<JobId> = batch.jobs.iter().map(|job| job.job_id).collect();
    let [retried, released, kept, ..] = ids[..] else {
        panic!("{ids:?}")
    };
    space.nack(retried, batch.nonce, NackAction::Retry).await.unwrap();
    space.nack(released, batch.nonce, NackAction::Release).await.unwrap();
    space.ack_with(kept, batch.nonce, Some("done")).await.unwrap();
    let rest: Vec<AckItem> = ids[3..]
        .iter()
        .map(|id| AckItem {
            job_id: *id,
            nonce: batch.nonce,
            result: None,
        })
        .collect();
    space
        .store
        .ack(&space.keys, &rest.iter().collect::<Vec<_>>())
        .await
        .unwrap();
    space.store.cancel(&space.keys, released, "why", 1_000).await.unwrap();
    let dead = mask.store(space, vec![draft()]).await[0];
    let (_, nonce) = space.lease_one().await;
    mask.name(&nonce);
    space
        .nack_with(&nack(dead, nonce, NackAction::DeadLetter))
        .await
        .unwrap();
    space.get_job(dead).await;
    space.store.await_settled(&space.keys, dead, 1_000).await.unwrap();
    // Nothing is ready.
    let empty = space.lease(1).await;
    mask.name(&empty.nonce);
}

/// What differs from run to run, and what stands for it.
#[derive(Default)]
struct Mask {
    names: Vec<(Vec<u8>, String)>,
    from_ms: u64,
}

impl Mask {
    /// Stores jobs, and masks their ids.
    async fn store(&mut self, space: &Space, drafts: Vec<Draft>) -> Vec<JobId> {
        let items: Vec<_> = drafts.iter().map(Draft::item).collect();
        for item in &items {
            self.names
                .push((item.id.0.to_vec(), format!("<job {}>", self.names.len() + 1)));
        }
        space.fill(&items).await;
        items.iter().map(|item| item.id).collect()
    }

    fn name(&mut self, nonce: &Nonce) {
        let number = self.names.len() + 1;
        self.names.push((nonce.0.to_vec(), format!("<nonce {number}>")));
        self.names
            .push((nonce.0[..8].to_vec(), format!("<half of nonce {number}>")));
    }

    /// One word of a command, as text.
    fn apply(&self, word: &[u8]) -> String {
        if word.starts_with(b"0.") && word.len() == 6 {
            return "<random>".to_owned();
        }
        let mut text = String::new();
        let mut at = 0;
        while at < word.len() {
            let rest = &word[at..];
            if let Some((bytes, name)) = self.names.iter().find(|(bytes, _)| rest.starts_with(bytes)) {
                text.push_str(name);
                at += bytes.len();
            } else if rest.len() >= 6 && self.is_time(rest[..6].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
            {
                text.push_str("<time>");
                at += 6;
            } else if let Some(digits) = self.time_in_digits(rest) {
                text.push_str("<time>");
                at += digits;
            } else {
                text.extend(std::ascii::escape_default(word[at]).map(char::from));
                at += 1;
            }
        }
        text
    }

    fn is_time(&self, ms: u64) -> bool {
        (self.from_ms..self.from_ms + WINDOW_MS).contains(&ms)
    }

    /// The digits of a time in milliseconds or microseconds at the start of a text.
    fn time_in_digits(&self, text: &[u8]) -> Option<usize> {
        let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number: u64 = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
        // Also the place of a lane in the lane index: its priority above the time.
        let in_lane = number % (1 << 42);
        (self.is_time(number) || self.is_time(number / 1_000) || self.is_time(in_lane)).then_some(digits)
    }
}

fn render(runs: &[Run], mask: &Mask) -> String {
    let mut text = String::new();
    let line = |words: &[Vec<u8>]| {
        let words = words.iter().map(|word| match mask.apply(word) {
            empty if empty.is_empty() => "''".to_owned(),
            word => word.replace(' ', "_"),
        });
        words.collect::<Vec<_>>().join(" ")
    };
    for run in runs {
        writeln!(text, "{} {}", run.script, line(&run.call)).unwrap();
        for command in &run.commands {
            writeln!(text, "    {}", line(command)).unwrap();
        }
    }
    text
}
