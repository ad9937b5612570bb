//! Uploads: piece by piece, across restarts, for one writer of one owner, and never kept unless right.

use std::fs;
use std::path::PathBuf;

use jiff::SignedDuration;
use rustix::io::Errno;
use sealock::store::{
    Step, UPLOAD_AGE_MAX, UPLOAD_EMPTY_REST_MAX, UPLOAD_REST_MAX, UPLOADS_MAX, UPLOADS_PER_CLIENT_MAX, Upload,
    UploadError, UploadId,
};

use super::*;

const ME: &str = "ci";

async fn begin(site: &Site, into: &Repository) -> UploadId {
    site.store.begin_upload(into, ME, CLIENT, None).await.unwrap()
}

async fn open(site: &Site, into: &Repository, id: &UploadId) -> Upload {
    site.store.open_upload(into, ME, id).await.unwrap()
}

/// As a chunk does it.
async fn append(site: &Site, into: &Repository, id: &UploadId, bytes: &[u8]) -> Result<(), StoreError> {
    let mut upload = open(site, into, id).await;
    upload.write(bytes).unwrap();
    upload.leave().await
}

async fn size(site: &Site, into: &Repository, id: &UploadId) -> Result<u64, UploadError> {
    site.store.upload_size(into, ME, id).await
}

fn path(site: &Site, id: &UploadId) -> PathBuf {
    site.data().join("staging").join(format!("upload-{id}"))
}

fn is_unknown<T>(outcome: Result<T, UploadError>) -> bool {
    matches!(outcome, Err(UploadError::Unknown))
}

#[tokio::test]
async fn what_came_in_pieces_is_kept_as_one_blob_and_nothing_else_stays() {
    // Invariants 2 and 6
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    assert_eq!(size(&site, &here, &id).await.unwrap(), 0);
    append(&site, &here, &id, b"first, ").await.unwrap();
    append(&site, &here, &id, b"second, ").await.unwrap();
    let mut upload = open(&site, &here, &id).await;
    assert_eq!((upload.id(), upload.written()), (id, 15));
    upload.write(b"third").unwrap();
    let digest = Digest::sha256(b"first, second, third");
    let kept = upload.keep(&digest).await.unwrap();
    assert_eq!((kept.digest, kept.size, bytes(&kept)), (digest, 20, b"first, second, third".to_vec()));
    assert_eq!(site.read(&here, &digest).await.unwrap(), b"first, second, third");
    assert_eq!(site.read(&repository("team/other"), &digest).await, None);
    assert!(is_unknown(size(&site, &here, &id).await));
    assert_eq!((site.staged_files(), rows(&site, "SELECT COUNT(*) FROM upload").await), (0, 0));
    let site = site.restarted().await;
    assert_eq!(site.read(&here, &digest).await.unwrap(), b"first, second, third");
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart_with_what_was_recorded() {
    // Invariants 2 and 6
    let here = repository("team/app");
    for algorithm in [None, Some(Algorithm::Sha256), Some(Algorithm::Sha512)] {
        let mut site = Site::new().await;
        let id = site.store.begin_upload(&here, ME, CLIENT, algorithm).await.unwrap();
        let whole: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        // Pieces that end inside the hash's blocks, and one that comes to nothing.
        let mut sent = 0;
        for piece in [100, 0, 63, 65, 128, 500_001] {
            let id = id.to_string().parse().unwrap();
            append(&site, &here, &id, &whole[sent..sent + piece]).await.unwrap();
            sent += piece;
            site = site.restarted().await;
            assert_eq!(size(&site, &here, &id).await.unwrap(), sent as u64);
        }
        // A request that was cut off, and a process that was killed, leave bytes that nobody recorded.
        let mut cut_off = open(&site, &here, &id).await;
        cut_off.write(b"never acknowledged").unwrap();
        drop(cut_off);
        assert_eq!(fs::metadata(path(&site, &id)).unwrap().len(), sent as u64 + 18);
        let site = site.restarted().await;
        let mut upload = open(&site, &here, &id).await;
        assert_eq!(upload.written(), sent as u64);
        assert_eq!(fs::metadata(path(&site, &id)).unwrap().len(), sent as u64);
        upload.write(&whole[sent..]).unwrap();
        let digest = Digest::of(algorithm.unwrap_or(Algorithm::Sha256), &whole);
        upload.keep(&digest).await.unwrap();
        assert_eq!(site.read(&here, &digest).await.unwrap(), whole);
    }
}

#[tokio::test]
async fn a_hash_that_cannot_be_taken_up_again_is_computed_again() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"first, ").await.unwrap();
    change(&site, "UPDATE upload SET state = 'abcd'").await;
    let mut upload = open(&site, &here, &id).await;
    upload.write(b"second").unwrap();
    upload.keep(&Digest::sha256(b"first, second")).await.unwrap();
}

