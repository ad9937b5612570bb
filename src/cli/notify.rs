//! Telling systemd how far the server is (`sd_notify(3)`), where it asks to be told: `Type=notify`.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state`, such as `READY=1`. That nobody listens is no reason not to serve.
pub fn tell(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    if let Err(error) = address.and_then(|address| send(state, &address)) {
        tracing::warn!(%error, "cannot tell systemd `{state}`: {error}");
    }
}

fn send(state: &str, address: &SocketAddr) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), address).map(|_| ())
}
