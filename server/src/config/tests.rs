//! Which values the configuration accepts, which source wins, and what it refuses.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;

fn flag(key: &str, text: &str) -> Override {
    Override {
        key: key.into(),
        text: text.into(),
        flag: "--set".into(),
    }
}

fn errors(environment: &Environment, file: &str, overrides: &[Override]) -> Vec<String> {
    Config::from_parts(environment, Some((Path::new("broker.toml"), file)), overrides)
        .unwrap_err()
        .0
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = "[jobs]\nmax_attempts = 3\nmax_losses = 4\ninitial_backoff = \"5s\"\n";
    let environment = Environment::from_pairs([("BANANAS_JOBS_MAX_ATTEMPTS", "5"), ("BANANAS_JOBS_MAX_LOSSES", "6")]);
    let overrides = [flag("jobs.max_attempts", "7")];
    let config = Config::from_parts(&environment, Some((Path::new("broker.toml"), file)), &overrides).unwrap();
    assert_eq!((config.jobs.max_attempts, config.jobs.max_losses), (7, 6));
    assert_eq!(config.jobs.initial_backoff, Duration::from_secs(5));
    assert_eq!(config.source("jobs.max_attempts").to_string(), "flag --set");
    assert_eq!(
        config.source("jobs.max_losses").to_string(),
        "environment BANANAS_JOBS_MAX_LOSSES"
    );
    assert_eq!(config.source("jobs.initial_backoff").to_string(), "file broker.toml");
    assert_eq!(config.source("jobs.max_backoff"), &Source::Default);
}

#[test]
fn all_errors_are_reported_together_with_key_value_source_and_remedy() {
    let file = "[redis]\nresponse_timout = \"2s\"\n[jobs]\nmax_attempts = 0\n[grpc]\nlisten = [1]\n[nonsense]\nx = 1\n";
    let environment = Environment::from_pairs([("LOG_OUTPUT", "elasticsearch"), ("API_PORT", "tcp://10.0.0.1:80")]);
    let errors = errors(&environment, file, &[flag("drain.grace", "soon")]);
    for expected in [
        "redis.response_timout (file broker.toml): no such setting; did you mean redis.response_timeout?",
        "jobs.max_attempts = \"0\" (file broker.toml): out of bounds: 1 to 1000",
        "grpc.listen (file broker.toml): a single value is expected",
        "nonsense.x (file broker.toml): no such setting",
        "grpc.listen = \"tcp://10.0.0.1:80\" (environment API_PORT): not a port number",
        "drain.grace = \"soon\" (flag --set): not a duration such as 250ms, 30s, 5m or 1h30m",
    ] {
        assert!(
            errors.iter().any(|error| error == expected),
            "{expected} is missing in {errors:#?}"
        );
    }
    assert!(errors.iter().any(|error| error.contains("Filebeat")), "{errors:#?}");
    assert_eq!(errors.len(), 7, "{errors:#?}");
}

#[test]
fn the_well_known_variable_names_work() {
    let environment = Environment::from_pairs([
        ("REDIS_URL", "redis://username:password@host:6379/0"),
        ("RESULT_BACKEND_ENABLED", "false"),
        ("RESULT_BACKEND_TTL_SUCCESS", "2h"),
        ("RESULT_BACKEND_TTL_FAILURE", "48h"),
        ("LOG_LEVEL", "debug"),
        ("LOG_FORMAT", "json"),
        ("LOG_OUTPUT", "file"),
        ("METRICS_ENABLED", "true"),
        ("METRICS_PORT", "9191"),
        ("API_PORT", "18080"),
        ("SCHEDULER_INTERVAL", "1s"),
        ("ENABLE_SCHEDULER", "true"),
        ("API_CORS_ORIGINS", "*"),
        ("WORKER_MODE", "default"),
    ]);
    let config = Config::from_parts(&environment, None, &[]).unwrap();
    assert_eq!(config.redis.url.expose(), "redis://username:password@host:6379/0");
    assert!(!config.results.enabled);
    assert_eq!(config.results.ttl_success, Duration::from_hours(2));
    assert_eq!(config.results.ttl_failure, Duration::from_hours(48));
    assert_eq!(
        (config.log.level.0.as_str(), config.log.format),
        ("debug", LogFormat::Json)
    );
    assert_eq!(config.log.output, LogOutput::File);
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:9191");
    assert_eq!(config.grpc.listen.to_string(), "127.0.0.1:18080");
}

