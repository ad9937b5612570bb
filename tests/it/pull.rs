//! A pull through the front door: filled while the gate is open, served while it is closed, shared, verified, resumed.

use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use sealock::oci::Digest;
use sealock::store::{Faults, Step};

use crate::support::far::{FarRegistry, TestImage};
use crate::support::site::{Sealock, Setup, names_in};

const REPOSITORY: &str = "security-products/semgrep";
const NAME: &str = "gitlab.test/security-products/semgrep";

/// Larger than what is served only when whole.
fn large(seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..3 << 20).map(next).collect()
}

fn site(far: &FarRegistry) -> Setup {
    Sealock::setup()
        .upstream("gitlab", "gitlab.test", far)
        .settings("[route.\"security-products/**\"]\nupstream = \"gitlab\"\nfresh_for = \"15m\"")
}

/// A reply of which 1,500,000 bytes have come; the rest is yet to be read.
async fn read_some(site: &Sealock, path: &str) -> http::Response<hyper::body::Incoming> {
    let mut reply = site.begin(Method::GET, path, &[]).await.unwrap();
    let mut got = 0;
    while got < 1_500_000 {
        got += reply.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    reply
}

/// Pulls like a client: manifest by tag, then each part of it.
async fn pull(site: &Sealock, name: &str, tag: &str, image: &TestImage) {
    let manifest = site.manifest(name, tag).await;
    assert_eq!(manifest.status, StatusCode::OK, "{manifest:?}");
    assert_eq!(manifest.body, image.bytes);
    for digest in image.layers.iter().chain([&image.config]) {
        let blob = site.blob(name, digest).await;
        assert_eq!(blob.status, StatusCode::OK);
        assert_eq!(Digest::sha256(&blob.body), *digest);
    }
}

#[tokio::test]
async fn what_was_pulled_is_served_when_the_gate_is_closed_and_upstream_is_gone() {
    // Invariants 1, 7, 10, 18
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(1), b"small"]);
    let site = site(&far).gate_open().start().await;
    pull(&site, NAME, "6", &image).await;
    site.close_gate().await;
    far.stop().await;
    let (connections, requests) = (far.connections(), far.requests().len());

    site.advance(Duration::from_secs(40 * 86_400));
    pull(&site, NAME, "6", &image).await;
    let manifest = site.manifest(REPOSITORY, "6").await;
    assert_eq!(manifest.body, image.bytes, "one repository, by whichever name");
    assert!(manifest.header("warning").unwrap().starts_with("299 - \""), "{manifest:?}");
    assert!(manifest.header("age").unwrap().parse::<u64>().unwrap() >= 40 * 86_400);
    assert_eq!((far.connections(), far.requests().len()), (connections, requests));
}

