//! The data folder: what makes a file durable, in which order, and what happens when the disk refuses.
//!
//! 1. A blob gets its name only after its bytes were hashed and its file was fsynced (invariant 2).
//! 2. A name counts only after its folder was fsynced (invariant 6); the catalog row comes after that.
//! 3. A failed fsync is never tried again: the kernel may have dropped the pages and would say that all is well. The
//!    store takes nothing more in, and the file is removed, so that no later start trusts what the page cache shows.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::faults::{Faults, Step};
use super::lock::{Lock, lock};
use super::{ROOM_LEFT_BYTES, StoreError, UploadId};
use crate::oci::{Algorithm, Digest, MANIFEST_SIZE_MAX};

/// What the names of uploads' files in `staging/` begin with.
pub const UPLOAD_PREFIX: &str = "upload-";

/// The folders of a store, and whether they may still be written to.
#[derive(Debug)]
pub struct Disk {
    data: PathBuf,
    sha256: File,
    sha512: File,
    /// Digests that have a [`Staged`](super::Staged) now.
    pub(super) claimed: Mutex<HashSet<Digest>>,
    /// Uploads that are written to, or removed, now; with the digest under which one is being kept.
    pub(super) uploads_open: Mutex<HashMap<UploadId, Option<Digest>>>,
    manifests_staged: AtomicU64,
    read_only: AtomicBool,
    faults: Faults,
    _lock: Lock,
}

/// What is found under a digest's name.
#[derive(Debug)]
pub enum Found {
    File(File, u64),
    Nothing,
}