#[tokio::test]
async fn a_file_that_lost_bytes_is_no_upload_any_more() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    for lost in [true, false] {
        let id = begin(&site, &here).await;
        append(&site, &here, &id, b"four score").await.unwrap();
        match lost {
            true => fs::remove_file(path(&site, &id)).unwrap(),
            false => fs::File::options().write(true).open(path(&site, &id)).unwrap().set_len(4).unwrap(),
        }
        assert!(is_unknown(site.store.open_upload(&here, ME, &id).await));
        assert!(is_unknown(size(&site, &here, &id).await));
        assert_eq!(site.staged_files(), 0);
    }
}

#[tokio::test]
async fn a_wrong_digest_leaves_nothing() {
    // Invariants 2 and 16
    let (site, here) = (Site::new().await, repository("team/app"));
    for wrong in [Digest::sha256(b"else"), Digest::of(Algorithm::Sha512, b"else")] {
        let id = begin(&site, &here).await;
        append(&site, &here, &id, b"some").await.unwrap();
        let mut upload = open(&site, &here, &id).await;
        upload.write(b"thing").unwrap();
        match upload.keep(&wrong).await {
            Err(KeepError::WrongBytes { expected, actual }) => {
                assert_eq!((expected, actual), (wrong, Digest::of(wrong.algorithm(), b"something")));
            }
            other => panic!("{other:?}"),
        }
        assert!(!site.blob_path(&wrong).exists());
        assert!(!site.store.has_blob(&wrong).await.unwrap());
        assert!(is_unknown(site.store.open_upload(&here, ME, &id).await));
        assert_eq!((site.staged_files(), rows(&site, "SELECT COUNT(*) FROM upload").await), (0, 0));
        assert!(!site.store.has_repository(&here).await.unwrap());
    }
}

#[tokio::test]
async fn a_digest_of_another_algorithm_than_was_said_is_verified_too() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"some").await.unwrap();
    let mut upload = open(&site, &here, &id).await;
    upload.write(b"thing").unwrap();
    let digest = Digest::of(Algorithm::Sha512, b"something");
    upload.keep(&digest).await.unwrap();
    assert_eq!(site.read(&here, &digest).await.unwrap(), b"something");
}

#[tokio::test]
async fn an_upload_has_one_writer() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    let upload = open(&site, &here, &id).await;
    assert!(matches!(site.store.open_upload(&here, ME, &id).await, Err(UploadError::Busy)));
    assert!(matches!(site.store.cancel_upload(&here, ME, &id).await, Err(UploadError::Busy)));
    // To others it is unknown, busy or not.
    assert!(is_unknown(site.store.open_upload(&here, "mallory", &id).await));
    site.clock.advance(UPLOAD_AGE_MAX + SignedDuration::from_secs(1));
    assert_eq!(site.store.expire_uploads().await.unwrap(), 0);
    upload.leave().await.unwrap();
    open(&site, &here, &id).await;
}

