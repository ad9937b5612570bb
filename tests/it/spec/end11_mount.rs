//! end-11: a blob of one repository is mounted into another.

use super::Registry;
use super::client::{and, location};
use super::content::{digest_of, sha512_of};

const BLOB: &[u8] = b"a layer that many share";

// Spec: mount.1, mount.2, mount.5
#[tokio::test]
async fn a_mount_is_201_and_says_where_the_blob_is() {
    let registry = Registry::start().await;
    for digest in [digest_of(BLOB), sha512_of(BLOB)] {
        registry.push_blob_as("team/base", BLOB, &digest).await;
        let reply = registry.post(format!("/v2/team/app/blobs/uploads/?mount={digest}&from=team/base")).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
        assert_eq!(reply.header("docker-content-digest"), Some(&*digest));
        assert!(location(&reply).contains("/v2/team/app/"), "{reply:?}");
        assert_eq!(registry.get(location(&reply)).send().await.body, BLOB);
    }
}

// Spec: mount.1
#[tokio::test]
async fn a_mount_is_understood_however_its_query_is_written() {
    // docker escapes both, containerd neither; crane adds `origin`.
    let registry = Registry::start().await;
    let digest = registry.push_blob("team/base", BLOB).await;
    let escaped = digest.replace(':', "%3A");
    for (into, query) in [
        ("team/a", format!("from=team%2Fbase&mount={escaped}")),
        ("team/b", format!("mount={digest}&from=team/base")),
        ("team/c", format!("from=team%2Fbase&mount={escaped}&origin=registry.example")),
    ] {
        let reply = registry.post(format!("/v2/{into}/blobs/uploads/?{query}")).send().await;
        assert_eq!(reply.status, 201, "{query}: {reply:?}");
    }
}

// Spec: mount.4, mount.7
#[tokio::test]
async fn what_cannot_be_mounted_is_202_and_an_upload_like_any_other() {
    let registry = Registry::start().await;
    registry.push_blob("team/base", b"another").await;
    let digest = digest_of(BLOB);
    for from in ["team/base", "team/absent", "Not/A/Name"] {
        let reply = registry.post(format!("/v2/team/app/blobs/uploads/?mount={digest}&from={from}")).send().await;
        assert_eq!(reply.status, 202, "{from}: {reply:?}");
        let closing = and(&location(&reply), &format!("digest={digest}"));
        assert_eq!(registry.put(closing).octets(BLOB).send().await.status, 201, "{from}");
        assert_eq!(registry.delete(format!("/v2/team/app/blobs/{digest}")).send().await.status, 202, "{from}");
    }
}

// Spec: mount.6
#[tokio::test]
async fn a_mount_without_from_finds_the_blob_where_the_caller_may_read_it() {
    let registry = Registry::start().await;
    let digest = registry.push_blob("team/base", BLOB).await;
    let reply = registry.post(format!("/v2/team/app/blobs/uploads/?mount={digest}")).send().await;
    assert_eq!(reply.status, 201, "{reply:?}");
    assert_eq!(registry.get(location(&reply)).send().await.body, BLOB);
    let absent = registry.post(format!("/v2/team/app/blobs/uploads/?mount={}", digest_of(b"absent"))).send().await;
    assert_eq!(absent.status, 202, "{absent:?}");
}

// Spec: mount.5
#[tokio::test]
async fn a_mounted_blob_outlives_the_one_it_was_mounted_from() {
    // Invariant 8
    let registry = Registry::start().await;
    let digest = registry.push_blob("team/base", BLOB).await;
    registry.post(format!("/v2/team/app/blobs/uploads/?mount={digest}&from=team/base")).send().await;
    assert_eq!(registry.delete(format!("/v2/team/base/blobs/{digest}")).send().await.status, 202);
    assert_eq!(registry.head(format!("/v2/team/base/blobs/{digest}")).send().await.status, 404);
    assert_eq!(registry.get(format!("/v2/team/app/blobs/{digest}")).send().await.body, BLOB);
}

// Spec: mount.4, mount.6
#[tokio::test]
async fn a_blob_that_no_repository_has_any_more_is_not_mounted() {
    // Invariant 14
    let registry = Registry::start().await;
    let digest = registry.push_blob("team/base", BLOB).await;
    assert_eq!(registry.delete(format!("/v2/team/base/blobs/{digest}")).send().await.status, 202);
    for query in [format!("mount={digest}"), format!("mount={digest}&from=team/base")] {
        let reply = registry.post(format!("/v2/team/app/blobs/uploads/?{query}")).send().await;
        assert_eq!(reply.status, 202, "{query}: {reply:?}");
        assert_eq!(registry.head(format!("/v2/team/app/blobs/{digest}")).send().await.status, 404, "{query}");
    }
}
