//! The admin API over TCP: everybody logs in, and the access rules say what they may.
//!
//! Its connections, time-outs and TLS are those of the registry's ports, with bounds of their own: whoever fills these
//! places keeps neither clients from the registry nor the operator from the socket.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::api::{Trouble, received};
use super::rights::{Asker, Leave};
use super::{COMMANDS_MAX, Office, STOP_TIMEOUT};
use crate::access::{Unidentified, Visitor};
use crate::server::{Body, Listeners, Peer, ServerSettings, auth};
use crate::size::Span;

/// Connections at one time, in all and from one address.
pub const CONNECTIONS_MAX: usize = 64;
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 16;
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"sealock admin\"");

/// Answers until `stop`; then orders under way may end for a moment.
pub(super) async fn serve(
    listeners: Listeners,
    office: Arc<Office>,
    settings: &ServerSettings,
    stop: CancellationToken,
) {
    let limits = ServerSettings {
        connections_max: CONNECTIONS_MAX,
        connections_per_address_max: CONNECTIONS_PER_ADDRESS_MAX,
        streams_max: COMMANDS_MAX as u32,
        shutdown_timeout: Span(STOP_TIMEOUT),
        ..settings.clone()
    };
    let seats = Arc::new(Semaphore::new(COMMANDS_MAX));
    let handler = move |request, peer| answer(Arc::clone(&office), Arc::clone(&seats), request, peer);
    let cut = listeners.serve(&limits, handler, stop).await;
    if cut > 0 {
        warn!(connections = cut, "orders over the network were under way when the server stopped");
    }
}

async fn answer(office: Arc<Office>, seats: Arc<Semaphore>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
    let (head, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    let mut response = match office.let_in(&head, &peer).await {
        Err(refused) => refused,
        Ok(asker) => {
            let response = follow(&office, &seats, &head, body, &asker).await.unwrap_or_else(|refused| refused);
            if response.status() == StatusCode::FORBIDDEN {
                let (method, path) = (head.method.as_str(), head.uri.path());
                info!(who = asker.who, "turned {} away from {method:.20} {path:.100}", asker.who);
            }
            response
        }
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let is_stranger = response.status() == StatusCode::UNAUTHORIZED;
    if is_stranger || has_body && !response.status().is_success() {
        // Strangers hold no places; and a body may not have been read to its end, which could take for ever.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if head.method == Method::HEAD {
        // Over HTTP/2, hyper would send the body of what was asked for by its head.
        let size = response.body().len();
        response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
        return response.map(|_| Body::empty());
    }
    response.map(Body::full)
}

/// A seat is taken only by who has a right, and only when all has come that they say.
async fn follow(
    office: &Office,
    seats: &Semaphore,
    head: &request::Parts,
    body: Incoming,
    asker: &Asker,
) -> Result<Response<Bytes>, Response<Bytes>> {
    let allowed = match super::metrics::PATH == head.uri.path() {
        true => office.allow_metrics(asker),
        false => office.allow_something(asker),
    };
    allowed.map_err(Trouble::respond)?;
    let body = received(body).await.map_err(Trouble::respond)?;
    let _seat = seats.try_acquire().map_err(|_| later("too many orders at once".to_owned(), 1))?;
    if head.method == Method::POST {
        info!(who = asker.who, "an order of {}: {:.100}", asker.who, head.uri.path());
    }
    Ok(office.respond(head, &body, asker).await)
}

impl Office {
    /// Who asks; or the reply for who is not let in.
    async fn let_in(&self, head: &request::Parts, peer: &Peer) -> Result<Asker, Response<Bytes>> {
        let access = &self.source.access;
        let address = peer.address.ip().to_canonical();
        let visitor = Visitor { address, certificate: peer.certificate.as_ref() };
        let caller = access.identify(auth::shown(&head.headers), visitor).await.map_err(|why| {
            debug!(client = %peer.address, "not let in to give orders: {why}");
            unidentified(&why)
        })?;
        let watches = matches!(head.method, Method::GET | Method::HEAD) && head.uri.path() == super::metrics::PATH;
        if caller.is_anonymous() && !(watches && access.may_watch(&caller)) {
            let error = match access.knows_nobody() {
                true => "nobody can log in here yet: add a user, and an access rule that gives it the verb `admin`",
                false => "log in to give orders",
            };
            return Err(unauthorized(error.to_owned()));
        }
        if head.method == Method::POST && !is_json(&head.headers) {
            // No web page can have a browser send this without asking us first, and we do not answer such questions.
            let error = "an order has `Content-Type: application/json`".to_owned();
            let hint = Some("with curl: --json '{}'".to_owned());
            return Err(Trouble { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, error, hint }.respond());
        }
        let who = format!("{} from {address}", caller.to_string().escape_debug());
        Ok(Asker { who, leave: Leave::ByRules(caller) })
    }
}

/// The reply for who is not identified.
fn unidentified(why: &Unidentified) -> Response<Bytes> {
    match why.retry_after() {
        Some(seconds) => later(why.to_string(), seconds),
        None => unauthorized(why.to_string()),
    }
}

fn unauthorized(error: String) -> Response<Bytes> {
    let hint = "log in as a user, or with the token of a robot; docs/access.md tells how".to_owned();
    let trouble = Trouble { status: StatusCode::UNAUTHORIZED, error, hint: Some(hint) };
    let mut response = trouble.respond();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
    response
}

fn later(error: String, seconds: u64) -> Response<Bytes> {
    let mut response = Trouble { status: StatusCode::TOO_MANY_REQUESTS, error, hint: None }.respond();
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    response
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_web_page_cannot_send_by_itself_is_an_order() {
        // Invariant 16
        let is_json = |value: &str| is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]));
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/json ;x=y"] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/plain", "text/plain; application/json", "application/x-www-form-urlencoded"] {
            assert!(!is_json(bad), "{bad}");
        }
        assert!(!super::is_json(&HeaderMap::new()));
    }
}
