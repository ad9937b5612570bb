//! One question to an upstream: its endpoints in order, authentication, redirects, retries.
//!
//! Credentials are added per hop, and only at the endpoint's own origin (invariant 12).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, LOCATION, RANGE};
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use tokio::time::timeout;

use super::address::{self, Origin};
use super::authorize::Grant;
use super::breaker::{Admission, Weight};
use super::challenge::{self, Challenge};
use super::endpoint::Endpoint;
use super::error::{Fault, UpstreamError};
use super::{Patience, Remote};
use crate::gate::{Body, Purpose};
use crate::oci::RepositoryName;

/// Most redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// Longest time that a manifest, a list's page or a token may take to come, once its head is here.
pub const WHOLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time that a question with [`Patience::Short`] may take.
pub(super) const PATIENCE_SHORT: Duration = Duration::from_millis(1500);
/// Longest time that a probe may take, redirects included; the breaker takes one that is silent for longer for lost.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest single pause before a retry.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(4);
/// Longest pause that `Retry-After` may demand and that is waited out; a longer one is the caller's affair.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// Longest `Retry-After` that is passed on.
const RETRY_AFTER_TOLD_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most time that the pauses of one question may take together.
const PAUSES_MAX: Duration = Duration::from_secs(15);
/// Sendings of one question to one endpoint: without a token, with a kept one, with a new one.
const AUTHORIZATIONS_MAX: usize = 3;
/// A reply's body up to this size is read to its end, so that the connection can be used again.
const DRAIN_BYTES_MAX: u64 = 16 << 10;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A question about a repository.
#[derive(Clone)]
pub(super) struct Ask {
    pub purpose: Purpose,
    pub method: Method,
    pub repository: RepositoryName,
    pub path_and_query: String,
    pub accept: &'static str,
    /// `Range: bytes=N-`
    pub range_from: Option<u64>,
    /// Read the body, of at most so many bytes; `None` leaves it to be streamed.
    pub whole: Option<u64>,
    /// Statuses that the asker wants to see instead of an error.
    pub tolerates: &'static [u16],
}

/// A reply that is worth looking at: 200, 206, or a tolerated status.
pub(super) struct Answer {
    pub head: Parts,
    /// Whole, where that was asked for; else empty.
    pub bytes: Bytes,
    /// To be streamed; `None` where it was read whole.
    pub body: Option<Body>,
    /// Where it came from, after redirects.
    pub url: Uri,
}

/// A reply after redirects.
struct Reply {
    head: Parts,
    body: Body,
    url: Uri,
    /// It did not come from the endpoint itself.
    elsewhere: bool,
}

impl Remote {
    /// Asks the endpoints in order, and again after a pause while that may help.
    pub async fn ask(self: &Arc<Self>, ask: &Ask, patience: Patience) -> Result<Answer, UpstreamError> {
        if let Some(refusal) = self.gate.refusal(&self.name) {
            return Err(refusal.into());
        }
        self.begin_afresh_when_the_gate_moved();
        self.limits.check(&self.name, ask, self.clock.now())?;
        let mut paused = Duration::ZERO;
        let mut tries = 0;
        loop {
            let fault = match self.round(ask, patience).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let pause = match &fault.error {
                UpstreamError::RateLimited { retry_after, .. } => retry_after.unwrap_or_default(),
                _ => jitter(self.retry_pause, tries),
            };
            tries += 1;
            paused += pause;
            if !fault.again || patience == Patience::Short || tries > self.retries_max || paused > PAUSES_MAX {
                self.limits.note(&fault.error, ask, self.clock.now());
                return Err(fault.error);
            }
            tracing::debug!(upstream = %self.name, error = %fault.error, ?pause, "trying again after a failure");
            tokio::time::sleep(pause).await;
        }
    }

