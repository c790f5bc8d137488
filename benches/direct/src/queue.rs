//! The two roles: one pushes jobs, the other takes them over and ends them.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::{AsyncCommands, RedisResult, aio::MultiplexedConnection};
use tokio::time::sleep;

use crate::Counters;

/// Producers rest while so many jobs wait, as in `bananas bench`.
const MAX_BACKLOG: u64 = 20_000;
/// Longest wait of a worker that shares its connection, where nobody may block.
const MAX_PAUSE: Duration = Duration::from_millis(8);

/// How a worker takes a job.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Taking {
    /// The connection is its own: BLMOVE waits until there is one.
    Blocking,
    /// The connection is shared: LMOVE, and again after a pause if there is none.
    Polling,
}

/// Pushes jobs one by one: id and payload.
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

/// 16 bytes that are different in each job, and its payload.
fn job(id: u64, payload: usize) -> Vec<u8> {
    let mut job = vec![7; 16 + payload];
    job[..16].copy_from_slice(&u128::from(id).to_be_bytes());
    job
}

/// Takes jobs and ends them, one by one, until it is dropped.
pub(crate) async fn work(
    mut redis: MultiplexedConnection,
    queue: String,
    number: usize,
    taking: Taking,
    counters: Arc<Counters>,
) -> RedisResult<()> {
    let mine = format!("{queue}:processing:{number}");
    let mut pause = Duration::from_millis(1);
    loop {
        let job: Option<Vec<u8>> = match taking {
            Taking::Blocking => {
                let mut blmove = redis::cmd("BLMOVE");
                blmove.arg(&queue).arg(&mine).arg("RIGHT").arg("LEFT").arg(0);
                blmove.query_async(&mut redis).await?
            }
            Taking::Polling => {
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
