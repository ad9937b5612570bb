//! Files that others write too: what tells one content from the next, and putting one in place whole or not at all.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::process::{Gid, Uid};
use rustix::thread;

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
/// or else the folder. A link is refused: it would become a file, and what it led to would stay as it was.
pub fn replace(path: &Path, bytes: &[u8], mode: Mode) -> io::Result<()> {
    if path.is_symlink() {
        return Err(io::Error::other("it is a link; name what it leads to"));
    }
    let folder = folder_of(path);
    // Its owner's alone; gone when it is dropped.
    let mut new = tempfile::Builder::new().prefix(".").suffix(".new").tempfile_in(folder)?;
    new.write_all(bytes)?;
    let before = std::fs::metadata(path).ok();
    let like = before.as_ref().map_or_else(|| std::fs::metadata(folder), |file| Ok(file.clone()))?;
    let owned = std::os::unix::fs::fchown(new.as_file(), Some(like.uid()), Some(like.gid()));
    // Only root can give files away; others give at most the group.
    if rustix::process::geteuid().is_root() {
        owned?;
    } else if owned.is_err() {
        let _ = std::os::unix::fs::fchown(new.as_file(), None, Some(like.gid()));
    }
    let mode = before.map_or(mode.new, |file| file.mode() & mode.kept);
    new.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    new.as_file().sync_all()?;
    new.persist(path).map_err(|why| why.error)?;
    File::open(folder)?.sync_all()
}

/// Does `what` with the rights of the folder's owner, if root asks for it. What lies in that folder is the owner's doing,
/// links and names among it: with root's rights, it could have anything on the machine read or given away.
pub fn as_owner<T: Send>(folder: &Path, what: impl FnOnce() -> T + Send) -> io::Result<T> {
    let owner = std::fs::metadata(folder).ok().map(|found| (found.uid(), found.gid()));
    let Some((uid, gid)) = owner.filter(|(uid, _)| *uid != 0 && rustix::process::geteuid().is_root()) else {
        return Ok(what());
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // On Linux a thread has rights of its own, and these end with it.
    std::thread::scope(|scope| {
        let doing = scope.spawn(move || {
            thread::set_thread_groups(&[])?;
            thread::set_thread_res_gid(gid, gid, gid)?;
            thread::set_thread_res_uid(uid, uid, uid)?;
            Ok(what())
        });
        doing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
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

    #[test]
    fn a_link_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        std::fs::write(&file, "one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, b"two", MODE).unwrap_err();
        assert!(link.is_symlink() && std::fs::read(&file).unwrap() == b"one");
    }

    #[test]
    fn root_acts_with_the_rights_of_the_folders_owner_for_that_alone() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "acting for others takes root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("roots"), "secret").unwrap();
        std::fs::set_permissions(folder.path().join("roots"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(54_321), Some(54_322)).unwrap();
        let read = || std::fs::read(folder.path().join("roots")).is_ok();
        assert!(!as_owner(folder.path(), read).unwrap() && read());
        as_owner(folder.path(), || std::fs::write(folder.path().join("theirs"), "x").unwrap()).unwrap();
        let theirs = std::fs::metadata(folder.path().join("theirs")).unwrap();
        assert_eq!((theirs.uid(), theirs.gid()), (54_321, 54_322));
    }
}
