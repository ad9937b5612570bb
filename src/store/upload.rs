//! Uploads: what clients bring, piece by piece, until its digest is told and right.
//!
//! An upload is a row in the catalog and a file in `staging/`. The row says how many bytes are durable and what the
//! hash had come to after them, so that a restart goes on without reading them again. What the file has beyond that
//! does not count; a file that has less is no upload any more.

use std::collections::hash_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError};

use jiff::SignedDuration;
use rustix::rand::{GetRandomFlags, getrandom};

use super::catalog::read;
use super::catalog::uploads::{self, UploadChange, UploadRow};
use super::catalog::writer::Change;
use super::disk::{Disk, Found, remove};
use super::hashed::HashedFile;
use super::{Inner, KeepError, KeptBlob, Store, StoreError, blocking, staging};
use crate::names::Repository;
use crate::oci::{Algorithm, Digest};

/// Most uploads at once.
pub const UPLOADS_MAX: usize = 1024;
/// An upload that was untouched for longer is removed.
pub const UPLOAD_AGE_MAX: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Most uploads of one owner from one address. Behind one address may stand many clients.
pub const UPLOADS_PER_CLIENT_MAX: usize = 256;
/// Where there are as many as there may be, the longest untouched without bytes makes room for a new one if it was
/// untouched for longer.
pub const UPLOAD_EMPTY_REST_MAX: SignedDuration = SignedDuration::from_mins(1);
/// As [`UPLOAD_EMPTY_REST_MAX`], with bytes.
pub const UPLOAD_REST_MAX: SignedDuration = SignedDuration::from_hours(1);

/// Files that are looked at, the newest first, for the bytes of an upload that was being finished in a crash.
const LOOKED_AT_MAX: usize = 10_000;
/// Those of them, unknown to the catalog, that are read.
const FETCHED_BACK_FROM_MAX: usize = 16;

/// Names an upload; 128 random bits as hex, from the operating system.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UploadId([u8; 16]);

/// Why a text is not an upload's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an upload is named by 32 lower-case hexadecimal digits")]
pub struct InvalidUploadId;

/// Why there is no upload to go on with.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Also where it is another repository's or another owner's.
    #[error("there is no such upload")]
    Unknown,
    #[error("another request writes to this upload")]
    Busy,
    #[error("{UPLOADS_MAX} uploads are under way, or {UPLOADS_PER_CLIENT_MAX} of one client")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An upload that is written to; nobody else opens it meanwhile. Dropping it forgets what was written since it was
/// opened.
pub struct Upload {
    inner: Arc<Inner>,
    claim: Claim,
    repository: Repository,
    hashed: HashedFile,
    /// Bytes that it had when it was opened.
    written_before: u64,
}

/// The right to touch an upload's file; given back when dropped.
#[derive(Debug)]
struct Claim {
    disk: Arc<Disk>,
    id: UploadId,
}

impl Store {
    /// Begins an upload into `repository` for `owner` (a login, or "" for anonymous) at the address `client`.
    /// `algorithm`: what the client says its digest will be of.
    pub async fn begin_upload(
        &self,
        repository: &Repository,
        owner: &str,
        client: IpAddr,
        algorithm: Option<Algorithm>,
    ) -> Result<UploadId, UploadError> {
        let id = UploadId::random()?;
        let hasher = algorithm.unwrap_or(Algorithm::Sha256).hasher();
        let begin = UploadChange::Begin {
            id,
            repository: repository.clone(),
            owner: owner.to_owned(),
            client: client.to_string(),
            row: UploadRow { size: 0, algorithm: hasher.algorithm(), state: hasher.state() },
        };
        let begin = Change::Upload(begin);
        if self.0.writer.apply(begin.clone()).await? {
            return Ok(id);
        }
        // Clients that were killed leave uploads behind; they must not stop everybody else for days.
        let began = self.0.make_room(owner, client).await? && self.0.writer.apply(begin).await?;
        if began { Ok(id) } else { Err(UploadError::TooMany) }
    }

    /// Opens it for writing; exclusive. Unknown also when it is another repository's or another owner's.
    pub async fn open_upload(
        &self,
        repository: &Repository,
        owner: &str,
        id: &UploadId,
    ) -> Result<Upload, UploadError> {
        let (inner, id) = (self.0.clone(), *id);
        // First of all: whether another writes to it is not for everybody to know.
        uploads::read(&inner.readers, repository, owner, &id).await?.ok_or(UploadError::Unknown)?;
        let claim = Claim::take(&inner.disk, id).ok_or(UploadError::Busy)?;
        let (claim, hashed) = inner.reopen(claim, repository, owner).await?;
        let written_before = hashed.written();
        Ok(Upload { inner, claim, repository: repository.clone(), hashed, written_before })
    }

