//! How the far registry answers: connections, tokens, manifests, blobs, pages.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, LOCATION};
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::response::Builder;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sealock::oci::{Digest, MediaType};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Access, FarRegistry, Latch, Logged};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Bytes of a blob's body that are sent at once.
const PIECE_BYTES: usize = 16 << 10;

static TOKENS: AtomicU64 = AtomicU64::new(0);
static SIGNED: AtomicU64 = AtomicU64::new(0);

/// The serial number of the newest token, of all servers.
pub(super) fn last_token() -> u64 {
    TOKENS.load(Ordering::SeqCst)
}

/// How often the connection's written bytes were all handed to the system.
type Flushes = watch::Receiver<u64>;

impl FarRegistry {
    pub(super) fn listen(&self, listener: TcpListener) {
        let stop = self.shared.stop.lock().expect("no panic while locked").clone();
        let far = self.clone();
        let listening = tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let (tcp, _) = accepted.expect("the listener lives");
                let (far, stop) = (far.clone(), stop.clone());
                tokio::spawn(async move { far.connection(tcp, stop).await });
            }
        });
        *self.shared.listening.lock().expect("no panic while locked") = Some(listening);
    }

    async fn connection(self, tcp: TcpStream, stop: CancellationToken) {
        self.shared.log.send_modify(|log| {
            log.connections += 1;
            log.open += 1;
        });
        let served = async {
            if self.switches().black_hole {
                std::future::pending::<()>().await;
            }
            tcp.set_nodelay(true).expect("a TCP socket");
            match &self.shared.tls {
                None => self.serve(tcp, false).await,
                // A client that does not like our certificate leaves: its own affair.
                Some(tls) => {
                    if let Ok(stream) = tls.acceptor.accept(tcp).await {
                        let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                        self.serve(stream, two).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = served => {}
        }
        self.shared.log.send_modify(|log| log.open -= 1);
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, two: bool) {
        let counter = watch::Sender::new(0);
        let flushes = counter.subscribe();
        let io = TokioIo::new(Flushing { stream, counter });
        let service = service_fn(|request| {
            let (far, flushes) = (self.clone(), flushes.clone());
            async move { Ok::<_, Infallible>(far.answer(request, flushes).await) }
        });
        // Errors are what the tests make happen: cuts, and clients that leave.
        let _ = if two {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
        } else {
            hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
        };
    }

    async fn answer(self, request: Request<Incoming>, flushes: Flushes) -> Response<Body> {
        let (head, body) = request.into_parts();
        let logged = Logged {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers,
            body: body.collect().await.map(|body| body.to_bytes()).unwrap_or_default(),
        };
        let asked = logged.clone();
        self.shared.log.send_modify(|log| log.requests.push(logged));
        if self.switches().black_hole {
            std::future::pending::<()>().await;
        }
        let mut response = match asked.path.as_str() {
            "/token" => self.token(&asked).await,
            path if path.starts_with("/signed/") => self.signed(&asked, flushes),
            _ => self.registry(&asked, flushes).await,
        };
        let filler = self.switches().header_bytes;
        for number in 0..filler / 4096 {
            let name = http::HeaderName::try_from(format!("x-filler-{number}")).expect("a name");
            response.headers_mut().insert(name, "f".repeat(4096).try_into().expect("a value"));
        }
        response
    }

    async fn token(&self, asked: &Logged) -> Response<Body> {
        let latch = self.switches().hold_tokens.clone();
        self.wait_at(latch).await;
        let switches = self.switches().clone();
        let status = if asked.method == Method::GET { switches.token_get_status } else { switches.token_post_status };
        if let Some(status) = status {
            return plain(status);
        }
        if let Some(body) = switches.token_body {
            return full(Response::builder().status(200), body);
        }
        let form = if asked.method == Method::GET { &asked.query } else { &*String::from_utf8_lossy(&asked.body) };
        let field = |wanted: &str| {
            let value = form.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == wanted)?.1;
            let spaced = value.replace('+', " ");
            Some(percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
        };
        let known = match &switches.access {
            Access::Open | Access::AnonymousBearer => true,
            Access::Refresh { token } => field("refresh_token").as_ref() == Some(token),
            Access::Bearer { username, password } | Access::Basic { username, password } => {
                basic(&asked.headers).as_ref() == Some(&(username.clone(), password.clone()))
                    || (field("username").as_ref() == Some(username) && field("password").as_ref() == Some(password))
            }
        };
        if !known {
            return error(401, "UNAUTHORIZED", "incorrect username or password");
        }
        let serial = TOKENS.fetch_add(1, Ordering::SeqCst) + 1;
        let token = format!("far.{serial}.{}", hex::encode(field("scope").unwrap_or_default()));
        let mut reply = json!({});
        reply[switches.token_key] = token.into();
        if let Some(seconds) = switches.token_expires_in {
            reply["expires_in"] = seconds.into();
        }
        full(Response::builder().status(200).header(CONTENT_TYPE, "application/json"), reply.to_string())
    }

    fn signed(&self, asked: &Logged, flushes: Flushes) -> Response<Body> {
        if asked.headers.contains_key(AUTHORIZATION) {
            return plain(400);
        }
        if let Some(status) = self.failure(&asked.path) {
            return plain(status);
        }
        let serial: u64 = asked.path.trim_start_matches("/signed/").parse().unwrap_or_default();
        let found = self.content().signed.get(&serial).cloned();
        match found {
            Some((digest, bytes, signer)) if serial > self.switches().signed_expired => {
                self.blob_body(asked, digest, bytes, Some(signer), flushes)
            }
            _ => plain(403),
        }
    }

    /// The status that a fault switch demands for this path.
    fn failure(&self, path: &str) -> Option<u16> {
        let mut switches = self.switches();
        let failure = switches.failures.iter_mut().find(|(part, _, left)| *left > 0 && path.contains(part.as_str()));
        if let Some((_, status, left)) = failure {
            *left -= 1;
            return Some(*status);
        }
        switches.always
    }

    async fn registry(&self, asked: &Logged, flushes: Flushes) -> Response<Body> {
        let latch = {
            let switches = self.switches();
            let blob = asked.path.contains("/blobs/").then(|| switches.hold_blobs.clone()).flatten();
            blob.or_else(|| asked.path.contains("/manifests/").then(|| switches.hold_manifests.clone()).flatten())
        };
        self.wait_at(latch).await;
        if let Some(status) = self.failure(&asked.path) {
            return error(status, "UNKNOWN", "as the test wishes");
        }
        if let Some((retry_after, left)) = &mut self.switches().rate_limit
            && *left > 0
        {
            *left -= 1;
            let mut response = error(429, "TOOMANYREQUESTS", "slow down");
            if let Some(value) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, value.parse().expect("a value"));
            }
            return response;
        }
        let (name, kind, reference) = split(&asked.path);
        if let Some(refused) = self.refused(asked, &name) {
            return refused;
        }
        if let Some((status, location)) = self.switches().redirect.clone()
            && !name.is_empty()
        {
            return full(Response::builder().status(status).header(LOCATION, location), "");
        }
        match kind.as_str() {
            "manifests" => self.manifest(asked, &name, &reference),
            "blobs" => self.blob(asked, &name, &reference, flushes),
            "tags" => self.tags(asked, &name),
            "referrers" => self.referrers(asked, &name, &reference),
            _ => full(Response::builder().status(200), "{}"),
        }
    }

    fn refused(&self, asked: &Logged, name: &str) -> Option<Response<Body>> {
        let switches = self.switches().clone();
        let scope = format!("repository:{name}:pull");
        let (challenge, granted) = match &switches.access {
            Access::Open => return None,
            Access::Basic { username, password } => {
                ("Basic realm=\"far\"".to_owned(), basic(&asked.headers) == Some((username.clone(), password.clone())))
            }
            _ => {
                let realm = switches.realm.clone().unwrap_or_else(|| self.url("/token"));
                let granted = bearer(&asked.headers)
                    .is_some_and(|(serial, scopes)| serial > switches.tokens_expired && scopes.contains(&scope));
                let stale = if asked.headers.contains_key(AUTHORIZATION) { ",error=\"invalid_token\"" } else { "" };
                (format!("Bearer realm=\"{realm}\",service=\"far.test\",scope=\"{scope}\"{stale}"), granted)
            }
        };
        (!granted).then(|| {
            let mut response = error(401, "UNAUTHORIZED", "authentication required");
            let challenge = switches.challenge.unwrap_or(challenge);
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().expect("a value"));
            response
        })
    }

    fn manifest(&self, asked: &Logged, name: &str, reference: &str) -> Response<Body> {
        let switches = self.switches().clone();
        let found = {
            let content = self.content();
            let tagged = content.tags.get(&(name.to_owned(), reference.to_owned())).copied();
            let digest = tagged.or_else(|| reference.parse().ok());
            digest.and_then(|digest| {
                let (bytes, media_type) = content.manifests.get(&(name.to_owned(), digest))?;
                Some((digest, bytes.clone(), media_type.clone()))
            })
        };
        let found = found.or_else(|| (!switches.referrers_api).then(|| self.fallback(name, reference)).flatten());
        let Some((digest, bytes, media_type)) = found else {
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        let mut builder = Response::builder().status(200).header(CONTENT_TYPE, media_type);
        if switches.digest_header {
            builder = builder.header("docker-content-digest", digest.to_string());
        }
        if asked.method == Method::HEAD {
            return full(builder.header(CONTENT_LENGTH, bytes.len()), "");
        }
        if switches.endless {
            return endless(builder);
        }
        full(builder, bytes)
    }

    fn fallback(&self, name: &str, reference: &str) -> Option<(Digest, Bytes, String)> {
        let content = self.content();
        let mut listed = content.referrers.iter();
        let (_, manifests) = listed.find(|((held, subject), _)| held == name && subject.fallback_tag() == reference)?;
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests});
        let bytes = Bytes::from(index.to_string());
        Some((Digest::sha256(&bytes), bytes, MediaType::OCI_INDEX.to_owned()))
    }

    fn blob(&self, asked: &Logged, name: &str, reference: &str, flushes: Flushes) -> Response<Body> {
        let found = reference.parse().ok().and_then(|digest: Digest| {
            let bytes = self.content().blobs.get(&(name.to_owned(), digest))?.clone();
            Some((digest, bytes))
        });
        let Some((digest, bytes)) = found else {
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry");
        };
        let Some(storage) = self.switches().storage.clone() else {
            return self.blob_body(asked, digest, bytes, None, flushes);
        };
        let serial = SIGNED.fetch_add(1, Ordering::SeqCst) + 1;
        storage.content().signed.insert(serial, (digest, bytes, self.clone()));
        let location = storage.url(&format!("/signed/{serial}?X-Signature=only-for-you"));
        full(Response::builder().status(307).header(LOCATION, location), "")
    }

    fn blob_body(
        &self,
        asked: &Logged,
        digest: Digest,
        bytes: Bytes,
        signer: Option<FarRegistry>,
        flushes: Flushes,
    ) -> Response<Body> {
        let switches = self.switches().clone();
        let bytes = if switches.corrupt.contains(&digest) { flipped(&bytes) } else { bytes };
        let bytes = switches.truncate.map_or_else(|| bytes.clone(), |kept| bytes.slice(..kept as usize));
        let size = bytes.len() as u64;
        let mut builder = Response::builder().header(CONTENT_TYPE, "application/octet-stream");
        if switches.digest_header {
            builder = builder.header("docker-content-digest", digest.to_string());
        }
        builder = builder.header(ACCEPT_RANGES, "bytes");
        if asked.method == Method::HEAD {
            return full(builder.status(200).header(CONTENT_LENGTH, size), "");
        }
        let range = asked.header("range").filter(|_| !switches.ignore_range).map(|text| parse_range(text, size));
        let (start, end) = match range {
            Some(None) => {
                let builder = Response::builder().status(416).header(CONTENT_RANGE, format!("bytes */{size}"));
                return full(builder, "");
            }
            Some(Some((start, end))) => {
                let start = start + u64::from(switches.wrong_range);
                builder = builder.status(206).header(CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
                (start, end)
            }
            None if switches.partial_unasked => {
                builder = builder.status(206).header(CONTENT_RANGE, format!("bytes 1-{}/{size}", size - 1));
                (1, size)
            }
            None => (0, size),
        };
        for counting in [Some(self), signer.as_ref()].into_iter().flatten() {
            counting.shared.log.send_modify(|log| log.bodies.push((digest, start)));
        }
        if switches.endless {
            return endless(builder);
        }
        if !switches.chunked {
            builder = builder.header(CONTENT_LENGTH, end - start);
        }
        let feed = Feed { far: self.clone(), digest, bytes, at: start, end, flushes, over: false };
        let pieces = stream::unfold(feed, |mut feed| async move { Some((feed.next().await?.map(Frame::data), feed)) });
        builder.body(BodyExt::boxed_unsync(StreamBody::new(pieces))).expect("a response")
    }

    fn tags(&self, asked: &Logged, name: &str) -> Response<Body> {
        let switches = self.switches().clone();
        let tags: Vec<String> =
            self.content().tags.keys().filter(|(held, _)| held == name).map(|(_, tag)| tag.clone()).collect();
        if tags.is_empty() {
            return error(404, "NAME_UNKNOWN", "repository name not known to registry");
        }
        let last = asked.query.split('&').find_map(|pair| pair.strip_prefix("last=")).unwrap_or_default();
        let rest: Vec<String> = tags.into_iter().filter(|tag| switches.endless_pages || tag.as_str() > last).collect();
        let page: Vec<&String> = rest.iter().take(switches.page_size).collect();
        let mut builder = Response::builder().status(200).header(CONTENT_TYPE, "application/json");
        if page.len() < rest.len() || switches.endless_pages {
            let last = page.last().expect("a page is not empty");
            builder = builder.header(LINK, format!("</v2/{name}/tags/list?last={last}>; rel=\"next\""));
        }
        full(builder, json!({"name": name, "tags": page}).to_string())
    }

    fn referrers(&self, asked: &Logged, name: &str, reference: &str) -> Response<Body> {
        let switches = self.switches().clone();
        if !switches.referrers_api {
            return error(404, "NOT_FOUND", "page not found");
        }
        let Ok(subject) = reference.parse::<Digest>() else {
            return error(400, "DIGEST_INVALID", "not a digest");
        };
        let listed = self.content().referrers.get(&(name.to_owned(), subject)).cloned().unwrap_or_default();
        let from: usize =
            asked.query.split('&').find_map(|pair| pair.strip_prefix("from=")?.parse().ok()).unwrap_or_default();
        let page: Vec<_> = listed.iter().skip(from).take(switches.page_size).collect();
        let mut builder = Response::builder().status(200).header(CONTENT_TYPE, MediaType::OCI_INDEX);
        if from + page.len() < listed.len() || switches.endless_pages {
            let next = if switches.endless_pages { 0 } else { from + page.len() };
            builder = builder.header(LINK, format!("</v2/{name}/referrers/{reference}?from={next}>; rel=\"next\""));
        }
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": page});
        full(builder, index.to_string())
    }

    async fn wait_at(&self, latch: Option<Latch>) {
        if let Some(latch) = latch {
            self.shared.log.send_modify(|log| log.held += 1);
            latch.pass().await;
        }
    }
}

