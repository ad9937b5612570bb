//! `sealock verify`: reads everything that is kept and holds it against its name.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::{Common, Failure, print};
use crate::keep::VerifyReport;
use crate::server::admin::AdminClient;
use crate::size::Size;
use crate::store::{GarbageKind, Verdict};

/// How often a terminal is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Read everything that is kept and hold it against its digest
///
/// What is wrong is set aside in `quarantine/` of the data folder and is no longer kept; `sealock status` tells of it
/// until it is kept again: it is fetched when the gate is open, or comes by a push. The server reads everything by itself,
/// too, slowly ([keep] scrub_every). Exits with 1 if anything was wrong.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Verify {
    /// Only what can be read in this repository: its name, as clients write it
    name: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        let tell = !self.json && std::io::stderr().is_terminal();
        let report = super::block_on(async {
            tokio::select! {
                report = client.verify(self.name.as_deref()) => Ok(report?),
                never = tell_progress(&client), if tell => match never {},
            }
        })?;
        if tell {
            eprint!("\r\x1b[K");
        }
        if self.json {
            print::json(&report)?
        } else {
            show(&report)?
        }
        match report.bad_count {
            0 => Ok(()),
            count => Err(Failure::found(format!("{count} blobs and manifests were wrong or missing"))),
        }
    }
}

async fn tell_progress(client: &AdminClient) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        if let Ok(so_far) = client.verified_so_far().await {
            eprint!("\r\x1b[Kchecked {} blobs and manifests, {}", so_far.checked, Size(so_far.size_bytes));
            // A terminal that is gone is no reason to stop.
            drop(std::io::stderr().flush());
        }
    }
}

fn show(report: &VerifyReport) -> Result<(), Failure> {
    let rows = report.bad.iter().map(|bad| {
        let kind = if bad.kind == GarbageKind::Manifest { "manifest" } else { "blob" };
        let what = if bad.verdict == Verdict::Missing { "missing" } else { "wrong bytes" };
        vec![what.to_owned(), kind.to_owned(), bad.digest.to_string()]
    });
    print::table(&["STATE", "WHAT", "DIGEST"], &rows.collect::<Vec<_>>())?;
    print::line(&format!(
        "checked {} blobs and manifests, {}: {} bad",
        report.checked,
        Size(report.size_bytes),
        report.bad_count
    ))
}
