//! Which files are believed to hold the right bytes, and what happens to those that do not.

use jiff::SignedDuration;
use sealock::store::{FoundBy, GarbageKind, KNOWN_FOR, Unsound, Verdict};

use super::scrub::flip;
use super::*;

/// What a whole read of it would be told; `None`: its bytes are known to be right.
async fn check(site: &Site, here: &Repository, digest: &Digest) -> Option<Result<(), Unsound>> {
    let blob = site.store.blob(here, digest).await.unwrap().unwrap();
    match site.store.check(&blob) {
        Some(check) => Some(check.outcome().await),
        None => None,
    }
}

#[tokio::test]
async fn a_file_is_believed_until_it_looks_otherwise_or_a_day_or_a_start_has_passed() {
    // Invariant 3
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = site.keep(&here, b"a layer").await;
    assert_eq!(check(&site, &here, &digest).await, None, "it was hashed when it was written");
    site.clock.advance(KNOWN_FOR);
    assert_eq!(check(&site, &here, &digest).await, Some(Ok(())));
    assert_eq!(check(&site, &here, &digest).await, None, "once is enough");
    site.clock.set_by(-SignedDuration::from_secs(1));
    assert_eq!(check(&site, &here, &digest).await, Some(Ok(())), "a clock that went back is not believed");
    let site = site.restarted().await;
    assert_eq!(check(&site, &here, &digest).await, Some(Ok(())));
    assert_eq!(check(&site, &here, &digest).await, None);

    flip(&site.blob_path(&digest));
    assert_eq!(check(&site, &here, &digest).await, Some(Err(Unsound::Wrong)));
    assert!(!site.store.has_blob(&digest).await.unwrap() && !site.blob_path(&digest).exists());
}

#[tokio::test]
async fn what_was_pushed_or_scrubbed_is_believed_too() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = Digest::sha256(b"a layer");
    let id = site.store.begin_upload(&here, "", CLIENT, None).await.unwrap();
    let mut upload = site.store.open_upload(&here, "", &id).await.unwrap();
    upload.write(b"a layer").unwrap();
    upload.keep(&digest).await.unwrap();
    assert_eq!(check(&site, &here, &digest).await, None);
    let site = site.restarted().await;
    let verdict = site.store.verify(GarbageKind::Blob, &digest, 7, FoundBy::Scrub, |_| true).await.unwrap();
    assert_eq!((verdict, check(&site, &here, &digest).await), (Verdict::Whole, None));
}

#[tokio::test]
async fn a_file_of_the_right_bytes_and_more_is_wrong() {
    // Invariant 3
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = site.keep(&here, b"a layer").await;
    // Held open, as its length is looked at when it is opened.
    let blob = site.store.blob(&here, &digest).await.unwrap().unwrap();
    fs::OpenOptions::new().write(true).open(site.blob_path(&digest)).unwrap().write_all_at(b"!", 7).unwrap();
    assert_eq!(site.store.check(&blob).unwrap().outcome().await, Err(Unsound::Wrong));
}

#[tokio::test]
async fn a_check_of_a_file_that_is_no_longer_the_kept_one_sets_nothing_aside() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = site.keep(&here, b"a layer").await;
    let old = site.store.blob(&here, &digest).await.unwrap().unwrap();
    flip(&site.blob_path(&digest));
    fs::write(site.data().join("fresh"), b"a layer").unwrap();
    fs::rename(site.data().join("fresh"), site.blob_path(&digest)).unwrap();
    assert_eq!(site.store.check(&old).unwrap().outcome().await, Err(Unsound::Wrong));
    assert_eq!(fs::read(site.blob_path(&digest)).unwrap(), b"a layer");
    assert_eq!(site.store.damage(9).await.unwrap(), []);
}

