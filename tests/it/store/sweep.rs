//! Collection: what nothing refers to goes, nothing else does, and it can be put back.

use std::collections::{HashMap, HashSet};

use jiff::SignedDuration;
use sealock::gate::Mode;
use sealock::keep::{Keep, KeepError, KeepSettings};
use sealock::size::Span;
use sealock::store::{CollectRules, Garbage, GarbageKind, Origins, Pushing, Restored, Rollback, Step};

use super::*;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn settings() -> KeepSettings {
    KeepSettings { history: 2, ..KeepSettings::default() }
}

fn rules(site: &Site) -> CollectRules {
    CollectRules { history: 2, keep_untagged: true, since: site.clock.now() - DAY, open: Origins::default() }
}

impl Site {
    fn jobs(&self) -> Keep {
        Keep::new(self.store.clone(), settings(), self.clock.clone())
    }

    /// So much later that nothing is protected by its age.
    pub(super) fn days_pass(&self) {
        self.clock.advance(DAY * 3);
    }

    pub(super) async fn push_tag(&self, repository: &Repository, name: &str, to: &Digest) {
        self.store.point_tag(repository, &tag(name), to, TagSource::Pushed).await.unwrap();
    }

    /// An image of its own config and the layer `shared`, pushed as `name`.
    async fn push_image(&self, repository: &Repository, name: &str, seed: &str, shared: &[u8]) -> Manifest {
        let config = format!("{seed} config");
        self.keep(repository, config.as_bytes()).await;
        self.keep(repository, shared).await;
        let manifest = image(config.as_bytes(), &[shared]);
        self.keep_manifest(repository, &manifest).await;
        self.push_tag(repository, name, &manifest.digest).await;
        manifest
    }

    pub(super) fn trashed_path(&self, digest: &Digest) -> PathBuf {
        self.data().join("trash").join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    /// What the catalog knows, read past the store: nothing is used by it.
    pub(super) async fn known(&self) -> HashSet<String> {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.data().join("catalog.sqlite"));
        let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
        let sql = "SELECT digest FROM blob UNION SELECT digest FROM manifest";
        sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap().into_iter().collect()
    }
}

/// `1` was overwritten so often that its first image has left the history.
async fn overwritten(site: &Site, here: &Repository) -> Manifest {
    let old = site.push_image(here, "1", "old", b"old layer").await;
    for seed in ["a", "b"] {
        site.push_image(here, "1", seed, b"shared layer").await;
    }
    site.days_pass();
    old
}

#[tokio::test]
async fn what_was_overwritten_goes_with_all_that_only_it_needed() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = overwritten(&site, &here).await;
    let before = site.known().await;
    let planned = site.jobs().collect(true).await.unwrap();
    assert_eq!(site.known().await, before, "a dry run changes nothing");
    assert!(!site.data().join("trash").exists(), "a dry run changes nothing");

    let done = site.jobs().collect(false).await.unwrap();
    let digests = |lines: &[Garbage]| lines.iter().map(|one| one.digest).collect::<HashSet<_>>();
    assert_eq!(digests(&planned.lines), digests(&done.lines), "a dry run tells what a run does");
    assert_eq!((done.manifests, done.blobs, done.files), (1, 2, 0));
    assert_eq!(done.size_bytes, old.size() + 10 + 9);
    for gone in [old.digest, Digest::sha256(b"old config"), Digest::sha256(b"old layer")] {
        assert!(!site.blob_path(&gone).exists() && site.trashed_path(&gone).exists());
        assert!(site.store.blob(&here, &gone).await.unwrap().is_none());
        assert!(site.store.manifest(&here, &gone).await.unwrap().is_none());
    }
    assert_eq!(site.read(&here, &Digest::sha256(b"shared layer")).await.as_deref(), Some(b"shared layer".as_slice()));
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0, "there is no more to collect");
}

#[tokio::test]
async fn what_was_collected_comes_back_with_the_same_bytes_where_it_could_be_read() {
    // Invariants 2, 8 and 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let old = overwritten(&site, &here).await;
    let layer = Digest::sha256(b"old layer");
    assert!(site.store.grant_blob(&there, &layer).await.unwrap());
    let other = repository("team/third");
    site.days_pass();
    let grants = "SELECT COUNT(*) FROM blob_grant";
    let before = (site.known().await, rows(&site, grants).await);
    let gone = site.jobs().collect(false).await.unwrap();
    assert_eq!((gone.manifests, gone.blobs), (1, 2));
    assert!(site.store.blob(&there, &layer).await.unwrap().is_none());

    let site = site.restarted().await;
    let back = site.jobs().undo().await.unwrap();
    assert_eq!(back, Restored { blobs: 2, manifests: 1, size_bytes: gone.size_bytes, lost: 0 });
    assert_eq!((site.known().await, rows(&site, grants).await), before);
    assert_eq!(site.read(&here, &layer).await.as_deref(), Some(b"old layer".as_slice()));
    assert_eq!(site.read(&there, &layer).await.as_deref(), Some(b"old layer".as_slice()));
    assert!(site.store.blob(&other, &layer).await.unwrap().is_none());
    let kept = site.store.manifest(&here, &old.digest).await.unwrap().unwrap();
    assert_eq!((&kept.manifest.bytes, kept.complete), (&old.bytes, true));
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0, "it counts as used just now");
    assert_eq!(site.jobs().undo().await.unwrap(), Restored::default());
}

