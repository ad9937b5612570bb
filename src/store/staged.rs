//! One fill's file in `staging/`: written front to back, hashed as it is written, and then kept or left.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use rustix::fs::{Advice, OFlags, fadvise};

use super::disk::{Disk, remove};
use super::faults::Step;
use super::{KeepError, KeptBlob, StoreError};
use crate::oci::{Digest, Hasher};

/// How much is written before the kernel is asked to begin writing it to disk, in bytes.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// Pieces in which an earlier fill's file is read to hash it again, in bytes.
const REHASH_BYTES: usize = 1 << 20;

/// One fill's file in `staging/`: written front to back, hashed as it is written. Exclusive per digest.
/// Calls are blocking (write(2), no fsync): `write` is called from `spawn_blocking` or a worker thread of the fill.
/// Dropping it leaves the file, as [`Staged::leave`] does.
#[derive(Debug)]
pub struct Staged {
    claim: Claim,
    file: Arc<File>,
    path: PathBuf,
    hasher: Hashing,
    written: u64,
    /// Up to where write-back was begun.
    written_back: u64,
}

struct Hashing(Hasher);

/// The right to fill a digest; given back when dropped.
#[derive(Debug)]
struct Claim {
    disk: Arc<Disk>,
    digest: Digest,
}

impl Staged {
    /// Creates or reopens the file for `digest`; what an earlier fill left in it is hashed again. Whether that is
    /// right shows in the end, when the whole is verified.
    pub(super) fn open(disk: &Arc<Disk>, digest: &Digest) -> Result<Self, StoreError> {
        disk.writable()?;
        let claim = Claim::take(disk, digest)?;
        let path = disk.staged(digest);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let file = options.open(&path).map_err(|source| StoreError::io("open", &path, source))?;
        let hasher = Hashing(digest.algorithm().hasher());
        let mut staged = Self { claim, file: Arc::new(file), path, hasher, written: 0, written_back: 0 };
        if let Err(why) = staged.rehash() {
            tracing::warn!(%digest, error = %why, "what an earlier fill left cannot be read; it begins again");
            staged.restart()?;
        }
        Ok(staged)
    }

    /// Bytes written so far; after [`Store::stage`](super::Store::stage) of an earlier, unfinished fill, not 0.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The file, for readers that follow.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Appends and hashes; starts write-back early so that the final fsync is short.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let disk = &self.claim.disk;
        disk.writable()?;
        let written = disk.step(Step::Write).and_then(|()| self.file.write_all_at(bytes, self.written));
        written.map_err(|source| StoreError::io("write", &self.path, source))?;
        self.hasher.0.update(bytes);
        self.written += bytes.len() as u64;
        if self.written - self.written_back >= WRITE_BACK_BYTES {
            // There is no safe `sync_file_range`. This advice begins write-back without waiting for it (Linux
            // `mm/fadvise.c`), and pages that are dirty or under way stay in memory for the readers.
            let length = NonZero::new(self.written - self.written_back);
            if let Err(why) = fadvise(&self.file, self.written_back, length, Advice::DontNeed) {
                tracing::debug!(error = %why, "write-back is left to the kernel");
            }
            self.written_back = self.written;
        }
        Ok(())
    }

    /// The digest of what was written so far, without ending it.
    pub fn digest_so_far(&self) -> Digest {
        self.hasher.0.clone().finish()
    }

    /// Back to nothing: upstream began again from 0, or the bytes were wrong.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(|source| StoreError::io("empty", &self.path, source))?;
        self.hasher = Hashing(self.claim.digest.algorithm().hasher());
        (self.written, self.written_back) = (0, 0);
        Ok(())
    }

    /// Verifies, fsyncs, renames to `blobs/<alg>/<hex>`, fsyncs the folder. Blocking. The catalog row is the caller's
    /// next step ([`Store::keep_blob`](super::Store::keep_blob)).
    #[expect(clippy::result_large_err, reason = "two digests, once per fill, on the way that fails")]
    pub fn keep(self) -> Result<KeptBlob, KeepError> {
        let (expected, actual) = (self.claim.digest, self.digest_so_far());
        if actual != expected {
            self.discard();
            return Err(KeepError::WrongBytes { expected, actual });
        }
        // A write that failed half-way may have left bytes behind the ones that count.
        self.file.set_len(self.written).map_err(|source| StoreError::io("trim", &self.path, source))?;
        self.claim.disk.place(&self.file, &self.path, &expected)?;
        Ok(KeptBlob { file: self.file, digest: expected, size: self.written })
    }

    /// Leaves the written part in `staging/` for a later [`Store::stage`](super::Store::stage) (also after a restart).
    pub fn leave(self) {}

    /// Removes it.
    pub fn discard(self) {
        remove(&self.path);
    }

    fn rehash(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut piece = vec![0; REHASH_BYTES.min(length as usize)];
        while self.written < length {
            let read = self.file.read_at(&mut piece, self.written)?;
            if read == 0 {
                break;
            }
            self.hasher.0.update(&piece[..read]);
            self.written += read as u64;
        }
        self.written_back = self.written;
        Ok(())
    }
}

impl Claim {
    fn take(disk: &Arc<Disk>, digest: &Digest) -> Result<Self, StoreError> {
        if disk.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest) {
            return Ok(Self { disk: disk.clone(), digest: *digest });
        }
        let why = "it is being filled already";
        Err(StoreError::refused("stage", digest, io::ErrorKind::AlreadyExists, why))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.disk.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}

impl std::fmt::Debug for Hashing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hashing")
    }
}
