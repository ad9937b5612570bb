//! What grows old does so by time that was seen to pass: a clock that is set wrong throws nothing away.

use jiff::SignedDuration;
use sealock::keep::{Keep, KeepSettings};
use sealock::size::Span;
use sealock::store::{Faults, UPLOAD_AGE_MAX, UPLOADS_MAX, UPLOADS_PER_CLIENT_MAX};

use super::*;

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const YEAR: SignedDuration = SignedDuration::from_hours(24 * 365);

fn jobs(site: &Site) -> Keep {
    let day = Span(std::time::Duration::from_secs(24 * 3600));
    let settings = KeepSettings { collect_every: Span(7 * day.0), ..KeepSettings::default() };
    Keep::new(site.store.clone(), settings, site.clock.clone())
}

/// A blob that nothing names.
async fn orphan(site: &Site, text: &str) -> Digest {
    site.keep(&repository("team/app"), text.as_bytes()).await
}

fn is_in_trash(site: &Site, digest: &Digest) -> bool {
    site.trashed_path(digest).exists()
}

/// Killed, not closed; and started again.
async fn killed(site: Site, clock_off_by: SignedDuration) -> Site {
    let Site { folder, clock, store, .. } = site;
    drop(store);
    clock.set_by(clock_off_by);
    let data = folder.path().join("data");
    // The lock is free when the writer's task has ended, which nobody tells.
    let store = loop {
        match Store::open(&data, clock.clone()).await {
            Ok(store) => break store,
            Err(StoreError::InUse { .. }) => tokio::task::yield_now().await,
            Err(why) => panic!("{why:?}"),
        }
    };
    Site { folder, clock, faults: Faults::default(), store }
}

#[tokio::test]
async fn the_trash_is_not_emptied_before_its_time_was_seen_to_pass() {
    // Invariant 7
    let site = Site::new().await;
    let blob = orphan(&site, "orphan").await;
    site.clock.advance(HOUR * 48);
    assert_eq!(jobs(&site).collect(false).await.unwrap().blobs, 1);
    // Set ahead while it runs; told at once, and looked at again a minute later.
    site.clock.set_by(YEAR);
    for _ in 0..3 {
        jobs(&site).tick().await;
        assert!(is_in_trash(&site, &blob), "the clock was set ahead");
        site.clock.advance(SignedDuration::from_mins(1));
    }
    // Set ahead while it does not run.
    let site = site.restarted().await;
    site.clock.set_by(YEAR);
    let site = site.restarted().await;
    for _ in 0..3 {
        jobs(&site).tick().await;
        assert!(is_in_trash(&site, &blob), "the clock was set ahead before the start");
        site.clock.advance(SignedDuration::from_mins(1));
    }
    site.clock.advance(HOUR * 23);
    jobs(&site).tick().await;
    assert!(is_in_trash(&site, &blob), "not yet");
    site.clock.advance(HOUR);
    jobs(&site).tick().await;
    assert!(!is_in_trash(&site, &blob), "its day has passed");
}

#[tokio::test]
async fn a_collection_by_hand_believes_a_wrong_clock_no_more_than_a_scheduled_one() {
    // Invariants 7 and 8
    let site = Site::new().await;
    let thrown = orphan(&site, "thrown away").await;
    site.clock.advance(HOUR * 48);
    assert_eq!(jobs(&site).collect(false).await.unwrap().blobs, 1);
    let young = orphan(&site, "came just now").await;
    for again in [false, true] {
        site.clock.set_by(YEAR);
        for dry_run in [true, false] {
            let report = jobs(&site).collect(dry_run).await.unwrap();
            assert_eq!((report.blobs, report.freed_bytes), (0, 0), "{again}");
        }
        assert!(is_in_trash(&site, &thrown) && site.blob_path(&young).exists(), "{again}");
    }
    site.store.watch_clock().await.unwrap();
    let site = killed(site, YEAR).await;
    let report = jobs(&site).collect(false).await.unwrap();
    assert_eq!((report.blobs, report.freed_bytes), (0, 0), "set ahead before the start");
    site.clock.advance(HOUR * 25);
    let report = jobs(&site).collect(false).await.unwrap();
    assert_eq!((report.blobs, report.freed_bytes), (1, 11), "a day has passed");
}

#[tokio::test]
async fn no_grace_time_and_no_time_in_the_trash_mean_at_once_whatever_the_clock_says() {
    let site = Site::new().await;
    let none = Span(std::time::Duration::ZERO);
    let settings = KeepSettings { grace: none, trash_for: none, ..KeepSettings::default() };
    let jobs = Keep::new(site.store.clone(), settings, site.clock.clone());
    // Within what a clock may drift, before it counts as set.
    for drift in [SignedDuration::ZERO, SignedDuration::from_secs(20)] {
        site.clock.set_by(drift);
        let blob = orphan(&site, "orphan").await;
        site.clock.advance(SignedDuration::from_millis(1));
        assert_eq!(jobs.collect(false).await.unwrap().blobs, 1, "{drift:?}");
        assert!(is_in_trash(&site, &blob), "{drift:?}");
        site.clock.advance(SignedDuration::from_millis(1));
        assert_eq!(jobs.collect(false).await.unwrap().freed_bytes, 6, "{drift:?}");
    }
}