#[tokio::test]
async fn an_upload_is_unknown_to_other_repositories_and_other_owners() {
    // Invariant 14
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"secret").await.unwrap();
    let local = Repository { origin: Origin::Local, name: "team/app".parse().unwrap() };
    let guessed: UploadId = "00112233445566778899aabbccddeeff".parse().unwrap();
    for (repository, owner, id) in [
        (&repository("team/other"), ME, &id),
        (&local, ME, &id),
        (&here, "mallory", &id),
        (&here, "", &id),
        (&here, ME, &guessed),
    ] {
        assert!(is_unknown(site.store.open_upload(repository, owner, id).await));
        assert!(is_unknown(site.store.upload_size(repository, owner, id).await));
        assert!(is_unknown(site.store.cancel_upload(repository, owner, id).await));
    }
    assert_eq!(size(&site, &here, &id).await.unwrap(), 6);
}

#[test]
fn ids_are_32_hexadecimal_digits() {
    // Invariant 16
    for wrong in
        ["", "..", "0011", "00112233445566778899AABBCCDDEEFF", "00112233445566778899aabbccddeeff0", "../../etc"]
    {
        assert!(wrong.parse::<UploadId>().is_err(), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_chunk_that_broke_off_is_taken_back_and_no_more_than_that() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"first, ").await.unwrap();
    let mut upload = open(&site, &here, &id).await;
    upload.write(b"rubbish that is longer than what follows").unwrap();
    drop(upload);
    let mut upload = open(&site, &here, &id).await;
    assert_eq!(upload.written(), 7);
    upload.write(b"second").unwrap();
    upload.leave().await.unwrap();
    assert_eq!(size(&site, &here, &id).await.unwrap(), 13);
    let digest = Digest::sha256(b"first, second");
    open(&site, &here, &id).await.keep(&digest).await.unwrap();
    assert_eq!(fs::read(site.blob_path(&digest)).unwrap(), b"first, second");
}

#[tokio::test]
async fn a_cancelled_upload_is_gone() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"never mind").await.unwrap();
    site.store.cancel_upload(&here, ME, &id).await.unwrap();
    assert!(is_unknown(site.store.cancel_upload(&here, ME, &id).await));
    assert!(is_unknown(site.store.open_upload(&here, ME, &id).await));
    assert_eq!(site.staged_files(), 0);
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_expire() {
    // Invariant 17
    let (site, here) = (Site::new().await, repository("team/app"));
    let (old, young) = (begin(&site, &here).await, begin(&site, &here).await);
    append(&site, &here, &old, b"old").await.unwrap();
    site.clock.advance(UPLOAD_AGE_MAX - SignedDuration::from_secs(1));
    append(&site, &here, &young, b"young").await.unwrap();
    assert_eq!(site.store.expire_uploads().await.unwrap(), 0);
    site.clock.advance(SignedDuration::from_secs(1));
    assert_eq!(site.store.expire_uploads().await.unwrap(), 1);
    assert!(is_unknown(size(&site, &here, &old).await));
    assert_eq!(size(&site, &here, &young).await.unwrap(), 5);
    assert_eq!(site.staged_files(), 1);
    // The same at a start.
    site.clock.advance(UPLOAD_AGE_MAX);
    let site = site.restarted().await;
    assert!(is_unknown(size(&site, &here, &young).await));
    assert_eq!(site.staged_files(), 0);
}

#[tokio::test]
async fn uploads_files_without_a_row_are_tidied_and_uploads_are_not() {
    // Invariant 8
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"under way").await.unwrap();
    let orphan: UploadId = "00112233445566778899aabbccddeeff".parse().unwrap();
    fs::write(path(&site, &orphan), b"whose row went first").unwrap();
    fs::write(site.data().join("staging/upload-of-mine"), b"?").unwrap();
    let site = site.restarted().await;
    assert_eq!(site.staged_files(), 1);
    assert_eq!(open(&site, &here, &id).await.written(), 9);
}

#[tokio::test]
async fn uploads_are_bounded_and_one_that_rests_makes_room() {
    // Invariant 17
    let (site, here) = (Site::new().await, repository("team/app"));
    let first = begin(&site, &here).await;
    for number in 1..UPLOADS_MAX {
        let id = begin_from(&site, &here, (number % 8) as u8).await.unwrap();
        append(&site, &here, &id, b"goes on").await.unwrap();
    }
    append(&site, &here, &first, b"goes on").await.unwrap();
    assert!(is_too_many(begin_from(&site, &here, 9).await));
    site.clock.advance(UPLOAD_REST_MAX);
    append(&site, &here, &first, b" and on").await.unwrap();
    begin_from(&site, &here, 9).await.unwrap();
    assert_eq!(size(&site, &here, &first).await.unwrap(), 14);
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM upload").await, UPLOADS_MAX as i64);
}

