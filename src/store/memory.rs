//! What the hot path reads instead of SQL and the disk: bounded, and never older than the catalog.
//!
//! A reader that finds nothing takes a [`Ticket`], reads the catalog, and fills in what it found. The catalog's writer
//! puts or drops entries after its commit, which voids the tickets for them: a reader that read before the commit
//! cannot overwrite what the writer put. Only what is kept is remembered, never that something is not.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, UnitWeighter, Weighter};
use tokio::sync::watch;

use super::{KeptManifest, TagRecord};
use crate::names::Repository;
use crate::oci::{Digest, Tag};

/// Most bytes of remembered manifests, with what parsing them takes.
pub const MANIFESTS_BYTES_MAX: u64 = 16 << 20;
/// Most blob files that are held open.
pub const FILES_MAX: usize = 256;
/// Most remembered blobs, and most remembered grants of each kind: room for the blobs of some thousand images.
pub const DIGESTS_MAX: usize = 32_768;
/// Most remembered tags.
pub const TAGS_MAX: usize = 10_000;
/// Most remembered repositories.
pub const REPOSITORIES_MAX: usize = 4_096;
/// Most last uses that wait to be written; further ones wait for the next use.
pub const USED_PENDING_MAX: usize = 4_096;
/// A use is noted at most this often per digest.
const USED_GRANULARITY_MS: i64 = 60_000;
/// Locks among which the keys of one map are spread.
const STRIPES: usize = 64;

/// A bounded map that a slow reader cannot fill with what has changed meanwhile.
pub struct Remembered<K, V, W = UnitWeighter> {
    entries: Cache<K, V, W>,
    stripes: [Mutex<u64>; STRIPES],
    hash: RandomState,
}

/// The state of a key before the catalog was read.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

/// A manifest and when it was last asked for.
pub struct HeldManifest {
    pub kept: Arc<KeptManifest>,
    used_ms: AtomicI64,
}

/// A kept blob's size and when it was last asked for.
pub struct HeldBlob {
    pub size: u64,
    used_ms: AtomicI64,
}

/// A repository's key in the catalog.
pub type RepositoryId = i64;

/// The memory of one store.
pub struct Memory {
    /// Ids never change, so these need no tickets.
    pub repositories: Cache<Repository, RepositoryId>,
    pub tags: Remembered<(RepositoryId, Tag), Arc<TagRecord>>,
    pub manifests: Remembered<Digest, Arc<HeldManifest>, ByBytes>,
    pub manifest_grants: Remembered<(RepositoryId, Digest), ()>,
    pub blobs: Remembered<Digest, Arc<HeldBlob>>,
    pub blob_grants: Remembered<(RepositoryId, Digest), ()>,
    pub files: Remembered<Digest, Arc<File>>,
    /// Counts what was found damaged and what is kept again.
    pub damage: watch::Sender<u64>,
    used: Mutex<HashMap<Digest, i64>>,
}

/// What a commit changed.
#[derive(Debug)]
pub enum Touch {
    Tag(RepositoryId, Tag),
    Manifest(Digest),
    ManifestGrant(RepositoryId, Digest),
    ManifestGrantLost(RepositoryId, Digest),
    BlobKept(Digest, u64),
    BlobLost(Digest),
    BlobGrant(RepositoryId, Digest),
    BlobGrantLost(RepositoryId, Digest),
    Damage,
}

/// Weighs a manifest by its bytes and what parsing made of them.
#[derive(Clone)]
pub struct ByBytes;

impl<K: Clone + Eq + Hash, V: Clone> Remembered<K, V> {
    fn new(items_max: usize) -> Self {
        Self::with(Cache::new(items_max))
    }
}

impl<K: Clone + Eq + Hash, V: Clone, W: Weighter<K, V> + Clone> Remembered<K, V, W> {
    fn with(entries: Cache<K, V, W>) -> Self {
        Self { entries, stripes: std::array::from_fn(|_| Mutex::new(0)), hash: RandomState::new() }
    }

    pub fn get(&self, key: &K) -> Option<V> {
        self.entries.get(key)
    }

