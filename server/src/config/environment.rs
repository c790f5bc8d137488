//! The environment variables of the process. The only code that reads them.

use std::{collections::BTreeMap, path::PathBuf};

/// Environment variables, of the process or of a test.
#[derive(Debug, Default, Clone)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process, without those that are not Unicode.
    #[allow(clippy::disallowed_methods, reason = "the one reader of the environment")]
    pub fn of_process() -> Self {
        let variables = std::env::vars_os();
        Self(
            variables
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        )
    }

    /// Variables given as pairs.
    pub fn from_pairs<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }

    /// The value of a variable. An empty one counts as not set, because Compose and Kubernetes write "no value" that
    /// way.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The data directory of this user, by the XDG rules: `$XDG_DATA_HOME`, else `~/.local/share`.
    pub fn data_home(&self) -> Option<PathBuf> {
        let explicit = self
            .get("XDG_DATA_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        explicit.or_else(|| Some(PathBuf::from(self.get("HOME")?).join(".local/share")))
    }

    /// The file `name` in the first directory of `$PATH` that has it.
    pub fn find_program(&self, name: &str) -> Option<PathBuf> {
        std::env::split_paths(self.get("PATH")?)
            .map(|directory| directory.join(name))
            .find(|path| path.is_file())
    }
}
