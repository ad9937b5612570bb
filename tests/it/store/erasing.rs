//! Deleting and turning back: what is deleted in a repository is gone there and only there, and tags find their way back.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use sealock::store::{HISTORY_MAX, Rollback, Step, TagMove};

use super::*;

fn local(name: &str) -> Repository {
    Repository { origin: Origin::Local, name: name.parse().unwrap() }
}

async fn push(site: &Site, repository: &Repository, name: &str, to: &Digest) -> bool {
    site.store.point_tag(repository, &tag(name), to, TagSource::Pushed).await.unwrap()
}

async fn fill(site: &Site, repository: &Repository, name: &str, to: &Digest) -> bool {
    site.store.point_tag(repository, &tag(name), to, TagSource::Filled).await.unwrap()
}

async fn named(site: &Site, repository: &Repository, name: &str) -> Option<Digest> {
    site.store.tag(repository, &tag(name)).await.unwrap().map(|record| record.digest)
}

async fn has_manifest(site: &Site, repository: &Repository, digest: &Digest) -> bool {
    site.store.manifest(repository, digest).await.unwrap().is_some()
}

/// The tag's history, newest first: what it named, and whether that is kept.
async fn log(site: &Site, repository: &Repository, name: &str) -> Vec<(Option<Digest>, bool)> {
    let log = site.store.tag_log(repository, &tag(name)).await.unwrap();
    log.into_iter().map(|line| (line.digest, line.kept)).collect()
}

async fn rollback(site: &Site, repository: &Repository, name: &str, to: Option<&Digest>) -> Rollback {
    site.store.rollback_tag(repository, &tag(name), to).await.unwrap()
}

#[tokio::test]
async fn a_deleted_tag_is_gone_and_its_history_is_not() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let one = whole_image(&site, &here, "one").await;
    assert!(!site.store.delete_tag(&here, &tag("1")).await.unwrap());
    push(&site, &here, "1", &one.digest).await;
    push(&site, &here, "2", &one.digest).await;
    assert_eq!(named(&site, &here, "1").await, Some(one.digest));
    assert!(site.store.delete_tag(&here, &tag("1")).await.unwrap());
    assert!(!site.store.delete_tag(&here, &tag("1")).await.unwrap());
    assert_eq!(named(&site, &here, "1").await, None);
    let site = site.restarted().await;
    assert_eq!(named(&site, &here, "1").await, None);
    assert_eq!(site.store.tags(&here, None, 9).await.unwrap(), [tag("2")]);
    assert!(has_manifest(&site, &here, &one.digest).await);
    let at = site.clock.now();
    let line = |digest| TagMove { digest, source: TagSource::Pushed, moved_at: at, kept: digest.is_some() };
    let log = site.store.tag_log(&here, &tag("1")).await.unwrap();
    assert_eq!(log, [line(None), line(Some(one.digest))]);
    assert_eq!(rollback(&site, &here, "1", None).await, Rollback::To(one.digest));
    assert_eq!(named(&site, &here, "1").await, Some(one.digest));
}

#[tokio::test]
async fn what_a_tag_named_before_it_was_deleted_does_not_come_back_by_itself() {
    // Invariant 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = whole_image(&site, &here, "old").await;
    let new = hollow_image(&site, &here, "new").await;
    push(&site, &here, "1", &old.digest).await;
    site.store.delete_tag(&here, &tag("1")).await.unwrap();
    push(&site, &here, "1", &new.digest).await;
    assert_eq!(site.resolve(&here, "1").await, (new.digest, None));
}

