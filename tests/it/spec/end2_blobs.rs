//! end-2: blobs are pulled, whole and in parts.

use super::Registry;
use super::client::refusal;
use super::content::{digest_of, noise, sha512_of};

const SIZE: usize = 2048;

// Spec: pull-blobs.1, pull-blobs.2, endpoints.1
#[tokio::test]
async fn a_blob_comes_whole_with_200() {
    let registry = Registry::start().await;
    for bytes in [noise(SIZE), noise(1), Vec::new(), b"{}".to_vec()] {
        let digest = registry.push_blob("team/app", &bytes).await;
        let reply = registry.get(format!("/v2/team/app/blobs/{digest}")).send().await;
        assert_eq!((reply.status.as_u16(), &reply.body[..]), (200, &bytes[..]));
    }
}

// Spec: pull-blobs.3, pull-blobs.4
#[tokio::test]
async fn a_blob_says_its_digest_by_the_algorithm_it_was_asked_by() {
    let registry = Registry::start().await;
    let bytes = noise(SIZE);
    for digest in [digest_of(&bytes), sha512_of(&bytes)] {
        registry.push_blob_as("team/app", &bytes, &digest).await;
        let reply = registry.get(format!("/v2/team/app/blobs/{digest}")).send().await;
        assert_eq!(reply.header("docker-content-digest"), Some(&*digest));
        assert_eq!(reply.body, bytes);
    }
}

// Spec: pull-blobs.7, endpoints.1
#[tokio::test]
async fn a_blob_that_is_not_there_is_404() {
    let registry = Registry::start().await;
    registry.push_blob("team/app", b"another").await;
    for absent in [digest_of(b"absent"), sha512_of(b"absent")] {
        let reply = registry.get(format!("/v2/team/app/blobs/{absent}")).send().await;
        assert_eq!(refusal(&reply), (404, "BLOB_UNKNOWN".to_owned()));
    }
}

// Spec: pull-blobs.7
#[tokio::test]
async fn a_blob_of_another_repository_is_not_found_in_this_one() {
    // Invariant 14
    let registry = Registry::start().await;
    registry.push_blob("team/own", b"mine").await;
    let theirs = registry.push_blob("team/other", b"theirs").await;
    let absent = digest_of(b"absent");
    let (theirs, absent) = (format!("/v2/team/own/blobs/{theirs}"), format!("/v2/team/own/blobs/{absent}"));
    assert_eq!(refusal(&registry.get(theirs).send().await), refusal(&registry.get(absent).send().await));
}

// Spec: pull-blobs.8
#[tokio::test]
async fn a_range_of_a_blob_is_206_with_these_bytes() {
    let registry = Registry::start().await;
    let bytes = noise(SIZE);
    let path = format!("/v2/team/app/blobs/{}", registry.push_blob("team/app", &bytes).await);
    for (range, first, last) in [
        ("bytes=500-1499", 500, 1499),
        ("bytes=500-", 500, SIZE - 1),
        ("bytes=-500", SIZE - 500, SIZE - 1),
        ("bytes=2000-5000", 2000, SIZE - 1),
        ("bytes=0-0", 0, 0),
        ("bytes=-5000", 0, SIZE - 1),
    ] {
        let reply = registry.get(&path).header("range", range).send().await;
        assert_eq!(reply.status, 206, "{range}");
        assert_eq!(reply.body, bytes[first..=last], "{range}");
        assert_eq!(reply.header("content-range"), Some(&*format!("bytes {first}-{last}/{SIZE}")), "{range}");
        assert_eq!(reply.header("content-length"), Some(&*(last - first + 1).to_string()), "{range}");
    }
}

// Spec: pull-blobs.8
#[tokio::test]
async fn a_range_beyond_the_blob_is_416_and_says_its_size() {
    let registry = Registry::start().await;
    let path = format!("/v2/team/app/blobs/{}", registry.push_blob("team/app", &noise(SIZE)).await);
    let reply = registry.get(&path).header("range", "bytes=5000-10000").send().await;
    assert_eq!(reply.status, 416);
    assert_eq!(reply.header("content-range"), Some("bytes */2048"));
    // A wrong length here breaks the connection for clients that keep it.
    assert_eq!(reply.header("content-length"), Some(&*reply.body.len().to_string()));
    assert_eq!(registry.get(&path).header("range", "bytes=500-0").send().await.status, 416);
}

// Spec: check.1, check.2, check.3
#[tokio::test]
async fn head_of_a_blob_is_200_with_digest_and_size() {
    let registry = Registry::start().await;
    for bytes in [noise(SIZE), Vec::new()] {
        for digest in [digest_of(&bytes), sha512_of(&bytes)] {
            registry.push_blob_as("team/app", &bytes, &digest).await;
            let reply = registry.head(format!("/v2/team/app/blobs/{digest}")).send().await;
            assert_eq!(reply.status, 200);
            assert_eq!(reply.header("docker-content-digest"), Some(&*digest));
            assert_eq!(reply.header("content-length"), Some(&*bytes.len().to_string()));
        }
    }
}

// Spec: check.4
#[tokio::test]
async fn head_of_a_blob_that_is_not_there_is_404() {
    let registry = Registry::start().await;
    let reply = registry.head(format!("/v2/team/app/blobs/{}", digest_of(b"absent"))).send().await;
    assert_eq!(reply.status, 404);
}
