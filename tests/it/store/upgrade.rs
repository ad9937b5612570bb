//! A catalog of an older version: what it lacks is made up for once, and nothing is lost meanwhile.

use std::borrow::Cow;
use std::time::Duration;

use sealock::keep::{Keep, KeepError, KeepSettings};
use sealock::size::Span;
use sealock::store::{CollectRules, Origins, Step};
use sqlx::{ConnectOptions, SqliteConnection};

use super::*;

const SUBJECT: &[u8] = b"a subject";
const KIND: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// A data folder whose catalog has only the migrations up to `version`.
async fn of_version(version: i64) -> (TempDir, SqliteConnection) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for algorithm in Algorithm::ALL {
        fs::create_dir_all(data.join("blobs").join(algorithm.as_str())).unwrap();
    }
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("catalog.sqlite"));
    let mut connection = options.create_if_missing(true).connect().await.unwrap();
    let mut migrator = sqlx::migrate!("src/store/migrations");
    let old = migrator.migrations.iter().filter(|migration| migration.version <= version).cloned().collect();
    migrator.migrations = Cow::Owned(old);
    migrator.run(&mut connection).await.unwrap();
    (folder, connection)
}

/// Puts content where it lies when it is kept.
fn place(folder: &TempDir, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    fs::write(folder.path().join("data/blobs/sha256").join(digest.hex()), bytes).unwrap();
    digest
}

async fn opened(folder: TempDir, faults: Faults) -> Site {
    let clock = Clock::wound("2026-03-01T12:00:00Z".parse().unwrap());
    let store = Store::open_faulty(&folder.path().join("data"), clock.clone(), faults.clone()).await.unwrap();
    Site { folder, clock, faults, store }
}

/// An artifact of one blob as it was recorded once: without what it names and what it refers to.
async fn old_artifact(folder: &TempDir, c: &mut SqliteConnection, number: usize) -> (Digest, Digest) {
    let bytes = format!("blob {number}");
    let blob = place(folder, bytes.as_bytes());
    let artifact = json!({
        "mediaType": KIND,
        "artifactType": "application/x.sbom",
        "annotations": {"number": number.to_string()},
        "blobs": [{"mediaType": "a/b", "digest": blob.to_string(), "size": bytes.len()}],
        "subject": {"mediaType": MediaType::OCI_MANIFEST, "digest": Digest::sha256(SUBJECT).to_string(), "size": 1},
    });
    let artifact = artifact.to_string();
    let manifest = place(folder, artifact.as_bytes());
    let sql = "INSERT INTO blob (digest, size, kept_at, used_at) VALUES ($1, $2, 0, 0)";
    sqlx::query(sql).bind(blob.to_string()).bind(bytes.len() as i64).execute(&mut *c).await.unwrap();
    let sql = "INSERT INTO manifest (digest, media_type, size, annotations, complete, kept_at, used_at)
        VALUES ($1, $2, $3, '{}', TRUE, 0, 0)";
    let row = sqlx::query(sql).bind(manifest.to_string()).bind(KIND).bind(artifact.len() as i64);
    row.execute(&mut *c).await.unwrap();
    for (sql, digest) in [
        ("INSERT INTO blob_grant (repository, digest) VALUES (1, $1)", blob),
        ("INSERT INTO manifest_grant (repository, digest) VALUES (1, $1)", manifest),
    ] {
        sqlx::query(sql).bind(digest.to_string()).execute(&mut *c).await.unwrap();
    }
    (manifest, blob)
}

/// A folder of so many old artifacts, in the repository `team/app` of this site.
async fn old_folder(artifacts: usize) -> (TempDir, Vec<(Digest, Digest)>) {
    let (folder, mut c) = of_version(2).await;
    sqlx::query("INSERT INTO repository (id, origin, name) VALUES (1, '', 'team/app')").execute(&mut c).await.unwrap();
    let mut old = Vec::new();
    for number in 0..artifacts {
        old.push(old_artifact(&folder, &mut c, number).await);
    }
    sqlx::Connection::close(c).await.unwrap();
    (folder, old)
}

fn here() -> Repository {
    Repository { origin: Origin::Local, name: "team/app".parse().unwrap() }
}

fn jobs(site: &Site) -> Keep {
    let settings = KeepSettings { grace: Span(Duration::ZERO), ..KeepSettings::default() };
    Keep::new(site.store.clone(), settings, site.clock.clone())
}

fn rules(site: &Site) -> CollectRules {
    CollectRules { history: 2, keep_untagged: true, since: site.clock.now(), open: Origins::default() }
}

#[tokio::test]
async fn what_old_manifests_of_unknown_types_name_is_not_collected() {
    // Invariant 8
    let (folder, old) = old_folder(40).await;
    let site = opened(folder, Faults::default()).await;
    let done = jobs(&site).collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs, done.files), (0, 0, 0), "{:?}", done.lines);
    for (manifest, blob) in &old {
        assert!(site.read(&here(), blob).await.is_some());
        assert!(site.store.manifest(&here(), manifest).await.unwrap().is_some());
    }
    // They are listed for what they refer to, and read once.
    let subject = Digest::sha256(SUBJECT);
    let listed = site.store.referrers(&here(), &subject, Some("application/x.sbom"), None).await.unwrap();
    assert_eq!(listed.descriptors.len(), old.len());
    assert!(listed.descriptors.iter().all(|one| one.annotations.contains_key("number")));
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM reread").await, 0);
    let site = site.restarted().await;
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM part WHERE kind = 'named'").await, old.len() as i64);
}

#[tokio::test]
async fn nothing_is_collected_before_old_manifests_were_read_and_a_lost_one_does_not_matter() {
    // Invariants 2 and 8
    let (folder, old) = old_folder(3).await;
    let [(lost, alone), (kept, blob), ..] = old[..] else { panic!("three artifacts") };
    fs::write(folder.path().join("data/blobs/sha256").join(lost.hex()), b"other bytes").unwrap();
    let faults = Faults::default();
    // More than all that is tried.
    for _ in 0..64 {
        faults.fail(Step::Commit, 0, rustix::io::Errno::NOSPC.raw_os_error());
    }
    let site = opened(folder, faults).await;
    let before = rows(&site, "SELECT COUNT(*) FROM blob").await;
    assert!(matches!(jobs(&site).collect(false).await, Err(KeepError::Store(StoreError::Full(_)))));
    assert!(site.store.garbage(&rules(&site)).await.is_err(), "it is not even looked for");
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM blob").await, before);

    let Site { folder, store, .. } = site;
    store.close().await;
    drop(store);
    let site = opened(folder, Faults::default()).await;
    let done = jobs(&site).collect(false).await.unwrap();
    assert_eq!((done.manifests, done.blobs), (0, 1), "{:?}", done.lines);
    assert!(site.store.manifest(&here(), &lost).await.unwrap().is_none());
    assert!(site.read(&here(), &alone).await.is_none(), "nobody names it any more");
    assert!(site.store.manifest(&here(), &kept).await.unwrap().is_some() && site.read(&here(), &blob).await.is_some());
}