    /// To be taken before the catalog or the disk is read.
    pub fn ticket(&self, key: &K) -> Ticket {
        Ticket(*self.stripe(key).lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A reader's find; forgotten if the key was written to since `ticket`.
    pub fn fill(&self, key: K, value: V, ticket: Ticket) {
        let changes = self.stripe(&key).lock().unwrap_or_else(PoisonError::into_inner);
        if *changes == ticket.0 {
            self.entries.insert(key, value);
        }
    }

    /// The writer's, after its commit.
    pub fn put(&self, key: K, value: V) {
        let mut changes = self.stripe(&key).lock().unwrap_or_else(PoisonError::into_inner);
        *changes += 1;
        self.entries.insert(key, value);
    }

    /// The writer's, after its commit: the next reader asks the catalog.
    pub fn drop_entry(&self, key: &K) {
        let mut changes = self.stripe(key).lock().unwrap_or_else(PoisonError::into_inner);
        *changes += 1;
        self.entries.remove(key);
    }

    fn stripe(&self, key: &K) -> &Mutex<u64> {
        &self.stripes[self.hash.hash_one(key) as usize % STRIPES]
    }
}

impl Memory {
    pub fn new() -> Self {
        let capacity = OptionsBuilder::new()
            // Few shards, because one takes nothing in that is larger than its share of the whole.
            .shards(2)
            .estimated_items_capacity((MANIFESTS_BYTES_MAX / 4096) as usize)
            .weight_capacity(MANIFESTS_BYTES_MAX)
            .build();
        let manifests = match capacity {
            Ok(options) => Cache::with_options(options, ByBytes, Default::default(), Default::default()),
            Err(_) => Cache::with_weighter(1024, MANIFESTS_BYTES_MAX, ByBytes),
        };
        Self {
            repositories: Cache::new(REPOSITORIES_MAX),
            tags: Remembered::new(TAGS_MAX),
            manifests: Remembered::with(manifests),
            manifest_grants: Remembered::new(DIGESTS_MAX),
            blobs: Remembered::new(DIGESTS_MAX),
            blob_grants: Remembered::new(DIGESTS_MAX),
            files: Remembered::new(FILES_MAX),
            damage: watch::Sender::new(0),
            used: Mutex::default(),
        }
    }

    /// Follows a commit.
    pub fn touch(&self, touches: Vec<Touch>) {
        for touch in touches {
            match touch {
                Touch::Tag(repository, tag) => self.tags.drop_entry(&(repository, tag)),
                Touch::Manifest(digest) => self.manifests.drop_entry(&digest),
                Touch::ManifestGrant(repository, digest) => self.manifest_grants.put((repository, digest), ()),
                Touch::ManifestGrantLost(repository, digest) => self.manifest_grants.drop_entry(&(repository, digest)),
                Touch::BlobKept(digest, size) => {
                    self.blobs.put(digest, Arc::new(HeldBlob::new(size)));
                    // It may be another file than the one that is held open, and that one's bytes may have gone bad.
                    self.files.drop_entry(&digest);
                }
                Touch::BlobLost(digest) => {
                    self.blobs.drop_entry(&digest);
                    self.files.drop_entry(&digest);
                }
                Touch::BlobGrant(repository, digest) => self.blob_grants.put((repository, digest), ()),
                Touch::BlobGrantLost(repository, digest) => self.blob_grants.drop_entry(&(repository, digest)),
                Touch::Damage => self.damage.send_modify(|changes| *changes += 1),
            }
        }
    }

    /// Notes that `digest` was asked for at `now_ms`; cheap when that was noted lately.
    pub fn use_at(&self, digest: &Digest, used_ms: &AtomicI64, now_ms: i64) {
        let last_ms = used_ms.load(Ordering::Relaxed);
        if now_ms.saturating_sub(last_ms) < USED_GRANULARITY_MS {
            return;
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        // What finds no room is noted by its next use.
        if used.len() < USED_PENDING_MAX {
            used.insert(*digest, now_ms);
            used_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    /// Which of `digests` were asked for since last uses were written, and when.
    pub fn used_of(&self, digests: &[Digest]) -> Vec<(Digest, i64)> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        digests.iter().filter_map(|digest| Some((*digest, *used.get(digest)?))).collect()
    }

    /// What was asked for since last uses were written, and when.
    pub fn used_all(&self) -> Vec<(Digest, i64)> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(digest, at)| (*digest, *at)).collect()
    }

    /// The last uses that were noted since the last call.
    pub fn take_used(&self) -> HashMap<Digest, i64> {
        std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HeldManifest {
    pub fn new(kept: KeptManifest) -> Self {
        Self { kept: Arc::new(kept), used_ms: AtomicI64::new(i64::MIN) }
    }

    pub fn used_ms(&self) -> &AtomicI64 {
        &self.used_ms
    }
}

impl HeldBlob {
    pub fn new(size: u64) -> Self {
        Self { size, used_ms: AtomicI64::new(i64::MIN) }
    }

    pub fn used_ms(&self) -> &AtomicI64 {
        &self.used_ms
    }
}

impl Weighter<Digest, Arc<HeldManifest>> for ByBytes {
    fn weight(&self, _: &Digest, held: &Arc<HeldManifest>) -> u64 {
        let manifest = &held.kept.manifest;
        1024 + 2 * manifest.size() + 256 * manifest.parts().count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_reader_does_not_overwrite_what_the_writer_put() {
        let memory: Remembered<u8, &str> = Remembered::new(8);
        let ticket = memory.ticket(&1);
        memory.put(1, "new");
        memory.fill(1, "old", ticket);
        assert_eq!(memory.get(&1), Some("new"));
    }

    #[test]
    fn a_slow_reader_does_not_bring_back_what_the_writer_dropped() {
        let memory: Remembered<u8, &str> = Remembered::new(8);
        memory.put(1, "old");
        let ticket = memory.ticket(&1);
        memory.drop_entry(&1);
        memory.fill(1, "old", ticket);
        assert_eq!(memory.get(&1), None);
        memory.fill(1, "new", memory.ticket(&1));
        assert_eq!(memory.get(&1), Some("new"));
    }

    #[test]
    fn readers_and_a_writer_at_once_end_with_what_the_writer_wrote_last() {
        // Invariant 5
        let (catalog, memory) = (AtomicI64::new(0), Remembered::<u8, i64>::new(8));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while catalog.load(Ordering::SeqCst) < 20_000 {
                        let ticket = memory.ticket(&1);
                        memory.fill(1, catalog.load(Ordering::SeqCst), ticket);
                    }
                });
            }
            for value in 1..=20_000 {
                catalog.store(value, Ordering::SeqCst);
                memory.drop_entry(&1);
                let seen = memory.get(&1);
                assert!(seen.is_none_or(|seen| seen == value), "{seen:?} is remembered after {value} was written");
            }
        });
    }

