//! Retention: the tags that a rule lets go are removed before a collection, and come back by their history.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use sealock::keep::{Order, RetainRule};
use sealock::store::Rollback;

use super::*;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn rule(newest: u32, by: Order) -> RetainRule {
    RetainRule { newest, by, keep: vec!["latest".to_owned()], filled: false }
}

fn with(rules: &[(&str, RetainRule)]) -> KeepSettings {
    let retain: BTreeMap<String, RetainRule> =
        rules.iter().map(|(pattern, rule)| ((*pattern).to_owned(), rule.clone())).collect();
    KeepSettings { retain, ..KeepSettings::default() }
}

fn local(name: &str) -> Repository {
    Repository { origin: Origin::Local, name: name.parse().unwrap() }
}

/// One image per tag, a minute apart.
async fn tagged(site: &Site, here: &Repository, names: &[&str], source: TagSource) {
    for name in names {
        let manifest = whole_image(site, here, &format!("{here} {name}")).await;
        site.store.point_tag(here, &tag(name), &manifest.digest, source).await.unwrap();
        site.clock.advance(SignedDuration::from_mins(1));
    }
}

async fn tags(site: &Site, here: &Repository) -> Vec<String> {
    let tags = site.store.tags(here, None, 100).await.unwrap();
    tags.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn old_versions_go_by_their_rule_and_come_back_by_rollback() {
    // Invariant 7
    let (site, here, there) = (Site::new().await, local("team/app"), local("other/app"));
    for place in [&here, &there] {
        tagged(&site, place, &["1.0", "latest", "1.1", "1.2-rc1", "main", "1.2"], TagSource::Pushed).await;
    }
    site.store.pin_tag(&here, &tag("1.0"), true).await.unwrap();
    let settings = with(&[("team/**", rule(1, Order::Version))]);
    let planned = site.jobs_at(settings.clone(), Mode::Closed).collect(true).await.unwrap();
    let lines: Vec<_> = planned.retired_tags.iter().map(|one| (one.repository.as_str(), one.tag.as_str())).collect();
    assert_eq!(lines, [("team/app", "1.2-rc1"), ("team/app", "1.1")]);
    assert_eq!((planned.retired, planned.retired_tags[0].rule.as_str()), (2, "team/**"));
    assert_eq!(tags(&site, &here).await.len(), 6, "a dry run changes nothing");

    let done = site.jobs_at(settings.clone(), Mode::Closed).collect(false).await.unwrap();
    assert_eq!((done.retired_tags, done.size_bytes), (planned.retired_tags, 0));
    assert_eq!(tags(&site, &here).await, ["1.0", "1.2", "latest", "main"]);
    assert_eq!(tags(&site, &there).await.len(), 6, "no rule speaks of it");
    assert!(matches!(site.store.rollback_tag(&here, &tag("1.1"), None).await.unwrap(), Rollback::To(_)));
    assert_eq!(tags(&site, &here).await, ["1.0", "1.1", "1.2", "latest", "main"]);

    // Once it can be turned back to no more, its content is collected.
    site.jobs_at(settings.clone(), Mode::Closed).collect(false).await.unwrap();
    site.clock.advance(DAY * 3);
    let done = site.jobs_at(settings, Mode::Closed).collect(false).await.unwrap();
    assert_eq!((done.retired, done.manifests), (0, 2), "{:?}", done.lines);
}

#[tokio::test]
async fn without_a_rule_every_tag_stays() {
    // Invariant 7
    let (site, here) = (Site::new().await, local("team/app"));
    tagged(&site, &here, &["1", "2", "3"], TagSource::Pushed).await;
    site.clock.advance(DAY * 365);
    assert_eq!(site.jobs_at(KeepSettings::default(), Mode::Open).collect(false).await.unwrap().retired, 0);
    assert_eq!(tags(&site, &here).await.len(), 3);
}

#[tokio::test]
async fn filled_tags_go_only_where_the_rule_says_so_and_the_gate_is_open() {
    // Invariant 7
    let (site, here) = (Site::new().await, repository("team/app"));
    tagged(&site, &here, &["1", "2", "3"], TagSource::Filled).await;
    let silent = with(&[("**", rule(1, Order::Moved))]);
    let spoken = with(&[("far.test/**", RetainRule { filled: true, ..rule(1, Order::Moved) })]);
    for (settings, mode) in [(&silent, Mode::Open), (&silent, Mode::Closed), (&spoken, Mode::Closed)] {
        let report = site.jobs_at(settings.clone(), mode).collect(false).await.unwrap();
        assert_eq!((report.retired, tags(&site, &here).await.len()), (0, 3), "{mode:?}");
    }
    let report = site.jobs_at(spoken, Mode::Open).collect(false).await.unwrap();
    assert_eq!((report.retired, tags(&site, &here).await), (2, vec!["3".to_owned()]));
}

#[tokio::test]
async fn a_tag_that_changed_between_the_look_and_the_removal_stays_and_so_does_the_last_one() {
    // Invariant 7
    let (site, here) = (Site::new().await, local("team/app"));
    tagged(&site, &here, &["1", "2", "3", "4"], TagSource::Pushed).await;
    let facts = site.store.tag_facts(&here).await.unwrap().unwrap();
    let other = whole_image(&site, &here, "other").await;
    site.store.point_tag(&here, &tag("1"), &other.digest, TagSource::Pushed).await.unwrap();
    site.store.pin_tag(&here, &tag("2"), true).await.unwrap();
    assert!(!site.store.retire_tag(&here, &facts[0]).await.unwrap(), "it was pushed anew");
    assert!(!site.store.retire_tag(&here, &facts[1]).await.unwrap(), "it was pinned");
    assert!(site.store.retire_tag(&here, &facts[2]).await.unwrap());
    assert!(!site.store.retire_tag(&here, &facts[2]).await.unwrap(), "it is gone");
    for name in ["1", "2"] {
        assert!(site.store.delete_tag(&here, &tag(name)).await.unwrap());
    }
    assert!(!site.store.retire_tag(&here, &facts[3]).await.unwrap(), "it is the last one");
    assert_eq!(tags(&site, &here).await, ["4"]);
}
