//! Listening sockets, and how many connections they let in.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::body::Body;
use super::connection::{self, Protocols};
use super::settings::ServerSettings;
use crate::access::Caller;
use crate::tls::ServerTls;

/// Bound sockets: clients may connect already, and are answered once [`Listeners::serve`] runs.
#[derive(Default)]
pub struct Listeners {
    ports: Vec<Port>,
}

/// One of them.
struct Port {
    socket: TcpListener,
    tls: Option<Arc<ServerTls>>,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `{address}`")]
pub struct BindError {
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
    /// Who the client is by its own certificate, which was verified; none where none was asked for, or none was shown.
    pub certificate: Option<Caller>,
}

/// Pause after a failed accept: with no file descriptors left, trying again at once would only burn a processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
    Content-Length: 100\r\nConnection: close\r\n\r\n\
    {\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"this address has too many connections open here\"}]}\n";

impl BindError {
    pub fn hint(&self) -> String {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there; stop it, or choose another address with `--listen`".to_owned()
            }
            io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; choose one above".to_owned(),
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address; write one of those that it has, or `0.0.0.0:5000` for all".to_owned()
            }
            _ => "name an address of this machine, such as `127.0.0.1:5000` or `[::]:5000`".to_owned(),
        }
    }
}

impl Listeners {
    /// Binds every address, for plain HTTP; port 0 takes any free one.
    pub async fn bind(addresses: &[SocketAddr]) -> Result<Self, BindError> {
        Self::default().and(addresses, None).await
    }

    /// Binds further addresses, for TLS if it is given.
    pub async fn and(mut self, addresses: &[SocketAddr], tls: Option<&Arc<ServerTls>>) -> Result<Self, BindError> {
        for &address in addresses {
            let socket = TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
            self.ports.push(Port { socket, tls: tls.cloned() });
        }
        Ok(self)
    }

    /// Where they really listen, in the order in which they were asked for.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.ports.iter().filter_map(|port| port.socket.local_addr().ok()).collect()
    }

    /// The same with their schemes: `https://127.0.0.1:5000`.
    pub fn origins(&self) -> Vec<String> {
        let origin = |port: &Port| {
            let scheme = if port.tls.is_some() { "https" } else { "http" };
            Some(format!("{scheme}://{}", port.socket.local_addr().ok()?))
        };
        self.ports.iter().filter_map(origin).collect()
    }

    /// Answers every request with `handler` until `stop`. Then nothing new is let in, running responses may end within
    /// `shutdown_timeout`, and what is left is cut. Returns how many connections that were.
    pub async fn serve<H, F>(self, settings: &ServerSettings, handler: H, stop: CancellationToken) -> usize
    where
        H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let door = Arc::new(Door::new(settings));
        let protocols = Arc::new(Protocols::new(settings));
        let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
        let accepting: Vec<_> = self
            .ports
            .into_iter()
            .map(|Port { socket, tls }| {
                let (door, protocols, handler) = (Arc::clone(&door), Arc::clone(&protocols), handler.clone());
                let (tasks, stop, cut) = (tasks.clone(), stop.clone(), cut.clone());
                tokio::spawn(async move {
                    while let Some((seat, socket, peer)) = door.next(&socket, &stop).await {
                        let (protocols, handler, tls) = (Arc::clone(&protocols), handler.clone(), tls.clone());
                        let (stop, cut) = (stop.child_token(), cut.child_token());
                        let address = peer.address;
                        tasks.spawn(async move {
                            let serving = connection::serve(socket, peer, tls.as_deref(), &protocols, handler, stop);
                            if cut.run_until_cancelled(serving).await.is_none() {
                                debug!(client = %address, "cut {address} at the end of the shutdown time");
                            }
                            drop(seat);
                        });
                    }
                })
            })
            .collect();
        for task in accepting {
            if let Err(error) = task.await {
                tracing::error!(%error, "the accept loop ended: {error}");
            }
        }
        tasks.close();
        let left = match tokio::time::timeout(settings.shutdown_timeout.0, tasks.wait()).await {
            Ok(()) => 0,
            Err(_) => tasks.len(),
        };
        cut.cancel();
        tasks.wait().await;
        left
    }
}

/// Counts who is in.
struct Door {
    seats: Arc<Semaphore>,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    per_address_max: usize,
}

/// One connection's place; given back when dropped.
struct Seat {
    door: Arc<Door>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Door {
    fn new(settings: &ServerSettings) -> Self {
        Self {
            seats: Arc::new(Semaphore::new(settings.connections_max.min(Semaphore::MAX_PERMITS))),
            per_address: Mutex::new(HashMap::new()),
            per_address_max: settings.connections_per_address_max,
        }
    }

    /// The next connection that may come in; `None` once `stop` is set.
    async fn next(self: &Arc<Self>, socket: &TcpListener, stop: &CancellationToken) -> Option<(Seat, TcpStream, Peer)> {
        let mut failing = false;
        loop {
            let permit = tokio::select! {
                permit = Arc::clone(&self.seats).acquire_owned() => permit.ok()?,
                () = stop.cancelled() => return None,
            };
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                () = stop.cancelled() => return None,
            };
            match accepted {
                Ok((stream, address)) => match self.seat(address.ip().to_canonical(), permit) {
                    Some(seat) => return Some((seat, stream, Peer { address, is_tls: false, certificate: None })),
                    None => turn_away(&stream, address),
                },
                // The client left before we took its connection.
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if !failing {
                        warn!(%error, "cannot take a connection: {error}; trying again");
                    }
                    failing = true;
                    tokio::select! {
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                        () = stop.cancelled() => return None,
                    }
                }
            }
        }
    }

    fn seat(self: &Arc<Self>, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Seat> {
        let mut per_address = self.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = per_address.entry(address).or_default();
        if *count >= self.per_address_max {
            return None;
        }
        *count += 1;
        Some(Seat { door: Arc::clone(self), address, _permit: permit })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut per_address = self.door.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&self.address);
            }
        }
    }
}

/// Says why, if the socket takes it at once, and closes.
fn turn_away(stream: &TcpStream, address: SocketAddr) {
    debug!(client = %address, "turned {address} away: it has too many connections open here");
    // Reading first: closing on unread bytes would reset the connection before the answer is read.
    let _ = stream.try_read(&mut [0; 4096]);
    let _ = stream.try_write(TOO_MANY);
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canned_answer_states_its_length() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
