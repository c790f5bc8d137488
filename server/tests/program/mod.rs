//! The real binary as a child process of a test.

// Each test program uses a part of it.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

/// The program, in an environment without our variables; which server `dev` starts is the choice of who runs the tests.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bananas-broker"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = [
            "BANANAS_",
            "REDIS_",
            "LOG_",
            "METRICS_",
            "API_",
            "RESULT_BACKEND_",
            "OTEL_",
        ]
        .iter()
        .any(|ours| text.starts_with(ours));
        if ours && text != "REDIS_SERVER" {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    command()
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// A `dev` broker on ports and a directory of its own; ends with the value.
pub struct Dev {
    process: Child,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

impl Dev {
    /// Starts it and waits until it is ready.
    pub fn start(data_dir: &Path, variables: &[(&str, &str)]) -> Self {
        let (grpc, http) = (free_address(), free_address());
        let process = command()
            .args([
                "dev",
                "--port",
                &grpc.port().to_string(),
                "--set",
                &format!("http.listen={http}"),
                "--data-dir",
            ])
            .arg(data_dir)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut dev = Self { process, grpc, http };
        dev.wait_until(|dev| {
            dev.get("/readyz")
                .is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        dev
    }

    /// Polls until it holds; fails if the broker ends before that.
    pub fn wait_until(&mut self, mut holds: impl FnMut(&Self) -> bool) {
        while !holds(self) {
            assert_eq!(self.process.try_wait().unwrap(), None, "the broker ended");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// What the second port says; `None` while it is closed.
    pub fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Asks it to end and waits.
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.process.wait().unwrap()
    }

    /// Waits for an end that was asked for.
    pub fn wait(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Gone already if the test went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends a signal to one process.
pub fn signal(process: u32, name: &str) {
    assert!(
        Command::new("kill")
            .args([&format!("-{name}"), &process.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
