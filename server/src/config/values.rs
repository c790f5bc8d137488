//! The value of each setting as text, and the source it came from.

use std::{collections::BTreeMap, fmt, path::PathBuf};

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// No source sets it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A file that holds one secret; another source names the file.
    SecretFile(PathBuf),
    /// The command line.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::SecretFile(path) => write!(f, "secret file {}", path.display()),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value as text, with its source.
#[derive(Debug, Clone)]
pub(super) struct Layered {
    pub(super) text: String,
    pub(super) source: Source,
}

/// By `section.key`.
pub(super) type Values = BTreeMap<String, Layered>;
