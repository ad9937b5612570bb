//! What every bench stands on: processes of its own, a far registry, load, and one line at the end.
//!
//! Everything runs on loopback, on free ports, in a scratch folder of the bench's own; what was started is stopped by its
//! process id. A bench fails on wrong behaviour (a status, a length, a digest), never on a figure.

#![allow(dead_code, reason = "each bench uses its own part of this")]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench is a client and a far side: it connects to sealock and its peers, and the gate is theirs"
)]

pub mod body;
pub mod far;
pub mod loris;
pub mod nginx;
pub mod process;
pub mod push;
pub mod registry;
pub mod report;
pub mod sealock;
pub mod tls;
pub mod volley;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a bench's step gives, or why it cannot go on.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// One run of a bench: how large, and where its files are.
pub struct Bench {
    pub small: bool,
    scratch: tempfile::TempDir,
}

impl Bench {
    /// `full`, or `small` when only rot is looked for.
    pub fn pick<T>(&self, small: T, full: T) -> T {
        if self.small { small } else { full }
    }

    /// A new folder of this name, emptied if there was one.
    pub fn folder(&self, name: &str) -> Outcome<PathBuf> {
        let folder = self.scratch.path().join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    pub fn root(&self) -> &Path {
        self.scratch.path()
    }
}

/// Runs a bench and prints its one line: the name, the figures, the load average.
pub fn main(name: &str, run: impl FnOnce(&Bench) -> Outcome<String>) -> ExitCode {
    let small = std::env::args().any(|argument| argument == "--small")
        || std::env::var_os("BENCH_SMALL").is_some_and(|v| v == "1");
    let outcome = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir()
        .map_err(Into::into)
        .and_then(|scratch| run(&Bench { small, scratch }));
    match outcome {
        Ok(figures) => {
            let size = if small { " (small)" } else { "" };
            println!("{name}{size}: {figures} | load {}", report::load_average());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{name}: {why}");
            ExitCode::FAILURE
        }
    }
}
