//! Eviction as the store does it: whole images, the longest unused first, and only what can be fetched again.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use rustix::io::Errno;
use sealock::store::{EvictRules, Evictable, Evicted, Origins, Pushing, Step};

use super::sweep::grow;
use super::*;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn open(hosts: &[&str]) -> Origins {
    hosts.iter().map(|host| Arc::from(*host)).collect()
}

fn rules(site: &Site) -> EvictRules {
    EvictRules { since: site.clock.now() - DAY, open: open(&["far.test"]) }
}

async fn evictable(site: &Site) -> Vec<Evictable> {
    site.store.evictable(&rules(site)).await.unwrap()
}

/// Evicts so much, as the job does it.
async fn evict(site: &Site, enough_bytes: u64) -> Vec<Evicted> {
    site.store.evict(evictable(site).await, enough_bytes, &rules(site)).await.unwrap()
}

/// A filled image of its own config and the layer `shared`, by a filled tag.
async fn fill(site: &Site, here: &Repository, name: &str, shared: &[u8]) -> Manifest {
    let (config, layer) = (format!("{name} config"), format!("{name} layer"));
    for blob in [config.as_bytes(), layer.as_bytes(), shared] {
        site.keep(here, blob).await;
    }
    let manifest = image(config.as_bytes(), &[layer.as_bytes(), shared]);
    site.keep_manifest(here, &manifest).await;
    site.point(here, name, &manifest.digest).await;
    site.clock.advance(SignedDuration::from_mins(2));
    manifest
}

#[tokio::test]
async fn the_longest_unused_goes_whole_and_what_it_shares_stays() {
    // Invariants 7 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let mut images = Vec::new();
    for name in ["1", "2", "3"] {
        images.push(fill(&site, &here, name, b"shared layer").await);
    }
    site.clock.advance(DAY);
    // The first was filled first, and asked for last.
    site.store.manifest(&here, &images[0].digest).await.unwrap().unwrap();
    site.clock.advance(DAY * 2);
    let gone = evict(&site, 1).await;
    assert_eq!(gone.len(), 1, "{gone:?}");
    assert_eq!((gone[0].unit.digest, gone[0].manifests, gone[0].blobs), (images[1].digest, 1, 2));
    assert_eq!(gone[0].tags, ["far.test/team/app:2"]);
    assert_eq!(gone[0].size_bytes, images[1].size() + 8 + 7);
    for digest in [images[1].digest, Digest::sha256(b"2 config"), Digest::sha256(b"2 layer")] {
        assert!(!site.blob_path(&digest).exists() && !site.trashed_path(&digest).exists(), "{digest}");
        assert!(site.store.blob(&here, &digest).await.unwrap().is_none());
    }
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM trash").await, 0);
    assert!(site.store.manifest(&here, &images[1].digest).await.unwrap().is_none());
    assert_eq!(site.resolve(&here, "2").await, (images[1].digest, None));
    for (name, left) in [("1", &images[0]), ("3", &images[2])] {
        assert_eq!(site.resolve(&here, name).await, (left.digest, Some(left.digest)));
    }
    assert_eq!(site.store.check_files().await.unwrap(), 0);
    // It comes back like anything else, and the next to go is the next in line.
    fill(&site, &here, "2", b"shared layer").await;
    assert!(site.is_complete(&here, &images[1].digest).await);
    assert_eq!(evict(&site, 1).await[0].unit.digest, images[2].digest);
}

