//! end-3: manifests are pulled by tag and by digest.

use serde_json::json;

use super::client::refusal;
use super::content::{Manifest, digest_of};
use super::{Artifact, Image, Index, Registry};

// Spec: pull-manifests.1, pull-manifests.2
#[tokio::test]
async fn what_is_neither_tag_nor_digest_names_no_manifest() {
    let registry = Registry::start().await;
    registry.push("team/app", "1", &Image::of("one")).await;
    for wrong in [
        "sha256:baddigeststring",
        "sha256:",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        ".hidden",
        "-x",
        "a+b",
        "a%20b",
        "%2e%2e",
    ] {
        let reply = registry.get(format!("/v2/team/app/manifests/{wrong}")).send().await;
        assert!(matches!(reply.status.as_u16(), 400 | 404), "{wrong}: {reply:?}");
    }
}

// Spec: pull-manifests.3
#[tokio::test]
async fn a_repository_may_have_any_name_that_the_expression_matches() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    for name in ["a", "0", "a.b", "a_b", "a__b", "a-b", "a---b", "a/b/c/d/e", "team-1/app.x/y__z"] {
        registry.push(name, "1", &image).await;
        assert_eq!(registry.get(format!("/v2/{name}/manifests/1")).send().await.status, 200, "{name}");
    }
}

// Spec: pull-manifests.3
#[tokio::test]
async fn a_repository_may_have_no_other_name() {
    let registry = Registry::start().await;
    for name in [
        "Team/app",
        "team//app",
        "team/..",
        "-team",
        "team-",
        "team/_app",
        "te..am",
        "te___am",
        "te._am",
        "te%2fam",
        "team/%61",
    ] {
        let reply = registry.get(format!("/v2/{name}/manifests/1")).send().await;
        assert!(matches!(reply.status.as_u16(), 400 | 404), "GET in {name}: {reply:?}");
        let reply = registry.post(format!("/v2/{name}/blobs/uploads/")).send().await;
        assert!(matches!(reply.status.as_u16(), 400 | 404), "POST in {name}: {reply:?}");
    }
}

// Spec: pull-manifests.4
#[tokio::test]
async fn a_tag_has_at_most_128_characters() {
    let registry = Registry::start().await;
    let (image, longest) = (Image::of("one"), "t".repeat(128));
    registry.push("team/app", &longest, &image).await;
    assert_eq!(registry.get(format!("/v2/team/app/manifests/{longest}")).send().await.status, 200);
    let reply = registry.put_manifest("team/app", &format!("{longest}t"), &image).await;
    assert!(matches!(reply.status.as_u16(), 400 | 404), "{reply:?}");
    assert_eq!(registry.tags("team/app", "").await, [longest]);
}

// Spec: pull-manifests.5
#[tokio::test]
async fn a_tag_is_made_of_letters_digits_underscore_dot_and_dash() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    for tag in ["A", "_", "0", "v1.2.3-rc_1", "__", "a.", "a-"] {
        registry.push("team/app", tag, &image).await;
        assert_eq!(registry.get(format!("/v2/team/app/manifests/{tag}")).send().await.status, 200, "{tag}");
    }
    let before = registry.tags("team/app", "").await;
    for tag in [".a", "-a", "a+b", "a@b", "a%20b", "%C3%A4"] {
        let reply = registry.put_manifest("team/app", tag, &image).await;
        assert!(matches!(reply.status.as_u16(), 400 | 404), "{tag}: {reply:?}");
    }
    assert_eq!(registry.tags("team/app", "").await, before);
}

// Spec: pull-manifests.7, pull-manifests.9
#[tokio::test]
async fn a_manifest_has_the_type_it_was_pushed_with_and_no_parameters() {
    let registry = Registry::start().await;
    let (oci, docker) = (Image::of("one"), Image::docker("two"));
    let (index, list) = (Index::over(&[&oci]), Index::docker(&[&docker]));
    registry.push("team/app", "oci", &oci).await;
    registry.push("team/app", "docker", &docker).await;
    registry.push("team/app", "index", &index).await;
    registry.push("team/app", "list", &list).await;
    registry.push("team/app", "artifact", &Artifact::of("text/x-note", "n")).await;
    let types = [oci.media_type(), docker.media_type(), index.media_type(), list.media_type(), oci.media_type()];
    for (tag, pushed) in ["oci", "docker", "index", "list", "artifact"].into_iter().zip(types) {
        let reply = registry.get(format!("/v2/team/app/manifests/{tag}")).send().await;
        assert_eq!(reply.header("content-type"), Some(&*pushed), "{tag}");
    }
}