#[tokio::test]
async fn a_blob_that_was_readable_by_its_manifest_alone_is_forgotten_with_it() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let old = overwritten(&site, &here).await;
    let layer = Digest::sha256(b"old layer");
    // There only the manifest was pushed; the layer is read through it, and that is remembered.
    site.keep_manifest(&there, &old).await;
    site.push_tag(&there, "1", &old.digest).await;
    assert!(site.read(&there, &layer).await.is_some());
    for seed in ["c", "d"] {
        site.push_image(&there, "1", seed, b"shared layer").await;
    }
    site.days_pass();
    assert_eq!(site.jobs().collect(false).await.unwrap().manifests, 1);
    site.keep(&here, b"old layer").await;
    assert!(site.read(&there, &layer).await.is_none(), "it came back for another repository");
}

#[tokio::test]
async fn whatever_came_or_was_used_within_the_grace_time_stays() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = overwritten(&site, &here).await;
    let orphan = site.keep(&here, b"uploaded, its manifest still to come").await;
    // A client asks whether it has to upload the layer again: its manifest is about to come.
    assert!(site.store.blob(&here, &Digest::sha256(b"old layer")).await.unwrap().is_some());
    let done = site.jobs().collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs), (1, 1), "{:?}", done.lines);
    assert!(site.blob_path(&orphan).exists());
    assert!(!site.blob_path(&old.digest).exists());
    site.days_pass();
    assert_eq!(site.jobs().collect(false).await.unwrap().blobs, 2);
}

#[tokio::test]
async fn a_manifest_that_was_read_within_the_grace_time_stays_with_its_blobs() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = overwritten(&site, &here).await;
    // A client that pulls by digest, and has not come to the blobs.
    assert!(site.store.manifest(&here, &old.digest).await.unwrap().is_some());
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0);
    site.days_pass();
    let done = site.jobs().collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs), (1, 2), "{:?}", done.lines);
}

#[tokio::test]
async fn a_manifest_that_is_read_between_the_look_and_the_sweep_stays_with_its_blobs() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = overwritten(&site, &here).await;
    let found = site.store.garbage(&rules(&site)).await.unwrap();
    assert_eq!(found.len(), 3);
    assert!(site.store.manifest(&here, &old.digest).await.unwrap().is_some());
    let thrown = site.store.throw_away(&found, &rules(&site)).await.unwrap();
    assert!(thrown.is_empty(), "{thrown:?}");
}

#[tokio::test]
async fn a_blob_goes_only_once_no_manifest_names_it() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = overwritten(&site, &here).await;
    let found = site.store.garbage(&rules(&site)).await.unwrap();
    let (manifests, blobs): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| one.kind == GarbageKind::Manifest);
    // As if the tag had moved on between the look for manifests and that for blobs.
    assert!(site.store.throw_away(&blobs, &rules(&site)).await.unwrap().is_empty());
    assert!(site.store.manifest(&here, &old.digest).await.unwrap().is_some());
    site.days_pass();
    assert_eq!(site.store.throw_away(&manifests, &rules(&site)).await.unwrap().len(), 1);
    assert_eq!(site.store.throw_away(&blobs, &rules(&site)).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_manifest_without_a_tag_stays_for_the_grace_time_after_its_deletion() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let alone = whole_image(&site, &here, "alone").await;
    site.days_pass();
    assert!(site.store.delete_manifest(&here, &alone.digest).await.unwrap());
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0);
    site.days_pass();
    let done = site.jobs().collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs), (1, 2), "{:?}", done.lines);
}

#[tokio::test]
async fn the_newest_complete_image_of_a_tag_stays_however_many_incomplete_ones_came_after_it() {
    // Invariants 5 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let whole = site.push_image(&here, "1", "whole", b"layer").await;
    for seed in ["a", "b", "c"] {
        let sparse = image(seed.as_bytes(), &[b"never pushed"]);
        site.keep_manifest(&here, &sparse).await;
        site.push_tag(&here, "1", &sparse.digest).await;
    }
    site.days_pass();
    let done = site.jobs().collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs), (1, 0), "{:?}", done.lines);
    assert!(site.is_complete(&here, &whole.digest).await);
}

