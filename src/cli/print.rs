//! Output: tables and times for people, JSON for programs.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::Failure;
use crate::size::Span;

/// Prints `value` as indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|why| Failure::new(&why, None))?;
    line(&text)
}

/// Prints one line. A reader that went away (`sealock ls | head`) is no error.
pub fn line(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(&why, None)),
        _ => Ok(()),
    }
}

/// Prints rows in columns as wide as their widest cell; the heading only on a terminal.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let heading = io::stdout().is_terminal().then_some(&heading);
    let all: Vec<&Vec<String>> = heading.into_iter().chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    for row in &all {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let padding = if column + 1 == row.len() { 0 } else { width(column) - cell.chars().count() };
            format!("{cell}{}", " ".repeat(padding))
        });
        line(&cells.collect::<Vec<_>>().join("  "))?;
    }
    Ok(())
}

/// The whole path, for who is in another folder than the server.
pub fn folder(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// `3d 2h ago`, or `in 20m`.
pub fn relative(now: Timestamp, then: Timestamp) -> String {
    let between = |earlier: Timestamp, later: Timestamp| {
        Span(Duration::try_from(later.duration_since(earlier)).unwrap_or_default()).to_string()
    };
    if then > now { format!("in {}", between(now, then)) } else { format!("{} ago", between(then, now)) }
}

/// To the minute, in UTC: `2026-11-21 14:30 UTC`.
pub fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}