#[tokio::test]
async fn a_closed_gate_lets_nothing_out_and_says_so() {
    // Invariants 1, 11, 15
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = site(&far).start().await;
    let missing = site.manifest(NAME, "6").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let (code, message) = missing.error();
    assert_eq!(code, "MANIFEST_UNKNOWN");
    assert!(message.contains("gate is closed") && message.contains(NAME), "{message}");
    let blob = site.blob(NAME, &image.config).await;
    assert_eq!((blob.status, blob.error().0.as_str()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"));
    let head = site.head(&format!("/v2/{NAME}/manifests/6")).await;
    assert_eq!(head.status, StatusCode::NOT_FOUND);
    for path in ["/v2/", "/livez", "/readyz"] {
        assert_eq!(site.get(path).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(far.connections(), 0);
}

#[tokio::test]
async fn what_was_asked_for_in_vain_is_wanted_until_it_is_had() {
    let far = FarRegistry::start().await;
    far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = site(&far).start().await;
    site.manifest(REPOSITORY, "6").await;
    site.manifest(NAME, "6").await;
    site.manifest("no/such/route", "1").await;
    let wanted = site.app.store().wanted().await.unwrap();
    let seen: Vec<_> = wanted.iter().map(|w| (w.name.as_str(), w.reference.as_str(), w.count)).collect();
    assert_eq!(seen, [(NAME, "6", 2)], "once, by whichever name");
    site.open_gate().await;
    assert_eq!(site.manifest(REPOSITORY, "6").await.status, StatusCode::OK);
    site.app.pull().settled().await;
    assert!(site.app.store().wanted().await.unwrap().is_empty());
}

#[tokio::test]
async fn names_outside_the_routes_never_reach_an_upstream() {
    // Invariant 13
    let far = FarRegistry::start().await;
    far.put_image("payroll/secret-project", "1", &[b"x"]);
    let site = site(&far).gate_open().start().await;
    for name in ["payroll/secret-project", "library/alpine", "gitlab.test", "gitlab.tes/x"] {
        let reply = site.manifest(name, "1").await;
        assert_eq!((reply.status, reply.error().0.as_str()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"), "{name}");
    }
    let elsewhere = site.get("/v2/payroll/secret-project/manifests/1?ns=evil.test").await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND);
    assert_eq!(far.connections(), 0);
    let here = site.get("/v2/payroll/secret-project/manifests/1?ns=gitlab.test").await;
    assert_eq!(here.status, StatusCode::OK);
    assert_eq!(here.header("oci-namespace"), Some("gitlab.test"));
}

#[tokio::test]
async fn many_clients_one_download() {
    // Invariant 4
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(2)]);
    let layer = image.layers[0];
    let site = site(&far).settings("[pull]\nprefetch = false").gate_open().start().await;
    let held = far.hold_blobs();
    let pulls = futures_util::future::join_all((0..32).map(|_| site.blob(NAME, &layer)));
    let release = async {
        far.wait_held(1).await;
        held.release();
    };
    let (replies, ()) = tokio::join!(pulls, release);
    assert!(replies.iter().all(|reply| reply.status == StatusCode::OK && Digest::sha256(&reply.body) == layer));
    assert_eq!(far.downloads_of(&layer), 1);
}

#[tokio::test]
async fn a_leaving_client_does_not_stop_the_fill() {
    // Invariant 4
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(3)]);
    let layer = image.layers[0];
    let site = site(&far).gate_open().start().await;
    let paced = far.pace_blobs(64 << 10);
    {
        paced.release_some(2);
        let path = format!("/v2/{NAME}/blobs/{layer}");
        let mut leaving = site.begin(Method::GET, &path, &[]).await.unwrap();
        leaving.body_mut().frame().await.unwrap().unwrap();
    }
    paced.release();
    let whole = site.blob(NAME, &layer).await;
    assert_eq!(Digest::sha256(&whole.body), layer);
    assert_eq!(far.downloads_of(&layer), 1);
}

#[tokio::test]
async fn a_flipped_byte_is_never_served_whole_and_never_kept() {
    // Invariants 2, 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(4), b"tiny layer"]);
    let (layer, tiny) = (image.layers[0], image.layers[1]);
    let site = site(&far).settings("[pull]\nprefetch = false").gate_open().start().await;
    far.corrupt_blob(&layer);
    far.corrupt_blob(&tiny);
    let path = format!("/v2/{NAME}/blobs/{layer}");
    match site.send(Method::GET, &path, &[]).await {
        Err(_) => {}
        Ok(reply) => assert_ne!(reply.status, StatusCode::OK, "a whole body of wrong bytes"),
    }
    let small = site.blob(NAME, &tiny).await;
    assert_eq!(small.status, StatusCode::BAD_GATEWAY, "small enough for a clear word");
    assert_eq!(names_in(&site.data().join("blobs/sha256")), Vec::<String>::new());
    far.heal();
    site.advance(Duration::from_secs(61));
    assert_eq!(Digest::sha256(&site.blob(NAME, &layer).await.body), layer);
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    // Invariants 2, 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = site(&far).gate_open().start().await;
    far.corrupt_manifest(REPOSITORY, &image.digest);
    let reply = site.manifest(NAME, image.digest).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{reply:?}");
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_resumed_behind_the_clients_back() {
    // Invariant 3
    let far = FarRegistry::start().await;
    let bytes = large(5);
    let image = far.put_image(REPOSITORY, "6", &[&bytes]);
    let layer = image.layers[0];
    let site = site(&far).settings("[pull]\nprefetch = false").gate_open().start().await;
    far.cut_blob_at(1_500_000, 1);
    let reply = site.blob(NAME, &layer).await;
    assert_eq!(Digest::sha256(&reply.body), layer);
    assert_eq!(far.downloads_of(&layer), 1, "the rest came by Range");
    assert_eq!(far.ranges_of(&layer).len(), 2);
}

#[tokio::test]
async fn a_fill_that_the_gate_cuts_is_resumed_also_after_a_restart() {
    // Invariants 1, 7
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(6)]);
    let layer = image.layers[0];
    let quiet = "[pull]\nprefetch = false";
    let site = site(&far).settings(quiet).gate_open().start().await;
    let stalled = far.stall_blobs_at(2_000_000);
    let path = format!("/v2/{NAME}/blobs/{layer}");
    let cut = read_some(&site, &path).await;
    site.close_gate().await;
    assert!(cut.collect().await.is_err(), "a cut body must not look complete");
    let missing = site.blob(NAME, &layer).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    stalled.release();

    let site = site.stop().await.gate_open().start().await;
    let reply = site.blob(NAME, &layer).await;
    assert_eq!(Digest::sha256(&reply.body), layer);
    assert_eq!(far.downloads_of(&layer), 1, "what was staged was not fetched again");
    assert!(far.ranges_of(&layer)[1] >= 1_500_000);
}

