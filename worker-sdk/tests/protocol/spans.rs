//! The span in which an attempt runs.

use bananas_proto::server::settlement::Outcome as Settled;
use bananas_scripted_broker::frames::job;
use bytes::Bytes;
use tracing::Span;

use crate::broker::{Broker, run};

#[tokio::test(start_paused = true)]
async fn attempt_runs_in_the_span_that_the_worker_was_given() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .span(|job| match job.job_type() {
            "traced" => tracing::error_span!("mine", job_id = job.job_id()),
            _ => panic!("no span for this one"),
        })
        .any_handler(|_, _: Bytes| async {
            let name = Span::current().metadata().map(tracing::Metadata::name);
            name.unwrap_or("none").to_owned()
        }));
    let (mut stream, _) = broker.open_stream().await;
    for (job_type, span) in [("traced", "mine"), ("not-traced", "none")] {
        stream.jobs([job("a", job_type)]).await;
        match stream.settled_one().await {
            Settled::Ack(ack) => assert_eq!(ack.result.unwrap().data, span),
            other @ Settled::Nack(_) => panic!("{job_type}: {other:?}"),
        }
    }
}
