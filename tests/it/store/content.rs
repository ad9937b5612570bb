//! Blobs and manifests: verified, resumed, and readable only where they were granted.

use std::fs;

use super::*;

#[tokio::test]
async fn a_blob_is_read_back_as_it_was_kept_also_after_a_restart() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = site.keep(&here, b"a layer").await;
    assert_eq!(site.read(&here, &digest).await.as_deref(), Some(b"a layer".as_slice()));
    assert_eq!(fs::read(site.blob_path(&digest)).unwrap(), b"a layer");
    assert_eq!(site.staged_files(), 0);
    let site = site.restarted().await;
    assert_eq!(site.read(&here, &digest).await.as_deref(), Some(b"a layer".as_slice()));
    assert!(site.store.has_blob(&digest).await.unwrap());
    assert!(site.store.has_repository(&here).await.unwrap());
}

#[tokio::test]
async fn sha512_names_content_too() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = Digest::of(Algorithm::Sha512, b"a layer");
    let mut staged = site.store.stage(&digest).unwrap();
    staged.write(b"a ").unwrap();
    staged.write(b"layer").unwrap();
    site.store.keep_blob(&here, &staged.keep().unwrap()).await.unwrap();
    assert_eq!(site.read(&here, &digest).await.as_deref(), Some(b"a layer".as_slice()));
    assert!(site.data().join("blobs/sha512").join(digest.hex()).is_file());
}

#[tokio::test]
async fn wrong_bytes_are_never_kept() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = Digest::sha256(b"what was asked for");
    let mut staged = site.store.stage(&digest).unwrap();
    staged.write(b"something else").unwrap();
    match staged.keep() {
        Err(KeepError::WrongBytes { expected, actual }) => {
            assert_eq!((expected, actual), (digest, Digest::sha256(b"something else")));
        }
        other => panic!("{other:?}"),
    }
    assert!(!site.blob_path(&digest).exists());
    assert_eq!(site.staged_files(), 0);
    assert_eq!(site.read(&here, &digest).await, None);
}

#[tokio::test]
async fn a_blob_that_was_never_placed_is_not_recorded() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let file = Arc::new(tempfile::tempfile().unwrap());
    let forged = KeptBlob { file, digest: Digest::sha256(b"forged"), size: 6 };
    assert!(site.store.keep_blob(&here, &forged).await.is_err());
    assert!(!site.store.has_blob(&forged.digest).await.unwrap());
}

#[tokio::test]
async fn a_manifest_whose_bytes_are_not_its_digests_is_refused() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let mut forged = image(b"config", &[b"layer"]);
    forged.bytes = image(b"config", &[b"another"]).bytes;
    assert!(site.store.keep_manifest(&here, &forged).await.is_err());
    assert!(site.store.manifest(&here, &forged.digest).await.unwrap().is_none());
    assert!(!site.blob_path(&forged.digest).exists());
}

#[tokio::test]
async fn an_unfinished_fill_is_resumed_after_a_restart() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = Digest::sha256(b"first half, second half");
    let mut staged = site.store.stage(&digest).unwrap();
    staged.write(b"first half, ").unwrap();
    staged.leave();
    let site = site.restarted().await;
    assert_eq!(site.store.totals().await.unwrap().staged_bytes, 12);
    let mut staged = site.store.stage(&digest).unwrap();
    assert_eq!(staged.written(), 12);
    assert_eq!(staged.digest_so_far(), Digest::sha256(b"first half, "));
    staged.write(b"second half").unwrap();
    site.store.keep_blob(&here, &staged.keep().unwrap()).await.unwrap();
    assert_eq!(site.read(&here, &digest).await.as_deref(), Some(b"first half, second half".as_slice()));
}

#[tokio::test]
async fn a_torn_tail_of_an_unfinished_fill_is_found_out_and_begins_again() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = Digest::sha256(b"first half, second half");
    fs::write(site.staged_path(&digest), b"first half, \0\0\0").unwrap();
    let mut staged = site.store.stage(&digest).unwrap();
    staged.write(b"ond half").unwrap();
    assert!(matches!(staged.keep(), Err(KeepError::WrongBytes { .. })));
    assert!(!site.blob_path(&digest).exists());

    let mut staged = site.store.stage(&digest).unwrap();
    assert_eq!(staged.written(), 0);
    staged.write(b"wrong").unwrap();
    staged.restart().unwrap();
    staged.write(b"first half, second half").unwrap();
    site.store.keep_blob(&here, &staged.keep().unwrap()).await.unwrap();
    assert_eq!(site.read(&here, &digest).await.as_deref(), Some(b"first half, second half".as_slice()));
}