#[tokio::test]
async fn a_pinned_tag_stays_and_a_released_one_follows_upstream_at_once() {
    let far = FarRegistry::start().await;
    let old = far.put_image(REPOSITORY, "6", &[b"old"]);
    // What is fetched in the background must not be counted.
    let site = site(&far).settings("[pull]\nprefetch = false").gate_open().start().await;
    pull(&site, NAME, "6", &old).await;
    site.app.pull().settled().await;
    let (store, tag) = (site.app.store(), "6".parse().unwrap());
    let kept_in = site.app.routes().resolve(&NAME.parse().unwrap(), None).unwrap().repository;
    store.pin_tag(&kept_in, &tag, true).await.unwrap();
    let new = far.put_image(REPOSITORY, "6", &[b"new"]);
    site.advance(Duration::from_secs(3600));
    let asked = far.requests().len();
    assert_eq!(site.manifest(NAME, "6").await.body, old.bytes);
    assert_eq!(far.requests().len(), asked, "upstream has no say in it");
    store.release_tag(&kept_in, &tag).await.unwrap();
    assert_eq!(site.manifest(NAME, "6").await.body, new.bytes);
}

#[tokio::test]
async fn a_tag_follows_upstream_when_it_is_no_longer_fresh() {
    // Invariants 5, 18
    let far = FarRegistry::start().await;
    let old = far.put_image(REPOSITORY, "6", &[b"old"]);
    let site = site(&far).gate_open().start().await;
    pull(&site, REPOSITORY, "6", &old).await;
    let new = far.put_image(REPOSITORY, "6", &[b"new"]);
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, old.bytes, "fresh for fifteen minutes");
    site.advance(Duration::from_secs(901));
    let followed = site.manifest(REPOSITORY, "6").await;
    assert_eq!(followed.body, new.bytes);
    assert_eq!((followed.header("warning"), followed.header("age")), (None, Some("0")));
    site.app.pull().settled().await;
    let (gets, heads) = (far.count(Method::GET, "manifests/"), far.count(Method::HEAD, "manifests/6"));
    site.advance(Duration::from_secs(901));
    site.manifest(REPOSITORY, "6").await;
    site.app.pull().settled().await;
    assert_eq!(far.count(Method::HEAD, "manifests/6"), heads + 1);
    assert_eq!(far.count(Method::GET, "manifests/"), gets, "a tag that did not move is not downloaded again");
}

#[tokio::test]
async fn offline_the_newest_complete_manifest_wins() {
    // Invariant 5
    let far = FarRegistry::start().await;
    let whole = far.put_image(REPOSITORY, "6", &[b"whole"]);
    let site = site(&far).gate_open().start().await;
    pull(&site, REPOSITORY, "6", &whole).await;
    site.app.pull().settled().await;
    let partial = far.put_image(REPOSITORY, "6", &[b"a layer that never comes"]);
    far.remove_blob(REPOSITORY, &partial.layers[0]);
    site.advance(Duration::from_secs(901));
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, partial.bytes, "online upstream's word counts");
    site.app.pull().settled().await;
    site.close_gate().await;
    let served = site.manifest(REPOSITORY, "6").await;
    assert_eq!(served.body, whole.bytes);
    assert!(served.header("warning").unwrap().contains("only in part"), "{served:?}");
}

#[tokio::test]
async fn what_is_kept_only_in_part_is_not_offered_offline() {
    // Invariant 5
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"gone"]);
    far.remove_blob(REPOSITORY, &image.layers[0]);
    let site = site(&far).gate_open().start().await;
    assert_eq!(site.manifest(REPOSITORY, "6").await.status, StatusCode::OK);
    site.app.pull().settled().await;
    site.close_gate().await;
    let reply = site.manifest(REPOSITORY, "6").await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    assert!(reply.error().1.contains("only in part"), "{reply:?}");
}

#[tokio::test]
async fn a_pull_of_the_manifest_alone_completes_the_rest() {
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(7), b"other"]);
    let site = site(&far).gate_open().start().await;
    site.head(&format!("/v2/{REPOSITORY}/manifests/6")).await;
    site.app.pull().settled().await;
    site.close_gate().await;
    pull(&site, REPOSITORY, "6", &image).await;
}

#[tokio::test]
async fn without_prefetch_only_the_config_follows() {
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(8)]);
    let site = site(&far).settings("prefetch = false").gate_open().start().await;
    site.manifest(REPOSITORY, "6").await;
    site.app.pull().settled().await;
    assert_eq!(far.downloads_of(&image.config), 1);
    assert_eq!(far.downloads_of(&image.layers[0]), 0);
}

