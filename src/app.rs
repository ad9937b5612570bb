//! Composition: builds each part once, lowest first, ports last; runs them; ends them in the reverse order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::access::{Access, AccessError, KeysError};
use crate::clock::Clock;
use crate::config::Settings;
use crate::gate::{Gate, GateError, Mode};
use crate::keep::Keep;
use crate::names::{InvalidRoute, Routes};
use crate::pull::Pull;
use crate::push::Push;
use crate::server::admin::{Admin, AdminError, StatusSource};
use crate::server::{BindError, Listeners, Recent, Registry, Server};
use crate::store::{Store, StoreError};
use crate::tls::{InvalidTls, ServerTls};
use crate::upstream::{Upstream, UpstreamSetupError};

/// A sealock, built and bound. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

struct Parts {
    settings: Settings,
    store: Store,
    gate: Gate,
    pull: Pull,
    push: Push,
    keep: Keep,
    access: Access,
    routes: Arc<Routes>,
    server: Server,
    admin: Admin,
    addresses: Vec<SocketAddr>,
    origins: Vec<String>,
    tls: Option<Arc<ServerTls>>,
    /// Taken by [`App::run`].
    listeners: Mutex<Option<Listeners>>,
    /// Cancelled when background work shall end: after the last client's reply.
    end: CancellationToken,
}

/// Why it does not start. Nothing was served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Upstream(#[from] UpstreamSetupError),
    #[error(transparent)]
    Routes(#[from] InvalidRoute),
    #[error(transparent)]
    Tls(#[from] InvalidTls),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl StartError {
    /// Whether it is as it is until somebody changes the settings or this machine, so that trying again is no use.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Routes(_) | Self::Upstream(_) | Self::Tls(_) => true,
            Self::Admin(AdminError::Listen { source, .. }) => source.kind() == std::io::ErrorKind::PermissionDenied,
            Self::Admin(AdminError::NoGroup { .. } | AdminError::Lend { .. } | AdminError::Exposed { .. }) => true,
            Self::Admin(AdminError::NotASocket { .. }) => true,
            Self::Admin(_) => false,
            Self::Bind(why) => why.source.kind() == std::io::ErrorKind::PermissionDenied,
            Self::Store(why) => matches!(why, StoreError::Newer),
            // Who may read it may change, and a disk may come back.
            Self::Access(why) => !matches!(why, AccessError::Keys(KeysError::Read { .. })),
            Self::Gate(_) => false,
        }
    }

    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(why) => why.hint().map(str::to_owned),
            Self::Gate(why) => why.hint(),
            Self::Upstream(why) => why.hint(),
            Self::Tls(why) => why.hint(),
            Self::Bind(why) => Some(why.hint()),
            Self::Admin(why) => why.hint(),
            Self::Access(why) => why.hint(),
            Self::Routes(_) => None,
        }
    }
}

/// What an operator should know whose data folder others may look into, as those of earlier versions may be.
fn exposed(data: &Path) -> Option<String> {
    let mode = |path: &Path| std::fs::symlink_metadata(path).map_or(0, |found| found.permissions().mode());
    let is_open = |name: &&str| mode(&data.join(name)) & 0o004 != 0;
    let may_enter = mode(data) & 0o001 != 0;
    (mode(data) & 0o004 != 0 || may_enter && ["blobs", "catalog.sqlite", "audit", "gate.json"].iter().any(is_open))
        .then(|| {
            let data = data.display();
            format!("other users of this machine can read what is in the data folder `{data}`: `chmod -R o-rwx {data}`")
        })
}

impl App {
    /// Builds and binds. Touches no network but its own ports (invariant 15). `mode` is an order to the gate.
    pub async fn start(settings: Settings, mode: Option<Mode>, clock: Clock) -> Result<Self, StartError> {
        let store = Store::open(&settings.server.data, clock.clone()).await?;
        Self::start_on(store, settings, mode, clock).await
    }

