//! Programs of this workspace, run to their end.
use std::process::{Output, Stdio};

use bananas_harness::{broker::binary, eventually::within};
use tokio::{io::AsyncWriteExt, process::Command};

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// It ended with 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.ended_with(0)
    }

    /// It ended with that code.
    #[track_caller]
    pub(crate) fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// What it printed for programs.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:#?}"))
    }
}

/// Nothing of what the developer has in the environment.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(binary(program));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .kill_on_drop(true);
    command
}

/// Runs a program with that input until it ends.
pub(crate) async fn run(mut command: Command, input: &str) -> Ran {
    let program = format!("{:?}", command.as_std());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be run");
    let mut stdin = child.stdin.take().expect("its input is piped");
    let input = input.to_owned();
    // A program that does not read its input closes it, which is no error here.
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
