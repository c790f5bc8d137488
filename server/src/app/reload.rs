//! SIGHUP: reads the configuration again and applies the settings that can change at run time.

use std::collections::BTreeMap;

use crate::{
    config::{Config, ConfigError},
    telemetry::Telemetry,
};

/// Settings that take effect at once; all others take effect at the next start.
const AT_ONCE: [&str; 1] = ["log.level"];

/// The values in force, and how to read new ones.
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

    /// Reads the configuration again. If it is not valid, nothing changes.
    pub(super) fn reload(&mut self) {
        let config = match (self.read)() {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, "SIGHUP: not reloaded, the configuration stays as it was");
                return;
            }
        };
        if let Err(error) = self.telemetry.set_level(&config.log.level.0) {
            tracing::error!(%error, "SIGHUP: not reloaded, the configuration stays as it was");
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