#[tokio::test]
async fn what_is_referred_to_again_between_the_look_and_the_sweep_stays() {
    // Invariant 8
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let layer = Digest::sha256(b"old layer");
    type Revive = for<'a> fn(&'a Site, &'a Repository, &'a Manifest) -> futures_util::future::BoxFuture<'a, ()>;
    let ways: [(&str, Revive, u64); 5] = [
        (
            "mounted",
            |site, to, _| {
                Box::pin(
                    async move { assert!(site.store.grant_blob(to, &Digest::sha256(b"old layer")).await.unwrap()) },
                )
            },
            2,
        ),
        (
            "uploaded again",
            |site, to, _| {
                Box::pin(async move {
                    site.keep(to, b"old layer").await;
                })
            },
            2,
        ),
        (
            "named by a new manifest",
            |site, to, _| {
                Box::pin(async move { drop(site.keep_manifest(to, &image(b"shared layer", &[b"old layer"])).await) })
            },
            2,
        ),
        ("tagged", |site, to, old| Box::pin(async move { site.push_tag(to, "back", &old.digest).await }), 0),
        ("pushed again", |site, to, old| Box::pin(async move { drop(site.keep_manifest(to, old).await) }), 0),
    ];
    for (way, revive, gone) in ways {
        let site = Site::new().await;
        let old = overwritten(&site, &here).await;
        let found = site.store.garbage(&rules(&site)).await.unwrap();
        assert_eq!(found.len(), 3);
        revive(&site, &there, &old).await;
        let thrown = site.store.throw_away(&found, &rules(&site)).await.unwrap();
        assert_eq!(thrown.len() as u64, gone, "{way}: {thrown:?}");
        assert!(site.blob_path(&layer).exists(), "{way}");
        assert_eq!(site.store.check_files().await.unwrap(), 0, "{way}");
    }
    drop(site);
}

#[tokio::test]
async fn a_file_that_was_placed_just_before_the_sweep_of_its_digest_is_there_when_it_is_kept() {
    // Invariants 6 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    overwritten(&site, &here).await;
    let mut staged = site.store.stage(&Digest::sha256(b"old layer")).unwrap();
    staged.write(b"old layer").unwrap();
    let placed = staged.keep().unwrap();
    assert_eq!(site.jobs().collect(false).await.unwrap().blobs, 2);
    assert!(!site.blob_path(&placed.digest).exists());
    site.store.keep_blob(&here, &placed).await.unwrap();
    assert!(site.blob_path(&placed.digest).exists());
    assert_eq!(site.read(&here, &placed.digest).await.as_deref(), Some(b"old layer".as_slice()));
    assert_eq!(site.store.check_files().await.unwrap(), 0);
}

/// As a client that sends all of it in one request.
async fn upload(site: &Site, into: &Repository, bytes: &[u8]) -> Digest {
    let (id, digest) = (site.store.begin_upload(into, "", CLIENT, None).await.unwrap(), Digest::sha256(bytes));
    let mut upload = site.store.open_upload(into, "", &id).await.unwrap();
    upload.write(bytes).unwrap();
    upload.keep(&digest).await.unwrap();
    digest
}