#[tokio::test]
async fn a_digest_is_filled_once_at_a_time() {
    // Invariant 4
    let site = Site::new().await;
    let digest = Digest::sha256(b"a layer");
    let staged = site.store.stage(&digest).unwrap();
    assert!(site.store.stage(&digest).is_err());
    site.store.stage(&Digest::sha256(b"another")).unwrap().discard();
    staged.discard();
    assert_eq!(site.staged_files(), 0);
    site.store.stage(&digest).unwrap().leave();
}

#[tokio::test]
async fn followers_read_a_fill_and_then_the_kept_file_through_one_handle() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let mut staged = site.store.stage(&Digest::sha256(b"a layer")).unwrap();
    let follower = staged.file().clone();
    staged.write(b"a layer").unwrap();
    let kept = staged.keep().unwrap();
    site.store.keep_blob(&here, &kept).await.unwrap();
    let mut read = [0; 7];
    follower.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"a layer");
}

#[tokio::test]
async fn content_of_one_repository_is_not_readable_through_another() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let manifest = whole_image(&site, &here, "secret").await;
    let signature = {
        let mut value = image_json(b"{}", &[]);
        value["subject"] =
            json!({"mediaType": MediaType::OCI_MANIFEST, "digest": manifest.digest.to_string(), "size": 1});
        parse(value, MediaType::OCI_MANIFEST)
    };
    site.keep_manifest(&here, &signature).await;
    site.point(&here, "1", &manifest.digest).await;
    // The other repository is known, and is refused both cold and after someone else warmed the memory.
    let public = site.keep(&there, b"public").await;
    let layer = Digest::sha256(b"secret layer");
    for _ in 0..2 {
        assert!(site.read(&here, &layer).await.is_some());
        assert!(site.read(&there, &layer).await.is_none());
        assert!(site.read(&here, &public).await.is_none());
        assert!(site.store.manifest(&here, &manifest.digest).await.unwrap().is_some());
        assert!(site.store.manifest(&there, &manifest.digest).await.unwrap().is_none());
        assert!(site.store.expected_size(&there, &layer).await.unwrap().is_none());
        assert!(site.store.missing(&there, &manifest.digest).await.unwrap().is_empty());
        assert!(site.store.tag(&there, &tag("1")).await.unwrap().is_none());
        assert!(site.store.referrers(&there, &manifest.digest, None, None).await.unwrap().descriptors.is_empty());
        assert_eq!(site.store.referrers(&here, &manifest.digest, None, None).await.unwrap().descriptors.len(), 1);
    }
    // The same name under another origin is another repository.
    let local = Repository { origin: Origin::Local, name: here.name.clone() };
    assert!(site.read(&local, &layer).await.is_none());
}

#[tokio::test]
async fn a_tag_is_never_served_with_a_manifest_of_another_repository() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let manifest = whole_image(&site, &here, "secret").await;
    site.point(&there, "1", &manifest.digest).await;
    assert_eq!(site.resolve(&there, "1").await, (manifest.digest, None));
    site.keep_manifest(&there, &manifest).await;
    assert_eq!(site.resolve(&there, "1").await, (manifest.digest, Some(manifest.digest)));
}

#[tokio::test]
async fn a_manifest_makes_its_blobs_readable_where_it_is_kept() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let manifest = whole_image(&site, &here, "shared").await;
    let layer = Digest::sha256(b"shared layer");
    assert!(site.read(&there, &layer).await.is_none());
    assert!(site.keep_manifest(&there, &manifest).await.complete);
    assert!(site.read(&there, &layer).await.is_some());
    assert_eq!(site.store.expected_size(&there, &layer).await.unwrap(), Some(12));
}