    /// Each endpoint that is not resting, until one has an answer.
    async fn round(self: &Arc<Self>, ask: &Ask, patience: Patience) -> Result<Answer, Fault> {
        let mut fault = None;
        for endpoint in &self.endpoints {
            match endpoint.admit(self.clock.now()) {
                Admission::Go => {}
                Admission::Probe if patience == Patience::Full => {}
                Admission::Probe => {
                    self.probe(endpoint.clone());
                    continue;
                }
                Admission::Rest => continue,
            }
            let outcome = match patience {
                Patience::Full => self.attempt(endpoint, ask).await,
                Patience::Short => {
                    let share = PATIENCE_SHORT / self.endpoints.len() as u32;
                    timeout(share, self.attempt(endpoint, ask)).await.unwrap_or_else(|_| Err(self.timed_out()))
                }
            };
            match outcome {
                Ok(answer) => {
                    endpoint.succeeded();
                    return Ok(answer);
                }
                Err(failed) => {
                    endpoint.note(&failed, self.clock.now());
                    if !failed.again || matches!(failed.error, UpstreamError::RateLimited { .. }) {
                        return Err(failed);
                    }
                    fault = Some(failed);
                }
            }
        }
        Err(fault.unwrap_or_else(|| self.resting()))
    }

    /// All endpoints rest: the newest error, without a try.
    fn resting(&self) -> Fault {
        let known = self.endpoints.iter().find_map(|endpoint| endpoint.last_error());
        let unknown =
            || UpstreamError::Unreachable { upstream: self.name.to_string(), why: "it is being left alone".to_owned() };
        Fault::last(known.unwrap_or_else(unknown))
    }

    fn timed_out(&self) -> Fault {
        Fault::passing(UpstreamError::TimedOut { upstream: self.name.to_string() })
    }

    /// Sees in the background whether `endpoint` lives again, so that nobody waits for it who has something kept. Nobody
    /// waits for its end either: it ends within [`PROBE_TIMEOUT`], and a gate that closes cuts it.
    fn probe(self: &Arc<Self>, endpoint: Arc<Endpoint>) {
        let remote = self.clone();
        tokio::spawn(async move {
            let pinged = timeout(PROBE_TIMEOUT, remote.ping(&endpoint)).await;
            match pinged.unwrap_or_else(|_| Err(remote.timed_out())) {
                Ok(reply) if !reply.head.status.is_server_error() => endpoint.succeeded(),
                Ok(reply) => endpoint.note(&remote.failed(reply.head.status), remote.clock.now()),
                Err(fault) => endpoint.note(&fault, remote.clock.now()),
            }
        });
    }

    /// `GET /v2/`, without authorization.
    async fn ping(&self, endpoint: &Endpoint) -> Result<Reply, Fault> {
        self.follow(endpoint, Purpose::Ping, &Method::GET, "/v2/", &HeaderMap::new(), None).await
    }

    /// One endpoint, with what it takes to be let in.
    pub(super) async fn attempt(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Answer, Fault> {
        let mut grant = self.remembered_grant(endpoint, &ask.repository).await?;
        let headers = ask.headers();
        for _ in 0..AUTHORIZATIONS_MAX {
            let authorization = grant.as_ref().and_then(Grant::header);
            let reply = self
                .follow(endpoint, ask.purpose, &ask.method, &ask.path_and_query, &headers, authorization.as_ref())
                .await?;
            if reply.head.status != StatusCode::UNAUTHORIZED || reply.elsewhere {
                self.granted(endpoint, &ask.repository, grant.as_ref(), reply.head.status);
                return self.judge(reply, ask, grant.is_some_and(|grant| grant.has_credential())).await;
            }
            let challenges = self.challenges(endpoint, reply).await?;
            grant = Some(self.next_grant(endpoint, &ask.repository, challenges, grant).await?);
        }
        Err(Fault::last(self.misbehaved("it refuses every token that it gives".to_owned())))
    }

    /// What a 401 asks for. Registries that leave it out may tell at `/v2/` (gcr.io).
    async fn challenges(&self, endpoint: &Endpoint, reply: Reply) -> Result<Vec<Challenge>, Fault> {
        let found = challenges_in(&reply.head.headers);
        drain(reply.body).await;
        if !found.is_empty() {
            return Ok(found);
        }
        let ping = self.ping(endpoint).await?;
        let found = if ping.elsewhere { Vec::new() } else { challenges_in(&ping.head.headers) };
        drain(ping.body).await;
        Ok(found)
    }

    /// Sends, and follows redirects; each hop is decided anew.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        purpose: Purpose,
        method: &Method,
        path_and_query: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Reply, Fault> {
        let home = &endpoint.origin;
        let malformed = || Fault::last(self.misbehaved("it leads to what is not a URL".to_owned()));
        let mut url = home.at(path_and_query).ok_or_else(malformed)?;
        let mut elsewhere = false;
        for _ in 0..=REDIRECTS_MAX {
            // Who has left does not come back with credentials: the way back was chosen by a stranger.
            elsewhere |= Origin::of(&url).as_ref() != Some(home);
            let mut request = Request::builder().method(method).uri(url.clone());
            if let Some(target) = request.headers_mut() {
                target.extend(headers.clone());
                if let Some(value) = authorization.filter(|_| !elsewhere) {
                    target.insert(AUTHORIZATION, value.clone());
                }
            }
            let request = request.body(Full::new(Bytes::new())).map_err(|_| malformed())?;
            let response = self.client.send(purpose, request).await.map_err(|error| {
                let fault = Fault::of_send(&self.name, error);
                if elsewhere { fault.elsewhere() } else { fault }
            })?;
            let (head, body) = response.into_parts();
            if !matches!(head.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Reply { head, body, url, elsewhere });
            }
            drain(body).await;
            url = self.next_hop(home, &url, &head.headers)?;
        }
        Err(Fault::last(self.misbehaved(format!("it redirects more than {REDIRECTS_MAX} times"))))
    }

