//! Files that others write too: what tells one content from the next, and putting one in place whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What tells one content of a file from the next: where it lies, its size, and the times of its last changes. That there
/// is no file is a content as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<[i64; 7]>);

impl Stamp {
    pub fn of(path: &Path) -> Self {
        let found = std::fs::metadata(path).ok();
        let times = |m: &std::fs::Metadata| [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
        Self(found.map(|m| {
            let [written, written_ns, changed, changed_ns] = times(&m);
            [m.dev() as i64, m.ino() as i64, m.size() as i64, written, written_ns, changed, changed_ns]
        }))
    }
}

/// Puts `bytes` in the place of the file; on disk when this returns. `dress` gives the new file, which is its owner's
/// alone until then, its owner and mode. One at a time per file: the new one lies beside it as `<name>.new` until it is
/// whole.
pub fn replace(path: &Path, bytes: &[u8], dress: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let folder = folder_of(path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = folder.join(name);
    let written = (|| {
        // What a crash left.
        let _ = std::fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        dress(&file)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}

/// The folder that the file is in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_has_a_stamp_of_its_own_and_none_is_one_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let none = Stamp::of(&path);
        replace(&path, b"one", |_| Ok(())).unwrap();
        let one = Stamp::of(&path);
        replace(&path, b"two", |_| Ok(())).unwrap();
        assert!(one != none && one != Stamp::of(&path) && Stamp::of(&path) == Stamp::of(&path));
    }

    #[test]
    fn what_cannot_be_dressed_leaves_what_was_there_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, b"one", |_| Ok(())).unwrap();
        replace(&path, b"two", |_| Err(io::Error::other("no"))).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
