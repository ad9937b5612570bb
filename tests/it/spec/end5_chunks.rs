//! end-5: chunks, one after another.

use super::Registry;
use super::client::{and, location, refusal};
use super::content::{digest_of, noise};
use crate::support::site::Reply;

async fn chunk(registry: &Registry, at: &str, range: &str, bytes: &[u8]) -> Reply {
    registry.patch(at).header("content-range", range).octets(bytes).send().await
}

// Spec: chunks.8, chunks.9, chunks.22, endpoints.3
#[tokio::test]
async fn every_chunk_is_202_and_says_where_to_go_on() {
    let registry = Registry::start().await;
    let bytes = noise(3000);
    let mut at = registry.begin("team/app").await;
    for (first, last) in [(0, 999), (1000, 1999), (2000, 2999)] {
        let reply = chunk(&registry, &at, &format!("{first}-{last}"), &bytes[first..=last]).await;
        assert_eq!(reply.status, 202, "{reply:?}");
        assert_eq!(reply.header("range"), Some(&*format!("0-{last}")));
        at = location(&reply);
    }
    let digest = digest_of(&bytes);
    assert_eq!(registry.put(and(&at, &format!("digest={digest}"))).send().await.status, 201);
    assert_eq!(registry.get(format!("/v2/team/app/blobs/{digest}")).send().await.body, bytes);
}

// Spec: chunks.8, chunks.9
#[tokio::test]
async fn a_stream_without_content_range_and_length_is_202_too() {
    // docker 20.10 and 29 send no other.
    let registry = Registry::start().await;
    let bytes = noise(5000);
    let at = registry.begin("team/app").await;
    let reply = registry.patch(&at).stream(&bytes[..3000]).send().await;
    assert_eq!((reply.status.as_u16(), reply.header("range")), (202, Some("0-2999")));
    let reply = registry.patch(location(&reply)).stream(&bytes[3000..]).send().await;
    assert_eq!((reply.status.as_u16(), reply.header("range")), (202, Some("0-4999")));
    let digest = digest_of(&bytes);
    assert_eq!(registry.put(and(&location(&reply), &format!("digest={digest}"))).send().await.status, 201);
    assert_eq!(registry.get(format!("/v2/team/app/blobs/{digest}")).send().await.body, bytes);
}

// Spec: chunks.4
#[tokio::test]
async fn both_ends_of_a_range_are_inside_it() {
    let registry = Registry::start().await;
    let at = registry.begin("team/app").await;
    // Ten bytes are 0-9; a client that says 0-10 has sent one too few, or means another thing.
    let reply = chunk(&registry, &at, "0-10", &noise(10)).await;
    assert!(matches!(reply.status.as_u16(), 400 | 416), "{reply:?}");
    let state = registry.get(&at).send().await;
    assert!(matches!(state.header("range"), None | Some("0-0")), "what was refused was kept: {state:?}");
    assert_eq!(chunk(&registry, &location(&state), "0-9", &noise(10)).await.status, 202);
}

// Spec: chunks.5
#[tokio::test]
async fn the_first_chunk_begins_with_0() {
    let registry = Registry::start().await;
    let at = registry.begin("team/app").await;
    assert_eq!(chunk(&registry, &at, "1-10", &noise(10)).await.status, 416);
    assert_eq!(chunk(&registry, &at, "0-9", &noise(10)).await.status, 202);
}

// Spec: chunks.6
#[tokio::test]
async fn a_range_that_is_none_is_refused_and_nothing_of_it_kept() {
    let registry = Registry::start().await;
    let at = registry.begin("team/app").await;
    for range in ["bytes=0-9", "0-", "-9", "0", "a-b", "9-0", "0-9,10-19", "0-99999999999999999999999"] {
        let reply = chunk(&registry, &at, range, &noise(10)).await;
        assert!(matches!(reply.status.as_u16(), 400 | 416), "{range}: {reply:?}");
    }
    let reply = chunk(&registry, &at, "0-9", &noise(10)).await;
    assert_eq!((reply.status.as_u16(), reply.header("range")), (202, Some("0-9")));
}

// Spec: chunks.11, chunks.12, endpoints.3
#[tokio::test]
async fn a_chunk_out_of_order_is_416_and_the_upload_lives_on() {
    let registry = Registry::start().await;
    let bytes = noise(3000);
    let at = location(&chunk(&registry, &registry.begin("team/app").await, "0-999", &bytes[..1000]).await);
    for (range, part) in [("2000-2999", &bytes[2000..]), ("0-999", &bytes[..1000]), ("500-1499", &bytes[500..1500])] {
        let reply = chunk(&registry, &at, range, part).await;
        assert_eq!(reply.status, 416, "{range}");
        assert_eq!(reply.header("range"), Some("0-999"), "{range}: where it could go on");
    }
    let reply = chunk(&registry, &at, "1000-2999", &bytes[1000..]).await;
    assert_eq!((reply.status.as_u16(), reply.header("range")), (202, Some("0-2999")));
    let digest = digest_of(&bytes);
    assert_eq!(registry.put(and(&location(&reply), &format!("digest={digest}"))).send().await.status, 201);
}

// Spec: endpoints.3
#[tokio::test]
async fn a_chunk_of_an_upload_that_nobody_began_is_404() {
    let registry = Registry::start().await;
    let begun = registry.begin("team/app").await;
    let made_up = "/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef".to_owned();
    // Invariant 14
    let elsewhere = begun.replace("team/app", "team/other");
    for at in [made_up, elsewhere, "/v2/team/app/blobs/uploads/..".to_owned()] {
        let reply = registry.patch(&at).octets(b"a chunk").send().await;
        assert_eq!(reply.status, 404, "{at}: {reply:?}");
    }
    assert_eq!(registry.get(&begun).send().await.status, 204);
}

// Spec: endpoints.3
#[tokio::test]
async fn an_upload_that_nobody_began_has_its_own_error_code() {
    let registry = Registry::start().await;
    let made_up = "/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef";
    let reply = registry.patch(made_up).octets(b"a chunk").send().await;
    assert_eq!(refusal(&reply), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
}