#[tokio::test]
async fn a_deleted_manifest_is_gone_from_its_repository_with_its_tags_and_from_no_other() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
    site.keep_manifest(&there, &one).await;
    for (repository, name, to) in [(&here, "a", &one), (&here, "b", &one), (&here, "c", &two), (&there, "a", &one)] {
        push(&site, repository, name, &to.digest).await;
    }
    // All of it is remembered now.
    assert_eq!(named(&site, &here, "a").await, Some(one.digest));
    assert!(has_manifest(&site, &here, &one.digest).await);

    assert!(!site.store.delete_manifest(&local("team/app"), &one.digest).await.unwrap());
    assert!(site.store.delete_manifest(&here, &one.digest).await.unwrap());
    assert!(!site.store.delete_manifest(&here, &one.digest).await.unwrap());
    let mut site = site;
    for _ in 0..2 {
        assert!(!has_manifest(&site, &here, &one.digest).await);
        assert_eq!(named(&site, &here, "a").await, None);
        assert_eq!(site.store.tags(&here, None, 9).await.unwrap(), [tag("c")]);
        assert_eq!(log(&site, &here, "b").await, [(None, false), (Some(one.digest), true)]);
        assert!(has_manifest(&site, &there, &one.digest).await);
        assert_eq!(named(&site, &there, "a").await, Some(one.digest));
        site = site.restarted().await;
    }
    site.keep_manifest(&here, &one).await;
    assert!(has_manifest(&site, &here, &one.digest).await);
    assert_eq!(named(&site, &here, "a").await, None);
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM manifest_deleted").await, 0);
}

#[tokio::test]
async fn a_manifest_goes_with_ten_thousand_tags_at_once_and_each_remembers_it() {
    // Invariants 5 and 17
    const TAGS: usize = 10_000;
    let (site, here) = (Site::in_memory().await, repository("team/app"));
    let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
    let names: Vec<String> = (0..TAGS).map(|number| format!("v{number:05}")).collect();
    for some in names.chunks(250) {
        let pushing = some.iter().map(|name| push(&site, &here, name, &one.digest));
        futures_util::future::join_all(pushing).await;
    }
    // One of another manifest, and one with a long history, are treated as they should be.
    push(&site, &here, "v00001", &two.digest).await;
    for number in 0..HISTORY_MAX as usize {
        push(&site, &here, "v00002", if number % 2 == 0 { &two.digest } else { &one.digest }).await;
    }
    for name in ["v00000", "v00001", "v00002", "v09999"] {
        assert!(named(&site, &here, name).await.is_some(), "it is remembered now");
    }
    let began = std::time::Instant::now();
    assert!(site.store.delete_manifest(&here, &one.digest).await.unwrap());
    println!("deleting a manifest of {TAGS} tags took {} ms", began.elapsed().as_millis());
    assert_eq!(site.store.tags(&here, None, TAGS).await.unwrap(), [tag("v00001")]);
    for (name, left) in [("v00000", None), ("v00001", Some(two.digest)), ("v00002", None), ("v09999", None)] {
        assert_eq!(named(&site, &here, name).await, left, "{name}");
    }
    for name in ["v00000", "v09999"] {
        assert_eq!(log(&site, &here, name).await, [(None, false), (Some(one.digest), true)], "{name}");
        assert_eq!(rollback(&site, &here, name, None).await, Rollback::To(one.digest));
    }
    assert_eq!(log(&site, &here, "v00002").await.len() as i64, HISTORY_MAX);
    assert_eq!(named(&site, &here, "v00003").await, None, "the manifest is back, its other tags are not");
}

#[tokio::test]
async fn tags_have_a_log_and_are_turned_back_and_pinned_wherever_they_came_from() {
    for source in [TagSource::Filled, TagSource::Pushed, TagSource::Imported] {
        let (site, here) = (Site::new().await, repository("team/app"));
        let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
        for to in [&one, &two] {
            assert!(site.store.point_tag(&here, &tag("1"), &to.digest, source).await.unwrap());
        }
        let lines = site.store.tag_log(&here, &tag("1")).await.unwrap();
        let expected = [&two, &one].map(|to| (Some(to.digest), source, true));
        assert_eq!(lines.iter().map(|line| (line.digest, line.source, line.kept)).collect::<Vec<_>>(), expected);
        assert!(site.store.pin_tag(&here, &tag("1"), true).await.unwrap());
        assert!(!fill(&site, &here, "1", &one.digest).await, "{source:?}: it is pinned");
        assert_eq!(rollback(&site, &here, "1", None).await, Rollback::To(one.digest), "{source:?}");
        let record = site.store.tag(&here, &tag("1")).await.unwrap().unwrap();
        assert_eq!((record.digest, record.source, record.pinned), (one.digest, source, true));
        assert!(site.store.delete_tag(&here, &tag("1")).await.unwrap());
        assert_eq!(site.store.tag_log(&here, &tag("1")).await.unwrap()[0].source, source);
        assert_eq!(rollback(&site, &here, "1", Some(&two.digest)).await, Rollback::To(two.digest), "{source:?}");
        let record = site.store.tag(&here, &tag("1")).await.unwrap().unwrap();
        assert_eq!((record.digest, record.source), (two.digest, source));
    }
}

