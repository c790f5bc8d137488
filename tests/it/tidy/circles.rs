//! No circle of imports: of two modules beside each other, one knows the other, not both.
//!
//! What a module's files import counts for the module. A parent and what is inside it are one room.
use std::collections::{BTreeMap, BTreeSet};

use super::{
    Offence,
    rust::{Use, code, uses, without_tests},
    tree::Source,
};

type Path = Vec<String>;

/// One offence for each arrow of each circle.
pub(super) fn circles(sources: &[Source]) -> Vec<Offence> {
    let mut crates: BTreeMap<&str, BTreeMap<Path, Module>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.kind() == "rs") {
        let Some((root, file)) = source.path.split_once("src/") else {
            continue;
        };
        // Other targets of the package, and test modules in files of their own.
        if file.starts_with("bin/") || file.ends_with("tests.rs") {
            continue;
        }
        let code = code(&source.text);
        let module = Module {
            path: source.path.clone(),
            uses: uses(without_tests(&code)),
            inline: inline(without_tests(&code)),
        };
        crates.entry(root).or_default().insert(module_path(file), module);
    }
    crates.values().flat_map(of_crate).collect()
}

struct Module {
    path: String,
    uses: Vec<Use>,
    /// Paths that begin with `crate` or `super` in expressions and types.
    inline: Vec<Path>,
}

/// The place of a file in the tree of modules: `a/b.rs` and `a/b/mod.rs` are `[a, b]`.
fn module_path(file: &str) -> Path {
    let file = file.strip_suffix(".rs").unwrap_or(file);
    let parts = file.split('/').map(str::to_owned);
    parts
        .filter(|part| !matches!(&**part, "mod" | "lib" | "main"))
        .collect()
}

fn inline(code: &str) -> Vec<Path> {
    let is_path = |char: char| char.is_alphanumeric() || matches!(char, '_' | ':');
    let words = code.split(|char| !is_path(char));
    words
        .filter(|word| word.starts_with("crate::") || word.starts_with("super::"))
        .map(|word| {
            word.split("::")
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .collect()
}

fn of_crate(modules: &BTreeMap<Path, Module>) -> Vec<Offence> {
    // Between the modules of one parent: who imports whom, and a file that does.
    let mut arrows: BTreeMap<Path, BTreeMap<(String, String), String>> = BTreeMap::new();
    for (from, module) in modules {
        let named = module.uses.iter().flat_map(|one| &one.paths).chain(&module.inline);
        for path in named {
            let Some(to) = absolute(from, path).and_then(|path| owner(modules, path)) else {
                continue;
            };
            let common = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
            if let (Some(one), Some(other)) = (from.get(common), to.get(common)) {
                let level = arrows.entry(from[..common].to_vec()).or_default();
                level
                    .entry((one.clone(), other.clone()))
                    .or_insert_with(|| module.path.clone());
            }
        }
    }
    arrows.values().flat_map(in_circles).collect()
}

/// A path from the root of the crate. `None` for a path into another crate.
fn absolute(from: &Path, path: &Path) -> Option<Path> {
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([from, &path[1..]].concat()),
        "super" => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            let base = from.len().checked_sub(ups)?;
            Some([&from[..base], &path[ups..]].concat())
        }
        _ => None,
    }
}

/// The module in which a name is defined, through re-exports.
fn owner(modules: &BTreeMap<Path, Module>, path: Path) -> Option<Path> {
    let mut path = path;
    for _ in 0..8 {
        let depth = (0..=path.len())
            .rev()
            .find(|&depth| depth == 0 || modules.contains_key(&path[..depth]))?;
        let module = path[..depth].to_vec();
        let Some(name) = path.get(depth) else {
            return Some(module);
        };
        let exports = modules
            .get(&module)?
            .uses
            .iter()
            .filter(|one| one.is_public())
            .flat_map(|one| &one.paths);
        let mut exports = exports.filter(|export| export.last() == Some(name));
        let next = exports.find_map(|export| {
            let first = export.first()?;
            let inner = [&module[..], &export[..]].concat();
            if modules.contains_key(&[&module[..], std::slice::from_ref(first)].concat()) {
                Some(inner)
            } else {
                absolute(&module, export)
            }
        });
        match next {
            Some(next) => path = [&next[..], &path[depth + 1..]].concat(),
            None => return Some(module),
        }
    }
    None
}

/// The arrows from which a way leads back.
fn in_circles(arrows: &BTreeMap<(String, String), String>) -> Vec<Offence> {
    let reaches = |from: &String, to: &String| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(at) = todo.pop() {
            if at == to {
                return true;
            }
            if seen.insert(at) {
                todo.extend(arrows.keys().filter(|(one, _)| one == at).map(|(_, other)| other));
            }
        }
        false
    };
    let back = arrows.iter().filter(|((one, other), _)| reaches(other, one));
    back.map(|((one, other), path)| Offence {
        path: path.clone(),
        line: 0,
        what: format!("{one} imports {other}, and {other} leads back to {one}"),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source {
                path: (*path).to_owned(),
                text: (*text).to_owned(),
            })
            .collect();
        circles(&sources).into_iter().map(|offence| offence.what).collect()
    }

    #[test]
    fn modules_that_import_each_other_are_found() {
        let there = ("x/src/a.rs", "use crate::b::c::D;");
        assert_eq!(found(&[there, ("x/src/b/c.rs", "use std::a;")]), Vec::<String>::new());
        assert_eq!(found(&[there, ("x/src/b/c.rs", "fn f() { crate::a::f() }")]).len(), 2);
        assert_eq!(found(&[there, ("x/src/b/c.rs", "use super::super::a;")]).len(), 2);
        assert_eq!(found(&[there, ("y/src/b/c.rs", "use crate::a;")]), Vec::<String>::new());
    }

    #[test]
    fn a_re_export_leads_to_where_the_name_is_from() {
        let root = ("x/src/lib.rs", "pub use a::A;");
        let one = ("x/src/a.rs", "use crate::b::B;");
        assert_eq!(found(&[root, one, ("x/src/b.rs", "use crate::A;")]).len(), 2);
        assert_eq!(found(&[root, one, ("x/src/b.rs", "")]), Vec::<String>::new());
    }

    #[test]
    fn unit_tests_and_parents_make_no_circle() {
        let one = ("x/src/a.rs", "use crate::b::B;");
        let other = ("x/src/b.rs", "#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n");
        assert_eq!(found(&[one, other]), Vec::<String>::new());
        let parent = ("x/src/a/mod.rs", "pub use b::B;");
        assert_eq!(
            found(&[parent, ("x/src/a/b.rs", "use super::C;")]),
            Vec::<String>::new()
        );
    }
}
