//! What the store tells about itself: lines, totals, wanted names, last uses.

use std::net::IpAddr;

use jiff::SignedDuration;
use sealock::store::WANTED_MAX;

use super::*;

#[tokio::test]
async fn a_line_counts_each_piece_once_and_only_what_is_kept() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = image(b"config", &[b"layer", b"layer", b"not kept"]);
    let both = index(&[child(&manifest, "linux"), child(&manifest, "linux")]);
    site.keep(&here, b"config").await;
    site.keep(&here, b"layer").await;
    site.keep_manifest(&here, &manifest).await;
    site.keep_manifest(&here, &both).await;
    site.point(&here, "1", &both.digest).await;
    site.point(&here, "2", &Digest::sha256(b"absent")).await;
    site.point(&repository("team/other"), "1", &both.digest).await;
    let local = Repository { origin: Origin::Local, name: "app".parse().unwrap() };
    site.point(&local, "1", &Digest::sha256(b"absent")).await;
    site.point(&repository("team/z"), "1", &manifest.digest).await;

    let lines = site.store.list(None, None).await.unwrap();
    let names: Vec<String> = lines.iter().map(|line| format!("{}:{}", line.repository, line.tag)).collect();
    assert_eq!(
        names,
        ["app:1", "far.test/team/app:1", "far.test/team/app:2", "far.test/team/other:1", "far.test/team/z:1"]
    );
    let line = &lines[1];
    assert_eq!(line.size_bytes, both.size() + manifest.size() + 6 + 5);
    assert_eq!((line.media_type.as_str(), line.complete), (MediaType::OCI_INDEX, false));
    assert_eq!(
        (line.artifact_type.as_deref(), lines[4].artifact_type.as_deref()),
        (None, manifest.artifact_type.as_deref())
    );
    assert_eq!((lines[2].size_bytes, lines[2].complete, lines[2].media_type.as_str()), (0, false, ""));

    let far = Origin::Upstream("far.test".into());
    assert_eq!(site.store.list(Some(&far), Some("team/a")).await.unwrap().len(), 2);
    assert_eq!(site.store.list(Some(&Origin::Local), None).await.unwrap().len(), 1);
    assert_eq!(site.store.list(None, Some("team%")).await.unwrap().len(), 0);
}

#[tokio::test]
async fn totals_add_up() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let whole = whole_image(&site, &here, "whole").await;
    let hollow = hollow_image(&site, &here, "hollow").await;
    site.point(&here, "1", &whole.digest).await;
    site.point(&here, "2", &hollow.digest).await;
    let mut staged = site.store.stage(&Digest::sha256(b"unfinished")).unwrap();
    staged.write(b"unfin").unwrap();
    let totals = site.store.totals().await.unwrap();
    assert_eq!((totals.repositories, totals.tags, totals.manifests, totals.blobs), (1, 2, 2, 2));
    assert_eq!(totals.size_bytes, whole.size() + hollow.size() + 12 + 11);
    assert_eq!((totals.staged_bytes, totals.incomplete_tags), (5, 1));
    assert_eq!((totals.pushed_tags, totals.imported_tags), (0, 0));
    for (name, source) in [("mine", TagSource::Pushed), ("carried", TagSource::Imported)] {
        site.store.point_tag(&here, &tag(name), &whole.digest, source).await.unwrap();
    }
    let totals = site.store.totals().await.unwrap();
    assert_eq!((totals.tags, totals.pushed_tags, totals.imported_tags), (4, 1, 1));
}

#[tokio::test]
async fn wanted_names_are_counted_and_forgotten_once_kept() {
    let site = Site::new().await;
    let client: IpAddr = "10.0.0.7".parse().unwrap();
    site.store.note_wanted("team/app", "6", client).await.unwrap();
    site.clock.advance(SignedDuration::from_secs(60));
    site.store.note_wanted("team/app", "6", "::1".parse().unwrap()).await.unwrap();
    site.store.note_wanted("team/app", "7", client).await.unwrap();
    let wanted = site.store.wanted().await.unwrap();
    assert_eq!(wanted.len(), 2);
    assert_eq!((wanted[0].reference.as_str(), wanted[0].count), ("6", 2));
    assert_eq!((wanted[0].last_at - wanted[0].first_at).get_seconds(), 60);
    assert_eq!(wanted[0].client, "::1".parse::<IpAddr>().unwrap());
    site.store.forget_wanted("team/app", "6").await.unwrap();
    let site = site.restarted().await;
    let wanted = site.store.wanted().await.unwrap();
    assert_eq!(wanted.iter().map(|wanted| wanted.reference.as_str()).collect::<Vec<_>>(), ["7"]);
}

#[tokio::test]
async fn the_demand_ledger_is_bounded_and_drops_the_longest_unasked() {
    // Invariant 17
    let site = Site::new().await;
    let client: IpAddr = "10.0.0.7".parse().unwrap();
    site.store.note_wanted("first", "1", client).await.unwrap();
    let many = (0..WANTED_MAX + 50).map(|number| {
        let store = site.store.clone();
        async move { store.note_wanted("many", &format!("{number:05}"), client).await.unwrap() }
    });
    site.clock.advance(SignedDuration::from_secs(1));
    let many: Vec<_> = many.map(tokio::spawn).collect();
    for noted in many {
        noted.await.unwrap();
    }
    site.store.note_wanted(&"ä".repeat(10_000), "1", client).await.unwrap();
    let wanted = site.store.wanted().await.unwrap();
    assert_eq!(wanted.len() as u64, WANTED_MAX);
    assert_eq!(rows(&site, "SELECT COUNT(*) FROM wanted").await as u64, WANTED_MAX);
    assert!(wanted.iter().all(|wanted| wanted.name != "first" && wanted.name.len() <= 512));
}

#[tokio::test]
async fn last_use_is_written_when_the_store_closes() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let manifest = whole_image(&site, &here, "app").await;
    let kept_at = site.clock.now();
    site.clock.advance(SignedDuration::from_hours(30));
    site.store.manifest(&here, &manifest.digest).await.unwrap().unwrap();
    site.read(&here, &Digest::sha256(b"app layer")).await.unwrap();
    let used_at = site.clock.now();
    let site = site.restarted().await;
    site.store.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(site.data().join("catalog.sqlite"));
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let sql = "SELECT digest, used_at FROM blob UNION ALL SELECT digest, used_at FROM manifest";
    let rows: Vec<(String, i64)> = sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
    assert_eq!(rows.len(), 3);
    for (digest, at) in rows {
        let unused = digest == Digest::sha256(b"app config").to_string();
        assert_eq!(at, if unused { kept_at } else { used_at }.as_millisecond(), "{digest}");
    }
}
