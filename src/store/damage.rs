//! What was kept and was found damaged: told until it is kept again, in whichever way that comes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::catalog::damage::{self, Need};
use super::{GarbageKind, Store, StoreError, Verdict};
use crate::names::Repository;
use crate::oci::Digest;

pub use super::catalog::damage::DAMAGE_MAX;

/// Repositories that one record names, at most.
pub const NEEDED_BY_MAX: usize = 16;

/// Who found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// Somebody who asked for it.
    Read,
    /// The slow look at everything.
    Scrub,
    /// `sealock verify`.
    Verify,
    /// The look at every file's length after a start.
    Start,
}

/// Content that was found damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    pub digest: Digest,
    pub kind: GarbageKind,
    pub size_bytes: u64,
    /// Wrong or missing.
    pub verdict: Verdict,
    pub found_by: FoundBy,
    pub found_at: Timestamp,
    /// When it was kept again.
    pub healed_at: Option<Timestamp>,
    /// Where it can or could be read, with the upstream's host: at most [`NEEDED_BY_MAX`].
    pub repositories: Vec<String>,
}

/// Damaged content that is not kept again yet, and where it is needed.
#[derive(Clone, Debug)]
pub struct Wound {
    pub digest: Digest,
    pub kind: GarbageKind,
    pub repositories: Vec<Repository>,
}

impl Store {
    /// What was found damaged, what is not kept again first, each the newest first; at most `limit`.
    pub async fn damage(&self, limit: usize) -> Result<Vec<Damage>, StoreError> {
        let mut list = damage::list(&self.0.readers, limit).await?;
        for one in &mut list {
            let needed_by = damage::needed_by(&self.0.readers, &one.digest, NEEDED_BY_MAX).await?;
            one.repositories = needed_by.iter().map(Repository::to_string).collect();
        }
        Ok(list)
    }

    /// How much of it is not kept again.
    pub async fn damage_count(&self) -> Result<u64, StoreError> {
        damage::count(&self.0.readers).await
    }

    /// Damaged content that is not kept again: at most `limit`, manifests first, the longest damaged first.
    pub async fn wounds(&self, limit: usize) -> Result<Vec<Wound>, StoreError> {
        let mut wounds = Vec::new();
        for (digest, kind) in damage::open(&self.0.readers, limit).await? {
            let repositories = damage::needed_by(&self.0.readers, &digest, NEEDED_BY_MAX).await?;
            wounds.push(Wound { digest, kind, repositories });
        }
        Ok(wounds)
    }

    /// Whether `repository` could read this until it was found damaged.
    pub async fn is_damaged(
        &self,
        repository: &Repository,
        kind: GarbageKind,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(false) };
        let need = if kind == GarbageKind::Manifest { Need::Manifest } else { Need::Blob };
        damage::is_damaged(&self.0.readers, id, need, digest).await
    }

    /// Changes whenever something is found damaged or is kept again.
    pub fn damage_changes(&self) -> watch::Receiver<u64> {
        self.0.memory.damage.subscribe()
    }
}

impl FoundBy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Scrub => "scrub",
            Self::Verify => "verify",
            Self::Start => "start",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Read, Self::Scrub, Self::Verify, Self::Start].into_iter().find(|by| by.as_str() == text)
    }
}
