//! Enqueues jobs for the other two examples and prints their results as they come.
//!
//! ```text
//! cargo run -p bananas-examples --example producer -- Ada Grace Edsger
//! ```

use std::time::Duration;

use bananas_client::{Client, Detail, NewJob, Priority};

#[tokio::main]
async fn main() -> Result<(), bananas_client::Error> {
    let broker = std::env::var("BANANAS_BROKER").unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned());
    let client = Client::connect(broker).await?;
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        names.push("world".to_owned());
    }

    // One batch call enqueues all jobs. Each job gets its own result.
    let jobs = names.iter().map(|name| {
        let payload = serde_json::json!({ "name": name });
        NewJob::new("default", "greet").priority(Priority::HIGH).json(&payload)
    });
    for enqueued in client.enqueue_batch(jobs.collect::<Result<Vec<_>, _>>()?).await {
        let id = enqueued?.job_id;
        let waited = client
            .wait_job("default", id, Duration::from_secs(30), Detail::Full)
            .await?;
        match waited.job.result {
            Some(result) => println!("{id}: {}", String::from_utf8_lossy(&result.data)),
            None => println!("{id}: {:?} after 30 s; is hello_worker running?", waited.job.state()),
        }
    }

    let count = NewJob::new("default", "count").json(&serde_json::json!({ "up_to": 30 }))?;
    let id = client.enqueue(count).await?.job_id;
    println!("{id}: counting, if long_job is running. To stop it: bananas job cancel default/{id}");
    Ok(())
}
