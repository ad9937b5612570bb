//! end-9: tags and manifests are deleted.

use super::client::refusal;
use super::content::{Manifest, digest_of};
use super::{Image, Registry};

const ONLY_READ: &str = "[push]\ndelete = false";

// Spec: delete-tags.1, delete-tags.3, endpoints.8
#[tokio::test]
async fn a_deleted_tag_is_202_and_gone_and_its_manifest_stays() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    registry.push("team/app", "2", &image).await;
    assert_eq!(registry.delete("/v2/team/app/manifests/1").send().await.status, 202);
    assert_eq!(registry.get("/v2/team/app/manifests/1").send().await.status, 404);
    assert_eq!(registry.head("/v2/team/app/manifests/1").send().await.status, 404);
    assert_eq!(registry.tags("team/app", "").await, ["2"]);
    for reference in ["2", &image.digest()] {
        assert_eq!(registry.get(format!("/v2/team/app/manifests/{reference}")).send().await.status, 200, "{reference}");
    }
}

// Spec: endpoints.8
#[tokio::test]
async fn a_tag_that_is_not_there_cannot_be_deleted() {
    let registry = Registry::start().await;
    registry.push("team/app", "1", &Image::of("one")).await;
    let reply = registry.delete("/v2/team/app/manifests/2").send().await;
    assert_eq!(refusal(&reply), (404, "MANIFEST_UNKNOWN".to_owned()));
}

// Spec: delete-tags.1
#[tokio::test]
async fn a_deleted_tag_can_be_pushed_again() {
    let registry = Registry::start().await;
    let (old, new) = (Image::of("old"), Image::of("new"));
    registry.push("team/app", "1", &old).await;
    assert_eq!(registry.delete("/v2/team/app/manifests/1").send().await.status, 202);
    registry.push("team/app", "1", &new).await;
    assert_eq!(registry.get("/v2/team/app/manifests/1").send().await.body, new.bytes());
}

// Spec: delete-tags.2
#[tokio::test]
async fn no_tag_is_deleted_where_that_is_disabled() {
    let registry = Registry::with(ONLY_READ).await;
    registry.push("team/app", "1", &Image::of("one")).await;
    let reply = registry.delete("/v2/team/app/manifests/1").send().await;
    assert_eq!(refusal(&reply), (405, "UNSUPPORTED".to_owned()));
    assert_eq!(registry.get("/v2/team/app/manifests/1").send().await.status, 200);
}

// Spec: delete-manifests.1, delete-manifests.5, endpoints.8
#[tokio::test]
async fn a_deleted_manifest_is_202_and_gone_with_every_tag_of_it() {
    let registry = Registry::start().await;
    let (image, other) = (Image::of("one"), Image::of("two"));
    registry.push("team/app", "1", &image).await;
    registry.push("team/app", "latest", &image).await;
    registry.push("team/app", "2", &other).await;
    let path = format!("/v2/team/app/manifests/{}", image.digest());
    assert_eq!(registry.delete(&path).send().await.status, 202);
    for reference in [&*image.digest(), "1", "latest"] {
        let path = format!("/v2/team/app/manifests/{reference}");
        assert_eq!(registry.get(&path).send().await.status, 404, "GET {reference}");
        assert_eq!(registry.head(&path).send().await.status, 404, "HEAD {reference}");
    }
    assert_eq!(registry.tags("team/app", "").await, ["2"]);
}

// Spec: delete-manifests.1
#[tokio::test]
async fn a_manifest_deleted_in_one_repository_stays_in_the_others() {
    // Invariant 8
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    registry.push("team/other", "1", &image).await;
    let digest = image.digest();
    assert_eq!(registry.delete(format!("/v2/team/app/manifests/{digest}")).send().await.status, 202);
    assert_eq!(registry.get("/v2/team/other/manifests/1").send().await.body, image.bytes());
    let layer = format!("/v2/team/other/blobs/{}", image.layer_digest());
    assert_eq!(registry.get(layer).send().await.body, image.layer);
}

// Spec: delete-manifests.2
#[tokio::test]
async fn nothing_is_deleted_in_a_repository_that_is_not_there() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for reference in ["1", &image.digest(), &digest_of(b"absent")] {
        let reply = registry.delete(format!("/v2/team/absent/manifests/{reference}")).send().await;
        assert_eq!(reply.status, 404, "{reference}: {reply:?}");
    }
    assert_eq!(registry.get("/v2/team/app/manifests/1").send().await.status, 200);
}

// Spec: delete-manifests.3
#[tokio::test]
async fn no_manifest_is_deleted_where_that_is_disabled() {
    let registry = Registry::with(ONLY_READ).await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    let reply = registry.delete(format!("/v2/team/app/manifests/{}", image.digest())).send().await;
    assert_eq!(refusal(&reply), (405, "UNSUPPORTED".to_owned()));
    assert_eq!(registry.get("/v2/team/app/manifests/1").send().await.status, 200);
}
