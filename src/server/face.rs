//! One request: parsed, answered, logged; whatever happens in between.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, request};
use http_body::Body as _;
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::{Instrument, Level, debug, debug_span, error, info, warn};

use super::Registry;
use super::auth::{Door, Wish};
use super::body::Body;
use super::incoming::MANIFESTS_BYTES_MAX;
use super::listen::Peer;
use super::pool::Pool;
use super::recent::Recent;
use super::reply::{self, Problem, RequestId, Wanted};
use super::route::{Asked, Begin, Route};
use super::settings::ServerSettings;
use super::{token, v2};
use crate::access::{Access, Caller, Verb};
use crate::clock::Clock;
use crate::names::{Repository, Routes, Target};
use crate::oci::RepositoryName;
use crate::pull::{Ask, Miss, Pull};
use crate::push::{Order, Push, PushError};
use crate::store::Store;

/// What answering takes; one for the process.
pub(super) struct Face {
    pub(super) pull: Pull,
    pub(super) push: Push,
    pub(super) store: Store,
    pub(super) access: Access,
    routes: Arc<Routes>,
    recent: Arc<Recent>,
    pub(super) clock: Clock,
    pub(super) pool: Arc<Pool>,
    /// Longest silence within a request's body.
    pub(super) stall: Duration,
    /// Longest wait for a token request's form: who sends one has not logged in.
    pub(super) form_timeout: Duration,
    /// What all manifests take up together that are being received.
    pub(super) manifest_room: Arc<Semaphore>,
    ids: AtomicU64,
}

/// One request in hand.
pub(super) struct Call<'a> {
    pub(super) face: &'a Face,
    pub(super) caller: &'a Caller,
    pub(super) id: RequestId,
    pub(super) headers: &'a HeaderMap,
    pub(super) is_head: bool,
    pub(super) version: Version,
    /// `?ns=`, to be carried on in links.
    pub(super) namespace: Option<&'a str>,
}

pub(super) type Answer = Result<Response<Body>, Problem>;

const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const READS: &str = "GET, HEAD";
/// How long the store may take to say that it is there.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

impl Face {
    pub(super) fn new(registry: Registry, settings: &ServerSettings) -> Self {
        let Registry { pull, push, store, access, routes, recent, clock } = registry;
        let (pool, ids) = (Pool::new(), AtomicU64::new(fastrand::u64(..)));
        let manifest_room = Arc::new(Semaphore::new(MANIFESTS_BYTES_MAX));
        let (stall, form_timeout) = (settings.stall_timeout.0, settings.header_timeout.0);
        Self { pull, push, store, access, routes, recent, clock, pool, stall, form_timeout, manifest_room, ids }
    }

    /// Never fails: a panic, too, is a reply, and ends nothing but its request.
    pub(super) async fn respond(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let id = RequestId(self.ids.fetch_add(1, Ordering::Relaxed));
        let begun = tracing::enabled!(Level::DEBUG).then(Instant::now);
        let (head, mut body) = request.into_parts();
        let span = debug_span!("request", %id, client = %peer.address, method = %head.method, path = head.uri.path());
        let outcome = contained(id, self.answer(&head, &mut body, &peer, id)).instrument(span).await;
        let mut response = outcome.unwrap_or_else(|problem| problem.respond(id));
        finish(&mut response, &head, id, !body.is_end_stream());
        self.recent.note(&head, peer.address.ip(), response.status(), || self.clock.now());
        if let Some(begun) = begun {
            let (status, ms) = (response.status().as_u16(), begun.elapsed().as_secs_f64() * 1000.0);
            let (method, path) = (&head.method, head.uri.path());
            debug!(%id, client = %peer.address, %method, path, status, ms, "{method} {path:?}: {status}");
        }
        response
    }

