//! The folders `trash/` and `quarantine/`: moving content out of sight, and back.
//!
//! The rows change first, the file is moved after the commit: a crash between leaves a file without a row, which the next
//! collection moves. On the way back the file comes first, as for all that is kept.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::StoreError;
use super::disk::{Disk, Found, remove, sync_folder};
use super::faults::Step;
use super::sound::Look;
use crate::oci::{Algorithm, Digest};

/// Bytes that are read at a time to hash a file.
const PIECE: usize = 1 << 20;
/// Before the name of a file that is not needed any more: whoever finds it may remove it.
const GONE: &str = "gone-";

/// Which file was looked at, so that another of the same name is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub fn of(found: &Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }
}

impl Disk {
    fn trash(&self) -> PathBuf {
        self.data().join("trash")
    }

    fn trashed(&self, digest: &Digest) -> PathBuf {
        self.trash().join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    /// Moves files into the trash and makes that durable; returns how many. Blocking.
    pub fn throw_away(&self, digests: &[Digest]) -> Result<usize, StoreError> {
        self.writable()?;
        self.make_folder("trash")?;
        let mut moved = 0;
        for digest in digests {
            let (from, to) = (self.blob(digest), self.trashed(digest));
            match self.step(Step::Rename).and_then(|()| fs::rename(&from, &to)) {
                Ok(()) => moved += 1,
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(StoreError::io("move to the trash", &from, source)),
            }
        }
        if let Some(first) = digests.first() {
            self.sync_after_move(&self.trash(), first)?;
        }
        Ok(moved)
    }

    /// Moves a file from the trash to its place, unless another has come there. `false`: it is in neither. Blocking.
    pub fn take_back(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.writable()?;
        let (from, to) = (self.trashed(digest), self.blob(digest));
        if let Found::File(..) = self.find(digest)? {
            return Ok(true);
        }
        match self.step(Step::Rename).and_then(|()| fs::rename(&from, &to)) {
            Ok(()) => self.sync_after_move(&self.trash(), digest).map(|()| true),
            // Somebody else may just have taken it back.
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(matches!(self.find(digest)?, Found::File(..))),
            Err(source) => Err(StoreError::io("take back", &from, source)),
        }
    }

    /// Moves the file of `digest` into quarantine if it is still the one that was found wrong. Blocking.
    pub fn set_aside(&self, digest: &Digest, wrong: FileId) -> Result<bool, StoreError> {
        let Found::File(file, _) = self.find(digest)? else { return Ok(true) };
        if self.look_at(&file, digest)?.id != wrong {
            return Ok(false);
        }
        self.make_folder("quarantine")?;
        let folder = self.data().join("quarantine");
        let (from, to) = (self.blob(digest), self.quarantined(digest));
        let moved = self.step(Step::Rename).and_then(|()| fs::rename(&from, &to));
        moved.map_err(|source| StoreError::io("set aside", &from, source))?;
        self.sync_after_move(&folder, digest).map(|()| true)
    }

    /// Removes the wrong files of what is kept again. Blocking.
    pub fn remove_quarantined(&self, digests: &[Digest]) {
        digests.iter().for_each(|digest| remove(&self.quarantined(digest)));
    }

    fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.data().join("quarantine").join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    /// Reads what lies under `digest` to its end; whether its bytes hash to it. `None`: it has no file. `read` is told
    /// of each piece, in bytes, and may take its time; `false` from it breaks off, and is `None` too. Blocking.
    pub fn hash(
        &self,
        digest: &Digest,
        mut read: impl FnMut(usize) -> bool,
    ) -> Result<Option<(Look, bool)>, StoreError> {
        let Found::File(file, _) = self.find(digest)? else { return Ok(None) };
        let look = self.look_at(&file, digest)?;
        Ok(hashes_to(file, &self.blob(digest), digest, &mut read)?.map(|whole| (look, whole)))
    }

    /// Whether the file of `digest` that lies in the trash hashes to it, or one has come to its place. Blocking.
    pub fn trash_is_whole(&self, digest: &Digest) -> Result<bool, StoreError> {
        if let Found::File(..) = self.find(digest)? {
            return Ok(self.hash(digest, |_| true)?.is_some_and(|(_, whole)| whole));
        }
        let path = self.trashed(digest);
        match File::open(&path) {
            Ok(file) => Ok(hashes_to(file, &path, digest, &mut |_| true)?.is_some_and(|whole| whole)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoreError::io("open", &path, source)),
        }
    }

    /// Digests whose files lie in the trash. Blocking.
    pub fn trash_files(&self) -> Result<Vec<Digest>, StoreError> {
        let names = names_in(&self.trash())?;
        Ok(names.iter().filter_map(|name| name.replacen('-', ":", 1).parse().ok()).collect())
    }

    /// Marks files in the trash as not needed, so that [`Disk::remove_marked`] may take its time. Blocking.
    pub fn mark_gone(&self, digests: &[Digest]) {
        for digest in digests {
            let from = self.trashed(digest);
            let to = self.trash().join(format!("{GONE}{}-{}", digest.algorithm(), digest.hex()));
            if let Err(why) = fs::rename(&from, &to)
                && why.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%digest, error = %why, "a file stays in the trash");
            }
        }
    }

    /// Removes what [`Disk::mark_gone`] marked, also in an earlier run; returns how many bytes that freed. Blocking.
    pub fn remove_marked(&self) -> Result<u64, StoreError> {
        let (trash, mut freed) = (self.trash(), 0);
        for name in names_in(&trash)?.iter().filter(|name| name.starts_with(GONE)) {
            let path = trash.join(name);
            freed += fs::symlink_metadata(&path).map_or(0, |found| found.len());
            remove(&path);
        }
        Ok(freed)
    }

    /// Files below `blobs/` that were made and named before `before`: digest and size. Blocking.
    pub fn files_before(&self, before: Timestamp) -> Result<Vec<(Digest, u64)>, StoreError> {
        let files = self.files()?.into_iter();
        Ok(files
            .filter(|(.., changed)| *changed < before.as_second())
            .map(|(digest, size, _)| (digest, size))
            .collect())
    }

    /// Files below `blobs/`: digest, size, and when they were made or named, in seconds. Blocking.
    pub fn files(&self) -> Result<Vec<(Digest, u64, i64)>, StoreError> {
        let mut found = Vec::new();
        for algorithm in Algorithm::ALL {
            let folder = self.data().join("blobs").join(algorithm.as_str());
            for name in names_in(&folder)? {
                let Ok(digest) = format!("{algorithm}:{name}").parse::<Digest>() else { continue };
                let Ok(metadata) = fs::symlink_metadata(folder.join(&name)) else { continue };
                if metadata.is_file() {
                    found.push((digest, metadata.len(), metadata.mtime().max(metadata.ctime())));
                }
            }
        }
        Ok(found)
    }

    fn look_at(&self, file: &File, digest: &Digest) -> Result<Look, StoreError> {
        let found = file.metadata().map_err(|source| StoreError::io("look at", &self.blob(digest), source))?;
        Ok(Look::of(&found))
    }

    /// Makes a move between `folder` and the one of `digest`'s algorithm durable.
    fn sync_after_move(&self, folder: &Path, digest: &Digest) -> Result<(), StoreError> {
        let blobs = self.blob(digest);
        let synced = self.step(Step::SyncFolder).map_err(|source| StoreError::io("fsync", folder, source));
        let synced = synced.and_then(|()| sync_folder(folder));
        let synced = synced.and_then(|()| blobs.parent().map_or(Ok(()), sync_folder));
        if let Err(why) = &synced {
            self.turn_read_only(why);
        }
        synced
    }
}

/// Reads `file` to its end; whether its bytes hash to `digest`. `None`: `read`, told of each piece, broke off.
fn hashes_to(
    mut file: File,
    path: &Path,
    digest: &Digest,
    read: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<bool>, StoreError> {
    let (mut hasher, mut piece) = (digest.algorithm().hasher(), vec![0; PIECE]);
    loop {
        let count = file.read(&mut piece).map_err(|source| StoreError::io("read", path, source))?;
        if count == 0 {
            return Ok(Some(hasher.finish() == *digest));
        }
        hasher.update(&piece[..count]);
        if !read(count) {
            return Ok(None);
        }
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>, StoreError> {
    let failed = |source| StoreError::io("list", folder, source);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let names = entries.map(|entry| Ok(entry.map_err(failed)?.file_name().into_string().unwrap_or_default()));
    names.collect()
}