#[tokio::test]
async fn a_blob_that_is_uploaded_again_begins_its_grace_time_anew() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = upload(&site, &here, b"layer").await;
    site.days_pass();
    upload(&site, &here, b"layer").await;
    assert_eq!(site.jobs().collect(false).await.unwrap().blobs, 0);
    assert_eq!(site.read(&here, &digest).await.as_deref(), Some(b"layer".as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_uploaded_again_while_it_is_collected_is_there() {
    // Invariants 6 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let garbage: Vec<Vec<u8>> = (0..200).map(|number| format!("garbage {number}").into_bytes()).collect();
    for bytes in &garbage {
        upload(&site, &here, bytes).await;
    }
    site.days_pass();
    let jobs = site.jobs();
    let again = async {
        for bytes in garbage.iter().rev() {
            upload(&site, &here, bytes).await;
        }
    };
    let (collected, ()) = tokio::join!(jobs.collect(false), again);
    collected.unwrap();
    for bytes in &garbage {
        assert_eq!(site.read(&here, &Digest::sha256(bytes)).await.as_ref(), Some(bytes));
    }
}

#[tokio::test]
async fn what_is_kept_again_by_the_commit_that_sweeps_it_keeps_its_file() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = site.keep(&here, b"orphan").await;
    site.days_pass();
    let found = site.store.garbage(&rules(&site)).await.unwrap();
    let file = Arc::new(fs::File::open(site.blob_path(&digest)).unwrap());
    let again = KeptBlob { file, digest, size: 6 };
    let rules = rules(&site);
    // On one thread, both wait for the writer before it runs.
    let (thrown, kept) = tokio::join!(site.store.throw_away(&found, &rules), site.store.keep_blob(&here, &again));
    kept.unwrap();
    assert_eq!(thrown.unwrap().len(), 1, "the sweep came first");
    assert_eq!(site.read(&here, &digest).await.unwrap(), b"orphan");
}

#[tokio::test]
async fn what_came_again_and_was_deleted_is_not_put_back() {
    // Invariant 14
    let (site, here, there) = (Site::new().await, repository("team/app"), repository("team/other"));
    let digest = upload(&site, &here, b"layer").await;
    site.store.grant_blob(&there, &digest).await.unwrap();
    site.days_pass();
    assert_eq!(site.jobs().collect(false).await.unwrap().blobs, 1);
    upload(&site, &here, b"layer").await;
    assert!(site.store.delete_blob(&here, &digest).await.unwrap());
    site.jobs().undo().await.unwrap();
    assert!(site.read(&here, &digest).await.is_none(), "its client deleted it");
    assert!(site.read(&there, &digest).await.is_some());
}

#[tokio::test]
async fn a_blob_that_went_bad_is_right_again_once_it_is_uploaded_again() {
    // Invariants 2 and 3
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = upload(&site, &here, b"layer").await;
    assert!(site.read(&here, &digest).await.is_some(), "its file is held open");
    std::fs::write(site.blob_path(&digest), b"lbyer").unwrap();
    upload(&site, &here, b"layer").await;
    assert_eq!(site.read(&here, &digest).await.as_deref(), Some(b"layer".as_slice()));
}

#[tokio::test]
async fn a_manifest_whose_layer_was_collected_a_moment_ago_is_not_kept() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let (config, layer) = (upload(&site, &here, b"config").await, upload(&site, &here, b"layer").await);
    let manifest = image(b"config", &[b"layer"]);
    site.days_pass();
    assert_eq!(site.jobs().collect(false).await.unwrap().blobs, 2);
    let pushing = Pushing { needs: vec![config, layer], tags: vec![tag("1")] };
    assert!(!site.store.push_manifest(&here, &manifest, pushing).await.unwrap());
    assert!(site.store.tag(&here, &tag("1")).await.unwrap().is_none());
    assert!(site.store.manifest(&here, &manifest.digest).await.unwrap().is_none());
}

#[tokio::test]
async fn a_manifest_whose_layer_came_back_for_another_repository_alone_is_not_kept() {
    // Invariants 8 and 14
    let (here, there) = (repository("team/app"), repository("team/other"));
    for here in [Repository { origin: Origin::Local, name: here.name.clone() }, here] {
        let site = Site::new().await;
        let (config, layer) = (upload(&site, &here, b"config").await, upload(&site, &here, b"layer").await);
        // Both were looked for and found by now; then a collection comes, and another client's upload.
        site.days_pass();
        assert_eq!(site.jobs().collect(false).await.unwrap().blobs, 2);
        upload(&site, &here, b"config").await;
        upload(&site, &there, b"layer").await;
        let manifest = image(b"config", &[b"layer"]);
        let pushing = Pushing { needs: vec![config, layer], tags: vec![tag("1")] };
        assert!(!site.store.push_manifest(&here, &manifest, pushing.clone()).await.unwrap());
        assert!(site.store.manifest(&here, &manifest.digest).await.unwrap().is_none());
        assert!(site.store.tag(&here, &tag("1")).await.unwrap().is_none());
        upload(&site, &here, b"layer").await;
        assert!(site.store.push_manifest(&here, &manifest, pushing).await.unwrap());
        assert!(site.is_complete(&here, &manifest.digest).await);
    }
}

#[tokio::test]
async fn a_pushed_manifest_comes_with_all_its_tags_or_not_at_all() {
    // Invariants 5 and 6
    let (site, here) = (Site::new().await, repository("team/app"));
    let (config, layer) = (upload(&site, &here, b"config").await, upload(&site, &here, b"layer").await);
    let manifest = image(b"config", &[b"layer"]);
    let wanted = async || site.store.wanted().await.unwrap().len();
    for reference in [manifest.digest.to_string(), "1".to_owned(), "2".to_owned(), "other".to_owned()] {
        site.store.note_wanted(&here.to_string(), &reference, [10, 0, 0, 7].into()).await.unwrap();
    }
    let pushing = Pushing { needs: vec![config, layer], tags: vec![tag("1"), tag("2")] };
    site.faults.fail(Step::Commit, 0, rustix::io::Errno::NOSPC.raw_os_error());
    site.store.push_manifest(&here, &manifest, pushing.clone()).await.unwrap_err();
    assert!(site.store.manifest(&here, &manifest.digest).await.unwrap().is_none());
    assert_eq!((site.store.tags(&here, None, 9).await.unwrap().len(), wanted().await), (0, 4));

    assert!(site.store.push_manifest(&here, &manifest, pushing).await.unwrap());
    let site = site.restarted().await;
    for name in ["1", "2"] {
        assert_eq!(site.resolve(&here, name).await, (manifest.digest, Some(manifest.digest)));
    }
    assert_eq!(site.store.wanted().await.unwrap().len(), 1, "it is wanted no longer, under none of its names");
}