#[tokio::test]
async fn what_could_be_read_through_a_manifest_alone_goes_with_it() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let image = whole_image(&site, &there, "app").await;
    let (config, layer) = (Digest::sha256(b"app config"), Digest::sha256(b"app layer"));
    site.keep_manifest(&here, &image).await;
    site.store.grant_blob(&here, &config).await.unwrap();
    for digest in [&config, &layer] {
        assert!(site.read(&here, digest).await.is_some());
    }
    site.store.delete_manifest(&here, &image.digest).await.unwrap();
    assert!(site.read(&here, &config).await.is_some(), "it was mounted itself");
    assert_eq!(site.read(&here, &layer).await, None);
    assert!(site.read(&there, &layer).await.is_some());
}

#[tokio::test]
async fn a_deleted_referrer_is_no_longer_listed() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let subject = whole_image(&site, &here, "app").await;
    let mut value = image_json(b"app config", &[]);
    value["subject"] = child(&subject, "linux");
    let signature = parse(value, MediaType::OCI_MANIFEST);
    site.keep_manifest(&here, &signature).await;
    let listed = async || site.store.referrers(&here, &subject.digest, None, None).await.unwrap().descriptors;
    assert_eq!(listed().await.len(), 1);
    site.store.delete_manifest(&here, &signature.digest).await.unwrap();
    assert!(listed().await.is_empty());
}

#[tokio::test]
async fn a_tag_resolves_past_a_child_that_was_deleted() {
    // Invariant 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = whole_image(&site, &here, "old").await;
    let amd64 = whole_image(&site, &here, "amd64").await;
    let both = index(&[child(&amd64, "linux")]);
    site.keep_manifest(&here, &both).await;
    fill(&site, &here, "1", &old.digest).await;
    fill(&site, &here, "1", &both.digest).await;
    assert_eq!(site.resolve(&here, "1").await, (both.digest, Some(both.digest)));
    site.store.delete_manifest(&here, &amd64.digest).await.unwrap();
    assert_eq!(site.resolve(&here, "1").await, (both.digest, Some(old.digest)));
    site.keep_manifest(&here, &amd64).await;
    assert_eq!(site.resolve(&here, "1").await, (both.digest, Some(both.digest)));
}

