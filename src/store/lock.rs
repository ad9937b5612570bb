//! One process owns a data folder: the lock file, and who holds it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StoreError;

/// Longest holder text that is read back, in bytes.
const HOLDER_LENGTH_MAX: u64 = 256;

/// The lock of a data folder; free again when this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// Locked too, because the file in it can be deleted.
    folder: File,
}

/// Takes the lock of `data`.
pub fn lock(data: &Path) -> Result<Lock, StoreError> {
    let path = data.join("lock");
    let failed = |doing| move |source| StoreError::io(doing, &data.join("lock"), source);
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed("open"))?;
    let folder = File::open(data).map_err(|source| StoreError::io("open", data, source))?;
    for locked in [&folder, &file] {
        match flock(locked, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::InUse { pid: holder(&file) }),
            Err(errno) => return Err(failed("lock")(errno.into())),
        }
    }
    file.set_len(0).map_err(failed("write"))?;
    writeln!(file, "{} ({})", std::process::id(), program()).map_err(failed("write"))?;
    Ok(Lock { file, folder })
}

impl Drop for Lock {
    /// Closing the file is not enough: a child that is being started holds a copy of it until it has become its program.
    fn drop(&mut self) {
        for locked in [&self.file, &self.folder] {
            if let Err(why) = flock(locked, FlockOperation::Unlock) {
                tracing::warn!(error = %why, "the lock of the data folder is freed only when the process ends");
            }
        }
    }
}

/// `4711 (sealock)`, as the holder wrote it.
fn holder(file: &File) -> String {
    let mut text = String::new();
    let read = file.take(HOLDER_LENGTH_MAX).read_to_string(&mut text);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if read.is_err() || text.is_empty() { "unknown".to_owned() } else { text }
}

fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().unwrap_or("unknown program".as_ref()).to_string_lossy().into_owned()
}
