//! Manifests as they are pushed: kept to the byte, named by their tags, refused when they are not what they say.

use http::{Method, StatusCode};
use sealock::oci::{Algorithm, Digest, MANIFEST_SIZE_MAX, MediaType};
use sealock::store::Faults;
use serde_json::json;

use super::{NAME, delete, descriptor, image, push_blob, push_image, put, refusal};
use crate::support::site::Sealock;

#[tokio::test]
async fn a_manifest_comes_back_as_it_was_pushed_also_after_a_restart() {
    // Invariants 6, 10
    let site = Sealock::setup().start().await;
    push_blob(&site, NAME, "{}").await;
    let odd = format!("\n\t {} \n", image(&[]).to_string().replace(',', " ,\n"));
    let docker = image(&[]).to_string().replace(MediaType::OCI_MANIFEST, MediaType::DOCKER_MANIFEST);
    let unknown = r#"{"any": ["thing", 1.0]}"#.to_owned();
    let cases = [
        ("odd", odd, MediaType::OCI_MANIFEST),
        ("docker", docker, MediaType::DOCKER_MANIFEST),
        ("unknown", unknown, "application/vnd.site.thing+json"),
    ];
    for (tag, bytes, media_type) in &cases {
        let pushed = put(&site, NAME, tag, &format!("{media_type}; charset=utf-8"), bytes.clone()).await;
        assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
        assert_eq!(pushed.header("docker-content-digest"), Some(Digest::sha256(bytes.as_bytes()).to_string().as_str()));
    }
    let site = site.stop().await.start().await;
    for (tag, bytes, media_type) in &cases {
        for reference in [(*tag).to_owned(), Digest::sha256(bytes.as_bytes()).to_string()] {
            let found = site.manifest(NAME, reference).await;
            assert_eq!(found.body, bytes.as_bytes());
            assert_eq!(found.header("content-type"), Some(*media_type));
        }
    }
}

