//! docs/redis.md names every key and script.

const PAGE: &str = include_str!("../../../docs/redis.md");
const KEYS: &str = include_str!("../../src/store/keys.rs");

#[test]
fn the_page_names_every_key() {
    let rows: Vec<&str> = KEYS.lines().filter_map(|line| line.strip_prefix("//! | `")).collect();
    assert!(rows.len() >= 19, "the table in keys.rs is where it was");
    for row in rows {
        let name = row.split('`').next().unwrap();
        assert!(
            PAGE.contains(&format!("| `{name}` |")),
            "docs/redis.md does not name the key {name}"
        );
    }
    for name in [
        "<prefix>:{~queues}:names",
        "<prefix>:{~queues}:due",
        "<prefix>:{~brokers}:seen",
        "<prefix>:{~brokers}:<id>",
    ] {
        assert!(
            PAGE.contains(&format!("`{name}`")),
            "docs/redis.md does not name the key {name}"
        );
    }
}

#[test]
fn the_page_names_every_script_with_its_moves() {
    let scripts = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/lua")).unwrap();
    for file in scripts {
        let path = file.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            PAGE.contains(&format!("`{name}`")),
            "docs/redis.md does not name {name}"
        );
        let text = std::fs::read_to_string(&path).unwrap();
        // The moves may go on in the next comment lines.
        let (_, rest) = text.split_once("-- MOVES  ").unwrap_or(("", "-"));
        let (first, rest) = rest.split_once('\n').unwrap_or((rest, ""));
        let more = rest.lines().map_while(|line| line.strip_prefix("--        "));
        let moves = std::iter::once(first).chain(more).collect::<Vec<_>>().join(" ");
        for one in moves.split(", ").filter(|one| *one != "-") {
            let row = PAGE
                .lines()
                .find(|line| line.starts_with(&format!("| `{name}`")))
                .unwrap();
            assert!(row.contains(one), "docs/redis.md does not say that {name} moves {one}");
        }
    }
}