#[test]
fn a_port_variable_keeps_the_host_of_the_file_and_a_full_address_overrides_it() {
    let file = "[grpc]\nlisten = \"[::]:7000\"\n";
    let environment = Environment::from_pairs([("API_PORT", "7001")]);
    let config = Config::from_parts(&environment, Some((Path::new("f"), file)), &[]).unwrap();
    assert_eq!(config.grpc.listen.to_string(), "[::]:7001");
    let environment = Environment::from_pairs([("API_PORT", "7001"), ("BANANAS_GRPC_LISTEN", "0.0.0.0:7002")]);
    let config = Config::from_parts(&environment, Some((Path::new("f"), file)), &[]).unwrap();
    assert_eq!(config.grpc.listen.to_string(), "0.0.0.0:7002");
}

#[test]
fn a_password_with_url_characters_is_read_from_a_variable_or_file_and_never_shown() {
    let password = "p@ss:w/rd#%?$(x) ";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    std::fs::write(&path, format!("{password}\n")).unwrap();
    let path = path.to_str().unwrap();
    for environment in [
        Environment::from_pairs([("REDIS_PASSWORD", password)]),
        Environment::from_pairs([("REDIS_PASSWORD_FILE", path)]),
        Environment::from_pairs([("BANANAS_REDIS_PASSWORD_FILE", path)]),
    ] {
        let config = Config::from_parts(&environment, None, &[]).unwrap();
        assert_eq!(config.redis.password.as_ref().unwrap().expose_secret(), password);
        for shown in [config.show(), config.show_json(), format!("{config:?}")] {
            assert!(!shown.contains("p@ss"), "{shown}");
        }
        assert!(config.show().contains("[redacted]"));
    }
    let file = format!("[redis]\npassword_file = {path:?}\n");
    let config = Config::from_parts(&Environment::default(), Some((Path::new("f"), &file)), &[]).unwrap();
    assert_eq!(config.redis.password.as_ref().unwrap().expose_secret(), password);
}

#[test]
fn a_secret_that_cannot_be_read_names_its_key_but_not_its_value() {
    let environment = Environment::from_pairs([
        ("REDIS_URL", "hunter2@nowhere"),
        ("REDIS_PASSWORD_FILE", "/nonexistent"),
    ]);
    let errors = errors(&environment, "", &[]);
    assert!(errors.iter().all(|error| !error.contains("hunter2")), "{errors:#?}");
    assert!(
        errors
            .iter()
            .any(|error| error.starts_with("redis.password (secret file /nonexistent)")),
        "{errors:#?}"
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let overrides = [
        flag("limits.max_batch_bytes", "512KiB"),
        flag("jobs.initial_backoff", "1h"),
        flag("log.output", "file"),
        flag("log.file", ""),
        flag("redis.tls_ca_file", "/ca.pem"),
        flag("redis.username", "bananas"),
        flag("drain.delay", "30s"),
    ];
    assert_eq!(errors(&Environment::default(), "", &overrides).len(), 6);
}

#[test]
fn a_misspelt_variable_gives_a_warning_and_one_of_kubernetes_does_not() {
    let environment = Environment::from_pairs([
        ("BANANAS_GRPC_LISTN", "x"),
        ("BANANAS_SERVICE_HOST", "10.0.0.1"),
        ("BANANAS_BROKER", "http://x"),
    ]);
    let config = Config::from_parts(&environment, None, &[]).unwrap();
    assert_eq!(
        config.warnings(),
        ["BANANAS_GRPC_LISTN is not a setting and is ignored; did you mean BANANAS_GRPC_LISTEN?"]
    );
}

#[test]
fn the_file_of_defaults_has_the_defaults_of_the_code() {
    let active: String = DEFAULT_FILE
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with(' '))
                .unwrap_or(line)
        })
        .fold(String::new(), |file, line| file + line + "\n");
    let from_file = Config::from_parts(&Environment::default(), Some((Path::new("f"), &active)), &[]).unwrap();
    let defaults = Config::from_parts(&Environment::default(), None, &[]).unwrap();
    let texts = |config: &Config| config.entries().into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    assert_eq!(texts(&from_file), texts(&defaults));
    assert!(
        from_file
            .entries()
            .iter()
            .all(|(setting, _)| *from_file.source(&setting.key()) != Source::Default)
    );
}

#[test]
fn a_given_file_must_exist_and_be_valid_toml() {
    let error = Config::load(&Environment::default(), Some(Path::new("/nonexistent.toml")), &[]).unwrap_err();
    assert!(error.to_string().contains("/nonexistent.toml"));
    assert!(errors(&Environment::default(), "[grpc\n", &[])[0].contains("broker.toml"));
}