    /// Bytes that it has so far, without opening it; not what another request writes just now.
    pub async fn upload_size(&self, repository: &Repository, owner: &str, id: &UploadId) -> Result<u64, UploadError> {
        let row = uploads::read(&self.0.readers, repository, owner, id).await?.ok_or(UploadError::Unknown)?;
        let path = self.0.disk.upload(id);
        // While another request writes to it, its file may just have become a blob's.
        if row.size > 0
            && !blocking(move || Ok(path.exists())).await?
            && let Some(claim) = Claim::take(&self.0.disk, *id)
        {
            return self.0.reopen(claim, repository, owner).await.map(|(_, hashed)| hashed.written());
        }
        Ok(row.size)
    }

    /// Removes it and what it has.
    pub async fn cancel_upload(&self, repository: &Repository, owner: &str, id: &UploadId) -> Result<(), UploadError> {
        uploads::read(&self.0.readers, repository, owner, id).await?.ok_or(UploadError::Unknown)?;
        let claim = Claim::take(&self.0.disk, *id).ok_or(UploadError::Busy)?;
        if self.0.end(claim, None).await? { Ok(()) } else { Err(UploadError::Unknown) }
    }

    /// Removes uploads that were untouched for [`UPLOAD_AGE_MAX`], and files whose upload ended; returns how many
    /// uploads. Runs by itself at the start.
    pub async fn expire_uploads(&self) -> Result<u64, StoreError> {
        let expired = self.0.remove_untouched(UPLOAD_AGE_MAX, UPLOADS_MAX).await?;
        let staging = self.0.disk.staging();
        let files = blocking(move || staging::uploads(&staging).map_err(|why| StoreError::io("list", &staging, why)));
        // In this order: an upload has its row before its file.
        let (files, rows) = (files.await?, uploads::ids(&self.0.readers).await?);
        for id in files.iter().filter(|id| !rows.contains(id)) {
            if let Some(claim) = Claim::take(&self.0.disk, *id) {
                claim.remove_file().await?;
            }
        }
        Ok(expired)
    }
}

impl Inner {
    /// Opens an upload's file as its row says. An upload that was being finished when the process or the commit failed
    /// has no file any more: a blob's name has it, which means nothing without a row. Its bytes are fetched back from
    /// there. Where there are none, it is given up.
    async fn reopen(
        &self,
        claim: Claim,
        repository: &Repository,
        owner: &str,
    ) -> Result<(Claim, HashedFile), UploadError> {
        let row = uploads::read(&self.readers, repository, owner, &claim.id).await?.ok_or(UploadError::Unknown)?;
        let (disk, id) = (self.disk.clone(), claim.id);
        let path = disk.upload(&id);
        if row.size > 0 && !blocking(move || Ok(path.exists())).await? {
            self.fetch_back(&id, &row).await?;
        }
        if let Some(hashed) = blocking(move || resume(&disk, &id, &row)).await? {
            return Ok((claim, hashed));
        }
        tracing::warn!(upload = %id, "the file of an upload is shorter than it was: it is given up");
        self.end(claim, None).await?;
        Err(UploadError::Unknown)
    }

    /// Looks among the newest files that the catalog does not know for one that begins with the bytes of this upload,
    /// and copies those: nobody else writes to a file that has a blob's name.
    async fn fetch_back(&self, id: &UploadId, row: &UploadRow) -> Result<(), StoreError> {
        let (disk, size) = (self.disk.clone(), row.size);
        let mut files = blocking(move || disk.files()).await?;
        files.retain(|(_, length, _)| *length >= size);
        files.sort_by_key(|(.., changed)| std::cmp::Reverse(*changed));
        let mut tried = 0;
        for (digest, ..) in files.into_iter().take(LOOKED_AT_MAX) {
            if tried == FETCHED_BACK_FROM_MAX {
                break;
            }
            if read::is_known(&self.readers, &digest).await? {
                continue;
            }
            tried += 1;
            let (disk, id, row) = (self.disk.clone(), *id, row.clone());
            if blocking(move || copy_back(&disk, &digest, &id, &row)).await? {
                tracing::info!(upload = %id, %digest, "an upload that was broken off while it was finished goes on");
                return Ok(());
            }
        }
        Ok(())
    }

