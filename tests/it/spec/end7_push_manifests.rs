//! end-7: manifests are pushed, by tag, by digest, and by digest with tags.

use std::collections::BTreeSet;

use serde_json::json;

use super::client::{location, refusal};
use super::content::{Manifest, OCI_MANIFEST, descriptor, digest_of, sha512_of};
use super::{Artifact, Image, Index, Registry};
use crate::support::site::Reply;

/// A limit that everybody may count on.
const FOUR_MEGABYTES: usize = 4_000_000;

/// Every tag in any of the `OCI-Tag` headers.
fn accepted(reply: &Reply) -> BTreeSet<String> {
    let lines = reply.headers.get_all("oci-tag").iter().map(|line| line.to_str().unwrap());
    lines.flat_map(|line| line.split(',')).map(|tag| tag.trim().to_owned()).collect()
}

/// An image whose manifest has about so many bytes.
fn heavy(size: usize) -> Image {
    let notes: serde_json::Map<_, _> =
        (0..size / 10_000).map(|at| (format!("note-{at:03}"), json!("A".repeat(9_980)))).collect();
    Image::of("heavy").with("annotations", notes.into())
}

// Spec: push-manifests.9, push-manifests.10, push-manifests.20
#[tokio::test]
async fn a_pushed_manifest_is_201_and_says_where_it_is() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    for reference in ["1", &image.digest()] {
        let reply = registry.push("team/app", reference, &image).await;
        let pulled = registry.get(location(&reply)).send().await;
        assert_eq!((pulled.status.as_u16(), &pulled.body), (200, &image.bytes()), "{reference}");
    }
}

// Spec: push-manifests.6
#[tokio::test]
async fn a_manifest_is_pushed_under_a_tag_or_its_digest_and_nothing_else() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    for wrong in ["sha256:baddigeststring", "sha256:", &digest_of(b"another")] {
        let reply = registry.put_manifest("team/app", wrong, &image).await;
        assert_eq!(refusal(&reply), (400, "DIGEST_INVALID".to_owned()), "{wrong}");
        assert_ne!(registry.get(format!("/v2/team/app/manifests/{wrong}")).send().await.status, 200, "{wrong}");
    }
}

// Spec: push-manifests.8
#[tokio::test]
async fn a_manifest_keeps_every_byte() {
    // Invariant 10
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    // What a parser would lose: spaces, the order of keys, numbers' spelling, fields it does not know, a newline.
    let [config, layer] = [&image.json["config"], &image.json["layers"][0]];
    let odd = format!(
        "{{\n \"layers\" : [{layer}],\t\"zzz\": 1.50e2, \"config\":{config},\r\n \"unknown\": {{\"b\": 1, \"a\": [null]}},  \
         \"mediaType\":\"{OCI_MANIFEST}\", \"schemaVersion\":2, \"text\": \"\\u00e4\\/\"}}\n\n"
    );
    let put = registry.put("/v2/team/app/manifests/odd").header("content-type", OCI_MANIFEST).body(odd.clone());
    assert_eq!(put.send().await.status, 201);
    let reply = registry.get("/v2/team/app/manifests/odd").send().await;
    assert_eq!(reply.body, odd);
    assert_eq!(reply.header("docker-content-digest"), Some(&*digest_of(odd.as_bytes())));
}

// Spec: push-manifests.11
#[tokio::test]
async fn a_pushed_manifest_says_the_digest_that_it_was_pushed_by() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    for reference in ["1", &image.digest(), &sha512_of(&image.bytes())] {
        let reply = registry.push("team/app", reference, &image).await;
        let digest = if reference == "1" { image.digest() } else { reference.to_owned() };
        assert_eq!(reply.header("docker-content-digest"), Some(&*digest));
        let pulled = registry.get(format!("/v2/team/app/manifests/{digest}")).send().await;
        assert_eq!(pulled.header("docker-content-digest"), Some(&*digest));
        assert_eq!(pulled.body, image.bytes());
    }
}

// Spec: push-manifests.3
#[tokio::test]
async fn parameters_of_the_content_type_are_ignored() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "0", &image).await;
    for written in [format!("{OCI_MANIFEST}; charset=utf-8"), format!("{OCI_MANIFEST};x=\"y\"")] {
        let put = registry.put("/v2/team/app/manifests/1").header("content-type", &written).body(image.bytes());
        assert_eq!(put.send().await.status, 201, "{written}");
        let reply = registry.get("/v2/team/app/manifests/1").send().await;
        assert_eq!(reply.header("content-type"), Some(OCI_MANIFEST), "{written}");
    }
}

