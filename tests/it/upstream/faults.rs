//! A far side that fails: tried again within bounds, then left alone, and never waited for by who has something kept.

use http::Method;
use sealock::oci::Digest;
use sealock::upstream::{Patience, UpstreamError};

use super::{APP, Site, app, order, patterned, tag};
use crate::support::far::FarRegistry;

async fn far_with_image() -> FarRegistry {
    let far = FarRegistry::start().await;
    far.put_image(APP, "1", &[b"layer"]);
    far
}

#[tokio::test]
async fn a_passing_failure_is_tried_again() {
    for status in [500, 502, 503, 504] {
        let far = far_with_image().await;
        far.fail_next(status, 2);
        let site = Site::of(&far, "").await;
        site.manifest("1").await.unwrap();
        assert_eq!(far.requests().len(), 3);
        assert_eq!(site.upstream.health().last_error, None);
    }
}

#[tokio::test]
async fn a_lasting_failure_is_tried_a_bounded_number_of_times() {
    // Invariant 17
    let far = far_with_image().await;
    far.always(503);
    let site = Site::of(&far, "retries_max = 20").await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Failed { status: 503, .. })));
    // Three in a row, and it is left alone.
    assert_eq!(far.requests().len(), 3);
    let once = Site::of(&far, "retries_max = 0").await;
    once.manifest("1").await.unwrap_err();
    assert_eq!(far.requests().len(), 4);
}

#[tokio::test]
async fn an_upstream_that_fails_is_left_alone_for_a_while_and_then_tried_once() {
    let far = far_with_image().await;
    far.stop().await;
    let site = Site::of(&far, "").await;
    let error = site.manifest("1").await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unreachable { .. }), "{error}");
    let health = site.upstream.health();
    assert!(health.resting_until.is_some() && health.last_error.is_some());
    far.restart().await;
    assert!(site.manifest("1").await.is_err());
    assert_eq!(far.connections(), 0);
    site.advance(2);
    site.manifest("1").await.unwrap();
    let health = site.upstream.health();
    assert_eq!((health.resting_until, health.last_error), (None, None));
}

#[tokio::test]
async fn an_open_gate_begins_afresh() {
    let far = far_with_image().await;
    far.stop().await;
    let site = Site::of(&far, "").await;
    site.manifest("1").await.unwrap_err();
    far.restart().await;
    site.gate.close(order(), None).await.unwrap();
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Refused(_))));
    site.gate.open(order(), None, None).await.unwrap();
    site.manifest("1").await.unwrap();
}

#[tokio::test]
async fn who_has_something_kept_waits_for_a_black_hole_once() {
    let far = far_with_image().await;
    far.black_hole(true);
    let site = Site::of(&far, "").await;
    let app = app();
    let short = || site.upstream.tags_with(&app, Patience::Short);
    assert!(matches!(short().await, Err(UpstreamError::TimedOut { .. })));
    assert_eq!(far.connections(), 1);
    for _ in 0..100 {
        assert!(matches!(short().await, Err(UpstreamError::TimedOut { .. })));
    }
    assert_eq!(far.connections(), 1);
    assert!(site.upstream.health().resting_until.is_some());
    // After the rest, a probe in the background finds out that it is back; nobody waits for it.
    far.black_hole(false);
    site.advance(2);
    assert!(short().await.is_err());
    far.wait_until(|log| log.requests.iter().any(|request| request.path == "/v2/")).await;
    while site.upstream.health().last_error.is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(short().await.unwrap().len(), 1);
    let audit: Vec<serde_json::Value> =
        site.audit().await.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let probes: Vec<_> = audit.iter().filter(|record| record["path"] == "/v2/").collect();
    assert_eq!(probes.len(), 1);
    assert_eq!(probes[0]["purpose"], "ping");
}

#[tokio::test]
async fn a_black_hole_is_given_up_by_the_patient_too() {
    let far = far_with_image().await;
    far.black_hole(true);
    let site = Site::of(&far, "connect_timeout = '100ms'\nresponse_timeout = '100ms'").await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::TimedOut { .. })));
    assert_eq!(far.connections(), 1);
}

#[tokio::test]
async fn the_next_endpoint_is_asked_when_one_fails() {
    let (down, failing, good) = (far_with_image().await, far_with_image().await, far_with_image().await);
    down.stop().await;
    failing.always(502);
    let site = Site::at(&[down.origin(), failing.origin(), good.origin()], "").await;
    for _ in 0..10 {
        site.manifest("1").await.unwrap();
    }
    assert_eq!(good.requests().len(), 10);
    // Left alone after three failures.
    assert_eq!(failing.requests().len(), 3);
    assert_eq!(site.upstream.health().resting_until, None);
}

