//! The far side: a registry over real sockets, with fault switches and counts. Nothing in it waits for time to pass.
//!
//! ```text
//! let far = FarRegistry::start().await;                    // or start_tls()
//! let image = far.put_image("team/app", "1", &[b"layer"]); // content
//! let stall = far.stall_blobs_at(3);                       // a fault, and the handle that lifts it
//! far.wait_held(1).await;                                  // an event, awaited
//! assert_eq!(far.downloads_of(&image.layers[0]), 1);       // a count
//! ```
#![allow(dead_code, reason = "a support module: no single test binary uses all of it")]

#[path = "far_serve.rs"]
mod serve;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method};
use sealock::oci::{Digest, MediaType};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A registry in memory. Cheap to clone; clones are the same registry.
#[derive(Clone)]
pub struct FarRegistry {
    shared: Arc<Shared>,
}

/// An image or artifact that was put.
#[derive(Clone, Debug)]
pub struct TestImage {
    pub digest: Digest,
    pub bytes: Bytes,
    pub media_type: String,
    pub config: Digest,
    pub layers: Vec<Digest>,
}

/// An index that was put.
#[derive(Clone, Debug)]
pub struct TestIndex {
    pub digest: Digest,
    pub bytes: Bytes,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Logged {
    pub method: Method,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// All that was counted; see [`FarRegistry::wait_until`].
#[derive(Debug, Default)]
pub struct Log {
    /// Accepted so far, and open now.
    pub connections: usize,
    pub open: usize,
    pub requests: Vec<Logged>,
    /// Blob bodies that were begun: what, and from which byte.
    pub bodies: Vec<(Digest, u64)>,
    /// Blob bodies that were sent to their end.
    pub finished: Vec<Digest>,
    /// How often something began to wait at a [`Latch`].
    pub held: usize,
}

/// Holds requests or bodies until it is released.
#[derive(Clone)]
pub struct Latch(Arc<Semaphore>);

/// Who may read.
#[derive(Clone, Debug, Default)]
pub enum Access {
    #[default]
    Open,
    /// A bearer token per repository, for whoever asks.
    AnonymousBearer,
    /// A bearer token for who knows the password (Basic at the token endpoint, or `grant_type=password`).
    Bearer {
        username: String,
        password: String,
    },
    /// A bearer token for who has the refresh token (`grant_type=refresh_token`).
    Refresh {
        token: String,
    },
    Basic {
        username: String,
        password: String,
    },
}

/// Fault switches and manners; all of them off or ordinary at the start.
#[derive(Clone)]
pub struct Switches {
    pub access: Access,
    /// Instead of our own `/token`.
    pub realm: Option<String>,
    /// Raw `WWW-Authenticate`, instead of the ordinary one.
    pub challenge: Option<String>,
    pub token_expires_in: Option<u64>,
    /// `token` or `access_token`.
    pub token_key: &'static str,
    /// Answered at the token endpoint instead: to GET, to POST.
    pub token_get_status: Option<u16>,
    pub token_post_status: Option<u16>,
    /// Sent by the token endpoint instead.
    pub token_body: Option<Bytes>,
    pub referrers_api: bool,
    pub digest_header: bool,
    pub ignore_range: bool,
    /// 206 that begins one byte late.
    pub wrong_range: bool,
    /// 206 to a GET without Range.
    pub partial_unasked: bool,
    pub page_size: usize,
    /// `tags/list` and referrers pages point to themselves for ever.
    pub endless_pages: bool,
    /// Answered to requests whose path contains the text: status, how often.
    pub failures: Vec<(String, u16, usize)>,
    pub always: Option<u16>,
    /// 429 with this `Retry-After` (none: without the header), and how often.
    pub rate_limit: Option<(Option<String>, usize)>,
    /// Every `/v2/<name>/…` is answered by a redirect there: status, `Location`.
    pub redirect: Option<(u16, String)>,
    /// Each blob is answered by 307 to a signed URL there.
    pub storage: Option<FarRegistry>,
    /// Break the connection at this byte of a blob, so often.
    pub cut: Option<(u64, usize)>,
    pub corrupt: Vec<Digest>,
    /// Blobs of which only so many bytes are sent, and said to be all.
    pub truncate: Option<u64>,
    /// Blob and manifest bodies without Content-Length that never end.
    pub endless: bool,
    /// Blob bodies without Content-Length.
    pub chunked: bool,
    pub stall: Option<(u64, Latch)>,
    pub pace: Option<(usize, Latch)>,
    pub hold_blobs: Option<Latch>,
    pub hold_manifests: Option<Latch>,
    pub hold_tokens: Option<Latch>,
    pub black_hole: bool,
    /// Bytes of extra headers in each reply.
    pub header_bytes: usize,
    /// Signed URLs up to this serial number are answered with 403.
    pub signed_expired: u64,
    /// Bearer tokens up to this serial number are refused.
    pub tokens_expired: u64,
}

struct Shared {
    address: SocketAddr,
    tls: Option<Tls>,
    content: Mutex<Content>,
    switches: Mutex<Switches>,
    log: watch::Sender<Log>,
    stop: Mutex<CancellationToken>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

struct Tls {
    acceptor: TlsAcceptor,
    ca_pem: String,
}

#[derive(Default)]
struct Content {
    blobs: BTreeMap<(String, Digest), Bytes>,
    manifests: BTreeMap<(String, Digest), (Bytes, String)>,
    tags: BTreeMap<(String, String), Digest>,
    /// (repository, subject) -> descriptors.
    referrers: BTreeMap<(String, Digest), Vec<Value>>,
    /// What signed URLs lead to: serial -> blob, and the registry that signed.
    signed: BTreeMap<u64, (Digest, Bytes, FarRegistry)>,
}

impl FarRegistry {
    /// Plain HTTP on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// TLS (HTTP/2 and HTTP/1.1) for `127.0.0.1` and `localhost`, under a CA of its own: see [`Self::ca_pem`].
    pub async fn start_tls() -> Self {
        Self::start_tls_for(&["127.0.0.1", "localhost"]).await
    }

    /// TLS with a certificate for other names: a fault when it is reached as 127.0.0.1.
    pub async fn start_tls_for(names: &[&str]) -> Self {
        Self::start_with(Some(Tls::make(names))).await
    }

    async fn start_with(tls: Option<Tls>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let far = Self {
            shared: Arc::new(Shared {
                address: listener.local_addr().expect("an address"),
                tls,
                content: Mutex::default(),
                switches: Mutex::new(Switches::default()),
                log: watch::Sender::new(Log::default()),
                stop: Mutex::new(CancellationToken::new()),
                listening: Mutex::default(),
            }),
        };
        far.listen(listener);
        far
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// `http://127.0.0.1:PORT`
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.shared.tls.is_some() { "https" } else { "http" }, self.shared.address)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin())
    }

    /// The CA that signed our certificate.
    pub fn ca_pem(&self) -> &str {
        &self.shared.tls.as_ref().expect("started with TLS").ca_pem
    }

    // Content.

    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.content().blobs.insert((repository.to_owned(), digest), bytes);
        digest
    }

