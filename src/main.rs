//! The program: parses the command line, runs the command, and turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser;
use sealock::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
