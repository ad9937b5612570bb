//! A file that is written front to back and hashed as it is written.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, OFlags, fadvise};

use super::StoreError;
use super::disk::Disk;
use super::faults::Step;
use crate::oci::{Algorithm, Digest, Hasher};

/// How much is written before the kernel is asked to begin writing it to disk, in bytes.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// Pieces in which what is in the file already is read to hash it, in bytes.
const REHASH_BYTES: usize = 1 << 20;

/// The file, how much of it counts, and the hash of that. Calls are blocking.
pub struct HashedFile {
    file: Arc<File>,
    path: PathBuf,
    hasher: Hasher,
    written: u64,
    /// Up to where write-back was begun.
    written_back: u64,
}

impl HashedFile {
    /// Opens the file at `path`, and with `create` makes it if it is missing. Nothing that is in it counts yet.
    pub fn open(path: PathBuf, create: bool, algorithm: Algorithm) -> Result<Self, StoreError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let file = options.open(&path).map_err(|source| StoreError::io("open", &path, source))?;
        Ok(Self { file: Arc::new(file), path, hasher: algorithm.hasher(), written: 0, written_back: 0 })
    }

    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// The length of the file, whatever of it counts.
    pub fn length(&self) -> Result<u64, StoreError> {
        let metadata = self.file.metadata();
        metadata.map(|found| found.len()).map_err(|source| StoreError::io("look at", &self.path, source))
    }

    /// Appends and hashes; starts write-back early so that the final fsync is short.
    pub fn write(&mut self, disk: &Disk, bytes: &[u8]) -> Result<(), StoreError> {
        disk.writable()?;
        let written = disk.step(Step::Write).and_then(|()| self.file.write_all_at(bytes, self.written));
        written.map_err(|source| StoreError::io("write", &self.path, source))?;
        self.hasher.update(bytes);
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
        self.hasher.clone().finish()
    }

    /// As [`HashedFile::digest_so_far`] under any algorithm: under another than the file's own it is read again.
    pub fn digest_as(&self, algorithm: Algorithm) -> Result<Digest, StoreError> {
        if algorithm == self.hasher.algorithm() {
            return Ok(self.digest_so_far());
        }
        let mut hasher = algorithm.hasher();
        let read = hash_up_to(&self.file, &mut hasher, self.written);
        match read.map_err(|source| StoreError::io("read", &self.path, source))? {
            read if read == self.written => Ok(hasher.finish()),
            _ => Err(StoreError::io("read", &self.path, io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// What is in the file counts, up to `length`.
    pub fn rehash(&mut self, length: u64) -> Result<(), StoreError> {
        let mut hasher = self.hasher.algorithm().hasher();
        let hashed = hash_up_to(&self.file, &mut hasher, length);
        let hashed = hashed.map_err(|source| StoreError::io("read", &self.path, source))?;
        self.resume(hasher, hashed);
        Ok(())
    }

    /// What is in the file up to `written` counts, and `hasher` has hashed that.
    pub fn resume(&mut self, hasher: Hasher, written: u64) {
        (self.hasher, self.written, self.written_back) = (hasher, written, written);
    }

    /// Cuts off what does not count: a write that failed half-way may have left bytes behind.
    pub fn trim(&self) -> Result<(), StoreError> {
        self.file.set_len(self.written).map_err(|source| StoreError::io("trim", &self.path, source))
    }
}

/// Returns how much there was to hash.
fn hash_up_to(file: &File, hasher: &mut Hasher, length: u64) -> io::Result<u64> {
    let mut piece = vec![0; REHASH_BYTES.min(length as usize)];
    let mut hashed = 0;
    while hashed < length {
        let wanted = piece.len().min((length - hashed) as usize);
        match file.read_at(&mut piece[..wanted], hashed)? {
            0 => break,
            read => {
                hasher.update(&piece[..read]);
                hashed += read as u64;
            }
        }
    }
    Ok(hashed)
}

impl std::fmt::Debug for HashedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HashedFile").field("path", &self.path).field("written", &self.written).finish_non_exhaustive()
    }
}

/// Known-answer test (FIPS 180-2, "abc"): a hash that is wrong on this machine would keep wrong bytes and lose right ones.
pub fn check_hashes() -> Result<(), StoreError> {
    let answers = [
        (Algorithm::Sha256, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            Algorithm::Sha512,
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
    ];
    for (algorithm, answer) in answers {
        let computed = Digest::of(algorithm, b"abc");
        if computed.to_string() != answer {
            let why = "the hash of a known text is wrong on this machine";
            return Err(StoreError::refused("trust", &computed, io::ErrorKind::InvalidData, why));
        }
    }
    Ok(())
}
