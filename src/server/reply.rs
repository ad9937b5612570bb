//! From what a pull found, or why it found nothing, to status, headers and error body.
//!
//! The statuses of DESIGN.md 9, in one match each. People see only the first error's message, and only with a 4xx; so
//! the words go there.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::json;

use super::body::Body;
use super::route::Unroutable;
use crate::gate::Refusal;
use crate::names::{OfflineMiss, UnknownNamespace};
use crate::pull::Miss;
use crate::push::PushError;
use crate::store::StoreError;

/// What a client asked for, as far as error codes care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

/// An error reply in the making.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// An error code of the distribution specification, or one of Docker's (`UNAVAILABLE`, `UNKNOWN`).
    pub code: &'static str,
    pub message: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// One request's name in the log, the reply and the error body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId(pub u64);

pub const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
pub const REGISTRY_2: HeaderValue = HeaderValue::from_static("registry/2.0");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Longest error message and warning text, in characters; the specification allows a `Warning` 4096 bytes in all.
const TEXT_MAX: usize = 1000;
/// After which a client may find room for one more fill.
const BUSY_LASTS: Duration = Duration::from_secs(5);
/// Where upstream does not say how long to wait.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(60);

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    pub fn with(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A method that the path does not take; `allowed` are those that it does.
    pub fn method(allowed: &'static str, message: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
            .with(header::ALLOW, HeaderValue::from_static(allowed))
    }

    pub fn range(size: u64) -> Self {
        let message = format!("the range lies outside of the {size} bytes that there are");
        let problem = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message);
        match HeaderValue::from_str(&format!("bytes */{size}")) {
            Ok(value) => problem.with(header::CONTENT_RANGE, value),
            Err(_) => problem,
        }
    }

    /// Too much at once; a little later there may be room.
    pub fn busy() -> Self {
        let message = "too much is being taken in just now; try again in a moment";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message).retry_after(Some(BUSY_LASTS))
    }

    /// Ours; the reader can only report its id.
    pub fn internal(what: &str) -> Self {
        let message = format!("{what} failed here; the server's log says why, under this request's id");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
    }

    /// Why nothing can be served (DESIGN.md 9).
    pub fn of_miss(miss: &Miss, wanted: Wanted, now: Timestamp) -> Self {
        use StatusCode as S;
        let said = || miss.to_string();
        match miss {
            Miss::UnknownName { .. } => Self::new(S::NOT_FOUND, "NAME_UNKNOWN", said()),
            Miss::Closed { refusal, offline_miss, .. }
            | Miss::InPart { refusal, offline_miss, .. }
            | Miss::Damaged { closed: Some((refusal, offline_miss)), .. } => match (offline_miss, wanted) {
                (OfflineMiss::Unavailable, Wanted::Manifest) => {
                    Self::new(S::SERVICE_UNAVAILABLE, "UNAVAILABLE", said()).retry_after(opens_in(refusal, now))
                }
                _ => Self::new(S::NOT_FOUND, wanted.unknown(), said()),
            },
            Miss::NotFound { .. } | Miss::NotListed { .. } | Miss::Damaged { closed: None, .. } => {
                Self::new(S::NOT_FOUND, wanted.unknown(), said())
            }
            Miss::AnonymousDenied { .. } => Self::new(S::NOT_FOUND, "NAME_UNKNOWN", said()),
            // Never 401: the client would look for credentials to send to us.
            Miss::CredentialsDenied { .. } => Self::new(S::FORBIDDEN, "DENIED", said()),
            Miss::RateLimited { retry_after, .. } => Self::new(S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", said())
                .retry_after(Some(retry_after.unwrap_or(RETRY_AFTER_DEFAULT))),
            Miss::Unreachable { .. } | Miss::WrongBytes { .. } => Self::new(S::BAD_GATEWAY, "UNAVAILABLE", said()),
            Miss::Busy { .. } => {
                Self::new(S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", said()).retry_after(Some(BUSY_LASTS))
            }
            // A panic, or the server is stopping: another try may go better.
            Miss::GaveUp { .. } => {
                Self::new(S::SERVICE_UNAVAILABLE, "UNAVAILABLE", said()).retry_after(Some(Duration::from_secs(1)))
            }
            Miss::TimedOut { .. } => Self::new(S::GATEWAY_TIMEOUT, "UNAVAILABLE", said()),
            Miss::Store { what, source } => Self::of_store(source, what),
        }
    }

    /// Why a push or a deletion is refused (DESIGN.md 9). An upload's own headers are the endpoint's to add.
    pub fn of_push(why: &PushError) -> Self {
        use StatusCode as S;
        let said = |status, code| Self::new(status, code, why.to_string());
        match why {
            PushError::PushesOff | PushError::RouteTakesNone { .. } | PushError::DeletionsOff => {
                said(S::METHOD_NOT_ALLOWED, "UNSUPPORTED").with(header::ALLOW, HeaderValue::from_static("GET, HEAD"))
            }
            PushError::UploadUnknown { .. } => said(S::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            PushError::UploadBusy => said(S::CONFLICT, "BLOB_UPLOAD_INVALID"),
            PushError::TooManyUploads => said(S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS").retry_after(Some(BUSY_LASTS)),
            PushError::OutOfOrder { .. } => said(S::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            PushError::SizeDiffers { .. } => said(S::BAD_REQUEST, "SIZE_INVALID"),
            PushError::BlobTooLarge { .. } => said(S::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            PushError::DigestDiffers { .. } => said(S::BAD_REQUEST, "DIGEST_INVALID"),
            PushError::ManifestInvalid(_) | PushError::NoMediaType => said(S::BAD_REQUEST, "MANIFEST_INVALID"),
            PushError::ManifestTooLarge(_) => said(S::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID"),
            PushError::TooManyTags { .. } => said(S::URI_TOO_LONG, "UNSUPPORTED"),
            // docker-registry's status: it is the request that is wrong, and the manifest itself is not missing.
            PushError::PartsUnknown { .. } => said(S::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            PushError::ManifestUnknown { .. } => said(S::NOT_FOUND, "MANIFEST_UNKNOWN"),
            PushError::BlobUnknown { .. } => said(S::NOT_FOUND, "BLOB_UNKNOWN"),
            PushError::NameUnknown { .. } => said(S::NOT_FOUND, "NAME_UNKNOWN"),
            PushError::Store(source) => Self::of_store(source, "what was pushed"),
            PushError::GaveUp => said(S::SERVICE_UNAVAILABLE, "UNAVAILABLE").retry_after(Some(Duration::from_secs(1))),
        }
    }

    /// The store's own words may name paths of this machine: they are for the log.
    fn of_store(why: &StoreError, what: &str) -> Self {
        match why {
            StoreError::Full(_) => {
                let message = format!("{what} cannot be kept: this server's disk is full");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "UNAVAILABLE", message)
            }
            StoreError::ReadOnly => {
                let message = format!(
                    "{what} cannot be kept: this server's store is read-only since a write to its disk failed; its log says which"
                );
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
            }
            StoreError::Io { .. } | StoreError::InUse { .. } | StoreError::Newer | StoreError::Catalog(_) => {
                Self::internal(&format!("keeping {what}"))
            }
        }
    }

    fn retry_after(self, wait: Option<Duration>) -> Self {
        match wait {
            // Rounded up: a client that comes back early would only be refused again.
            Some(wait) => self.with(header::RETRY_AFTER, wait.as_millis().div_ceil(1000) as u64),
            None => self,
        }
    }

    /// The reply: the specification's error body, and the request's id in it.
    pub fn respond(self, id: RequestId) -> Response<Body> {
        let detail = json!({ "request": id.to_string() });
        let message = one_line(&self.message);
        let errors = json!({ "errors": [{ "code": self.code, "message": message, "detail": detail }] });
        let mut response = json_reply(self.status, &errors);
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

impl Wanted {
    fn unknown(self) -> &'static str {
        match self {
            Self::Manifest | Self::Referrers => "MANIFEST_UNKNOWN",
            Self::Blob => "BLOB_UNKNOWN",
            Self::Tags => "NAME_UNKNOWN",
        }
    }
}

impl From<Unroutable> for Problem {
    fn from(why: Unroutable) -> Self {
        let (status, code) = match why {
            Unroutable::Elsewhere => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Unroutable::Name(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Unroutable::Digest(_) | Unroutable::Algorithm => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Unroutable::Upload => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            // The specification has no code for a malformed tag (1.0's TAG_INVALID is gone). No manifest can have such a
            // tag, here or upstream, so this is the answer for one that does not exist; its old test suite agrees.
            Unroutable::Tag(_) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            // The specification has no code for it, and allows no other (docker-registry's is PAGINATION_NUMBER_INVALID).
            Unroutable::PageSize | Unroutable::Query(_) => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
        };
        Self::new(status, code, why.to_string())
    }
}

impl From<UnknownNamespace> for Problem {
    fn from(why: UnknownNamespace) -> Self {
        // A host that we do not know is not ours to ask (invariant 13); the text names the setting that would change it.
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", why.to_string())
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A JSON document with its length.
pub fn json_reply(status: StatusCode, document: &serde_json::Value) -> Response<Body> {
    json_bytes(status, document.to_string().into_bytes())
}

/// As [`json_reply`], of a document that is written already.
pub fn json_bytes(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response.headers_mut().insert(header::CONTENT_LENGTH, bytes.len().into());
    *response.body_mut() = Body::full(bytes);
    response
}

/// `Warning: 299 - "…"` (RFC 7234 5.5, in the form of the distribution specification: no agent, no date).
pub fn warning(text: &str) -> Option<HeaderValue> {
    let mut quoted = String::with_capacity(text.len() + 8);
    quoted.push_str("299 - \"");
    for letter in one_line(text).chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            ' '..='~' => quoted.push(letter),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    HeaderValue::try_from(quoted).ok()
}

/// Seconds since upstream last confirmed what is served.
pub fn age(checked_at: Timestamp, now: Timestamp) -> HeaderValue {
    HeaderValue::from(now.duration_since(checked_at).as_secs().max(0))
}

/// `text` without line breaks and other control characters, and not too long: names in it come from clients.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(TEXT_MAX).collect()
}

fn opens_in(refusal: &Refusal, now: Timestamp) -> Option<Duration> {
    match refusal {
        Refusal::Closed { opens_at } => opens_at.and_then(|at| Duration::try_from(at.duration_since(now)).ok()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn closed(offline_miss: OfflineMiss, opens_in_s: Option<i64>) -> Miss {
        let opens_at = opens_in_s.map(|s| Timestamp::from_second(s).unwrap());
        Miss::Closed { what: "`a:1`".to_owned(), refusal: Refusal::Closed { opens_at }, offline_miss }
    }

    fn what() -> (String, String) {
        ("`a:1`".to_owned(), "hub".to_owned())
    }

    fn store(error: StoreError) -> Miss {
        Miss::Store { what: "`a:1`".to_owned(), source: Arc::new(error) }
    }

    fn told(miss: &Miss, wanted: Wanted) -> (u16, &'static str, Option<String>) {
        let problem = Problem::of_miss(miss, wanted, NOW);
        let after = problem.headers.iter().find(|(name, _)| name == header::RETRY_AFTER);
        (problem.status.as_u16(), problem.code, after.map(|(_, value)| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn each_miss_has_its_status_and_code() {
        // Invariant 11
        let (what, upstream) = what();
        let io = || std::io::Error::other("x");
        let why = String::new;
        let (w, u) = (|| what.clone(), || upstream.clone());
        let in_part = |offline_miss| {
            let refusal = Refusal::Closed { opens_at: None };
            Miss::InPart { what: w(), refusal, offline_miss }
        };
        let damaged = |offline_miss: Option<OfflineMiss>| {
            let closed = offline_miss.map(|offline_miss| (Refusal::Closed { opens_at: None }, offline_miss));
            Miss::Damaged { what: w(), closed }
        };
        let limited = |retry_after| Miss::RateLimited { what: w(), upstream: u(), retry_after };
        let cases = [
            (Miss::UnknownName { name: w() }, 404, "NAME_UNKNOWN", None),
            (closed(OfflineMiss::NotFound, Some(60)), 404, "MANIFEST_UNKNOWN", None),
            (closed(OfflineMiss::Unavailable, Some(60)), 503, "UNAVAILABLE", Some("60")),
            (closed(OfflineMiss::Unavailable, None), 503, "UNAVAILABLE", None),
            (closed(OfflineMiss::Unavailable, Some(-5)), 503, "UNAVAILABLE", None),
            (in_part(OfflineMiss::NotFound), 404, "MANIFEST_UNKNOWN", None),
            (in_part(OfflineMiss::Unavailable), 503, "UNAVAILABLE", None),
            (Miss::NotFound { what: w(), upstream: Some(u()) }, 404, "MANIFEST_UNKNOWN", None),
            (damaged(None), 404, "MANIFEST_UNKNOWN", None),
            (damaged(Some(OfflineMiss::NotFound)), 404, "MANIFEST_UNKNOWN", None),
            (damaged(Some(OfflineMiss::Unavailable)), 503, "UNAVAILABLE", None),
            (Miss::GaveUp { what: w() }, 503, "UNAVAILABLE", Some("1")),
            (Miss::Busy { what: w() }, 429, "TOOMANYREQUESTS", Some("5")),
            (Miss::AnonymousDenied { what: w(), upstream: u(), status: 401 }, 404, "NAME_UNKNOWN", None),
            (Miss::CredentialsDenied { what: w(), upstream: u(), status: 401 }, 403, "DENIED", None),
            (limited(Some(Duration::from_millis(1500))), 429, "TOOMANYREQUESTS", Some("2")),
            (limited(None), 429, "TOOMANYREQUESTS", Some("60")),
            (Miss::Unreachable { what: w(), upstream: u(), why: why() }, 502, "UNAVAILABLE", None),
            (Miss::TimedOut { what: w(), upstream: u() }, 504, "UNAVAILABLE", None),
            (Miss::WrongBytes { what: w(), upstream: u(), why: why() }, 502, "UNAVAILABLE", None),
            (store(StoreError::Full(io())), 507, "UNAVAILABLE", None),
            (store(StoreError::ReadOnly), 503, "UNAVAILABLE", None),
        ];
        for (miss, status, code, after) in cases {
            assert_eq!(told(&miss, Wanted::Manifest), (status, code, after.map(str::to_owned)), "{miss:?}");
        }
    }

    #[test]
    fn a_blob_is_404_offline_whatever_the_route_says() {
        // docker retries any other blob error for 75 s.
        let miss = closed(OfflineMiss::Unavailable, Some(60));
        assert_eq!(told(&miss, Wanted::Blob), (404, "BLOB_UNKNOWN", None));
        assert_eq!(told(&miss, Wanted::Tags), (404, "NAME_UNKNOWN", None));
        assert_eq!(told(&miss, Wanted::Referrers), (404, "MANIFEST_UNKNOWN", None));
    }

    #[test]
    fn the_message_names_the_gate() {
        let problem = Problem::of_miss(&closed(OfflineMiss::NotFound, None), Wanted::Manifest, NOW);
        assert!(problem.message.starts_with("`a:1` is not kept here and the gate is closed"), "{}", problem.message);
    }

    #[test]
    fn no_path_of_the_server_reaches_a_client() {
        let io = StoreError::Io { doing: "open", path: "/srv/secret".to_owned(), source: std::io::Error::other("x") };
        let problem = Problem::of_miss(&store(io), Wanted::Blob, NOW);
        assert!(!problem.message.contains("/srv"), "{}", problem.message);
    }

    #[tokio::test]
    async fn error_bodies_are_the_specifications_on_one_line() {
        // Invariant 16
        let problem = Problem::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "a \"b\"\r\nc");
        let response = problem.respond(RequestId(0x7f3a));
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let length: usize = response.headers()[header::CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len(), length);
        let parsed: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let expected =
            json!({ "code": "NAME_UNKNOWN", "message": "a \"b\"  c", "detail": { "request": "0000000000007f3a" } });
        assert_eq!(parsed["errors"][0], expected);
    }

    #[test]
    fn a_warning_is_a_quoted_string_within_bounds() {
        // Invariant 18
        assert_eq!(warning("the \"gate\" is \\ closed").unwrap(), "299 - \"the \\\"gate\\\" is \\\\ closed\"");
        assert_eq!(warning("a\r\nX: 1 ü").unwrap(), "299 - \"a  X: 1 ?\"");
        assert!(warning(&"\"".repeat(10_000)).unwrap().len() <= 4096);
    }

    #[test]
    fn an_age_is_never_negative() {
        let later = Timestamp::from_second(90).unwrap();
        assert_eq!(age(NOW, later), "90");
        assert_eq!(age(later, NOW), "0");
    }

    #[test]
    fn a_range_outside_says_the_size() {
        let problem = Problem::range(1000);
        assert_eq!(problem.status, 416);
        assert_eq!(problem.headers[0], (header::CONTENT_RANGE, HeaderValue::from_static("bytes */1000")));
    }
}
