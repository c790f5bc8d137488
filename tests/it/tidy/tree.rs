//! The files of the repository.
use std::{fs, path::Path, process::Command};

/// A text file.
pub(super) struct Source {
    /// From the root of the repository.
    pub(super) path: String,
    pub(super) text: String,
}

impl Source {
    /// The extension; empty if it has none.
    pub(super) fn kind(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.rsplit_once('.').map_or("", |(_, kind)| kind)
    }
}

/// Every text file that git knows or would add.
pub(super) fn read() -> Vec<Source> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .expect("git can be run");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8_lossy(&listed.stdout);
    let names = names.split('\0').filter(|name| !name.is_empty());
    // A file that is deleted and not yet committed, or that is no text, is passed over.
    names
        .filter_map(|name| {
            let text = fs::read_to_string(root.join(name)).ok()?;
            let path = name.to_owned();
            Some(Source { path, text })
        })
        .collect()
}
