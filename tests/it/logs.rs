//! Logs that cannot be written: no call waits for them, and no program ends because of them.
use std::{fs::OpenOptions, io::Write as _, process::Stdio};

use bananas_harness::{
    api::unique_key,
    eventually::{eventually, within},
    program::{command, run},
    stand::{Stand, StandOptions},
};
use bananas_proto::v1::JobState;

/// A file that takes no bytes, as on a full disk.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

#[tokio::test]
async fn a_log_that_is_not_read_does_not_block_the_broker() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("log");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    // The pipe is open for reading, and nobody reads.
    let _reader = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let settings = vec![
        ("log.output", "file".to_owned()),
        ("log.file", pipe.display().to_string()),
        // Hundreds of lines for each call: the pipe takes 64 KiB.
        ("log.level", "info,h2=trace".to_owned()),
    ];
    let stand = Stand::with(StandOptions {
        settings,
        ..StandOptions::default()
    })
    .await;
    let (api, key) = (stand.api(), unique_key("unread-log"));
    within("the broker goes on", async {
        for _ in 0..100 {
            api.enqueued(&key).await;
        }
        let job = api.leased(&key).await;
        api.ack(&job.lease_token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_error_that_is_not_read_ends_the_program_all_the_same() {
    for (program, arguments, code) in [
        ("bananas-broker", &["serve", "--set", "redis.url=nonsense"][..], 78),
        ("bananas", &["worker", "-q", "", "--exec", "cat"], 2),
    ] {
        let (_reader, mut full_pipe) = std::io::pipe().unwrap();
        full_pipe.write_all(&vec![b'.'; 65_536]).unwrap();
        let mut program = command(program);
        program.args(arguments).stdout(Stdio::null()).stderr(full_pipe);
        let ended = within("it ends", program.status()).await.unwrap();
        assert_eq!(ended.code(), Some(code), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_worker_whose_log_cannot_be_written_does_its_jobs() {
    let stand = Stand::shared().await;
    let (api, key) = (stand.api(), unique_key("full-log"));
    let mut worker = command("bananas");
    let _worker = worker
        .env("BANANAS_BROKER", stand.brokers[0].endpoint())
        .args(["worker", "-q", &key, "--exec", "cat"])
        .stdout(Stdio::null())
        .stderr(full())
        .spawn()
        .unwrap();
    for _ in 0..3 {
        let id = api.enqueued(&key).await;
        eventually("the job is done", || async {
            (api.state(&key, &id).await == JobState::Succeeded).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_command_whose_stderr_is_not_read_ends_as_usual() {
    let stand = Stand::shared().await;
    let key = unique_key("full-stderr");
    let target = format!("{key}/t");
    let cases: [(&[&str], i32); 4] = [
        (&["enqueue", &target, "--each-line"], 0),
        (&["enqueue", &target, "--payload", "x", "--delay", "-1s"], 2),
        (&["job", "get", &target, "nothing"], 2),
        (&["queue", "get", "nothing-like-it"], 3),
    ];
    for (arguments, code) in cases {
        let mut heard = command("bananas");
        heard.env("BANANAS_BROKER", stand.brokers[0].endpoint()).args(arguments);
        assert_eq!(run(heard, "one\ntwo\n").await.code, code, "{arguments:?}");
        let mut unheard = command("bananas");
        unheard
            .env("BANANAS_BROKER", stand.brokers[0].endpoint())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(full());
        let ended = within("the command ends", unheard.status()).await.unwrap();
        assert_eq!(ended.code(), Some(code), "{arguments:?}");
    }
}
