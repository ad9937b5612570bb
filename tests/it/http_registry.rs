//! What clients get over the wire of what is kept, with the gate shut: headers, lengths, ranges, errors.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use sealock::access::{Access, AccessSettings};
use sealock::clock::Clock;
use sealock::gate::{Gate, GateSettings};
use sealock::keep::{Keep, KeepSettings};
use sealock::names::{Host, OfflineMiss, Origin, Policy, Repository, Route, Routes};
use sealock::oci::{Algorithm, Digest, Manifest, MediaType};
use sealock::pull::Pull;
use sealock::push::{Push, PushSettings};
use sealock::server::admin::{Admin, AdminClient, AdminSettings, CloseOrder, OpenOrder, StatusSource};
use sealock::server::{Listeners, Recent, Registry, Server, ServerSettings};
use sealock::store::{Store, TagSource};
use sealock::upstream::Upstream;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const LAYER_SIZE: usize = 300_000;

/// A sealock with an upstream `far` (`reg.test`) that nobody listens for, and one image kept of it.
struct Site {
    address: SocketAddr,
    data: tempfile::TempDir,
    store: Store,
    clock: Clock,
    manifest: Manifest,
    layer: Bytes,
    /// Ends with the test.
    _stop: tokio_util::sync::DropGuard,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn error(&self) -> (u16, String, String) {
        let errors = self.json();
        let text = |key: &str| errors["errors"][0][key].as_str().unwrap().to_owned();
        assert_eq!(errors["errors"][0]["detail"]["request"], self.header("x-request-id"));
        (self.status.as_u16(), text("code"), text("message"))
    }
}

fn repository(name: &str) -> Repository {
    Repository { origin: Origin::Upstream("reg.test".into()), name: name.parse().unwrap() }
}

fn image(layer: &Digest, size: usize, config: &Digest, config_size: usize) -> Manifest {
    let text = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": { "mediaType": MediaType::OCI_CONFIG, "digest": config.to_string(), "size": config_size },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.to_string(), "size": size }],
    });
    let media_type = MediaType::parse(MediaType::OCI_MANIFEST).unwrap();
    Manifest::parse(text.to_string().into(), media_type, Algorithm::Sha256).unwrap()
}

async fn keep_blob(store: &Store, repository: &Repository, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut staged = store.stage(&digest).unwrap();
    staged.write(bytes).unwrap();
    let blob = staged.keep().unwrap();
    store.keep_blob(repository, &blob).await.unwrap();
    digest
}

