//! The command line from outside: exit codes, what is printed where, and that no secret is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bananas_harness::program::{self, Ran, command};

async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut broker = command("bananas-broker");
    broker.args(arguments).envs(variables.iter().copied());
    program::run(broker, "").await
}

#[tokio::test]
async fn config_show_names_the_source_of_each_value_and_redacts_secrets() {
    let variables = [
        ("REDIS_URL", "redis://app:canary-1@db:6379/0"),
        ("REDIS_PASSWORD", "canary-2"),
        ("API_PORT", "7777"),
    ];
    for format in ["table", "json"] {
        let output = run(
            &["config", "show", "-o", format, "--set", "jobs.max_attempts=4"],
            &variables,
        )
        .await;
        let shown = output.ok().stdout;
        for expected in [
            "redis://app:[redacted]@db:6379/0",
            "environment API_PORT",
            "127.0.0.1:7777",
            "flag --set",
        ] {
            assert!(shown.contains(expected), "{expected} is missing in {shown}");
        }
        assert!(!shown.contains("canary"), "{shown}");
    }
}

#[tokio::test]
async fn an_invalid_configuration_ends_every_command_with_78_and_names_all_mistakes() {
    for command in [&["serve"][..], &["dev"], &["config", "check"], &["config", "show"]] {
        let arguments = [command, &["--set", "jobs.max_attempts=0", "--set", "grpc.listn=x"]].concat();
        let said = run(&arguments, &[("REDIS_URL", "canary")]).await.ended_with(78).stderr;
        assert!(
            said.contains("jobs.max_attempts")
                && said.contains("did you mean grpc.listen?")
                && said.contains("redis.url"),
            "{said}"
        );
        assert!(!said.contains("canary"), "{said}");
    }
    run(&["config", "check"], &[]).await.ok();
}

#[tokio::test]
async fn the_printed_defaults_are_a_valid_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.toml");
    std::fs::write(&path, run(&["config", "defaults"], &[]).await.stdout).unwrap();
    run(&["config", "check", "--config", path.to_str().unwrap()], &[])
        .await
        .ok();
}

#[tokio::test]
async fn healthcheck_tells_a_broker_that_is_not_there_from_wrong_use() {
    let absent = run(&["healthcheck", "--address", "127.0.0.1:1"], &[]).await;
    assert!(absent.ended_with(3).stderr.contains("127.0.0.1:1"));
    run(&["healthcheck", "--nonsense"], &[]).await.ended_with(2);
}

#[tokio::test]
async fn manual_and_completions_cover_every_command() {
    let directory = tempfile::tempdir().unwrap();
    run(&["man", "--dir", directory.path().to_str().unwrap()], &[])
        .await
        .ok();
    let pages = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(pages >= 9, "{pages}");
    let completions = run(&["completions", "bash"], &[]).await.stdout;
    assert!(completions.contains("healthcheck") && completions.contains("--data-dir"));
}
