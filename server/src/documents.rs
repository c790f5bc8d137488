//! For tests that keep generated pages equal to the code that renders them.

use std::path::Path;

/// Compares a file of the repository with the rendered text; with `BANANAS_WRITE_DOCS=1` writes it instead.
#[track_caller]
#[allow(
    clippy::disallowed_methods,
    reason = "a switch of the tests, not a setting of the broker"
)]
pub(crate) fn compare_or_write(path: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("BANANAS_WRITE_DOCS").is_some() {
        std::fs::write(&file, expected).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == expected,
        "{path} differs from what the code renders: run the tests once with BANANAS_WRITE_DOCS=1"
    );
}
