//! The admin API: JSON over HTTP, on a unix socket in the data folder, and on TCP where `admin.listen` says so.
//!
//! ```text
//! GET  /status              what the server is, has and does        -> StatusReport
//! GET  /status/wanted       what was asked for and could not be had -> [Wanted]
//! GET  /ls?name=PREFIX      what is kept                            -> [TagLine]
//! GET  /gate                                                        -> GateStatus
//! POST /gate/open   OpenOrder                                       -> GateStatus
//! POST /gate/close  CloseOrder                                      -> GateStatus, when every upstream socket is reset
//! POST /tag         TagOrder: what it names and named            -> TagReport
//! POST /tag/rollback, /tag/pin, /tag/unpin, /tag/release TagOrder -> TagReport
//! POST /gc          CollectOrder                                -> CollectReport
//! POST /gc/undo                                                 -> Restored
//! POST /verify      VerifyOrder                                 -> VerifyReport
//! GET  /verify             how far it is                         -> VerifyReport, without a list
//! POST /upstream/check CheckOrder: asks them step by step           -> [UpstreamCheck]
//! POST /watch       WatchOrder: requests for a name, from now on     -> WatchReport, with its number
//! POST /watch/end   WatchReport's number: what was seen              -> [Seen]
//! GET  /ready               whether the store answers               -> {"status": "ready"}
//! GET  /metrics (or HEAD)   the status as Prometheus reads it       -> text
//! ```
//! Errors are `{"error": "…", "hint": "…" or null}` with a 4xx or 5xx.
//!
//! By the socket, root, the user that runs the server and the members of `admin.group` may do all of it, others nothing:
//! by the socket's mode, and by who the kernel says is calling. Over TCP everybody logs in as at the registry, and the
//! access rules' verb `admin` says what they may: on everything all of it, on a repository `/tag…`, `/verify` with its
//! name, and its lines of `/ls`. `admin.metrics_to` may read `/metrics`, and no more. A POST there has
//! `Content-Type: application/json`.

mod api;
mod check;
mod client;
mod metrics;
mod network;
mod peer;
mod report;
mod rights;
mod settings;
mod socket;
mod tags;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub use client::AdminClient;
pub use network::{CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX};
pub use report::{CheckOrder, WatchEnd, WatchOrder};
pub use report::{CloseOrder, CollectOrder, OpenOrder, RouteLine, StatusReport, TagOrder, TagReport, VerifyOrder};
pub use settings::AdminSettings;

use peer::Caller;
use rights::{Asker, Leave};

use crate::access::Access;
use crate::clock::Clock;
use crate::gate::Gate;
use crate::keep::Keep;
use crate::names::Routes;
use crate::pull::Pull;
use crate::server::{BindError, Listeners, Recent, ServerSettings};
use crate::store::Store;
use crate::tls::ServerTls;
use crate::upstream::Upstream;

/// The admin socket of a running server, and its ports for orders, bound.
pub struct Admin {
    listener: UnixListener,
    path: PathBuf,
    /// Whose members may give orders, too.
    group: Option<u32>,
    /// Taken by [`Admin::run`].
    network: Mutex<Option<Listeners>>,
    origins: Vec<String>,
    /// What one connection over the network may cost.
    limits: ServerSettings,
    office: Arc<Office>,
}

/// What the admin API tells about and acts upon.
pub struct StatusSource {
    pub store: Store,
    pub gate: Gate,
    pub pull: Pull,
    pub keep: Keep,
    pub access: Access,
    pub routes: Arc<Routes>,
    pub upstreams: Vec<Arc<Upstream>>,
    /// Where clients reach the registry.
    pub addresses: Vec<SocketAddr>,
    /// The same with their schemes.
    pub origins: Vec<String>,
    pub tls: Option<Arc<ServerTls>>,
    /// What an operator should do something about since the start, a sentence each.
    pub warnings: Vec<String>,
    pub recent: Arc<Recent>,
    pub clock: Clock,
}

/// The source, and when it was opened for questions.
struct Office {
    source: StatusSource,
    started_at: Timestamp,
}

