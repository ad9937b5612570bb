//! The only place that looks up names and connects.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::sockets::{Leave, NotAdmitted, Registration, Sockets, end_by_reset};

/// Most addresses of a name that are tried.
pub const ADDRESSES_MAX: usize = 8;
/// Most name look-ups at one time: each holds a thread of the blocking pool.
pub const LOOKUPS_MAX: usize = 16;
/// How long one address is given before the next is tried beside it (RFC 8305 calls it the connection attempt delay).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// A silent connection is probed after this long, so often, so many times: dead peers are noticed within a minute.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Why there is no connection. Cheap to clone, because hyper only lends its causes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// The gate closed meanwhile.
    #[error("the gate closed")]
    Refused,
    #[error("cannot find the address of `{host}`")]
    LookUp {
        host: String,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("`{host}` has no address")]
    NoAddress { host: String },
    #[error("cannot connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("no TLS with `{host}`")]
    Tls {
        host: String,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("`{host}` is not a name that TLS can check")]
    ServerName { host: String },
    #[error("the proxy `{proxy}` refuses to connect: {status}")]
    ProxyRefused { proxy: String, status: String },
    #[error("the proxy `{proxy}` broke off")]
    Proxy {
        proxy: String,
        #[source]
        source: Arc<io::Error>,
    },
    /// Name look-up, connect, proxy and TLS together took too long.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
}

impl DialError {
    /// What TLS had against the other end.
    pub fn tls(&self) -> Option<&rustls::Error> {
        match self {
            Self::Tls { source, .. } => source.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

/// Makes sockets; each is entered in the gate's table first.
#[derive(Clone)]
pub(super) struct Dialer {
    sockets: Sockets,
    lookups: Arc<Semaphore>,
}

impl Dialer {
    pub(super) fn new(sockets: Sockets) -> Self {
        Self { sockets, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    /// A connection to the first address of `host` that answers: each is given a head start of 250 ms over the next.
    pub(super) async fn dial(&self, leave: &Arc<Leave>, host: &str, port: u16) -> Result<Socket, DialError> {
        let mut addresses = self.addresses(leave, host, port).await?.into_iter();
        let mut racing = FuturesUnordered::new();
        let mut failed = DialError::NoAddress { host: host.to_owned() };
        loop {
            match addresses.next() {
                Some(address) => racing.push(self.connect(leave, address)),
                None if racing.is_empty() => return Err(failed),
                None => {}
            }
            let first = racing.next();
            let outcome = if addresses.len() == 0 {
                first.await
            } else {
                match tokio::time::timeout(NEXT_ADDRESS_AFTER, first).await {
                    Ok(outcome) => outcome,
                    Err(_) => continue,
                }
            };
            match outcome {
                Some(Ok(socket)) => return Ok(socket),
                Some(Err(DialError::Refused)) => return Err(DialError::Refused),
                Some(Err(error)) => failed = error,
                None => {}
            }
        }
    }

    async fn addresses(&self, leave: &Arc<Leave>, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        if let Some(address) = literal(host) {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let failed = |source| DialError::LookUp { host: host.to_owned(), source: Arc::new(source) };
        // Closed never: the semaphore lives as long as the dialer.
        let turn = self.lookups.clone().acquire_owned().await.map_err(|_| DialError::Refused)?;
        let (sockets, leave, name) = (self.sockets.clone(), leave.clone(), host.to_owned());
        let looked_up = tokio::task::spawn_blocking(move || {
            // Here and not before: this thread may have had to wait while the gate closed.
            let Some(_lookup) = sockets.look_up(&leave) else { return Ok(None) };
            let _turn = turn;
            let found = resolve(&name, port)?;
            Ok(Some(found))
        });
        let found: io::Result<Option<Vec<SocketAddr>>> = looked_up.await.map_err(|e| failed(io::Error::other(e)))?;
        match found.map_err(failed)? {
            Some(addresses) => Ok(interleaved(addresses)),
            None => Err(DialError::Refused),
        }
    }

    async fn connect(&self, leave: &Arc<Leave>, address: SocketAddr) -> Result<Socket, DialError> {
        let failed = |source: io::Error| DialError::Connect { address, source: Arc::new(source) };
        let socket = new_socket(address).map_err(failed)?;
        let registration =
            self.sockets.admit(leave, &socket, |socket| begin(socket, address)).map_err(|e| match e {
                NotAdmitted::Revoked => DialError::Refused,
                NotAdmitted::Io(e) => failed(e),
            })?;
        let stream = TcpStream::from_std(std::net::TcpStream::from(socket)).map_err(failed)?;
        let socket = Socket { stream, _registration: registration };
        let connected = socket.stream.writable().await.and_then(|()| socket.stream.take_error());
        if leave.is_revoked() {
            return Err(DialError::Refused);
        }
        match connected {
            Ok(None) => Ok(socket),
            Ok(Some(error)) | Err(error) => Err(failed(error)),
        }
    }
}

/// A connection to an upstream. It ends with a reset and never with a FIN; see [`end_by_reset`].
pub(super) struct Socket {
    // Fields are dropped in this order; the last descriptor that goes sends the reset.
    stream: TcpStream,
    _registration: Registration,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A socket that does not block, sends small writes at once, notices dead peers and ends with a reset.
fn new_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
    end_by_reset(&socket)?;
    Ok(socket)
}

/// Sends the SYN; the socket becomes writable when it is answered.
fn begin(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    match rustix::net::connect(socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits for the system's resolver; on a thread of the blocking pool.
#[expect(clippy::disallowed_methods, reason = "the one name look-up, entered in the gate's books by its caller")]
fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

/// `127.0.0.1`, `::1` or `[::1]`: nothing to look up.
pub(super) fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The resolver's order, but the two families in turn, so that one that does not work costs 250 ms and not all.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::with_capacity(ADDRESSES_MAX);
    loop {
        let before = ordered.len();
        ordered.extend(first.next());
        ordered.extend(second.next());
        if ordered.len() == before || ordered.len() >= ADDRESSES_MAX {
            ordered.truncate(ADDRESSES_MAX);
            return ordered;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_in_the_resolvers_order() {
        let parse = |list: &[&str]| list.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 1)).collect::<Vec<_>>();
        let cases: [(&[&str], &[&str]); 4] = [
            (&[], &[]),
            (&["::1", "::2", "10.0.0.1"], &["::1", "10.0.0.1", "::2"]),
            (&["10.0.0.1", "10.0.0.2"], &["10.0.0.1", "10.0.0.2"]),
            (&["10.0.0.1", "::1", "10.0.0.2", "::2"], &["10.0.0.1", "::1", "10.0.0.2", "::2"]),
        ];
        for (given, wanted) in cases {
            assert_eq!(interleaved(parse(given)), parse(wanted), "{given:?}");
        }
    }

    // Invariant 17
    #[test]
    fn a_name_with_many_addresses_is_tried_at_the_first_few() {
        let many = (0..=255).map(|i| SocketAddr::from(([10, 0, 0, i], 1))).collect();
        assert_eq!(interleaved(many).len(), ADDRESSES_MAX);
    }
}
