//! One fill's file in `staging/`: written front to back, hashed as it is written, and then kept or left.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError};

use super::disk::{Disk, remove};
use super::hashed::HashedFile;
use super::{KeepError, KeptBlob, StoreError};
use crate::oci::Digest;

/// One fill's file in `staging/`: written front to back, hashed as it is written. Exclusive per digest.
/// Calls are blocking (write(2), no fsync): `write` is called from `spawn_blocking` or a worker thread of the fill.
/// Dropping it leaves the file, as [`Staged::leave`] does.
#[derive(Debug)]
pub struct Staged {
    claim: Claim,
    hashed: HashedFile,
}

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
        let hashed = HashedFile::open(disk.staged(digest), true, digest.algorithm())?;
        let mut staged = Self { claim, hashed };
        let length = staged.hashed.length()?;
        if let Err(why) = staged.hashed.rehash(length) {
            tracing::warn!(%digest, error = %why, "what an earlier fill left cannot be read; it begins again");
            staged.restart()?;
        }
        Ok(staged)
    }

    /// Bytes written so far; after [`Store::stage`](super::Store::stage) of an earlier, unfinished fill, not 0.
    pub fn written(&self) -> u64 {
        self.hashed.written()
    }

    /// The file, for readers that follow.
    pub fn file(&self) -> &Arc<File> {
        self.hashed.file()
    }

    /// Appends and hashes; starts write-back early so that the final fsync is short.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hashed.write(&self.claim.disk, bytes)
    }

    /// The digest of what was written so far, without ending it.
    pub fn digest_so_far(&self) -> Digest {
        self.hashed.digest_so_far()
    }

    /// Back to nothing: upstream began again from 0, or the bytes were wrong.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.hashed.resume(self.claim.digest.algorithm().hasher(), 0);
        self.hashed.trim()
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
        self.hashed.trim()?;
        self.claim.disk.place(self.hashed.file(), self.hashed.path(), &expected)?;
        Ok(KeptBlob { file: self.hashed.file().clone(), digest: expected, size: self.hashed.written() })
    }

    /// Leaves the written part in `staging/` for a later [`Store::stage`](super::Store::stage) (also after a restart).
    pub fn leave(self) {}

    /// Removes it.
    pub fn discard(self) {
        remove(self.hashed.path());
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