#[tokio::test]
async fn what_a_manifest_of_an_unknown_type_names_stays_with_it() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let blob = upload(&site, &here, b"an artifact's blob").await;
    let kind = "application/vnd.oci.artifact.manifest.v1+json";
    let subject = Digest::sha256(b"elsewhere");
    let bytes = format!(
        r#"{{"mediaType":"{kind}","blobs":[{{"mediaType":"a/b","digest":"{blob}","size":18}}],"subject":{{"digest":"{subject}"}}}}"#
    );
    let manifest = Manifest::parse(bytes.into(), MediaType::parse(kind).unwrap(), Algorithm::Sha256).unwrap();
    assert_eq!(manifest.named().into_iter().collect::<Vec<_>>(), [blob]);
    site.keep_manifest(&here, &manifest).await;
    site.push_tag(&here, "1", &manifest.digest).await;
    site.days_pass();
    assert_eq!(site.jobs().collect(false).await.unwrap().blobs, 0);
    assert!(site.read(&here, &blob).await.is_some());
}

#[tokio::test]
async fn clients_that_read_it_already_get_it_whole() {
    // Invariant 3
    let (site, here) = (Site::new().await, repository("team/app"));
    site.push_image(&here, "1", "old", b"old layer").await;
    let held = site.store.blob(&here, &Digest::sha256(b"old layer")).await.unwrap().unwrap();
    overwritten(&site, &here).await;
    assert_eq!(site.jobs().collect(false).await.unwrap().blobs, 2);
    site.clock.advance(DAY * 2);
    site.jobs().collect(false).await.unwrap();
    assert!(!site.trashed_path(&held.digest).exists());
    assert_eq!(bytes(&held), b"old layer");
}

#[tokio::test]
async fn a_crash_between_row_and_file_leaves_a_file_that_the_next_collection_moves() {
    // Invariants 2 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    overwritten(&site, &here).await;
    // The real time of the files is later than the hand-wound clock's.
    site.clock.advance(DAY * 3650);
    site.faults.fail(Step::Rename, 0, rustix::io::Errno::IO.raw_os_error());
    let first = site.jobs().collect(false).await.unwrap();
    assert_eq!((first.manifests, first.blobs), (1, 2));
    let old = Digest::sha256(b"old layer");
    // Its batch could not be moved; as unknown files they were, by the same collection.
    assert!(first.files > 0, "{first:?}");
    let site = site.restarted().await;
    assert!(site.trashed_path(&old).exists() && !site.blob_path(&old).exists());
    assert_eq!(site.jobs().undo().await.unwrap().lost, 0);
    assert_eq!(site.read(&here, &old).await.as_deref(), Some(b"old layer".as_slice()));
}

#[tokio::test]
async fn a_commit_that_fails_throws_nothing_away() {
    // Invariants 6 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = overwritten(&site, &here).await;
    // The first commit is the trash's, the second the sweep's.
    let before = site.known().await;
    site.faults.fail(Step::Commit, 1, rustix::io::Errno::NOSPC.raw_os_error());
    assert!(matches!(site.jobs().collect(false).await, Err(KeepError::Store(StoreError::Full(_)))));
    assert_eq!(site.known().await, before);
    assert!(site.blob_path(&old.digest).exists());
    let site = site.restarted().await;
    assert_eq!(site.store.check_files().await.unwrap(), 0);
    assert_eq!(site.jobs().collect(false).await.unwrap().manifests, 1);
}

#[tokio::test]
async fn the_trash_is_emptied_after_its_time_and_not_before() {
    // Invariant 7
    let (site, here) = (Site::new().await, repository("team/app"));
    overwritten(&site, &here).await;
    let gone = site.jobs().collect(false).await.unwrap();
    let layer = Digest::sha256(b"old layer");
    site.clock.advance(DAY - SignedDuration::from_mins(1));
    assert_eq!(site.jobs().collect(false).await.unwrap().freed_bytes, 0);
    assert!(site.trashed_path(&layer).exists());
    site.clock.advance(SignedDuration::from_mins(2));
    let last = site.jobs().collect(false).await.unwrap();
    assert_eq!((last.freed_bytes, last.trash_bytes), (gone.size_bytes, 0));
    assert_eq!(fs::read_dir(site.data().join("trash")).unwrap().count(), 0);
    assert_eq!(site.jobs().undo().await.unwrap(), Restored::default());
}

#[tokio::test]
async fn wrong_bytes_do_not_come_back() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    overwritten(&site, &here).await;
    site.jobs().collect(false).await.unwrap();
    let layer = Digest::sha256(b"old layer");
    fs::write(site.trashed_path(&layer), b"OLD LAYER").unwrap();
    let back = site.jobs().undo().await.unwrap();
    assert_eq!((back.blobs, back.manifests, back.lost), (1, 1, 1));
    assert!(site.read(&here, &layer).await.is_none());
}