impl Site {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let clock = Clock::wound(Timestamp::from_second(1_700_000_000).unwrap());
        let store = Store::open(data.path(), clock.clone()).await.unwrap();
        let gate = Gate::load(&GateSettings::default(), data.path(), clock.clone()).unwrap();
        let far = toml::from_str("host = \"reg.test\"\nendpoints = [\"http://127.0.0.1:9\"]").unwrap();
        let far = Arc::new(Upstream::new("far", &far, &gate, &clock).unwrap());
        let stop = CancellationToken::new();
        let upstreams = HashMap::from([(Arc::from("far"), Arc::clone(&far))]);
        let routes = Arc::new(routes());
        let pull = Pull::new(store.clone(), gate.clone(), upstreams, routes.clone(), clock.clone(), stop.clone());
        let (layer, kept_in) = (Bytes::from(vec![7; LAYER_SIZE]), repository("team/app"));
        let layer_digest = keep_blob(&store, &kept_in, &layer).await;
        let config_digest = keep_blob(&store, &kept_in, b"{}").await;
        let manifest = image(&layer_digest, LAYER_SIZE, &config_digest, 2);
        store.keep_manifest(&kept_in, &manifest).await.unwrap();
        for tag in ["1", "2", "3"] {
            let tag = tag.parse().unwrap();
            store.point_tag(&kept_in, &tag, &manifest.digest, TagSource::Filled).await.unwrap();
        }
        let push = Push::new(store.clone(), PushSettings::default());
        let recent = Arc::<Recent>::default();
        let none = AccessSettings::default();
        let access =
            Access::open(&none, &[], data.path(), Arc::clone(&routes), HashMap::new(), &gate, clock.clone()).unwrap();
        let registry = Registry {
            pull: pull.clone(),
            push,
            store: store.clone(),
            access: access.clone(),
            routes: Arc::clone(&routes),
            recent: Arc::clone(&recent),
            clock: clock.clone(),
        };
        let server = Server::new(ServerSettings::default(), registry);
        let listeners = Listeners::bind(&[SocketAddr::from(([127, 0, 0, 1], 0))]).await.unwrap();
        let address = listeners.addresses()[0];
        let source = StatusSource {
            store: store.clone(),
            gate,
            pull,
            keep: Keep::new(store.clone(), KeepSettings::default(), clock.clone()),
            access,
            routes,
            upstreams: vec![far],
            addresses: vec![address],
            origins: listeners.origins(),
            tls: None,
            warnings: Vec::new(),
            recent,
            clock: clock.clone(),
        };
        let settings = ServerSettings { data: data.path().to_owned(), ..ServerSettings::default() };
        let admin = Admin::bind(&settings, &AdminSettings::default(), source).await.unwrap();
        let until = stop.clone();
        tokio::spawn(async move { admin.run(until).await });
        let until = stop.clone();
        tokio::spawn(async move { server.run(listeners, until).await });
        Self { address, data, store, clock, manifest, layer, _stop: stop.drop_guard() }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        #[expect(clippy::disallowed_methods, reason = "a client of the tests, on loopback")]
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        Reply { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[]).await
    }

    fn blob(&self) -> String {
        format!("/v2/app/blobs/{}", Digest::sha256(&self.layer))
    }

    fn admin(&self) -> AdminClient {
        AdminClient::new(self.data.path())
    }
}

fn routes() -> Routes {
    let policy = |offline_miss| {
        let fresh_for = Duration::from_secs(900);
        Arc::new(Policy { fresh_for, prefetch: false, platforms: Vec::new(), offline_miss, push: false })
    };
    let host = Host {
        upstream: "far".into(),
        host: "reg.test".into(),
        default_namespace: None,
        policy: policy(OfflineMiss::NotFound),
    };
    let route = |pattern: &str, repository: &str, offline_miss| Route {
        pattern: pattern.to_owned(),
        upstream: "far".to_owned(),
        repository: Some(repository.to_owned()),
        policy: policy(offline_miss),
    };
    let app = route("app", "team/app", OfflineMiss::NotFound);
    let patient = route("patient", "team/patient", OfflineMiss::Unavailable);
    let lab = route("lab/**", "team/**", OfflineMiss::NotFound);
    Routes::new(vec![host], vec![app, patient, lab]).unwrap()
}

#[tokio::test]
async fn the_base_says_that_it_is_a_registry() {
    let site = Site::start().await;
    for path in ["/v2/", "/v2"] {
        let reply = site.get(path).await;
        assert_eq!((reply.status.as_u16(), reply.header("docker-distribution-api-version")), (200, "registry/2.0"));
        assert_eq!(reply.header("x-request-id").len(), 16);
    }
}

#[tokio::test]
async fn a_kept_manifest_comes_with_exact_bytes_type_and_digest() {
    // Invariant 10
    let site = Site::start().await;
    let digest = site.manifest.digest.to_string();
    for reference in ["1", &digest] {
        let reply = site.get(&format!("/v2/app/manifests/{reference}")).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.body, site.manifest.bytes);
        assert_eq!(reply.header("content-type"), MediaType::OCI_MANIFEST);
        assert_eq!(reply.header("docker-content-digest"), digest);
        assert_eq!(reply.header("etag"), format!("\"{digest}\""));
    }
}

