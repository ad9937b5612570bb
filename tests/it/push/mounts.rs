//! Mounts: what can be read elsewhere becomes readable here; and what cannot gives no hint.

use http::{Method, StatusCode};
use sealock::oci::{Digest, MediaType};
use serde_json::json;

use super::{NAME, OTHER, begin, delete, image, noise, push_blob, put, refusal, uploads};
use crate::support::site::{Reply, Sealock};

async fn mount(site: &Sealock, digest: &Digest, from: Option<&str>) -> Reply {
    let from = from.map(|from| format!("&from={from}")).unwrap_or_default();
    let path = format!("{}?mount={digest}{from}", uploads(NAME));
    site.send(Method::POST, &path, &[]).await.unwrap()
}

#[tokio::test]
async fn a_blob_is_mounted_from_where_it_can_be_read() {
    // Invariant 14
    let site = Sealock::setup().start().await;
    for from in [Some(OTHER), None] {
        let bytes = noise(from.is_some().into(), 1000);
        let digest = push_blob(&site, OTHER, bytes.clone()).await;
        assert_eq!(site.blob(NAME, &digest).await.status, StatusCode::NOT_FOUND);
        let mounted = mount(&site, &digest, from).await;
        assert_eq!(mounted.status, StatusCode::CREATED, "{mounted:?}");
        assert_eq!(mounted.header("location"), Some(format!("/v2/{NAME}/blobs/{digest}").as_str()));
        // It stays when it goes where it came from.
        assert_eq!(delete(&site, &format!("/v2/{OTHER}/blobs/{digest}")).await.status, StatusCode::ACCEPTED);
        assert_eq!(site.blob(NAME, &digest).await.body, bytes);
        assert_eq!(site.blob(OTHER, &digest).await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_mount_of_what_cannot_be_read_is_an_ordinary_upload_without_a_hint() {
    // Invariant 14
    let site = Sealock::setup().start().await;
    let (deleted, kept) = (push_blob(&site, OTHER, "deleted").await, push_blob(&site, "a/third", "kept").await);
    delete(&site, &format!("/v2/{OTHER}/blobs/{deleted}")).await;
    let nowhere = Digest::sha256(b"nowhere");
    let cases = [
        (&nowhere, Some(OTHER)),
        (&nowhere, Some("no/such")),
        (&nowhere, None),
        (&deleted, Some(OTHER)),
        (&deleted, None),
        (&kept, Some(OTHER)),
    ];
    for (digest, from) in cases {
        let reply = mount(&site, digest, from).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{digest} {from:?}");
        let mut names: Vec<&str> = reply.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        let ordinary = site.send(Method::POST, &uploads(NAME), &[]).await.unwrap();
        let mut expected: Vec<&str> = ordinary.headers.keys().map(|name| name.as_str()).collect();
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(site.get(reply.header("location").unwrap()).await.status, StatusCode::NO_CONTENT);
    }
    assert!(begin(&site, NAME).await.starts_with(&uploads(NAME)));
}

#[tokio::test]
async fn a_manifest_that_names_a_blob_does_not_open_it() {
    // Invariant 14
    let site = Sealock::setup().settings("[push]\nsparse_images = true").start().await;
    let strict = Sealock::setup().start().await;
    for (site, status) in [(&site, StatusCode::CREATED), (&strict, StatusCode::BAD_REQUEST)] {
        let secret = push_blob(site, OTHER, "secret").await;
        push_blob(site, NAME, "{}").await;
        let named = image(&[(secret, 6)]);
        let pushed = put(site, NAME, "1", MediaType::OCI_MANIFEST, named.to_string()).await;
        assert_eq!(pushed.status, status, "{pushed:?}");
        let mut foreign = named.clone();
        foreign["layers"][0]["urls"] = json!(["https://elsewhere.test/layer"]);
        let pushed = put(site, NAME, "2", MediaType::OCI_MANIFEST, foreign.to_string()).await;
        assert_eq!(pushed.status, StatusCode::CREATED, "foreign layers are nobody's to bring: {pushed:?}");
        assert_eq!(refusal(&site.blob(NAME, &secret).await), (404, "BLOB_UNKNOWN".to_owned()));
        assert_eq!(site.blob(OTHER, &secret).await.status, StatusCode::OK);
        // Nor once it is the only one that has the name.
        delete(site, &format!("/v2/{OTHER}/blobs/{secret}")).await;
        assert_eq!(mount(site, &secret, None).await.status, StatusCode::ACCEPTED);
    }
}