#[tokio::test]
async fn what_cannot_be_fetched_again_or_is_needed_stays() {
    // Invariants 7 and 8
    type Mark = for<'a> fn(&'a Site, &'a Repository, &'a Manifest) -> BoxFuture<'a, ()>;
    let cases: [(&str, Mark); 13] = [
        ("pushed by tag", |site, here, one| Box::pin(site.push_tag(here, "mine", &one.digest))),
        ("imported", |site, here, one| {
            Box::pin(async move {
                let source = TagSource::Imported;
                site.store.point_tag(here, &tag("mine"), &one.digest, source).await.unwrap();
            })
        }),
        ("pushed by digest", |site, here, one| {
            Box::pin(async move { assert!(site.store.push_manifest(here, one, Pushing::default()).await.unwrap()) })
        }),
        ("pinned", |site, here, _| {
            Box::pin(async move { assert!(site.store.pin_tag(here, &tag("1"), true).await.unwrap()) })
        }),
        ("the past of a pushed tag", |site, here, one| {
            Box::pin(async move {
                let next = whole_image(site, here, "next").await;
                site.push_tag(here, "mine", &one.digest).await;
                site.push_tag(here, "mine", &next.digest).await;
            })
        }),
        ("the filled past of a tag that was pushed since", |site, here, _| {
            Box::pin(async move {
                let next = whole_image(site, here, "next").await;
                site.push_tag(here, "1", &next.digest).await;
            })
        }),
        ("the past of a pushed tag that was deleted", |site, here, one| {
            Box::pin(async move {
                site.push_tag(here, "mine", &one.digest).await;
                assert!(site.store.delete_tag(here, &tag("mine")).await.unwrap());
            })
        }),
        ("this site's own, too", |site, _, one| {
            Box::pin(async move {
                let local = Repository { origin: Origin::Local, name: "app".parse().unwrap() };
                drop(site.keep_manifest(&local, one).await);
            })
        }),
        ("of a closed upstream, too", |site, _, one| {
            Box::pin(async move {
                let other = Origin::Upstream("other.test".into());
                let there = Repository { origin: other, name: "app".parse().unwrap() };
                drop(site.keep_manifest(&there, one).await);
            })
        }),
        ("part of a pushed index", |site, here, one| {
            Box::pin(async move {
                let both = index(&[child(one, "linux")]);
                site.store.push_manifest(here, &both, Pushing::default()).await.unwrap();
            })
        }),
        ("signs what was pushed", |site, here, one| {
            Box::pin(async move {
                // The image refers to what was pushed.
                let sql = format!(
                    "UPDATE manifest SET subject = '{}' WHERE digest = '{}'",
                    Digest::sha256(b"{}"),
                    one.digest
                );
                change(site, Box::leak(sql.into_boxed_str())).await;
                let pushed = parse(json!({}), "application/vnd.example.thing+json");
                assert_eq!(pushed.digest, Digest::sha256(b"{}"));
                site.store.push_manifest(here, &pushed, Pushing::default()).await.unwrap();
            })
        }),
        ("deleted there, and to be turned back to", |site, here, one| {
            Box::pin(async move {
                drop(site.keep_manifest(&repository("team/other"), one).await);
                assert!(site.store.delete_manifest(here, &one.digest).await.unwrap());
            })
        }),
        ("a part of it is a mounted blob", |_, _, _| Box::pin(async {})),
    ];
    let here = repository("team/app");
    for (what, mark) in cases {
        let site = Site::new().await;
        let one = fill(&site, &here, "1", b"shared layer").await;
        site.clock.advance(DAY * 3);
        assert_eq!(evictable(&site).await.len(), 1, "{what}");
        mark(&site, &here, &one).await;
        site.clock.advance(DAY * 3);
        if what == "a part of it is a mounted blob" {
            let layer = Digest::sha256(b"1 layer");
            assert!(site.store.mount_blob(&repository("team/other"), &layer).await.unwrap());
            site.clock.advance(DAY * 3);
            assert_eq!(evict(&site, u64::MAX).await[0].blobs, 2, "{what}");
            assert!(site.read(&repository("team/other"), &layer).await.is_some(), "{what}");
            continue;
        }
        let left: Vec<Digest> = evictable(&site).await.into_iter().map(|unit| unit.digest).collect();
        assert!(!left.contains(&one.digest), "{what}");
        evict(&site, u64::MAX).await;
        let known = site.known().await;
        for digest in [one.digest, Digest::sha256(b"1 config"), Digest::sha256(b"shared layer")] {
            assert!(known.contains(&digest.to_string()) && site.blob_path(&digest).exists(), "{what}: {digest}");
        }
    }
}

