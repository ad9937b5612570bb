//! What is kept: blobs as files named by digest, and the catalog of what they are and where they may be read.
//!
//! ```text
//! data/
//!   lock                       flock of the one process that owns the folder: its id and program
//!   catalog.sqlite (-wal -shm) rows for what is below `blobs/`; tags and their history; grants; wanted
//!   blobs/sha256/<hex>         blobs and manifests, verified and durable; also without a row, and then not kept
//!   blobs/sha512/<hex>
//!   staging/<alg>-<hex>        unfinished fills, resumed by digest
//!   staging/upload-<id>        unfinished uploads, resumed by id; the rest of `staging/` is removed at the start
//!   trash/<alg>-<hex>          collected, and still to be put back; `gone-…` is about to be removed
//!   quarantine/<alg>-<hex>     files whose bytes were found wrong
//! ```
//!
//! * Content is visible only after it was hashed (invariant 2) and is durable before it is visible (invariant 6): file,
//!   fsync, rename, fsync of the folder, then the commit.
//! * Bytes are kept once; where they may be read is granted per repository (invariant 14).
//! * Starting is recovering: a file without a row means nothing, a row without its file is reported and is not kept.
//! * What was read once is read from bounded memory ([`memory`]), which follows every commit.

mod age;
mod catalog;
mod check;
mod damage;
mod disk;
mod erasing;
mod error;
mod evict;
mod faults;
mod hashed;
mod ledger;
mod lock;
mod manifests;
mod memory;
mod records;
mod retire;
mod room;
mod scrub;
mod sound;
mod staged;
mod staging;
mod sweep;
mod trash;
mod upload;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use catalog::referrers::{REFERRERS_BYTES_MAX, REFERRERS_PAGE_MAX};
pub use catalog::tags::HISTORY_MAX;
pub use catalog::wanted::WANTED_MAX;
pub use damage::{DAMAGE_MAX, Damage, FoundBy, NEEDED_BY_MAX, Wound};
pub use erasing::Rollback;
pub use error::{KeepError, StoreError};
pub use evict::EVICTABLE_MAX;
#[doc(hidden)]
pub use faults::{Faults, Step};
pub use records::{
    CollectRules, EvictRules, Evictable, Evicted, Garbage, GarbageKind, KeptBlob, KeptManifest, Origins, Pushing,
    ReferrersPage, TagLine, TagMove, TagRecord, TagSource, Totals, Trashed, Wanted,
};
pub use retire::{RETIRE_TAGS_MAX, TagFacts};
pub use room::{ROOM_ORDERS_MAX, ROOM_WAIT_MAX, RoomOrder};
pub use scrub::Verdict;
pub use sound::{Check, KNOWN_FOR, PROMPT_BYTES_MAX, Unsound};
pub use staged::Staged;
pub use staging::{STAGED_BYTES_MAX, STAGED_FILES_MAX};
pub use sweep::{GARBAGE_MAX, Restored};
pub use upload::{
    InvalidUploadId, UPLOAD_AGE_MAX, UPLOAD_EMPTY_REST_MAX, UPLOAD_REST_MAX, UPLOADS_MAX, UPLOADS_PER_CLIENT_MAX,
    Upload, UploadError, UploadId,
};

use catalog::writer::{Change, Writer};
use catalog::{Pool, read, report, tags};
use disk::{Disk, Found};
use memory::{HeldBlob, HeldManifest, Memory, RepositoryId};
use sound::Sound;

use crate::clock::Clock;
use crate::names::{Origin, Repository};
use crate::oci::{Content, Descriptor, Digest, Manifest, Tag};

/// Room that fills leave on the disk, in bytes: the catalog and the audit file go on when it is full.
pub const ROOM_LEFT_BYTES: u64 = 64 << 20;
/// Most manifests that one look for missing parts visits, and most missing parts that it returns.
pub const MISSING_MAX: usize = 16_384;

/// Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    disk: Arc<Disk>,
    memory: Arc<Memory>,
    sound: Sound,
    readers: Pool,
    writer: Writer,
    clock: Clock,
    ages: age::Ages,
    room: room::Desk,
    closing: CancellationToken,
    check: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens (creates) the store in `data`: lock file `data/lock` (flock, holds pid), `data/blobs/<alg>/`, `data/staging/`, `data/catalog.sqlite`.
    /// It is free for another to open when [`Store::close`] is done and the last clone is dropped.
    pub async fn open(data: &Path, clock: Clock) -> Result<Self, StoreError> {
        Self::open_faulty(data, clock, Faults::default()).await
    }

    /// [`Store::open`] on a disk that fails on order.
    #[doc(hidden)]
    pub async fn open_faulty(data: &Path, clock: Clock, faults: Faults) -> Result<Self, StoreError> {
        hashed::check_hashes()?;
        let data = data.to_owned();
        let disk = blocking(move || {
            let disk = Disk::open(&data, faults)?;
            staging::tidy(&disk.staging());
            Ok(Arc::new(disk))
        });
        let disk = disk.await?;
        let began_empty = !disk.catalog().exists();
        let (connection, readers) = catalog::open(&disk.catalog()).await?;
        if began_empty && disk.has_blobs() {
            tracing::error!(
                "the catalog was missing and a new one was begun: what is in `blobs/` is not known any more; restore `catalog.sqlite` from a backup"
            );
        }
        let synced = disk.clone();
        blocking(move || synced.sync_names()).await?;
        let memory = Arc::new(Memory::new());
        let writer = Writer::start(connection, disk.clone(), memory.clone(), clock.clone());
        let ages = age::Ages::load(&readers, &writer, clock.clone()).await?;
        let (sound, closing, check) = (Sound::new(), CancellationToken::new(), Mutex::default());
        let room = room::Desk::default();
        let inner = Inner { disk, memory, sound, readers, writer, clock, ages, room, closing, check };
        let store = Self(Arc::new(inner));
        if let Err(why) = store.expire_uploads().await {
            tracing::error!(error = &why as &dyn std::error::Error, "uploads that nobody went on with stay");
        }
        // Not awaited: a start must not take longer for more blobs, and a reader finds out by itself.
        let check = tokio::spawn(check::at_start(Arc::downgrade(&store.0)));
        *store.0.check.lock().unwrap_or_else(PoisonError::into_inner) = Some(check);
        Ok(store)
    }

    // -- content. `repository` grants: content is readable in a repository only if it was kept or granted there (invariant 14).

    /// Creates or reopens the staged file for `digest` (rehashing what is there). Blocking. One at a time per digest.
    pub fn stage(&self, digest: &Digest) -> Result<Staged, StoreError> {
        Staged::open(&self.0.disk, digest)
    }

    /// Whether the disk has room for `bytes` more, and [`ROOM_LEFT_BYTES`] besides; [`StoreError::Full`] if not.
    pub fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.0.disk.check_room(bytes)
    }

    /// Records a blob that [`Staged::keep`] placed, grants it, and completes what was waiting for it: one transaction.
    pub async fn keep_blob(&self, repository: &Repository, blob: &KeptBlob) -> Result<(), StoreError> {
        let (repository, digest, size) = (repository.clone(), blob.digest, blob.size);
        self.0.writer.apply(Change::KeepBlob { repository, blob: digest, size, upload: None }).await?;
        self.0.note_sound(blob);
        Ok(())
    }

    /// Grants a blob that is kept already, and that upstream has there. `false`: it is not kept.
    pub async fn grant_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.grant(repository, digest, true).await
    }

    /// As [`Store::grant_blob`], for a client.
    pub async fn mount_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.grant(repository, digest, false).await
    }

    async fn grant(&self, repository: &Repository, digest: &Digest, filled: bool) -> Result<bool, StoreError> {
        if !self.has_blob(digest).await? {
            return Ok(false);
        }
        let filled = filled && repository.origin != Origin::Local;
        self.0.writer.apply(Change::GrantBlob { repository: repository.clone(), blob: *digest, filled }).await
    }

    /// [`StoreError::ReadOnly`] once a write to disk was lost: nothing more is taken in, and what is kept is served.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.0.disk.writable()
    }

    /// An error if the catalog cannot be read.
    pub async fn check_catalog(&self) -> Result<(), StoreError> {
        read::blob_size(&self.0.readers, &Digest::sha256(b"")).await.map(drop)
    }

    /// Whether the blob is kept at all, in whichever repository (never told to clients).
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        // Without its file it is not kept, whatever the catalog says; that spares the SQL for what is new.
        if let Found::Nothing = self.find(digest).await? {
            return Ok(false);
        }
        Ok(self.0.open_kept(digest).await?.is_some())
    }

    /// Opens a kept blob that `repository` may read: granted itself, or named by a manifest kept there. Hot: remembers open files and grants, bounded.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<KeptBlob>, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(None) };
        let (inner, key) = (&self.0, (id, *digest));
        if inner.memory.blob_grants.get(&key).is_none() {
            let (grant, held) = (inner.memory.blob_grants.ticket(&key), inner.memory.blobs.ticket(digest));
            let size = read::granted_blob_size(&inner.readers, id, digest).await?;
            let Some(size) = size else { return Ok(None) };
            inner.memory.blob_grants.fill(key, (), grant);
            if inner.memory.blobs.get(digest).is_none() {
                inner.memory.blobs.fill(*digest, Arc::new(HeldBlob::new(size)), held);
            }
        }
        inner.open_kept(digest).await
    }

    /// Size of the blob if a manifest kept in `repository` names it (kept or not): what a fill must come to.
    pub async fn expected_size(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(None) };
        read::expected_size(&self.0.readers, id, digest).await
    }

    /// A manifest kept in `repository`. Hot: from bounded memory, never waits for SQL once remembered.
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Arc<KeptManifest>>, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(None) };
        let (inner, key) = (&self.0, (id, *digest));
        if inner.memory.manifest_grants.get(&key).is_none() {
            let ticket = inner.memory.manifest_grants.ticket(&key);
            if !read::manifest_is_granted(&inner.readers, id, digest).await? {
                return Ok(None);
            }
            inner.memory.manifest_grants.fill(key, (), ticket);
        }
        let Some(held) = inner.load_manifest(digest).await? else { return Ok(None) };
        inner.memory.use_at(digest, held.used_ms(), inner.clock.now().as_millisecond());
        Ok(Some(held.kept.clone()))
    }

    /// Parts of the manifest (recursively for an index: only children that are kept) that are not kept. At most
    /// [`MISSING_MAX`], each once; none if the manifest itself is not kept in `repository`.
    pub async fn missing(&self, repository: &Repository, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(Vec::new()) };
        let (mut work, mut met, mut missing) = (vec![*digest], std::collections::HashSet::from([*digest]), Vec::new());
        let mut next = 0;
        while let Some(digest) = work.get(next).copied() {
            next += 1;
            let Some(kept) = self.manifest(repository, &digest).await? else { continue };
            let absent = read::missing(&self.0.readers, id, &digest).await?;
            let is_index = matches!(kept.manifest.content, Content::Index { .. });
            for part in kept.manifest.parts().filter(|part| is_index || absent.contains(&part.digest)) {
                if missing.len() >= MISSING_MAX || work.len() >= MISSING_MAX {
                    return Ok(missing);
                }
                if !part.foreign && met.insert(part.digest) {
                    if absent.contains(&part.digest) { missing.push(part.clone()) } else { work.push(part.digest) }
                }
            }
        }
        Ok(missing)
    }

    // -- tags

    /// What the tag names. Hot: from bounded memory once remembered.
    pub async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<Arc<TagRecord>>, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(None) };
        let (memory, key) = (&self.0.memory, (id, tag.clone()));
        if let Some(record) = memory.tags.get(&key) {
            return Ok(Some(record));
        }
        let ticket = memory.tags.ticket(&key);
        let Some(record) = tags::read(&self.0.readers, id, tag).await? else { return Ok(None) };
        let record = Arc::new(record);
        memory.tags.fill(key, record.clone(), ticket);
        Ok(Some(record))
    }

    /// Points the tag (one transaction; appends to its history when the digest changes) and sets `checked_at` to now.
    /// `false`: it stays as it is, because what a fill brings moves no tag that is pinned, or was pushed or imported.
    pub async fn point_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
        source: TagSource,
    ) -> Result<bool, StoreError> {
        let (repository, tag, digest) = (repository.clone(), tag.clone(), *digest);
        self.0.writer.apply(Change::PointTag { repository, tag, digest, source }).await
    }

    /// At most `limit` tags after `last`, in byte order.
    pub async fn tags(
        &self,
        repository: &Repository,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Tag>, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(Vec::new()) };
        tags::page(&self.0.readers, id, last, limit).await
    }

    /// Whether anything is kept in the repository.
    pub async fn has_repository(&self, repository: &Repository) -> Result<bool, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(false) };
        read::has_repository(&self.0.readers, id).await
    }

    // -- reports

    /// Tags in byte order, of one origin or all, in repositories whose name begins with `name_prefix`.
    pub async fn list(&self, origin: Option<&Origin>, name_prefix: Option<&str>) -> Result<Vec<TagLine>, StoreError> {
        report::list(&self.0.readers, origin, name_prefix).await
    }

    pub async fn totals(&self) -> Result<Totals, StoreError> {
        let staging = self.0.disk.staging();
        let staged_bytes =
            blocking(move || staging::size_bytes(&staging).map_err(|source| StoreError::io("list", &staging, source)));
        Ok(Totals { staged_bytes: staged_bytes.await?, ..report::totals(&self.0.readers).await? })
    }

    /// Holds every row against its file; what is missing or has the wrong length is reported and no longer kept.
    /// Returns how many. Runs by itself after the start.
    pub async fn check_files(&self) -> Result<u64, StoreError> {
        check::files(&self.0).await
    }

    /// Waits for the check that began with the start: what goes missing from now on is not its find.
    #[doc(hidden)]
    pub async fn start_is_over(&self) {
        let check = self.0.check.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(check) = check
            && let Err(why) = check.await
        {
            tracing::error!(error = %why, "the check of the kept files ended badly");
        }
    }

    /// Flushes what is written lazily (last use) and closes the catalog.
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.start_is_over().await;
        self.0.sound.ended().await;
        if let Err(why) = self.0.ages.note(&self.0.writer).await {
            tracing::warn!(error = %why, "how much time has passed could not be written: things grow old later");
        }
        // The writer last: the one that closes last folds the write-ahead log into the catalog.
        self.0.readers.close().await;
        self.0.writer.close().await;
    }

    async fn find(&self, digest: &Digest) -> Result<Found, StoreError> {
        self.0.find(digest).await
    }
}

