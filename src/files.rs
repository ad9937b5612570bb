//! Files that others write too: what tells one content from the next, and putting one in place whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
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

/// Who may do what with a file that is put in place, in the bits of chmod(2).
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Where there was no file.
    pub new: u32,
    /// What is kept of the mode of the file that was there.
    pub kept: u32,
}

/// Puts `bytes` in the place of the file; on disk when this returns. It belongs to whom the file that was there belonged,
/// or else the folder: commands may be run by root, and the server must read what they write. One at a time per file: the
/// new one lies beside it as `<name>.new`, its owner's alone, until it is whole.
pub fn replace(path: &Path, bytes: &[u8], mode: Mode) -> io::Result<()> {
    let folder = folder_of(path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = folder.join(name);
    let written = (|| {
        // What a crash left.
        let _ = std::fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let before = std::fs::metadata(path).ok();
        let like = before.as_ref().map_or_else(|| std::fs::metadata(folder), |file| Ok(file.clone()))?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        let mode = before.map_or(mode.new, |file| file.mode() & mode.kept);
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
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

    const MODE: Mode = Mode { new: 0o600, kept: 0o640 };

    #[test]
    fn each_content_has_a_stamp_of_its_own_and_none_is_one_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let none = Stamp::of(&path);
        replace(&path, b"one", MODE).unwrap();
        let one = Stamp::of(&path);
        replace(&path, b"two", MODE).unwrap();
        assert!(one != none && one != Stamp::of(&path) && Stamp::of(&path) == Stamp::of(&path));
    }

    #[test]
    fn what_is_replaced_stays_whose_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let seen = || std::fs::metadata(&path).map(|file| (file.uid(), file.mode() & 0o777)).unwrap();
        // Only root can give files away.
        let uid = if rustix::process::geteuid().is_root() { 65534 } else { rustix::process::geteuid().as_raw() };
        std::os::unix::fs::chown(folder.path(), Some(uid), None).unwrap();
        replace(&path, b"one", MODE).unwrap();
        assert_eq!(seen(), (uid, 0o600), "as the folder");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(rustix::process::geteuid().as_raw()), None).unwrap();
        replace(&path, b"two", MODE).unwrap();
        assert_eq!(seen(), (uid, 0o640), "as the file");
    }

    #[test]
    fn what_cannot_be_put_in_place_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::create_dir(&path).unwrap();
        replace(&path, b"two", MODE).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
