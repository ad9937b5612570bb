//! HTTP: the registry for clients, and the admin API for the operator.
//!
//! ```text
//! listen ── connection ── wire        sockets, limits, time-outs; which protocol
//!              │  pulse ──┘
//!              ▼
//!            face ── route (pure)     one request: parsed once, answered once
//!              ├── auth, token         who asks; before anything else is done
//!              ├── v2/…  ── range (pure), incoming; body ── file ── pool
//!              └── reply              what was found, or why nothing was -> status, headers, body
//! admin/                              orders, by a unix socket and over the network; the commands' end of it
//! ```
//! Invariants kept here: 3 (a body that cannot be finished breaks its connection), 11, 14, 16, 17 and 18.

pub mod admin;
mod auth;
mod body;
mod connection;
mod face;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod incoming;
mod listen;
mod pool;
mod pulse;
mod range;
mod recent;
mod reply;
mod route;
mod settings;
mod token;
mod v2;
mod wire;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use body::{Body, BodyError};
pub use listen::{BindError, Listeners, Peer};
pub use pool::Pool;
pub use recent::{Recent, Seen};
pub use settings::{InvalidServerSetting, ServerSettings, listen_address};

use crate::access::Access;
use crate::clock::Clock;
use crate::names::Routes;
use crate::pull::Pull;
use crate::push::Push;
use crate::store::Store;
use face::Face;

/// What requests are answered from.
pub struct Registry {
    pub pull: Pull,
    pub push: Push,
    pub store: Store,
    pub access: Access,
    pub routes: Arc<Routes>,
    pub recent: Arc<Recent>,
    pub clock: Clock,
}

/// The registry's face to its clients.
pub struct Server {
    face: Arc<Face>,
    settings: ServerSettings,
}

impl Server {
    pub fn new(settings: ServerSettings, registry: Registry) -> Self {
        let face = Face::new(registry, &settings);
        Self { face: Arc::new(face), settings }
    }

    /// Answers clients until `stop`, then lets running responses end within `shutdown_timeout`. Returns how many
    /// connections had to be cut.
    pub async fn run(&self, listeners: Listeners, stop: CancellationToken) -> usize {
        let face = Arc::clone(&self.face);
        let handler = move |request, peer| Arc::clone(&face).respond(request, peer);
        listeners.serve(&self.settings, handler, stop).await
    }
}