    async fn answer(&self, head: &request::Parts, body: &mut Incoming, peer: &Peer, id: RequestId) -> Answer {
        let Asked { route, namespace } = Asked::parse(head.uri.path(), head.uri.query())?;
        let namespace = namespace.as_deref();
        let (is_head, headers, version) = (head.method == Method::HEAD, &head.headers, head.version);
        let door = Door::new(&self.access, head, peer, id);
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        match route {
            Route::Live if reads => return Ok(reply::json_reply(StatusCode::OK, &json!({ "status": "alive" }))),
            Route::Ready if reads => return Box::pin(self.ready(id)).await,
            // Boxed: its rarely used state would be moved with every request.
            Route::Token => return Box::pin(token::serve(self, &door, head, body, id)).await,
            _ => {}
        }
        let caller = &door.caller().await?;
        let call = Call { face: self, caller, id, headers, is_head, version, namespace };
        if !reads || matches!(route, Route::Uploads { .. } | Route::Upload { .. }) {
            // Boxed: its rarely used state would be moved with every request.
            let outcome = Box::pin(self.change(&call, &door, &head.method, route, body, peer)).await;
            return echo(outcome, namespace);
        }
        let ask = |name: &RepositoryName| {
            let target = self.target(&call, &door, name, Verb::Pull, None)?;
            Ok::<_, Problem>(Ask { target, client: peer.address.ip().to_canonical() })
        };
        let outcome = match route {
            Route::Manifest { name, reference, tags: _ } => v2::manifests::serve(&call, &ask(&name)?, &reference).await,
            Route::Blob { name, digest } => v2::blobs::serve(&call, &ask(&name)?, &digest).await,
            // Boxed: their rarely used state would be moved with every request.
            Route::Tags { name, page } => Box::pin(v2::tags::serve(&call, &ask(&name)?, &page)).await,
            Route::Referrers { name, digest, query } => {
                Box::pin(v2::referrers::serve(&call, &ask(&name)?, &digest, &query)).await
            }
            Route::Base => return self.base(&door, caller),
            Route::Catalog { page } => {
                let denied = |why| door.denied(&why, caller, "list the repositories", &Wish::catalog());
                self.access.decide_catalog(caller).map_err(denied)?;
                return Box::pin(v2::catalog::serve(&call, &page)).await;
            }
            Route::Uploads { .. } | Route::Upload { .. } | Route::Live | Route::Ready | Route::Token => {
                return Err(not_taken(&route));
            }
        };
        echo(outcome, namespace)
    }

    /// Where docker and others learn whether they must log in: nowhere else do they look (CLIENTS.md 1.1, 1.3).
    fn base(&self, door: &Door<'_>, caller: &Caller) -> Answer {
        if caller.is_anonymous() && !caller.is_scoped() && !self.access.needs_no_login() {
            return Err(door.unauthorized("log in, or ask for an anonymous token".to_owned(), &Wish::none(), None));
        }
        Ok(reply::json_reply(StatusCode::OK, &json!({})))
    }

    /// Where the name leads, if the caller may do this there. Nothing but the settings, the rules and the logins decide.
    /// `from`: what is to be read besides, which the challenge names, too; whether the caller may is not asked here.
    fn target(
        &self,
        call: &Call<'_>,
        door: &Door<'_>,
        name: &RepositoryName,
        verb: Verb,
        from: Option<&RepositoryName>,
    ) -> Result<Target, Problem> {
        let resolved = self.routes.resolve(name, call.namespace);
        let decided = match &resolved {
            Ok(target) => self.access.decide(call.caller, verb, &target.repository),
            Err(_) => self.access.decide_everywhere(call.caller, verb),
        };
        decided.map_err(|why| {
            // `?ns=` has no place in a scope; the host in front of the name says the same.
            let spell = |name: &RepositoryName| match call.namespace {
                None => name.to_string(),
                Some(host) => format!("{host}/{name}"),
            };
            let mut wish = Wish::repository(spell(name), verb);
            if let Some(from) = from {
                wish = wish.and(&Wish::repository(spell(from), Verb::Pull));
            }
            door.denied(&why, call.caller, &format!("{verb} `{name}`"), &wish)
        })?;
        Ok(resolved?)
    }

