//! Blobs: resumed from the last good byte, within bounds, whatever the far side does with ranges.

use sealock::oci::Digest;
use sealock::upstream::UpstreamError;

use super::{APP, Site, app, patterned, read};
use crate::support::far::FarRegistry;

async fn far_with(bytes: &[u8]) -> (FarRegistry, Digest) {
    let far = FarRegistry::start().await;
    let digest = far.put_blob(APP, bytes.to_vec());
    (far, digest)
}

#[tokio::test]
async fn a_blob_comes_whole_and_says_its_size() {
    let bytes = patterned(300_000);
    let (far, digest) = far_with(&bytes).await;
    let site = Site::of(&far, "").await;
    let mut stream = site.upstream.blob(&app(), &digest, 0).await.unwrap();
    assert_eq!((stream.start, stream.size), (0, Some(300_000)));
    assert_eq!(read(&mut stream).await.unwrap(), bytes);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_cut_blob_is_resumed_from_the_last_good_byte() {
    let bytes = patterned(300_000);
    let (far, digest) = far_with(&bytes).await;
    far.cut_blob_at(100_001, 1);
    let site = Site::of(&far, "").await;
    assert_eq!(site.blob(&digest, 0).await.unwrap(), (0, bytes));
    assert_eq!(far.ranges_of(&digest), [0, 100_001]);
}

#[tokio::test]
async fn a_stalled_blob_is_resumed() {
    let bytes = patterned(300_000);
    let (far, digest) = far_with(&bytes).await;
    let _stalled = far.stall_blobs_at(70_000);
    let site = Site::of(&far, "stall_timeout = '100ms'").await;
    assert_eq!(site.blob(&digest, 0).await.unwrap(), (0, bytes));
    assert_eq!(far.ranges_of(&digest), [0, 70_000]);
}

#[tokio::test]
async fn a_resume_asks_the_registry_anew_and_not_the_signed_url() {
    let bytes = patterned(300_000);
    let (far, digest) = far_with(&bytes).await;
    let storage = FarRegistry::start().await;
    far.redirect_blobs_to(&storage);
    storage.cut_blob_at(100_000, 1);
    let held = storage.stall_blobs_at(50_000);
    let site = Site::of(&far, "").await;
    let mut stream = site.upstream.blob(&app(), &digest, 0).await.unwrap();
    storage.wait_held(1).await;
    storage.expire_signed_urls();
    held.release();
    assert_eq!(read(&mut stream).await.unwrap(), bytes);
    assert_eq!(far.ranges_of(&digest), [0, 100_000]);
    let resumed = storage.requests().pop().unwrap();
    assert_eq!(resumed.header("range"), Some("bytes=100000-"));
}

#[tokio::test]
async fn a_signed_url_that_is_refused_is_asked_for_again() {
    let bytes = patterned(1000);
    let (far, digest) = far_with(&bytes).await;
    let storage = FarRegistry::start().await;
    far.redirect_blobs_to(&storage);
    storage.fail_next_on("/signed/", 403, 2);
    let site = Site::of(&far, "").await;
    assert_eq!(site.blob(&digest, 0).await.unwrap(), (0, bytes));
    // What storage refuses is nobody's lack of leave, and no reason to leave the registry alone.
    storage.fail_next_on("/signed/", 403, 100);
    assert!(matches!(site.blob(&digest, 0).await, Err(UpstreamError::Failed { status: 403, .. })));
    assert_eq!(site.upstream.health().resting_until, None);
}

#[tokio::test]
async fn a_later_start_is_asked_for_by_range() {
    let bytes = patterned(1000);
    let (far, digest) = far_with(&bytes).await;
    let site = Site::of(&far, "").await;
    let mut stream = site.upstream.blob(&app(), &digest, 400).await.unwrap();
    assert_eq!((stream.start, stream.size), (400, Some(1000)));
    assert_eq!(read(&mut stream).await.unwrap(), bytes[400..]);
}

#[tokio::test]
async fn an_upstream_that_ignores_range_starts_anew() {
    let bytes = patterned(300_000);
    let (far, digest) = far_with(&bytes).await;
    far.switch(|switches| switches.ignore_range = true);
    let site = Site::of(&far, "").await;
    assert_eq!(site.blob(&digest, 400).await.unwrap(), (0, bytes.clone()));
    // In a later resume the bytes that were handed out already are passed over.
    far.cut_blob_at(123_456, 1);
    assert_eq!(site.blob(&digest, 0).await.unwrap(), (0, bytes));
    assert_eq!(far.ranges_of(&digest), [0, 0, 0]);
}

#[tokio::test]
async fn another_part_than_was_asked_for_is_refused() {
    let (far, digest) = far_with(&patterned(1000)).await;
    let site = Site::of(&far, "").await;
    far.switch(|switches| switches.wrong_range = true);
    assert!(matches!(site.blob(&digest, 400).await, Err(UpstreamError::Misbehaved { .. })));
    far.heal();
    far.switch(|switches| switches.partial_unasked = true);
    assert!(matches!(site.blob(&digest, 0).await, Err(UpstreamError::Misbehaved { .. })));
}

#[tokio::test]
async fn a_range_after_the_end_is_the_end_or_a_new_beginning() {
    let bytes = patterned(1000);
    let (far, digest) = far_with(&bytes).await;
    let site = Site::of(&far, "").await;
    assert_eq!(site.blob(&digest, 1000).await.unwrap(), (1000, vec![]));
    assert_eq!(site.blob(&digest, 1001).await.unwrap(), (0, bytes));
}

#[tokio::test]
async fn a_blob_without_a_stated_size_is_read_to_its_end() {
    let bytes = patterned(300_000);
    let (far, digest) = far_with(&bytes).await;
    far.switch(|switches| switches.chunked = true);
    far.cut_blob_at(100_000, 1);
    let site = Site::of(&far, "").await;
    let mut stream = site.upstream.blob(&app(), &digest, 0).await.unwrap();
    assert_eq!(stream.size, None);
    assert_eq!(read(&mut stream).await.unwrap(), bytes);
}

#[tokio::test]
async fn an_endless_blob_ends_at_the_bound() {
    // Invariant 17
    let (far, digest) = far_with(b"short").await;
    far.switch(|switches| switches.endless = true);
    let site = Site::of(&far, "blob_size_max = '1MiB'").await;
    // With a stated size of 5 bytes, there.
    for (from, most) in [(0, 1 << 20), (2, 5)] {
        let mut stream = site.upstream.blob(&app(), &digest, from).await.unwrap();
        let mut position = stream.start;
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(piece) => position += piece.len() as u64,
                Err(error) => break error,
            }
            assert!(position <= most);
        };
        assert!(matches!(error, UpstreamError::Misbehaved { .. }), "{error}");
    }
    far.heal();
    let site = Site::of(&far, "blob_size_max = '4B'").await;
    assert!(matches!(site.blob(&digest, 0).await, Err(UpstreamError::Misbehaved { .. })));
}

