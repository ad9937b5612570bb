//! `sealock config check`: reads the settings as `serve` would, and starts nothing.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Common, Failure, print};

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Read the settings as `serve` would, and say what is wrong with them: file, line, key, what to write
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
        let settings = common.settings_to_serve()?;
        let routes = settings.routes().map_err(|why| Failure::new(&why, None))?.describe();
        if check.json {
            let routes: Vec<_> = routes
                .iter()
                .map(|(name, upstream, to)| json!({ "name": name, "upstream": upstream, "to": to }))
                .collect();
            return print::json(&json!({ "ok": true, "routes": routes }));
        }
        let rows: Vec<_> = routes.into_iter().map(|(name, upstream, to)| vec![name, upstream, to]).collect();
        print::table(&["NAME", "UPSTREAM", "GOES TO"], &rows)?;
        print::line("the settings are good")
    }
}
