//! The scrub: a flipped bit is found, set aside and told; what is whole stays.

use sealock::keep::{Bad, Keep, KeepSettings};
use sealock::store::{FoundBy, GarbageKind, Verdict};

use super::*;

fn jobs(site: &Site) -> Keep {
    Keep::new(site.store.clone(), KeepSettings::default(), site.clock.clone())
}

/// Flips one bit of a file, in place: its length and its inode stay.
pub(super) fn flip(path: &std::path::Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 3).unwrap();
}

#[tokio::test]
async fn a_flipped_bit_is_found_and_set_aside_and_what_is_whole_stays() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = whole_image(&site, &here, "old").await;
    site.point(&here, "1", &old.digest).await;
    let new = whole_image(&site, &here, "new").await;
    site.point(&here, "1", &new.digest).await;
    let report = jobs(&site).verify(None).await.unwrap();
    assert_eq!((report.checked, report.bad_count), (6, 0));

    let layer = Digest::sha256(b"new layer");
    flip(&site.blob_path(&layer));
    let jobs = jobs(&site);
    let report = jobs.verify(None).await.unwrap();
    assert_eq!(report.bad, [Bad { digest: layer, kind: GarbageKind::Blob, verdict: Verdict::Wrong }]);
    assert_eq!(jobs.progress().so_far(), (6, report.size_bytes));
    assert!(!site.blob_path(&layer).exists());
    assert!(site.data().join("quarantine").join(format!("sha256-{}", layer.hex())).exists());
    assert!(site.read(&here, &layer).await.is_none() && !site.store.has_blob(&layer).await.unwrap());
    // Invariant 5
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(old.digest)));
    let missing = site.store.missing(&here, &new.digest).await.unwrap();
    assert_eq!(missing.iter().map(|part| part.digest).collect::<Vec<_>>(), [layer], "it is to be fetched again");
    assert_eq!(jobs.verify(None).await.unwrap().bad_count, 0, "it is told once");

    site.keep(&here, b"new layer").await;
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(new.digest)));
    assert_eq!(site.read(&here, &layer).await.as_deref(), Some(b"new layer".as_slice()));
}

#[tokio::test]
async fn a_wrong_manifest_and_a_missing_file_are_found_too() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let image = whole_image(&site, &here, "an").await;
    flip(&site.blob_path(&image.digest));
    let layer = Digest::sha256(b"an layer");
    fs::remove_file(site.blob_path(&layer)).unwrap();
    let report = jobs(&site).verify(Some(&here)).await.unwrap();
    let found = |digest, kind, verdict| Bad { digest, kind, verdict };
    assert_eq!(
        report.bad,
        [found(image.digest, GarbageKind::Manifest, Verdict::Wrong), found(layer, GarbageKind::Blob, Verdict::Missing),]
    );
    assert!(site.store.manifest(&here, &image.digest).await.unwrap().is_none());
}

#[tokio::test]
async fn only_what_can_be_read_in_a_repository_is_verified_for_it() {
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    whole_image(&site, &here, "here").await;
    whole_image(&site, &there, "there").await;
    flip(&site.blob_path(&Digest::sha256(b"there layer")));
    assert_eq!(jobs(&site).verify(Some(&here)).await.unwrap().checked, 3);
    assert_eq!(jobs(&site).verify(Some(&here)).await.unwrap().bad_count, 0);
    assert_eq!(jobs(&site).verify(Some(&there)).await.unwrap().bad_count, 1);
}

#[tokio::test]
async fn a_file_that_came_anew_while_the_old_one_was_read_is_not_set_aside() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = site.keep(&here, b"a layer").await;
    let (path, fresh) = (site.blob_path(&digest), site.data().join("fresh"));
    flip(&path);
    fs::write(&fresh, b"a layer").unwrap();
    let swapped = path.clone();
    let swap = move |_| {
        fs::rename(&fresh, &swapped).unwrap();
        true
    };
    let verdict = site.store.verify(GarbageKind::Blob, &digest, 7, FoundBy::Verify, swap).await.unwrap();
    assert_eq!(verdict, Verdict::Unsettled);
    assert_eq!(fs::read(&path).unwrap(), b"a layer");
    assert_eq!(site.read(&here, &digest).await.as_deref(), Some(b"a layer".as_slice()));
}
