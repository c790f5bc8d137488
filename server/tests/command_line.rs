//! The command line from outside: exit codes, what is printed where, and that no secret is.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod program;

use program::run;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn config_show_names_the_source_of_each_value_and_redacts_secrets() {
    let variables = [
        ("REDIS_URL", "redis://app:canary-1@db:6379/0"),
        ("REDIS_PASSWORD", "canary-2"),
        ("API_PORT", "7777"),
    ];
    for format in ["table", "json"] {
        let output = run(
            &["config", "show", "-o", format, "--set", "jobs.max_attempts=4"],
            &variables,
        );
        let shown = text(&output.stdout);
        assert!(output.status.success());
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

#[test]
fn an_invalid_configuration_ends_every_command_with_78_and_names_all_mistakes() {
    for command in [&["serve"][..], &["dev"], &["config", "check"], &["config", "show"]] {
        let arguments = [command, &["--set", "jobs.max_attempts=0", "--set", "grpc.listn=x"]].concat();
        let output = run(&arguments, &[("REDIS_URL", "canary")]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(
            said.contains("jobs.max_attempts")
                && said.contains("did you mean grpc.listen?")
                && said.contains("redis.url"),
            "{said}"
        );
        assert!(!said.contains("canary"), "{said}");
    }
    assert_eq!(run(&["config", "check"], &[]).status.code(), Some(0));
}

#[test]
fn the_printed_defaults_are_a_valid_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.toml");
    std::fs::write(&path, run(&["config", "defaults"], &[]).stdout).unwrap();
    assert!(
        run(&["config", "check", "--config", path.to_str().unwrap()], &[])
            .status
            .success()
    );
}

#[test]
fn healthcheck_tells_a_broker_that_is_not_there_from_wrong_use() {
    let output = run(&["healthcheck", "--address", "127.0.0.1:1"], &[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("127.0.0.1:1"));
    assert_eq!(run(&["healthcheck", "--nonsense"], &[]).status.code(), Some(2));
}

#[test]
fn manual_and_completions_cover_every_command() {
    let directory = tempfile::tempdir().unwrap();
    assert!(
        run(&["man", "--dir", directory.path().to_str().unwrap()], &[])
            .status
            .success()
    );
    let pages = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(pages >= 9, "{pages}");
    let completions = text(&run(&["completions", "bash"], &[]).stdout);
    assert!(completions.contains("healthcheck") && completions.contains("--data-dir"));
}
