//! end-1: whether this is a registry, and a whole one.

use http::Method;

use super::client::{and, json};
use super::content::{Manifest, digest_of};
use super::{Artifact, Image, Registry};

// Spec: support.1
#[tokio::test]
async fn the_base_answers_200() {
    let registry = Registry::start().await;
    assert_eq!(registry.get("/v2/").send().await.status, 200);
}

// Spec: require.1
#[tokio::test]
async fn everything_in_the_category_pull_is_there() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for path in [
        "/v2/team/app/manifests/1".to_owned(),
        format!("/v2/team/app/manifests/{}", image.digest()),
        format!("/v2/team/app/blobs/{}", image.layer_digest()),
    ] {
        assert_eq!(registry.get(&path).send().await.status, 200, "GET {path}");
        assert_eq!(registry.head(&path).send().await.status, 200, "HEAD {path}");
    }
}

// Spec: require.2, require.3
#[tokio::test]
async fn push_discovery_and_management_are_there_too() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let location = registry.begin("team/app").await;
    let closing = and(&location, &format!("digest={}", digest_of(&image.layer)));
    assert_eq!(registry.patch(&location).octets(&image.layer).send().await.status, 202);
    assert_eq!(registry.get(&location).send().await.status, 204);
    assert_eq!(registry.put(closing).send().await.status, 201);
    registry.push("team/app", "1", &image).await;
    let note = Artifact::of("text/x-note", "n").about(&image);
    registry.push("team/app", "note", &note).await;

    assert_eq!(registry.tags("team/app", "").await, ["1", "note"]);
    let referrers = registry.get(format!("/v2/team/app/referrers/{}", image.digest())).send().await;
    assert_eq!(json(&referrers)["manifests"][0]["digest"], note.digest());

    for path in [
        "/v2/team/app/manifests/1".to_owned(),
        format!("/v2/team/app/manifests/{}", image.digest()),
        format!("/v2/team/app/blobs/{}", image.layer_digest()),
    ] {
        assert_eq!(registry.delete(&path).send().await.status, 202, "DELETE {path}");
        assert_eq!(registry.get(&path).send().await.status, 404, "GET {path} after its DELETE");
    }
}

// Spec: api.1
#[tokio::test]
async fn a_method_that_nothing_is_done_with_is_405_and_says_which_are() {
    let registry = Registry::start().await;
    for (method, path) in [("POST", "/v2/team/app/tags/list"), ("PATCH", "/v2/team/app/manifests/1"), ("PUT", "/v2/")] {
        let reply = registry.ask(method, path).send().await;
        assert_eq!(reply.status, 405, "{method} {path}");
        let allowed = reply.header("allow").unwrap_or_else(|| panic!("{method} {path}: no Allow, RFC 9110 15.5.6"));
        assert!(allowed.split(", ").any(|word| word == Method::GET.as_str()), "{method} {path}: {allowed}");
    }
}

// Spec: api.1
#[tokio::test]
async fn head_tells_what_get_tells_but_the_body() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for path in ["/v2/team/app/manifests/1".to_owned(), format!("/v2/team/app/blobs/{}", image.layer_digest())] {
        let (get, head) = (registry.get(&path).send().await, registry.head(&path).send().await);
        assert!(head.body.is_empty());
        for name in ["content-length", "content-type", "docker-content-digest", "etag", "accept-ranges"] {
            assert_eq!(head.header(name), get.header(name), "{name} of {path}");
        }
    }
}

// Spec: api.1
#[tokio::test]
async fn what_the_client_has_already_is_304() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for path in ["/v2/team/app/manifests/1".to_owned(), format!("/v2/team/app/blobs/{}", image.layer_digest())] {
        let etag = registry.head(&path).send().await.header("etag").unwrap().to_owned();
        assert_eq!(registry.get(&path).header("if-none-match", &etag).send().await.status, 304, "{path}");
        assert_eq!(registry.get(&path).header("if-none-match", "\"other\"").send().await.status, 200, "{path}");
    }
}
