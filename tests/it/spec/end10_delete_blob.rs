//! end-10: blobs are deleted.

use super::client::refusal;
use super::content::{Manifest, digest_of};
use super::{Image, Registry};

// Spec: delete-blobs.1
#[tokio::test]
async fn a_deleted_blob_is_202_and_gone_at_once() {
    let registry = Registry::start().await;
    let path = format!("/v2/team/app/blobs/{}", registry.push_blob("team/app", b"a blob").await);
    assert_eq!(registry.delete(&path).send().await.status, 202);
    assert_eq!(registry.head(&path).send().await.status, 404);
    assert_eq!(registry.get(&path).send().await.status, 404);
}

// Spec: delete-blobs.1
#[tokio::test]
async fn a_blob_that_a_manifest_names_can_be_deleted_and_pushed_again() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    let path = format!("/v2/team/app/blobs/{}", image.layer_digest());
    assert_eq!(registry.delete(&path).send().await.status, 202);
    assert_eq!(registry.get(&path).send().await.status, 404);
    registry.push("team/app", &image.digest(), &image).await;
    assert_eq!(registry.get(&path).send().await.body, image.layer);
}

// Spec: delete-blobs.1
#[tokio::test]
async fn a_blob_deleted_in_one_repository_stays_in_the_others() {
    // Invariant 8
    let registry = Registry::start().await;
    let digest = registry.push_blob("team/app", b"a blob").await;
    registry.push_blob("team/other", b"a blob").await;
    assert_eq!(registry.delete(format!("/v2/team/app/blobs/{digest}")).send().await.status, 202);
    assert_eq!(registry.get(format!("/v2/team/app/blobs/{digest}")).send().await.status, 404);
    assert_eq!(registry.get(format!("/v2/team/other/blobs/{digest}")).send().await.body, &b"a blob"[..]);
}

// Spec: delete-blobs.2
#[tokio::test]
async fn a_blob_that_is_not_there_cannot_be_deleted() {
    let registry = Registry::start().await;
    let theirs = registry.push_blob("team/other", b"theirs").await;
    registry.push_blob("team/app", b"another").await;
    let deleted = registry.push_blob("team/app", b"a blob").await;
    registry.delete(format!("/v2/team/app/blobs/{deleted}")).send().await;
    for digest in [digest_of(b"absent"), deleted, theirs.clone()] {
        let reply = registry.delete(format!("/v2/team/app/blobs/{digest}")).send().await;
        assert_eq!(refusal(&reply), (404, "BLOB_UNKNOWN".to_owned()));
    }
    assert_eq!(registry.get(format!("/v2/team/other/blobs/{theirs}")).send().await.status, 200);
}

// Spec: delete-blobs.3
#[tokio::test]
async fn no_blob_is_deleted_where_that_is_disabled() {
    let registry = Registry::with("[push]\ndelete = false").await;
    let path = format!("/v2/team/app/blobs/{}", registry.push_blob("team/app", b"a blob").await);
    let reply = registry.delete(&path).send().await;
    assert_eq!(refusal(&reply), (405, "UNSUPPORTED".to_owned()));
    assert_eq!(registry.get(&path).send().await.status, 200);
}
