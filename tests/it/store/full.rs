//! A disk that is full for the catalog: what cannot be written is refused, and what is acknowledged afterwards is kept.

use std::process::Command;

use sealock::store::Pushing;

use super::*;

/// So large that the catalog has no page left for it.
fn large(number: usize) -> Manifest {
    let mut value = image_json(b"{}", &[]);
    value["annotations"] = json!({"number": number.to_string(), "note": "x".repeat(200_000)});
    parse(value, MediaType::OCI_MANIFEST)
}

#[tokio::test]
async fn what_the_catalog_has_no_room_for_is_refused_and_what_comes_after_it_is_kept() {
    // Invariant 6
    let (site, here) = (Site::new().await, repository("team/app"));
    let image = whole_image(&site, &here, "app").await;
    site.point(&here, "before", &image.digest).await;
    for round in 0..3 {
        site.faults.fill_catalog(true);
        let pushing = Pushing { needs: Vec::new(), tags: vec![tag("1"), tag("2")] };
        let refused = site.store.push_manifest(&here, &large(round), pushing).await;
        assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
        assert!(site.store.manifest(&here, &large(round).digest).await.unwrap().is_none());
        // Small changes still have room in the pages that there are; several wait behind one that fails.
        let after = tag(&format!("after-{round}"));
        let refused_again = large(round + 100);
        let (refused, pointed) = tokio::join!(
            site.store.keep_manifest(&here, &refused_again),
            site.store.point_tag(&here, &after, &image.digest, TagSource::Pushed)
        );
        assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
        assert!(pointed.unwrap());
        site.faults.fill_catalog(false);
        site.keep_manifest(&here, &large(round + 200)).await;
        site.point(&here, &format!("room-{round}"), &image.digest).await;
    }
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM tag").await, 7, "it is durable now, and not at the end");
    let site = site.restarted().await;
    let names = site.store.tags(&here, None, 99).await.unwrap();
    let names: Vec<&str> = names.iter().map(Tag::as_str).collect();
    assert_eq!(names, ["after-0", "after-1", "after-2", "before", "room-0", "room-1", "room-2"]);
    for round in 0..3 {
        assert!(site.store.manifest(&here, &large(round + 200).digest).await.unwrap().is_some());
        assert!(site.store.manifest(&here, &large(round).digest).await.unwrap().is_none());
    }
    assert_eq!(site.store.check_files().await.unwrap(), 0);
}

/// A file system of 16 MiB of its own, unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where nothing may be mounted; in CI that is a failure.
    fn mounted() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["-t", "tmpfs", "-o", "size=16m", "sealock-test"];
        match Command::new("mount").args(arguments).arg(folder.path()).output() {
            Ok(done) if done.status.success() => Some(Self(folder)),
            other => {
                assert!(std::env::var_os("CI").is_none(), "this test needs to mount a tmpfs: {other:?}");
                eprintln!("skipped: no tmpfs can be mounted here: {other:?}");
                None
            }
        }
    }

    /// Takes up all the room that is left; what to remove to have it back.
    fn fill(&self) -> PathBuf {
        let filler = self.0.path().join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "the tmpfs stays mounted");
    }
}

#[tokio::test]
async fn a_disk_that_is_really_full_costs_what_did_not_fit_and_nothing_else() {
    // Invariant 6
    let Some(disk) = SmallDisk::mounted() else { return };
    let (data, here) = (disk.0.path().join("data"), repository("team/app"));
    let store = Store::open(&data, Clock::system()).await.unwrap();
    let digest = keep(&store, &here, b"a layer").await.unwrap().digest;
    let image = image(b"a layer", &[]);
    store.keep_manifest(&here, &image).await.unwrap();
    let (mut kept, mut refused) = (Vec::new(), 0);
    for round in 0..3 {
        let filler = disk.fill();
        for number in 0..200 {
            let name = format!("full-{round}-{number}");
            match store.point_tag(&here, &tag(&name), &image.digest, TagSource::Pushed).await {
                // The log of the catalog has room of its own, for a while.
                Ok(_) => kept.push(name),
                Err(StoreError::Full(_)) => refused += 1,
                Err(other) => panic!("{name}: {other:?}"),
            }
        }
        fs::remove_file(filler).unwrap();
        for number in 0..20 {
            let name = format!("room-{round}-{number}");
            assert!(store.point_tag(&here, &tag(&name), &image.digest, TagSource::Pushed).await.unwrap(), "{name}");
            kept.push(name);
        }
    }
    assert!(refused > 0, "there was room for all of it");
    kept.sort();
    store.close().await;
    drop(store);
    let store = Store::open(&data, Clock::system()).await.unwrap();
    let names = store.tags(&here, None, 10_000).await.unwrap();
    assert_eq!(names.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>(), kept);
    assert!(store.blob(&here, &digest).await.unwrap().is_some());
    store.close().await;
}
