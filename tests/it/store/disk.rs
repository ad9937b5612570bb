//! The data folder: who owns it, what a disk may refuse, and what is found in it at the start.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use sealock::files::Stamp;
use sealock::store::{STAGED_BYTES_MAX, STAGED_FILES_MAX, Step};

use super::*;

#[tokio::test]
async fn a_folder_has_one_owner_who_is_named() {
    let site = Site::new().await;
    let Err(StoreError::InUse { pid }) = Store::open(&site.data(), Clock::system()).await else {
        panic!("two processes share a folder");
    };
    assert!(pid.starts_with(&format!("{} (", std::process::id())), "{pid}");
    assert_eq!(fs::read_to_string(site.data().join("lock")).unwrap().trim(), pid);
    site.restarted().await;
}

#[tokio::test]
async fn an_older_program_refuses_a_newer_catalog() {
    let site = Site::new().await;
    site.store.close().await;
    let Site { folder, store, .. } = site;
    drop(store);
    let data = folder.path().join("data");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("catalog.sqlite"));
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9999, 'from the future', TRUE, x'00', 0)";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let Err(why) = Store::open(&data, Clock::system()).await else { panic!("an older program took it") };
    assert!(matches!(why, StoreError::Newer), "{why:?}");
    assert!(why.hint().is_some());
}

#[tokio::test]
async fn a_file_without_a_row_is_harmless_and_not_kept() {
    // Invariant 2
    let (site, here) = (Site::new().await, repository("team/app"));
    let digest = Digest::sha256(b"what it should be");
    fs::write(site.blob_path(&digest), b"left by a crash").unwrap();
    let site = site.restarted().await;
    assert!(!site.store.has_blob(&digest).await.unwrap());
    site.keep(&here, b"what it should be").await;
    assert_eq!(site.read(&here, &digest).await.unwrap(), b"what it should be");
}

#[tokio::test]
async fn lost_files_are_not_kept_and_come_back_when_filled_again() {
    // Invariants 2 and 5
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = whole_image(&site, &here, "old").await;
    let new = whole_image(&site, &here, "new").await;
    let outer = index(&[child(&new, "linux")]);
    site.keep_manifest(&here, &outer).await;
    site.point(&here, "1", &old.digest).await;
    site.point(&here, "1", &outer.digest).await;
    assert_eq!(site.resolve(&here, "1").await, (outer.digest, Some(outer.digest)));

    let layer = Digest::sha256(b"new layer");
    fs::remove_file(site.blob_path(&layer)).unwrap();
    let site = site.restarted().await;
    site.store.check_files().await.unwrap();
    assert_eq!(site.read(&here, &layer).await, None);
    assert!(!site.store.has_blob(&layer).await.unwrap());
    assert!(!site.is_complete(&here, &new.digest).await);
    assert!(!site.is_complete(&here, &outer.digest).await);
    assert_eq!(site.resolve(&here, "1").await, (outer.digest, Some(old.digest)));
    assert_eq!(site.store.missing(&here, &outer.digest).await.unwrap()[0].digest, layer);

    site.keep(&here, b"new layer").await;
    assert_eq!(site.read(&here, &layer).await.unwrap(), b"new layer");
    assert_eq!(site.resolve(&here, "1").await, (outer.digest, Some(outer.digest)));
}

#[tokio::test]
async fn a_reader_that_finds_the_file_gone_or_short_sees_nothing_kept() {
    // Invariant 3
    let (site, here) = (Site::new().await, repository("team/app"));
    let (gone, short) = (site.keep(&here, b"gone").await, site.keep(&here, b"shortened").await);
    fs::remove_file(site.blob_path(&gone)).unwrap();
    File::options().write(true).open(site.blob_path(&short)).unwrap().set_len(3).unwrap();
    for digest in [gone, short] {
        assert_eq!(site.read(&here, &digest).await, None);
        assert!(!site.store.has_blob(&digest).await.unwrap());
        assert!(!site.store.grant_blob(&here, &digest).await.unwrap());
    }
    assert_eq!(site.store.totals().await.unwrap().blobs, 0);
    site.keep(&here, b"shortened").await;
    assert_eq!(site.read(&here, &short).await.unwrap(), b"shortened");
}

#[tokio::test]
async fn a_flipped_byte_of_a_manifest_is_never_served() {
    // Invariants 2 and 3
    let (site, here) = (Site::new().await, repository("team/app"));
    let old = whole_image(&site, &here, "old").await;
    let new = whole_image(&site, &here, "new").await;
    site.point(&here, "1", &old.digest).await;
    site.point(&here, "1", &new.digest).await;
    let mut bytes = new.bytes.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(site.blob_path(&new.digest), bytes).unwrap();
    let site = site.restarted().await;
    assert!(site.store.manifest(&here, &new.digest).await.unwrap().is_none());
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(old.digest)));
    assert!(site.keep_manifest(&here, &new).await.complete);
    assert_eq!(site.resolve(&here, "1").await, (new.digest, Some(new.digest)));
}

