//! Log lines about jobs: only what the broker has applied.

use std::{io::Write, sync::Arc};

use bananas_proto::server::{self as wire, JobState, subscribe_response::Frame as FromBroker};
use bananas_scripted_broker::{frames::job, stream::Stream};
use bananas_worker::HandlerError;
use parking_lot::{Mutex, MutexGuard};
use tracing::subscriber::DefaultGuard;

use crate::broker::{Broker, quiet, run};

/// The log, one event a line.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock()
    }

    /// Collects everything that this thread logs from now on.
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn lines(&self, text: &str) -> Vec<String> {
        String::from_utf8_lossy(&self.bytes())
            .lines()
            .filter(|line| line.contains(text))
            .map(str::to_owned)
            .collect()
    }
}

async fn answer(stream: &mut Stream, result: wire::SettleResult) {
    let settle = stream.settle_frame().await;
    let results = vec![result; settle.settlements.len()];
    let sequence = settle.sequence;
    stream
        .send_frame(FromBroker::SettleResults(wire::SettleResults { sequence, results }))
        .await;
    quiet().await;
}

fn lost() -> wire::SettleResult {
    let error = wire::ItemError {
        code: tonic::Code::FailedPrecondition.into(),
        reason: "LEASE_LOST".to_owned(),
        ..wire::ItemError::default()
    };
    wire::SettleResult {
        error: Some(error),
        ..wire::SettleResult::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_is_completed_when_the_broker_has_applied_its_settlement() {
    let (log, _guard) = Log::start();
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("quick", async |_, _| ()));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "quick")]).await;
    quiet().await;
    assert!(
        log.lines("Job completed").is_empty(),
        "the broker has not applied it yet"
    );
    answer(&mut stream, wire::SettleResult::default()).await;
    assert_eq!(log.lines("Job completed").len(), 1);
    // Too late: another worker has the job.
    stream.jobs([job("b", "quick")]).await;
    answer(&mut stream, lost()).await;
    assert_eq!(log.lines("Job completed").len(), 1);
    assert_eq!(log.lines("the lease was over before the settlement arrived").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_job_says_whether_it_is_dead() {
    let (log, _guard) = Log::start();
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("fails", async |_, _| {
        Err::<(), _>(HandlerError::retry("Smtp", "no route"))
    }));
    let (mut stream, _) = broker.open_stream().await;
    for (state, dead) in [(JobState::Scheduled, false), (JobState::Dead, true)] {
        stream.jobs([job("a", "fails")]).await;
        let result = wire::SettleResult {
            state: state.into(),
            ..wire::SettleResult::default()
        };
        answer(&mut stream, result).await;
        let line = log.lines("Job failed").pop().unwrap();
        assert!(
            line.contains(&format!("dead_letter={dead}")) && line.contains("no route"),
            "{line}"
        );
    }
}
