//! Deletions: at once, in one repository, and where the settings allow it; and the catalog of what is left.

use http::StatusCode;
use sealock::oci::Digest;

use super::{NAME, OTHER, delete, push_blob, push_image, refusal};
use crate::support::site::Sealock;

#[tokio::test]
async fn what_is_deleted_is_gone_at_once_and_stays_elsewhere() {
    // Invariant 14
    let site = Sealock::setup().start().await;
    let digest = Digest::sha256(&push_image(&site, NAME, "1", b"layer").await);
    for (name, tag) in [(NAME, "2"), (NAME, "3"), (OTHER, "1")] {
        push_image(&site, name, tag, b"layer").await;
    }
    let layer = Digest::sha256(b"layer");
    // Read once, so that what is remembered must be forgotten.
    for name in [NAME, OTHER] {
        assert_eq!(site.manifest(name, "1").await.status, StatusCode::OK);
        assert_eq!(site.blob(name, &layer).await.status, StatusCode::OK);
    }
    assert_eq!(delete(&site, &format!("/v2/{NAME}/manifests/2")).await.status, StatusCode::ACCEPTED);
    assert_eq!(refusal(&site.manifest(NAME, "2").await), (404, "MANIFEST_UNKNOWN".to_owned()));
    assert_eq!(site.manifest(NAME, digest).await.status, StatusCode::OK, "a tag is only a name");
    assert_eq!(delete(&site, &format!("/v2/{NAME}/manifests/{digest}")).await.status, StatusCode::ACCEPTED);
    for reference in ["1".to_owned(), "3".to_owned(), digest.to_string()] {
        assert_eq!(site.manifest(NAME, reference).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(delete(&site, &format!("/v2/{NAME}/blobs/{layer}")).await.status, StatusCode::ACCEPTED);
    assert_eq!(site.blob(NAME, &layer).await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.manifest(OTHER, "1").await.status, StatusCode::OK);
    assert_eq!(site.blob(OTHER, &layer).await.status, StatusCode::OK);

    for (path, code) in [
        (format!("/v2/{NAME}/manifests/2"), "MANIFEST_UNKNOWN"),
        (format!("/v2/{NAME}/manifests/{digest}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/{NAME}/blobs/{layer}"), "BLOB_UNKNOWN"),
        ("/v2/no/such/manifests/1".to_owned(), "NAME_UNKNOWN"),
    ] {
        assert_eq!(refusal(&delete(&site, &path).await), (404, code.to_owned()), "{path}");
    }
    push_image(&site, NAME, "1", b"layer").await;
    assert_eq!(site.manifest(NAME, "1").await.status, StatusCode::OK, "pushed again, it is there again");
    assert_eq!(site.blob(NAME, &layer).await.status, StatusCode::OK);
}

#[tokio::test]
async fn where_the_settings_forbid_it_nothing_is_pushed_or_deleted() {
    // Invariant 16
    let site = Sealock::setup().settings("[push]\ndelete = false").start().await;
    let digest = Digest::sha256(&push_image(&site, NAME, "1", b"layer").await);
    let paths = [
        format!("/v2/{NAME}/manifests/1"),
        format!("/v2/{NAME}/manifests/{digest}"),
        format!("/v2/{NAME}/blobs/{}", Digest::sha256(b"layer")),
    ];
    for path in &paths {
        let refused = delete(&site, path).await;
        assert_eq!(refusal(&refused), (405, "UNSUPPORTED".to_owned()), "{path}");
        assert!(refused.error().1.contains("`delete = true` in `[push]`"), "{refused:?}");
        assert_eq!(site.get(path).await.status, StatusCode::OK);
    }
    let site = Sealock::setup().settings("[push]\nenabled = false").start().await;
    let refused = site.send(http::Method::POST, &super::uploads(NAME), &[]).await.unwrap();
    assert_eq!(refusal(&refused), (405, "UNSUPPORTED".to_owned()));
    assert!(refused.error().1.contains("`enabled = true` in `[push]`"), "{refused:?}");
    assert_eq!(delete(&site, &paths[0]).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn the_catalog_names_what_holds_anything_in_pages() {
    let site = Sealock::setup().start().await;
    let empty: serde_json::Value = serde_json::from_slice(&site.get("/v2/_catalog").await.body).unwrap();
    assert_eq!(empty, serde_json::json!({ "repositories": [] }));
    for name in ["b", "a/x", "c", "a"] {
        push_blob(&site, name, "x").await;
    }
    let (mut names, mut path) = (Vec::new(), "/v2/_catalog?n=3".to_owned());
    loop {
        let reply = site.get(&path).await;
        let page: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        names.extend(page["repositories"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        let Some(link) = reply.header("link") else { break };
        path = link[1..link.find('>').unwrap()].to_owned();
    }
    assert_eq!(names, ["a", "a/x", "b", "c"]);
}
