//! end-6: an upload is closed, and becomes a blob or nothing.

use super::Registry;
use super::client::{and, location, refusal};
use super::content::{digest_of, noise, sha512_of};

const BLOB: &[u8] = b"a blob";

// Spec: post-put.6, post-put.7, post-put.8, endpoints.4
#[tokio::test]
async fn a_put_of_all_bytes_is_201_and_says_where_the_blob_is() {
    let registry = Registry::start().await;
    for (bytes, digest) in [(BLOB, digest_of(BLOB)), (BLOB, sha512_of(BLOB)), (b"", digest_of(b""))] {
        let closing = and(&registry.begin("team/app").await, &format!("digest={digest}"));
        let reply = registry.put(closing).octets(bytes).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
        assert_eq!(reply.header("docker-content-digest"), Some(&*digest));
        let pulled = registry.get(location(&reply)).send().await;
        assert_eq!((pulled.status.as_u16(), &pulled.body[..]), (200, bytes));
    }
}

// Spec: chunks.15, chunks.16, chunks.25
#[tokio::test]
async fn closing_a_chunked_upload_is_201_and_says_where_the_blob_is() {
    let registry = Registry::start().await;
    for digest in [digest_of(BLOB), sha512_of(BLOB)] {
        let at = registry.begin("team/app").await;
        let at = location(&registry.patch(&at).header("content-range", "0-5").octets(BLOB).send().await);
        let reply = registry.put(and(&at, &format!("digest={digest}"))).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
        assert_eq!(registry.get(location(&reply)).send().await.body, BLOB);
    }
}

// Spec: chunks.24
#[tokio::test]
async fn the_last_chunk_may_come_with_the_closing_put() {
    let registry = Registry::start().await;
    let (bytes, digest) = (noise(1000), digest_of(&noise(1000)));
    for range in [Some("600-999"), None] {
        let at = registry.begin("team/app").await;
        let at = location(&registry.patch(&at).header("content-range", "0-599").octets(&bytes[..600]).send().await);
        let mut put = registry.put(and(&at, &format!("digest={digest}"))).octets(&bytes[600..]);
        if let Some(range) = range {
            put = put.header("content-range", range);
        }
        let reply = put.send().await;
        assert_eq!(reply.status, 201, "{range:?}: {reply:?}");
        assert_eq!(registry.get(location(&reply)).send().await.body, bytes, "{range:?}");
    }
}

// Spec: chunks.17, endpoints.4
#[tokio::test]
async fn a_last_chunk_out_of_order_is_416_and_the_upload_lives_on() {
    let registry = Registry::start().await;
    let bytes = noise(1000);
    let at = registry.begin("team/app").await;
    let at = location(&registry.patch(&at).header("content-range", "0-599").octets(&bytes[..600]).send().await);
    let closing = and(&at, &format!("digest={}", digest_of(&bytes)));
    for (range, part) in [("700-999", &bytes[700..]), ("0-999", &bytes[..]), ("500-999", &bytes[500..])] {
        let reply = registry.put(&closing).header("content-range", range).octets(part).send().await;
        assert_eq!(reply.status, 416, "{range}: {reply:?}");
    }
    assert_eq!(registry.get(&at).send().await.header("range"), Some("0-599"));
    let reply = registry.put(&closing).header("content-range", "600-999").octets(&bytes[600..]).send().await;
    assert_eq!(reply.status, 201, "{reply:?}");
}

// Spec: chunks.13
#[tokio::test]
async fn nothing_is_a_blob_until_its_upload_is_closed() {
    // Invariant 2
    let registry = Registry::start().await;
    let path = format!("/v2/team/app/blobs/{}", digest_of(BLOB));
    let at = location(&registry.patch(registry.begin("team/app").await).octets(BLOB).send().await);
    assert_eq!(registry.get(&path).send().await.status, 404);
    assert_eq!(registry.put(and(&at, &format!("digest={}", digest_of(BLOB)))).send().await.status, 201);
    assert_eq!(registry.get(&path).send().await.status, 200);
}

// Spec: chunks.14
#[tokio::test]
async fn closing_without_a_digest_is_400() {
    let registry = Registry::start().await;
    let at = location(&registry.patch(registry.begin("team/app").await).octets(BLOB).send().await);
    let reply = registry.put(&at).send().await;
    assert_eq!(refusal(&reply), (400, "DIGEST_INVALID".to_owned()));
}

// Spec: chunks.14
#[tokio::test]
async fn closing_with_the_last_chunks_digest_alone_is_400_and_leaves_nothing() {
    // Invariant 2
    let registry = Registry::start().await;
    let bytes = noise(1000);
    let at = location(&registry.patch(registry.begin("team/app").await).octets(&bytes[..600]).send().await);
    let wrong = digest_of(&bytes[600..]);
    let reply = registry.put(and(&at, &format!("digest={wrong}"))).octets(&bytes[600..]).send().await;
    assert_eq!(refusal(&reply), (400, "DIGEST_INVALID".to_owned()));
    for digest in [wrong, digest_of(&bytes), digest_of(&bytes[..600])] {
        assert_eq!(registry.head(format!("/v2/team/app/blobs/{digest}")).send().await.status, 404);
    }
}

// Spec: endpoints.4
#[tokio::test]
async fn an_upload_that_is_closed_is_gone() {
    let registry = Registry::start().await;
    let at = registry.begin("team/app").await;
    let closing = and(&at, &format!("digest={}", digest_of(BLOB)));
    assert_eq!(registry.put(&closing).octets(BLOB).send().await.status, 201);
    assert_eq!(registry.get(&at).send().await.status, 404);
    let again = registry.patch(&at).octets(BLOB).send().await;
    assert_eq!(refusal(&again), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
}

// Spec: endpoints.4
#[tokio::test]
async fn nobody_closes_an_upload_through_another_repository() {
    // Invariant 14
    let registry = Registry::start().await;
    let at = location(&registry.patch(registry.begin("team/app").await).octets(BLOB).send().await);
    let elsewhere = and(&at.replace("team/app", "team/other"), &format!("digest={}", digest_of(BLOB)));
    assert_eq!(registry.put(elsewhere).send().await.status, 404);
    assert_eq!(registry.get(&at).send().await.status, 204);
}