    pub fn copy_blob(&self, from: &str, to: &str, digest: &Digest) {
        let bytes = self.content().blobs[&(from.to_owned(), *digest)].clone();
        self.put_blob(to, bytes);
    }

    pub fn remove_blob(&self, repository: &str, digest: &Digest) {
        self.content().blobs.remove(&(repository.to_owned(), *digest));
    }

    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        bytes: impl Into<Bytes>,
        media_type: &str,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let mut content = self.content();
        content.manifests.insert((repository.to_owned(), digest), (bytes, media_type.to_owned()));
        if let Some(tag) = tag {
            content.tags.insert((repository.to_owned(), tag.to_owned()), digest);
        }
        digest
    }

    /// A config and `layers`, and a manifest that `tag` (unless empty) names.
    pub fn put_image(&self, repository: &str, tag: &str, layers: &[&[u8]]) -> TestImage {
        let layers: Vec<_> = layers.iter().map(|layer| (Bytes::copy_from_slice(layer), LAYER)).collect();
        let ids: Vec<_> = layers.iter().map(|(bytes, _)| Digest::sha256(bytes).to_string()).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": {"for": repository}},
            "rootfs": {"type": "layers", "diff_ids": ids}});
        let extra = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST});
        self.put_parts(repository, tag, (config.to_string().into(), MediaType::OCI_CONFIG), &layers, extra)
    }

    /// An index over `images`, each with its platform as in `linux/arm64/v8`.
    pub fn put_index(&self, repository: &str, tag: &str, images: &[(&TestImage, &str)]) -> TestIndex {
        let manifests: Vec<Value> = images
            .iter()
            .map(|(image, platform)| {
                let mut described = descriptor(&image.media_type, &image.digest, image.bytes.len());
                let parts: Vec<_> = platform.split('/').collect();
                described["platform"] = json!({"os": parts[0], "architecture": parts[1]});
                if let Some(variant) = parts.get(2) {
                    described["platform"]["variant"] = json!(variant);
                }
                described
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests});
        let bytes = Bytes::from(index.to_string());
        let tag = (!tag.is_empty()).then_some(tag);
        let digest = self.put_manifest(repository, tag, bytes.clone(), MediaType::OCI_INDEX);
        TestIndex { digest, bytes }
    }

    /// An artifact (a signature, say) that refers to `subject`. It is listed by the referrers API, or, while that is
    /// switched off, under the fallback tag.
    pub fn put_referrer(
        &self,
        repository: &str,
        subject: (&Digest, usize),
        artifact_type: &str,
        payload: &[u8],
    ) -> TestImage {
        let extra = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "artifactType": artifact_type,
            "subject": descriptor(MediaType::OCI_MANIFEST, subject.0, subject.1)});
        let empty = (Bytes::from_static(b"{}"), "application/vnd.oci.empty.v1+json");
        let layers = [(Bytes::copy_from_slice(payload), "application/octet-stream")];
        let image = self.put_parts(repository, "", empty, &layers, extra);
        let mut listed = descriptor(MediaType::OCI_MANIFEST, &image.digest, image.bytes.len());
        listed["artifactType"] = json!(artifact_type);
        self.content().referrers.entry((repository.to_owned(), *subject.0)).or_default().push(listed);
        image
    }

    fn put_parts(
        &self,
        repository: &str,
        tag: &str,
        config: (Bytes, &str),
        layers: &[(Bytes, &str)],
        mut manifest: Value,
    ) -> TestImage {
        let parts = [&config]
            .into_iter()
            .chain(layers)
            .map(|(bytes, media_type)| descriptor(media_type, &self.put_blob(repository, bytes.clone()), bytes.len()));
        let mut described: Vec<Value> = parts.collect();
        manifest["config"] = described.remove(0);
        manifest["layers"] = described.into();
        let bytes = Bytes::from(manifest.to_string());
        let tag = (!tag.is_empty()).then_some(tag);
        TestImage {
            digest: self.put_manifest(repository, tag, bytes.clone(), MediaType::OCI_MANIFEST),
            bytes,
            media_type: MediaType::OCI_MANIFEST.to_owned(),
            config: Digest::sha256(&config.0),
            layers: layers.iter().map(|(bytes, _)| Digest::sha256(bytes)).collect(),
        }
    }

    /// Points `tag` at a manifest that is there.
    pub fn tag(&self, repository: &str, tag: &str, digest: &Digest) {
        self.content().tags.insert((repository.to_owned(), tag.to_owned()), *digest);
    }

    pub fn delete_tag(&self, repository: &str, tag: &str) {
        self.content().tags.remove(&(repository.to_owned(), tag.to_owned()));
    }

    // Manners and faults.

    /// Changes any of the switches.
    pub fn switch(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.switches());
    }

    pub fn access(&self, access: Access) {
        self.switch(|switches| switches.access = access);
    }

    pub fn referrers_api(&self, on: bool) {
        self.switch(|switches| switches.referrers_api = on);
    }

    /// The next `times` registry requests are answered with `status`.
    pub fn fail_next(&self, status: u16, times: usize) {
        self.fail_next_on("/v2/", status, times);
    }

    /// The next `times` requests whose path contains `part` are answered with `status`.
    pub fn fail_next_on(&self, part: &str, status: u16, times: usize) {
        self.switch(|switches| switches.failures.push((part.to_owned(), status, times)));
    }

    /// Every registry request is answered with `status`, until `None`.
    pub fn always(&self, status: impl Into<Option<u16>>) {
        let status = status.into();
        self.switch(|switches| switches.always = status);
    }

    /// The next `times` requests get 429, with this `Retry-After`.
    pub fn rate_limit(&self, retry_after: Option<&str>, times: usize) {
        let retry_after = retry_after.map(str::to_owned);
        self.switch(|switches| switches.rate_limit = Some((retry_after, times)));
    }

    /// Blobs are answered by 307 to signed URLs at `storage`, which answers 400 to whoever sends `Authorization`.
    pub fn redirect_blobs_to(&self, storage: &FarRegistry) {
        self.switch(|switches| switches.storage = Some(storage.clone()));
    }

    /// Signed URLs handed out so far are answered with 403 (at the storage).
    pub fn expire_signed_urls(&self) {
        let last = self.content().signed.keys().next_back().copied().unwrap_or_default();
        self.switch(|switches| switches.signed_expired = last);
    }

    /// Tokens handed out so far, by whatever server, are refused with 401.
    pub fn expire_tokens(&self) {
        self.switch(|switches| switches.tokens_expired = serve::last_token());
    }

    /// The connection is closed when a blob's body comes to byte `at`, so often.
    pub fn cut_blob_at(&self, at: u64, times: usize) {
        self.switch(|switches| switches.cut = Some((at, times)));
    }

    /// One byte of the blob is flipped whenever it is sent.
    /// Appends a space to the manifest, under its old digest.
    pub fn corrupt_manifest(&self, repository: &str, digest: &Digest) {
        if let Some((bytes, _)) = self.content().manifests.get_mut(&(repository.to_owned(), *digest)) {
            *bytes = [bytes.as_ref(), b" "].concat().into();
        }
    }

    pub fn corrupt_blob(&self, digest: &Digest) {
        self.switch(|switches| switches.corrupt.push(*digest));
    }

    pub fn heal(&self) {
        self.switch(|switches| *switches = Switches { access: switches.access.clone(), ..Switches::default() });
    }

    /// The first blob body that comes to byte `at` pauses there.
    pub fn stall_blobs_at(&self, at: u64) -> Latch {
        let latch = Latch::new();
        self.switch(|switches| switches.stall = Some((at, latch.clone())));
        latch
    }

    /// Blob bodies come in pieces of so many bytes, one for each [`Latch::release_some`].
    pub fn pace_blobs(&self, piece_bytes: usize) -> Latch {
        let latch = Latch::new();
        self.switch(|switches| switches.pace = Some((piece_bytes, latch.clone())));
        latch
    }

    /// Blob requests wait, before any answer.
    pub fn hold_blobs(&self) -> Latch {
        let latch = Latch::new();
        self.switch(|switches| switches.hold_blobs = Some(latch.clone()));
        latch
    }

    /// Manifest requests wait, before any answer.
    pub fn hold_manifests(&self) -> Latch {
        let latch = Latch::new();
        self.switch(|switches| switches.hold_manifests = Some(latch.clone()));
        latch
    }

    /// Token requests wait, before any answer.
    pub fn hold_tokens(&self) -> Latch {
        let latch = Latch::new();
        self.switch(|switches| switches.hold_tokens = Some(latch.clone()));
        latch
    }

    /// Connections are accepted, and nothing is ever answered.
    pub fn black_hole(&self, on: bool) {
        self.switch(|switches| switches.black_hole = on);
    }

    /// Closes the listener and every connection; the content stays.
    pub async fn stop(&self) {
        self.shared.stop.lock().expect("no panic while locked").cancel();
        let listening = self.shared.listening.lock().expect("no panic while locked").take();
        if let Some(listening) = listening {
            listening.await.expect("the listener ends by itself");
        }
        self.wait_until(|log| log.open == 0).await;
    }

    /// Listens again, on the same port.
    pub async fn restart(&self) {
        self.stop().await;
        *self.shared.stop.lock().expect("no panic while locked") = CancellationToken::new();
        self.listen(TcpListener::bind(self.shared.address).await.expect("our own port"));
    }

    // Counts and events.

    pub fn connections(&self) -> usize {
        self.shared.log.borrow().connections
    }

    pub fn open_connections(&self) -> usize {
        self.shared.log.borrow().open
    }

    pub fn requests(&self) -> Vec<Logged> {
        self.shared.log.borrow().requests.clone()
    }

    /// How many requests had this method and a path that contains `part`.
    pub fn count(&self, method: Method, part: &str) -> usize {
        let log = self.shared.log.borrow();
        log.requests.iter().filter(|logged| logged.method == method && logged.path.contains(part)).count()
    }

    /// GETs that began the blob's body from byte 0, here or at the storage that we redirect to.
    pub fn downloads_of(&self, digest: &Digest) -> usize {
        self.ranges_of(digest).into_iter().filter(|start| *start == 0).count()
    }

    /// From which byte each GET of the blob was served.
    pub fn ranges_of(&self, digest: &Digest) -> Vec<u64> {
        let log = self.shared.log.borrow();
        log.bodies.iter().filter(|(began, _)| began == digest).map(|(_, start)| *start).collect()
    }

    /// Whether any request carried `canary`, plainly or in Basic credentials.
    pub fn saw(&self, canary: &str) -> bool {
        self.shared.log.borrow().requests.iter().any(|logged| logged.carries(canary))
    }

    /// Waits until what was counted satisfies `enough`.
    pub async fn wait_until(&self, mut enough: impl FnMut(&Log) -> bool) {
        self.shared.log.subscribe().wait_for(|log| enough(log)).await.expect("we hold the sender");
    }

    pub async fn wait_for_requests(&self, count: usize) {
        self.wait_until(|log| log.requests.len() >= count).await;
    }

    /// Waits until so many requests or bodies have come to a latch.
    pub async fn wait_held(&self, count: usize) {
        self.wait_until(|log| log.held >= count).await;
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.content.lock().expect("no panic while locked")
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        self.shared.switches.lock().expect("no panic while locked")
    }
}

