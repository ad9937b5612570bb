//! `sealock ls`: what is kept.

use clap::Args;

use super::{Common, Failure, print};
use crate::clock::Clock;
use crate::size::Size;

#[derive(Args)]
pub struct Ls {
    /// Only repositories whose name, as clients write it, begins so: security-products, trivy-db, docker.io/library
    name: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Ls {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        let tags = super::block_on(async { Ok(client.list(self.name.as_deref()).await?) })?;
        if self.json {
            return print::json(&tags);
        }
        if tags.is_empty() {
            return print::line(
                match &self.name {
                    Some(name) => format!("nothing is kept under `{name}` yet"),
                    None => "nothing is kept yet".to_owned(),
                }
                .as_str(),
            );
        }
        let now = Clock::system().now();
        let rows = tags.iter().map(|tag| {
            vec![
                format!("{}:{}", tag.repository, tag.tag),
                if tag.complete { "complete" } else { "in part" }.to_owned(),
                tag.source.as_str().to_owned(),
                Size(tag.size_bytes).to_string(),
                format!("checked {}", print::relative(now, tag.checked_at)),
                format!("moved {}", print::relative(now, tag.moved_at)),
                tag.digest.clone(),
            ]
        });
        print::table(&["TAG", "STATE", "FROM", "SIZE", "CHECKED", "MOVED", "DIGEST"], &rows.collect::<Vec<_>>())
    }
}
