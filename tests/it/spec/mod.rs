//! A walk through the OCI Distribution Specification: one test for each thing that it demands of a registry.
//!
//! `requirements.txt` is the specification, sentence by sentence; each test cites those that it holds us to, as
//! `// Spec: chunks.12`. [`every_demand_has_a_test`] counts both, so that neither can fall behind:
//!
//! ```text
//! cargo test --test it spec:: -- --nocapture      # ends with the table
//! ```
//!
//! Everything here goes over a socket to a whole sealock, and knows no more of it than the specification says.

mod client;
mod content;

mod end10_delete_blob;
mod end11_mount;
mod end12_referrers;
mod end13_state;
mod end14_cancel;
mod end1_base;
mod end2_blobs;
mod end3_manifests;
mod end4_begin;
mod end5_chunks;
mod end6_finish;
mod end7_push_manifests;
mod end8_tags;
mod end9_delete;
mod errors;
mod proxying;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use client::Registry;
use content::{Artifact, Image, Index};

/// A line of `requirements.txt`.
struct Demand {
    section: String,
    id: String,
    binds: String,
    how: String,
    words: String,
}

fn demands() -> Vec<Demand> {
    let mut section = String::new();
    let mut demands = Vec::new();
    for line in include_str!("requirements.txt").lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        } else if !line.starts_with('#') && !line.is_empty() {
            let mut parts = line.splitn(4, " | ").map(str::to_owned);
            let mut next = || parts.next().unwrap_or_else(|| panic!("four parts, please: {line}"));
            let (id, binds, how, words) = (next(), next(), next(), next());
            demands.push(Demand { section: section.clone(), id, binds, how, words });
        }
    }
    demands
}

/// What the tests of this folder cite: demand -> tests. A test that cites nothing is an error.
fn citations() -> BTreeMap<String, Vec<String>> {
    let mut cited: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir("tests/it/spec").unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !file.ends_with(".rs") || file == "mod.rs" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| **line == "#[tokio::test]") {
            let name = lines[at + 1].trim_start_matches("async fn ").trim_end_matches("() {");
            let ids: Vec<&str> = lines[..at]
                .iter()
                .rev()
                .map_while(|line| line.strip_prefix("// "))
                .filter_map(|comment| comment.strip_prefix("Spec: "))
                .flat_map(|ids| ids.split(", "))
                .collect();
            assert!(!ids.is_empty(), "{file}: {name} cites nothing, and {line} needs `// Spec: …` above it");
            for id in ids {
                cited.entry(id.to_owned()).or_default().push(format!("{file}: {name}"));
            }
        }
    }
    cited
}

#[test]
fn every_demand_has_a_test() {
    let (demands, cited) = (demands(), citations());
    let known: BTreeSet<&str> = demands.iter().map(|demand| demand.id.as_str()).collect();
    assert_eq!(known.len(), demands.len(), "an id stands twice in requirements.txt");
    let stray: Vec<_> = cited.iter().filter(|(id, _)| !known.contains(id.as_str())).collect();
    assert!(stray.is_empty(), "cited, but not in requirements.txt: {stray:?}");
    let binding = || demands.iter().filter(|demand| demand.binds == "registry");
    let untested: Vec<String> = binding()
        .filter(|demand| !cited.contains_key(&demand.id))
        .map(|demand| format!("{} {}: {}", demand.id, demand.how, demand.words))
        .collect();
    assert!(untested.is_empty(), "no test cites\n{}", untested.join("\n"));
    print_table(&demands, &cited);
}

fn print_table(demands: &[Demand], cited: &BTreeMap<String, Vec<String>>) {
    const HOW: [&str; 5] = ["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "says"];
    println!(
        "{:40}{:>6}{:>10}{:>8}{:>12}{:>6}{:>8}",
        "demands on a registry", HOW[0], HOW[1], HOW[2], HOW[3], HOW[4], "tests"
    );
    let mut sections: Vec<&str> = demands.iter().map(|demand| demand.section.as_str()).collect();
    sections.dedup();
    for section in sections.into_iter().chain([""]) {
        let here = || demands.iter().filter(|demand| demand.binds == "registry" && section_is(demand, section));
        let [must, must_not, should, should_not, says] =
            HOW.map(|how| here().filter(|demand| demand.how == how).count());
        let tests: BTreeSet<&String> = here().filter_map(|demand| cited.get(&demand.id)).flatten().collect();
        let title = if section.is_empty() { "all" } else { section };
        if here().count() > 0 {
            println!("{title:40}{must:>6}{must_not:>10}{should:>8}{should_not:>12}{says:>6}{:>8}", tests.len());
        }
    }
    let others = demands.iter().filter(|demand| demand.binds != "registry").count();
    println!("{others} more bind clients, or nobody here");
}

fn section_is(demand: &Demand, section: &str) -> bool {
    section.is_empty() || demand.section == section
}
