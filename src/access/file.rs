//! Files of `access/`: written whole or not at all, for the server's eyes only, and read again when they change.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::files::{self, Mode, folder_of};

/// Largest file that is read, in bytes: some ten thousand users.
pub const FILE_BYTES_MAX: u64 = 2 << 20;

/// `None` where there is no file.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let bytes = match std::fs::metadata(path) {
        // That is not the same as no file, which lets everybody in.
        Err(error) if error.kind() == io::ErrorKind::NotFound && leads_nowhere(path) => {
            return Err(io::Error::other("it, or its folder, is a link that leads nowhere"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        // A pipe would be waited for, and everybody with it.
        Ok(found) if !found.is_file() => return Err(io::Error::other("it is no ordinary file")),
        Ok(found) if found.len() > FILE_BYTES_MAX => {
            return Err(io::Error::other(format!("it has {} bytes; at most {FILE_BYTES_MAX}", found.len())));
        }
        Ok(_) => std::fs::read(path)?,
    };
    Ok(Some(bytes))
}

/// Whether the file, or its folder, is a link to what is not there.
fn leads_nowhere(path: &Path) -> bool {
    path.is_symlink() || (folder_of(path).is_symlink() && !folder_of(path).exists())
}

/// Puts `bytes` in the place of the file; on disk when this returns. It is nobody's to read but its owner's.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_folder(folder_of(path))?;
    files::replace(path, bytes, Mode { new: 0o600, kept: 0o660 })
}

/// Holds the file for one change at a time, also between processes, until it is dropped: by `<name>.lock` beside it,
/// because a change puts another file in its place.
pub fn lock(path: &Path) -> io::Result<File> {
    let folder = folder_of(path);
    make_folder(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags.bits() as i32);
    let file = options.open(folder.join(name))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Makes `access/`, which only its owner may enter, and the data folder around it if a command comes before the server.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    File::open(folder_of(folder))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_there_whole_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access/users");
        assert_eq!(read(&path).unwrap(), None);
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["users"]);
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        // Invariant 17
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let file = File::create(&path).unwrap();
        file.set_len(FILE_BYTES_MAX).unwrap();
        assert!(read(&path).unwrap().is_some());
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn what_root_writes_belongs_to_the_owner_of_the_data_folder() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "giving files away takes root");
            return;
        }
        let data = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(data.path(), Some(54_321), Some(54_322)).unwrap();
        let access = data.path().join("access");
        let change = || {
            drop(lock(&access.join("users")).unwrap());
            replace(&access.join("users"), b"one").unwrap();
        };
        files::as_owner(data.path(), change).unwrap();
        let inside = std::fs::read_dir(&access).unwrap().map(|entry| entry.unwrap().path());
        for path in inside.chain([access.clone()]) {
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.gid()), (54_321, 54_322), "{path:?}");
        }
    }
}