#[tokio::test]
async fn nothing_in_staging_stops_the_start() {
    let site = Site::new().await;
    let staging = site.data().join("staging");
    fs::write(staging.join("sha256-0000"), b"not a digest").unwrap();
    fs::write(site.staged_path(&Digest::sha256(b"m")).with_extension("manifest-0"), b"half a manifest").unwrap();
    fs::create_dir(staging.join("a folder")).unwrap();
    symlink("/nowhere", site.staged_path(&Digest::sha256(b"a link"))).unwrap();
    fs::write(site.staged_path(&Digest::sha256(b"resumable")), b"resum").unwrap();
    let site = site.restarted().await;
    let mut left: Vec<_> = fs::read_dir(&staging).unwrap().map(|entry| entry.unwrap().path()).collect();
    left.sort();
    assert_eq!(left, [staging.join("a folder"), site.staged_path(&Digest::sha256(b"resumable"))]);
}

#[tokio::test]
async fn unfinished_fills_are_bounded_and_the_oldest_go_first() {
    // Invariant 17
    let site = Site::new().await;
    let age = |seed: &[u8], size: u64, hours: u64| {
        let path = site.staged_path(&Digest::sha256(seed));
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs((1_000 - hours) * 3_600)).unwrap();
        path
    };
    let oldest = age(b"oldest", 1, 30);
    let large = age(b"large", STAGED_BYTES_MAX, 20);
    let newest = age(b"newest", 10, 10);
    let site = site.restarted().await;
    assert_eq!((oldest.exists(), large.exists(), newest.exists()), (false, false, true));
    for number in 0..STAGED_FILES_MAX {
        fs::write(site.staged_path(&Digest::sha256(&number.to_le_bytes())), b"").unwrap();
    }
    let site = site.restarted().await;
    assert_eq!((newest.exists(), site.staged_files()), (false, STAGED_FILES_MAX));
}

#[tokio::test]
async fn a_blob_that_could_not_be_made_durable_is_not_visible_and_ends_all_writing() {
    // Invariants 2 and 6
    for step in [Step::SyncFile, Step::SyncFolder, Step::Commit] {
        let (site, here) = (Site::new().await, repository("team/app"));
        let before = whole_image(&site, &here, "before").await;
        site.faults.fail(step, 0, Errno::IO.raw_os_error());
        let why = keep(&site.store, &here, b"a layer").await.unwrap_err();
        assert!(!matches!(why, KeepError::Store(StoreError::ReadOnly)), "{step:?}: the first error names the cause");
        let digest = Digest::sha256(b"a layer");
        assert_eq!(site.read(&here, &digest).await, None, "{step:?}");
        assert_eq!(site.staged_files(), 0, "{step:?}: the page cache may show what the disk does not have");
        if step == Step::SyncFile {
            assert!(!site.blob_path(&digest).exists(), "it had its name before it was durable");
        }

        let read_only = |why: &StoreError| matches!(why, StoreError::ReadOnly);
        assert!(read_only(&site.store.check_writable().unwrap_err()));
        assert!(read_only(&site.store.stage(&digest).unwrap_err()));
        assert!(read_only(&site.store.point_tag(&here, &tag("1"), &digest, TagSource::Filled).await.unwrap_err()));
        assert!(read_only(&site.store.keep_manifest(&here, &image(b"c", &[])).await.unwrap_err()));
        assert!(read_only(&site.store.note_wanted("a", "b", [10, 0, 0, 7].into()).await.unwrap_err()));
        assert!(site.is_complete(&here, &before.digest).await);
        assert!(site.read(&here, &Digest::sha256(b"before layer")).await.is_some());

        let site = site.restarted().await;
        site.keep(&here, b"a layer").await;
        assert!(site.read(&here, &digest).await.is_some());
    }
}