/// Why the admin socket cannot be bound, or why a command to a running server failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot listen on `{}`", path.display())]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("[admin] listen: cannot listen on `{address}`")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("[admin] listen: {}", settings::exposed(*.address))]
    Exposed { address: SocketAddr },
    #[error("[admin] group: there is no group `{group}`")]
    NoGroup { group: String },
    #[error("[admin] group: cannot give `{}` to the group {group}", path.display())]
    Lend {
        path: PathBuf,
        group: u32,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is in the way: it is not a socket", path.display())]
    NotASocket { path: PathBuf },
    /// Nobody listens on the folder's socket.
    #[error("no sealock serves `{}`", data.display())]
    NotServed { data: PathBuf },
    #[error("cannot open `{}`", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the server that serves `{}` broke off", data.display())]
    Broken {
        data: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server says no; its words.
    #[error("{message}")]
    Refused { message: String, hint: Option<String> },
}

/// Name of the socket in the data folder.
pub const SOCKET_NAME: &str = "sealock.sock";
/// Commands at one time; more wait.
pub const COMMANDS_MAX: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long commands under way may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl AdminError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotServed { .. } => {
                "start it with `sealock serve`; if it runs elsewhere, name its data folder with `--data`"
            }
            Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run this as root or as the user that runs the server, or be of the group that `admin.group` names"
            }
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "let the user that runs sealock write to the data folder"
            }
            Self::Lend { .. } => "let the user that runs sealock be of that group, or name one that it is of",
            Self::NotASocket { .. } => "move it away",
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "another program listens there, or `server.listen` names it, too; write another address"
            }
            Self::Listen { .. } => "write an address of this machine and a port above 1023, such as 127.0.0.1:5001",
            Self::Exposed { .. } => settings::EXPOSED_HINT,
            Self::NoGroup { .. } => "write a group of /etc/group, or its number",
            Self::Refused { hint, .. } => return hint.clone(),
            Self::Bind { .. } | Self::Open { .. } | Self::Broken { .. } => return None,
        };
        Some(text.to_owned())
    }
}

impl Admin {
    /// Binds the ports, and the socket in the data folder. What a crashed process left there is replaced: the store's
    /// lock says that this process is the folder's only owner.
    pub async fn bind(
        server: &ServerSettings,
        settings: &AdminSettings,
        source: StatusSource,
    ) -> Result<Self, AdminError> {
        if let Some(address) = settings.exposed(source.tls.is_some()) {
            return Err(AdminError::Exposed { address });
        }
        let listeners = Listeners::default().and(&settings.listen, source.tls.as_ref()).await;
        let listeners = listeners.map_err(|BindError { address, source }| AdminError::Listen { address, source })?;
        let data = &server.data;
        let path = data.join(SOCKET_NAME);
        let group = settings
            .group
            .as_deref()
            .map(|group| peer::group_number(group).ok_or_else(|| AdminError::NoGroup { group: group.to_owned() }));
        let group = group.transpose()?;
        let listener = socket::bind(data, group)?;
        let office = Arc::new(Office { started_at: source.clock.now(), source });
        let (origins, limits) = (listeners.origins(), server.clone());
        Ok(Self { listener, path, group, network: Mutex::new(Some(listeners)), origins, limits, office })
    }

    /// Where orders are taken over the network, with their schemes: `https://127.0.0.1:5001`.
    pub fn origins(&self) -> &[String] {
        &self.origins
    }

    /// Answers until `stop`, then takes the socket away.
    pub async fn run(&self, stop: CancellationToken) {
        let listeners = self.network.lock().unwrap_or_else(PoisonError::into_inner).take();
        let by_network = async {
            if let Some(listeners) = listeners {
                network::serve(listeners, Arc::clone(&self.office), &self.limits, stop.clone()).await;
            }
        };
        tokio::join!(self.run_socket(stop.clone()), by_network);
    }

    async fn run_socket(&self, stop: CancellationToken) {
        let (tasks, seats) = (TaskTracker::new(), Arc::new(Semaphore::new(COMMANDS_MAX)));
        let taking = async {
            while let Ok(seat) = Arc::clone(&seats).acquire_owned().await {
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let (office, stop, group) = (Arc::clone(&self.office), stop.clone(), self.group);
                        tasks.spawn(async move {
                            serve(stream, office, group, stop).await;
                            drop(seat);
                        });
                    }
                    Err(error) => {
                        warn!(%error, "cannot take a command: {error}; trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(taking).await;
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!(%error, "cannot remove the admin socket: {error}");
        }
        tasks.close();
        if tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
            warn!(commands = tasks.len(), "commands were under way when the server stopped");
        }
    }
}

/// One command per connection.
async fn serve(stream: UnixStream, office: Arc<Office>, group: Option<u32>, stop: CancellationToken) {
    let own = rustix::process::geteuid().as_raw();
    let caller = Caller::of(&stream);
    let may_order = caller.as_ref().is_some_and(|caller| caller.may_order(own, group));
    let who = caller.map_or_else(|| "an unknown user".to_owned(), |caller| caller.to_string());
    if !may_order {
        warn!(who, "turned {who} away from the admin socket");
    }
    let asker = Arc::new(Asker { who, leave: if may_order { Leave::Everything } else { Leave::Nothing } });
    let service = service_fn(move |request| {
        let (office, asker) = (Arc::clone(&office), Arc::clone(&asker));
        async move {
            let (head, body) = http::Request::into_parts(request);
            let response = match api::received(body).await {
                Ok(body) => office.respond(&head, &body, &asker).await,
                Err(trouble) => trouble.respond(),
            };
            Ok::<_, std::convert::Infallible>(response.map(Full::new))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(false);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "an admin connection broke: {error}");
    }
}