#[tokio::test]
async fn an_index_brings_the_platforms_that_are_asked_for_or_configured() {
    // Invariant 10
    let far = FarRegistry::start().await;
    let amd = far.put_image(REPOSITORY, "", &[b"amd64 layer"]);
    let arm = far.put_image(REPOSITORY, "", &[b"arm64 layer"]);
    let odd = far.put_image(REPOSITORY, "", &[b"s390x layer"]);
    let index =
        far.put_index(REPOSITORY, "6", &[(&amd, "linux/amd64"), (&arm, "linux/arm64/v8"), (&odd, "linux/s390x")]);
    let site = site(&far).settings("platforms = [\"linux/arm64\"]").gate_open().start().await;
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, index.bytes);
    assert_eq!(site.manifest(REPOSITORY, amd.digest).await.body, amd.bytes);
    site.app.pull().settled().await;
    site.close_gate().await;
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, index.bytes);
    for kept in [&amd, &arm] {
        assert_eq!(site.manifest(REPOSITORY, kept.digest).await.body, kept.bytes);
        assert_eq!(site.blob(REPOSITORY, &kept.layers[0]).await.status, StatusCode::OK);
    }
    assert_eq!(site.manifest(REPOSITORY, odd.digest).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_failing_upstream_is_covered_by_what_is_kept() {
    // Invariants 11, 18
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = site(&far).gate_open().start().await;
    pull(&site, REPOSITORY, "6", &image).await;
    for status in [401, 403, 404, 429, 500, 503] {
        far.always(status);
        site.advance(Duration::from_secs(3600));
        let reply = site.manifest(REPOSITORY, "6").await;
        assert_eq!((reply.status, &reply.body), (StatusCode::OK, &image.bytes), "upstream says {status}");
        assert!(reply.header("warning").is_some(), "upstream says {status}");
    }
    far.always(None);
    far.stop().await;
    site.advance(Duration::from_secs(3600));
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, image.bytes);
    far.restart().await;
    far.black_hole(true);
    site.advance(Duration::from_secs(3600));
    let served = site.manifest(REPOSITORY, "6").await;
    assert_eq!(served.body, image.bytes);
    assert!(
        served.header("warning").unwrap().contains("slow"),
        "served although upstream has not answered: {served:?}"
    );
}