#[tokio::test]
async fn nothing_goes_while_the_upstream_is_closed_nor_within_the_grace_time() {
    // Invariant 7
    let (site, here) = (Site::new().await, repository("team/app"));
    let one = fill(&site, &here, "1", b"layer").await;
    let of = |hosts: &[&str]| EvictRules { open: open(hosts), ..rules(&site) };
    assert!(evictable(&site).await.is_empty(), "it came just now");
    site.clock.advance(DAY * 2);
    let units = evictable(&site).await;
    assert_eq!(units.len(), 1);
    for closed in [of(&[]), of(&["far.tes", "ar.test", "FAR.TEST"]), of(&["far_test"])] {
        assert!(site.store.evictable(&closed).await.unwrap().is_empty());
        assert!(site.store.evict(units.clone(), 1, &closed).await.unwrap().is_empty(), "it closed meanwhile");
    }
    assert!(site.is_complete(&here, &one.digest).await);
}

#[tokio::test]
async fn what_is_used_between_the_look_and_the_eviction_stays() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let both = whole_image(&site, &here, "amd").await;
    let top = index(&[child(&both, "linux")]);
    site.keep_manifest(&here, &top).await;
    site.point(&here, "1", &top.digest).await;
    site.clock.advance(DAY * 2);
    let units = evictable(&site).await;
    assert_eq!(units.iter().map(|unit| unit.digest).collect::<Vec<_>>(), [top.digest]);
    // A client that knows the digest of its platform.
    site.store.manifest(&here, &both.digest).await.unwrap().unwrap();
    assert!(site.store.evict(units, u64::MAX, &rules(&site)).await.unwrap().is_empty());
    assert!(site.is_complete(&here, &top.digest).await);
}

#[tokio::test]
async fn what_is_being_brought_keeps_what_it_is_part_of() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = image(b"config", &[b"on its way"]);
    site.keep(&here, b"config").await;
    let top = index(&[child(&manifest, "linux")]);
    site.keep_manifest(&here, &manifest).await;
    site.keep_manifest(&here, &top).await;
    site.point(&here, "1", &top.digest).await;
    site.clock.advance(DAY * 2);
    let mut staged = site.store.stage(&Digest::sha256(b"on its way")).unwrap();
    staged.write(b"on its").unwrap();
    assert!(evictable(&site).await.is_empty());
    staged.leave();
    assert_eq!(evictable(&site).await.len(), 1);
}

#[tokio::test]
async fn children_and_signatures_go_along_and_what_stands_by_itself_stays() {
    // Invariants 8 and 10
    let (site, here) = (Site::new().await, repository("team/app"));
    let (amd, arm) = (whole_image(&site, &here, "amd").await, whole_image(&site, &here, "arm").await);
    let top = index(&[child(&amd, "linux"), child(&arm, "linux")]);
    site.keep_manifest(&here, &top).await;
    site.point(&here, "1", &top.digest).await;
    site.point(&here, "1-arm", &arm.digest).await;
    let signature = |seed: &[u8]| {
        let mut value = image_json(seed, &[]);
        value["subject"] = descriptor(&top.bytes);
        parse(value, MediaType::OCI_MANIFEST)
    };
    let (theirs, ours) = (signature(b"theirs"), signature(b"ours"));
    site.keep(&here, b"theirs").await;
    site.keep(&here, b"ours").await;
    site.keep_manifest(&here, &theirs).await;
    site.store.push_manifest(&here, &ours, Pushing::default()).await.unwrap();
    site.clock.advance(DAY * 2);
    let gone = evict(&site, 1).await;
    assert_eq!((gone.len(), gone[0].manifests, gone[0].blobs), (1, 3, 3), "{gone:?}");
    assert!(site.is_complete(&here, &arm.digest).await, "it has a tag of its own");
    assert!(site.is_complete(&here, &ours.digest).await, "it was pushed");
    let known = site.known().await;
    for gone in [top.digest, amd.digest, theirs.digest, Digest::sha256(b"theirs")] {
        assert!(!known.contains(&gone.to_string()));
    }
    site.clock.advance(DAY * 2);
    assert_eq!(evict(&site, 1).await[0].unit.digest, arm.digest, "in its turn");
}