// Spec: push-manifests.13, push-manifests.14, push-manifests.21
#[tokio::test]
async fn ten_tags_come_with_a_digest_and_each_is_confirmed() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "0", &image).await;
    for digest in [image.digest(), sha512_of(&image.bytes())] {
        let tags: BTreeSet<String> = (0..10).map(|at| format!("{}-{at}", &digest[..6])).collect();
        let query: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
        let reply = registry.put_manifest("team/app", &format!("{digest}?{}", query.join("&")), &image).await;
        assert_eq!((reply.status.as_u16(), accepted(&reply)), (201, tags.clone()), "{reply:?}");
        for tag in tags {
            let pulled = registry.get(format!("/v2/team/app/manifests/{tag}")).send().await;
            assert_eq!(pulled.header("docker-content-digest"), Some(&*digest), "{tag}");
            assert_eq!(pulled.body, image.bytes(), "{tag}");
        }
    }
}

// Spec: push-manifests.14
#[tokio::test]
async fn a_tag_that_is_none_is_not_confirmed() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "0", &image).await;
    let reply = registry.put_manifest("team/app", &format!("{}?tag=good&tag=-bad", image.digest()), &image).await;
    assert!(reply.status == 400 || !accepted(&reply).contains("-bad"), "{reply:?}");
    assert!(!registry.tags("team/app", "").await.contains(&"-bad".to_owned()));
}

// Spec: push-manifests.14
#[tokio::test]
async fn without_tag_parameters_no_tag_is_confirmed() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let reply = registry.push("team/app", &image.digest(), &image).await;
    assert!(accepted(&reply).is_empty(), "{reply:?}");
}

// Spec: push-manifests.15
#[tokio::test]
async fn a_repository_that_is_not_there_is_404() {
    let registry = Registry::start().await;
    registry.push("team/app", "1", &Image::of("one")).await;
    for reference in ["1", &digest_of(b"absent")] {
        let reply = registry.get(format!("/v2/team/absent/manifests/{reference}")).send().await;
        assert_eq!(reply.status, 404, "{reply:?}");
    }
}

// Spec: push-manifests.16, push-manifests.17
#[tokio::test]
async fn a_manifest_over_the_limit_is_413() {
    // Invariant 17
    let registry = Registry::start().await;
    let reply = registry.put_manifest("team/app", "heavy", &heavy(5 << 20)).await;
    assert_eq!(refusal(&reply).0, 413);
    assert_eq!(registry.get("/v2/team/app/manifests/heavy").send().await.status, 404);
}

// Spec: push-manifests.18
#[tokio::test]
async fn a_manifest_of_four_megabytes_is_taken() {
    let registry = Registry::start().await;
    let heavy = heavy(FOUR_MEGABYTES);
    assert!((FOUR_MEGABYTES - 20_000..=FOUR_MEGABYTES + 20_000).contains(&heavy.bytes().len()));
    registry.push("team/app", "heavy", &heavy).await;
    assert_eq!(registry.get("/v2/team/app/manifests/heavy").send().await.body, heavy.bytes());
}

// Spec: push-manifests.19
#[tokio::test]
async fn a_manifest_may_name_no_layer_and_an_index_no_manifest() {
    let registry = Registry::start().await;
    registry.push("team/app", "bare", &Image::of("one").with("layers", json!([]))).await;
    registry.push("team/app", "empty", &Index::over(&[])).await;
    assert_eq!(registry.tags("team/app", "").await, ["bare", "empty"]);
}

// Spec: push-manifests.9
#[tokio::test]
async fn an_index_may_name_indexes() {
    let registry = Registry::start().await;
    let (one, two) = (Index::over(&[&Image::of("one")]), Index::over(&[&Image::of("two"), &Image::of("three")]));
    let nested = Index::over(&[&one, &two]);
    registry.push("team/app", "nested", &nested).await;
    assert_eq!(registry.get("/v2/team/app/manifests/nested").send().await.body, nested.bytes());
}

// Spec: push-manifests.9
#[tokio::test]
async fn a_tag_names_what_was_pushed_last() {
    // Invariant 5
    let registry = Registry::start().await;
    let (old, new) = (Image::of("old"), Image::of("new"));
    registry.push("team/app", "1", &old).await;
    registry.push("team/app", "1", &new).await;
    assert_eq!(registry.get("/v2/team/app/manifests/1").send().await.body, new.bytes());
    assert_eq!(registry.get(format!("/v2/team/app/manifests/{}", old.digest())).send().await.body, old.bytes());
}