async fn begin_from(site: &Site, into: &Repository, client: u8) -> Result<UploadId, UploadError> {
    site.store.begin_upload(into, ME, Ipv4Addr::new(192, 0, 2, client).into(), None).await
}

fn is_too_many<T>(outcome: Result<T, UploadError>) -> bool {
    matches!(outcome, Err(UploadError::TooMany))
}

#[tokio::test]
async fn one_client_does_not_hold_all_uploads_and_its_empty_ones_go_first() {
    // Invariant 17
    let (site, here) = (Site::new().await, repository("team/app"));
    let first = begin_from(&site, &here, 1).await.unwrap();
    append(&site, &here, &first, b"bytes").await.unwrap();
    let empty = begin_from(&site, &here, 1).await.unwrap();
    site.clock.advance(SignedDuration::from_secs(1));
    let written_to = begin_from(&site, &here, 1).await.unwrap();
    for _ in 3..UPLOADS_PER_CLIENT_MAX {
        begin_from(&site, &here, 1).await.unwrap();
    }
    assert!(is_too_many(begin_from(&site, &here, 1).await), "none of its own has rested");
    begin_from(&site, &here, 2).await.unwrap();
    let begun = site.store.begin_upload(&here, "another", Ipv4Addr::new(192, 0, 2, 1).into(), None).await;
    begun.unwrap();

    site.clock.advance(UPLOAD_EMPTY_REST_MAX);
    let open = open(&site, &here, &written_to).await;
    begin_from(&site, &here, 1).await.unwrap();
    assert!(is_unknown(size(&site, &here, &empty).await), "the longest untouched without bytes");
    begin_from(&site, &here, 1).await.unwrap();
    drop(open);
    assert_eq!(size(&site, &here, &written_to).await.unwrap(), 0, "one that is written to stays");
    assert_eq!(size(&site, &here, &first).await.unwrap(), 5);
    let others = "SELECT COUNT(*) FROM upload WHERE client <> '192.0.2.1' OR owner <> 'ci'";
    assert_eq!(rows(&site, others).await, 2, "those of others stay");
}

#[tokio::test]
async fn empty_uploads_of_many_clients_make_room_for_another() {
    // Invariant 17
    let (site, here) = (Site::new().await, repository("team/app"));
    for number in 0..UPLOADS_MAX {
        begin_from(&site, &here, (number % 8) as u8).await.unwrap();
    }
    assert!(is_too_many(begin_from(&site, &here, 9).await));
    site.clock.advance(UPLOAD_EMPTY_REST_MAX);
    begin_from(&site, &here, 9).await.unwrap();
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM upload").await, UPLOADS_MAX as i64);
}

#[tokio::test]
async fn a_full_disk_is_told_apart_and_the_upload_goes_on_once_there_is_room() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"first, ").await.unwrap();
    let mut upload = open(&site, &here, &id).await;
    site.faults.fail(Step::Write, 0, Errno::NOSPC.raw_os_error());
    assert!(matches!(upload.write(b"second"), Err(StoreError::Full(_))));
    upload.leave().await.unwrap();
    append(&site, &here, &id, b"second").await.unwrap();
    // So does one whose row finds no room.
    site.faults.fail(Step::Commit, 0, Errno::NOSPC.raw_os_error());
    assert!(matches!(append(&site, &here, &id, b"lost").await, Err(StoreError::Full(_))));
    site.faults.fail(Step::Rename, 0, Errno::NOSPC.raw_os_error());
    let digest = Digest::sha256(b"first, second");
    let full = open(&site, &here, &id).await.keep(&digest).await;
    assert!(matches!(full, Err(KeepError::Store(StoreError::Full(_)))), "{full:?}");
    assert_eq!(site.read(&here, &digest).await, None);
    open(&site, &here, &id).await.keep(&digest).await.unwrap();
    assert_eq!(site.read(&here, &digest).await.unwrap(), b"first, second");
}