impl Disk {
    /// Takes the lock of `data` and makes what is missing in it. Blocking.
    pub fn open(data: &Path, faults: Faults) -> Result<Self, StoreError> {
        create_folder(data)?;
        let lock = lock(data)?;
        create_folder(&data.join("staging"))?;
        let folder = |algorithm: Algorithm| {
            let path = data.join("blobs").join(algorithm.as_str());
            create_folder(&path)?;
            File::open(&path).map_err(|source| StoreError::io("open", &path, source))
        };
        let (sha256, sha512) = (folder(Algorithm::Sha256)?, folder(Algorithm::Sha512)?);
        // A start that was killed may have made a folder and not yet made it durable.
        sync_folder(&data.join("blobs"))?;
        sync_folder(data)?;
        Ok(Self {
            data: data.to_owned(),
            sha256,
            sha512,
            claimed: Mutex::default(),
            uploads_open: Mutex::default(),
            manifests_staged: AtomicU64::new(0),
            read_only: AtomicBool::new(false),
            faults,
            _lock: lock,
        })
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Makes a folder in the data folder that only some stores have.
    pub(super) fn make_folder(&self, name: &str) -> Result<(), StoreError> {
        create_folder(&self.data.join(name))
    }

    pub fn catalog(&self) -> PathBuf {
        self.data.join("catalog.sqlite")
    }

    pub fn staging(&self) -> PathBuf {
        self.data.join("staging")
    }

    pub fn staged(&self, digest: &Digest) -> PathBuf {
        self.staging().join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    pub fn upload(&self, id: &UploadId) -> PathBuf {
        self.staging().join(format!("{UPLOAD_PREFIX}{id}"))
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.data.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Fails once a write to disk was lost.
    pub fn writable(&self) -> Result<(), StoreError> {
        if self.read_only.load(Ordering::Acquire) { Err(StoreError::ReadOnly) } else { Ok(()) }
    }

    /// Takes nothing more in from now on.
    pub fn turn_read_only(&self, why: &(dyn std::error::Error + 'static)) {
        if !self.read_only.swap(true, Ordering::AcqRel) {
            tracing::error!(error = why, "a write to disk was lost: the store is read-only until sealock is restarted");
        }
    }

    /// Whether any content lies in `blobs/`, known or not.
    pub fn has_blobs(&self) -> bool {
        let folders = Algorithm::ALL.map(|algorithm| self.data.join("blobs").join(algorithm.as_str()));
        folders.iter().any(|folder| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()))
    }

    /// See [`Store::check_room`](super::Store::check_room).
    pub fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let staging = self.staging();
        self.step(Step::Room).map_err(|source| StoreError::io("look for room in", &staging, source))?;
        if self.free_bytes()? >= bytes.saturating_add(ROOM_LEFT_BYTES) {
            return Ok(());
        }
        Err(StoreError::Full(rustix::io::Errno::NOSPC.into()))
    }

    /// Bytes that are free for us on the file system.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let staging = self.staging();
        let free =
            rustix::fs::statvfs(&staging).map_err(|why| StoreError::io("look for room in", &staging, why.into()))?;
        Ok(free.f_bavail.saturating_mul(free.f_frsize))
    }

    /// What is being filled, or kept from an upload, now.
    pub fn in_use(&self) -> Vec<Digest> {
        let filled = self.claimed.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect::<Vec<_>>();
        let uploads = self.uploads_open.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.values().flatten().copied().chain(filled).collect()
    }

    pub fn step(&self, step: Step) -> io::Result<()> {
        self.faults.pass(step)
    }

    /// Most pages that the catalog may have, where a test says so.
    pub fn catalog_pages_max(&self) -> Option<u32> {
        self.faults.catalog_pages_max()
    }

    /// Where the catalog's commit would fail; like SQLite's own errors, a full disk can be mended and the rest cannot.
    pub fn step_of_commit(&self) -> Result<(), StoreError> {
        let Err(source) = self.step(Step::Commit) else { return Ok(()) };
        if source.kind() != io::ErrorKind::StorageFull {
            self.turn_read_only(&source);
        }
        Err(StoreError::io("commit to", &self.catalog(), source))
    }

    /// Makes the bytes of `file`, staged at `staged`, durable. Blocking. Where it fails, what was not durable before
    /// must not be believed: the page cache shows what the disk does not have.
    pub fn sync_staged(&self, file: &File, staged: &Path) -> Result<(), StoreError> {
        self.writable()?;
        let synced = self.step(Step::SyncFile).and_then(|()| file.sync_data());
        synced.map_err(|source| {
            self.turn_read_only(&source);
            StoreError::io("fsync", staged, source)
        })
    }

    /// Makes the names in `staging/` durable. Blocking.
    pub fn sync_staging(&self) -> Result<(), StoreError> {
        let staging = self.staging();
        let synced = self.step(Step::SyncFolder).and_then(|()| File::open(&staging)?.sync_all());
        synced.map_err(|source| {
            self.turn_read_only(&source);
            StoreError::io("fsync", &staging, source)
        })
    }

    /// Makes `file`, staged at `staged`, durable and gives it the name of `digest`, of which its bytes must be
    /// verified. A file that could not be made durable is removed.
    pub fn place(&self, file: &File, staged: &Path, digest: &Digest) -> Result<(), StoreError> {
        self.sync_staged(file, staged).inspect_err(|_| remove(staged))?;
        self.name(staged, digest)
    }

    /// Gives the file staged at `staged`, whose bytes must be verified and durable, the name of `digest`. Blocking.
    pub fn name(&self, staged: &Path, digest: &Digest) -> Result<(), StoreError> {
        let blob = self.blob(digest);
        let renamed = self.step(Step::Rename).and_then(|()| fs::rename(staged, &blob));
        renamed.map_err(|source| StoreError::io("rename to", &blob, source))?;
        let synced = self.step(Step::SyncFolder).and_then(|()| self.folder(digest).sync_all());
        synced.map_err(|source| {
            self.turn_read_only(&source);
            StoreError::io("fsync the folder of", &blob, source)
        })
    }

    /// Makes `bytes`, which must be verified, durable under `digest`. Blocking.
    pub fn place_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        self.writable()?;
        // Two repositories may keep the same manifest at once, so each writes a file of its own.
        let number = self.manifests_staged.fetch_add(1, Ordering::Relaxed);
        let staged = self.staged(digest).with_extension(format!("manifest-{number}"));
        let written = self.step(Step::Write).and_then(|()| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&staged)?;
            file.write_all(bytes)?;
            Ok(file)
        });
        let placed = match written {
            Ok(file) => self.place(&file, &staged, digest),
            Err(source) => Err(StoreError::io("write", &staged, source)),
        };
        if placed.is_err() {
            remove(&staged);
        }
        placed
    }

    /// The bytes under `digest`, if they are there and hash to it; `None` if not. For manifests. Blocking.
    pub fn read_verified(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let Found::File(file, size) = self.find(digest)? else { return Ok(None) };
        if size > MANIFEST_SIZE_MAX {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(size as usize);
        let read = file.take(MANIFEST_SIZE_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|source| StoreError::io("read", &self.blob(digest), source))?;
        Ok((Digest::of(digest.algorithm(), &bytes) == *digest).then_some(bytes))
    }

    /// Whether the manifest under `digest` is there and hashes to it. Blocking.
    pub fn is_intact(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.read_verified(digest)?.is_some())
    }

    /// Makes the names in the data folder itself durable. Blocking.
    pub fn sync_names(&self) -> Result<(), StoreError> {
        sync_folder(&self.data)
    }

    /// Opens what is kept under `digest`. Blocking.
    pub fn find(&self, digest: &Digest) -> Result<Found, StoreError> {
        self.open_blob(digest, ResolveFlags::empty())
            .map_err(|source| StoreError::io("open", &self.blob(digest), source.into()))
    }

    /// As [`Disk::find`], but `None` where that could wait for the disk or the kernel cannot tell (before Linux 5.12).
    pub fn find_at_once(&self, digest: &Digest) -> Option<Found> {
        self.open_blob(digest, ResolveFlags::CACHED).ok()
    }

    fn open_blob(&self, digest: &Digest, resolve: ResolveFlags) -> Result<Found, Errno> {
        let (folder, name) = (self.folder(digest), digest.hex());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = if resolve.is_empty() {
            rustix::fs::openat(folder, name, flags, Mode::empty())
        } else {
            rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve)
        };
        let file = match opened {
            Ok(file) => File::from(file),
            // A link is none of ours, and is not followed.
            Err(Errno::NOENT | Errno::LOOP) => return Ok(Found::Nothing),
            Err(errno) => return Err(errno),
        };
        let stat = rustix::fs::fstat(&file)?;
        let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        Ok(if regular { Found::File(file, stat.st_size as u64) } else { Found::Nothing })
    }

    fn folder(&self, digest: &Digest) -> &File {
        match digest.algorithm() {
            Algorithm::Sha256 => &self.sha256,
            Algorithm::Sha512 => &self.sha512,
        }
    }
}

impl Found {
    /// Whether it can be a blob of `size` bytes.
    pub fn has_size(&self, size: u64) -> bool {
        matches!(self, Self::File(_, found) if *found == size)
    }
}

/// Removes a file that nobody needs; one that stays is only a nuisance.
pub fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %why, "a file that is not needed stays");
        }
        _ => {}
    }
}

/// Makes `path` and its missing parents, each durable in its own parent.
fn create_folder(path: &Path) -> Result<(), StoreError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.is_dir()).collect();
    for folder in missing.into_iter().rev() {
        match fs::create_dir(folder) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("make the folder", folder, source));
            }
            _ => {}
        }
        let parent = match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        sync_folder(parent)?;
    }
    Ok(())
}

pub(super) fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|source| StoreError::io("fsync", path, source))
}
