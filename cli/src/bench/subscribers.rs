//! Measures the cost of idle streams in the broker.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    args::BenchArgs,
    consume::Stream,
    figures::{Figures, Streams},
    meter::Meter,
    produce::Counters,
};
use crate::{
    connection::Connection,
    exit::{Exit, Failure, Result},
};

/// Opens --streams streams and measures the broker while they are idle.
pub(super) async fn measure(args: &BenchArgs, connection: &Connection, meter: &Meter, queue: &str) -> Result<Figures> {
    let empty = meter.broker_bytes()?;
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        clients.push(connection.builder().connect().await?);
    }
    let counters = Arc::new(Counters::default());
    let mut working = JoinSet::new();
    let mut heartbeat = Duration::ZERO;
    for i in 0..args.streams {
        let queues = [format!("{queue}-{}", i % args.selectors)];
        let opening = Stream::open(&clients[i % clients.len()], &queues, args.window);
        // The broker limits the streams of a connection. The next one waits, so the time limit is the only sign.
        let Ok(stream) = timeout(connection.timeout, opening).await else {
            let text = format!("only {i} streams could be opened; use more --connections");
            return Err(Failure::new(Exit::Unavailable, text));
        };
        let stream = stream?;
        heartbeat = stream.heartbeat;
        working.spawn(stream.work(counters.clone(), Duration::ZERO));
    }
    sleep(args.warmup).await;
    let before = meter.read().await?;
    tokio::select! {
        () = sleep(whole_heartbeats(args.duration, heartbeat)) => {}
        Some(ended) = working.join_next() => ended.map_err(Failure::of_task)??,
    }
    let after = meter.read().await?;
    let mut figures = Figures::between(0, &before, &after);
    figures.streams = Some(Streams {
        count: args.streams,
        bytes: meter.broker_bytes()?.saturating_sub(empty),
    });
    Ok(figures)
}

/// The duration rounded up to whole heartbeats, so that each stream sends equally many.
fn whole_heartbeats(duration: Duration, heartbeat: Duration) -> Duration {
    let beats = duration.as_nanos().div_ceil(heartbeat.as_nanos().max(1));
    heartbeat * u32::try_from(beats.max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_streams_are_measured_for_whole_heartbeats() {
        let seconds = Duration::from_secs;
        for (asked, heartbeat, watched) in [(3, 10, 10), (10, 10, 10), (11, 10, 20), (0, 1, 1)] {
            assert_eq!(whole_heartbeats(seconds(asked), seconds(heartbeat)), seconds(watched));
        }
    }
}
