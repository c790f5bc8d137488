//! The two roles: a producer pushes jobs, a worker takes and removes them.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::{AsyncCommands, RedisResult, aio::MultiplexedConnection};
use tokio::time::sleep;

use crate::Counters;

/// Producers pause while more jobs than this wait, as in `bananas bench`.
const MAX_BACKLOG: u64 = 20_000;
/// The longest pause of a worker on a shared connection, where no call may block.
const MAX_PAUSE: Duration = Duration::from_millis(8);

/// How a worker takes a job.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Take {
    /// On a separate connection: BLMOVE blocks until there is a job.
    Blocking,
    /// On a shared connection: LMOVE, repeated after a pause if there is no job.
    Polling,
}

/// Pushes jobs one by one.
pub(crate) async fn produce(
    mut redis: MultiplexedConnection,
    queue: String,
    payload: usize,
    counters: Arc<Counters>,
) -> RedisResult<()> {
    while !counters.stop.load(Relaxed) {
        if counters
            .pushed
            .load(Relaxed)
            .saturating_sub(counters.done.load(Relaxed))
            > MAX_BACKLOG
        {
            sleep(Duration::from_millis(1)).await;
            continue;
        }
        let id = counters.pushed.fetch_add(1, Relaxed);
        let () = redis.lpush(&queue, job(id, payload)).await?;
    }
    Ok(())
}

/// A unique id of 16 bytes, and the payload.
fn job(id: u64, payload: usize) -> Vec<u8> {
    let mut job = vec![7; 16 + payload];
    job[..16].copy_from_slice(&u128::from(id).to_be_bytes());
    job
}

/// Takes and removes jobs one by one, until it is dropped.
pub(crate) async fn work(
    mut redis: MultiplexedConnection,
    queue: String,
    number: usize,
    take: Take,
    counters: Arc<Counters>,
) -> RedisResult<()> {
    let mine = format!("{queue}:processing:{number}");
    let mut pause = Duration::from_millis(1);
    loop {
        let job: Option<Vec<u8>> = match take {
            Take::Blocking => {
                let mut blmove = redis::cmd("BLMOVE");
                blmove.arg(&queue).arg(&mine).arg("RIGHT").arg("LEFT").arg(0);
                blmove.query_async(&mut redis).await?
            }
            Take::Polling => {
                let mut lmove = redis::cmd("LMOVE");
                lmove.arg(&queue).arg(&mine).arg("RIGHT").arg("LEFT");
                lmove.query_async(&mut redis).await?
            }
        };
        let Some(job) = job else {
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            continue;
        };
        pause = Duration::from_millis(1);
        let () = redis.lrem(&mine, 1, job).await?;
        counters.done.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_different() {
        assert_eq!(job(1, 256).len(), 272);
        assert_ne!(job(1, 256), job(2, 256));
    }
}