    /// As [`App::start`], on a store that is open already.
    pub async fn start_on(
        store: Store,
        settings: Settings,
        mode: Option<Mode>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let data = &settings.server.data;
        let gate = Gate::load_with(&settings.gate, &settings.audit, data, clock.clone())?;
        let mut upstreams = HashMap::new();
        for (name, wanted) in &settings.upstream {
            let upstream = Upstream::new(name, wanted, &gate, &clock)?;
            upstreams.insert(Arc::from(name.as_str()), Arc::new(upstream));
        }
        let routes = Arc::new(settings.routes()?);
        let end = CancellationToken::new();
        let pull =
            Pull::new(store.clone(), gate.clone(), upstreams.clone(), routes.clone(), clock.clone(), end.clone());
        let push = Push::new(store.clone(), settings.push.clone());
        let far = upstreams.values().cloned();
        let keep = Keep::with_upstreams(store.clone(), settings.keep.clone(), clock.clone(), gate.clone(), far);
        let access = Access::open(
            &settings.access,
            &settings.admin.metrics_to,
            data,
            routes.clone(),
            settings.private_repositories(),
            &gate,
            clock.clone(),
        )?;
        let recent = Arc::<Recent>::default();
        let registry = Registry {
            pull: pull.clone(),
            push: push.clone(),
            store: store.clone(),
            access: access.clone(),
            routes: routes.clone(),
            recent: recent.clone(),
            clock: clock.clone(),
        };
        let server = Server::new(settings.server.clone(), registry);
        let tls = ServerTls::load(&settings.tls, &clock)?;
        let listeners = Listeners::default().and(&settings.server.listen, tls.as_ref()).await?;
        let listeners = listeners.and(&settings.server.listen_plain, None).await?;
        let (addresses, origins) = (listeners.addresses(), listeners.origins());
        let source = StatusSource {
            store: store.clone(),
            gate: gate.clone(),
            pull: pull.clone(),
            keep: keep.clone(),
            access: access.clone(),
            routes: routes.clone(),
            upstreams: upstreams.into_values().collect(),
            addresses: addresses.clone(),
            origins: origins.clone(),
            tls: tls.clone(),
            warnings: settings.server.warning(tls.is_some()).into_iter().chain(exposed(data)).collect(),
            recent,
            clock,
        };
        let admin = Admin::bind(&settings.server, &settings.admin, source).await?;
        // Last of all, because the order outlasts the run: a start that fails must not leave the gate open.
        if let Some(mode) = mode {
            gate.set_initial(mode).await?;
        }
        let listeners = Mutex::new(Some(listeners));
        Ok(Self(Arc::new(Parts {
            settings,
            store,
            gate,
            pull,
            push,
            keep,
            access,
            routes,
            server,
            admin,
            addresses,
            origins,
            tls,
            listeners,
            end,
        })))
    }

    /// Serves until `stop`, then lets running replies end, ends the background work, and closes the store.
    pub async fn run(&self, stop: CancellationToken) {
        let parts = &self.0;
        let taken = parts.listeners.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(listeners) = taken else { return };
        info!("serving on {}", parts.origins.join(", "));
        if let Some(warning) = parts.settings.server.warning(parts.tls.is_some()) {
            warn!("{warning}");
        }
        let serving = async {
            let cut = parts.server.run(listeners, stop.clone()).await;
            if cut > 0 {
                warn!(connections = cut, "{cut} connections were cut: they did not end within the shutdown time-out");
            }
            // The gate's clock and the admin socket go on until the last client has its reply.
            parts.end.cancel();
        };
        let end = || parts.end.clone();
        let (gate, admin) = (parts.gate.run(end()), parts.admin.run(end()));
        let certificates = async {
            if let Some(tls) = parts.tls.clone() {
                tls.run(end()).await;
            }
        };
        tokio::join!(serving, gate, admin, certificates, parts.push.run(end()), parts.keep.run(end()));
        parts.pull.ended().await;
        parts.push.ended().await;
        if let Err(why) = parts.gate.flush().await {
            error!("cannot write the end of the audit file: {why}");
        }
        parts.store.close().await;
        info!("stopped");
    }

    /// Where clients reach it: real ports, also where the settings say 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.0.addresses
    }

    /// The same with their schemes.
    pub fn origins(&self) -> &[String] {
        &self.0.origins
    }

    /// Where orders are taken over the network, with their schemes.
    pub fn admin_origins(&self) -> &[String] {
        self.0.admin.origins()
    }

    /// What clients are shown, if they are served by TLS.
    pub fn tls(&self) -> Option<&ServerTls> {
        self.0.tls.as_deref()
    }

    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub fn routes(&self) -> &Routes {
        &self.0.routes
    }

    pub fn gate(&self) -> &Gate {
        &self.0.gate
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub fn keep(&self) -> &Keep {
        &self.0.keep
    }

    pub fn access(&self) -> &Access {
        &self.0.access
    }

    pub fn pull(&self) -> &Pull {
        &self.0.pull
    }
}