#[tokio::test]
async fn a_blob_that_no_manifest_names_goes_if_it_was_filled_and_not_if_it_was_uploaded() {
    // Invariant 7
    let (site, here) = (Site::new().await, repository("team/app"));
    let filled = site.keep(&here, b"filled").await;
    let id = site.store.begin_upload(&here, "", CLIENT, None).await.unwrap();
    let mut upload = site.store.open_upload(&here, "", &id).await.unwrap();
    upload.write(b"uploaded").unwrap();
    let uploaded = upload.keep(&Digest::sha256(b"uploaded")).await.unwrap().digest;
    site.clock.advance(DAY * 2);
    let gone = evict(&site, u64::MAX).await;
    assert_eq!(gone.iter().map(|one| (one.unit.digest, one.size_bytes)).collect::<Vec<_>>(), [(filled, 6)]);
    assert!(site.read(&here, &uploaded).await.is_some());
    // What was uploaded and filled is what was uploaded; what was collected and put back is what it was.
    site.keep(&here, b"uploaded").await;
    site.keep(&here, b"filled").await;
    site.clock.advance(DAY * 2);
    let jobs = site.jobs_at(KeepSettings::default(), Mode::Open);
    assert_eq!(jobs.collect(false).await.unwrap().blobs, 2);
    assert_eq!(jobs.undo().await.unwrap().blobs, 2);
    site.clock.advance(DAY * 2);
    assert_eq!(evict(&site, u64::MAX).await.iter().map(|one| one.unit.digest).collect::<Vec<_>>(), [filled]);
}

#[tokio::test]
async fn an_eviction_that_is_cut_short_leaves_nothing_half() {
    // Invariants 2 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let one = fill(&site, &here, "1", b"layer").await;
    site.clock.advance(DAY * 2);
    let units = evictable(&site).await;
    site.faults.fail(Step::Commit, 0, Errno::NOSPC.raw_os_error());
    assert!(matches!(site.store.evict(units, 1, &rules(&site)).await, Err(StoreError::Full(_))));
    assert!(site.is_complete(&here, &one.digest).await);
    assert_eq!(site.store.check_files().await.unwrap(), 0);
    // The rows are gone, and the files cannot be moved: they mean nothing, and a fill takes their place.
    site.clock.advance(DAY * 2);
    site.faults.fail(Step::Rename, 0, Errno::IO.raw_os_error());
    assert_eq!(evict(&site, 1).await.len(), 1);
    assert!(site.blob_path(&one.digest).exists());
    let site = site.restarted().await;
    assert!(site.store.manifest(&here, &one.digest).await.unwrap().is_none());
    assert!(site.store.blob(&here, &Digest::sha256(b"1 layer")).await.unwrap().is_none());
    fill(&site, &here, "1", b"layer").await;
    assert!(site.is_complete(&here, &one.digest).await);
    // Killed between the move and the removal: the next eviction removes what lies in the trash unknown.
    let stray = site.trashed_path(&Digest::sha256(b"stray"));
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, b"stray").unwrap();
    assert_eq!(site.store.remove_unknown_trash().await.unwrap(), 5);
    assert!(!stray.exists());
}

