//! The scripted broker over pipes inside the process, and workers that are connected to it.

use std::{io, time::Duration};

use bananas_proto::server as wire;
use bananas_scripted_broker::{
    broker::{Pipes, ScriptedBroker},
    stream::{Stream, soon},
};
use bananas_worker::{Worker, WorkerBuilder};
use hyper_util::rt::TokioIo;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

/// The scripted broker.
pub(crate) struct Broker {
    scripted: ScriptedBroker,
    pipes: Pipes,
}

impl Broker {
    pub(crate) fn start() -> Self {
        // RUST_LOG=bananas_worker=debug shows the log of the worker of a failing test.
        let log = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        let _ = log.with_test_writer().try_init();
        let (scripted, pipes) = ScriptedBroker::start_on_pipes();
        Self { scripted, pipes }
    }

    /// A worker of this broker, without handlers.
    pub(crate) fn worker(&self) -> WorkerBuilder {
        let pipes = self.pipes.clone();
        Worker::builder()
            .name("w")
            .report_every(Duration::ZERO)
            .channel_source(move || channel(pipes.clone()))
    }

    /// The next stream that a worker opens, with its first frame.
    pub(crate) async fn stream(&mut self) -> (Stream, wire::Open) {
        self.scripted.stream().await
    }

    /// The next stream, opened.
    pub(crate) async fn open_stream(&mut self) -> (Stream, wire::Open) {
        self.scripted.open_stream().await
    }
}

fn channel(pipes: Pipes) -> Channel {
    let connect = tower::service_fn(move |_| {
        let (near, far) = tokio::io::duplex(1 << 16);
        let sent = pipes.send(Ok(far)).map_err(|_| io::Error::other("no broker"));
        async move { sent.map(|()| TokioIo::new(near)) }
    });
    Endpoint::from_static("http://broker").connect_with_connector_lazy(connect)
}

/// Returns when no task has anything to do until time passes.
pub(crate) async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// A worker that runs until it is asked to stop.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    worker: JoinHandle<Result<(), bananas_worker::Error>>,
}

impl Running {
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) async fn ended(self) -> Result<(), bananas_worker::Error> {
        soon(self.worker).await.expect("the worker panicked")
    }
}

pub(crate) fn run(builder: WorkerBuilder) -> Running {
    let worker = builder.build().expect("a worker that can be built");
    let (stop, stopped) = oneshot::channel::<()>();
    let until = async {
        let _ = stopped.await;
    };
    Running {
        stop: Some(stop),
        worker: tokio::spawn(worker.run_until(until)),
    }
}