impl Inner {
    async fn repository(&self, repository: &Repository) -> Result<Option<RepositoryId>, StoreError> {
        if let Some(id) = self.memory.repositories.get(repository) {
            return Ok(Some(id));
        }
        let id = read::repository(&self.readers, repository).await?;
        if let Some(id) = id {
            self.memory.repositories.insert(repository.clone(), id);
        }
        Ok(id)
    }

    async fn load_manifest(&self, digest: &Digest) -> Result<Option<Arc<HeldManifest>>, StoreError> {
        if let Some(held) = self.memory.manifests.get(digest) {
            return Ok(Some(held));
        }
        let ticket = self.memory.manifests.ticket(digest);
        let Some(row) = read::manifest(&self.readers, digest).await? else { return Ok(None) };
        let (disk, key) = (self.disk.clone(), *digest);
        let manifest = blocking(move || {
            let Some(bytes) = disk.read_verified(&key)? else { return Ok(None) };
            let parsed = Manifest::parse(bytes.into(), row.media_type, key.algorithm());
            parsed.map(Some).map_err(StoreError::catalog)
        });
        let Some(manifest) = manifest.await? else {
            self.lose(Change::LoseManifest { manifest: *digest, by: FoundBy::Read }).await;
            return Ok(None);
        };
        let held = Arc::new(HeldManifest::new(KeptManifest { manifest, complete: row.complete }));
        self.memory.manifests.fill(*digest, held.clone(), ticket);
        Ok(Some(held))
    }