    fn next_hop(&self, home: &Origin, url: &Uri, headers: &HeaderMap) -> Result<Uri, Fault> {
        let refuse = |why: String| Fault::last(self.misbehaved(why));
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| refuse("it redirects to nowhere".to_owned()))?;
        let next = address::resolve(url, location);
        let next = next.and_then(|next| Origin::of(&next).map(|origin| (next, origin)));
        let (next, origin) = next.ok_or_else(|| refuse("it redirects to what is not a URL".to_owned()))?;
        let from_https = url.scheme_str() == Some("https");
        address::check_hop(home, from_https, &origin, &self.redirect_origins).map_err(refuse)?;
        Ok(next)
    }

    async fn judge(&self, reply: Reply, ask: &Ask, credential: bool) -> Result<Answer, Fault> {
        let upstream = self.name.to_string();
        let status = reply.head.status.as_u16();
        let tolerated = !reply.elsewhere && ask.tolerates.contains(&status);
        match status {
            200 => return self.accept(reply, ask).await,
            206 if ask.purpose == Purpose::Blob => return self.accept(reply, ask).await,
            // A range that cannot be satisfied is an answer wherever the bytes are.
            416 if ask.range_from.is_some() => {}
            _ if tolerated => {}
            // Signed URLs are often good for GET only: that it was sent there is the answer.
            400..=499 if reply.elsewhere && ask.method == Method::HEAD => {}
            429 => return Err(self.rate_limited(&reply.head.headers)),
            // A signed URL that has run out, or storage that fails: the registry is asked for another.
            400.. if reply.elsewhere => return Err(self.failed(reply.head.status).elsewhere()),
            401 | 403 if credential => return Err(Fault::last(UpstreamError::CredentialsDenied { upstream, status })),
            401 | 403 => return Err(Fault::last(UpstreamError::AnonymousDenied { upstream, status })),
            404 => {
                drain(reply.body).await;
                return Err(Fault::last(UpstreamError::NotFound { upstream }));
            }
            500.. => return Err(self.failed(reply.head.status)),
            _ => return Err(Fault::last(UpstreamError::Failed { upstream, status })),
        }
        drain(reply.body).await;
        Ok(Answer { head: reply.head, bytes: Bytes::new(), body: None, url: reply.url })
    }

    async fn accept(&self, reply: Reply, ask: &Ask) -> Result<Answer, Fault> {
        let Reply { head, body, url, elsewhere } = reply;
        let encoding = head.headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes);
        if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity") && !encoding.is_empty()) {
            return Err(Fault::last(self.misbehaved("it encodes what was asked for as it is".to_owned())));
        }
        let Some(limit) = ask.whole else {
            return Ok(Answer { head, bytes: Bytes::new(), body: Some(body), url });
        };
        if length(&head.headers).is_some_and(|length| length > limit) && ask.method != Method::HEAD {
            return Err(Fault::last(self.misbehaved(format!("its answer is longer than {limit} bytes"))));
        }
        let bytes = read_whole(self, body, limit).await;
        let bytes = bytes.map_err(|fault| if elsewhere { fault.elsewhere() } else { fault })?;
        Ok(Answer { head, bytes, body: None, url })
    }

    pub(super) fn failed(&self, status: StatusCode) -> Fault {
        Fault::passing(UpstreamError::Failed { upstream: self.name.to_string(), status: status.as_u16() })
    }

    pub(super) fn misbehaved(&self, why: String) -> UpstreamError {
        UpstreamError::Misbehaved { upstream: self.name.to_string(), why }
    }

    /// 429: worth another try only where the pause is short.
    pub(super) fn rate_limited(&self, headers: &HeaderMap) -> Fault {
        let stated = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = stated.and_then(|text| retry_after(text, self.clock.now()));
        let again = retry_after.is_some_and(|pause| pause <= RETRY_AFTER_MAX);
        let error = UpstreamError::RateLimited { upstream: self.name.to_string(), retry_after };
        Fault { error, again, counts: false }
    }
}

