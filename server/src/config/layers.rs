//! Merges defaults, file, environment and flags into one value per setting. A later layer overrides an earlier one; all
//! errors are reported together.

use std::path::Path;

use super::{
    environment::Environment,
    settings::SECTIONS,
    table::Setting,
    values::{Layered, Source, Values},
};

/// A value from the command line.
#[derive(Debug, Clone)]
pub struct Override {
    /// `section.key`.
    pub key: String,
    /// The value as text.
    pub text: String,
    /// The flag as the user wrote it, for error messages and `config show`.
    pub flag: String,
}

/// Collects values and their errors. Layers are added from the weakest to the strongest.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) values: Values,
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn all_settings() -> impl Iterator<Item = &'static Setting> {
    SECTIONS.iter().flat_map(|section| section.settings)
}

impl Layers {
    pub(super) fn with_defaults() -> Self {
        let mut layers = Self::default();
        for setting in all_settings() {
            let value = Layered {
                text: setting.default.into(),
                source: Source::Default,
            };
            layers.values.insert(setting.key(), value);
        }
        layers
    }

    pub(super) fn add_file(&mut self, path: &Path, text: &str) {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                self.errors
                    .push(format!("{}: {}", path.display(), error.to_string().trim_end()));
                return;
            }
        };
        for (section, content) in table {
            let toml::Value::Table(content) = content else {
                self.unknown(&section, &format!("file {}", path.display()));
                continue;
            };
            for (name, value) in content {
                let key = format!("{section}.{name}");
                match plain_text(&value) {
                    Some(text) => self.set(&key, text, Source::File(path.into())),
                    None => self
                        .errors
                        .push(format!("{key} (file {}): a single value is expected", path.display())),
                }
            }
        }
    }

    pub(super) fn add_environment(&mut self, environment: &Environment) {
        for setting in all_settings() {
            let key = setting.key();
            if let Some(name) = setting.port_alias
                && let Some(port) = environment.get(name)
            {
                self.set_port(&key, port, name);
            }
            let regular = setting.variable();
            for name in setting.aliases.iter().map(ToString::to_string).chain([regular]) {
                if setting.secret
                    && let Some(path) = environment.get(&format!("{name}_FILE"))
                {
                    self.set_from_file(&key, Path::new(path));
                }
                if let Some(text) = environment.get(&name) {
                    self.set(&key, text.into(), Source::Environment(name));
                }
            }
        }
        self.warn_of_misspelt_variables(environment);
    }

    pub(super) fn add_overrides(&mut self, overrides: &[Override]) {
        for item in overrides {
            self.set(&item.key, item.text.clone(), Source::Flag(item.flag.clone()));
        }
    }

    fn set(&mut self, key: &str, text: String, source: Source) {
        if let Some(setting) = all_settings().find(|setting| setting.key() == key) {
            match (setting.check)(&text) {
                Ok(()) => {
                    self.values.insert(key.into(), Layered { text, source });
                }
                Err(error) => {
                    let shown = if setting.secret {
                        String::new()
                    } else {
                        format!(" = {text:?}")
                    };
                    self.errors.push(format!("{key}{shown} ({source}): {error}"));
                }
            }
            return;
        }
        let secret = key.strip_suffix("_file");
        match secret.filter(|key| all_settings().any(|setting| setting.secret && setting.key() == *key)) {
            Some(key) => self.set_from_file(key, Path::new(&text)),
            None => self.unknown(key, &source.to_string()),
        }
    }

    fn set_from_file(&mut self, key: &str, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.set(
                key,
                text.trim_end_matches(['\r', '\n']).into(),
                Source::SecretFile(path.into()),
            ),
            Err(error) => self
                .errors
                .push(format!("{key} (secret file {}): {error}", path.display())),
        }
    }

    fn set_port(&mut self, key: &str, port: &str, name: &str) {
        let address = self.values.get(key).map(|value| value.text.clone()).unwrap_or_default();
        let host = address.rsplit_once(':').map_or("127.0.0.1", |(host, _)| host);
        if port.parse::<u16>().is_ok() {
            self.set(key, format!("{host}:{port}"), Source::Environment(name.into()));
        } else {
            self.errors
                .push(format!("{key} = {port:?} (environment {name}): not a port number"));
        }
    }

    fn unknown(&mut self, key: &str, source: &str) {
        let hint = nearest(key, all_settings().map(Setting::key)).map(|key| format!("; did you mean {key}?"));
        self.errors
            .push(format!("{key} ({source}): no such setting{}", hint.unwrap_or_default()));
    }

    /// Warns of unknown variables that resemble a setting. Not an error: Kubernetes makes `BANANAS_…` variables for
    /// each service.
    fn warn_of_misspelt_variables(&mut self, environment: &Environment) {
        let known: Vec<String> = all_settings().map(Setting::variable).collect();
        for name in environment.names().filter(|name| name.starts_with("BANANAS_")) {
            let plain = name.strip_suffix("_FILE").unwrap_or(name);
            if known.iter().any(|known| known == plain) {
                continue;
            }
            if let Some(near) = nearest(plain, known.iter().cloned()) {
                self.warnings
                    .push(format!("{name} is not a setting and is ignored; did you mean {near}?"));
            }
        }
    }
}

fn plain_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(boolean) => Some(boolean.to_string()),
        _ => None,
    }
}

/// The known name that is closest to a misspelt one: at most a third of the characters differ.
fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let scored = known.map(|known| (strsim::damerau_levenshtein(name, &known), known));
    scored
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance * 3 <= name.len())
        .map(|(_, known)| known)
}