    #[test]
    fn a_use_is_noted_once_a_minute_and_the_notes_are_bounded() {
        // Invariant 17
        let (memory, used_ms) = (Memory::new(), AtomicI64::new(i64::MIN));
        let digest = Digest::sha256(b"");
        memory.use_at(&digest, &used_ms, 1_000_000);
        memory.use_at(&digest, &used_ms, 1_000_000 + USED_GRANULARITY_MS - 1);
        assert_eq!(memory.take_used(), HashMap::from([(digest, 1_000_000)]));
        assert!(memory.take_used().is_empty());
        for number in 0..=USED_PENDING_MAX {
            memory.use_at(&Digest::sha256(&number.to_le_bytes()), &AtomicI64::new(i64::MIN), 0);
        }
        assert_eq!(memory.take_used().len(), USED_PENDING_MAX);
    }

    #[test]
    fn every_map_is_bounded() {
        // Invariant 17
        let memory = Memory::new();
        assert!(memory.manifests.entries.capacity() <= MANIFESTS_BYTES_MAX);
        assert!(memory.files.entries.capacity() as usize <= 2 * FILES_MAX);
        for number in 0..100_000_u64 {
            memory.touch(vec![Touch::BlobGrant(1, Digest::sha256(&number.to_le_bytes()))]);
        }
        assert!(memory.blob_grants.entries.len() <= 2 * DIGESTS_MAX, "{}", memory.blob_grants.entries.len());
    }
}
