//! `sealock healthcheck`: whether the server of the data folder is ready.

use clap::Args;
use serde_json::json;

use super::{Common, Failure, print};

#[derive(Args)]
pub struct Healthcheck {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Healthcheck {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        super::block_on(async { Ok(client.ready().await?) })?;
        if self.json { print::json(&json!({ "status": "ready" })) } else { print::line("ready") }
    }
}