#[tokio::test]
async fn a_kept_blob_can_be_granted_and_an_absent_one_cannot() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let digest = site.keep(&here, b"a layer").await;
    assert!(!site.store.grant_blob(&there, &Digest::sha256(b"absent")).await.unwrap());
    assert!(!site.store.has_repository(&there).await.unwrap());
    assert!(site.store.grant_blob(&there, &digest).await.unwrap());
    assert!(site.read(&there, &digest).await.is_some());
}

#[tokio::test]
async fn expected_size_is_known_before_the_blob_is_kept() {
    let (site, here) = (Site::new().await, repository("team/app"));
    hollow_image(&site, &here, "new").await;
    let layer = Digest::sha256(b"new layer");
    assert_eq!(site.store.expected_size(&here, &layer).await.unwrap(), Some(9));
    assert_eq!(site.store.expected_size(&here, &Digest::sha256(b"unnamed")).await.unwrap(), None);
    assert!(site.read(&here, &layer).await.is_none());
    site.keep(&repository("team/other"), b"new layer").await;
    assert!(site.read(&here, &layer).await.is_some(), "that it was not kept must not be remembered");
}

#[tokio::test]
async fn a_manifest_keeps_its_bytes_over_a_restart() {
    // Invariant 10
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = whole_image(&site, &here, "app").await;
    let site = site.restarted().await;
    let kept = site.store.manifest(&here, &manifest.digest).await.unwrap().unwrap();
    assert_eq!(kept.manifest.bytes, manifest.bytes);
    assert_eq!(kept.manifest.media_type, manifest.media_type);
}

#[tokio::test]
async fn a_manifest_that_first_came_as_an_unknown_type_gets_its_parts_later() {
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let manifest = image(b"config", &[b"layer"]);
    let unknown = MediaType::parse("application/octet-stream").unwrap();
    let opaque = Manifest::parse(manifest.bytes.clone(), unknown, Algorithm::Sha256).unwrap();
    assert!(site.keep_manifest(&there, &opaque).await.complete);
    let kept = site.keep_manifest(&here, &manifest).await;
    assert!(!kept.complete);
    assert_eq!(kept.manifest.media_type, manifest.media_type);
    assert_eq!(site.store.missing(&here, &manifest.digest).await.unwrap().len(), 2);
    assert_eq!(site.keep_manifest(&there, &opaque).await.manifest.media_type, manifest.media_type);
}

#[tokio::test]
async fn referrers_are_listed_with_what_the_specification_wants() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = whole_image(&site, &here, "app").await;
    let refer = |kind: &str| {
        let mut value = image_json(b"{}", &[]);
        value["artifactType"] = json!(kind);
        value["annotations"] = json!({"created by": "a test"});
        value["subject"] =
            json!({"mediaType": MediaType::OCI_MANIFEST, "digest": manifest.digest.to_string(), "size": 1});
        parse(value, MediaType::OCI_MANIFEST)
    };
    let (signature, sbom) = (refer("application/x.signature"), refer("application/x.sbom"));
    site.keep_manifest(&here, &signature).await;
    site.keep_manifest(&here, &sbom).await;
    let all = site.store.referrers(&here, &manifest.digest, None, None).await.unwrap();
    assert_eq!((all.descriptors.len(), all.more_after), (2, None));
    let only =
        site.store.referrers(&here, &manifest.digest, Some("application/x.sbom"), None).await.unwrap().descriptors;
    assert_eq!(only, vec![sbom.descriptor()]);
    assert_eq!(only[0].annotations["created by"], "a test");
}

#[tokio::test]
async fn more_blobs_than_files_may_be_open_are_all_readable() {
    // Invariant 17
    let (site, here) = (Site::new().await, repository("team/app"));
    let mut digests = Vec::new();
    for number in 0..600_u32 {
        digests.push(site.keep(&here, &number.to_le_bytes()).await);
    }
    for _ in 0..2 {
        for (number, digest) in digests.iter().enumerate() {
            assert_eq!(site.read(&here, digest).await.unwrap(), (number as u32).to_le_bytes());
        }
    }
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let open = open.filter(|path| path.starts_with(site.data().join("blobs/sha256"))).count();
    assert!(open <= 300, "{open} files are open");
}