#[tokio::test]
async fn a_deleted_blob_is_unreadable_there_although_a_manifest_names_it() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let image = whole_image(&site, &here, "app").await;
    site.keep_manifest(&there, &image).await;
    let layer = Digest::sha256(b"app layer");
    assert!(site.read(&here, &layer).await.is_some() && site.read(&there, &layer).await.is_some());
    assert!(!site.store.delete_blob(&repository("team/third"), &layer).await.unwrap());
    assert!(!site.store.delete_blob(&here, &Digest::sha256(b"no such blob")).await.unwrap());
    let mut site = site;
    // Uploaded again (as a blob that is kept already), mounted, uploaded anew: each makes it readable again.
    for way in 0..3 {
        assert!(site.store.delete_blob(&here, &layer).await.unwrap());
        assert!(!site.store.delete_blob(&here, &layer).await.unwrap());
        for _ in 0..2 {
            assert_eq!(site.read(&here, &layer).await, None);
            assert!(site.read(&there, &layer).await.is_some());
            assert!(has_manifest(&site, &here, &image.digest).await);
            // Sending the manifest once more does not send the blob.
            site.keep_manifest(&here, &image).await;
            site = site.restarted().await;
        }
        match way {
            0 => drop(site.keep(&here, b"app layer").await),
            1 => assert!(site.store.grant_blob(&here, &layer).await.unwrap()),
            _ => {
                let id = site.store.begin_upload(&here, "", CLIENT, None).await.unwrap();
                let mut upload = site.store.open_upload(&here, "", &id).await.unwrap();
                upload.write(b"app layer").unwrap();
                upload.keep(&layer).await.unwrap();
            }
        }
        assert!(site.read(&here, &layer).await.is_some(), "{way}");
    }
    // Through the manifest alone, too.
    assert!(site.store.delete_blob(&there, &layer).await.unwrap());
    assert_eq!(site.read(&there, &layer).await, None);
    assert!(site.read(&here, &layer).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_never_see_what_was_deleted_once_that_was_acknowledged() {
    // Invariant 14
    const ROUNDS: usize = 60;
    let (site, here) = (Arc::new(Site::new().await), repository("team/app"));
    let mut images = Vec::new();
    for number in 0..ROUNDS {
        let image = whole_image(&site, &here, &number.to_string()).await;
        push(&site, &here, &number.to_string(), &image.digest).await;
        images.push((image.digest, Digest::sha256(format!("{number} layer").as_bytes())));
    }
    let (images, deleted) = (Arc::new(images), Arc::new(AtomicUsize::new(0)));
    let readers = (0..4).map(|_| {
        let (site, here, images, deleted) = (site.clone(), here.clone(), images.clone(), deleted.clone());
        tokio::spawn(async move {
            loop {
                let gone = deleted.load(Ordering::SeqCst);
                // The last that went, and the next to go, so that it is remembered when it goes.
                for number in gone.saturating_sub(1)..(gone + 1).min(ROUNDS) {
                    let (manifest, layer) = &images[number];
                    let blob = site.store.blob(&here, layer).await.unwrap().is_some();
                    let kept = has_manifest(&site, &here, manifest).await;
                    let tagged = named(&site, &here, &number.to_string()).await.is_some();
                    assert!(number >= gone || !(blob || kept || tagged), "{number}: {blob} {kept} {tagged}");
                }
                if gone == ROUNDS {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for (number, (manifest, layer)) in images.iter().enumerate() {
        assert!(site.store.delete_blob(&here, layer).await.unwrap());
        assert!(site.store.delete_manifest(&here, manifest).await.unwrap());
        deleted.store(number + 1, Ordering::SeqCst);
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn a_tag_is_turned_back_and_back_again() {
    let (site, here) = (Site::new().await, local("team/app"));
    let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
    assert_eq!(rollback(&site, &here, "1", None).await, Rollback::Unknown);
    push(&site, &here, "1", &one.digest).await;
    assert_eq!(rollback(&site, &here, "1", None).await, Rollback::Unknown);
    assert_eq!(rollback(&site, &here, "1", Some(&two.digest)).await, Rollback::Unknown);
    push(&site, &here, "1", &two.digest).await;
    for to in [&one, &two, &one] {
        assert_eq!(rollback(&site, &here, "1", None).await, Rollback::To(to.digest));
        let record = site.store.tag(&here, &tag("1")).await.unwrap().unwrap();
        assert_eq!((record.digest, record.newest_complete), (to.digest, Some(to.digest)));
        assert_eq!((record.source, record.pinned), (TagSource::Pushed, false));
    }
    assert_eq!(rollback(&site, &here, "1", Some(&two.digest)).await, Rollback::To(two.digest));
    assert_eq!(log(&site, &here, "1").await.len(), 6);
}

#[tokio::test]
async fn a_tag_is_turned_back_to_a_manifest_that_was_deleted() {
    // Invariant 8
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let image = whole_image(&site, &there, "app").await;
    site.keep_manifest(&here, &image).await;
    push(&site, &here, "1", &image.digest).await;
    site.store.delete_manifest(&here, &image.digest).await.unwrap();
    assert_eq!(site.read(&here, &Digest::sha256(b"app layer")).await, None);
    let site = site.restarted().await;
    assert_eq!(rollback(&site, &here, "1", Some(&image.digest)).await, Rollback::To(image.digest));
    assert!(has_manifest(&site, &here, &image.digest).await);
    assert_eq!(site.resolve(&here, "1").await, (image.digest, Some(image.digest)));
    assert!(site.read(&here, &Digest::sha256(b"app layer")).await.is_some());
}

#[tokio::test]
async fn a_tag_is_not_turned_back_to_what_is_not_kept_here() {
    // Invariants 5 and 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let (lost, mine) = (whole_image(&site, &here, "lost").await, whole_image(&site, &here, "mine").await);
    // The tag named it, and only another repository has it.
    let theirs = whole_image(&site, &there, "theirs").await;
    for to in [&lost, &mine, &theirs] {
        fill(&site, &here, "1", &to.digest).await;
    }
    std::fs::remove_file(site.blob_path(&lost.digest)).unwrap();
    site.store.check_files().await.unwrap();
    let site = site.restarted().await;
    assert_eq!(
        log(&site, &here, "1").await,
        [(Some(theirs.digest), false), (Some(mine.digest), true), (Some(lost.digest), false)]
    );
    assert_eq!(rollback(&site, &here, "1", Some(&lost.digest)).await, Rollback::Gone(lost.digest));
    assert_eq!(rollback(&site, &here, "1", Some(&theirs.digest)).await, Rollback::Gone(theirs.digest));
    assert!(!has_manifest(&site, &here, &theirs.digest).await);
    assert_eq!(rollback(&site, &here, "1", None).await, Rollback::To(mine.digest));
}

#[tokio::test]
async fn history_with_deletions_is_bounded() {
    // Invariant 17
    let (site, here) = (Site::new().await, repository("team/app"));
    let one = whole_image(&site, &here, "one").await;
    for _ in 0..HISTORY_MAX {
        push(&site, &here, "1", &one.digest).await;
        site.store.delete_tag(&here, &tag("1")).await.unwrap();
    }
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM tag_history").await, HISTORY_MAX);
}

#[tokio::test]
async fn fills_move_no_tag_that_was_pushed_or_pinned_until_it_is_released() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
    let record = async || site.store.tag(&here, &tag("1")).await.unwrap().unwrap();
    assert!(!site.store.pin_tag(&here, &tag("1"), true).await.unwrap());
    assert!(!site.store.release_tag(&here, &tag("1")).await.unwrap());
    for ours in [TagSource::Pushed, TagSource::Imported] {
        assert!(fill(&site, &here, "1", &two.digest).await);
        assert!(!site.store.release_tag(&here, &tag("1")).await.unwrap(), "it follows already");
        assert!(site.store.point_tag(&here, &tag("1"), &one.digest, ours).await.unwrap());
        assert!(!fill(&site, &here, "1", &two.digest).await);
        assert!(!fill(&site, &here, "1", &one.digest).await);
        assert_eq!((record().await.digest, record().await.source), (one.digest, ours));
        assert!(site.store.release_tag(&here, &tag("1")).await.unwrap());
        let released = record().await;
        assert_eq!((released.digest, released.source), (one.digest, TagSource::Filled));
        assert!(released.checked_at < released.moved_at, "the next pull asks upstream");
    }
    assert!(site.store.pin_tag(&here, &tag("1"), true).await.unwrap());
    assert!(record().await.pinned);
    assert!(!fill(&site, &here, "1", &two.digest).await);
    assert_eq!(record().await.digest, one.digest);
    assert!(push(&site, &here, "1", &two.digest).await, "who pushes means it");
    assert!(record().await.pinned);
    assert!(site.store.release_tag(&here, &tag("1")).await.unwrap());
    assert!(!record().await.pinned);
    assert!(fill(&site, &here, "1", &one.digest).await);
    assert!(site.store.pin_tag(&here, &tag("1"), true).await.unwrap());
    assert!(site.store.pin_tag(&here, &tag("1"), false).await.unwrap());
    assert!(fill(&site, &here, "1", &two.digest).await);
}

#[tokio::test]
async fn a_filled_tag_that_was_turned_back_stays_there() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
    fill(&site, &here, "1", &one.digest).await;
    fill(&site, &here, "1", &two.digest).await;
    assert_eq!(rollback(&site, &here, "1", None).await, Rollback::To(one.digest));
    assert!(!fill(&site, &here, "1", &two.digest).await);
    assert_eq!(named(&site, &here, "1").await, Some(one.digest));
    assert!(site.store.release_tag(&here, &tag("1")).await.unwrap());
    assert!(fill(&site, &here, "1", &two.digest).await);
}

#[tokio::test]
async fn a_tag_of_this_sites_own_has_nobody_to_be_released_to() {
    let (site, here) = (Site::new().await, local("team/app"));
    let image = whole_image(&site, &here, "app").await;
    push(&site, &here, "1", &image.digest).await;
    assert!(!site.store.release_tag(&here, &tag("1")).await.unwrap());
    assert_eq!(site.store.tag(&here, &tag("1")).await.unwrap().unwrap().source, TagSource::Pushed);
}

#[tokio::test]
async fn repositories_are_listed_in_byte_order_page_by_page_while_they_hold_anything() {
    let site = Site::new().await;
    for (number, into) in
        [local("b"), repository("team/app"), local("a-b"), local("a/b"), local("z")].iter().enumerate()
    {
        whole_image(&site, into, &number.to_string()).await;
    }
    // Neither an upload under way nor a look makes a repository.
    site.store.begin_upload(&local("c"), "", CLIENT, None).await.unwrap();
    assert!(!site.store.delete_tag(&local("d"), &tag("1")).await.unwrap());
    let page = async |after, limit| {
        let found = site.store.repositories(after, limit).await.unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 100).await, ["a-b", "a/b", "b", "far.test/team/app", "z"]);
    assert_eq!(page(Some("a/b"), 2).await, ["b", "far.test/team/app"]);
    assert_eq!(page(Some("z"), 2).await, Vec::<String>::new());
    assert_eq!(page(None, 0).await, Vec::<String>::new());
    let gone = image(b"2 config", &[b"2 layer"]).digest;
    site.store.delete_manifest(&local("a-b"), &gone).await.unwrap();
    for blob in [b"2 config".as_slice(), b"2 layer"] {
        site.store.delete_blob(&local("a-b"), &Digest::sha256(blob)).await.unwrap();
    }
    assert_eq!(page(None, 1).await, ["a/b"]);
    assert!(!site.store.has_repository(&local("a-b")).await.unwrap());
}

#[tokio::test]
async fn a_deletion_whose_commit_failed_was_not_made() {
    // Invariant 6
    let (site, here) = (Site::new().await, repository("team/app"));
    let image = whole_image(&site, &here, "app").await;
    let layer = Digest::sha256(b"app layer");
    push(&site, &here, "1", &image.digest).await;
    let full = || site.faults.fail(Step::Commit, 0, Errno::NOSPC.raw_os_error());
    full();
    assert!(matches!(site.store.delete_tag(&here, &tag("1")).await, Err(StoreError::Full(_))));
    full();
    assert!(matches!(site.store.delete_manifest(&here, &image.digest).await, Err(StoreError::Full(_))));
    full();
    assert!(matches!(site.store.delete_blob(&here, &layer).await, Err(StoreError::Full(_))));
    let mut site = site;
    for _ in 0..2 {
        assert_eq!(named(&site, &here, "1").await, Some(image.digest));
        assert!(has_manifest(&site, &here, &image.digest).await);
        assert!(site.read(&here, &layer).await.is_some());
        assert_eq!(log(&site, &here, "1").await.len(), 1);
        site = site.restarted().await;
    }
}

#[tokio::test]
async fn a_history_from_before_deletions_is_taken_over() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let image = whole_image(&site, &here, "app").await;
    fill(&site, &here, "1", &image.digest).await;
    // As the program before this one left it.
    for sql in [
        "CREATE TABLE before AS SELECT * FROM tag_history",
        "DROP TABLE tag_history",
        "DROP INDEX tag_by_digest",
        "DROP TABLE upload",
        "DROP TABLE manifest_deleted",
        "DROP TABLE blob_deleted",
        "CREATE TABLE tag_history (
            repository BIGINT NOT NULL, tag TEXT NOT NULL, position BIGINT NOT NULL, digest TEXT NOT NULL,
            source TEXT NOT NULL, moved_at BIGINT NOT NULL, PRIMARY KEY (repository, tag, position),
            FOREIGN KEY (repository, tag) REFERENCES tag (repository, name) ON DELETE CASCADE)",
        "CREATE INDEX tag_history_by_digest ON tag_history (digest)",
        "INSERT INTO tag_history SELECT * FROM before",
        "DROP TABLE before",
        "DELETE FROM _sqlx_migrations WHERE version = 2",
    ] {
        change(&site, sql).await;
    }
    let site = site.restarted().await;
    assert_eq!(site.resolve(&here, "1").await, (image.digest, Some(image.digest)));
    site.store.delete_tag(&here, &tag("1")).await.unwrap();
    assert_eq!(log(&site, &here, "1").await, [(None, false), (Some(image.digest), true)]);
}