#[tokio::test]
async fn could_not_ask_is_never_404_while_the_gate_is_open() {
    // Invariant 11
    let far = FarRegistry::start().await;
    let site = site(&far).gate_open().start().await;
    let cases = [
        (404, StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        (401, StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        (429, StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
        (500, StatusCode::BAD_GATEWAY, "UNAVAILABLE"),
    ];
    for (upstreams, ours, code) in cases {
        far.always(upstreams);
        site.advance(Duration::from_secs(3600));
        let reply = site.manifest(NAME, format!("t{upstreams}")).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (ours, code), "upstream says {upstreams}");
    }
    far.always(None);
    far.stop().await;
    site.advance(Duration::from_secs(3600));
    assert_eq!(site.manifest(NAME, "gone").await.status, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn upstreams_no_is_remembered_for_a_minute() {
    let far = FarRegistry::start().await;
    let site = site(&far).gate_open().start().await;
    site.manifest(NAME, "none").await;
    let asked = far.requests().len();
    site.manifest(NAME, "none").await;
    assert_eq!(far.requests().len(), asked);
    far.put_image(REPOSITORY, "none", &[b"now"]);
    site.advance(Duration::from_secs(61));
    assert_eq!(site.manifest(NAME, "none").await.status, StatusCode::OK);
}

#[tokio::test]
async fn content_of_one_repository_is_not_served_through_another() {
    // Invariant 14
    let far = FarRegistry::start().await;
    let secret = far.put_image("team/private", "1", &[&large(9)]);
    far.put_image("team/public", "1", &[b"public"]);
    let site = Sealock::setup().upstream("gitlab", "gitlab.test", &far).gate_open().start().await;
    pull(&site, "gitlab.test/team/private", "1", &secret).await;
    pull_fails(&site, &secret).await;
    site.close_gate().await;
    pull_fails(&site, &secret).await;
}

#[tokio::test]
async fn a_running_fill_is_followed_only_from_where_upstream_has_the_blob_too() {
    // Invariant 14
    let far = FarRegistry::start().await;
    let secret = far.put_image("team/private", "1", &[&large(21)]);
    far.put_image("team/public", "1", &[b"public"]);
    let setup = Sealock::setup().settings("[pull]\nprefetch = false");
    let site = setup.upstream("gitlab", "gitlab.test", &far).gate_open().start().await;
    let path = |name: &str| format!("/v2/gitlab.test/team/{name}/blobs/{}", secret.layers[0]);
    let stalled = far.stall_blobs_at(2_000_000);
    let running = read_some(&site, &path("private")).await;
    assert_eq!(site.head(&path("private")).await.status, StatusCode::OK);
    assert_eq!(site.head(&path("public")).await.status, StatusCode::NOT_FOUND);
    stalled.release();
    running.collect().await.unwrap();
    assert_eq!(site.head(&path("public")).await.status, StatusCode::NOT_FOUND);
}

async fn pull_fails(site: &Sealock, image: &TestImage) {
    let name = "gitlab.test/team/public";
    assert_eq!(site.blob(name, &image.layers[0]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.manifest(name, image.digest).await.status, StatusCode::NOT_FOUND);
    let range = [("range", "bytes=0-9")];
    let path = format!("/v2/{name}/blobs/{}", image.layers[0]);
    assert_eq!(site.send(Method::GET, &path, &range).await.unwrap().status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_blob_that_is_kept_is_not_downloaded_again_for_another_repository() {
    // Invariants 4, 14
    let far = FarRegistry::start().await;
    let shared = large(10);
    let first = far.put_image("team/a", "1", &[&shared]);
    far.put_image("team/b", "1", &[&shared]);
    let site = Sealock::setup().upstream("gitlab", "gitlab.test", &far).gate_open().start().await;
    pull(&site, "gitlab.test/team/a", "1", &first).await;
    let reply = site.blob("gitlab.test/team/b", &first.layers[0]).await;
    assert_eq!(Digest::sha256(&reply.body), first.layers[0]);
    assert_eq!(far.downloads_of(&first.layers[0]), 1);
}

#[tokio::test]
async fn ranges_are_served_from_what_is_kept_and_from_a_running_fill() {
    let far = FarRegistry::start().await;
    let bytes = large(11);
    let image = far.put_image(REPOSITORY, "6", &[&bytes]);
    let site = site(&far).settings("prefetch = false").gate_open().start().await;
    let path = format!("/v2/{NAME}/blobs/{}", image.layers[0]);
    let range = async |value: &str| site.send(Method::GET, &path, &[("range", value)]).await.unwrap();
    let stalled = far.stall_blobs_at(2_000_000);
    let early = range("bytes=1000-1999").await;
    assert_eq!((early.status, &early.body[..]), (StatusCode::PARTIAL_CONTENT, &bytes[1000..2000]));
    stalled.release();
    let last = range("bytes=-500").await;
    assert_eq!(&last.body[..], &bytes[bytes.len() - 500..]);
    let expected = format!("bytes {}-{}/{}", bytes.len() - 500, bytes.len() - 1, bytes.len());
    assert_eq!(last.header("content-range"), Some(expected.as_str()));
    let clamped = range("bytes=3000000-99999999").await;
    assert_eq!(&clamped.body[..], &bytes[3_000_000..]);
    let beyond = range("bytes=99999999-").await;
    assert_eq!(beyond.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(beyond.header("content-range"), Some(format!("bytes */{}", bytes.len()).as_str()));
    let head = site.head(&path).await;
    assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
    assert_eq!(head.header("docker-content-digest"), Some(image.layers[0].to_string().as_str()));
}

#[tokio::test]
async fn a_head_of_a_blob_fills_it_and_tells_its_real_length() {
    let far = FarRegistry::start().await;
    let bytes = large(12);
    let image = far.put_image(REPOSITORY, "6", &[&bytes]);
    let site = site(&far).gate_open().start().await;
    let head = site.head(&format!("/v2/{NAME}/blobs/{}", image.layers[0])).await;
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
    assert_eq!(site.blob(NAME, &image.layers[0]).await.body, bytes);
    assert_eq!(far.downloads_of(&image.layers[0]), 1);
}

#[tokio::test]
async fn tag_lists_are_upstreams_when_it_can_be_asked_and_ours_when_not() {
    let far = FarRegistry::start().await;
    for tag in ["1", "2", "3", "10"] {
        far.put_image(REPOSITORY, tag, &[tag.as_bytes()]);
    }
    let site = site(&far).gate_open().start().await;
    site.manifest(REPOSITORY, "2").await;
    site.app.pull().settled().await;
    let tags = async |query: &str| {
        let reply = site.get(&format!("/v2/{REPOSITORY}/tags/list{query}")).await;
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(body["name"], REPOSITORY);
        let tags: Vec<String> = serde_json::from_value(body["tags"].clone()).unwrap();
        (tags, reply.header("link").map(str::to_owned), reply.header("warning").map(str::to_owned))
    };
    assert_eq!(tags("").await.0, ["1", "10", "2", "3"]);
    let (page, link, _) = tags("?n=2").await;
    assert_eq!(page, ["1", "10"]);
    assert!(link.unwrap().contains("last=10"));
    assert_eq!(tags("?n=2&last=10").await, (vec!["2".to_owned(), "3".to_owned()], None, None));
    site.close_gate().await;
    let (kept, _, warning) = tags("").await;
    assert_eq!(kept, ["2"]);
    assert!(warning.unwrap().contains("gate is closed"));
}

#[tokio::test]
async fn signatures_and_referrers_travel_along() {
    // Invariant 10
    for api in [true, false] {
        let far = FarRegistry::start().await;
        far.referrers_api(api);
        let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
        let sbom =
            far.put_referrer(REPOSITORY, (&image.digest, image.bytes.len()), "application/spdx+json", b"the sbom");
        let tag = format!("sha256-{}.sig", image.digest.hex());
        let signature = far.put_image(REPOSITORY, &tag, &[b"a signature"]);
        let site = site(&far).gate_open().start().await;
        site.manifest(REPOSITORY, "6").await;
        site.app.pull().settled().await;
        site.close_gate().await;
        let listed = site.get(&format!("/v2/{REPOSITORY}/referrers/{}", image.digest)).await;
        assert_eq!(listed.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
        let body: serde_json::Value = serde_json::from_slice(&listed.body).unwrap();
        assert_eq!(body["manifests"][0]["digest"], sbom.digest.to_string(), "api={api} {body}");
        assert_eq!(body["manifests"][0]["artifactType"], "application/spdx+json");
        assert_eq!(site.manifest(REPOSITORY, sbom.digest).await.body, sbom.bytes);
        pull(&site, REPOSITORY, &tag, &signature).await;
        let other = site.get(&format!("/v2/{REPOSITORY}/referrers/{}?artifactType=a/b", image.digest)).await;
        assert_eq!(other.header("oci-filters-applied"), Some("artifactType"));
        let body: serde_json::Value = serde_json::from_slice(&other.body).unwrap();
        assert_eq!(body["manifests"].as_array().unwrap().len(), 0);
    }
}

#[tokio::test]
async fn every_request_that_left_is_in_the_audit_file_without_its_query() {
    // Invariants 12, 19
    let far = FarRegistry::start().await;
    far.access(crate::support::far::Access::AnonymousBearer);
    let image = far.put_image(REPOSITORY, "6", &[&large(13)]);
    let site = site(&far).gate_open().start().await;
    pull(&site, REPOSITORY, "6", &image).await;
    site.app.pull().settled().await;
    site.close_gate().await;
    let audit = site.audit();
    let requests: Vec<_> = audit.iter().filter(|entry| entry.get("method").is_some()).collect();
    assert_eq!(requests.len(), far.requests().len(), "{audit:#?}");
    let layer = requests.iter().find(|entry| entry["path"].as_str().unwrap().contains(&image.layers[0].to_string()));
    assert!(layer.unwrap()["bytes"].as_u64().unwrap() >= 3 << 20);
    for entry in &requests {
        assert!(!entry["path"].as_str().unwrap().contains('?'), "{entry}");
        assert!(entry["host"].is_string() && entry["purpose"].is_string() && entry["outcome"].is_string());
    }
    let text = audit.iter().map(ToString::to_string).collect::<String>();
    assert!(text.contains("token") && !text.contains("Bearer"), "the token requests are there, the tokens are not");
    assert!(audit.iter().any(|entry| entry["who"] == "test"), "who closed the gate");
}

#[tokio::test]
async fn kept_content_survives_a_restart() {
    // Invariants 2, 7, 15
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(14)]);
    let site = site(&far).gate_open().start().await;
    pull(&site, REPOSITORY, "6", &image).await;
    site.app.pull().settled().await;
    far.stop().await;
    let connections = far.connections();
    let site = site.stop().await.start().await;
    assert_eq!(site.get("/readyz").await.status, StatusCode::OK);
    pull(&site, REPOSITORY, "6", &image).await;
    assert_eq!(far.connections(), connections);
}

#[tokio::test]
async fn on_a_full_disk_content_passes_through_verified_and_unkept() {
    // Invariants 3, 16
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(15), b"small"]);
    let faults = Faults::default();
    let site = site(&far).settings("prefetch = false").faults(&faults).gate_open().start().await;
    for digest in [image.layers[0], image.layers[1], image.config] {
        faults.fail(Step::Room, 0, rustix::io::Errno::NOSPC.raw_os_error());
        let reply = site.blob(NAME, &digest).await;
        assert_eq!((reply.status, Digest::sha256(&reply.body)), (StatusCode::OK, digest));
    }
    assert_eq!(names_in(&site.data().join("blobs/sha256")), Vec::<String>::new());
    assert_eq!(names_in(&site.data().join("staging")), Vec::<String>::new(), "no room is wasted on parts");
}

#[tokio::test]
async fn what_passes_through_unkept_is_broken_off_when_it_is_wrong() {
    // Invariant 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"a small layer"]);
    far.corrupt_blob(&image.layers[0]);
    let faults = Faults::default();
    let site = site(&far).settings("prefetch = false").faults(&faults).gate_open().start().await;
    faults.fail(Step::Room, 0, rustix::io::Errno::NOSPC.raw_os_error());
    let path = format!("/v2/{NAME}/blobs/{}", image.layers[0]);
    match site.send(Method::GET, &path, &[]).await {
        Err(_) => {}
        Ok(reply) => assert_ne!(reply.status, StatusCode::OK),
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_fill_gets_its_room_back_and_no_client_a_part() {
    // Invariant 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(16)]);
    let faults = Faults::default();
    let site = site(&far).settings("prefetch = false").faults(&faults).gate_open().start().await;
    faults.fail(Step::Write, 0, rustix::io::Errno::NOSPC.raw_os_error());
    let path = format!("/v2/{NAME}/blobs/{}", image.layers[0]);
    match site.send(Method::GET, &path, &[]).await {
        Ok(reply) if reply.status == StatusCode::OK => assert_eq!(Digest::sha256(&reply.body), image.layers[0]),
        Ok(reply) => assert_eq!(reply.status, StatusCode::INSUFFICIENT_STORAGE),
        Err(_) => {}
    }
    assert_eq!(names_in(&site.data().join("staging")), Vec::<String>::new(), "no room is wasted on parts");
    assert_eq!(Digest::sha256(&site.blob(NAME, &image.layers[0]).await.body), image.layers[0]);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_upstream_and_loses_nothing_that_came() {
    // Invariant 7
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(17)]);
    let site = site(&far).settings("prefetch = false\n[server]\nshutdown_timeout = \"50ms\"").gate_open().start().await;
    let stalled = far.stall_blobs_at(2_000_000);
    let path = format!("/v2/{NAME}/blobs/{}", image.layers[0]);
    let cut = read_some(&site, &path).await;
    drop(cut);
    let held = far.hold_manifests();
    let waiting = far.requests().len() + 1;
    let path = format!("/v2/{NAME}/manifests/6");
    let asking = site.begin(Method::GET, &path, &[]);
    tokio::select! {
        _ = asking => panic!("upstream has not answered yet"),
        () = far.wait_for_requests(waiting) => {}
    }
    let site = site.stop().await.gate_open().start().await;
    stalled.release();
    held.release();
    assert_eq!(Digest::sha256(&site.blob(NAME, &image.layers[0]).await.body), image.layers[0]);
    assert!(far.ranges_of(&image.layers[0])[1] >= 1_500_000);
}

#[tokio::test]
async fn fills_that_fail_for_other_repositories_do_not_fail_for_the_one_that_has_it() {
    // Invariants 4, 11
    let far = FarRegistry::start().await;
    let image = far.put_image("team/has-it", "1", &[&large(18)]);
    let site = Sealock::setup()
        .settings("[pull]\nprefetch = false")
        .upstream("gitlab", "gitlab.test", &far)
        .gate_open()
        .start()
        .await;
    let held = far.hold_blobs();
    let release = async {
        far.wait_held(2).await;
        held.release();
    };
    let layer = &image.layers[0];
    let others = futures_util::future::join_all((0..6).map(async |n| {
        let name = format!("gitlab.test/team/has-it-not-{n}");
        site.blob(&name, layer).await
    }));
    let rightful = async {
        far.wait_held(1).await;
        site.blob("gitlab.test/team/has-it", layer).await
    };
    let (others, rightful, ()) = tokio::join!(others, rightful, release);
    assert!(others.iter().all(|reply| reply.status == StatusCode::NOT_FOUND));
    assert_eq!((rightful.status, Digest::sha256(&rightful.body)), (StatusCode::OK, *layer));
}

#[tokio::test]
async fn no_such_manifest_does_not_mean_no_such_blob() {
    // Invariant 11
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = site(&far).settings("prefetch = false").gate_open().start().await;
    assert_eq!(site.manifest(NAME, image.layers[0]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.blob(NAME, &image.layers[0]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_index_is_whole_only_where_its_platform_is_too() {
    // Invariant 5
    let far = FarRegistry::start().await;
    let put = |repository: &str| {
        let image = far.put_image("shared/image", "", &[b"one layer"]);
        far.put_manifest(repository, None, image.bytes.clone(), &image.media_type);
        for blob in image.layers.iter().chain([&image.config]) {
            far.copy_blob("shared/image", repository, blob);
        }
        far.put_index(repository, "1", &[(&image, "linux/amd64")]);
        image
    };
    let (image, _) = (put("team/x"), put("team/y"));
    let site = Sealock::setup().upstream("gitlab", "gitlab.test", &far).gate_open().start().await;
    site.manifest("gitlab.test/team/x", "1").await;
    site.manifest("gitlab.test/team/x", image.digest).await;
    site.app.pull().settled().await;
    site.head("/v2/gitlab.test/team/y/manifests/1").await;
    site.app.pull().settled().await;
    site.close_gate().await;
    assert_eq!(site.manifest("gitlab.test/team/x", "1").await.status, StatusCode::OK);
    assert_eq!(site.manifest("gitlab.test/team/y", "1").await.status, StatusCode::NOT_FOUND);
    site.open_gate().await;
    site.manifest("gitlab.test/team/y", image.digest).await;
    site.app.pull().settled().await;
    site.close_gate().await;
    assert_eq!(site.manifest("gitlab.test/team/y", "1").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_slow_upstream_does_not_hold_up_another() {
    // Invariant 17
    let (slow, quick) = (FarRegistry::start().await, FarRegistry::start().await);
    let image = quick.put_image("team/app", "1", &[&large(19)]);
    let layers: Vec<Vec<u8>> =
        (0..sealock::pull::FILLS_PER_UPSTREAM_MAX as u32 + 8).map(|n| n.to_le_bytes().into()).collect();
    let digests: Vec<Digest> = layers.iter().map(|layer| slow.put_blob("team/app", layer.clone())).collect();
    let site = Sealock::setup()
        .settings("[pull]\nprefetch = false")
        .upstream("slow", "slow.test", &slow)
        .upstream("quick", "quick.test", &quick)
        .gate_open()
        .start()
        .await;
    let held = slow.hold_blobs();
    let asking = futures_util::future::join_all(digests.iter().map(|digest| site.blob("slow.test/team/app", digest)));
    let meanwhile = async {
        slow.wait_held(sealock::pull::FILLS_PER_UPSTREAM_MAX).await;
        let reply = site.blob("quick.test/team/app", &image.layers[0]).await;
        held.release();
        reply
    };
    let (slowly, quickly) = tokio::join!(asking, meanwhile);
    assert_eq!(Digest::sha256(&quickly.body), image.layers[0]);
    assert!(slowly.iter().all(|reply| reply.status == StatusCode::OK));
}

#[tokio::test]
async fn a_signature_that_comes_after_the_image_is_fetched_by_a_later_pull() {
    // Invariant 10
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = site(&far).gate_open().start().await;
    pull(&site, REPOSITORY, "6", &image).await;
    site.app.pull().settled().await;
    let tag = format!("sha256-{}.sig", image.digest.hex());
    let signature = far.put_image(REPOSITORY, &tag, &[b"a signature"]);
    site.advance(Duration::from_secs(2 * 3600));
    site.manifest(REPOSITORY, "6").await;
    site.app.pull().settled().await;
    site.close_gate().await;
    pull(&site, REPOSITORY, &tag, &signature).await;
}

#[tokio::test]
async fn a_kept_manifest_whose_file_was_lost_is_fetched_again() {
    // Invariant 7
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = site(&far).gate_open().start().await;
    pull(&site, REPOSITORY, "6", &image).await;
    site.app.pull().settled().await;
    let lost = site.data().join("blobs/sha256").join(image.digest.hex());
    let setup = site.stop().await;
    std::fs::remove_file(lost).unwrap();
    let site = setup.gate_open().start().await;
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, image.bytes);
}

#[tokio::test]
async fn a_captive_portals_page_is_no_manifest() {
    // Invariants 2, 5
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = site(&far).gate_open().start().await;
    pull(&site, REPOSITORY, "6", &image).await;
    site.app.pull().settled().await;
    for media_type in ["text/html", "application/json", "application/octet-stream", "a/b"] {
        far.put_manifest(REPOSITORY, Some("6"), "<html>please log in</html>", media_type);
        site.advance(Duration::from_secs(3600));
        let reply = site.manifest(REPOSITORY, "6").await;
        assert_eq!(reply.body, image.bytes, "{media_type}");
        assert!(reply.header("warning").is_some());
    }
    site.close_gate().await;
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, image.bytes);
}

#[tokio::test]
async fn a_staged_part_that_was_torn_breaks_its_reader_off_and_begins_anew() {
    // Invariants 2, 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(20)]);
    let layer = image.layers[0];
    let site = site(&far).settings("prefetch = false").gate_open().start().await;
    let stalled = far.stall_blobs_at(2_000_000);
    let path = format!("/v2/{NAME}/blobs/{layer}");
    drop(read_some(&site, &path).await);
    site.close_gate().await;
    stalled.release();
    let staging = site.data().join("staging");
    let setup = site.stop().await;
    let part = staging.join(&names_in(&staging)[0]);
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&part, bytes).unwrap();

    let site = setup.gate_open().start().await;
    match site.send(Method::GET, &path, &[]).await {
        Err(_) => {}
        Ok(reply) => assert_eq!(Digest::sha256(&reply.body), layer, "torn bytes in a whole body"),
    }
    assert_eq!(Digest::sha256(&site.blob(NAME, &layer).await.body), layer);
}
