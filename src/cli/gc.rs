//! `sealock gc`: collects what nothing refers to, or puts back what was collected.

use clap::Args;

use super::{Common, Failure, print};
use crate::keep::CollectReport;
use crate::size::Size;
use crate::store::{GarbageKind, Restored};

/// Lines that a person is shown; the rest are counted.
const LINES_SHOWN: usize = 50;

/// Collect what nothing refers to: deleted and overwritten pushes, and what only they needed
///
/// Nothing stops meanwhile: pulls and pushes go on. What stays: whatever a tag names or named lately ([keep] history),
/// signatures and other referrers of what stays, manifests that were filled or pushed by digest alone, with what they need
/// ([keep] keep_untagged), and whatever came or was used within the grace time ([keep] grace). What goes lies in the trash
/// for a while ([keep] trash_for), still takes room on the disk, and can be put back with --undo.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
See first:    sealock gc --dry-run
Then do it:   sealock gc
Regret it:    sealock gc --undo"
)]
pub struct Gc {
    /// Only list what would go, and how much it is
    #[arg(long, conflicts_with = "undo")]
    dry_run: bool,
    /// Put back all that is in the trash: the same bytes, readable where they were
    #[arg(long)]
    undo: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Gc {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        if self.undo {
            let restored = super::block_on(async { Ok(client.undo_collection().await?) })?;
            if self.json {
                print::json(&restored)?;
            } else {
                show_restored(&restored)?;
            }
            return if restored.lost == 0 { Ok(()) } else { Err(Failure::partly(lost(&restored))) };
        }
        let report = super::block_on(async { Ok(client.collect(self.dry_run).await?) })?;
        if self.json { print::json(&report) } else { show(&report) }
    }
}

fn show(report: &CollectReport) -> Result<(), Failure> {
    show_retired(report)?;
    let rows = report.lines.iter().take(LINES_SHOWN).map(|one| {
        let kind = match one.kind {
            GarbageKind::Blob => "blob",
            GarbageKind::Manifest => "manifest",
            GarbageKind::File => "unknown file",
        };
        let repository = one.repository.clone().unwrap_or_else(|| "-".to_owned());
        vec![kind.to_owned(), Size(one.size_bytes).to_string(), repository, one.digest.to_string()]
    });
    print::table(&["WHAT", "SIZE", "REPOSITORY", "DIGEST"], &rows.collect::<Vec<_>>())?;
    let all = report.manifests + report.blobs + report.files;
    if all > LINES_SHOWN as u64 {
        print::line(&format!("… and {} more (--json lists them)", all - LINES_SHOWN as u64))?;
    }
    if report.files_left > 0 {
        print::line(&format!(
            "{} files in `blobs/` were left, although the catalog does not know them: so many mean that it is not the \
             right one; restore it from a backup",
            report.files_left
        ))?;
    }
    let what = format!(
        "{} in {} manifests, {} blobs and {} unknown files",
        Size(report.size_bytes),
        report.manifests,
        report.blobs,
        report.files
    );
    let short = match report.pressure.over_bytes {
        0 => None,
        over => Some(format!(
            "room is short by {}: what is above the limits ([keep] max_size, min_free) is evicted while the gate is open",
            Size(over)
        )),
    };
    if report.dry_run {
        print::line(&format!("would go: {what}"))?;
        return short.map_or(Ok(()), |short| print::line(&short));
    }
    print::line(&format!("went to the trash: {what} (put back with `sealock gc --undo`)"))?;
    print::line(&format!(
        "removed for good: {}; still in the trash: {}",
        Size(report.freed_bytes),
        Size(report.trash_bytes)
    ))?;
    short.map_or(Ok(()), |short| print::line(&short))
}

fn show_retired(report: &CollectReport) -> Result<(), Failure> {
    let shown = report.retired_tags.iter().take(LINES_SHOWN).map(|one| {
        let name = format!("{}:{}", one.repository, one.tag);
        vec!["tag".to_owned(), name, format!("[keep.retain.\"{}\"]", one.rule), one.digest.to_string()]
    });
    print::table(&["WHAT", "NAME", "BY", "DIGEST"], &shown.collect::<Vec<_>>())?;
    if report.retired > LINES_SHOWN as u64 {
        print::line(&format!("… and {} more (--json lists them)", report.retired - LINES_SHOWN as u64))?;
    }
    let would = if report.dry_run { "tags that would be removed" } else { "tags removed" };
    match report.retired {
        0 => Ok(()),
        count => print::line(&format!("{would}: {count} (each comes back with `sealock tag rollback NAME`)")),
    }
}

fn show_restored(restored: &Restored) -> Result<(), Failure> {
    print::line(&format!(
        "put back: {} in {} manifests and {} blobs",
        Size(restored.size_bytes),
        restored.manifests,
        restored.blobs
    ))
}

fn lost(restored: &Restored) -> String {
    format!("{} pieces of content could not be put back: their files are gone or wrong (see the log)", restored.lost)
}
