//! Making room: what can be fetched again goes, the longest unused first, for good.
//!
//! The rows go in one transaction, then the files by way of `trash/`, where a crash leaves files that no row names and
//! that the next time of this removes.

use std::sync::{Arc, Mutex, PoisonError};

use super::catalog::sweep::LIST_MAX;
use super::catalog::touched::Touched;
use super::catalog::writer::Change;
use super::catalog::{Connection, content, evict, report};
use super::disk::Disk;
use super::memory::Memory;
use super::{EvictRules, Evictable, Evicted, Store, StoreError, blocking};
use crate::names::{Origin, Repository};
use crate::oci::Digest;

/// Most units that are found at one time.
pub const EVICTABLE_MAX: usize = 10_000;

/// Units that are to go, in this order, until so much has gone; those that may go by then.
#[derive(Debug)]
pub struct Eviction {
    units: Vec<Evictable>,
    enough_bytes: u64,
    rules: EvictRules,
    gone: Mutex<(Vec<Evicted>, Vec<Digest>)>,
}

impl Eviction {
    /// Within the transaction.
    pub async fn run(
        &self,
        c: &mut Connection,
        disk: &Disk,
        memory: &Memory,
        touched: &mut Touched,
    ) -> Result<bool, StoreError> {
        // What was asked for a moment ago is not written yet, and stays.
        content::note_used(c, &memory.used_all()).await?;
        let busy = disk.in_use();
        let (may_go, held) = evict::may_go(c, &self.units, &self.rules, &busy).await?;
        let (mut gone, mut files, mut bytes) = (Vec::new(), Vec::new(), 0);
        for unit in may_go {
            if bytes >= self.enough_bytes {
                break;
            }
            let went = evict::evict(c, &unit, &held, &self.rules, &busy, touched).await?;
            bytes += went.size_bytes;
            let evict::Went { manifests, blobs, size_bytes, tags, digests } = went;
            files.extend(digests);
            gone.push(Evicted { unit, manifests, blobs, size_bytes, tags });
        }
        let any = !gone.is_empty();
        *self.gone.lock().unwrap_or_else(PoisonError::into_inner) = (gone, files);
        Ok(any)
    }
}

impl Store {
    /// Bytes of kept blobs and manifests.
    pub async fn kept_bytes(&self) -> Result<u64, StoreError> {
        report::kept_bytes(&self.0.readers).await
    }

    /// Bytes that are free on the file system of the data folder.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.0.disk.free_bytes()
    }

    /// At most [`EVICTABLE_MAX`] units that may go, the longest unused first.
    pub async fn evictable(&self, rules: &EvictRules) -> Result<Vec<Evictable>, StoreError> {
        // What an older version kept may name more than it recorded.
        self.0.reread_manifests().await?;
        let mut reader = self.0.readers.acquire().await?;
        evict::units(&mut reader, rules, &self.0.disk.in_use(), EVICTABLE_MAX).await
    }

    /// Where a unit can be read.
    pub async fn places_of(&self, unit: &Evictable) -> Result<Vec<Repository>, StoreError> {
        let mut reader = self.0.readers.acquire().await?;
        let places = evict::places(&mut reader, unit).await?.into_iter().map(|(origin, name)| {
            let origin = if origin.is_empty() { Origin::Local } else { Origin::Upstream(origin.into()) };
            Ok(Repository { origin, name: name.parse().map_err(StoreError::catalog)? })
        });
        places.collect()
    }

    /// Evicts `units` until `enough_bytes` have gone, in one transaction; returns what went. What has been used meanwhile,
    /// or may not go for another reason by then, stays.
    pub async fn evict(
        &self,
        units: Vec<Evictable>,
        enough_bytes: u64,
        rules: &EvictRules,
    ) -> Result<Vec<Evicted>, StoreError> {
        let eviction = Arc::new(Eviction { units, enough_bytes, rules: rules.clone(), gone: Mutex::default() });
        self.0.writer.apply(Change::Evict(eviction.clone())).await?;
        let (gone, files) = std::mem::take(&mut *eviction.gone.lock().unwrap_or_else(PoisonError::into_inner));
        self.remove_unknown(&files).await?;
        Ok(gone)
    }

    /// Removes files in the trash that it does not know, as a crash leaves them; returns how many bytes that freed.
    pub async fn remove_unknown_trash(&self) -> Result<u64, StoreError> {
        let disk = self.0.disk.clone();
        self.remove_unknown(&blocking(move || disk.trash_files()).await?).await
    }

    async fn remove_unknown(&self, files: &[Digest]) -> Result<u64, StoreError> {
        for some in files.chunks(LIST_MAX) {
            self.0.writer.apply(Change::RemoveTrash(some.to_vec())).await?;
        }
        let disk = self.0.disk.clone();
        blocking(move || disk.remove_marked()).await
    }
}
