//! Pushes while everything that nothing refers to is collected at once: what was accepted can be had.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use sealock::oci::{Digest, MediaType};

use super::{delete, image, put, uploads};
use crate::support::site::Sealock;

/// Images that each client has to get accepted, and up to how many it goes on until a collection has met some push.
const ACCEPTED: usize = 25;
const ACCEPTED_MAX: usize = 4 * ACCEPTED;
const CLIENTS: usize = 8;
/// Tries of each client, refused ones included.
const TRIES_MAX: usize = ACCEPTED * 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_was_accepted_can_be_pulled_however_often_is_collected_without_a_grace_time() {
    // Invariants 6 and 8
    for keep_untagged in [true, false] {
        let settings = format!("[keep]\ngrace = \"0s\"\ntrash_for = \"0s\"\nkeep_untagged = {keep_untagged}");
        let site = Sealock::setup().settings(&settings).in_memory().start().await;
        let (done, collections, refused) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let collecting = async {
            while !done.load(Ordering::Relaxed) {
                site.advance(Duration::from_millis(1));
                site.app.keep().collect(false).await.unwrap();
                collections.fetch_add(1, Ordering::Relaxed);
            }
        };
        let pushing = async {
            join_all((0..CLIENTS).map(|client| push_and_pull(&site, client, &refused))).await;
            done.store(true, Ordering::Relaxed);
        };
        tokio::join!(collecting, pushing);
        let (collections, refused) = (collections.into_inner(), refused.into_inner());
        assert!(collections > ACCEPTED, "{collections} collections, {refused} refused: it met nothing");
    }
}

/// Pushes images of layers that the other clients push too, pulls each that is accepted, and deletes it.
async fn push_and_pull(site: &Sealock, client: usize, refused: &AtomicUsize) {
    let (name, mut accepted) = (format!("team/app{client}"), 0);
    for number in 0..TRIES_MAX {
        let layers = [format!("layer {}", number % 2), "layer of all".to_owned()];
        let blobs: Vec<Bytes> = ["{}".to_owned()].into_iter().chain(layers).map(Bytes::from).collect();
        for blob in &blobs {
            push_if_absent(site, &name, blob).await;
        }
        let named: Vec<_> = blobs[1..].iter().map(|blob| (Digest::sha256(blob), blob.len())).collect();
        // The same one again and again: its history is one of pushed tags.
        let bytes = Bytes::from(image(&named).to_string());
        let pushed = put(site, &name, "1", MediaType::OCI_MANIFEST, bytes.clone()).await;
        if pushed.status == StatusCode::BAD_REQUEST {
            assert_eq!(pushed.error().0, "MANIFEST_BLOB_UNKNOWN");
            refused.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
        let found = site.manifest(&name, "1").await;
        assert_eq!((found.status, found.body), (StatusCode::OK, bytes.clone()), "{name}: {number}");
        for blob in &blobs {
            let found = site.blob(&name, &Digest::sha256(blob)).await;
            assert_eq!((found.status, &found.body), (StatusCode::OK, blob), "{name}: {number}");
        }
        let path = format!("/v2/{name}/manifests/{}", Digest::sha256(&bytes));
        assert_eq!(delete(site, &path).await.status, StatusCode::ACCEPTED);
        accepted += 1;
        if accepted >= ACCEPTED_MAX || accepted >= ACCEPTED && refused.load(Ordering::Relaxed) > 0 {
            return;
        }
    }
    panic!("{name}: only {accepted} images were accepted in {TRIES_MAX} tries");
}

/// As clients do it.
async fn push_if_absent(site: &Sealock, name: &str, blob: &Bytes) {
    let digest = Digest::sha256(blob);
    if site.head(&format!("/v2/{name}/blobs/{digest}")).await.status == StatusCode::OK {
        return;
    }
    let path = format!("{}?digest={digest}", uploads(name));
    let pushed = site.send_body(Method::POST, &path, &[], blob.clone()).await.unwrap();
    assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
}