    /// Opens a kept blob, whoever may read it.
    async fn open_kept(&self, digest: &Digest) -> Result<Option<KeptBlob>, StoreError> {
        let held = match self.memory.blobs.get(digest) {
            Some(held) => held,
            None => {
                let ticket = self.memory.blobs.ticket(digest);
                let Some(size) = read::blob_size(&self.readers, digest).await? else { return Ok(None) };
                let held = Arc::new(HeldBlob::new(size));
                self.memory.blobs.fill(*digest, held.clone(), ticket);
                held
            }
        };
        self.memory.use_at(digest, held.used_ms(), self.clock.now().as_millisecond());
        if let Some(file) = self.memory.files.get(digest) {
            return Ok(Some(KeptBlob { file, digest: *digest, size: held.size }));
        }
        let ticket = self.memory.files.ticket(digest);
        match self.find(digest).await? {
            Found::File(file, size) if size == held.size => {
                let file = Arc::new(file);
                self.memory.files.fill(*digest, file.clone(), ticket);
                Ok(Some(KeptBlob { file, digest: *digest, size }))
            }
            _ => {
                self.lose(Change::LoseBlob { blob: *digest, size: held.size, by: FoundBy::Read }).await;
                Ok(None)
            }
        }
    }

    async fn find(&self, digest: &Digest) -> Result<Found, StoreError> {
        if let Some(found) = self.disk.find_at_once(digest) {
            return Ok(found);
        }
        let (disk, digest) = (self.disk.clone(), *digest);
        blocking(move || disk.find(&digest)).await
    }

    /// Takes a row back whose file is gone. Whoever asked sees that it is not kept, whether or not this succeeds.
    async fn lose(&self, change: Change) {
        if let Err(why) = self.writer.apply(change.clone()).await {
            tracing::error!(error = %why, ?change, "content whose file is gone or wrong could not be struck off the catalog");
        }
    }
}

/// Runs what waits for the disk where no request waits behind it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(why) => match why.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(why) => Err(StoreError::catalog(why)),
        },
    }
}
