//! Checks on the tree itself: what a reviewer would otherwise have to look for each time.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file without its tests; longer files are split by reason.
const LINES_MAX: usize = 500;

/// Lowest versions that lack known holes: an advisory database cannot be reached where the tests run.
const FLOORS: [(&str, [u64; 3]); 3] = [("rustls", [0, 23, 45]), ("rustls-webpki", [0, 103, 15]), ("h2", [0, 4, 4])];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_says_its_reason_and_stays_readable() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        if !text.starts_with("//! ") {
            wrong.push(format!("{}: its first line does not say what it is for", file.display()));
        }
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().lines().count();
        if code > LINES_MAX {
            wrong.push(format!("{}: {code} lines; split it by reason", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let from = manifest.find("[dependencies]").unwrap();
    let until = manifest.find("[[bench]]").unwrap();
    let silent: Vec<&str> = manifest[from..until]
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with('#') && !line.contains(" # "))
        .collect();
    assert!(silent.is_empty(), "say what it is for: {silent:?}");
}

#[test]
fn no_dependency_is_older_than_its_floor() {
    let lock = fs::read_to_string("Cargo.lock").unwrap();
    for (name, floor) in FLOORS {
        let versions: Vec<[u64; 3]> = lock
            .split("[[package]]")
            .filter(|package| package.contains(&format!("\nname = \"{name}\"\n")))
            .map(|package| {
                let version = package.split("version = \"").nth(1).unwrap().split('"').next().unwrap();
                let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
                std::array::from_fn(|_| parts.next().unwrap_or(0))
            })
            .collect();
        assert!(!versions.is_empty(), "{name} is not in Cargo.lock: take it off the table");
        assert!(versions.iter().all(|version| *version >= floor), "{name} {versions:?} is below {floor:?}");
    }
}

#[test]
fn what_must_be_covered_is_cited_by_a_test() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    sources(Path::new("tests"), &mut files);
    let all: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let cited: Vec<u32> = all
        .lines()
        .filter_map(|line| line.trim().strip_prefix("// Invariant"))
        .flat_map(|rest| {
            let numbers = rest.trim_start_matches('s').split(|c: char| !c.is_ascii_digit());
            numbers.filter_map(|number| number.parse().ok()).collect::<Vec<u32>>()
        })
        .collect();
    let missing: Vec<u32> = (1..=20).filter(|number| *number != 9 && !cited.contains(number)).collect();
    assert!(missing.is_empty(), "no test cites invariant {missing:?}");
}

#[test]
fn the_limits_in_the_docs_are_those_of_the_source() {
    // Invariant 17
    let text = fs::read_to_string("docs/limits.md").unwrap();
    let mut rows = 0;
    for row in text.lines().filter(|row| row.contains("| `src/")) {
        let place = row.rsplit("| ").find(|cell| cell.starts_with("`src/")).unwrap();
        let mut quoted = place.split('`').skip(1).step_by(2);
        let (file, constant) = (quoted.next().unwrap(), quoted.next().unwrap());
        let source = fs::read_to_string(file).unwrap();
        assert!(source.contains(&format!("const {constant};")), "{file} has no `{constant}`");
        rows += 1;
    }
    assert!(rows > 20, "{rows}");
}
