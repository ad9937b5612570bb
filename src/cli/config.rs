//! `sealock config check`: reads the settings as `serve` would, and starts nothing.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Common, Failure, print};
use crate::access;
use crate::config::DEFAULT_FILE;

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Read the settings as `serve` would, and say what is wrong with them: file, line, key, what to write
    ///
    /// Certificates, keys and the files of logins that they lead to are read, too: run it as the user that runs the server.
    Check(Check),
}

#[derive(Args)]
pub struct Check {
    /// Print the routes as JSON
    #[arg(long)]
    json: bool,
}

impl ConfigCommand {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let Self::Check(check) = self;
        let settings = common.settings_to_serve(false)?;
        let files = common.files();
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let mut variables: Vec<_> = names.filter(|name| name.starts_with("SEALOCK_")).collect();
        variables.sort();
        let routes = settings.routes().map_err(|why| Failure::new(&why, None))?.describe();
        let access::Findings { problems, notes } =
            access::look(&settings.access, &settings.admin.metrics_to, &settings.server.data);
        if check.json {
            let routes: Vec<_> = routes
                .iter()
                .map(|(name, upstream, to)| json!({ "name": name, "upstream": upstream, "to": to }))
                .collect();
            let read: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            let ok = problems.is_empty();
            print::json(&json!({
                "ok": ok, "files": read, "variables": variables, "routes": routes, "problems": problems,
                "notes": notes,
            }))?;
            return if ok { Ok(()) } else { Err(Failure::found(problems.join("; "))) };
        }
        let rows: Vec<_> = routes.into_iter().map(|(name, upstream, to)| vec![name, upstream, to]).collect();
        print::table(&["NAME", "UPSTREAM", "GOES TO"], &rows)?;
        print::line(&came_from(&files, &variables))?;
        notes.iter().try_for_each(|note| print::line(&format!("note: {note}")))?;
        match problems.len() {
            0 => print::line("the settings are good"),
            count => {
                problems.iter().try_for_each(|problem| print::line(&format!("  {problem}")))?;
                Err(Failure::found(format!("the settings are good, but what they lead to has {count} faults")))
            }
        }
    }
}

/// Which files and variables were read; values are not told.
fn came_from(files: &[PathBuf], variables: &[String]) -> String {
    let mut from: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    if from.is_empty() {
        from.push(format!("no file, for there is no `{DEFAULT_FILE}`"));
    }
    from.extend(variables.iter().cloned());
    format!("read: {}", from.join(", "))
}
