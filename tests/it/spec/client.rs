//! A client of these tests' own: any method, header and body, one connection for each request.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;

use crate::support::site::{Reply, Sealock, connect};

use super::content::{Manifest, digest_of};

/// A sealock with nothing in it, which takes pushes.
pub struct Registry {
    pub site: Sealock,
}

/// A request that is being put together.
pub struct Ask<'a> {
    registry: &'a Registry,
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: BoxBody<Bytes, Infallible>,
}

impl Registry {
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// With lines added to its settings.
    pub async fn with(settings: &str) -> Self {
        Self { site: Sealock::setup().settings(settings).start().await }
    }

    pub fn get(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("GET", path)
    }

    pub fn head(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("HEAD", path)
    }

    pub fn post(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("POST", path)
    }

    pub fn patch(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("PATCH", path)
    }

    pub fn put(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("PUT", path)
    }

    pub fn delete(&self, path: impl Into<String>) -> Ask<'_> {
        self.ask("DELETE", path)
    }

    /// `path` may also be a whole URL of this registry, as a `Location` may be.
    pub fn ask(&self, method: &'static str, path: impl Into<String>) -> Ask<'_> {
        let path = path.into();
        let path = match path.strip_prefix(&format!("http://{}", self.site.address)) {
            Some(rest) => rest.to_owned(),
            None => path,
        };
        Ask { registry: self, method, path, headers: Vec::new(), body: Full::from(Bytes::new()).boxed() }
    }

    /// Begins an upload; returns its location.
    pub async fn begin(&self, name: &str) -> String {
        let reply = self.post(format!("/v2/{name}/blobs/uploads/")).send().await;
        assert_eq!(reply.status, 202, "{reply:?}");
        location(&reply)
    }

    /// Pushes a blob in the commonest way, POST then PUT; returns its sha256 digest.
    pub async fn push_blob(&self, name: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        self.push_blob_as(name, bytes, &digest).await;
        digest
    }

    pub async fn push_blob_as(&self, name: &str, bytes: &[u8], digest: &str) {
        let closing = and(&self.begin(name).await, &format!("digest={digest}"));
        let reply = self.put(closing).octets(bytes).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
    }

    /// Pushes a manifest and what it needs; `reference` is a tag or its digest.
    pub async fn push(&self, name: &str, reference: &str, manifest: &impl Manifest) -> Reply {
        for blob in manifest.blobs() {
            self.push_blob(name, &blob).await;
        }
        for (child, media_type) in manifest.children() {
            let path = format!("/v2/{name}/manifests/{}", digest_of(&child));
            let reply = self.put(path).header("content-type", &media_type).body(child).send().await;
            assert_eq!(reply.status, 201, "{reply:?}");
        }
        let reply = self.put_manifest(name, reference, manifest).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        reply
    }

    /// PUTs a manifest alone.
    pub async fn put_manifest(&self, name: &str, reference: &str, manifest: &impl Manifest) -> Reply {
        let path = format!("/v2/{name}/manifests/{reference}");
        self.put(path).header("content-type", &manifest.media_type()).body(manifest.bytes()).send().await
    }

    /// The tags of a page.
    pub async fn tags(&self, name: &str, query: &str) -> Vec<String> {
        let reply = self.get(format!("/v2/{name}/tags/list{query}")).send().await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let list = json(&reply);
        list["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
    }
}

impl std::fmt::Display for Ask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Ask<'_> {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, bytes: impl Into<Bytes>) -> Self {
        self.body = Full::from(bytes.into()).boxed();
        self
    }

    /// A body as blobs are sent.
    pub fn octets(self, bytes: &[u8]) -> Self {
        self.header("content-type", "application/octet-stream").body(bytes.to_vec())
    }

    /// The same without `Content-Length`, as docker sends it.
    pub fn stream(mut self, bytes: &[u8]) -> Self {
        let pieces: Vec<_> = bytes.chunks(700).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        self.body = BodyExt::boxed(StreamBody::new(stream::iter(pieces)));
        self.header("content-type", "application/octet-stream")
    }

    /// Sends it and reads the whole answer.
    pub async fn send(self) -> Reply {
        let address = self.registry.site.address;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connect(address).await.unwrap())).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(self.method).uri(&self.path).header("host", address.to_string());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let said = self.to_string();
        let reply = sender.send_request(request.body(self.body).unwrap()).await;
        let (head, body) = reply.unwrap_or_else(|why| panic!("{said}: {why}")).into_parts();
        let body = body.collect().await.unwrap_or_else(|why| panic!("{said}: {why}")).to_bytes();
        Reply { status: head.status, headers: head.headers, body }
    }
}

/// What `Location` says; it must be there.
pub fn location(reply: &Reply) -> String {
    reply.header("location").unwrap_or_else(|| panic!("no Location in {reply:?}")).to_owned()
}

/// `location` with one more query parameter.
pub fn and(location: &str, parameter: &str) -> String {
    let sign = if location.contains('?') { '&' } else { '?' };
    format!("{location}{sign}{parameter}")
}

pub fn json(reply: &Reply) -> serde_json::Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|why| panic!("{why} in {reply:?}"))
}

/// Status and code of the first error.
pub fn refusal(reply: &Reply) -> (u16, String) {
    assert!(reply.status.is_client_error(), "no refusal: {reply:?}");
    (reply.status.as_u16(), reply.error().0)
}
