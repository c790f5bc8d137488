//! Configuration: flags over environment over file over defaults, each value with its source. No other code reads the environment.

mod documentation;
mod environment;
mod layers;
mod settings;
mod show;
mod table;
mod value;
mod values;

use std::path::{Path, PathBuf};

use self::layers::Layers;
pub use self::{
    documentation::{DEFAULT_FILE, default_file, page},
    environment::Environment,
    layers::Override,
    settings::{
        Config, Dead, Drain, Grpc, Http, Jobs, Limits, Log, Redis, Results, Runtime, SECTIONS, Stream, Tracing,
    },
    table::{Section, Setting},
    value::{ByteSize, LogFormat, LogLevel, LogOutput, RedisUrl, Value},
    values::Source,
};

/// Read if no `--config` was given and it exists.
pub const DEFAULT_PATH: &str = "/etc/bananas/broker.toml";

/// Everything that is wrong with the configuration, one line each: key, value, source, reason.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is not valid:\n  {}", .0.join("\n  "))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads all sources. `path` is a file that must exist; without it the default path is read if it exists.
    pub fn load(environment: &Environment, path: Option<&Path>, overrides: &[Override]) -> Result<Self, ConfigError> {
        let named = path
            .map(PathBuf::from)
            .or_else(|| environment.get("BANANAS_CONFIG").map(PathBuf::from));
        let must_exist = named.is_some();
        let path = named.unwrap_or_else(|| DEFAULT_PATH.into());
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::from_parts(environment, Some((&path, &text)), overrides),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                Self::from_parts(environment, None, overrides)
            }
            Err(error) => Err(ConfigError(vec![format!("{}: {error}", path.display())])),
        }
    }

    /// The same from parts in memory.
    pub fn from_parts(
        environment: &Environment,
        file: Option<(&Path, &str)>,
        overrides: &[Override],
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::with_defaults();
        if let Some((path, text)) = file {
            layers.add_file(path, text);
        }
        layers.add_environment(environment);
        layers.add_overrides(overrides);
        let Layers {
            values,
            mut errors,
            warnings,
        } = layers;
        match Self::from_values(&values, warnings) {
            Ok(config) => {
                errors.extend(config.contradictions());
                if errors.is_empty() {
                    Ok(config)
                } else {
                    Err(ConfigError(errors))
                }
            }
            Err(error) => {
                errors.push(error);
                Err(ConfigError(errors))
            }
        }
    }

    /// Where the value of `section.key` came from.
    pub fn source(&self, key: &str) -> &Source {
        self.sources.get(key).unwrap_or(&Source::Default)
    }

    /// What looks like a mistake but is none for sure.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Settings that are fine one by one but not together.
    fn contradictions(&self) -> Vec<String> {
        let tls = &self.redis;
        let rules = [
            (
                self.limits.max_payload_bytes > self.limits.max_batch_bytes,
                "limits.max_payload_bytes is above limits.max_batch_bytes: one job would not fit into a batch",
            ),
            (
                self.grpc.stream_window > self.grpc.connection_window,
                "grpc.stream_window is above grpc.connection_window: it could never be used",
            ),
            (
                self.jobs.initial_backoff > self.jobs.max_backoff,
                "jobs.initial_backoff is above jobs.max_backoff",
            ),
            (
                self.log.output == LogOutput::File && self.log.file.is_none(),
                "log.output is \"file\", but log.file is empty",
            ),
            (
                tls.tls_cert_file.is_some() != tls.tls_key_file.is_some(),
                "redis.tls_cert_file and redis.tls_key_file go together: one is missing",
            ),
            (
                (tls.tls_ca_file.is_some() || tls.tls_cert_file.is_some()) && !tls.url.is_tls(),
                "redis.tls_ca_file and redis.tls_cert_file are for a redis.url that begins with rediss://: without TLS they would be ignored",
            ),
            (
                !tls.username.is_empty() && tls.password.is_none() && !tls.url.has_password(),
                "redis.username needs a password (redis.password, REDIS_PASSWORD): without one Redis would take the broker for the default user",
            ),
            (
                self.drain.delay > self.drain.grace,
                "drain.delay is above drain.grace: the process would end before the drain begins",
            ),
            (
                self.http.enabled && self.http.listen == self.grpc.listen && self.grpc.listen.port() != 0,
                "grpc.listen and http.listen are the same address",
            ),
            (
                !is_plain_prefix(&self.redis.key_prefix),
                "redis.key_prefix must be 1 to 32 of the characters A-Z a-z 0-9 _ . -",
            ),
        ];
        rules
            .into_iter()
            .filter(|(broken, _)| *broken)
            .map(|(_, message)| message.into())
            .collect()
    }
}

/// No colon and no brace: the prefix stands before the hash tag of every key.
fn is_plain_prefix(prefix: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=32).contains(&prefix.len()) && prefix.bytes().all(plain)
}

#[cfg(test)]
mod tests;
