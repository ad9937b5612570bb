//! Tags and referrers: over pages, within bounds, by the API or by the tag that stands in for it.

use http::Method;
use sealock::oci::{Digest, MediaType};
use sealock::upstream::UpstreamError;

use super::{APP, Site, app, name};
use crate::support::far::{FarRegistry, TestImage};

async fn tags_of(site: &Site) -> Result<Vec<String>, UpstreamError> {
    Ok(site.upstream.tags(&app()).await?.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn tags_are_gathered_over_all_pages() {
    let far = FarRegistry::start().await;
    let image = far.put_image(APP, "1", &[b"layer"]);
    for tag in ["2", "3", "4", "5", "latest"] {
        far.tag(APP, tag, &image.digest);
    }
    far.tag("team/other", "6", &image.digest);
    far.switch(|switches| switches.page_size = 2);
    let site = Site::of(&far, "").await;
    assert_eq!(tags_of(&site).await.unwrap(), ["1", "2", "3", "4", "5", "latest"]);
    assert_eq!(far.count(Method::GET, "/tags/list"), 3);
    assert!(matches!(site.upstream.tags(&name("team/none")).await, Err(UpstreamError::NotFound { .. })));
}

#[tokio::test]
async fn what_is_no_tag_is_left_out() {
    let far = FarRegistry::start().await;
    let image = far.put_image(APP, "1", &[b"layer"]);
    far.tag(APP, "not a tag/../", &image.digest);
    let site = Site::of(&far, "").await;
    assert_eq!(tags_of(&site).await.unwrap(), ["1"]);
}

#[tokio::test]
async fn pages_that_go_in_a_circle_are_refused() {
    // Invariant 17
    let far = FarRegistry::start().await;
    let image = far.put_image(APP, "1", &[b"layer"]);
    far.put_referrer(APP, (&image.digest, image.bytes.len()), "a/b", b"payload");
    far.switch(|switches| switches.endless_pages = true);
    let site = Site::of(&far, "").await;
    assert!(matches!(tags_of(&site).await, Err(UpstreamError::Misbehaved { .. })));
    assert!(matches!(site.upstream.referrers(&app(), &image.digest).await, Err(UpstreamError::Misbehaved { .. })));
    assert!(far.requests().len() <= 5);
}

fn signed(far: &FarRegistry, count: usize) -> (TestImage, Vec<Digest>) {
    let image = far.put_image(APP, "1", &[b"layer"]);
    let sign = |number: usize| {
        far.put_referrer(APP, (&image.digest, image.bytes.len()), "a/signature", &number.to_be_bytes()).digest
    };
    let mut signatures: Vec<_> = (0..count).map(sign).collect();
    signatures.sort();
    (image, signatures)
}

async fn referrers_of(site: &Site, digest: &Digest) -> Vec<Digest> {
    let found = site.upstream.referrers(&app(), digest).await.unwrap();
    assert!(found.iter().all(|descriptor| descriptor.artifact_type.as_deref() == Some("a/signature")));
    assert!(found.iter().all(|descriptor| descriptor.media_type == MediaType::OCI_MANIFEST));
    let mut digests: Vec<_> = found.iter().map(|descriptor| descriptor.digest).collect();
    digests.sort();
    digests
}

#[tokio::test]
async fn referrers_come_by_the_api_over_all_pages() {
    let far = FarRegistry::start().await;
    let (image, signatures) = signed(&far, 5);
    far.switch(|switches| switches.page_size = 2);
    let site = Site::of(&far, "").await;
    assert_eq!(referrers_of(&site, &image.digest).await, signatures);
    assert_eq!(referrers_of(&site, &image.config).await, []);
    assert_eq!(far.count(Method::GET, "/manifests/"), 0);
}

#[tokio::test]
async fn referrers_come_by_the_fallback_tag_where_there_is_no_api() {
    let far = FarRegistry::start().await;
    let (image, signatures) = signed(&far, 3);
    far.referrers_api(false);
    let site = Site::of(&far, "").await;
    assert_eq!(referrers_of(&site, &image.digest).await, signatures);
    assert_eq!(referrers_of(&site, &image.config).await, []);
    for status in [400, 405, 406] {
        far.fail_next_on("/referrers/", status, 1);
        assert_eq!(referrers_of(&site, &image.digest).await, signatures, "{status}");
    }
}