#[tokio::test]
async fn the_next_endpoint_is_not_asked_for_what_the_first_does_not_have() {
    let (first, second) = (far_with_image().await, far_with_image().await);
    first.delete_tag(APP, "1");
    let site = Site::at(&[first.origin(), second.origin()], "").await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::NotFound { .. })));
    assert_eq!(second.connections(), 0);
}

#[tokio::test]
async fn a_black_hole_in_front_does_not_hide_the_next_endpoint() {
    let (hole, good) = (far_with_image().await, far_with_image().await);
    hole.black_hole(true);
    let site = Site::at(&[hole.origin(), good.origin()], "").await;
    assert_eq!(site.upstream.tags_with(&app(), Patience::Short).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_short_retry_after_is_waited_out() {
    let far = far_with_image().await;
    far.rate_limit(Some("0"), 2);
    let site = Site::of(&far, "").await;
    site.manifest("1").await.unwrap();
    assert_eq!(far.requests().len(), 3);
}

#[tokio::test]
async fn a_long_retry_after_is_told_and_respected() {
    let far = far_with_image().await;
    far.rate_limit(Some("120"), usize::MAX);
    let site = Site::of(&far, "").await;
    let stated = |error| match error {
        UpstreamError::RateLimited { retry_after, .. } => retry_after.map(|pause| pause.as_secs()),
        other => panic!("{other}"),
    };
    assert_eq!(stated(site.manifest("1").await.unwrap_err()), Some(120));
    site.advance(20);
    assert_eq!(stated(site.manifest("1").await.unwrap_err()), Some(100));
    assert_eq!(far.requests().len(), 1);
    // Docker Hub limits GET of manifests only: the rest goes on. And a limit may be lifted early.
    far.switch(|switches| switches.rate_limit = None);
    site.upstream.resolve(&app(), &tag("1")).await.unwrap();
    site.advance(41);
    site.manifest("1").await.unwrap();
    assert_eq!(site.upstream.health().last_error, None);
}

#[tokio::test]
async fn a_429_that_states_no_time_is_not_tried_again() {
    let far = far_with_image().await;
    far.rate_limit(None, 1);
    let site = Site::of(&far, "").await;
    let error = site.manifest("1").await.unwrap_err();
    assert!(matches!(error, UpstreamError::RateLimited { retry_after: None, .. }));
    assert_eq!(far.requests().len(), 1);
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    // Invariant 17
    let far = far_with_image().await;
    far.switch(|switches| switches.redirect = Some((302, "/v2/team/app/manifests/1".to_owned())));
    let site = Site::of(&far, "").await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Misbehaved { .. })));
    assert_eq!(far.requests().len(), 6);
}

#[tokio::test]
async fn a_redirect_to_what_is_no_url_is_refused() {
    let far = far_with_image().await;
    let site = Site::of(&far, "").await;
    let user = format!("http://robot:x@{}/v2/", far.host());
    for location in ["", "ftp://a.b/c", "http://", "http:///v2/", "http://a b/", "http://a:999999/", user.as_str()] {
        far.switch(|switches| switches.redirect = Some((307, location.to_owned())));
        let error = site.manifest("1").await.unwrap_err();
        assert!(matches!(error, UpstreamError::Misbehaved { .. }), "{location}: {error}");
    }
}

#[tokio::test]
async fn megabytes_of_headers_are_not_taken_in() {
    // Invariant 17
    let far = far_with_image().await;
    far.switch(|switches| switches.header_bytes = 3 << 20);
    let site = Site::of(&far, "retries_max = 0").await;
    let error = site.manifest("1").await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unreachable { .. } | UpstreamError::Misbehaved { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_whose_connection_breaks_is_fetched_again() {
    let far = far_with_image().await;
    let site = Site::of(&far, "").await;
    site.manifest("1").await.unwrap();
    // The kept connection is gone without notice.
    far.restart().await;
    site.manifest("1").await.unwrap();
    assert_eq!(far.count(Method::GET, "/manifests/1"), 2);
}

#[tokio::test]
async fn a_blob_that_is_nowhere_to_be_had_does_not_rest_the_registry() {
    let far = far_with_image().await;
    let bytes = patterned(100);
    let digest: Digest = far.put_blob(APP, bytes);
    let storage = FarRegistry::start().await;
    far.redirect_blobs_to(&storage);
    storage.stop().await;
    let site = Site::of(&far, "").await;
    let error = site.blob(&digest, 0).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unreachable { .. }), "{error}");
    assert_eq!(site.upstream.health().resting_until, None);
    site.manifest("1").await.unwrap();
}