/// A blob's body, piece by piece, with its faults.
struct Feed {
    far: FarRegistry,
    digest: Digest,
    bytes: Bytes,
    at: u64,
    end: u64,
    flushes: Flushes,
    over: bool,
}

impl Feed {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.over {
            return None;
        }
        let switches = self.far.switches().clone();
        let stops = [switches.cut.map(|(at, _)| at), switches.stall.as_ref().map(|(at, _)| *at)];
        if let Some((at, times)) = switches.cut
            && at == self.at
            && times > 0
        {
            self.far.switch(|switches| switches.cut = Some((at, times - 1)));
            return self.cut().await;
        }
        if let Some((at, latch)) = switches.stall
            && at == self.at
        {
            // Once: what is resumed from here goes on.
            self.far.switch(|switches| switches.stall = None);
            self.far.wait_at(Some(latch)).await;
        }
        if self.at >= self.end {
            self.over = true;
            self.far.shared.log.send_modify(|log| log.finished.push(self.digest));
            return None;
        }
        let piece = match switches.pace {
            Some((piece, latch)) => {
                self.far.wait_at(Some(latch)).await;
                piece
            }
            None => PIECE_BYTES,
        };
        let next_stop = stops.into_iter().flatten().filter(|stop| *stop > self.at).min().unwrap_or(self.end);
        let until = (self.at + piece as u64).min(self.end).min(next_stop);
        let sent = self.bytes.slice(self.at as usize..until as usize);
        self.at = until;
        Some(Ok(sent))
    }

    /// Ends the body with an error, once all that was sent has left.
    async fn cut(&mut self) -> Option<io::Result<Bytes>> {
        let flushed = *self.flushes.borrow_and_update();
        self.flushes.wait_for(|now| *now > flushed).await.ok()?;
        self.over = true;
        Some(Err(io::Error::other("cut, as the test wishes")))
    }
}