#[tokio::test]
async fn the_scheduled_collection_comes_in_its_time_and_a_wrong_clock_does_not_hurry_it() {
    // Invariant 7
    let site = Site::new().await;
    let blob = orphan(&site, "orphan").await;
    jobs(&site).tick().await;
    site.clock.advance(HOUR * 24 * 3);
    jobs(&site).tick().await;
    for _ in 0..2 {
        site.clock.set_by(YEAR);
        jobs(&site).tick().await;
        assert!(site.blob_path(&blob).exists());
    }
    let site = site.restarted().await;
    site.clock.set_by(YEAR);
    let site = killed(site, HOUR * 24).await;
    for _ in 0..3 {
        jobs(&site).tick().await;
        assert!(site.blob_path(&blob).exists(), "only three days were seen to pass");
    }
    site.clock.advance(HOUR * 24 * 4);
    jobs(&site).tick().await;
    assert!(is_in_trash(&site, &blob));
    let status = jobs(&site).status().await.unwrap();
    let last = status.last_collection.unwrap();
    assert_eq!((last.at, last.sum.blobs, last.sum.size_bytes), (site.clock.now(), 1, 6));
    assert_eq!(status.trash_bytes, 6);
}

#[tokio::test]
async fn a_clock_that_was_set_back_puts_the_scheduled_collection_off() {
    let site = Site::new().await;
    jobs(&site).tick().await;
    let blob = orphan(&site, "orphan").await;
    site.clock.advance(HOUR * 24 * 6);
    site.clock.set_by(-YEAR);
    jobs(&site).tick().await;
    site.clock.advance(HOUR * 48);
    jobs(&site).tick().await;
    assert!(site.blob_path(&blob).exists());
    site.clock.advance(HOUR * 24 * 5);
    jobs(&site).tick().await;
    assert!(site.blob_path(&blob).exists(), "it was stamped with a time that is yet to come");
    site.clock.advance(YEAR);
    jobs(&site).tick().await;
    assert!(is_in_trash(&site, &blob));
}

#[tokio::test]
async fn uploads_do_not_expire_because_the_clock_was_set_ahead() {
    // Invariants 7 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = site.store.begin_upload(&here, "", CLIENT, None).await.unwrap();
    site.clock.advance(HOUR);
    for restart in [false, true] {
        site.clock.set_by(UPLOAD_AGE_MAX);
        assert_eq!(site.store.expire_uploads().await.unwrap(), 0, "{restart}");
    }
    let site = site.restarted().await;
    site.clock.set_by(UPLOAD_AGE_MAX);
    let site = killed(site, HOUR * 24 * 30).await;
    assert_eq!(site.store.upload_size(&here, "", &id).await.unwrap(), 0);
    site.clock.advance(UPLOAD_AGE_MAX);
    assert_eq!(site.store.expire_uploads().await.unwrap(), 1);
}

#[tokio::test]
async fn a_clock_that_was_set_ahead_gives_no_uploads_place_away() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    for number in 0..UPLOADS_MAX {
        let client = Ipv4Addr::new(192, 0, 2, (number / UPLOADS_PER_CLIENT_MAX) as u8);
        site.store.begin_upload(&here, "", client.into(), None).await.unwrap();
    }
    site.clock.set_by(YEAR);
    site.store.begin_upload(&here, "", CLIENT, None).await.unwrap_err();
    site.clock.advance(HOUR);
    site.store.begin_upload(&here, "", CLIENT, None).await.unwrap();
}

#[tokio::test]
async fn time_that_was_seen_to_pass_outlives_a_kill() {
    let site = Site::new().await;
    let day = std::time::Duration::from_secs(86_400);
    site.clock.advance(HOUR * 23);
    site.store.watch_clock().await.unwrap();
    let site = killed(site, SignedDuration::ZERO).await;
    assert_eq!(site.store.before(day), None);
    site.clock.advance(HOUR);
    assert!(site.store.before(day).is_some());
}

#[tokio::test]
async fn a_jump_that_a_question_notices_is_noted_by_the_next_look() {
    // Invariant 7
    let site = Site::new().await;
    let noted = async || {
        let (text, _) = site.store.job("time").await.unwrap().unwrap();
        let noted: Value = serde_json::from_str(&text).unwrap();
        noted["stretches"].as_array().unwrap().len()
    };
    assert_eq!(noted().await, 1);
    site.clock.advance(HOUR);
    site.store.watch_clock().await.unwrap();
    site.clock.set_by(-YEAR);
    site.store.before(std::time::Duration::ZERO);
    site.store.watch_clock().await.unwrap();
    assert_eq!(noted().await, 2, "a kill now must not forget it");
}