#[tokio::test]
async fn a_catalog_that_knows_hardly_any_of_the_files_throws_none_of_them_away() {
    // Invariant 7
    let site = Site::new().await;
    for number in 0..101 {
        let bytes = format!("of another catalog {number}");
        fs::write(site.blob_path(&Digest::sha256(bytes.as_bytes())), &bytes).unwrap();
    }
    site.clock.advance(DAY * 3650);
    let done = site.jobs().collect(false).await.unwrap();
    assert_eq!((done.files, done.files_left), (0, 101));
    fs::remove_file(site.blob_path(&Digest::sha256(b"of another catalog 7"))).unwrap();
    let done = site.jobs().collect(false).await.unwrap();
    assert_eq!((done.files, done.files_left), (100, 0));
}

#[tokio::test]
async fn the_children_of_an_overwritten_index_go_with_it_and_its_signatures_too() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let amd = whole_image(&site, &here, "amd").await;
    let whole = index(&[child(&amd, "linux")]);
    site.keep_manifest(&here, &whole).await;
    site.push_tag(&here, "1", &whole.digest).await;
    let mut signature = image_json(b"signature config", &[b"signature"]);
    signature["subject"] = descriptor(&whole.bytes);
    let signature = parse(signature, MediaType::OCI_MANIFEST);
    site.keep(&here, b"signature config").await;
    site.keep(&here, b"signature").await;
    site.keep_manifest(&here, &signature).await;
    let alone = whole_image(&site, &here, "pushed by digest alone").await;
    site.days_pass();
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0);
    for seed in ["a", "b"] {
        site.push_image(&here, "1", seed, b"shared layer").await;
    }
    site.days_pass();
    let done = site.jobs().collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs), (3, 4), "{:?}", done.lines);
    assert!(site.known().await.contains(&alone.digest.to_string()));
}

#[tokio::test]
async fn what_was_deleted_can_be_turned_back_to_for_the_grace_time_and_then_goes() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let amd = whole_image(&site, &here, "amd").await;
    let whole = index(&[child(&amd, "linux")]);
    site.keep_manifest(&here, &whole).await;
    site.push_tag(&here, "1", &whole.digest).await;
    site.days_pass();
    assert!(site.store.delete_manifest(&here, &whole.digest).await.unwrap());
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0);
    assert!(matches!(site.store.rollback_tag(&here, &tag("1"), None).await.unwrap(), Rollback::To(_)));
    assert!(site.store.manifest(&here, &whole.digest).await.unwrap().is_some());
    site.days_pass();
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0);

    assert!(site.store.delete_manifest(&here, &whole.digest).await.unwrap());
    site.days_pass();
    let found = site.store.garbage(&rules(&site)).await.unwrap();
    assert_eq!(found.len(), 4, "{found:?}");
    // Turned back to between the look and the sweep.
    assert!(matches!(site.store.rollback_tag(&here, &tag("1"), None).await.unwrap(), Rollback::To(_)));
    assert!(site.store.throw_away(&found, &rules(&site)).await.unwrap().is_empty());

    assert!(site.store.delete_tag(&here, &tag("1")).await.unwrap());
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0);
    site.days_pass();
    let done = site.jobs().collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs), (2, 2), "{:?}", done.lines);
    let log = site.store.tag_log(&here, &tag("1")).await.unwrap();
    assert!(log.iter().all(|line| !line.kept), "{log:?}");
    assert_eq!(site.jobs().undo().await.unwrap().lost, 0);
    assert!(matches!(site.store.rollback_tag(&here, &tag("1"), None).await.unwrap(), Rollback::To(_)));
}

#[tokio::test]
async fn a_pinned_tag_and_what_was_filled_are_never_collected() {
    // Invariants 7 and 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = whole_image(&site, &here, "filled").await;
    site.point(&here, "1", &old.digest).await;
    for seed in ["a", "b", "c"] {
        let next = whole_image(&site, &here, seed).await;
        site.point(&here, "1", &next.digest).await;
    }
    let pinned = site.push_image(&here, "2", "pinned", b"pinned layer").await;
    assert!(site.store.pin_tag(&here, &tag("2"), true).await.unwrap());
    site.days_pass();
    assert_eq!(site.jobs().collect(false).await.unwrap().size_bytes, 0);
    let known = site.known().await;
    assert!(known.contains(&old.digest.to_string()) && known.contains(&pinned.digest.to_string()));
}