#[tokio::test]
async fn nothing_is_appended_to_a_log_that_an_earlier_run_left() {
    // Invariant 6: that run may have ended because the log could not be synced.
    let (site, here) = (Site::new().await, repository("team/app"));
    whole_image(&site, &here, "before").await;
    let copy = tempfile::tempdir().unwrap();
    let files = ["catalog.sqlite", "catalog.sqlite-wal"];
    let stamps = || files.map(|name| Stamp::of(&site.data().join(name)));
    // The two of one moment: the log is folded in now and then.
    loop {
        let before = stamps();
        for name in files {
            fs::copy(site.data().join(name), copy.path().join(name)).unwrap();
        }
        if stamps() == before {
            break;
        }
    }
    let log = copy.path().join("catalog.sqlite-wal");
    // Magic, version, page size, checkpoints, and two salts that each new log has of its own (SQLite, "WAL Format").
    let header = |log: &[u8]| log.get(..24).map(<[u8]>::to_vec);
    let before = header(&fs::read(&log).unwrap()).expect("there is nothing to fold in");
    let store = Store::open(copy.path(), Clock::system()).await.unwrap();
    assert_ne!(header(&fs::read(&log).unwrap()), Some(before));
    assert_eq!(store.totals().await.unwrap().manifests, 1);
    store.close().await;
}

#[tokio::test]
async fn a_fill_under_way_ends_when_another_fsync_fails() {
    // Invariant 6
    let (site, here) = (Site::new().await, repository("team/app"));
    let mut under_way = site.store.stage(&Digest::sha256(b"under way")).unwrap();
    under_way.write(b"under").unwrap();
    site.faults.fail(Step::SyncFile, 0, Errno::IO.raw_os_error());
    keep(&site.store, &here, b"fails").await.unwrap_err();
    assert!(matches!(under_way.write(b" way"), Err(StoreError::ReadOnly)));
}

#[tokio::test]
async fn a_manifest_that_could_not_be_made_durable_is_not_visible() {
    // Invariants 2 and 6
    for step in [Step::Write, Step::SyncFile, Step::Rename, Step::SyncFolder, Step::Commit] {
        let (site, here) = (Site::new().await, repository("team/app"));
        let manifest = image(b"config", &[]);
        site.faults.fail(step, 0, Errno::IO.raw_os_error());
        site.store.keep_manifest(&here, &manifest).await.unwrap_err();
        assert!(site.store.manifest(&here, &manifest.digest).await.unwrap().is_none(), "{step:?}");
        assert_eq!(site.staged_files(), 0, "{step:?}");
        let site = site.restarted().await;
        site.keep_manifest(&here, &manifest).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_told_apart_and_the_fill_goes_on_once_there_is_room() {
    let (site, here) = (Site::new().await, repository("team/app"));
    for errno in [Errno::NOSPC, Errno::DQUOT] {
        let digest = Digest::sha256(b"first half, second half");
        let mut staged = site.store.stage(&digest).unwrap();
        staged.write(b"first half, ").unwrap();
        site.faults.fail(Step::Write, 0, errno.raw_os_error());
        let why = staged.write(b"second half").unwrap_err();
        assert!(matches!(why, StoreError::Full(_)), "{why:?}");
        assert_eq!(staged.written(), 12);
        // What a short write left behind does not count.
        staged.file().write_all_at(b"torn tail beyond the end", 12).unwrap();
        staged.write(b"second half").unwrap();
        site.store.keep_blob(&here, &staged.keep().unwrap()).await.unwrap();
        assert_eq!(fs::read(site.blob_path(&digest)).unwrap(), b"first half, second half");
    }
}

#[tokio::test]
async fn a_change_whose_commit_finds_the_disk_full_is_not_made_and_can_be_made_later() {
    // Invariant 6
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = whole_image(&site, &here, "app").await;
    site.faults.fail(Step::Commit, 0, Errno::NOSPC.raw_os_error());
    let full = site.store.point_tag(&here, &tag("1"), &manifest.digest, TagSource::Filled).await;
    assert!(matches!(full, Err(StoreError::Full(_))), "{full:?}");
    assert!(site.store.tag(&here, &tag("1")).await.unwrap().is_none());
    site.point(&here, "1", &manifest.digest).await;
    assert_eq!(site.resolve(&here, "1").await.1, Some(manifest.digest));
}

#[tokio::test]
async fn changes_whose_shared_commit_fails_are_made_one_by_one() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = whole_image(&site, &here, "app").await;
    // On one thread all of them wait before the writer's turn comes, so they share a commit.
    site.faults.fail(Step::Commit, 0, Errno::NOSPC.raw_os_error());
    let changes = (0..20).map(|number| {
        let (store, here, digest) = (site.store.clone(), here.clone(), manifest.digest);
        tokio::spawn(async move {
            store.point_tag(&here, &tag(&number.to_string()), &digest, TagSource::Filled).await.unwrap();
        })
    });
    for change in changes.collect::<Vec<_>>() {
        change.await.unwrap();
    }
    assert_eq!(site.store.tags(&here, None, 100).await.unwrap().len(), 20);
}
