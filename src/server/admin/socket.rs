//! The socket file: who may open it, and paths that are longer than the kernel takes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::Gid;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use super::{AdminError, COMMANDS_MAX, SOCKET_NAME};

/// Longest path that fits into a socket's address.
const PATH_MAX: usize = 107;

/// Binds the socket in `data`, mode 0600, in place of one that a dead process left. With a `group`, it is that group's and
/// its mode 0660.
pub(super) fn bind(data: &Path, group: Option<u32>) -> Result<UnixListener, AdminError> {
    let path = data.join(SOCKET_NAME);
    match std::fs::symlink_metadata(&path) {
        Ok(found) if !found.file_type().is_socket() => return Err(AdminError::NotASocket { path }),
        Ok(_) => std::fs::remove_file(&path).map_err(|source| AdminError::Bind { path: path.clone(), source })?,
        Err(_) => {}
    }
    let failed = |source| AdminError::Bind { path: path.clone(), source };
    let socket = unheard(data).map_err(failed)?;
    if let Some(group) = group {
        lend(data, group).map_err(|source| AdminError::Lend { path: path.clone(), group, source })?;
    }
    listen(socket).map_err(failed)
}

/// Connects to the socket in `data`.
pub(super) async fn connect(data: &Path) -> Result<UnixStream, AdminError> {
    let opened = match address(data) {
        Ok((path, _folder)) => UnixStream::connect(path).await,
        Err(error) => Err(error),
    };
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AdminError::NotServed { data: data.to_owned() },
        _ => AdminError::Open { path: data.join(SOCKET_NAME), source },
    })
}

/// Bound, and answers nobody yet.
fn unheard(data: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // On Linux a socket's file takes the mode that the socket has when it is bound: at no time may others open it.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let (path, _folder) = address(data)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_path())?)?;
    Ok(socket)
}

/// First whose it is, then what they may.
fn lend(data: &Path, group: u32) -> io::Result<()> {
    let_through(data, group)?;
    let (path, _folder) = address(data)?;
    rustix::fs::chown(&path, None, Some(Gid::from_raw(group)))?;
    Ok(rustix::fs::chmod(&path, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP)?)
}

fn listen(socket: OwnedFd) -> io::Result<UnixListener> {
    rustix::net::listen(&socket, COMMANDS_MAX as i32)?;
    UnixListener::from_std(socket.into())
}

/// Members of the group get to the socket by name, and see nothing else of the folder.
fn let_through(data: &Path, group: u32) -> io::Result<()> {
    let found = rustix::fs::stat(data)?;
    let mode = Mode::from_raw_mode(found.st_mode & 0o7777);
    let way = if found.st_gid == group { Mode::XGRP } else { Mode::XOTH };
    if mode.contains(way) { Ok(()) } else { Ok(rustix::fs::chmod(data, mode | way)?) }
}

/// A path to the socket that is short enough, and the open folder that it may lead through.
fn address(data: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    let path = data.join(SOCKET_NAME);
    if path.as_os_str().len() <= PATH_MAX {
        return Ok((path, None));
    }
    let folder = rustix::fs::open(data, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", folder.as_raw_fd()));
    Ok((path, Some(folder)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn only_its_owner_may_open_it_and_a_dead_ones_socket_is_replaced() {
        let data = tempfile::tempdir().unwrap();
        let dead = bind(data.path(), None).unwrap();
        let mode = std::fs::metadata(data.path().join(SOCKET_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(dead);
        let error = connect(data.path()).await.unwrap_err();
        assert!(matches!(error, AdminError::NotServed { .. }), "{error}");
        let _alive = bind(data.path(), None).unwrap();
        connect(data.path()).await.unwrap();
    }

    #[tokio::test]
    async fn members_of_the_group_get_to_it_and_see_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let modes = || {
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            (mode(data.path()), mode(&data.path().join(SOCKET_NAME)))
        };
        std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let own = rustix::process::getegid().as_raw();
        let _listener = bind(data.path(), Some(own)).unwrap();
        assert_eq!(modes(), (0o710, 0o660));
        if rustix::process::geteuid().is_root() {
            let _listener = bind(data.path(), Some(own + 4711)).unwrap();
            assert_eq!(modes(), (0o711, 0o660));
        }
    }

    #[tokio::test]
    async fn a_deep_data_folder_works() {
        let data = tempfile::tempdir().unwrap();
        let deep = data.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let _listener = bind(&deep, None).unwrap();
        connect(&deep).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_in_its_place_is_left_alone() {
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join(SOCKET_NAME), "precious").unwrap();
        assert!(matches!(bind(data.path(), None), Err(AdminError::NotASocket { .. })));
        assert_eq!(std::fs::read(data.path().join(SOCKET_NAME)).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn an_absent_server_says_so() {
        let data = tempfile::tempdir().unwrap();
        let error = connect(data.path()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("no sealock serves `{}`", data.path().display()));
        assert!(error.hint().unwrap().contains("sealock serve"));
    }
}
