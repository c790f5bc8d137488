//! The smallest useful worker: one job type, JSON in, text out. `BANANAS_BROKER`, `WORKER_ROUTING_KEYS` and the other `WORKER_` variables
//! say where and what it works on; unset, that is the queue `default` of a broker on this machine.
//!
//! ```text
//! cargo run -p bananas-broker -- dev                  # a broker, in another terminal
//! cargo run -p bananas-examples --example hello_worker
//! cargo run -p bananas-examples --example producer    # gives it something to do
//! ```

use bananas_worker::{JobContext, Worker};

#[derive(serde::Deserialize)]
struct Greeting {
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), bananas_worker::Error> {
    tracing_subscriber::fmt().init();
    Worker::from_env()?
        .json_handler("greet", |job: JobContext, greeting: Greeting| async move {
            format!("Hello {}, this is attempt {}.", greeting.name, job.attempt())
        })
        .build()?
        .run()
        .await
}