// Spec: push-manifests.9
#[tokio::test]
async fn what_was_pushed_is_there_after_a_restart() {
    // Invariant 6
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    let registry = Registry { site: registry.site.stop().await.start().await };
    assert_eq!(registry.get("/v2/team/app/manifests/1").send().await.body, image.bytes());
    let layer = registry.get(format!("/v2/team/app/blobs/{}", image.layer_digest())).send().await;
    assert_eq!(layer.body, image.layer);
}

// Spec: push.1
#[tokio::test]
async fn a_subject_may_come_after_what_refers_to_it() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "note", &Artifact::of("text/x-note", "n").about(&image)).await;
    registry.push("team/app", "index", &Index::over(&[]).about(&image)).await;
}

// Spec: push.2
#[tokio::test]
async fn a_manifest_without_its_blobs_is_refused_with_the_code_for_it() {
    // Invariant 16
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push_blob("team/app", &image.config).await;
    // There, but not readable in this repository.
    registry.push_blob("team/other", &image.layer).await;
    for reference in ["1", &image.digest()] {
        let reply = registry.put_manifest("team/app", reference, &image).await;
        let (status, code) = refusal(&reply);
        assert_eq!(code, "MANIFEST_BLOB_UNKNOWN", "{reply:?}");
        assert!(matches!(status, 400 | 404), "{reply:?}");
        assert!(String::from_utf8_lossy(&reply.body).contains(&image.layer_digest()), "which one? {reply:?}");
        assert_eq!(registry.get(format!("/v2/team/app/manifests/{reference}")).send().await.status, 404);
    }
}

// Spec: push.2
#[tokio::test]
async fn a_layer_that_may_not_be_distributed_need_not_be_there() {
    let registry = Registry::start().await;
    let mut image = Image::of("one");
    for (at, foreign) in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ]
    .into_iter()
    .enumerate()
    {
        let mut layer = descriptor(foreign, format!("foreign {at}").as_bytes());
        layer["urls"] = json!(["https://store.example/blob"]);
        image.json["layers"].as_array_mut().unwrap().push(layer);
    }
    registry.push("team/app", "1", &image).await;
}

// Spec: push-manifests.9
#[tokio::test]
async fn an_index_may_lack_platforms_unless_the_settings_say_otherwise() {
    let (here, absent) = (Image::of("here"), Image::of("absent"));
    let sparse = Index::over(&[&here, &absent]);
    let registry = Registry::start().await;
    registry.push("team/app", "here", &here).await;
    assert_eq!(registry.put_manifest("team/app", "sparse", &sparse).await.status, 201);
    assert_eq!(registry.get("/v2/team/app/manifests/sparse").send().await.body, sparse.bytes());
    let strict = Registry::with("[push]\nsparse_indexes = false").await;
    strict.push("team/app", "here", &here).await;
    let reply = strict.put_manifest("team/app", "sparse", &sparse).await;
    assert_eq!(refusal(&reply).1, "MANIFEST_BLOB_UNKNOWN");
}

// Spec: push-manifests.8
#[tokio::test]
async fn what_could_be_read_in_two_ways_is_no_manifest() {
    // Invariant 16
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    let both = image.clone().with("manifests", json!([]));
    let other_type = image.clone().with("mediaType", json!("application/vnd.oci.image.index.v1+json"));
    let twice = String::from_utf8(image.bytes().to_vec()).unwrap().replacen('{', "{\"schemaVersion\":2,", 1);
    let wrong = ["", "[]", "null", "{", "no json", "{\"schemaVersion\":1}", &twice]
        .map(|text| bytes::Bytes::from(text.to_owned()));
    for bytes in wrong.into_iter().chain([both.bytes(), other_type.bytes()]) {
        let put = registry.put("/v2/team/app/manifests/wrong").header("content-type", OCI_MANIFEST).body(bytes.clone());
        assert_eq!(refusal(&put.send().await), (400, "MANIFEST_INVALID".to_owned()), "{bytes:?}");
    }
    assert_eq!(registry.tags("team/app", "").await, ["1"]);
}

// Spec: subject.1
#[tokio::test]
async fn a_manifest_with_a_subject_is_answered_with_the_subject() {
    let registry = Registry::start().await;
    let image = Image::of("one");
    let note = Artifact::of("text/x-note", "n").about(&image);
    let index = Index::over(&[]).about(&image);
    for (reference, reply) in [
        ("note", registry.push("team/app", "note", &note).await),
        ("its digest", registry.push("team/app", &note.digest(), &note).await),
        ("index", registry.push("team/app", "index", &index).await),
    ] {
        assert_eq!(reply.header("oci-subject"), Some(&*image.digest()), "{reference}");
    }
    assert_eq!(registry.push("team/app", "1", &image).await.header("oci-subject"), None);
}