#[tokio::test]
async fn untagged_manifests_that_were_filled_stay_while_the_gate_is_closed() {
    // Invariant 7
    let (site, here) = (Site::new().await, repository("team/app"));
    let local = Repository { origin: Origin::Local, name: "app".parse().unwrap() };
    let filled = whole_image(&site, &here, "filled").await;
    let own = whole_image(&site, &local, "own").await;
    site.days_pass();
    let settings = || KeepSettings { keep_untagged: false, ..settings() };
    let closed = site.jobs_at(settings(), Mode::Closed).collect(false).await.unwrap();
    assert_eq!((closed.manifests, closed.blobs), (1, 2), "{:?}", closed.lines);
    let known = site.known().await;
    assert!(known.contains(&filled.digest.to_string()) && !known.contains(&own.digest.to_string()));
    // An upstream that is in the settings no more cannot be asked either.
    assert_eq!(
        Keep::new(site.store.clone(), settings(), site.clock.clone()).collect(false).await.unwrap().manifests,
        0
    );
    // It closes between the look and the sweep.
    let open = CollectRules { keep_untagged: false, open: Origins::from_iter(["far.test".into()]), ..rules(&site) };
    let found = site.store.garbage(&open).await.unwrap();
    assert_eq!(found.len(), 3);
    let closed = CollectRules { open: Origins::from_iter(["ar.test".into(), "far.tes".into()]), ..open };
    assert!(site.store.throw_away(&found, &closed).await.unwrap().is_empty());
    let open = site.jobs_at(settings(), Mode::Open).collect(false).await.unwrap();
    assert_eq!((open.manifests, open.blobs), (1, 2), "{:?}", open.lines);
}

// -- the property: what is left is what a simple walk says

pub(super) struct Model {
    /// Digest -> what it names, its subject, where it can be read, whether it is an index.
    pub manifests: Vec<Node>,
    pub blobs: HashSet<Digest>,
    /// (repository, tag) -> what it named, the oldest first, and by what.
    pub tags: HashMap<(usize, String), Vec<(usize, TagSource)>>,
}

pub(super) struct Node {
    pub digest: Digest,
    pub blobs: Vec<Digest>,
    pub children: Vec<usize>,
    pub subject: Option<usize>,
    repositories: HashSet<usize>,
}

impl Model {
    fn is_complete(&self, at: usize) -> bool {
        let node = &self.manifests[at];
        node.blobs.iter().all(|blob| self.blobs.contains(blob))
            && (node.children.is_empty() || node.children.iter().any(|child| self.is_complete(*child)))
    }

    fn is_whole_in(&self, repository: usize, at: usize) -> bool {
        let (node, here) = (&self.manifests[at], |at: &usize| self.manifests[*at].repositories.contains(&repository));
        here(&at)
            && self.is_complete(at)
            && (node.children.is_empty() || node.children.iter().any(|child| here(child) && self.is_complete(*child)))
    }

    fn live(&self, history: usize, keep_untagged: bool) -> HashSet<Digest> {
        let mut live: HashSet<usize> = HashSet::new();
        let mut pushed: HashSet<(usize, usize)> = HashSet::new();
        for ((repository, _), moves) in &self.tags {
            live.insert(moves.last().unwrap().0);
            let newest = moves.iter().rev().take(history).map(|(at, _)| *at);
            let newest = newest.filter(|at| self.manifests[*at].repositories.contains(repository));
            live.extend(newest);
            live.extend(moves.iter().rev().map(|(at, _)| *at).find(|at| self.is_whole_in(*repository, *at)));
            // Complete, and only its parts are not readable here: left alone while nothing newer is whole.
            let newer = moves.iter().rev().map(|(at, _)| *at).take_while(|at| !self.is_whole_in(*repository, *at));
            live.extend(
                newer.filter(|at| self.is_complete(*at) && self.manifests[*at].repositories.contains(repository)),
            );
            pushed.extend(
                moves.iter().filter(|(_, source)| *source == TagSource::Pushed).map(|(at, _)| (*repository, *at)),
            );
        }
        for (at, node) in self.manifests.iter().enumerate().filter(|_| keep_untagged) {
            for repository in &node.repositories {
                let keeper = |other: &Node| other.repositories.contains(repository);
                let is_part = self.manifests.iter().any(|other| other.children.contains(&at) && keeper(other));
                let refers = node.subject.is_some_and(|subject| keeper(&self.manifests[subject]));
                if !pushed.contains(&(*repository, at)) && !is_part && !refers {
                    live.insert(at);
                }
            }
        }
        loop {
            let before = live.len();
            for (at, node) in self.manifests.iter().enumerate() {
                if live.contains(&at) {
                    live.extend(&node.children);
                }
                if node.subject.is_some_and(|subject| live.contains(&subject)) {
                    live.insert(at);
                }
            }
            if live.len() == before {
                break;
            }
        }
        let blobs = live.iter().flat_map(|at| &self.manifests[*at].blobs).filter(|blob| self.blobs.contains(blob));
        live.iter().map(|at| self.manifests[*at].digest).chain(blobs.copied()).collect()
    }
}

