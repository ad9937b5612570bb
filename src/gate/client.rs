//! The one HTTP client: asks the gate, connects through it, and leaves a record of each request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::audit::Trail;
use super::body::{Body, Running};
use super::connect::Connector;
use super::dial::DialError;
use super::sockets::Leave;
use super::{Gate, Permit, ProxySettings, Purpose, SendError};

/// Most requests to one host of an upstream at one time; more wait their turn.
pub const REQUESTS_PER_HOST_MAX: usize = 64;
/// Longest wait for a turn.
pub const TURN_WAIT_MAX: Duration = Duration::from_secs(60);
/// Most hosts of one upstream, redirect targets among them, whose requests are counted at one time.
pub const HOSTS_MAX: usize = 256;
/// An idle connection is kept for the next request so long.
pub const POOL_IDLE: Duration = Duration::from_secs(60);
/// Bytes that one HTTP/1 connection buffers at most; the head of a response must fit.
const HTTP1_BUFFER: usize = 512 << 10;
/// Bytes that one HTTP/2 stream and one connection may have in flight: at 50 ms, 80 MiB/s and 160 MiB/s.
const HTTP2_STREAM_WINDOW: u32 = 4 << 20;
const HTTP2_CONNECTION_WINDOW: u32 = 8 << 20;
const HTTP2_FRAME: u32 = 256 << 10;
const HTTP2_HEAD: u32 = 64 << 10;
/// With requests under way, a silent HTTP/2 connection is asked whether it lives.
const HTTP2_PING_EVERY: Duration = Duration::from_secs(20);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);
const AGENT: &str = concat!("sealock/", env!("CARGO_PKG_VERSION"));

/// How one upstream is reached: TLS, proxy, time-outs.
#[derive(Clone)]
pub struct ClientSettings {
    /// Key of the upstream in the settings.
    pub upstream: Arc<str>,
    pub tls: Arc<rustls::ClientConfig>,
    /// `None`: directly. Read from HTTPS_PROXY, HTTP_PROXY, NO_PROXY (either case) by `ProxySettings::from_env`.
    pub proxy: Option<Arc<ProxySettings>>,
    /// TCP connect plus TLS handshake plus name look-up.
    pub connect_timeout: Duration,
    /// Waiting for a response head.
    pub response_timeout: Duration,
    /// Longest silence within a body.
    pub stall_timeout: Duration,
}

/// The one HTTP client: asks the gate, dials (HTTP/1.1 and HTTP/2 by ALPN, pooled), audits.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    gate: Gate,
    settings: ClientSettings,
    /// `None`: an upstream, which is asked only while the gate is open.
    inside: Option<Inside>,
    /// One pool per leave, so that no connection outlives the leave that it was made under.
    pool: Mutex<Option<(Arc<Leave>, Http)>>,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// The one host inside the site that may be asked whatever the gate says.
struct Inside {
    host: String,
    leave: Arc<Leave>,
}

type Http = legacy::Client<Connector, Full<Bytes>>;

impl Client {
    /// Connects to nothing yet.
    pub fn new(gate: Gate, settings: ClientSettings) -> Self {
        Self(Arc::new(Inner { gate, settings, inside: None, pool: Mutex::default(), hosts: Mutex::default() }))
    }

    /// As [`Client::new`], for a service inside the site that is no upstream: it is asked also while the gate is closed,
    /// and nothing but `host` (as it stands in URLs, with its port) is. `settings.upstream` is its name in the audit file.
    pub fn inside(gate: Gate, settings: ClientSettings, host: &str) -> Self {
        let inside = Some(Inside { host: host.to_owned(), leave: Leave::inside(settings.upstream.clone()) });
        Self(Arc::new(Inner { gate, settings, inside, pool: Mutex::default(), hosts: Mutex::default() }))
    }

    /// Sends one request (absolute URI); follows nothing, retries nothing. `request`'s path is audited without its query.
    pub async fn send(&self, purpose: Purpose, mut request: Request<Full<Bytes>>) -> Result<Response<Body>, SendError> {
        let inner = &*self.0;
        let host = host_of(request.uri())?;
        let permit = inner.permit(purpose, &host)?;
        let (turn, slot) = inner.turn(&permit, &host).await?;
        let trail = Trail::begin(slot, &inner.gate, purpose, &inner.settings.upstream, &host, &request);
        inner.dress(&mut request);
        let longest = inner.settings.connect_timeout + inner.settings.response_timeout;
        let answer = tokio::select! {
            biased;
            () = permit.revoked() => Err(permit.refusal().into()),
            answer = timeout(longest, inner.http(&permit).request(request)) => match answer {
                Ok(answer) => answer.map_err(|error| inner.send_error(error, &permit, &host)),
                Err(_) => Err(SendError::TimedOut { host: host.clone(), waited: longest }),
            },
        };
        match answer {
            Ok(response) => Ok(inner.receive(response, Running { permit, trail, host, _turn: turn })),
            Err(error) => {
                trail.end_with(&error);
                Err(error)
            }
        }
    }
}