    /// Pushes and deletions, and the state of an upload.
    async fn change(
        &self,
        call: &Call<'_>,
        door: &Door<'_>,
        method: &Method,
        route: Route,
        body: &mut Incoming,
        peer: &Peer,
    ) -> Answer {
        let client = peer.address.ip().to_canonical();
        let from = match &route {
            Route::Uploads { begin, .. } => begin.mount.as_ref().and_then(|(_, from)| from.as_ref()),
            _ => None,
        };
        let order = |name: &RepositoryName, verb: Verb| {
            let target = self.target(call, door, name, verb, from)?;
            Ok::<_, Problem>(Order { target, owner: Arc::clone(call.caller.id()), client })
        };
        match (method, &route) {
            (&Method::POST, Route::Uploads { name, begin }) => {
                let order = order(name, Verb::Push)?;
                let from = self.mountable(call, &order, begin).await?;
                v2::uploads::begin(call, &order, begin, &from, body).await
            }
            (&Method::GET | &Method::HEAD, Route::Upload { name, id, .. }) => {
                v2::uploads::state(call, &order(name, Verb::Push)?, id).await
            }
            (&Method::PATCH, Route::Upload { name, id, .. }) => {
                v2::uploads::append(call, &order(name, Verb::Push)?, id, body).await
            }
            (&Method::PUT, Route::Upload { name, id, digest }) => {
                v2::uploads::finish(call, &order(name, Verb::Push)?, id, digest.as_ref(), body).await
            }
            (&Method::DELETE, Route::Upload { name, id, .. }) => {
                v2::uploads::cancel(call, &order(name, Verb::Push)?, id).await
            }
            (&Method::PUT, Route::Manifest { name, reference, tags }) => {
                v2::manifests::put(call, &order(name, Verb::Push)?, reference, tags, body).await
            }
            (&Method::DELETE, Route::Manifest { name, reference, .. }) => {
                v2::manifests::delete(call, &order(name, Verb::Delete)?, reference).await
            }
            (&Method::DELETE, Route::Blob { name, digest }) => {
                v2::blobs::delete(call, &order(name, Verb::Delete)?, digest).await
            }
            _ => Err(not_taken(&route)),
        }
    }

    /// Where a blob may be mounted from: what the client names, or wherever it is; of these, what the caller may read.
    async fn mountable(&self, call: &Call<'_>, order: &Order, begin: &Begin) -> Result<Vec<Repository>, Problem> {
        let mut from = match &begin.mount {
            None => return Ok(Vec::new()),
            Some((_, Some(name))) => {
                // A name that leads nowhere holds nothing.
                self.routes.resolve(name, call.namespace).map(|target| target.repository).into_iter().collect()
            }
            Some((digest, None)) => self.push.holders(order, digest).await.map_err(|why| call.refused(&why))?,
        };
        from.retain(|repository| self.access.decide(call.caller, Verb::Pull, repository).is_ok());
        Ok(from)
    }

    /// Asks the store alone: that an upstream is away makes nobody unready (invariant 15).
    async fn ready(&self, id: RequestId) -> Answer {
        match tokio::time::timeout(READY_TIMEOUT, self.store.check_catalog()).await {
            Ok(Ok(())) => Ok(reply::json_reply(StatusCode::OK, &json!({ "status": "ready" }))),
            Ok(Err(error)) => {
                error!(%id, error = &error as &dyn std::error::Error, "not ready: {error}");
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the store does not answer"))
            }
            Err(_) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the store is slow")),
        }
    }
}

