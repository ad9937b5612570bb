//! The layers of `src/lib.rs` hold: a module uses only modules in blocks below its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Module -> block, counted from the top of `src/lib.rs`.
fn blocks() -> HashMap<String, usize> {
    let lib = fs::read_to_string("src/lib.rs").unwrap();
    let mut blocks = HashMap::new();
    let mut block = 0;
    for line in lib.lines() {
        match line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            Some(module) => {
                blocks.insert(module.to_owned(), block);
            }
            None => block += 1,
        }
    }
    blocks
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a text names: `crate::gate::…`, and those in a group `crate::{gate::…, oci}`.
fn used(text: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut modules = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => modules.push(word(rest)),
            Some(group) => {
                let (mut depth, mut start) = (0, 0);
                for (at, letter) in group.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        ',' | '}' if depth == 0 => {
                            modules.push(word(group[start..at].trim()));
                            start = at + 1;
                            if letter == '}' {
                                break;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    modules
}

#[test]
fn a_module_uses_only_what_is_below_it() {
    let blocks = blocks();
    assert!(blocks.values().max() > Some(&1), "the blocks of src/lib.rs were not read: {blocks:?}");
    let mut files = Vec::new();
    rust_files(Path::new("src"), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix("src").unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let Some(own) = blocks.get(&module) else {
            assert!(matches!(module.as_str(), "lib" | "main"), "src/lib.rs does not list `{module}`");
            continue;
        };
        for other in used(&fs::read_to_string(&file).unwrap()) {
            let allowed = other == module || blocks.get(&other).is_none_or(|block| block > own);
            if !allowed {
                wrong.push(format!("{}: {module} may not use {other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_paths_sees_groups() {
    assert_eq!(used("use crate::oci::Tag; crate::gate::Gate"), ["oci", "gate"]);
    assert_eq!(used("use crate::{oci::{Tag, Digest}, gate};"), ["oci", "gate"]);
}
