//! Whether sealock may reach out now, and the one client that does.
//!
//! Every outbound byte passes [`Gate::permit`] and is written to the audit file. The gate starts closed; only an
//! operator or a window in the settings opens it. When it closes, permits are revoked and their connections are reset.
//!
//! ```text
//! Client::send ── permit ── audit slot ── pool ── Connector ── dial (the only connect) ── Sockets ── the network
//!    └ Body: asks again with every frame                        └ proxy, TLS               └ reset when the gate closes
//! Gate::open, close, tick ── keeper ── state (pure) ── gate.json, audit/audit.jsonl
//! ```
//!
//! Invariants kept here (numbers of DESIGN.md):
//! * 1: [`Gate::close`] returns when no socket to an upstream is left and no name look-up is under way.
//! * 12: the audit file holds paths without queries, hosts without credentials.
//! * 15: nothing here touches the network before [`Client::send`].
//! * 19: an opening is on disk before the first permit; a request's record always ends up in the file or in the log.

mod audit;
mod audit_file;
mod body;
mod client;
mod connect;
mod dial;
mod keeper;
mod proxy;
mod settings;
mod sockets;
mod state;
mod state_file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use audit::{CAUSE_MAX, Outcome, RECORDS_OUTSTANDING_MAX};
pub use audit_file::{AuditError, AuditSettings};
pub use body::Body;
pub use client::{Client, ClientSettings, HOSTS_MAX, POOL_IDLE, REQUESTS_PER_HOST_MAX, TURN_WAIT_MAX};
pub use connect::{CONNECT_HEAD_MAX, PeerCertificate};
pub use dial::{ADDRESSES_MAX, DialError, LOOKUPS_MAX};
pub use keeper::{LASTING_MAX, LOOKUP_WAIT_MAX, UPSTREAMS_OPEN_MAX, WORDS_MAX};
pub use proxy::{NO_PROXY_ENTRIES_MAX, ProxyError, ProxySettings};
pub use settings::{GateSettings, Mode, WINDOWS_MAX, WindowSettings};
pub use sockets::SOCKETS_MAX;
pub use state::CLOCK_STEP_MAX;
pub use state_file::STATE_SIZE_MAX;

use crate::clock::Clock;
use keeper::Keeper;
use sockets::{Leave, UnderWay};

/// What an outbound request is for; written to the audit file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Whether an upstream that failed is back.
    Ping,
    Token,
    Manifest,
    Blob,
    Tags,
    Referrers,
    /// The keys of who issues logins, inside the site.
    Keys,
}

/// The gate. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Keeper>);

/// Leave for one outbound request. Revoked (see [`Permit::revoked`]) when the gate closes.
pub struct Permit {
    leave: Arc<Leave>,
    gate: Gate,
    _under_way: UnderWay,
}

/// Why a request may not leave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody has opened it, or it has been closed again.
    #[error("the gate is closed{}", until(*opens_at))]
    Closed {
        /// When the next window starts, if one is set.
        opens_at: Option<Timestamp>,
    },
}

/// Who changes the gate, and why; both go into the audit file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub who: String,
    pub why: Option<String>,
}

/// What `sealock gate status --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateStatus {
    /// Whether requests may leave now.
    pub open: bool,
    /// While open; `None`: when somebody closes it.
    pub closes_at: Option<Timestamp>,
    /// While closed; `None`: when somebody opens it.
    pub opens_at: Option<Timestamp>,
    /// Of the last change.
    pub who: Option<String>,
    pub why: Option<String>,
    pub since: Option<Timestamp>,
    /// Upstreams that are open by themselves, by their key in the settings.
    #[serde(default)]
    pub upstreams: BTreeMap<String, UpstreamGate>,
    /// Closed to new requests, while those under way may finish.
    #[serde(default)]
    pub draining: bool,
    /// Requests that have left and not ended.
    #[serde(default)]
    pub under_way: usize,
    /// Sockets to upstreams, idle ones among them.
    #[serde(default)]
    pub sockets: usize,
}

/// An upstream that was opened by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamGate {
    pub closes_at: Option<Timestamp>,
    pub who: String,
    pub why: Option<String>,
    pub since: Timestamp,
}