#[tokio::test]
async fn damage_is_told_across_restarts_until_it_is_kept_again() {
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let image = whole_image(&site, &here, "an").await;
    let [layer, config] = [Digest::sha256(b"an layer"), Digest::sha256(b"an config")];
    site.store.grant_blob(&there, &layer).await.unwrap();
    let mut changes = site.store.damage_changes();
    flip(&site.blob_path(&layer));
    let verdict = site.store.verify(GarbageKind::Blob, &layer, 8, FoundBy::Scrub, |_| true).await.unwrap();
    assert_eq!(verdict, Verdict::Wrong);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    fs::remove_file(site.blob_path(&config)).unwrap();
    let site = site.restarted().await;
    site.store.check_files().await.unwrap();
    flip(&site.blob_path(&image.digest));
    let site = site.restarted().await;
    assert!(site.store.manifest(&here, &image.digest).await.unwrap().is_none());

    let told = site.store.damage(9).await.unwrap();
    let found = told.iter().map(|one| (one.digest, one.kind, one.verdict, one.found_by)).collect::<Vec<_>>();
    let expected = [
        (layer, GarbageKind::Blob, Verdict::Wrong, FoundBy::Scrub),
        (config, GarbageKind::Blob, Verdict::Missing, FoundBy::Start),
        (image.digest, GarbageKind::Manifest, Verdict::Wrong, FoundBy::Read),
    ];
    assert!(expected.iter().all(|one| found.contains(one)) && found.len() == 3, "{found:?}");
    let of = |digest: Digest| told.iter().find(|one| one.digest == digest).unwrap();
    assert_eq!(of(layer).repositories, ["far.test/team/app", "far.test/team/other"]);
    assert_eq!((of(layer).size_bytes, of(layer).found_at, of(layer).healed_at), (8, site.clock.now(), None));
    assert_eq!(site.store.damage_count().await.unwrap(), 3);
    assert_eq!(site.store.wounds(9).await.unwrap()[0].digest, image.digest, "what says what else is needed, first");
    let quarantined = site.data().join("quarantine").join(format!("sha256-{}", layer.hex()));
    assert!(quarantined.exists());

    site.keep(&there, b"an layer").await;
    site.keep(&here, b"an config").await;
    assert!(site.keep_manifest(&here, &image).await.complete);
    assert!(!quarantined.exists(), "nobody needs the wrong bytes any more");
    assert_eq!(site.store.damage_count().await.unwrap(), 0);
    let site = site.restarted().await;
    assert!(site.store.damage(9).await.unwrap().iter().all(|one| one.healed_at == Some(site.clock.now())));
    assert!(site.store.wounds(9).await.unwrap().is_empty());

    // Damaged once more, it is told once more.
    flip(&site.blob_path(&layer));
    assert_eq!(check(&site, &here, &layer).await, Some(Err(Unsound::Wrong)));
    let told = &site.store.damage(1).await.unwrap()[0];
    assert_eq!((told.digest, told.found_by, told.healed_at), (layer, FoundBy::Read, None));
}

#[tokio::test]
async fn only_who_could_read_it_is_told_that_it_is_damaged() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let local = Repository { origin: Origin::Local, name: "team/app".parse().unwrap() };
    let image = whole_image(&site, &here, "an").await;
    let layer = Digest::sha256(b"an layer");
    // Whoever pushes a manifest may name what it likes.
    site.keep(&there, b"else").await;
    site.keep_manifest(&local, &image).await;
    let deleted = repository("team/deleted");
    site.store.grant_blob(&deleted, &layer).await.unwrap();
    site.store.delete_blob(&deleted, &layer).await.unwrap();
    flip(&site.blob_path(&layer));
    assert_eq!(check(&site, &here, &layer).await, Some(Err(Unsound::Wrong)));
    for (repository, told) in [(&here, true), (&there, false), (&local, false), (&deleted, false)] {
        let damaged = site.store.is_damaged(repository, GarbageKind::Blob, &layer).await.unwrap();
        assert_eq!(damaged, told, "{repository}");
    }
}