impl Ask {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(self.accept));
        // registry.access.redhat.com gzips even config blobs for whoever allows it.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(from) = self.range_from
            && let Ok(range) = HeaderValue::try_from(format!("bytes={from}-"))
        {
            headers.insert(RANGE, range);
        }
        headers
    }
}

/// `Content-Length`, where it is a number.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body of at most `limit` bytes, for [`WHOLE_TIMEOUT`] at most: one that trickles is never silent.
pub(super) async fn read_whole(remote: &Remote, body: Body, limit: u64) -> Result<Bytes, Fault> {
    let late = |_| Fault::passing(UpstreamError::TimedOut { upstream: remote.name.to_string() });
    timeout(WHOLE_TIMEOUT, read_frames(remote, body, limit)).await.map_err(late)?
}

async fn read_frames(remote: &Remote, mut body: Body, limit: u64) -> Result<Bytes, Fault> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Fault::of_send(&remote.name, error))?;
        let Ok(data) = frame.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(Fault::last(remote.misbehaved(format!("its answer is longer than {limit} bytes"))));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// Reads a short body to its end, so that its connection can be used again; a long one is left, and the connection with it.
pub(super) async fn drain(mut body: Body) {
    let short = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(size) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Whether it ended does not matter: nobody reads it.
    let _ = timeout(DRAIN_TIMEOUT, short).await;
}

pub(super) fn challenges_in(headers: &HeaderMap) -> Vec<Challenge> {
    challenge::parse(headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()))
}

/// Up to `first`, doubled with each try: full jitter, so that those who failed together do not come back together.
pub(super) fn jitter(first: Duration, tries: u32) -> Duration {
    let most = first.saturating_mul(1 << tries.min(16)).min(RETRY_PAUSE_MAX);
    Duration::from_micros(fastrand::u64(0..=most.as_micros() as u64))
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let pause = match text.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = Timestamp::try_from(httpdate::parse_http_date(text.trim()).ok()?).ok()?;
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(pause.min(RETRY_AFTER_TOLD_MAX))
}

impl Weight {
    pub(super) fn of(error: &UpstreamError) -> Self {
        if matches!(error, UpstreamError::TimedOut { .. }) { Self::Heavy } else { Self::Light }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let cases = [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("Thu, 01 Jan 2026 00:00:30 GMT", Some(30)),
            ("Wed, 01 Jan 2020 00:00:30 GMT", Some(0)),
            ("99999999999", Some(24 * 3600)),
            ("soon", None),
            ("-1", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn pauses_stay_within_their_bound() {
        // Invariant 17
        for tries in 0..100 {
            assert!(jitter(Duration::from_millis(250), tries) <= RETRY_PAUSE_MAX);
            assert!(jitter(Duration::MAX, tries) <= RETRY_PAUSE_MAX);
        }
    }
}
