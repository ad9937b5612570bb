//! end-4: an upload begins, or is over with one request.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Registry;
use super::client::{and, location, refusal};
use super::content::{digest_of, noise, sha512_of};
use crate::support::site::connect;

const BLOB: &[u8] = b"a blob";

// Spec: post-put.1, post-put.2, endpoints.2
#[tokio::test]
async fn an_upload_begins_with_202_and_a_location() {
    let registry = Registry::start().await;
    let reply = registry.post("/v2/team/app/blobs/uploads/").send().await;
    assert_eq!(reply.status, 202);
    let location = location(&reply);
    assert!(location.starts_with('/') || location.starts_with("http://"), "{location}");
}

// Spec: post-put.3
#[tokio::test]
async fn every_upload_has_an_id_of_its_own_that_cannot_be_guessed() {
    let registry = Registry::start().await;
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let location = registry.begin("team/app").await;
        let id = location.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
        let digits = id.chars().filter(char::is_ascii_hexdigit).count();
        assert!(digits >= 32, "a UUID has 128 bits: {id}");
        assert!(ids.insert(id.clone()), "{id} twice");
    }
}

// Spec: push-blobs.1
#[tokio::test]
async fn a_digest_that_is_none_is_400_in_every_way_to_push() {
    let registry = Registry::start().await;
    let wrong = ["sha256:baddigeststring", "sha256:", "nonsense", &format!("md5:{}", "0".repeat(32))];
    for digest in wrong {
        let post = registry.post(format!("/v2/team/app/blobs/uploads/?digest={digest}")).octets(BLOB).send().await;
        assert_eq!(refusal(&post), (400, "DIGEST_INVALID".to_owned()), "POST {digest}");
        let location = registry.begin("team/app").await;
        let put = registry.put(and(&location, &format!("digest={digest}"))).octets(BLOB).send().await;
        assert_eq!(refusal(&put), (400, "DIGEST_INVALID".to_owned()), "PUT {digest}");
        let location = registry.begin("team/app").await;
        assert_eq!(registry.patch(&location).octets(BLOB).send().await.status, 202);
        let put = registry.put(and(&location, &format!("digest={digest}"))).send().await;
        assert_eq!(refusal(&put), (400, "DIGEST_INVALID".to_owned()), "PATCH and PUT {digest}");
    }
}

// Spec: push-blobs.1
#[tokio::test]
async fn an_algorithm_that_nobody_computes_is_400() {
    let registry = Registry::start().await;
    let reply = registry.post("/v2/team/app/blobs/uploads/?digest-algorithm=md5").send().await;
    assert_eq!(reply.status, 400, "{reply:?}");
}

// Spec: chunks.21
#[tokio::test]
async fn an_upload_may_say_its_algorithm_beforehand() {
    let registry = Registry::start().await;
    let begun = registry.post("/v2/team/app/blobs/uploads/?digest-algorithm=sha512").send().await;
    assert_eq!(begun.status, 202);
    let after = location(&registry.patch(location(&begun)).octets(BLOB).send().await);
    let digest = sha512_of(BLOB);
    assert_eq!(registry.put(and(&after, &format!("digest={digest}"))).send().await.status, 201);
    assert_eq!(registry.get(format!("/v2/team/app/blobs/{digest}")).send().await.body, BLOB);
}

// Spec: chunks.21
#[tokio::test]
async fn an_upload_may_end_with_another_algorithm_than_it_said() {
    let registry = Registry::start().await;
    for (said, digest) in [("", sha512_of(BLOB)), ("?digest-algorithm=sha512", digest_of(BLOB))] {
        let begun = registry.post(format!("/v2/team/app/blobs/uploads/{said}")).send().await;
        let after = location(&registry.patch(location(&begun)).octets(BLOB).send().await);
        let reply = registry.put(and(&after, &format!("digest={digest}"))).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
        assert_eq!(registry.get(format!("/v2/team/app/blobs/{digest}")).send().await.body, BLOB);
    }
}

// Spec: single-post.5, single-post.6, single-post.7
#[tokio::test]
async fn one_post_pushes_a_blob_and_says_where_it_is() {
    let registry = Registry::start().await;
    for (bytes, digest) in [(BLOB, digest_of(BLOB)), (BLOB, sha512_of(BLOB)), (b"", digest_of(b""))] {
        let reply = registry.post(format!("/v2/team/app/blobs/uploads/?digest={digest}")).octets(bytes).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
        assert_eq!(reply.header("docker-content-digest"), Some(&*digest));
        let pulled = registry.get(location(&reply)).send().await;
        assert_eq!((pulled.status.as_u16(), &pulled.body[..]), (200, bytes));
    }
}

// Spec: single-post.2
#[tokio::test]
async fn one_post_of_other_bytes_than_its_digest_is_400_and_leaves_nothing() {
    // Invariant 2
    let registry = Registry::start().await;
    let digest = digest_of(b"something else");
    let reply = registry.post(format!("/v2/team/app/blobs/uploads/?digest={digest}")).octets(BLOB).send().await;
    assert_eq!(refusal(&reply), (400, "DIGEST_INVALID".to_owned()));
    for digest in [digest, digest_of(BLOB)] {
        assert_eq!(registry.head(format!("/v2/team/app/blobs/{digest}")).send().await.status, 404);
    }
}

// Spec: single-post.1
#[tokio::test]
async fn a_body_that_ends_before_its_content_length_is_no_blob() {
    // Invariant 2
    let registry = Registry::start().await;
    let digest = digest_of(BLOB);
    let mut raw = connect(registry.site.address).await.unwrap();
    let head = format!(
        "POST /v2/team/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        BLOB.len() + 1
    );
    raw.write_all(head.as_bytes()).await.unwrap();
    raw.write_all(BLOB).await.unwrap();
    raw.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // Either is right: an error, or no answer at all to who hung up.
    let _ = raw.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(registry.head(format!("/v2/team/app/blobs/{digest}")).send().await.status, 404);
}

// Spec: chunks.3
#[tokio::test]
async fn a_least_chunk_is_announced_or_a_chunk_may_have_any_size() {
    let registry = Registry::start().await;
    let reply = registry.post("/v2/team/app/blobs/uploads/").header("content-length", "0").send().await;
    let least: usize = reply.header("oci-chunk-min-length").map_or(1, |text| text.parse().unwrap());
    let bytes = noise(least + 1);
    let mut at = location(&reply);
    for (first, chunk) in [(0, &bytes[..least]), (least, &bytes[least..])] {
        let range = format!("{first}-{}", first + chunk.len() - 1);
        let reply = registry.patch(&at).header("content-range", &range).octets(chunk).send().await;
        assert_eq!(reply.status, 202, "{range}");
        at = location(&reply);
    }
    let digest = digest_of(&bytes);
    assert_eq!(registry.put(and(&at, &format!("digest={digest}"))).send().await.status, 201);
}
