//! The smallest useful worker: one job type, a JSON payload, a text result. `BANANAS_BROKER`, `WORKER_ROUTING_KEYS` and
//! the other `WORKER_` variables set the broker and the queues; the default is the queue `default` of a broker on this
//! machine.
//!
//! ```text
//! cargo run -p bananas-broker -- dev                  # a broker, in another terminal
//! cargo run -p bananas-examples --example hello_worker
//! cargo run -p bananas-examples --example producer    # enqueues jobs for it
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
