//! SIGHUP: the configuration is read again, and what can change while the broker runs takes effect.

use std::collections::BTreeMap;

use crate::{
    config::{Config, ConfigError},
    telemetry::Telemetry,
};

/// Settings that take effect at once; all others do at the next start.
const AT_ONCE: [&str; 1] = ["log.level"];

/// What is in force, and where to read it again.
pub(super) struct Reloading<'a> {
    in_force: BTreeMap<String, String>,
    read: &'a dyn Fn() -> Result<Config, ConfigError>,
    telemetry: &'a Telemetry,
}

impl<'a> Reloading<'a> {
    pub(super) fn new(
        config: &Config,
        read: &'a dyn Fn() -> Result<Config, ConfigError>,
        telemetry: &'a Telemetry,
    ) -> Self {
        Self {
            in_force: values(config),
            read,
            telemetry,
        }
    }

    /// Reads it again. A configuration that is not valid changes nothing.
    pub(super) fn reload(&mut self) {
        let config = match (self.read)() {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, "SIGHUP: nothing was reloaded");
                return;
            }
        };
        if let Err(error) = self.telemetry.set_level(&config.log.level.0) {
            tracing::error!(%error, "SIGHUP: nothing was reloaded");
            return;
        }
        let new = values(&config);
        let changed = |key: &&String| self.in_force.get(*key) != new.get(*key);
        let (now, later): (Vec<&String>, Vec<&String>) = new
            .keys()
            .filter(changed)
            .partition(|key| AT_ONCE.contains(&key.as_str()));
        tracing::info!(changed = ?now, "SIGHUP: reloaded");
        if !later.is_empty() {
            tracing::warn!(changed = ?later, "SIGHUP: these settings take effect at the next start");
        }
        for key in AT_ONCE {
            if let Some(value) = new.get(key) {
                self.in_force.insert(key.to_owned(), value.clone());
            }
        }
    }
}

fn values(config: &Config) -> BTreeMap<String, String> {
    let entries = config.entries().into_iter();
    entries.map(|(setting, value)| (setting.key(), value)).collect()
}
