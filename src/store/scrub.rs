//! Reads what is kept to its end and holds it against its name; what is wrong is set aside.

use super::catalog::read::{self, Kept};
use super::catalog::writer::Change;
use super::{FoundBy, GarbageKind, Store, StoreError, blocking};
use crate::names::Repository;
use crate::oci::Digest;

/// What a look at one piece of kept content came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Whole,
    /// Its bytes do not hash to its name: its file is in `quarantine/`, and it is no longer kept.
    Wrong,
    /// It had no file, or one of another length: it is no longer kept.
    Missing,
    /// It was broken off, or the content went or came anew meanwhile.
    Unsettled,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Wrong => "wrong",
            Self::Missing => "missing",
            Self::Unsettled => "unsettled",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Whole, Self::Wrong, Self::Missing, Self::Unsettled].into_iter().find(|one| one.as_str() == text)
    }
}

impl Store {
    /// A page of what is kept, of one kind, after `after` in byte order: digests and sizes. With `repository`, only what
    /// can be read there.
    pub async fn kept_page(
        &self,
        kind: GarbageKind,
        repository: Option<&Repository>,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(Digest, u64)>, StoreError> {
        let table = match kind {
            GarbageKind::Blob => Kept::Blobs,
            GarbageKind::Manifest => Kept::Manifests,
            GarbageKind::File => return Ok(Vec::new()),
        };
        let Some(repository) = repository else {
            return read::kept_page(&self.0.readers, table, after, limit).await;
        };
        let Some(id) = self.0.repository(repository).await? else { return Ok(Vec::new()) };
        read::kept_page_of(&self.0.readers, table, id, after, limit).await
    }

    /// Hashes what is kept as `digest`, for `by`. `read` is told of each piece of so many bytes before it goes on, where it may
    /// block; `false` from it breaks off.
    pub async fn verify(
        &self,
        kind: GarbageKind,
        digest: &Digest,
        size: u64,
        by: FoundBy,
        read: impl FnMut(usize) -> bool + Send + 'static,
    ) -> Result<Verdict, StoreError> {
        let (disk, wanted) = (self.0.disk.clone(), *digest);
        let (file, broken_off) = blocking(move || {
            let (mut read, mut broken_off) = (read, false);
            let file = disk.hash(&wanted, |count| {
                broken_off = !read(count);
                !broken_off
            })?;
            Ok((file, broken_off))
        })
        .await?;
        let change = match (file, kind) {
            _ if broken_off => return Ok(Verdict::Unsettled),
            (Some((look, true)), _) => {
                self.0.sound.note(digest, look, self.0.clock.now());
                return Ok(Verdict::Whole);
            }
            (Some((look, false)), _) => Change::SetAside { digest: *digest, wrong: look.id, by },
            (None, GarbageKind::Manifest) => Change::LoseManifest { manifest: *digest, by },
            (None, _) => Change::LoseBlob { blob: *digest, size, by },
        };
        let settled = self.0.writer.apply(change).await?;
        Ok(match (settled, file) {
            (false, _) => Verdict::Unsettled,
            (true, Some(_)) => Verdict::Wrong,
            (true, None) => Verdict::Missing,
        })
    }
}