#[tokio::test]
async fn a_piece_that_could_not_be_made_durable_was_never_there_and_those_before_it_are() {
    // Invariants 2 and 6
    let here = repository("team/app");
    for (step, passes) in
        [(Step::SyncFile, 0), (Step::SyncFile, 1), (Step::SyncFolder, 0), (Step::Commit, 0), (Step::Commit, 1)]
    {
        let site = Site::new().await;
        let id = begin(&site, &here).await;
        site.faults.fail(step, passes, Errno::IO.raw_os_error());
        let mut acknowledged = Vec::new();
        for piece in [b"first, ".as_slice(), b"second"] {
            let Ok(mut upload) = site.store.open_upload(&here, ME, &id).await else { break };
            if upload.write(piece).is_err() || upload.leave().await.is_err() {
                break;
            }
            acknowledged.extend_from_slice(piece);
        }
        assert_eq!(acknowledged.len(), 7 * passes as usize, "{step:?} {passes}: the fault did not strike");
        assert!(matches!(
            site.store.begin_upload(&here, ME, CLIENT, None).await,
            Err(UploadError::Store(StoreError::ReadOnly))
        ));
        let site = site.restarted().await;
        let mut upload = open(&site, &here, &id).await;
        assert_eq!(upload.written(), acknowledged.len() as u64, "{step:?} {passes}");
        upload.write(b" and last").unwrap();
        acknowledged.extend_from_slice(b" and last");
        let digest = Digest::sha256(&acknowledged);
        upload.keep(&digest).await.unwrap();
        assert_eq!(site.read(&here, &digest).await.unwrap(), acknowledged);
    }
}

#[tokio::test]
async fn an_upload_that_could_not_be_made_durable_as_a_blob_is_not_visible() {
    // Invariants 2 and 6
    let here = repository("team/app");
    for step in [Step::SyncFile, Step::Rename, Step::SyncFolder, Step::Commit] {
        let site = Site::new().await;
        let id = begin(&site, &here).await;
        append(&site, &here, &id, b"a lay").await.unwrap();
        let mut upload = open(&site, &here, &id).await;
        upload.write(b"er").unwrap();
        let digest = Digest::sha256(b"a layer");
        site.faults.fail(step, 0, Errno::IO.raw_os_error());
        upload.keep(&digest).await.unwrap_err();
        assert_eq!(site.read(&here, &digest).await, None, "{step:?}");
        if matches!(step, Step::SyncFile | Step::Rename) {
            assert!(!site.blob_path(&digest).exists(), "{step:?}: it had its name before it was durable");
        }
        let site = site.restarted().await;
        assert_eq!(site.read(&here, &digest).await, None, "{step:?}");
        match site.store.open_upload(&here, ME, &id).await {
            // Also where its file had a blob's name already, which means nothing without a row.
            Ok(upload) => assert_eq!(upload.written(), 5, "{step:?}: what was acknowledged before is there"),
            Err(why) => panic!("{step:?}: {why}"),
        }
        site.keep(&here, b"a layer").await;
        assert_eq!(site.read(&here, &digest).await.unwrap(), b"a layer");
    }
}

/// As if the process had been killed between the renaming of the file and the commit.
fn kill_while_finishing(site: &Site, id: &UploadId, digest: &Digest) {
    fs::rename(path(site, id), site.blob_path(digest)).unwrap();
}

