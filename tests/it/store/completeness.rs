//! Completeness: every byte for at least one platform, and what is missing for it.

use super::*;

#[tokio::test]
async fn an_image_is_complete_when_its_last_piece_is_kept() {
    // Invariant 5
    let here = repository("team/app");
    let manifest = image(b"config", &[b"one", b"two", b"one"]);
    // The config counts like any layer, although Trivy never asks for it.
    for order in [["config", "one", "two"], ["two", "one", "config"], ["one", "config", "two"]] {
        let site = Site::new().await;
        assert!(!site.keep_manifest(&here, &manifest).await.complete);
        for piece in order {
            assert!(!site.is_complete(&here, &manifest.digest).await, "{order:?}");
            site.keep(&here, piece.as_bytes()).await;
        }
        assert!(site.is_complete(&here, &manifest.digest).await, "{order:?}");
        let site = site.restarted().await;
        assert!(site.is_complete(&here, &manifest.digest).await, "{order:?}");
    }
}

#[tokio::test]
async fn blobs_kept_in_another_repository_complete_an_image() {
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let manifest = hollow_image(&site, &here, "app").await;
    site.keep(&there, b"app config").await;
    site.keep(&there, b"app layer").await;
    assert!(site.is_complete(&here, &manifest.digest).await);
}

#[tokio::test]
async fn foreign_layers_are_not_needed() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let mut value = image_json(b"config", &[b"layer", b"windows base"]);
    value["layers"][1]["urls"] = json!(["https://far.test/base"]);
    let manifest = parse(value, MediaType::OCI_MANIFEST);
    site.keep(&here, b"config").await;
    assert!(!site.keep_manifest(&here, &manifest).await.complete);
    let missing = site.store.missing(&here, &manifest.digest).await.unwrap();
    assert_eq!(missing.iter().map(|part| part.digest).collect::<Vec<_>>(), [Digest::sha256(b"layer")]);
    site.keep(&here, b"layer").await;
    assert!(site.is_complete(&here, &manifest.digest).await);
}

#[tokio::test]
async fn an_index_is_complete_with_one_platform_and_not_with_an_attestation() {
    // Invariant 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let (amd64, attestation) = (image(b"app config", &[b"app layer"]), whole_image(&site, &here, "attested").await);
    let arm64 = image(b"arm config", &[b"arm layer"]);
    let both = index(&[child(&amd64, "linux"), child(&arm64, "linux"), child(&attestation, "unknown")]);
    assert!(!site.keep_manifest(&here, &both).await.complete);
    site.keep_manifest(&here, &amd64).await;
    site.keep(&here, b"app config").await;
    assert!(!site.is_complete(&here, &both.digest).await);
    site.keep(&here, b"app layer").await;
    assert!(site.is_complete(&here, &both.digest).await);
}

#[tokio::test]
async fn completeness_goes_up_through_nested_indexes() {
    // Invariant 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = image(b"app config", &[b"app layer"]);
    let inner = index(&[child(&manifest, "linux")]);
    let outer = index(&[child(&inner, "linux")]);
    for kept in [&outer, &inner, &manifest] {
        assert!(!site.keep_manifest(&here, kept).await.complete);
    }
    site.point(&here, "1", &outer.digest).await;
    assert_eq!(site.resolve(&here, "1").await.1, None);
    site.keep(&here, b"app config").await;
    site.keep(&here, b"app layer").await;
    for kept in [&outer, &inner, &manifest] {
        assert!(site.is_complete(&here, &kept.digest).await);
    }
    assert_eq!(site.resolve(&here, "1").await.1, Some(outer.digest));
}

#[tokio::test]
async fn what_has_no_parts_is_complete() {
    let (site, here) = (Site::new().await, repository("team/app"));
    assert!(site.keep_manifest(&here, &index(&[])).await.complete);
    let media_type = MediaType::parse("application/vnd.example+json").unwrap();
    let opaque = Manifest::parse("{}".into(), media_type, Algorithm::Sha256).unwrap();
    assert!(site.keep_manifest(&here, &opaque).await.complete);
}

#[tokio::test]
async fn an_index_of_attestations_alone_needs_one_of_them() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let attestation = image(b"app config", &[]);
    let only = index(&[child(&attestation, "unknown")]);
    assert!(!site.keep_manifest(&here, &only).await.complete);
    site.keep_manifest(&here, &attestation).await;
    site.keep(&here, b"app config").await;
    assert!(site.is_complete(&here, &only.digest).await);
}

#[tokio::test]
async fn missing_names_what_is_to_be_fetched_next() {
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let (amd64, arm64) = (image(b"app config", &[b"app layer"]), image(b"arm config", &[b"app layer"]));
    let both = index(&[child(&amd64, "linux"), child(&arm64, "linux")]);
    site.keep_manifest(&here, &both).await;
    // Kept elsewhere is not kept here.
    site.keep_manifest(&there, &arm64).await;
    let missing = async || {
        let missing = site.store.missing(&here, &both.digest).await.unwrap();
        missing.into_iter().map(|part| part.digest).collect::<Vec<_>>()
    };
    assert_eq!(missing().await, [amd64.digest, arm64.digest]);
    site.keep_manifest(&here, &amd64).await;
    site.keep_manifest(&here, &arm64).await;
    let [config, layer, arm] = [b"app config".as_slice(), b"app layer", b"arm config"].map(Digest::sha256);
    assert_eq!(missing().await, [config, layer, arm]);
    site.keep(&here, b"app layer").await;
    assert_eq!(missing().await, [config, arm]);
    site.keep(&here, b"app config").await;
    site.keep(&here, b"arm config").await;
    assert!(missing().await.is_empty());
}