    /// Ends one upload so that there is room for another of this client's. `false`: there is none that may go.
    async fn make_room(&self, owner: &str, client: IpAddr) -> Result<bool, StoreError> {
        let before = |rest: SignedDuration| {
            self.ages.before(rest.unsigned_abs()).map_or(i64::MIN, |before| before.as_millisecond())
        };
        let (empty, rest) = (before(UPLOAD_EMPTY_REST_MAX), before(UPLOAD_REST_MAX));
        for (id, touched_ms) in uploads::in_the_way(&self.readers, owner, &client.to_string(), empty, rest).await? {
            // One that is written to stays, empty or not.
            if let Some(claim) = Claim::take(&self.disk, id)
                && self.end(claim, Some(touched_ms)).await?
            {
                tracing::info!(upload = %id, "an upload that nobody went on with makes room for another");
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends at most `limit` uploads that nobody writes to and that were untouched for `age`, by time that was seen to pass.
    async fn remove_untouched(&self, age: SignedDuration, limit: usize) -> Result<u64, StoreError> {
        let Some(before) = self.ages.before(age.unsigned_abs()) else { return Ok(0) };
        let (before_ms, mut removed) = (before.as_millisecond(), 0);
        for id in uploads::untouched(&self.readers, before_ms).await? {
            if removed == limit as u64 {
                break;
            }
            if let Some(claim) = Claim::take(&self.disk, id)
                && self.end(claim, Some(before_ms)).await?
            {
                tracing::info!(upload = %id, "an unfinished upload that nobody went on with is removed");
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Ends an upload: its row first, so that what is left of it after a crash is a file that nobody knows. With a
    /// time, only if it was untouched since. `false`: there is no such upload.
    async fn end(&self, claim: Claim, untouched_since_ms: Option<i64>) -> Result<bool, StoreError> {
        let change = UploadChange::End { id: claim.id, untouched_since_ms };
        let ended = self.writer.apply(Change::Upload(change)).await?;
        if ended {
            claim.remove_file().await?;
        }
        Ok(ended)
    }
}

impl Upload {
    pub fn id(&self) -> UploadId {
        self.claim.id
    }

    /// Bytes that it has so far.
    pub fn written(&self) -> u64 {
        self.hashed.written()
    }

    /// Appends and hashes; starts write-back early. Blocking: write(2), no fsync.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hashed.write(&self.claim.disk, bytes)
    }

    /// Makes what it has durable, and records how much that is and what its hash has come to. Goes on when the caller
    /// gives up.
    pub async fn leave(self) -> Result<(), StoreError> {
        finished(tokio::spawn(self.record()).await)
    }

    /// Verifies what it has against `digest`, makes it durable under that, records it and makes it readable in its
    /// repository: as [`Staged::keep`](super::Staged::keep) and [`Store::keep_blob`]. Where the digest is wrong the
    /// upload is removed. Goes on when the caller gives up.
    pub async fn keep(self, digest: &Digest) -> Result<KeptBlob, KeepError> {
        let digest = *digest;
        finished(tokio::spawn(self.place(digest)).await)
    }

    async fn record(self) -> Result<(), StoreError> {
        let Self { inner, claim, hashed, written_before, .. } = self;
        let (written, hasher) = (hashed.written(), hashed.hasher().clone());
        let claim = blocking(move || {
            hashed.trim()?;
            if written > written_before {
                // Where this fails, the row says what was durable before, and the rest is cut off by who opens it next.
                claim.disk.sync_staged(hashed.file(), hashed.path())?;
            }
            if written_before == 0 && written > 0 {
                claim.disk.sync_staging()?;
            }
            Ok(claim)
        });
        // Nobody else writes to it before its row is right.
        let claim = claim.await?;
        let row = UploadRow { size: written, algorithm: hasher.algorithm(), state: hasher.state() };
        inner.writer.apply(Change::Upload(UploadChange::Leave { id: claim.id, row })).await.map(drop)
    }

    async fn place(self, expected: Digest) -> Result<KeptBlob, KeepError> {
        let Self { inner, claim, repository, hashed, .. } = self;
        claim.names(expected);
        let disk = inner.disk.clone();
        let placed = blocking(move || {
            let actual = hashed.digest_as(expected.algorithm())?;
            let kept = KeptBlob { file: hashed.file().clone(), digest: expected, size: hashed.written() };
            if actual == expected {
                hashed.trim()?;
                disk.sync_staged(hashed.file(), hashed.path())?;
                disk.name(hashed.path(), &expected)?;
            }
            Ok((actual, kept))
        });
        let (actual, kept) = placed.await?;
        if actual != expected {
            if let Err(why) = inner.end(claim, None).await {
                tracing::error!(
                    error = &why as &dyn std::error::Error,
                    "an upload of wrong bytes could not be removed"
                );
            }
            return Err(KeepError::WrongBytes { expected, actual });
        }
        let keep = Change::KeepBlob { repository, blob: expected, size: kept.size, upload: Some(claim.id) };
        inner.writer.apply(keep).await?;
        inner.note_sound(&kept);
        Ok(kept)
    }
}

/// Copies the first bytes of the file of `digest` to where the upload's should be, if they are its own: they must hash
/// to what its row says, so that nobody finishes an upload with what somebody else has sent (invariant 14). Blocking.
fn copy_back(disk: &Disk, digest: &Digest, id: &UploadId, row: &UploadRow) -> Result<bool, StoreError> {
    disk.writable()?;
    let (Found::File(file, _), Some(expected)) = (disk.find(digest)?, row.algorithm.resume(&row.state)) else {
        return Ok(false);
    };
    disk.check_room(row.size)?;
    // No name that anything else looks for: what a crash leaves of it goes at the start.
    let path = disk.upload(id).with_extension("part");
    let mut copy = HashedFile::open(path.clone(), true, row.algorithm)?;
    let (mut piece, mut left) = (vec![0; 1 << 20], row.size);
    while left > 0 {
        let wanted = left.min(piece.len() as u64) as usize;
        let read = file.read_exact_at(&mut piece[..wanted], copy.written());
        read.map_err(|source| StoreError::io("read", &disk.blob(digest), source))?;
        copy.write(disk, &piece[..wanted])?;
        left -= wanted as u64;
    }
    if copy.digest_so_far() != expected.finish() {
        remove(&path);
        return Ok(false);
    }
    copy.trim()?;
    disk.sync_staged(copy.file(), &path)?;
    let (from, to) = (&path, disk.upload(id));
    std::fs::rename(from, &to).map_err(|source| StoreError::io("rename to", &to, source))?;
    disk.sync_staging()?;
    Ok(true)
}

/// The file as the row says; `None` if it has less. Blocking.
fn resume(disk: &Disk, id: &UploadId, row: &UploadRow) -> Result<Option<HashedFile>, StoreError> {
    disk.writable()?;
    let path = disk.upload(id);
    if row.size > 0 && !path.exists() {
        return Ok(None);
    }
    let mut hashed = HashedFile::open(path, row.size == 0, row.algorithm)?;
    let length = hashed.length()?;
    if length < row.size {
        return Ok(None);
    }
    match row.algorithm.resume(&row.state) {
        Some(hasher) => hashed.resume(hasher, row.size),
        // Another version of the hash's code wrote it.
        None => hashed.rehash(row.size)?,
    }
    if length > row.size {
        hashed.trim()?;
    }
    Ok(Some(hashed))
}

/// The outcome of a task that is awaited; its panic goes on here.
fn finished<T, E: From<StoreError>>(outcome: Result<Result<T, E>, tokio::task::JoinError>) -> Result<T, E> {
    match outcome {
        Ok(outcome) => outcome,
        Err(why) => match why.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(why) => Err(StoreError::catalog(why).into()),
        },
    }
}

impl Claim {
    fn take(disk: &Arc<Disk>, id: UploadId) -> Option<Self> {
        let mut open = disk.uploads_open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.entry(id) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(None);
                Some(Self { disk: disk.clone(), id })
            }
        }
    }

    /// Its file is about to get the name of `digest`, and nobody else is to take that away before its row is there.
    fn names(&self, digest: Digest) {
        self.disk.uploads_open.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id, Some(digest));
    }

    async fn remove_file(self) -> Result<(), StoreError> {
        blocking(move || {
            remove(&self.disk.upload(&self.id));
            Ok(())
        })
        .await
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.disk.uploads_open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl UploadId {
    fn random() -> Result<Self, StoreError> {
        let mut bits = [0; 16];
        // So few bytes come whole, and only before the system has gathered its first randomness are they waited for.
        match getrandom(&mut bits, GetRandomFlags::empty()) {
            Ok(16) => Ok(Self(bits)),
            Ok(_) => Err(StoreError::catalog("the system gave too few random bits")),
            Err(errno) => Err(StoreError::catalog(std::io::Error::from(errno))),
        }
    }
}

impl FromStr for UploadId {
    type Err = InvalidUploadId;

    fn from_str(text: &str) -> Result<Self, InvalidUploadId> {
        let mut bits = [0; 16];
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(InvalidUploadId);
        }
        hex::decode_to_slice(text, &mut bits).map_err(|_| InvalidUploadId)?;
        Ok(Self(bits))
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("id", &self.claim.id).field("hashed", &self.hashed).finish_non_exhaustive()
    }
}