#[tokio::test]
async fn head_says_all_that_get_says() {
    let site = Site::start().await;
    for path in ["/v2/app/manifests/1".to_owned(), site.blob(), "/v2/app/tags/list".to_owned(), "/v2/nope".to_owned()] {
        let (get, head) = (site.get(&path).await, site.ask("HEAD", &path, &[]).await);
        assert_eq!(head.status, get.status, "{path}");
        assert!(head.body.is_empty());
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
        for name in ["content-type", "docker-content-digest", "etag", "accept-ranges", "age"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
    }
}

#[tokio::test]
async fn stale_content_says_so() {
    // Invariant 18
    let site = Site::start().await;
    let fresh = site.get("/v2/app/manifests/1").await;
    assert_eq!((fresh.header("age"), fresh.header("warning")), ("0", ""));
    site.clock.advance(SignedDuration::from_hours(72));
    let stale = site.get("/v2/app/manifests/1").await;
    assert_eq!((stale.status.as_u16(), stale.header("age")), (200, "259200"));
    assert!(stale.header("warning").starts_with("299 - \""), "{}", stale.header("warning"));
    let by_digest = site.get(&format!("/v2/app/manifests/{}", site.manifest.digest)).await;
    assert_eq!((by_digest.header("age"), by_digest.header("warning")), ("", ""));
}

#[tokio::test]
async fn what_the_client_has_is_304() {
    let site = Site::start().await;
    for path in ["/v2/app/manifests/1".to_owned(), site.blob()] {
        let etag = site.get(&path).await.header("etag").to_owned();
        let same = site.ask("GET", &path, &[("if-none-match", &etag)]).await;
        assert_eq!((same.status.as_u16(), same.body.len(), same.header("etag")), (304, 0, etag.as_str()));
        assert_eq!(site.ask("GET", &path, &[("if-none-match", "\"other\"")]).await.status, 200);
    }
}

#[tokio::test]
async fn a_kept_blob_comes_whole_or_in_part() {
    let site = Site::start().await;
    let whole = site.get(&site.blob()).await;
    assert_eq!((whole.status.as_u16(), whole.header("accept-ranges")), (200, "bytes"));
    assert!(whole.body == site.layer);
    for (range, length, stated) in [
        ("bytes=500-1499", 1000, "bytes 500-1499/300000"),
        ("bytes=200000-", 100_000, "bytes 200000-299999/300000"),
        ("bytes=-5", 5, "bytes 299995-299999/300000"),
        ("bytes=0-99999999", 300_000, "bytes 0-299999/300000"),
    ] {
        let part = site.ask("GET", &site.blob(), &[("range", range)]).await;
        assert_eq!((part.status.as_u16(), part.header("content-range")), (206, stated), "{range}");
        assert_eq!(part.body.len(), length, "{range}");
    }
    let outside = site.ask("GET", &site.blob(), &[("range", "bytes=300000-")]).await;
    assert_eq!((outside.status.as_u16(), outside.header("content-range")), (416, "bytes */300000"));
    assert_eq!(outside.header("content-length"), outside.body.len().to_string());
    let other = site.ask("GET", &site.blob(), &[("range", "bytes=0-1"), ("if-range", "\"other\"")]).await;
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn what_is_not_kept_names_the_gate() {
    // Invariant 11
    let site = Site::start().await;
    let (status, code, message) = site.get("/v2/app/manifests/9").await.error();
    assert_eq!((status, code.as_str()), (404, "MANIFEST_UNKNOWN"));
    assert!(message.contains("the gate is closed"), "{message}");
    let (status, code, message) = site.get(&format!("/v2/app/blobs/{}", Digest::sha256(b"x"))).await.error();
    assert_eq!((status, code.as_str()), (404, "BLOB_UNKNOWN"));
    assert!(message.contains("the gate is closed"), "{message}");
    let (status, code, _) = site.get("/v2/patient/manifests/9").await.error();
    assert_eq!((status, code.as_str()), (503, "UNAVAILABLE"));
    let (status, code, _) = site.get("/v2/elsewhere/manifests/9").await.error();
    assert_eq!((status, code.as_str()), (404, "NAME_UNKNOWN"));
}

#[tokio::test]
async fn a_namespace_selects_a_configured_upstream_and_no_other() {
    // Invariant 13
    let site = Site::start().await;
    let reply = site.get("/v2/team/app/manifests/1?ns=reg.test").await;
    assert_eq!((reply.status.as_u16(), reply.header("oci-namespace")), (200, "reg.test"));
    let missing = site.get("/v2/team/app/manifests/9?ns=reg.test").await;
    assert_eq!((missing.status.as_u16(), missing.header("oci-namespace")), (404, "reg.test"));
    let unknown = site.get("/v2/team/app/manifests/1?ns=169.254.169.254").await;
    assert_eq!(unknown.header("oci-namespace"), "");
    let (status, code, message) = unknown.error();
    assert_eq!((status, code.as_str()), (404, "NAME_UNKNOWN"));
    assert!(message.contains("[upstream.…]"), "{message}");
}

#[tokio::test]
async fn tags_come_in_pages() {
    let site = Site::start().await;
    let all = site.get("/v2/app/tags/list").await;
    assert_eq!(all.json(), json!({ "name": "app", "tags": ["1", "2", "3"] }));
    assert_eq!(all.header("link"), "");
    let first = site.get("/v2/app/tags/list?n=2").await;
    assert_eq!(first.json()["tags"], json!(["1", "2"]));
    assert_eq!(first.header("link"), "</v2/app/tags/list?n=2&last=2>; rel=\"next\"");
    let second = site.get("/v2/app/tags/list?n=2&last=2").await;
    assert_eq!((second.json()["tags"].clone(), second.header("link")), (json!(["3"]), ""));
    let none = site.get("/v2/app/tags/list?n=0").await;
    assert_eq!((none.json()["tags"].clone(), none.header("link")), (json!([]), ""));
    assert_eq!(site.get("/v2/app/tags/list?n=-1").await.error().0, 400);
}

#[tokio::test]
async fn referrers_are_an_index_also_when_there_are_none() {
    let site = Site::start().await;
    let path = format!("/v2/app/referrers/{}", site.manifest.digest);
    let reply = site.get(&path).await;
    assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, MediaType::OCI_INDEX));
    assert_eq!(reply.json()["manifests"], json!([]));
    assert_eq!(reply.header("oci-filters-applied"), "");
    let filtered = site.get(&format!("{path}?artifactType=application/vnd.x%2Bjson")).await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(site.get("/v2/app/referrers/sha256:short").await.error().1, "DIGEST_INVALID");
}

