//! The distribution API's endpoints (specification 1.1): one file each.

pub(super) mod blobs;
pub(super) mod catalog;
pub(super) mod manifests;
pub(super) mod referrers;
pub(super) mod tags;
pub(super) mod uploads;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::body::Body;
use super::reply;
use crate::oci::Digest;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A digest as headers carry it.
struct Tagged {
    digest: HeaderValue,
    etag: HeaderValue,
}

impl Tagged {
    /// Both headers share one allocation: this is on the path of every hit.
    #[expect(clippy::expect_used, reason = "a digest is ASCII letters, digits and a colon")]
    fn new(digest: &Digest) -> Self {
        let quoted = Bytes::from(format!("\"{digest}\""));
        let bare = quoted.slice(1..quoted.len() - 1);
        let header = |bytes| HeaderValue::from_maybe_shared(bytes).expect("a digest is a header value");
        Self { digest: header(bare), etag: header(quoted) }
    }

    fn etag(&self) -> &str {
        self.etag.to_str().unwrap_or_default()
    }

    fn insert(self, headers: &mut HeaderMap) {
        headers.insert(CONTENT_DIGEST, self.digest);
        headers.insert(header::ETAG, self.etag);
    }
}

/// 304: what the client has is what it would get.
fn not_modified(tagged: Tagged) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    tagged.insert(response.headers_mut());
    response
}

/// 201: what was pushed is kept, and can be had at `location`.
fn created(location: HeaderValue, tagged: Tagged) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(header::CONTENT_LENGTH, 0.into());
    headers.insert(CONTENT_DIGEST, tagged.digest);
    response
}

/// 202: it is deleted.
fn deleted() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(header::CONTENT_LENGTH, 0.into());
    response
}

fn warn_if_stale(headers: &mut HeaderMap, stale: Option<&str>) {
    if let Some(warning) = stale.and_then(reply::warning) {
        headers.insert(header::WARNING, warning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_becomes_both_headers() {
        let tagged = Tagged::new(&Digest::sha256(b""));
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(tagged.digest, digest);
        assert_eq!(tagged.etag, format!("\"{digest}\""));
    }
}
