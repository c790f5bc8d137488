//! A `bananas-broker dev` process with its private Redis, on ports of its own.
use std::{
    path::Path,
    process::{ExitStatus, Stdio},
};

use tokio::process::Child;

use crate::{
    eventually::{eventually, within},
    http, ports,
    program::command,
    signal,
};

/// A dev broker. It is killed when the value is dropped.
#[derive(Debug)]
pub struct DevBroker {
    process: Child,
    api_port: u16,
    http_port: u16,
}

impl DevBroker {
    /// Starts one on this data directory, with more variables in its environment, and waits until it is ready.
    pub async fn start(data_dir: &Path, variables: &[(&str, &str)]) -> Self {
        let (api_port, http_port) = (ports::free(), ports::free());
        let process = command("bananas-broker")
            .args(["dev", "--port", &api_port.to_string()])
            .args(["--set", &format!("http.listen=127.0.0.1:{http_port}"), "--data-dir"])
            .arg(data_dir)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the broker's binary can be run");
        let mut broker = Self {
            process,
            api_port,
            http_port,
        };
        broker.wait_ready().await;
        broker
    }

    /// The address of gRPC: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.api_port)
    }

    /// Waits until /readyz returns 200; panics if the broker ends before that.
    pub async fn wait_ready(&mut self) {
        eventually("the dev broker is ready", || {
            let ended = self.process.try_wait().expect("a child can be waited for");
            assert_eq!(ended, None, "the dev broker ended");
            let port = self.http_port;
            async move { (http::get(port, "/readyz").await.ok()?.0 == 200).then_some(()) }
        })
        .await;
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        signal::send(self.process.id().expect("it runs"), name);
    }

    /// Sends SIGTERM and waits until it has ended.
    pub async fn stop(self) -> ExitStatus {
        self.signal("TERM");
        self.ended().await
    }

    /// Waits until it has ended.
    pub async fn ended(mut self) -> ExitStatus {
        within("the dev broker ends", self.process.wait())
            .await
            .expect("a child can be waited for")
    }
}