/// Counts flushes: hyper flushes the stream only when its own buffer is empty.
struct Flushing<S> {
    stream: S,
    counter: watch::Sender<u64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Flushing<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flushing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.counter.send_modify(|count| *count += 1);
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// `/v2/<name>/<kind>/<reference>`; empty parts where the path is none of these.
fn split(path: &str) -> (String, String, String) {
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    for kind in ["manifests", "blobs", "tags", "referrers"] {
        if let Some((name, reference)) = rest.rsplit_once(&format!("/{kind}/")) {
            return (name.to_owned(), kind.to_owned(), reference.to_owned());
        }
    }
    Default::default()
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let encoded = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

/// The serial number and the scope of a token that one of us gave.
fn bearer(headers: &HeaderMap) -> Option<(u64, String)> {
    let token = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer far.")?;
    let (serial, scope) = token.split_once('.')?;
    Some((serial.parse().ok()?, String::from_utf8(hex::decode(scope).ok()?).ok()?))
}

/// First byte and end of the range; `None` where it cannot be satisfied.
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = last.parse().map_or(size, |last: u64| (last + 1).min(size));
    (first < end).then_some((first, end))
}

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes.into()
}

fn endless(builder: Builder) -> Response<Body> {
    let piece = Bytes::from_static(&[b' '; PIECE_BYTES]);
    let pieces = stream::repeat_with(move || Ok(Frame::data(piece.clone())));
    builder.body(BodyExt::boxed_unsync(StreamBody::new(pieces))).expect("a response")
}

fn full(builder: Builder, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {});
    builder.body(body.boxed_unsync()).expect("a response")
}

fn plain(status: u16) -> Response<Body> {
    full(Response::builder().status(status), "")
}

fn error(status: u16, code: &str, message: &str) -> Response<Body> {
    let builder = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
    let body = json!({"errors": [{"code": code, "message": message}]});
    full(builder.header(CONTENT_TYPE, "application/json"), body.to_string())
}
