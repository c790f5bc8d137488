//! Configuration: flags override the environment, which overrides the file, which overrides the defaults. Each value
//! has its source. No other code reads the environment.

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

/// The file that is read without `--config`, if it exists.
pub const DEFAULT_PATH: &str = "/etc/bananas/broker.toml";

/// Every error in the configuration, one line each: key, value, source, reason.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is not valid:\n  {}", .0.join("\n  "))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads all sources. A given `path` must exist; without one, the default path is read if it exists.
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

    /// As [`Config::load`], from parts in memory.
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

    /// The source of the value of `section.key`.
    pub fn source(&self, key: &str) -> &Source {
        self.sources.get(key).unwrap_or(&Source::Default)
    }

    /// Likely mistakes that are not errors.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Settings that are valid one by one but contradict each other.
    fn contradictions(&self) -> Vec<String> {
        let redis = &self.redis;
        let rules = [
            (
                self.limits.max_payload_bytes > self.limits.max_batch_bytes,
                "limits.max_payload_bytes is above limits.max_batch_bytes: a single job could exceed a batch",
            ),
            (
                self.grpc.stream_window > self.grpc.connection_window,
                "grpc.stream_window is above grpc.connection_window: the larger window could never be used",
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
                redis.tls_cert_file.is_some() != redis.tls_key_file.is_some(),
                "redis.tls_cert_file and redis.tls_key_file must both be set: one is missing",
            ),
            (
                (redis.tls_ca_file.is_some() || redis.tls_cert_file.is_some()) && !redis.url.is_tls(),
                "redis.tls_ca_file and redis.tls_cert_file need a redis.url that begins with rediss://: \
                 without TLS they would be ignored",
            ),
            (
                !redis.username.is_empty() && redis.password.is_none() && !redis.url.has_password(),
                "redis.username needs a password (redis.password, REDIS_PASSWORD): \
                 without one the broker would connect as the default user",
            ),
            (
                self.drain.delay > self.drain.grace,
                "drain.delay is above drain.grace: the process would exit before the drain begins",
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

/// No colon and no brace: the prefix comes before the hash tag of every key.
fn is_plain_prefix(prefix: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=32).contains(&prefix.len()) && prefix.bytes().all(plain)
}

#[cfg(test)]
mod tests;