#[tokio::test]
async fn one_push_points_several_tags() {
    let site = Sealock::setup().start().await;
    push_blob(&site, NAME, "{}").await;
    let bytes = image(&[]).to_string();
    for algorithm in Algorithm::ALL {
        let digest = Digest::of(algorithm, bytes.as_bytes());
        let pushed =
            put(&site, NAME, &format!("{digest}?tag=1&tag={algorithm}"), MediaType::OCI_MANIFEST, bytes.clone()).await;
        assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
        let tags: Vec<&str> = pushed.headers.get_all("oci-tag").iter().map(|tag| tag.to_str().unwrap()).collect();
        assert_eq!(tags, ["1", algorithm.as_str()]);
        for tag in tags {
            let found = site.head(&format!("/v2/{NAME}/manifests/{tag}")).await;
            assert_eq!(found.header("docker-content-digest"), Some(digest.to_string().as_str()));
        }
    }
    let many: Vec<String> = (0..64).map(|number| format!("tag=t{number}")).collect();
    let digest = Digest::sha256(bytes.as_bytes());
    let refused = put(&site, NAME, &format!("{digest}?{}", many.join("&")), MediaType::OCI_MANIFEST, bytes).await;
    assert_eq!(refused.status, StatusCode::URI_TOO_LONG);
    assert_eq!(site.manifest(NAME, "t0").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_was_pushed_by_one_digest_is_not_known_by_another() {
    // Invariant 2
    let site = Sealock::setup().start().await;
    push_blob(&site, NAME, "{}").await;
    let bytes = image(&[]).to_string();
    let [pushed_by, other] = [Algorithm::Sha512, Algorithm::Sha256].map(|named| Digest::of(named, bytes.as_bytes()));
    let pushed = put(&site, NAME, &pushed_by.to_string(), MediaType::OCI_MANIFEST, bytes.clone()).await;
    assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
    assert_eq!(refusal(&site.manifest(NAME, other).await), (404, "MANIFEST_UNKNOWN".to_owned()));
    put(&site, NAME, "1", MediaType::OCI_MANIFEST, bytes.clone()).await;
    for (reference, digest) in [(pushed_by.to_string(), pushed_by), ("1".to_owned(), other)] {
        let found = site.manifest(NAME, reference).await;
        assert_eq!(found.header("docker-content-digest"), Some(digest.to_string().as_str()));
    }
    let path = format!("/v2/{NAME}/manifests/{pushed_by}");
    assert_eq!(delete(&site, &path).await.status, StatusCode::ACCEPTED);
    assert_eq!(site.manifest(NAME, pushed_by).await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.manifest(NAME, other).await.status, StatusCode::OK, "each is deleted by its own name");
}

#[tokio::test]
async fn a_catalog_without_room_is_507_and_what_comes_later_is_kept() {
    // Invariants 6 and 16
    let faults = Faults::default();
    let site = Sealock::setup().faults(&faults).start().await;
    push_image(&site, NAME, "1", b"layer").await;
    faults.fill_catalog(true);
    let mut large = image(&[]);
    large["annotations"] = json!({ "note": "x".repeat(200_000) });
    let refused = put(&site, NAME, "large", MediaType::OCI_MANIFEST, large.to_string()).await;
    assert_eq!(refusal(&refused), (507, "UNAVAILABLE".to_owned()));
    assert_eq!(site.manifest(NAME, "large").await.status, StatusCode::NOT_FOUND);
    push_image(&site, NAME, "small", b"layer").await;
    faults.fill_catalog(false);
    let pushed = put(&site, NAME, "large", MediaType::OCI_MANIFEST, large.to_string()).await;
    assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
    let site = site.stop().await.start().await;
    for name in ["1", "small", "large"] {
        assert_eq!(site.manifest(NAME, name).await.status, StatusCode::OK, "{name}");
    }
}

#[tokio::test]
async fn what_is_not_what_it_says_is_refused_and_not_kept() {
    // Invariant 16
    let site = Sealock::setup().start().await;
    push_blob(&site, NAME, "{}").await;
    let good = image(&[]).to_string();
    let both = good.replacen('{', "{\"manifests\":[],", 1);
    let twice = good.replacen('{', "{\"layers\":[],", 1);
    let bad_digest = good.replace(&Digest::sha256(b"{}").to_string(), "sha256:short");
    let (oci, index) = (MediaType::OCI_MANIFEST, MediaType::OCI_INDEX);
    let cases = [
        (good.clone(), index),
        (good.clone(), MediaType::DOCKER_MANIFEST),
        (good.clone(), "application/vnd.site.thing+json"),
        (good.clone(), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        (good.clone(), "no type"),
        (both, oci),
        (twice, oci),
        (bad_digest, oci),
        ("{}".to_owned(), oci),
        ("{".to_owned(), oci),
        (String::new(), oci),
        ("<html>".to_owned(), "text/html"),
        ("[]".to_owned(), "application/vnd.site.thing+json"),
    ];
    for (bytes, media_type) in cases {
        let refused = put(&site, NAME, "bad", media_type, bytes.clone()).await;
        assert_eq!(refusal(&refused), (400, "MANIFEST_INVALID".to_owned()), "{media_type}: {bytes}");
    }
    let other = put(&site, NAME, &Digest::sha256(b"other").to_string(), oci, good.clone()).await;
    assert_eq!(refusal(&other), (400, "DIGEST_INVALID".to_owned()));
    assert_eq!(site.manifest(NAME, "bad").await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.manifest(NAME, Digest::sha256(good.as_bytes())).await.status, StatusCode::NOT_FOUND);

    let path = format!("/v2/{NAME}/manifests/plain");
    let untyped = site.send_body(Method::PUT, &path, &[], good.clone()).await.unwrap();
    assert_eq!(untyped.status, StatusCode::CREATED, "its own `mediaType` says it: {untyped:?}");
}

#[tokio::test]
async fn a_manifest_has_at_most_4_mib() {
    // Invariant 17
    let site = Sealock::setup().start().await;
    push_blob(&site, NAME, "{}").await;
    let bytes = image(&[]).to_string();
    let padded = |size: u64| format!("{bytes}{}", " ".repeat(size as usize - bytes.len()));
    let pushed = put(&site, NAME, "most", MediaType::OCI_MANIFEST, padded(MANIFEST_SIZE_MAX)).await;
    assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
    let refused = put(&site, NAME, "more", MediaType::OCI_MANIFEST, padded(MANIFEST_SIZE_MAX + 1)).await;
    assert_eq!(refusal(&refused), (413, "MANIFEST_INVALID".to_owned()));
}

#[tokio::test]
async fn what_a_manifest_names_must_be_there() {
    let site = Sealock::setup().start().await;
    let missing = Digest::sha256(b"missing");
    let refused = put(&site, NAME, "1", MediaType::OCI_MANIFEST, image(&[(missing, 7)]).to_string()).await;
    assert_eq!(refusal(&refused), (400, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    let message = refused.error().1;
    assert!(
        message.contains(&missing.to_string()) && message.contains(&Digest::sha256(b"{}").to_string()),
        "{message}"
    );

    push_blob(&site, NAME, "{}").await;
    let mut referrer = image(&[]);
    referrer["subject"] = descriptor(MediaType::OCI_MANIFEST, &missing, 7);
    let pushed = put(&site, NAME, "2", MediaType::OCI_MANIFEST, referrer.to_string()).await;
    assert_eq!(pushed.status, StatusCode::CREATED, "a subject may come later: {pushed:?}");
    assert_eq!(pushed.header("oci-subject"), Some(missing.to_string().as_str()));

    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_INDEX,
        "manifests": [descriptor(MediaType::OCI_MANIFEST, &missing, 7)],
    });
    let sparse = put(&site, NAME, "3", MediaType::OCI_INDEX, index.to_string()).await;
    assert_eq!(sparse.status, StatusCode::CREATED, "{sparse:?}");
    assert_eq!(site.manifest(NAME, "3").await.status, StatusCode::OK);
    let strict = Sealock::setup().settings("[push]\nsparse_indexes = false").start().await;
    let refused = put(&strict, NAME, "3", MediaType::OCI_INDEX, index.to_string()).await;
    assert_eq!(refusal(&refused), (400, "MANIFEST_BLOB_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn referrers_are_listed_also_those_of_the_tag_schema_and_each_once() {
    // Invariant 10
    let site = Sealock::setup().start().await;
    let subject = Digest::sha256(&push_image(&site, NAME, "1", b"layer").await);
    let list = format!("/v2/{NAME}/referrers/{subject}");
    let listed = async || {
        let list: serde_json::Value = serde_json::from_slice(&site.get(&list).await.body).unwrap();
        let digests =
            list["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap().to_owned());
        digests.collect::<Vec<_>>()
    };
    assert!(listed().await.is_empty());
    let mut new = image(&[]);
    new["subject"] = descriptor(MediaType::OCI_MANIFEST, &subject, 1);
    // Of a type that we do not know, so that only the list says what it refers to; and one that refers to nothing.
    let (old_type, stranger) = ("application/vnd.cncf.oras.artifact.manifest.v1+json", image(&[]));
    let old = json!({ "mediaType": old_type, "blobs": [] });
    let typed = [(&new, MediaType::OCI_MANIFEST), (&old, old_type), (&stranger, MediaType::OCI_MANIFEST)];
    let listed_there = typed.map(|(one, media_type)| {
        let text = one.to_string();
        descriptor(media_type, &Digest::sha256(text.as_bytes()), text.len())
    });
    let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": listed_there });
    for (one, media_type) in typed {
        let digest = Digest::sha256(one.to_string().as_bytes()).to_string();
        let pushed = put(&site, NAME, &digest, media_type, one.to_string()).await;
        assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
    }
    assert_eq!(listed().await.len(), 1);
    put(&site, NAME, &subject.fallback_tag(), MediaType::OCI_INDEX, index.to_string()).await;
    let mut expected = [&new, &old].map(|one| Digest::sha256(one.to_string().as_bytes()).to_string());
    let mut found = listed().await;
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}