pub(super) async fn grow(site: &Site, random: &mut fastrand::Rng) -> Model {
    let repositories = [repository("team/one"), repository("team/two")];
    let mut model = Model { manifests: Vec::new(), blobs: HashSet::new(), tags: HashMap::new() };
    let layers: Vec<String> = (0..8).map(|number| format!("layer {number}")).collect();
    for layer in layers.iter().filter(|_| random.u8(..) > 40).collect::<Vec<_>>() {
        model.blobs.insert(site.keep(&repositories[random.usize(..2)], layer.as_bytes()).await);
    }
    for number in 0..random.usize(4..14) {
        let older = model.manifests.len();
        let subject = (older > 0 && random.u8(..) < 70).then(|| random.usize(..older));
        let mut node = Node {
            digest: Digest::sha256(b""),
            blobs: Vec::new(),
            children: Vec::new(),
            subject,
            repositories: HashSet::new(),
        };
        let mut value = if older > 1 && random.bool() {
            node.children = (0..random.usize(1..4)).map(|_| random.usize(..older)).collect();
            let children = node.children.iter().map(|at| {
                let digest = model.manifests[*at].digest;
                json!({"mediaType": MediaType::OCI_MANIFEST, "digest": digest.to_string(), "size": 1,
                    "platform": {"os": "linux", "architecture": "amd64"}})
            });
            json!({"schemaVersion": 2, "manifests": children.collect::<Vec<_>>()})
        } else {
            let named: Vec<&String> = (0..random.usize(1..4)).map(|_| &layers[random.usize(..layers.len())]).collect();
            node.blobs = named.iter().map(|layer| Digest::sha256(layer.as_bytes())).collect();
            let named: Vec<&[u8]> = named.iter().map(|layer| layer.as_bytes()).collect();
            image_json(named[0], &named[1..])
        };
        value["annotations"] = json!({"number": number.to_string()});
        if let Some(subject) = subject {
            value["subject"] = json!({"mediaType": MediaType::OCI_MANIFEST, "size": 1, "digest": model.manifests[subject].digest.to_string()});
        }
        let media_type = if node.children.is_empty() { MediaType::OCI_MANIFEST } else { MediaType::OCI_INDEX };
        let manifest = parse(value, media_type);
        node.digest = manifest.digest;
        for repository in [vec![0], vec![1], vec![0, 1]][random.usize(..3)].iter().copied() {
            site.keep_manifest(&repositories[repository], &manifest).await;
            node.repositories.insert(repository);
        }
        model.manifests.push(node);
    }
    for _ in 0..random.usize(0..10) {
        let (at, name) = (random.usize(..model.manifests.len()), ["1", "2"][random.usize(..2)]);
        let (repository, source) = (random.usize(..2), [TagSource::Pushed, TagSource::Filled][random.usize(..2)]);
        site.store.point_tag(&repositories[repository], &tag(name), &model.manifests[at].digest, source).await.unwrap();
        // A fill does not move a pushed tag.
        let named = site.store.tag(&repositories[repository], &tag(name)).await.unwrap().unwrap().digest;
        let at = model.manifests.iter().position(|node| node.digest == named).unwrap();
        let moves = model.tags.entry((repository, name.to_owned())).or_default();
        if moves.last().is_none_or(|(last, _)| *last != at) {
            moves.push((at, source));
        }
    }
    model
}

#[tokio::test]
async fn of_any_graph_exactly_what_is_referred_to_is_left() {
    // Invariant 8
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut collected = 0;
    for round in 0..25 {
        let site = Site::new().await;
        let model = grow(&site, &mut random).await;
        site.days_pass();
        for keep_untagged in [true, false] {
            let settings =
                KeepSettings { keep_untagged, grace: Span(std::time::Duration::from_secs(3600)), ..settings() };
            let jobs = site.jobs_at(settings, Mode::Open);
            let done = jobs.collect(false).await.unwrap();
            collected += done.manifests;
            assert!(done.lines.iter().all(|one| one.kind != GarbageKind::File));
            let expected: HashSet<String> = model.live(2, keep_untagged).iter().map(Digest::to_string).collect();
            let left = site.known().await;
            let lost: Vec<_> = expected.difference(&left).collect();
            assert!(lost.is_empty(), "round {round}, keep_untagged {keep_untagged}: {lost:?} was removed");
            let spared: Vec<_> = left.difference(&expected).collect();
            assert!(spared.is_empty(), "round {round}, keep_untagged {keep_untagged}: {spared:?} was left");
            assert_eq!(site.store.check_files().await.unwrap(), 0);
        }
        let back = site.jobs().undo().await.unwrap();
        assert_eq!(back.lost, 0);
        let all = model.manifests.iter().map(|node| node.digest).chain(model.blobs.iter().copied());
        assert_eq!(site.known().await, all.map(|digest| digest.to_string()).collect(), "round {round}");
    }
    assert!(collected > 10, "hardly anything was collected");
}
