//! Programs of this workspace, started in a clean environment and run to their end.
use std::{
    env,
    path::PathBuf,
    process::{Output, Stdio},
};

use tokio::{io::AsyncWriteExt, process::Command};

use crate::eventually::within;

/// The output and the exit code of a program.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

#[allow(
    clippy::return_self_not_must_use,
    reason = "an assertion; its value is for another one"
)]
impl Ran {
    /// Asserts that it ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.ended_with(0)
    }

    /// Asserts that it ended with this code.
    #[track_caller]
    pub fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:#?}"))
    }
}

/// A program of this workspace. From the environment it gets PATH and the choice of a Redis server, nothing else.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(binary(program));
    let kept = ["PATH", "REDIS_SERVER"]
        .into_iter()
        .filter_map(|name| Some((name, env::var_os(name)?)));
    command.env_clear().envs(kept).kill_on_drop(true);
    command
}

/// Runs a program with this input until it ends.
pub async fn run(mut command: Command, input: &str) -> Ran {
    let program = format!("{:?}", command.as_std());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be run");
    let mut stdin = child.stdin.take().expect("its input is piped");
    let input = input.to_owned();
    // A program that does not read its input closes it: no error.
    let feeding = tokio::spawn(async move {
        let _ = stdin.write_all(input.as_bytes()).await;
    });
    let Output { status, stdout, stderr } = within(&program, child.wait_with_output())
        .await
        .expect("its output can be read");
    feeding.await.expect("feeding does not panic");
    Ran {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// A binary of this workspace, beside the directory of the test that runs.
pub fn binary(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a test knows its own path");
    let built = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("tests lie in target/<profile>/deps");
    let path = built.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace --bins` first (make test does)",
        path.display()
    );
    path
}