impl Logged {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn carries(&self, canary: &str) -> bool {
        let plain = |text: &str| text.contains(canary);
        let decoded = |value: &str| {
            let encoded = value.split_once(' ').map_or(value, |(_, rest)| rest);
            STANDARD.decode(encoded).is_ok_and(|bytes| plain(&String::from_utf8_lossy(&bytes)))
        };
        let in_headers = self.headers.values().any(|value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            plain(&text) || decoded(&text)
        });
        in_headers || plain(&self.path) || plain(&self.query) || plain(&String::from_utf8_lossy(&self.body))
    }
}

impl Latch {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets everything pass, now and later.
    pub fn release(&self) {
        self.0.close();
    }

    /// Lets `count` pass.
    pub fn release_some(&self, count: usize) {
        self.0.add_permits(count);
    }

    async fn pass(&self) {
        // A closed semaphore is one that was released.
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            access: Access::Open,
            realm: None,
            challenge: None,
            token_expires_in: Some(300),
            token_key: "token",
            token_get_status: None,
            token_post_status: None,
            token_body: None,
            referrers_api: true,
            digest_header: true,
            ignore_range: false,
            wrong_range: false,
            partial_unasked: false,
            page_size: 100,
            endless_pages: false,
            failures: Vec::new(),
            always: None,
            rate_limit: None,
            redirect: None,
            storage: None,
            cut: None,
            corrupt: Vec::new(),
            truncate: None,
            endless: false,
            chunked: false,
            stall: None,
            pace: None,
            hold_blobs: None,
            hold_manifests: None,
            hold_tokens: None,
            black_hole: false,
            header_bytes: 0,
            signed_expired: 0,
            tokens_expired: 0,
        }
    }
}

impl Tls {
    fn make(names: &[&str]) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("no names");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).expect("a certificate").pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = CertificateParams::new(names).expect("names").signed_by(&key, &issuer).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().expect("a key"))
            .expect("a chain");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), ca_pem }
    }
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}