impl Call<'_> {
    /// The reply for a miss, which is logged here and nowhere else.
    pub(super) fn missed(&self, miss: &Miss, wanted: Wanted) -> Problem {
        let id = self.id;
        match miss {
            Miss::UnknownName { .. } | Miss::NotFound { .. } | Miss::NotListed { .. } => debug!(%id, "{miss}"),
            Miss::Closed { .. } | Miss::InPart { .. } | Miss::AnonymousDenied { .. } | Miss::Damaged { .. } => {
                info!(%id, "{miss}")
            }
            Miss::CredentialsDenied { .. }
            | Miss::RateLimited { .. }
            | Miss::Unreachable { .. }
            | Miss::TimedOut { .. }
            | Miss::Busy { .. }
            | Miss::GaveUp { .. } => warn!(%id, "{miss}"),
            Miss::WrongBytes { .. } => error!(%id, "{miss}"),
            Miss::Store { source, .. } => error!(%id, error = source.as_ref() as &dyn std::error::Error, "{miss}"),
        }
        Problem::of_miss(miss, wanted, self.face.clock.now())
    }

    /// The reply for a push or a deletion that is refused, which is logged here and nowhere else.
    pub(super) fn refused(&self, why: &PushError) -> Problem {
        let id = self.id;
        match why {
            PushError::Store(source) => error!(%id, error = source as &dyn std::error::Error, "{why}"),
            PushError::GaveUp | PushError::TooManyUploads => warn!(%id, "{why}"),
            _ => info!(%id, "refused: {why}"),
        }
        Problem::of_push(why)
    }
}

/// What every reply carries.
fn finish(response: &mut Response<Body>, head: &request::Parts, id: RequestId, unread: bool) {
    let headers = response.headers_mut();
    headers.insert(reply::API_VERSION, reply::REGISTRY_2);
    if let Ok(id) = HeaderValue::try_from(id.to_string()) {
        headers.insert(reply::REQUEST_ID, id);
    }
    if unread {
        // Reading a refused body to its end could take for ever; not reading it spoils the connection.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if head.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
}

/// 405, with what the path does take.
fn not_taken(route: &Route) -> Problem {
    let allowed = match route {
        Route::Manifest { .. } => "GET, HEAD, PUT, DELETE",
        Route::Blob { .. } => "GET, HEAD, DELETE",
        Route::Uploads { .. } => "POST",
        Route::Upload { .. } => "GET, PATCH, PUT, DELETE",
        Route::Base | Route::Live | Route::Ready => READS,
        Route::Catalog { .. } | Route::Tags { .. } | Route::Referrers { .. } => READS,
        Route::Token => "GET, POST",
    };
    Problem::method(allowed, "this path does not take this method")
}

/// What is answered to a request with `?ns=` says so.
fn echo(outcome: Answer, namespace: Option<&str>) -> Answer {
    let Some(host) = namespace.and_then(|host| HeaderValue::from_str(host).ok()) else { return outcome };
    match outcome {
        Ok(mut response) => {
            response.headers_mut().insert(NAMESPACE, host);
            Ok(response)
        }
        Err(problem) => Err(problem.with(NAMESPACE, host)),
    }
}

/// A panic becomes a reply like any other. No `async fn`: that would hold `answering` twice, as argument and as awaited.
fn contained(id: RequestId, answering: impl Future<Output = Answer>) -> impl Future<Output = Answer> {
    let outcome = AssertUnwindSafe(answering).catch_unwind();
    outcome.map(move |outcome| outcome.unwrap_or_else(|panic| Err(after_panic(&*panic, id))))
}

fn after_panic(panic: &(dyn Any + Send), id: RequestId) -> Problem {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    error!(%id, "a request panicked: {text}");
    Problem::internal("this request")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_500_with_the_requests_id() {
        // Invariant 16
        let outcome = contained(RequestId(7), async { panic!("a defect of ours at /srv/secret") }).await;
        let problem = outcome.err().unwrap();
        assert_eq!((problem.status.as_u16(), problem.code), (500, "UNKNOWN"));
        assert!(!problem.message.contains("/srv"), "{}", problem.message);
    }
}
