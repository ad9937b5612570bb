//! Bits that rot on the disk, through the front door: never a whole body of wrong bytes, told, and fetched again.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use sealock::oci::Digest;
use sealock::store::{FoundBy, Unsound};

use crate::support::far::{FarRegistry, TestImage};
use crate::support::site::{Reply, Sealock, Setup, names_in};

const REPOSITORY: &str = "security-products/semgrep";
const NAME: &str = "gitlab.test/security-products/semgrep";

/// Larger than what is served only when whole, and than what is held back.
fn large(seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..3 << 20).map(next).collect()
}

fn setup(far: &FarRegistry) -> Setup {
    Sealock::setup().upstream("gitlab", "gitlab.test", far)
}

fn file(site: &Sealock, digest: &Digest) -> PathBuf {
    site.data().join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

/// Flips one bit in place: the length stays.
fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// A site that has pulled an image, of which it is started anew with the gate closed.
async fn pulled(far: &FarRegistry, image: &TestImage) -> Sealock {
    let site = setup(far).gate_open().start().await;
    assert_eq!(site.manifest(NAME, "6").await.status, StatusCode::OK);
    for digest in image.layers.iter().chain([&image.config]) {
        assert_eq!(site.blob(NAME, digest).await.status, StatusCode::OK);
    }
    site.app.pull().settled().await;
    site
}

async fn get(site: &Sealock, digest: &Digest) -> std::io::Result<Reply> {
    site.send(Method::GET, &format!("/v2/{NAME}/blobs/{digest}"), &[]).await
}

/// Waits until no more than so much is damaged.
async fn until_damaged(site: &Sealock, count: u64) {
    let mut changes = site.app.store().damage_changes();
    let settled = async {
        while site.app.store().damage_count().await.unwrap() > count {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled).await.expect("it stays damaged");
}

#[tokio::test]
async fn a_read_of_a_flipped_bit_breaks_off_and_the_blob_is_had_again_when_the_gate_opens() {
    // Invariants 1, 3, 11
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(1), &large(2)]);
    let (first, last) = (image.layers[0], image.layers[1]);
    let site = pulled(&far, &image).await;
    flip(&file(&site, &first), 1000);
    flip(&file(&site, &last), (3 << 20) - 1);
    let site = site.stop().await.start().await;
    let connections = far.connections();
    for digest in [first, last] {
        // As many at once as want it: each of them breaks off.
        let reads = join_all((0..8).map(|_| get(&site, &digest))).await;
        let whole = reads.into_iter().flatten().filter(|reply| reply.status == StatusCode::OK);
        assert_eq!(whole.count(), 0, "whole bodies of wrong bytes");
        let missed = get(&site, &digest).await.unwrap();
        let (code, message) = missed.error();
        assert_eq!((missed.status, code.as_str()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"));
        assert!(message.contains("damaged") && message.contains("gate is closed"), "{message}");
    }
    let told = site.app.store().damage(9).await.unwrap();
    assert!(told.len() == 2 && told.iter().all(|one| one.found_by == FoundBy::Read && one.repositories == [NAME]));
    assert_eq!(names_in(&site.data().join("quarantine")).len(), 2);
    assert_eq!(far.connections(), connections);

    // It is fetched again without being asked for, also after another start.
    let site = site.stop().await.start().await;
    assert_eq!(site.app.store().damage_count().await.unwrap(), 2);
    site.open_gate().await;
    until_damaged(&site, 0).await;
    site.close_gate().await;
    for digest in [first, last] {
        assert_eq!(Digest::sha256(&get(&site, &digest).await.unwrap().body), digest);
        assert_eq!(far.downloads_of(&digest), 2);
    }
    assert_eq!(names_in(&site.data().join("quarantine")), Vec::<String>::new());
}

#[tokio::test]
async fn with_the_gate_open_the_next_read_gets_the_right_bytes() {
    // Invariant 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(1)]);
    let layer = image.layers[0];
    let site = pulled(&far, &image).await;
    flip(&file(&site, &layer), 7);
    let site = site.stop().await.gate_open().start().await;
    get(&site, &layer).await.unwrap_err();
    assert_eq!(Digest::sha256(&get(&site, &layer).await.unwrap().body), layer);
    until_damaged(&site, 0).await;
    assert_eq!(far.downloads_of(&layer), 2, "one download, whoever asks");
}

#[tokio::test]
async fn a_small_blob_is_known_to_be_right_before_anything_is_sent() {
    // Invariant 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"small"]);
    let layer = image.layers[0];
    let site = pulled(&far, &image).await;
    flip(&file(&site, &layer), 0);
    let site = site.stop().await.start().await;
    let missed = get(&site, &layer).await.unwrap();
    assert_eq!(missed.status, StatusCode::NOT_FOUND);
    assert!(missed.error().1.contains("damaged"), "{missed:?}");
    site.open_gate().await;
    until_damaged(&site, 0).await;

    let site = site.stop().await.gate_open().start().await;
    flip(&file(&site, &layer), 0);
    assert_eq!(get(&site, &layer).await.unwrap().body, "small", "it was fetched again on the way");
}

#[tokio::test]
async fn a_bit_that_flips_under_a_running_server_is_noticed_by_the_files_look() {
    // Invariant 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(1)]);
    let layer = image.layers[0];
    let site = pulled(&far, &image).await;
    site.close_gate().await;
    assert_eq!(Digest::sha256(&get(&site, &layer).await.unwrap().body), layer);
    flip(&file(&site, &layer), 7);
    get(&site, &layer).await.unwrap_err();
    assert_eq!(get(&site, &layer).await.unwrap().status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_first_range_after_a_start_has_the_whole_file_read() {
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(1)]);
    let layer = image.layers[0];
    let site = pulled(&far, &image).await;
    flip(&file(&site, &layer), 7);
    let site = site.stop().await.start().await;
    let mut changes = site.app.store().damage_changes();
    let path = format!("/v2/{NAME}/blobs/{layer}");
    let range = site.send(Method::GET, &path, &[("range", "bytes=1000-1999")]).await.unwrap();
    assert_eq!((range.status, range.body.as_ref()), (StatusCode::PARTIAL_CONTENT, &large(1)[1000..2000]));
    tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.expect("it is not read").unwrap();
    let range = site.send(Method::GET, &path, &[("range", "bytes=1000-1999")]).await.unwrap();
    assert_eq!(range.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_range_that_is_the_whole_is_held_to_the_same() {
    // Invariant 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(1)]);
    let layer = image.layers[0];
    let site = pulled(&far, &image).await;
    flip(&file(&site, &layer), 7);
    let site = site.stop().await.start().await;
    let path = format!("/v2/{NAME}/blobs/{layer}");
    site.send(Method::GET, &path, &[("range", "bytes=0-")]).await.unwrap_err();
}

#[tokio::test]
async fn what_was_pushed_here_is_had_again_by_a_push() {
    // Invariants 3, 14
    let site = Sealock::setup().start().await;
    let digest = super::push::push_blob(&site, "team/app", large(1)).await;
    super::push::push_blob(&site, "team/other", "else").await;
    flip(&file(&site, &digest), 7);
    let path = format!("/v2/team/app/blobs/{digest}");
    site.send(Method::GET, &path, &[]).await.unwrap_err();
    let missed = site.get(&path).await;
    assert_eq!(missed.status, StatusCode::NOT_FOUND);
    assert!(missed.error().1.contains("push it again"), "{missed:?}");
    let elsewhere = site.get(&format!("/v2/team/other/blobs/{digest}")).await;
    assert!(!elsewhere.error().1.contains("damaged"), "{elsewhere:?}");
    assert_eq!(site.app.store().damage_count().await.unwrap(), 1);
    super::push::push_blob(&site, "team/app", large(1)).await;
    assert_eq!(Digest::sha256(&site.get(&path).await.body), digest);
    assert_eq!(site.app.store().damage_count().await.unwrap(), 0);
}

#[tokio::test]
async fn a_wrong_manifest_is_never_served_and_is_had_again_with_what_it_needs() {
    // Invariant 3
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[b"layer"]);
    let site = pulled(&far, &image).await;
    flip(&file(&site, &image.digest), 7);
    flip(&file(&site, &image.layers[0]), 0);
    let site = site.stop().await.start().await;
    let missed = site.manifest(NAME, image.digest).await;
    assert_eq!((missed.status, missed.error().0.as_str()), (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"));
    assert!(missed.error().1.contains("damaged"), "{missed:?}");
    get(&site, &image.layers[0]).await.unwrap();
    assert_eq!(site.app.store().damage_count().await.unwrap(), 2);
    site.open_gate().await;
    until_damaged(&site, 0).await;
    site.close_gate().await;
    assert_eq!(site.manifest(NAME, "6").await.body, image.bytes);
    assert_eq!(get(&site, &image.layers[0]).await.unwrap().body, "layer");
}

#[tokio::test]
async fn what_upstream_has_no_more_stays_told_and_what_is_not_routed_is_never_asked_for() {
    // Invariants 11, 13
    let far = FarRegistry::start().await;
    let image = far.put_image(REPOSITORY, "6", &[&large(1), &large(2)]);
    let (gone, there) = (image.layers[0], image.layers[1]);
    let site = pulled(&far, &image).await;
    for digest in [gone, there] {
        flip(&file(&site, &digest), 7);
        get(&site, &digest).await.unwrap_err();
        until_damaged(&site, 0).await;
    }
    site.close_gate().await;
    for digest in [gone, there] {
        flip(&file(&site, &digest), 7);
        get(&site, &digest).await.unwrap_err();
    }
    far.remove_blob(REPOSITORY, &gone);
    site.open_gate().await;
    until_damaged(&site, 1).await;
    assert_eq!(site.app.store().wounds(9).await.unwrap()[0].digest, gone);
    let blob = site.blob(NAME, &there).await;
    assert_eq!(Digest::sha256(&blob.body), there);
    assert_eq!(get(&site, &gone).await.unwrap().status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_store_that_cannot_set_it_aside_does_not_serve_it_either() {
    // Invariant 3
    use sealock::store::{Faults, Step};
    let faults = Faults::default();
    let site = Sealock::setup().start().await;
    let large_one = super::push::push_blob(&site, "team/app", large(1)).await;
    let small_one = super::push::push_blob(&site, "team/app", "small").await;
    for digest in [large_one, small_one] {
        flip(&file(&site, &digest), 3);
    }
    let site = site.stop().await.faults(&faults).start().await;
    // An fsync that fails turns the store read-only.
    faults.fail(Step::SyncFile, 0, 5);
    let path = format!("/v2/team/app/blobs/uploads/?digest={}", Digest::sha256(b"x"));
    site.send_body(Method::POST, &path, &[], "x").await.unwrap();
    for _ in 0..2 {
        site.send(Method::GET, &format!("/v2/team/app/blobs/{large_one}"), &[]).await.unwrap_err();
        let small = site.blob("team/app", &small_one).await;
        assert_eq!(small.status, StatusCode::INTERNAL_SERVER_ERROR, "{small:?}");
    }
    let blob = site.app.store().blob(&"team/app".parse().map(local).unwrap(), &large_one).await.unwrap().unwrap();
    assert_eq!(site.app.store().check(&blob).unwrap().outcome().await, Err(Unsound::Wrong));
}

fn local(name: sealock::oci::RepositoryName) -> sealock::names::Repository {
    sealock::names::Repository { origin: sealock::names::Origin::Local, name }
}
