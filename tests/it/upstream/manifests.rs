//! Manifests: what is asked, what is answered, how much is taken in.

use http::Method;
use sealock::oci::{Digest, MANIFEST_SIZE_MAX, MediaType, Reference};
use sealock::upstream::UpstreamError;

use super::{APP, Site, app, tag};
use crate::support::far::FarRegistry;

#[tokio::test]
async fn a_tag_is_resolved_by_head_and_fetched_by_get() {
    let far = FarRegistry::start().await;
    let image = far.put_image(APP, "1", &[b"layer"]);
    let site = Site::of(&far, "").await;
    let resolved = site.upstream.resolve(&app(), &tag("1")).await.unwrap();
    assert_eq!(resolved.digest, Some(image.digest));
    assert_eq!(resolved.size, Some(image.bytes.len() as u64));
    assert_eq!(resolved.media_type.unwrap().as_str(), MediaType::OCI_MANIFEST);
    let fetched = site.upstream.manifest(&app(), &Reference::Digest(image.digest)).await.unwrap();
    assert_eq!(fetched.bytes, image.bytes);
    assert_eq!(fetched.media_type.unwrap().as_str(), MediaType::OCI_MANIFEST);
    assert_eq!((far.count(Method::HEAD, "/manifests/1"), far.count(Method::GET, "/manifests/sha256:")), (1, 1));
}

#[tokio::test]
async fn the_full_list_of_types_is_asked_for_and_nothing_encoded() {
    let far = FarRegistry::start().await;
    let image = far.put_image(APP, "1", &[b"layer"]);
    let site = Site::of(&far, "").await;
    site.manifest("1").await.unwrap();
    site.blob(&image.config, 0).await.unwrap();
    let requests = far.requests();
    assert_eq!(requests[0].header("accept"), Some(MediaType::ACCEPT));
    assert!(requests.iter().all(|request| request.header("accept-encoding") == Some("identity")));
    assert!(requests.iter().all(|request| request.header("cookie").is_none()));
}

#[tokio::test]
async fn where_head_lacks_the_digest_the_caller_is_told_so() {
    let far = FarRegistry::start().await;
    far.put_image(APP, "1", &[b"layer"]);
    far.switch(|switches| switches.digest_header = false);
    let site = Site::of(&far, "").await;
    assert_eq!(site.upstream.resolve(&app(), &tag("1")).await.unwrap().digest, None);
    far.fail_next(405, 1);
    assert_eq!(site.upstream.resolve(&app(), &tag("1")).await.unwrap().digest, None);
}

#[tokio::test]
async fn what_upstream_does_not_have_is_not_found_and_asked_for_once() {
    // Invariant 11
    let far = FarRegistry::start().await;
    far.put_image(APP, "1", &[b"layer"]);
    let site = Site::of(&far, "").await;
    let missing = Digest::sha256(b"nothing");
    assert!(matches!(site.manifest("2").await, Err(UpstreamError::NotFound { .. })));
    assert!(matches!(site.blob(&missing, 0).await, Err(UpstreamError::NotFound { .. })));
    assert!(matches!(site.upstream.has_blob(&app(), &missing).await, Err(UpstreamError::NotFound { .. })));
    assert_eq!(far.requests().len(), 3);
}

#[tokio::test]
async fn what_could_not_be_asked_is_never_not_found() {
    // Invariant 11
    for status in [400, 402, 406, 418, 429, 451, 500, 502, 503, 504] {
        let far = FarRegistry::start().await;
        far.put_image(APP, "1", &[b"layer"]);
        let site = Site::of(&far, "").await;
        far.always(status);
        let error = site.manifest("1").await.unwrap_err();
        let told = matches!(error, UpstreamError::Failed { .. } | UpstreamError::RateLimited { .. });
        assert!(told, "{status}: {error}");
    }
}

#[tokio::test]
async fn a_manifest_that_is_too_long_is_not_taken_in() {
    // Invariant 17
    let far = FarRegistry::start().await;
    let most = MANIFEST_SIZE_MAX as usize;
    far.put_manifest(APP, Some("most"), vec![b' '; most], MediaType::OCI_MANIFEST);
    far.put_manifest(APP, Some("more"), vec![b' '; most + 1], MediaType::OCI_MANIFEST);
    let site = Site::of(&far, "").await;
    assert_eq!(site.manifest("most").await.unwrap().len(), most);
    assert!(matches!(site.manifest("more").await, Err(UpstreamError::Misbehaved { .. })));
    far.switch(|switches| switches.endless = true);
    assert!(matches!(site.manifest("most").await, Err(UpstreamError::Misbehaved { .. })));
}

#[tokio::test]
async fn head_of_a_blob_tells_its_size() {
    let far = FarRegistry::start().await;
    let storage = FarRegistry::start().await;
    let digest = far.put_blob(APP, &b"twelve bytes"[..]);
    let site = Site::of(&far, "").await;
    assert_eq!(site.upstream.has_blob(&app(), &digest).await.unwrap(), Some(12));
    far.redirect_blobs_to(&storage);
    assert_eq!(site.upstream.has_blob(&app(), &digest).await.unwrap(), Some(12));
    // A signed URL that is good for GET only: that there is one is the answer.
    storage.fail_next_on("/signed/", 403, 1);
    assert_eq!(site.upstream.has_blob(&app(), &digest).await.unwrap(), None);
}