#[tokio::test]
async fn clients_that_read_it_already_get_it_whole() {
    // Invariant 3
    let (site, here) = (Site::new().await, repository("team/app"));
    fill(&site, &here, "1", b"layer").await;
    let held = site.store.blob(&here, &Digest::sha256(b"1 layer")).await.unwrap().unwrap();
    site.clock.advance(DAY * 2);
    assert_eq!(evict(&site, 1).await[0].blobs, 3);
    assert!(!site.blob_path(&held.digest).exists());
    assert_eq!(bytes(&held), b"1 layer");
}

#[tokio::test]
async fn of_any_graph_exactly_what_was_pushed_and_what_that_needs_is_left() {
    // Invariants 7 and 8
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut evicted = 0;
    for round in 0..25 {
        let site = Site::new().await;
        let model = grow(&site, &mut random).await;
        site.days_pass();
        let mut needed: HashSet<usize> = HashSet::new();
        for ((place, name), moves) in &model.tags {
            let here = repository(["team/one", "team/two"][*place]);
            let pushed = site.store.tag(&here, &tag(name)).await.unwrap().unwrap().source == TagSource::Pushed;
            needed.extend(moves.iter().filter(|(_, by)| pushed || *by == TagSource::Pushed).map(|(at, _)| *at));
        }
        loop {
            let before = needed.len();
            for (at, node) in model.manifests.iter().enumerate() {
                if needed.contains(&at) {
                    needed.extend(&node.children);
                }
                if node.subject.is_some_and(|subject| needed.contains(&subject)) {
                    needed.insert(at);
                }
            }
            if needed.len() == before {
                break;
            }
        }
        let complete = async || {
            let mut complete = HashSet::new();
            for node in needed.iter().map(|at| &model.manifests[*at]) {
                for place in ["team/one", "team/two"] {
                    let kept = site.store.manifest(&repository(place), &node.digest).await.unwrap();
                    complete.extend(kept.filter(|kept| kept.complete).map(|_| node.digest));
                }
            }
            complete
        };
        // A part at a time, so that what one leaves is what the next finds.
        let mut gone = 1;
        while gone > 0 {
            gone = evict(&site, 200).await.len();
            evicted += gone;
        }
        let blobs = needed.iter().flat_map(|at| &model.manifests[*at].blobs).filter(|blob| model.blobs.contains(blob));
        let expected = needed.iter().map(|at| model.manifests[*at].digest).chain(blobs.copied());
        let expected: HashSet<String> = expected.map(|digest| digest.to_string()).collect();
        let left = site.known().await;
        let lost: Vec<_> = expected.difference(&left).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?} was evicted");
        // Only what keeps one another in a circle, as an index that refers to its own child, is left besides.
        let is_left = |at: &usize| left.contains(&model.manifests[*at].digest.to_string());
        let spared: Vec<usize> = (0..model.manifests.len()).filter(|at| !needed.contains(at) && is_left(at)).collect();
        for at in &spared {
            let keeps =
                |by: &usize| model.manifests[*by].children.contains(at) || model.manifests[*at].subject == Some(*by);
            assert!(spared.iter().any(keeps), "round {round}: {} was left", model.manifests[*at].digest);
        }
        let named =
            spared.iter().flat_map(|at| model.manifests[*at].blobs.iter().chain([&model.manifests[*at].digest]));
        let named: HashSet<String> = named.map(Digest::to_string).collect();
        assert!(left.iter().all(|one| expected.contains(one) || named.contains(one)), "round {round}");
        assert_eq!(site.store.check_files().await.unwrap(), 0);
        let node_is_whole = |node: &super::sweep::Node| node.blobs.iter().all(|blob| model.blobs.contains(blob));
        let whole = needed
            .iter()
            .map(|at| &model.manifests[*at])
            .filter(|node| node.children.is_empty() && node_is_whole(node));
        let complete = complete().await;
        for node in whole {
            assert!(complete.contains(&node.digest), "round {round}");
        }
    }
    assert!(evicted > 10, "hardly anything was evicted");
}