/// Why the gate cannot be loaded or changed.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("[{key}] {message}")]
    Settings { key: String, message: String },
    #[error("cannot keep the gate's state in `{path}`")]
    State {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// It is closed in memory and on disk; what is left are questions of the system's resolver.
    #[error("the gate is closed, but {count} name look-ups have not ended within {LOOKUP_WAIT_MAX:?}")]
    LookUpsUnderWay { count: usize },
    /// It is closed in memory and on disk.
    #[error("the gate is closed, but {count} connections could not be reset")]
    NotReset {
        count: usize,
        #[source]
        source: std::io::Error,
    },
    #[error("the gate was opened while it was being drained")]
    Reopened,
    #[error("`{what}` has more than {WORDS_MAX} characters")]
    TooLong { what: &'static str },
    #[error("the gate cannot be opened for longer than {} days", LASTING_MAX.as_secs() / 86_400)]
    TooFar,
    #[error("{UPSTREAMS_OPEN_MAX} upstreams are already open by themselves")]
    TooManyUpstreams,
    /// The server is going down, or a task of the gate panicked.
    #[error("the gate has stopped")]
    Stopped,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("cannot connect to `{host}`")]
    Connect {
        host: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("`{host}` was silent for {waited:?}")]
    TimedOut { host: String, waited: Duration },
    #[error("the connection to `{host}` broke")]
    Broken {
        host: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Gate {
    /// Loads the state from `data/gate.json` (unreadable state means closed, and is reported), opens the audit file
    /// `data/audit/audit.jsonl` with the default settings.
    pub fn load(settings: &GateSettings, data: &Path, clock: Clock) -> Result<Self, GateError> {
        Self::load_with(settings, &AuditSettings::default(), data, clock)
    }

    /// As [`Gate::load`], with settings for the audit file.
    pub fn load_with(
        settings: &GateSettings,
        audit: &AuditSettings,
        data: &Path,
        clock: Clock,
    ) -> Result<Self, GateError> {
        Keeper::load(settings, audit, data, clock).map(|keeper| Self(Arc::new(keeper)))
    }

    /// Leave for one request to `host` of the upstream `upstream` (key of the settings). Reads memory only.
    pub fn permit(&self, purpose: Purpose, upstream: &str, host: &str) -> Result<Permit, Refusal> {
        let leave = self.0.leave(upstream).inspect_err(|refusal| {
            tracing::debug!(upstream, host, ?purpose, "nothing leaves for `{upstream}`: {refusal}");
        })?;
        Ok(Permit { _under_way: leave.enter(), leave, gate: self.clone() })
    }

    /// `None` while requests to `upstream` may leave. Reads memory only: on the hot path.
    pub fn refusal(&self, upstream: &str) -> Option<Refusal> {
        self.0.refusal(upstream)
    }

    /// Opens, for `lasting` or until closed; `upstream`: only that one. State is on disk before this returns. An order
    /// is carried out also when the returned future is dropped.
    pub async fn open(
        &self,
        order: Order,
        lasting: Option<Duration>,
        upstream: Option<&str>,
    ) -> Result<GateStatus, GateError> {
        let (keeper, upstream) = (self.0.clone(), upstream.map(str::to_owned));
        to_the_end(async move { keeper.open(order, lasting, upstream).await }).await?;
        Ok(self.status())
    }

    /// Closes: after `drain` at most (earlier when nothing is under way; when a later order takes over, it says when). On
    /// return every upstream socket has been reset. An order is carried out also when the returned future is dropped.
    pub async fn close(&self, order: Order, drain: Option<Duration>) -> Result<GateStatus, GateError> {
        let keeper = self.0.clone();
        to_the_end(async move { keeper.close(order, drain).await }).await?;
        Ok(self.status())
    }

    /// What `serve --gate open|closed` asks for: an order of the command line, for as long as nobody says otherwise.
    pub async fn set_initial(&self, mode: Mode) -> Result<GateStatus, GateError> {
        let why = match mode {
            Mode::Open => "serve --gate open",
            Mode::Closed => "serve --gate closed",
        };
        let order = Order { who: "command line".to_owned(), why: Some(why.to_owned()) };
        match mode {
            Mode::Open => self.open(order, None, None).await,
            Mode::Closed => self.close(order, None).await,
        }
    }

    pub fn status(&self) -> GateStatus {
        self.0.status()
    }

    /// Changes whenever the gate opens or closes, or its end moves.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    /// Does now what the clock asks for: ends what is over, opens and closes windows. [`Gate::run`] calls it in time.
    pub async fn tick(&self) -> Result<(), GateError> {
        let keeper = self.0.clone();
        to_the_end(async move { keeper.tick().await }).await
    }

    /// Opens and closes by the clock (`until`, windows) until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut changes = self.changes();
        while !stop.is_cancelled() {
            changes.mark_unchanged();
            if let Err(error) = self.tick().await {
                tracing::error!(%error, "the gate could not follow the clock: {}", with_causes(&error));
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(self.0.until_next_change()) => {}
                // The sender is in `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// Waits until the audit file has every record so far, on disk. For the end of the server.
    pub async fn flush(&self) -> Result<(), GateError> {
        Ok(self.0.audit.flush().await?)
    }
}

impl Permit {
    /// Whether the gate has closed since.
    pub fn is_revoked(&self) -> bool {
        self.leave.is_revoked()
    }

    /// Returns when the gate closes.
    pub async fn revoked(&self) {
        self.leave.revoked().await;
    }

    /// Why it was revoked.
    fn refusal(&self) -> Refusal {
        self.gate.refusal(&self.leave.upstream).unwrap_or(Refusal::Closed { opens_at: None })
    }
}

impl SendError {
    /// Why there was no connection at all.
    pub fn dial(&self) -> Option<&DialError> {
        match self {
            Self::Connect { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }
}

impl GateError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::State { .. } | Self::Audit(AuditError::Io { .. }) => {
                "see that the data folder's disk has room and that sealock may write to it"
            }
            Self::LookUpsUnderWay { .. } | Self::NotReset { .. } => {
                "stop the server to be certain that nothing leaves: its sockets and look-ups end with it"
            }
            Self::Reopened => {
                "run `sealock gate status` to see who opened it; close it again with `sealock gate close`"
            }
            Self::TooLong { .. } => "say it shorter",
            Self::TooFar => "leave `--for` out to open it until somebody closes it",
            Self::TooManyUpstreams => "open the gate for all of them",
            Self::Settings { .. } | Self::Audit(AuditError::Stopped) | Self::Stopped => return None,
        };
        Some(text.to_owned())
    }
}

impl Order {
    /// An order that somebody gave.
    pub fn new(who: impl Into<String>, why: Option<&str>) -> Self {
        Self { who: who.into(), why: why.map(str::to_owned) }
    }
}

fn until(opens_at: Option<Timestamp>) -> String {
    opens_at.map(|at| at.strftime(" until %Y-%m-%d %H:%M UTC").to_string()).unwrap_or_default()
}

/// Runs to the end also when the caller goes away: a change half-way is neither open nor closed.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, GateError>> + Send + 'static,
) -> Result<T, GateError> {
    tokio::spawn(change).await.unwrap_or(Err(GateError::Stopped))
}

/// An error and its causes, in one line of bounded length.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    audit::chain(error)
}
