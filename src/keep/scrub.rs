//! Scrub: reads everything that is kept and holds it against its name, on demand and slowly in the background.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::names::Repository;
use crate::oci::Digest;
use crate::store::{FoundBy, GarbageKind, Store, StoreError, Verdict};

/// Pieces of content that are looked up together, and after which the background notes where it is.
const PAGE: usize = 64;
/// Most pieces of bad content that a report lists; all are counted.
pub const BAD_MAX: usize = 10_000;
/// Longest pause after a piece, so that breaking off is noticed.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How far a look at everything has come.
#[derive(Debug, Default)]
pub struct Progress {
    checked: AtomicU64,
    size_bytes: AtomicU64,
}

/// What a look at everything came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Blobs and manifests.
    pub checked: u64,
    pub size_bytes: u64,
    pub bad_count: u64,
    /// At most [`BAD_MAX`].
    pub bad: Vec<Bad>,
}

/// Content that was not what its name says, or not there; it is no longer kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    pub digest: Digest,
    pub kind: GarbageKind,
    pub verdict: Verdict,
}

impl Progress {
    /// Blobs and manifests that were checked so far, and bytes.
    pub fn so_far(&self) -> (u64, u64) {
        (self.checked.load(Ordering::Relaxed), self.size_bytes.load(Ordering::Relaxed))
    }
}

impl VerifyReport {
    pub(super) fn add(&mut self, page: Self) {
        self.checked += page.checked;
        self.size_bytes += page.size_bytes;
        self.bad_count += page.bad_count;
        let room = BAD_MAX.saturating_sub(self.bad.len());
        self.bad.extend(page.bad.into_iter().take(room));
    }
}

/// Where a look is: manifests first, then blobs, each in byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    kind: GarbageKind,
    after: String,
}

impl Cursor {
    pub(super) fn begin() -> Self {
        Self { kind: GarbageKind::Manifest, after: String::new() }
    }

    /// As [`Cursor::to_text`] wrote it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (kind, after) = text.split_once(' ')?;
        let kind = match kind {
            "manifest" => GarbageKind::Manifest,
            "blob" => GarbageKind::Blob,
            _ => return None,
        };
        Some(Self { kind, after: after.to_owned() })
    }

    pub(super) fn to_text(&self) -> String {
        let kind = if self.kind == GarbageKind::Blob { "blob" } else { "manifest" };
        format!("{kind} {}", self.after)
    }
}

/// Checks one page from `cursor` on; where the next one begins, or `None` after the last. `rate`: bytes per second.
pub(super) async fn page(
    store: &Store,
    repository: Option<&Repository>,
    cursor: Cursor,
    rate: Option<u64>,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<(VerifyReport, Option<Cursor>), StoreError> {
    let mut report = VerifyReport::default();
    let page = store.kept_page(cursor.kind, repository, &cursor.after, PAGE).await?;
    let Some((last, _)) = page.last() else {
        let next =
            (cursor.kind == GarbageKind::Manifest).then(|| Cursor { kind: GarbageKind::Blob, after: String::new() });
        return Ok((report, next));
    };
    let next = Cursor { kind: cursor.kind, after: last.to_string() };
    for (digest, size) in page {
        let stop = stop.clone();
        let pace = move |count: usize| {
            if let Some(rate) = rate {
                let pause = Duration::from_secs_f64(count as f64 / rate.max(1) as f64);
                std::thread::sleep(pause.min(PAUSE_MAX));
            }
            !stop.is_cancelled()
        };
        let by = if rate.is_some() { FoundBy::Scrub } else { FoundBy::Verify };
        let verdict = store.verify(cursor.kind, &digest, size, by, pace).await?;
        report.checked += 1;
        report.size_bytes += size;
        progress.checked.fetch_add(1, Ordering::Relaxed);
        progress.size_bytes.fetch_add(size, Ordering::Relaxed);
        if matches!(verdict, Verdict::Wrong | Verdict::Missing) {
            report.bad_count += 1;
            report.bad.push(Bad { digest, kind: cursor.kind, verdict });
        }
    }
    Ok((report, Some(next)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_as_it_was_written() {
        let at = Cursor { kind: GarbageKind::Blob, after: Digest::sha256(b"").to_string() };
        assert_eq!(Cursor::parse(&at.to_text()), Some(at));
        assert_eq!(Cursor::parse(&Cursor::begin().to_text()), Some(Cursor::begin()));
        assert_eq!(Cursor::parse(""), None);
        assert_eq!(Cursor::parse("file x"), None);
    }
}
