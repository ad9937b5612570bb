//! What the store promises, through its front door.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail the test")]

mod ages;
mod completeness;
mod content;
mod crash;
mod crash_push;
mod disk;
mod erasing;
mod evict;
mod full;
mod referrers;
mod reports;
mod retire;
mod scrub;
mod sha512;
mod sound;
mod sweep;
mod tags;
mod upgrade;
mod uploads;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use sealock::clock::Clock;
use sealock::gate::{Gate, GateSettings, Mode};
use sealock::keep::{Keep, KeepSettings};
use sealock::names::{Origin, Repository};
use sealock::oci::{Algorithm, Digest, Manifest, MediaType, Tag};
use sealock::store::{Faults, KeepError, KeptBlob, KeptManifest, Store, StoreError, TagSource};
use sealock::upstream::{Upstream, UpstreamSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where uploads come from.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A store in a folder of its own, with a hand-wound clock.
struct Site {
    folder: TempDir,
    clock: Clock,
    faults: Faults,
    store: Store,
}

impl Site {
    async fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap()).await
    }

    /// On a file system that fsyncs in no time, where there is one: for tests of many writes.
    async fn in_memory() -> Self {
        Self::within(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()).await
    }

    async fn within(folder: TempDir) -> Self {
        let faults = Faults::default();
        let clock = Clock::wound("2026-03-01T12:00:00Z".parse().unwrap());
        let store = Store::open_faulty(&folder.path().join("data"), clock.clone(), faults.clone()).await.unwrap();
        store.start_is_over().await;
        Self { folder, clock, faults, store }
    }

    /// Closes and opens it again.
    async fn restarted(self) -> Self {
        let Self { folder, clock, faults, store } = self;
        store.close().await;
        drop(store);
        let store = Store::open_faulty(&folder.path().join("data"), clock.clone(), faults.clone()).await.unwrap();
        store.start_is_over().await;
        Self { folder, clock, faults, store }
    }

    /// The jobs, beside an upstream `far.test` that is never reached, and a gate that stands so.
    fn jobs_at(&self, settings: KeepSettings, mode: Mode) -> Keep {
        let folder = self.folder.path().join(format!("gate-{}", fastrand::u64(..)));
        fs::create_dir_all(&folder).unwrap();
        let gate = GateSettings { mode, ..GateSettings::default() };
        let gate = Gate::load(&gate, &folder, self.clock.clone()).unwrap();
        let far = Upstream::new("far", &UpstreamSettings::for_host("far.test"), &gate, &self.clock).unwrap();
        Keep::with_upstreams(self.store.clone(), settings, self.clock.clone(), gate, [Arc::new(far)])
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.data().join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    fn staged_path(&self, digest: &Digest) -> PathBuf {
        self.data().join("staging").join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    fn staged_files(&self) -> usize {
        fs::read_dir(self.data().join("staging")).unwrap().count()
    }

    async fn keep(&self, repository: &Repository, bytes: &[u8]) -> Digest {
        keep(&self.store, repository, bytes).await.unwrap().digest
    }

    async fn keep_manifest(&self, repository: &Repository, manifest: &Manifest) -> Arc<KeptManifest> {
        self.store.keep_manifest(repository, manifest).await.unwrap()
    }

    async fn read(&self, repository: &Repository, digest: &Digest) -> Option<Vec<u8>> {
        self.store.blob(repository, digest).await.unwrap().map(|blob| bytes(&blob))
    }

    async fn is_complete(&self, repository: &Repository, digest: &Digest) -> bool {
        self.store.manifest(repository, digest).await.unwrap().expect("a kept manifest").complete
    }

    async fn point(&self, repository: &Repository, name: &str, to: &Digest) {
        self.store.point_tag(repository, &tag(name), to, TagSource::Filled).await.unwrap();
    }

    /// What the tag names, and what it can be served with.
    async fn resolve(&self, repository: &Repository, name: &str) -> (Digest, Option<Digest>) {
        let record = self.store.tag(repository, &tag(name)).await.unwrap().expect("a tag");
        (record.digest, record.newest_complete)
    }
}

/// What a query counts in the catalog, read past the store.
async fn rows(site: &Site, sql: &'static str) -> i64 {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(site.data().join("catalog.sqlite"));
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

/// Changes the catalog past the store.
async fn change(site: &Site, sql: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(site.data().join("catalog.sqlite"));
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    sqlx::query(sql).execute(&mut connection).await.unwrap();
}

/// As a fill does it.
async fn keep(store: &Store, repository: &Repository, bytes: &[u8]) -> Result<KeptBlob, KeepError> {
    let mut staged = store.stage(&Digest::sha256(bytes))?;
    staged.write(bytes)?;
    let kept = staged.keep()?;
    store.keep_blob(repository, &kept).await?;
    Ok(kept)
}

fn bytes(blob: &KeptBlob) -> Vec<u8> {
    let mut bytes = vec![0; blob.size as usize];
    blob.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn repository(name: &str) -> Repository {
    Repository { origin: Origin::Upstream("far.test".into()), name: name.parse().unwrap() }
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn parse(value: Value, media_type: &str) -> Manifest {
    let media_type = MediaType::parse(media_type).unwrap();
    Manifest::parse(value.to_string().into(), media_type, Algorithm::Sha256).unwrap()
}

fn descriptor(bytes: &[u8]) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": Digest::sha256(bytes).to_string(),
        "size": bytes.len(),
    })
}

fn image_json(config: &[u8], layers: &[&[u8]]) -> Value {
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(layer)).collect();
    json!({"schemaVersion": 2, "config": descriptor(config), "layers": layers})
}

fn image(config: &[u8], layers: &[&[u8]]) -> Manifest {
    parse(image_json(config, layers), MediaType::OCI_MANIFEST)
}

fn child(manifest: &Manifest, os: &str) -> Value {
    json!({
        "mediaType": manifest.media_type.as_str(),
        "digest": manifest.digest.to_string(),
        "size": manifest.size(),
        "platform": {"os": os, "architecture": if os == "unknown" { "unknown" } else { "amd64" }},
    })
}

fn index(children: &[Value]) -> Manifest {
    parse(json!({"schemaVersion": 2, "manifests": children}), MediaType::OCI_INDEX)
}

/// An image whose every byte is kept in `repository`.
async fn whole_image(site: &Site, repository: &Repository, seed: &str) -> Manifest {
    let (config, layer) = (format!("{seed} config"), format!("{seed} layer"));
    site.keep(repository, config.as_bytes()).await;
    site.keep(repository, layer.as_bytes()).await;
    let manifest = image(config.as_bytes(), &[layer.as_bytes()]);
    assert!(site.keep_manifest(repository, &manifest).await.complete);
    manifest
}

/// An image of which nothing but the manifest is kept.
async fn hollow_image(site: &Site, repository: &Repository, seed: &str) -> Manifest {
    let manifest = image(format!("{seed} config").as_bytes(), &[format!("{seed} layer").as_bytes()]);
    assert!(!site.keep_manifest(repository, &manifest).await.complete);
    manifest
}