// Spec: pull-manifests.9
#[tokio::test]
async fn a_manifest_of_a_type_that_nobody_knows_keeps_it() {
    let registry = Registry::start().await;
    let bytes = json!({ "schemaVersion": 2, "mediaType": "application/vnd.example.thing.v7+json", "a": 1 }).to_string();
    let put =
        registry.put("/v2/team/app/manifests/thing").header("content-type", "application/vnd.example.thing.v7+json");
    assert_eq!(put.body(bytes.clone()).send().await.status, 201);
    let reply = registry.get("/v2/team/app/manifests/thing").send().await;
    assert_eq!(reply.header("content-type"), Some("application/vnd.example.thing.v7+json"));
    assert_eq!(reply.body, bytes);
}

// Spec: pull-manifests.11, pull-manifests.12
#[tokio::test]
async fn a_manifest_comes_with_200_by_tag_and_by_digest() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for reference in ["1", &image.digest()] {
        let reply = registry.get(format!("/v2/team/app/manifests/{reference}")).send().await;
        assert_eq!((reply.status.as_u16(), &reply.body), (200, &image.bytes()), "{reference}");
    }
}

// Spec: pull-manifests.11
#[tokio::test]
async fn a_manifest_comes_whatever_the_client_says_it_accepts() {
    // Content negotiation is optional; a digest leaves nothing to choose, and docker sends many lines in any order.
    let registry = Registry::start().await;
    let index = Index::over(&[&Image::of("one")]);
    registry.push("team/app", "1", &index).await;
    for accept in ["*/*", "application/vnd.oci.image.index.v1+json, application/json;q=0.5"] {
        let reply = registry.get("/v2/team/app/manifests/1").header("accept", accept).send().await;
        assert_eq!((reply.status.as_u16(), &reply.body), (200, &index.bytes()), "{accept}");
    }
}

// Spec: pull-manifests.13
#[tokio::test]
async fn a_manifest_says_its_digest() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for reference in ["1", &image.digest()] {
        let reply = registry.get(format!("/v2/team/app/manifests/{reference}")).send().await;
        assert_eq!(reply.header("docker-content-digest"), Some(&*image.digest()), "{reference}");
    }
}

// Spec: pull-manifests.16
#[tokio::test]
async fn a_manifest_that_is_not_there_is_404() {
    let registry = Registry::start().await;
    registry.push("team/app", "1", &Image::of("one")).await;
    for reference in ["2", &digest_of(b"absent")] {
        let reply = registry.get(format!("/v2/team/app/manifests/{reference}")).send().await;
        assert_eq!(refusal(&reply), (404, "MANIFEST_UNKNOWN".to_owned()), "{reference}");
    }
}

// Spec: pull-manifests.16
#[tokio::test]
async fn a_manifest_of_another_repository_is_not_found_in_this_one() {
    // Invariant 14
    let registry = Registry::start().await;
    registry.push("team/own", "1", &Image::of("one")).await;
    let theirs = Image::of("two");
    registry.push("team/other", "1", &theirs).await;
    let reply = registry.get(format!("/v2/team/own/manifests/{}", theirs.digest())).send().await;
    assert_eq!(refusal(&reply), (404, "MANIFEST_UNKNOWN".to_owned()));
}

// Spec: check.1, check.2, check.3
#[tokio::test]
async fn head_of_a_manifest_is_200_with_digest_and_size() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for reference in ["1", &image.digest()] {
        let reply = registry.head(format!("/v2/team/app/manifests/{reference}")).send().await;
        assert_eq!(reply.status, 200, "{reference}");
        assert_eq!(reply.header("docker-content-digest"), Some(&*image.digest()), "{reference}");
        assert_eq!(reply.header("content-length"), Some(&*image.bytes().len().to_string()), "{reference}");
        assert_eq!(reply.header("content-type"), Some(&*image.media_type()), "{reference}");
    }
}

// Spec: check.4
#[tokio::test]
async fn head_of_a_manifest_that_is_not_there_is_404() {
    let registry = Registry::start().await;
    registry.push("team/app", "1", &Image::of("one")).await;
    for reference in ["2", &digest_of(b"absent")] {
        let reply = registry.head(format!("/v2/team/app/manifests/{reference}")).send().await;
        assert_eq!(reply.status, 404, "{reference}");
    }
}
