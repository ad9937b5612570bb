//! Content under sha512 is as good as under sha256: deleted, collected, put back, scrubbed. Each digest is its own name.

use jiff::SignedDuration;
use sealock::keep::{Keep, KeepSettings};
use sealock::store::Verdict;

use super::*;

fn sha512(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha512, bytes)
}

async fn keep512(site: &Site, here: &Repository, bytes: &[u8]) -> Digest {
    let mut staged = site.store.stage(&sha512(bytes)).unwrap();
    staged.write(bytes).unwrap();
    site.store.keep_blob(here, &staged.keep().unwrap()).await.unwrap();
    sha512(bytes)
}

/// An image all of whose digests are sha512, of the tag `1`.
async fn image512(site: &Site, here: &Repository, seed: &str) -> (Manifest, [Digest; 2]) {
    let (config, layer) = (format!("{seed} config"), format!("{seed} layer"));
    let parts = [keep512(site, here, config.as_bytes()).await, keep512(site, here, layer.as_bytes()).await];
    let mut value = image_json(config.as_bytes(), &[layer.as_bytes()]);
    value["config"]["digest"] = json!(parts[0].to_string());
    value["layers"][0]["digest"] = json!(parts[1].to_string());
    let media_type = MediaType::parse(MediaType::OCI_MANIFEST).unwrap();
    let manifest = Manifest::parse(value.to_string().into(), media_type, Algorithm::Sha512).unwrap();
    assert!(site.keep_manifest(here, &manifest).await.complete);
    site.store.point_tag(here, &tag("1"), &manifest.digest, TagSource::Pushed).await.unwrap();
    (manifest, parts)
}

fn jobs(site: &Site) -> Keep {
    Keep::new(site.store.clone(), KeepSettings { history: 1, ..KeepSettings::default() }, site.clock.clone())
}

#[tokio::test]
async fn content_is_known_by_the_digest_that_it_came_with_and_by_no_other() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let (manifest, [config, _]) = image512(&site, &here, "app").await;
    let other = Digest::sha256(&manifest.bytes);
    assert!(site.store.manifest(&here, &manifest.digest).await.unwrap().is_some());
    assert!(site.store.manifest(&here, &other).await.unwrap().is_none());
    assert!(site.store.blob(&here, &Digest::sha256(b"app config")).await.unwrap().is_none());
    assert_eq!(site.resolve(&here, "1").await, (manifest.digest, Some(manifest.digest)));
    assert!(!site.store.delete_manifest(&here, &other).await.unwrap());
    assert!(site.store.delete_manifest(&here, &manifest.digest).await.unwrap());
    assert!(site.store.delete_blob(&here, &config).await.unwrap());
    assert!(site.store.manifest(&here, &manifest.digest).await.unwrap().is_none());
    assert!(site.read(&here, &config).await.is_none());
}

#[tokio::test]
async fn what_nothing_refers_to_is_collected_and_put_back() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let (old, parts) = image512(&site, &here, "old").await;
    let (new, kept) = image512(&site, &here, "new").await;
    site.clock.advance(SignedDuration::from_hours(72));
    let done = jobs(&site).collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs, done.files), (1, 2, 0), "{:?}", done.lines);
    for gone in [old.digest, parts[0], parts[1]] {
        assert!(!site.blob_path(&gone).exists());
        assert!(site.data().join("trash").join(format!("sha512-{}", gone.hex())).exists());
    }
    for there in [new.digest, kept[0], kept[1]] {
        assert!(site.blob_path(&there).exists());
    }
    let back = jobs(&site).undo().await.unwrap();
    assert_eq!((back.manifests, back.blobs, back.lost), (1, 2, 0));
    assert_eq!(site.read(&here, &parts[1]).await.as_deref(), Some(b"old layer".as_slice()));
    let manifest = site.store.manifest(&here, &old.digest).await.unwrap().unwrap();
    assert_eq!((&manifest.manifest.bytes, manifest.manifest.digest), (&old.bytes, old.digest));
}

#[tokio::test]
async fn a_flipped_bit_is_found() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let (manifest, [config, layer]) = image512(&site, &here, "app").await;
    assert_eq!(jobs(&site).verify(None).await.unwrap().bad_count, 0);
    for bad in [manifest.digest, layer] {
        let mut bytes = fs::read(site.blob_path(&bad)).unwrap();
        bytes[3] ^= 1;
        fs::write(site.blob_path(&bad), bytes).unwrap();
    }
    let report = jobs(&site).verify(None).await.unwrap();
    assert_eq!((report.checked, report.bad_count), (3, 2));
    assert!(report.bad.iter().all(|one| one.verdict == Verdict::Wrong && one.digest != config), "{report:?}");
    assert!(site.data().join("quarantine").join(format!("sha512-{}", layer.hex())).exists());
    assert!(site.read(&here, &layer).await.is_none() && site.read(&here, &config).await.is_some());
}
