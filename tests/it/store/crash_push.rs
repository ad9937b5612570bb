//! Killed at any instant of uploads, tag moves and deletions: what was acknowledged holds, and nothing is half done.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use sealock::store::{Pushing, UploadError, UploadId};

use super::crash::{DATA, KILLS, run_and_kill};
use super::*;

const PIECE: usize = 70_001;
const PIECES: usize = 3;

#[tokio::test]
async fn what_was_pushed_and_deleted_holds_after_a_kill_at_any_instant() {
    // Invariants 2, 6, 8 and 14
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (mut acknowledged, mut resumed) = (Vec::new(), 0);
    for _ in 0..KILLS {
        let before = acknowledged.len();
        let (lines, spins) = (random.usize(0..40), random.u32(0..200_000));
        run_and_kill("crash_push::pushes_until_it_is_killed", &data, lines, spins, &mut acknowledged);
        let store = Store::open(&data, Clock::system()).await.unwrap();
        for (seed, step) in last_steps(&acknowledged[before..]) {
            if verify(&store, &seed, &step).await {
                acknowledged.push(format!("{seed} blob"));
                resumed += 1;
            }
        }
        store.close().await;
    }
    let store = Store::open(&data, Clock::system()).await.unwrap();
    for (seed, step) in last_steps(&acknowledged) {
        verify(&store, &seed, &step).await;
    }
    assert_eq!(store.check_files().await.unwrap(), 0);
    assert!(acknowledged.len() > KILLS as usize, "it was killed before it did anything");
    assert!(resumed > 0, "no upload was under way when it was killed");
}

/// Each step is told once it is acknowledged: `SEED piece ID SIZE`, `SEED blob`, `SEED tag`, `SEED deleted`.
#[tokio::test]
async fn pushes_until_it_is_killed() {
    let Some(data) = std::env::var_os(DATA) else { return };
    let (store, here) = (Store::open(Path::new(&data), Clock::system()).await.unwrap(), repository("team/app"));
    let tell = |line: String| writeln!(std::io::stdout(), "kept {line}").unwrap();
    loop {
        let seed = fastrand::u32(..).to_string();
        let layer = layer(&seed);
        let id = store.begin_upload(&here, "ci", CLIENT, None).await.unwrap();
        tell(format!("{seed} piece {id} 0"));
        for piece in layer.chunks(PIECE) {
            let mut upload = store.open_upload(&here, "ci", &id).await.unwrap();
            upload.write(piece).unwrap();
            let size = upload.written();
            upload.leave().await.unwrap();
            tell(format!("{seed} piece {id} {size}"));
        }
        let upload = store.open_upload(&here, "ci", &id).await.unwrap();
        upload.keep(&Digest::sha256(&layer)).await.unwrap();
        tell(format!("{seed} blob"));
        let manifest = manifest(&seed);
        let pushing = Pushing { needs: vec![Digest::sha256(&layer)], tags: names(&seed).to_vec() };
        assert!(store.push_manifest(&here, &manifest, pushing).await.unwrap());
        tell(format!("{seed} tag"));
        assert!(store.delete_manifest(&here, &manifest.digest).await.unwrap());
        tell(format!("{seed} deleted"));
    }
}

/// The last step that was acknowledged of each seed.
fn last_steps(lines: &[String]) -> HashMap<String, String> {
    let steps = lines.iter().filter_map(|line| line.split_once(' '));
    steps.map(|(seed, step)| (seed.to_owned(), step.to_owned())).collect()
}

/// At least `step` was made of `seed`, at most the one after it. Returns whether an upload went on.
async fn verify(store: &Store, seed: &str, step: &str) -> bool {
    let (here, layer, manifest) = (repository("team/app"), layer(seed), manifest(seed));
    let digest = Digest::sha256(&layer);
    let kept = store.blob(&here, &digest).await.unwrap();
    let there = store.manifest(&here, &manifest.digest).await.unwrap().is_some();
    let tagged = store.tag(&here, &tag(seed)).await.unwrap().map(|record| record.digest);
    for name in names(seed) {
        let named = store.tag(&here, &name).await.unwrap().map(|record| record.digest);
        assert_eq!(named, tagged, "{seed} {step}: `{name}` and not all of them");
    }
    assert_eq!(tagged.is_some(), there, "{seed} {step}: the manifest came with its tags and went with them");
    assert!(!tagged.is_some_and(|to| to != manifest.digest || !there), "{seed} {step}: a tag without its manifest");
    match step.split(' ').collect::<Vec<_>>()[..] {
        ["piece", id, size] => {
            let (id, size): (UploadId, usize) = (id.parse().unwrap(), size.parse().unwrap());
            match store.open_upload(&here, "ci", &id).await {
                Ok(mut upload) if kept.is_none() => {
                    let written = upload.written() as usize;
                    assert!(written == size || written == layer.len().min(size + PIECE), "{seed} {step}: {written}");
                    upload.write(&layer[written..]).unwrap();
                    let kept = upload.keep(&digest).await.unwrap();
                    assert_eq!(bytes(&kept), layer, "{seed} {step}");
                    return true;
                }
                // Its file has the blob's name already and the commit did not come, or all of it was made.
                Err(UploadError::Unknown) => assert_eq!(size, layer.len(), "{seed} {step}"),
                other => panic!("{seed} {step}: {other:?}, {kept:?}"),
            }
        }
        ["blob"] => assert_eq!(bytes(&kept.expect(step)), layer, "{seed}"),
        ["tag"] => {
            // Both, or the deletion was made and not acknowledged.
            assert_eq!(tagged.is_some(), there, "{seed}");
            let log = store.tag_log(&here, &tag(seed)).await.unwrap();
            assert_eq!((log.len(), log[log.len() - 1].kept), (2 - usize::from(there), true), "{seed}");
            assert!(kept.is_some(), "{seed}");
        }
        ["deleted"] => {
            assert!(!there && tagged.is_none(), "{seed}");
            assert_eq!(store.tag_log(&here, &tag(seed)).await.unwrap().len(), 2, "{seed}");
        }
        _ => panic!("{step}"),
    }
    false
}

/// The tags that each push points at once.
fn names(seed: &str) -> [Tag; 3] {
    ["", "-a", "-b"].map(|suffix| tag(&format!("{seed}{suffix}")))
}

fn layer(seed: &str) -> Vec<u8> {
    seed.bytes().cycle().take(PIECE * PIECES - 17).collect()
}

fn manifest(seed: &str) -> Manifest {
    image(&layer(seed), &[])
}
