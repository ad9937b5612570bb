//! Collection: finds what nothing refers to, and throws it away.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{error, info};

use super::KeepSettings;
use super::pressure::{Pressure, Sum};
use super::reach::Reach;
use super::retire::{self, Retired};
use crate::size::Size;
use crate::store::{CollectRules, GARBAGE_MAX, Garbage, GarbageKind, Store, StoreError};

/// Most lines of a report; its totals count all.
pub const LINES_MAX: usize = 10_000;
/// Unknown files that are too many to be what a crash left, if they are also more than what is known.
const UNKNOWN_FILES_MAX: u64 = 100;

/// What a collection threw away, or, as a dry run, would.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CollectReport {
    pub dry_run: bool,
    pub manifests: u64,
    pub blobs: u64,
    /// Files that the catalog did not know.
    pub files: u64,
    /// Of all of these.
    pub size_bytes: u64,
    /// What the trash holds now, and can be put back.
    pub trash_bytes: u64,
    /// What was removed for good, having been in the trash long enough.
    pub freed_bytes: u64,
    /// Unknown files that were left, because so many of them mean that the catalog is not the right one.
    pub files_left: u64,
    /// At most [`LINES_MAX`].
    pub lines: Vec<Garbage>,
    /// Tags that a rule let go; what they named is collected once it can be turned back to no more.
    #[serde(default)]
    pub retired: u64,
    /// At most [`LINES_MAX`].
    #[serde(default)]
    pub retired_tags: Vec<Retired>,
    /// How short room is.
    #[serde(default)]
    pub pressure: Pressure,
}

impl CollectReport {
    pub(super) fn sum(&self) -> Sum {
        let (manifests, blobs) = (self.manifests, self.blobs + self.files);
        Sum { manifests, blobs, size_bytes: self.size_bytes, tags: self.retired }
    }

    fn add(&mut self, garbage: Vec<Garbage>) {
        for one in garbage {
            match one.kind {
                GarbageKind::Manifest => self.manifests += 1,
                GarbageKind::Blob => self.blobs += 1,
                GarbageKind::File => self.files += 1,
            }
            self.size_bytes += one.size_bytes;
            if self.lines.len() < LINES_MAX {
                self.lines.push(one);
            }
        }
    }
}

/// Retires tags, then throws away what nothing refers to. Nothing goes that came or was used after `since`.
pub(super) async fn collect(
    store: &Store,
    settings: &KeepSettings,
    reach: &Reach,
    since: Timestamp,
    dry_run: bool,
) -> Result<CollectReport, StoreError> {
    let mut report = CollectReport { dry_run, ..CollectReport::default() };
    report.retired_tags = retire::retire(store, settings, reach, dry_run).await?;
    report.retired = report.retired_tags.len() as u64;
    report.retired_tags.truncate(LINES_MAX);
    loop {
        // The gate may open or close meanwhile.
        let rules = rules(settings, reach, since);
        let found = store.garbage(&rules).await?;
        let all = found.len() < GARBAGE_MAX;
        let gone = if dry_run { found } else { store.throw_away(&found, &rules).await? };
        let nothing = gone.is_empty();
        report.add(gone);
        if all || nothing || dry_run {
            break;
        }
    }
    collect_files(store, &rules(settings, reach, since), &mut report).await?;
    report.trash_bytes = store.trash_size().await?;
    report.pressure = Pressure::of(store, settings).await?;
    if !dry_run {
        info!(
            manifests = report.manifests,
            blobs = report.blobs,
            files = report.files,
            tags = report.retired,
            size_bytes = report.size_bytes,
            "collected {} that nothing refers to; `sealock gc --undo` puts it back for {}",
            Size(report.size_bytes),
            settings.trash_for
        );
    }
    Ok(report)
}

/// Files that the catalog does not know.
async fn collect_files(store: &Store, rules: &CollectRules, report: &mut CollectReport) -> Result<(), StoreError> {
    let files = store.unknown_files(rules).await?;
    let (count, totals) = (files.len() as u64, store.totals().await?);
    if count > UNKNOWN_FILES_MAX.max(totals.blobs + totals.manifests) {
        error!(
            files = count,
            "the catalog does not know most of the files in `blobs/`: they stay; restore `catalog.sqlite` from a backup"
        );
        report.files_left = count;
    } else {
        report.add(if report.dry_run { files } else { store.throw_away(&files, rules).await? });
    }
    Ok(())
}

fn rules(settings: &KeepSettings, reach: &Reach, since: Timestamp) -> CollectRules {
    let (history, keep_untagged) = (settings.history, settings.keep_untagged);
    CollectRules { history, keep_untagged, since, open: reach.open() }
}
