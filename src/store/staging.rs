//! What earlier runs left in `staging/`: resumable fills stay, within a bound, and uploads; the rest goes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::UploadId;
use super::disk::{UPLOAD_PREFIX, remove};
use crate::oci::Digest;

/// Most bytes of unfinished fills that outlive a start; beyond that the longest untouched go first.
pub const STAGED_BYTES_MAX: u64 = 32 << 30;
/// Most unfinished fills that outlive a start.
pub const STAGED_FILES_MAX: usize = 1_000;

struct Leftover {
    path: PathBuf,
    size: u64,
    changed: SystemTime,
}

/// Tidies `staging`. Nothing in it can stop the start: what cannot be read is reported and left. Blocking.
pub fn tidy(staging: &Path) {
    let mut leftovers = match leftovers(staging) {
        Ok(leftovers) => leftovers,
        Err(why) => {
            tracing::error!(path = %staging.display(), error = %why, "cannot list the staging folder");
            return;
        }
    };
    leftovers.sort_by_key(|leftover| std::cmp::Reverse(leftover.changed));
    let mut total: u64 = 0;
    for (number, leftover) in leftovers.iter().enumerate() {
        total = total.saturating_add(leftover.size);
        if number >= STAGED_FILES_MAX || total > STAGED_BYTES_MAX {
            tracing::warn!(path = %leftover.path.display(), size_bytes = leftover.size, "an old unfinished fill goes");
            remove(&leftover.path);
        }
    }
}

/// The uploads that have a file in `staging`. Blocking.
pub fn uploads(staging: &Path) -> io::Result<Vec<UploadId>> {
    let mut uploads = Vec::new();
    for entry in fs::read_dir(staging)? {
        uploads.extend(upload(&entry?.path()));
    }
    Ok(uploads)
}

/// Bytes in `staging` now. Blocking.
pub fn size_bytes(staging: &Path) -> io::Result<u64> {
    let sizes = fs::read_dir(staging)?.map(|entry| match entry?.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        Ok(_) => Ok(0),
        // It was kept or discarded meanwhile.
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(why) => Err(why),
    });
    sizes.sum()
}

fn leftovers(staging: &Path) -> io::Result<Vec<Leftover>> {
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(staging)? {
        let entry = entry?;
        let (path, metadata) = (entry.path(), entry.metadata()?);
        if metadata.is_dir() {
            tracing::error!(path = %path.display(), "this folder does not belong in the staging folder");
        } else if metadata.is_file() && upload(&path).is_some() {
            // Whether it still has a row is seen once the catalog is open.
        } else if metadata.is_file() && is_resumable(&path) {
            let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            leftovers.push(Leftover { path, size: metadata.len(), changed });
        } else {
            remove(&path);
        }
    }
    Ok(leftovers)
}

/// The upload whose file [`Disk::upload`](super::disk::Disk::upload) puts at `path`.
fn upload(path: &Path) -> Option<UploadId> {
    path.file_name()?.to_str()?.strip_prefix(UPLOAD_PREFIX)?.parse().ok()
}

/// Whether the name is one that [`Disk::staged`](super::disk::Disk::staged) makes.
fn is_resumable(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.replacen('-', ":", 1).parse::<Digest>().is_ok()
}
