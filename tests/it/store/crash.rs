//! Killed at any instant: what was acknowledged is there, and what is there is right.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

/// Names the data folder of the process that is to be killed.
pub const DATA: &str = "SEALOCK_TEST_CRASH_DATA";
/// How often it is killed.
pub const KILLS: u64 = 25;

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_at_any_instant() {
    // Invariants 2, 5 and 6
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut acknowledged: Vec<String> = Vec::new();
    for _ in 0..KILLS {
        let before = acknowledged.len();
        let (lines, spins) = (random.usize(0..40), random.u32(0..200_000));
        run_and_kill("crash::keeps_images_until_it_is_killed", &data, lines, spins, &mut acknowledged);
        let store = Store::open(&data, Clock::system()).await.unwrap();
        verify(&store, &data, &acknowledged[before..]).await;
        store.close().await;
    }
    let store = Store::open(&data, Clock::system()).await.unwrap();
    verify(&store, &data, &acknowledged).await;
    assert!(acknowledged.len() > KILLS as usize, "it was killed before it did anything");
}

/// Starts a process that runs `test` here, and kills it a while after it acknowledged `lines` steps.
pub fn run_and_kill(test: &str, data: &Path, lines: usize, spins: u32, acknowledged: &mut Vec<String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("store::{test}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(DATA, data)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut output =
        output.lines().map_while(Result::ok).filter_map(|line| Some(line.split_once("kept ")?.1.to_owned()));
    acknowledged.extend(output.by_ref().take(lines + 1));
    for _ in 0..spins {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    acknowledged.extend(output);
}

/// Each step is told once it is acknowledged: `blob SEED`, `image SEED`, `tag SEED`.
#[tokio::test]
async fn keeps_images_until_it_is_killed() {
    let Some(data) = std::env::var_os(DATA) else { return };
    let (store, here) = (Store::open(Path::new(&data), Clock::system()).await.unwrap(), repository("team/app"));
    let tell = |line: String| writeln!(std::io::stdout(), "kept {line}").unwrap();
    loop {
        let seed = fastrand::u32(..).to_string();
        for bytes in [config(&seed), layer(&seed)] {
            keep(&store, &here, &bytes).await.unwrap();
        }
        tell(format!("blob {seed}"));
        let manifest = store.keep_manifest(&here, &manifest(&seed)).await.unwrap();
        assert!(manifest.complete);
        tell(format!("image {seed}"));
        store.point_tag(&here, &tag("latest"), &manifest.manifest.digest, TagSource::Filled).await.unwrap();
        store.point_tag(&here, &tag(&seed), &manifest.manifest.digest, TagSource::Filled).await.unwrap();
        tell(format!("tag {seed}"));
    }
}

async fn verify(store: &Store, data: &Path, acknowledged: &[String]) {
    let here = repository("team/app");
    for line in acknowledged {
        let (step, seed) = line.split_once(' ').unwrap();
        let manifest = manifest(seed);
        for expected in [config(seed), layer(seed)] {
            let kept = store.blob(&here, &Digest::sha256(&expected)).await.unwrap();
            assert_eq!(bytes(&kept.expect(line)), expected, "{line}");
        }
        if step != "blob" {
            let kept = store.manifest(&here, &manifest.digest).await.unwrap().expect(line);
            assert_eq!((&kept.manifest.bytes, kept.complete), (&manifest.bytes, true), "{line}");
        }
        if step == "tag" {
            let record = store.tag(&here, &tag(seed)).await.unwrap().expect(line);
            assert_eq!((record.digest, record.newest_complete), (manifest.digest, Some(manifest.digest)), "{line}");
        }
    }
    if let Some(latest) = store.tag(&here, &tag("latest")).await.unwrap() {
        assert_eq!(latest.newest_complete, Some(latest.digest));
        assert!(store.manifest(&here, &latest.digest).await.unwrap().unwrap().complete);
    }
    for entry in fs::read_dir(data.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let digest = Digest::sha256(&fs::read(&path).unwrap());
        assert_eq!(path.file_name().unwrap().to_str(), Some(digest.hex().as_str()), "a name before its bytes");
    }
    assert_eq!(store.check_files().await.unwrap(), 0);
}

fn config(seed: &str) -> Vec<u8> {
    format!("config of {seed}").into_bytes()
}

fn layer(seed: &str) -> Vec<u8> {
    seed.repeat(20_000).into_bytes()
}

fn manifest(seed: &str) -> Manifest {
    image(&config(seed), &[&layer(seed)])
}
