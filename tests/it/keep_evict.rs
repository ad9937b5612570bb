//! Room that is short, through the front door: what upstream still has makes way, and comes back when it is asked for.

use std::time::Duration;

use http::{Method, StatusCode};
use sealock::oci::Digest;
use sealock::store::{Faults, Step};

use crate::support::far::{FarRegistry, TestImage};
use crate::support::site::{Sealock, Setup};

const REPOSITORY: &str = "team/app";
const HOUR: Duration = Duration::from_secs(3600);
const MIB: usize = 1 << 20;

fn site(far: &FarRegistry) -> Setup {
    Sealock::setup()
        .upstream("far", "far.test", far)
        .settings("[pull]\nfresh_for = \"1m\"\n[keep]\nmax_size = \"2MiB\"\ngrace = \"1h\"")
}

/// An image of about one MiB.
fn put(far: &FarRegistry, tag: &str) -> TestImage {
    far.put_image(REPOSITORY, tag, &[&vec![tag.as_bytes()[0]; MIB]])
}

/// Pulls all of it, and a minute passes.
async fn pull(site: &Sealock, host: &str, tag: &str, image: &TestImage) {
    let name = format!("{host}/{REPOSITORY}");
    assert_eq!(site.manifest(&name, tag).await.body, image.bytes);
    for digest in image.layers.iter().chain([&image.config]) {
        assert_eq!(Digest::sha256(&site.blob(&name, digest).await.body), *digest);
    }
    site.app.pull().settled().await;
    site.advance(Duration::from_secs(60));
}

async fn has(site: &Sealock, tag: &str) -> bool {
    site.app.store().list(None, None).await.unwrap().iter().any(|line| line.tag == tag && line.complete)
}

#[tokio::test]
async fn the_longest_unused_makes_way_and_comes_back_when_it_is_pulled() {
    // Invariants 7 and 8
    let far = FarRegistry::start().await;
    let images = ["1", "2", "3"].map(|tag| (tag, put(&far, tag)));
    let site = site(&far).gate_open().start().await;
    for (tag, image) in &images {
        pull(&site, "far.test", tag, image).await;
    }
    site.app.keep().tick().await;
    assert!(has(&site, "1").await, "it was used within the grace time");
    site.advance(2 * HOUR);
    pull(&site, "far.test", "1", &images[0].1).await;
    site.advance(2 * HOUR);
    assert!(site.app.keep().status().await.unwrap().pressure.over_bytes > 0);
    site.app.keep().tick().await;
    assert!(has(&site, "1").await && !has(&site, "2").await, "the second was unused for longest");
    let status = site.app.keep().status().await.unwrap();
    let last = status.last_eviction.unwrap();
    assert!(last.sum.size_bytes >= MIB as u64 && last.sum.tags >= 1 && last.sum.manifests >= 1, "{last:?}");
    assert_eq!((last.at, status.pressure.over_bytes, status.trash_bytes), (site.clock.now(), 0, 0));
    assert!(status.pressure.kept_bytes <= 2 * MIB as u64 * 95 / 100, "with a while until the next time");

    site.close_gate().await;
    let name = format!("far.test/{REPOSITORY}");
    assert_eq!(site.manifest(&name, "2").await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.manifest(&name, "1").await.status, StatusCode::OK);
    site.open_gate().await;
    pull(&site, "far.test", "2", &images[1].1).await;
    assert!(has(&site, "2").await);
}

#[tokio::test]
async fn nothing_makes_way_while_the_gate_is_closed_for_its_upstream() {
    // Invariants 1 and 7
    let (far, other) = (FarRegistry::start().await, FarRegistry::start().await);
    let images = [put(&far, "1"), put(&far, "2"), put(&other, "3")];
    let site = site(&far).upstream("other", "other.test", &other).gate_open().start().await;
    pull(&site, "far.test", "1", &images[0]).await;
    pull(&site, "far.test", "2", &images[1]).await;
    pull(&site, "other.test", "3", &images[2]).await;
    site.advance(3 * HOUR);
    site.close_gate().await;
    let seen = |far: &FarRegistry| (far.connections(), far.requests().len());
    let before = (seen(&far), seen(&other));
    site.app.keep().tick().await;
    assert!(has(&site, "1").await && has(&site, "2").await && has(&site, "3").await);
    assert_eq!((seen(&far), seen(&other)), before);
    // Open for the one whose content was used last.
    let order = sealock::gate::Order::new("test", None);
    site.app.gate().open(order, None, Some("other")).await.unwrap();
    site.app.keep().tick().await;
    assert!(has(&site, "1").await && has(&site, "2").await && !has(&site, "3").await);
    assert_eq!(seen(&far), before.0);
}

