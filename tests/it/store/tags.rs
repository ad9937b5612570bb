//! Tags: they move at once, remember where they were, and never lose what can be served.

use jiff::SignedDuration;
use sealock::store::HISTORY_MAX;

use super::*;

#[tokio::test]
async fn a_tag_resolves_to_the_newest_complete_manifest() {
    // Invariant 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = whole_image(&site, &here, "old").await;
    site.point(&here, "1", &old.digest).await;
    assert_eq!(site.resolve(&here, "1").await, (old.digest, Some(old.digest)));
    let new = hollow_image(&site, &here, "new").await;
    site.point(&here, "1", &new.digest).await;
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(old.digest)));
    site.keep(&here, b"new config").await;
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(old.digest)));
    site.keep(&here, b"new layer").await;
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(new.digest)));
    let site = site.restarted().await;
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(new.digest)));
}

#[tokio::test]
async fn a_tag_may_move_before_its_manifest_is_kept() {
    // Invariant 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = whole_image(&site, &here, "old").await;
    site.point(&here, "1", &old.digest).await;
    let new = image(b"new config", &[]);
    site.keep(&here, b"new config").await;
    site.point(&here, "1", &new.digest).await;
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(old.digest)));
    site.keep_manifest(&here, &new).await;
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(new.digest)));
}

#[tokio::test]
async fn a_tag_that_moves_back_resolves_to_where_it_is() {
    // Invariant 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
    for to in [&one, &two, &one] {
        site.point(&here, "1", &to.digest).await;
        assert_eq!(site.resolve(&here, "1").await, (to.digest, Some(to.digest)));
    }
}

#[tokio::test]
async fn history_is_bounded_and_never_drops_the_newest_complete_digest() {
    // Invariants 5, 7 and 17
    let (site, here) = (Site::new().await, repository("team/app"));
    let older = whole_image(&site, &here, "older").await;
    let whole = whole_image(&site, &here, "whole").await;
    site.point(&here, "1", &older.digest).await;
    site.point(&here, "1", &whole.digest).await;
    for number in 0..HISTORY_MAX + 10 {
        let hollow = hollow_image(&site, &here, &format!("hollow {number}")).await;
        site.point(&here, "1", &hollow.digest).await;
        assert_eq!(site.resolve(&here, "1").await, (hollow.digest, Some(whole.digest)));
    }
    let rows = rows(&site, "SELECT COUNT(*) FROM tag_history").await;
    assert_eq!(rows, HISTORY_MAX + 1);
}

#[tokio::test]
async fn confirming_moves_the_check_and_moving_moves_both() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
    let start = site.clock.now();
    let times = async || {
        let record = site.store.tag(&here, &tag("1")).await.unwrap().unwrap();
        ((record.moved_at - start).get_seconds(), (record.checked_at - start).get_seconds())
    };
    let wait = || site.clock.advance(SignedDuration::from_secs(60));
    site.point(&here, "1", &one.digest).await;
    assert_eq!(times().await, (0, 0));
    wait();
    site.point(&here, "1", &one.digest).await;
    assert_eq!(times().await, (0, 60));
    wait();
    site.store.point_tag(&here, &tag("1"), &two.digest, TagSource::Pushed).await.unwrap();
    assert_eq!(times().await, (120, 120));
    assert_eq!(site.store.tag(&here, &tag("1")).await.unwrap().unwrap().source, TagSource::Pushed);
}

#[tokio::test]
async fn tags_are_listed_in_byte_order_page_by_page() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = whole_image(&site, &here, "app").await;
    for name in ["b", "10", "B", "_x", "9", "a"] {
        site.point(&here, name, &manifest.digest).await;
    }
    let page = async |last, limit| site.store.tags(&here, last, limit).await.unwrap();
    let names = |tags: &[&str]| tags.iter().map(|name| tag(name)).collect::<Vec<_>>();
    assert_eq!(page(None, 100).await, names(&["10", "9", "B", "_x", "a", "b"]));
    assert_eq!(page(Some("9"), 2).await, names(&["B", "_x"]));
    assert_eq!(page(Some("b"), 2).await, []);
    assert_eq!(page(None, 0).await, []);
    assert_eq!(site.store.tags(&repository("team/other"), None, 9).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_never_see_a_tag_go_back_behind_what_was_acknowledged() {
    // Invariant 5
    let (site, here) = (Arc::new(Site::new().await), repository("team/app"));
    let mut digests = Vec::new();
    for number in 0..60 {
        digests.push(whole_image(&site, &here, &format!("{number}")).await.digest);
    }
    let digests = Arc::new(digests);
    site.point(&here, "1", &digests[0]).await;
    let acknowledged = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let readers = (0..4).map(|_| {
        let (site, here, digests, acknowledged) = (site.clone(), here.clone(), digests.clone(), acknowledged.clone());
        tokio::spawn(async move {
            loop {
                let least = acknowledged.load(std::sync::atomic::Ordering::SeqCst);
                let (at, complete) = site.resolve(&here, "1").await;
                let at = digests.iter().position(|digest| *digest == at).unwrap();
                assert!(at >= least, "{at} was read after {least} was acknowledged");
                assert_eq!(complete, Some(digests[at]));
                if at + 1 == digests.len() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for (number, digest) in digests.iter().enumerate().skip(1) {
        site.point(&here, "1", digest).await;
        acknowledged.store(number, std::sync::atomic::Ordering::SeqCst);
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_memory_and_catalog_alike() {
    // Invariant 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let (one, two) = (whole_image(&site, &here, "one").await, whole_image(&site, &here, "two").await);
    for number in 0..50 {
        let to = if number % 2 == 0 { &one } else { &two };
        site.point(&here, "other", &to.digest).await;
        assert_eq!(site.resolve(&here, "other").await.0, to.digest);
        {
            let given_up = site.point(&here, "1", &to.digest);
            tokio::pin!(given_up);
            // Far enough to be handed over, not far enough to be answered.
            tokio::select! {
                biased;
                () = &mut given_up => {}
                () = tokio::task::yield_now() => {}
            }
        }
        // Changes are made in order, so that this is answered after the one that was given up.
        site.point(&here, "other", &two.digest).await;
        assert_eq!(site.resolve(&here, "1").await.0, to.digest);
    }
}