impl Inner {
    fn permit(&self, purpose: Purpose, host: &str) -> Result<Permit, SendError> {
        let Some(inside) = &self.inside else { return Ok(self.gate.permit(purpose, &self.settings.upstream, host)?) };
        if inside.host != host {
            let source = format!("only `{}` may be asked here", inside.host).into();
            return Err(SendError::Connect { host: host.to_owned(), source });
        }
        Ok(Permit { _under_way: inside.leave.enter(), leave: inside.leave.clone(), gate: self.gate.clone() })
    }

    /// Waits for a place among the requests to `host`, and for one in the audit file's queue.
    async fn turn(&self, permit: &Permit, host: &str) -> Result<(OwnedSemaphorePermit, super::audit::Slot), SendError> {
        let places = self.places(host);
        let both = async {
            // Neither semaphore is ever closed.
            let turn = places.acquire_owned().await.map_err(|_| permit.refusal())?;
            Ok((turn, self.gate.0.audit.slot().await))
        };
        tokio::select! {
            biased;
            () = permit.revoked() => Err(permit.refusal().into()),
            turn = timeout(TURN_WAIT_MAX, both) => match turn {
                Ok(turn) => turn,
                Err(_) => Err(SendError::TimedOut { host: host.to_owned(), waited: TURN_WAIT_MAX }),
            },
        }
    }

    fn places(&self, host: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = hosts.get(host) {
            return places.clone();
        }
        if hosts.len() >= HOSTS_MAX {
            hosts.retain(|_, places| Arc::strong_count(places) > 1);
        }
        let places = Arc::new(Semaphore::new(REQUESTS_PER_HOST_MAX));
        hosts.insert(host.to_owned(), places.clone());
        places
    }

    fn dress(&self, request: &mut Request<Full<Bytes>>) {
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        // Of what travels through a proxy in the clear, the proxy reads the request's own headers.
        request.headers_mut().remove(PROXY_AUTHORIZATION);
        if request.uri().scheme() == Some(&Scheme::HTTP)
            && let Some(proxy) = self.settings.proxy.as_deref().and_then(|proxies| {
                proxies.proxy_for(false, request.uri().host()?, request.uri().port_u16().unwrap_or(80))
            })
            && let Some(authorization) = proxy.authorization()
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
    }

    fn http(&self, permit: &Permit) -> Http {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pool {
            Some((leave, http)) if Arc::ptr_eq(leave, &permit.leave) => http.clone(),
            _ => {
                let http = new_pool(Connector::new(&self.gate, permit.leave.clone(), self.settings.clone()));
                *pool = Some((permit.leave.clone(), http.clone()));
                http
            }
        }
    }

    fn receive(&self, response: Response<Incoming>, mut running: Running) -> Response<Body> {
        running.trail.status(response.status());
        response.map(|inner| Body::new(inner, running, self.settings.stall_timeout))
    }

    fn send_error(&self, error: legacy::Error, permit: &Permit, host: &str) -> SendError {
        let host = host.to_owned();
        if permit.is_revoked() {
            return permit.refusal().into();
        }
        match cause::<DialError>(&error) {
            Some(DialError::Refused) => permit.refusal().into(),
            Some(DialError::TimedOut(waited)) => SendError::TimedOut { host, waited: *waited },
            Some(dial) => SendError::Connect { host, source: Box::new(dial.clone()) },
            None if error.is_connect() => SendError::Connect { host, source: error.into() },
            None => SendError::Broken { host, source: error.into() },
        }
    }
}

fn new_pool(connector: Connector) -> Http {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(REQUESTS_PER_HOST_MAX)
        .http1_max_buf_size(HTTP1_BUFFER)
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .http2_max_frame_size(HTTP2_FRAME)
        .http2_max_header_list_size(HTTP2_HEAD)
        .http2_keep_alive_interval(HTTP2_PING_EVERY)
        .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .build(connector)
}

/// `host` or `host:port` of an absolute http or https URI, never with credentials.
fn host_of(uri: &Uri) -> Result<String, SendError> {
    let authority = uri.authority().filter(|_| matches!(uri.scheme_str(), Some("http" | "https")));
    match authority {
        Some(authority) => Ok(match authority.port_u16() {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        }),
        None => Err(SendError::Connect {
            host: uri.host().unwrap_or_default().to_owned(),
            source: "neither an http nor an https URL".into(),
        }),
    }
}

fn cause<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