#[tokio::test]
async fn pushes_are_refused_in_clear_words() {
    // Invariant 16
    let site = Site::start().await;
    let uploads = "/v2/app/blobs/uploads/";
    for (method, path) in [
        ("POST", uploads),
        ("PATCH", "/v2/app/blobs/uploads/00112233445566778899aabbccddeeff"),
        ("PUT", "/v2/app/manifests/1"),
        ("DELETE", "/v2/app/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("DELETE", "/v2/app/manifests/1"),
    ] {
        let reply = site.ask(method, path, &[]).await;
        assert!(reply.headers.contains_key(header::ALLOW), "{method} {path}");
        let (status, code, message) = reply.error();
        assert_eq!((status, code.as_str()), (405, "UNSUPPORTED"), "{method} {path}");
        assert!(message.contains("takes no pushes"), "{message}");
    }
}

#[tokio::test]
async fn bad_input_is_4xx_with_the_specifications_code() {
    // Invariant 16
    let site = Site::start().await;
    for (path, status, code) in [
        ("/v2/UPPER/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%2Fb/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/app/blobs/sha256:baddigeststring", 400, "DIGEST_INVALID"),
        ("/v2/app/manifests/sha256:zz", 400, "DIGEST_INVALID"),
        ("/v2/app/manifests/.INVALID_MANIFEST_NAME", 404, "MANIFEST_UNKNOWN"),
        ("/v2/_catalog?n=x", 400, "UNSUPPORTED"),
        ("/v2/app/blobs/uploads/7", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("/", 404, "UNSUPPORTED"),
    ] {
        let (found, found_code, _) = site.get(path).await.error();
        assert_eq!((found, found_code.as_str()), (status, code), "{path}");
    }
}

#[tokio::test]
async fn alive_and_ready_although_upstream_is_away() {
    // Invariant 15
    let site = Site::start().await;
    assert_eq!(site.get("/livez").await.json(), json!({ "status": "alive" }));
    assert_eq!(site.get("/readyz").await.json(), json!({ "status": "ready" }));
    site.store.close().await;
    assert_eq!(site.get("/livez").await.status, 200);
    assert_eq!(site.get("/readyz").await.status, 503);
}

#[tokio::test]
async fn the_admin_socket_moves_the_gate() {
    // Invariant 19
    let site = Site::start().await;
    let admin = site.admin();
    assert!(!admin.gate().await.unwrap().open);
    let order =
        OpenOrder { for_ms: Some(60_000), who: Some("ann".to_owned()), why: Some("weekly".to_owned()), upstream: None };
    let opened = admin.open_gate(&order).await.unwrap();
    assert_eq!((opened.open, opened.why.as_deref()), (true, Some("weekly")));
    let who = opened.who.unwrap();
    assert!(who.starts_with("ann, by ") && who.contains("uid "), "{who}");
    assert!(opened.closes_at.is_some());
    let closed = admin.close_gate(&CloseOrder::default()).await.unwrap();
    assert!(!closed.open);
    assert!(closed.who.unwrap().contains("uid "), "the one at the other end of the socket");
}

#[tokio::test]
async fn a_wrong_order_is_refused_with_a_hint() {
    let site = Site::start().await;
    let order = OpenOrder { upstream: Some("hub".to_owned()), ..OpenOrder::default() };
    let error = site.admin().open_gate(&order).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no upstream `hub`");
    assert_eq!(error.hint().as_deref(), Some("the upstreams are `far`"));
    // Invariant 17
    let order = OpenOrder { why: Some("x".repeat(100_000)), ..OpenOrder::default() };
    let error = site.admin().open_gate(&order).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot read the order"), "{error}");
    let order = OpenOrder { for_ms: Some(0), ..OpenOrder::default() };
    let error = site.admin().open_gate(&order).await.unwrap_err();
    assert_eq!(error.to_string(), "an opening must last longer than 0s");
    assert!(!site.admin().gate().await.unwrap().open);
}

#[tokio::test]
async fn an_unknown_list_is_not_said_to_be_noted_as_wanted() {
    let site = Site::start().await;
    let (status, code, message) = site.get("/v2/reg.test/team/other/tags/list").await.error();
    assert_eq!((status, code.as_str()), (404, "NAME_UNKNOWN"));
    assert!(message.ends_with("ask again while the gate is open"), "{message}");
    assert!(site.admin().wanted().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_status_tells_what_is_here() {
    let site = Site::start().await;
    site.get("/v2/app/manifests/9").await;
    let report = site.admin().status().await.unwrap();
    assert_eq!(report.addresses, [site.address]);
    assert_eq!((report.totals.tags, report.totals.manifests, report.totals.blobs), (3, 1, 2));
    assert_eq!(report.upstreams.len(), 1);
    assert!(report.routes.iter().any(|route| route.pattern == "app" && route.upstream == "far"), "{:?}", report.routes);
    assert!(!report.gate.open && !report.read_only);
    let wanted = site.admin().wanted().await.unwrap();
    assert_eq!((wanted.len(), report.wanted, wanted[0].reference.as_str()), (1, 1, "9"));
    site.admin().ready().await.unwrap();
}

#[tokio::test]
async fn the_list_takes_names_as_clients_write_them() {
    let site = Site::start().await;
    let admin = site.admin();
    for name in [
        None,
        Some("app"),
        Some("reg.test"),
        Some("reg.test/team"),
        Some("reg.test/team/app"),
        Some("team/**"),
        Some("lab"),
        Some("lab/app"),
    ] {
        let lines = admin.list(name).await.unwrap();
        assert_eq!(lines.len(), 3, "{name:?}");
        assert_eq!((lines[0].repository.as_str(), lines[0].tag.as_str()), ("reg.test/team/app", "1"));
    }
    for name in ["app:1", "lab/app:1", "reg.test/team/app:1"] {
        assert_eq!(admin.list(Some(name)).await.unwrap().len(), 1, "{name}");
    }
    assert!(admin.list(Some("app:9")).await.unwrap().is_empty());
    assert!(admin.list(Some("reg.test/other")).await.unwrap().is_empty());
    assert!(admin.list(Some("other")).await.unwrap().is_empty());
}
