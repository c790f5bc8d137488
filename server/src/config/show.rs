//! `config show`: the values in force, each with its source, secrets redacted.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use super::Config;

impl Config {
    /// A table for people.
    pub fn show(&self) -> String {
        let rows: Vec<(String, String, String)> = self
            .entries()
            .into_iter()
            .map(|(setting, text)| (setting.key(), text, self.source(&setting.key()).to_string()))
            .collect();
        let keys = rows.iter().map(|row| row.0.len()).max().unwrap_or_default();
        let values = rows.iter().map(|row| row.1.len()).max().unwrap_or_default().min(48);
        let mut page = String::new();
        for (key, value, source) in rows {
            let _ = writeln!(page, "{key:keys$}  {value:values$}  {source}");
        }
        page
    }

    /// One object per setting, for programs.
    pub fn show_json(&self) -> String {
        let mut settings = Map::new();
        for (setting, text) in self.entries() {
            let source = self.source(&setting.key()).to_string();
            settings.insert(setting.key(), json!({ "value": text, "source": source }));
        }
        format!("{:#}", Json::Object(settings))
    }
}