#[tokio::test]
async fn what_upstream_has_no_more_stays() {
    // Invariant 7
    let far = FarRegistry::start().await;
    let images = ["1", "2", "3"].map(|tag| (tag, put(&far, tag)));
    let site = site(&far).gate_open().start().await;
    for (tag, image) in &images {
        pull(&site, "far.test", tag, image).await;
    }
    site.advance(3 * HOUR);
    // It deleted the first two.
    for (_, image) in &images[..2] {
        far.fail_next_on(&image.digest.to_string(), 404, 1_000);
    }
    site.app.keep().tick().await;
    assert!(has(&site, "1").await && has(&site, "2").await && !has(&site, "3").await);
    let asked = far.count(Method::HEAD, &images[0].1.digest.to_string());
    assert!(asked > 0);
    site.advance(Duration::from_secs(60));
    pull(&site, "far.test", "3", &images[2].1).await;
    site.app.keep().tick().await;
    assert_eq!(far.count(Method::HEAD, &images[0].1.digest.to_string()), asked, "not asked again at once");
}

#[tokio::test]
async fn a_clock_that_jumps_evicts_nothing() {
    // Invariant 7
    let far = FarRegistry::start().await;
    let images = ["1", "2", "3"].map(|tag| (tag, put(&far, tag)));
    let site = site(&far).gate_open().start().await;
    for (tag, image) in &images {
        pull(&site, "far.test", tag, image).await;
    }
    site.clock.set_by(jiff::SignedDuration::from_hours(24 * 365));
    for _ in 0..5 {
        site.app.keep().tick().await;
        site.advance(Duration::from_secs(60));
    }
    assert!(has(&site, "1").await && has(&site, "2").await && has(&site, "3").await);
    site.advance(HOUR);
    site.app.keep().tick().await;
    assert!(!has(&site, "1").await, "an hour was seen to pass");
}

#[tokio::test]
async fn a_fill_that_finds_too_little_room_waits_until_some_is_made() {
    // Invariants 7 and 8
    let far = FarRegistry::start().await;
    let (old, new) = (put(&far, "1"), put(&far, "2"));
    let faults = Faults::default();
    let site = site(&far).faults(&faults).gate_open().start().await;
    pull(&site, "far.test", "1", &old).await;
    site.advance(3 * HOUR);
    let name = format!("far.test/{REPOSITORY}");
    // The fill looks, whoever makes room looks, and then there is some.
    for _ in 0..2 {
        faults.fail(Step::Room, 0, rustix::io::Errno::NOSPC.raw_os_error());
    }
    assert_eq!(site.blob(&name, &new.layers[0]).await.status, StatusCode::OK);
    assert!(!has(&site, "1").await, "it made way");
    assert_eq!(far.downloads_of(&new.layers[0]), 1, "it was kept, and did not pass through");
    site.close_gate().await;
    assert_eq!(site.blob(&name, &new.layers[0]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_push_that_finds_too_little_room_waits_until_some_is_made() {
    // Invariants 7 and 8
    let far = FarRegistry::start().await;
    for length_is_stated in [true, false] {
        let old = put(&far, "1");
        let faults = Faults::default();
        let site = site(&far).faults(&faults).gate_open().start().await;
        pull(&site, "far.test", "1", &old).await;
        site.advance(3 * HOUR);
        let bytes = bytes::Bytes::from(vec![7; 1000]);
        let digest = Digest::sha256(&bytes);
        let begun = site.send(Method::POST, "/v2/mine/app/blobs/uploads/", &[]).await.unwrap();
        let location = begun.header("location").unwrap().to_owned();
        // The push looks, whoever makes room looks, and then there is some. Without a length the first look is at none.
        for passes in [u32::from(!length_is_stated), 0] {
            faults.fail(Step::Room, passes, rustix::io::Errno::NOSPC.raw_os_error());
        }
        let path = format!("{location}?digest={digest}");
        let status = if length_is_stated {
            site.send_body(Method::PUT, &path, &[], bytes.clone()).await.unwrap().status
        } else {
            let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>(http_body::Frame::data(bytes.clone()))]);
            site.begin_with(Method::PUT, &path, &[], http_body_util::StreamBody::new(pieces)).await.unwrap().status()
        };
        assert_eq!(status, StatusCode::CREATED, "{length_is_stated}");
        assert!(!has(&site, "1").await, "it made way");
        assert_eq!(site.blob("mine/app", &digest).await.body, bytes);
    }
}