#[tokio::test]
async fn an_upload_that_was_being_finished_in_a_crash_goes_on_from_what_was_acknowledged() {
    // Invariants 2 and 6
    let here = repository("team/app");
    for (acknowledged, rest) in [("a whole layer", ""), ("half ", "a layer"), ("half", " ")] {
        let site = Site::new().await;
        let id = begin(&site, &here).await;
        append(&site, &here, &id, acknowledged.as_bytes()).await.unwrap();
        let whole = format!("{acknowledged}{rest}");
        let digest = Digest::sha256(whole.as_bytes());
        let file = fs::File::options().write(true).open(path(&site, &id)).unwrap();
        file.write_all_at(rest.as_bytes(), acknowledged.len() as u64).unwrap();
        kill_while_finishing(&site, &id, &digest);
        // Another file that no row knows, as long and newer, is not taken for it.
        let other = Digest::sha256(b"somebody else's");
        fs::write(site.blob_path(&other), b"somebody else's").unwrap();
        let site = site.restarted().await;
        assert_eq!(size(&site, &here, &id).await.unwrap(), acknowledged.len() as u64);
        assert_eq!(site.read(&here, &digest).await, None, "it was not acknowledged");
        let mut upload = open(&site, &here, &id).await;
        upload.write(rest.as_bytes()).unwrap();
        upload.keep(&digest).await.unwrap();
        assert_eq!(site.read(&here, &digest).await.unwrap(), whole.as_bytes());
        assert_eq!(site.staged_files(), 0);
    }
}

#[tokio::test]
async fn an_upload_never_goes_on_from_what_somebody_else_has_sent() {
    // Invariant 14
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"mine").await.unwrap();
    fs::remove_file(path(&site, &id)).unwrap();
    let other = Digest::sha256(b"somebody else's");
    fs::write(site.blob_path(&other), b"somebody else's").unwrap();
    assert!(is_unknown(size(&site, &here, &id).await), "its state is no other than that of the upload itself");
    assert!(is_unknown(site.store.open_upload(&here, ME, &id).await));
    assert_eq!((site.staged_files(), rows(&site, "SELECT COUNT(*) FROM upload").await), (0, 0));
}

#[tokio::test]
async fn a_finish_whose_commit_failed_can_be_asked_for_again() {
    // Invariant 6
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    append(&site, &here, &id, b"a layer").await.unwrap();
    let digest = Digest::sha256(b"a layer");
    site.faults.fail(Step::Commit, 0, Errno::NOSPC.raw_os_error());
    let full = open(&site, &here, &id).await.keep(&digest).await;
    assert!(matches!(full, Err(KeepError::Store(StoreError::Full(_)))), "{full:?}");
    assert_eq!(size(&site, &here, &id).await.unwrap(), 7);
    open(&site, &here, &id).await.keep(&digest).await.unwrap();
    assert_eq!(site.read(&here, &digest).await.unwrap(), b"a layer");
}

#[tokio::test]
async fn a_client_that_gives_up_leaves_no_half() {
    // Invariants 2 and 6
    let (site, here) = (Site::new().await, repository("team/app"));
    for number in 0..20_u32 {
        let (id, content) = (begin(&site, &here).await, number.to_string());
        let mut upload = open(&site, &here, &id).await;
        upload.write(content.as_bytes()).unwrap();
        let digest = Digest::sha256(content.as_bytes());
        {
            let given_up = upload.keep(&digest);
            tokio::pin!(given_up);
            tokio::select! {
                biased;
                _ = &mut given_up => {}
                () = tokio::task::yield_now() => {}
            }
        }
        // It goes on all the same; whoever opens it meanwhile is told that it is written to.
        loop {
            match site.store.open_upload(&here, ME, &id).await {
                Err(UploadError::Busy) => tokio::task::yield_now().await,
                outcome => break assert!(is_unknown(outcome)),
            }
        }
        assert_eq!(site.read(&here, &digest).await.unwrap(), content.as_bytes());
    }
    assert_eq!(site.staged_files(), 0);
}

#[tokio::test]
async fn an_upload_under_way_ends_when_another_fsync_fails() {
    // Invariant 6
    let (site, here) = (Site::new().await, repository("team/app"));
    let id = begin(&site, &here).await;
    let mut upload = open(&site, &here, &id).await;
    site.faults.fail(Step::SyncFile, 0, Errno::IO.raw_os_error());
    keep(&site.store, &here, b"fails").await.unwrap_err();
    assert!(matches!(upload.write(b"more"), Err(StoreError::ReadOnly)));
    assert!(matches!(upload.keep(&Digest::sha256(b"")).await, Err(KeepError::Store(StoreError::ReadOnly))));
}