#[tokio::test]
async fn a_blob_that_does_not_get_further_is_given_up() {
    // Invariant 17
    let bytes = patterned(1000);
    let (far, digest) = far_with(&bytes).await;
    far.cut_blob_at(500, usize::MAX);
    let site = Site::of(&far, "resumes_max = 4").await;
    let mut stream = site.upstream.blob(&app(), &digest, 0).await.unwrap();
    assert!(matches!(read(&mut stream).await, Err(UpstreamError::Unreachable { .. })));
    assert!(stream.next().await.is_none());
    assert_eq!(far.ranges_of(&digest), [0, 500, 500, 500, 500]);
}

#[tokio::test]
async fn a_truncated_blob_that_claims_to_be_whole_is_handed_on_as_it_is() {
    // The digest is the pull's business; but the size that is stated must be the one that comes.
    let bytes = patterned(1000);
    let (far, digest) = far_with(&bytes).await;
    far.switch(|switches| switches.truncate = Some(700));
    let site = Site::of(&far, "").await;
    let mut stream = site.upstream.blob(&app(), &digest, 0).await.unwrap();
    assert_eq!(stream.size, Some(700));
    assert_eq!(read(&mut stream).await.unwrap(), bytes[..700]);
}

#[tokio::test]
async fn a_blob_that_changes_its_size_is_refused() {
    let (far, digest) = far_with(&patterned(1000)).await;
    far.cut_blob_at(500, 1);
    let held = far.stall_blobs_at(400);
    let site = Site::of(&far, "").await;
    let mut stream = site.upstream.blob(&app(), &digest, 0).await.unwrap();
    far.wait_held(1).await;
    far.switch(|switches| switches.truncate = Some(900));
    held.release();
    assert!(matches!(read(&mut stream).await, Err(UpstreamError::Misbehaved { .. })));
}

#[tokio::test]
async fn a_blob_outlives_a_restart_of_its_upstream() {
    let bytes = patterned(300_000);
    let (far, digest) = far_with(&bytes).await;
    let _stalled = far.stall_blobs_at(70_000);
    let site = Site::of(&far, "").await;
    let mut stream = site.upstream.blob(&app(), &digest, 0).await.unwrap();
    far.wait_held(1).await;
    far.restart().await;
    assert_eq!(read(&mut stream).await.unwrap(), bytes);
    assert_eq!(far.downloads_of(&digest), 1);
}

#[tokio::test]
async fn a_closing_gate_ends_a_blob_as_refused() {
    // Invariant 1
    let (far, digest) = far_with(&patterned(300_000)).await;
    let _stalled = far.stall_blobs_at(70_000);
    let site = Site::of(&far, "").await;
    let mut stream = site.upstream.blob(&app(), &digest, 0).await.unwrap();
    far.wait_held(1).await;
    site.gate.close(super::order(), None).await.unwrap();
    assert!(matches!(read(&mut stream).await, Err(UpstreamError::Refused(_))));
    let before = far.connections();
    assert!(matches!(site.blob(&digest, 0).await, Err(UpstreamError::Refused(_))));
    assert_eq!(far.connections(), before);
}
