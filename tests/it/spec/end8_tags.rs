//! end-8: tags are listed, in order and in pages.

use super::client::{json, refusal};
use super::{Image, Registry};
use crate::support::site::Reply;

const TAGS: [&str; 7] = ["1", "10", "2", "A", "_z", "b", "latest"];

async fn tagged() -> Registry {
    let registry = Registry::start().await;
    let image = Image::of("one");
    // Pushed in another order than they are listed in.
    for tag in ["latest", "2", "b", "_z", "10", "A", "1"] {
        registry.push("team/app", tag, &image).await;
    }
    registry
}

/// Where `Link` leads; its form is checked.
fn next(reply: &Reply) -> Option<String> {
    let link = reply.header("link")?;
    let (url, rest) = link.strip_prefix('<').and_then(|link| link.split_once('>')).unwrap();
    assert_eq!(rest.replace(' ', ""), ";rel=\"next\"", "{link}");
    Some(url.to_owned())
}

fn tags(reply: &Reply) -> Vec<String> {
    json(reply)["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

// Spec: tags.1, tags.3, tags.13, endpoints.7
#[tokio::test]
async fn the_tags_of_a_repository_are_200_and_json() {
    let registry = tagged().await;
    let reply = registry.get("/v2/team/app/tags/list").send().await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").unwrap().starts_with("application/json"));
    assert_eq!(json(&reply), serde_json::json!({ "name": "team/app", "tags": TAGS }));
}

// Spec: tags.2
#[tokio::test]
async fn tags_are_in_byte_order() {
    let registry = tagged().await;
    let listed = registry.tags("team/app", "").await;
    assert_eq!(listed, TAGS);
    assert!(listed.is_sorted());
}

// Spec: endpoints.7
#[tokio::test]
async fn a_repository_that_is_not_there_has_no_list() {
    let registry = tagged().await;
    let reply = registry.get("/v2/team/absent/tags/list").send().await;
    assert_eq!(refusal(&reply), (404, "NAME_UNKNOWN".to_owned()));
}

// Spec: tags.1, tags.12
#[tokio::test]
async fn a_repository_without_tags_has_an_empty_list() {
    let registry = Registry::start().await;
    registry.push("team/app", "1", &Image::of("one")).await;
    registry.delete("/v2/team/app/manifests/1").send().await;
    let reply = registry.get("/v2/team/app/tags/list").send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(json(&reply)["tags"], serde_json::json!([]));
}

// Spec: tags.4, tags.15
#[tokio::test]
async fn n_tags_are_listed_from_the_beginning_when_n_are_asked_for() {
    let registry = tagged().await;
    for n in 1..TAGS.len() {
        let reply = registry.get(format!("/v2/team/app/tags/list?n={n}")).send().await;
        assert_eq!(tags(&reply), TAGS[..n], "n={n}");
    }
}

// Spec: tags.4
#[tokio::test]
async fn fewer_than_n_are_listed_only_when_there_are_fewer() {
    let registry = tagged().await;
    for n in [TAGS.len(), 100, 1_000_000] {
        let reply = registry.get(format!("/v2/team/app/tags/list?n={n}")).send().await;
        assert_eq!(tags(&reply), TAGS, "n={n}");
        assert_eq!(next(&reply), None, "n={n}: nothing is left to link to");
    }
}

// Spec: tags.5, tags.14
#[tokio::test]
async fn pages_link_to_the_next_until_all_tags_were_seen_once() {
    let registry = tagged().await;
    let (mut seen, mut pages) = (Vec::new(), 0);
    let mut path = Some("/v2/team/app/tags/list?n=3".to_owned());
    while let Some(here) = path {
        let reply = registry.get(here).send().await;
        assert_eq!(reply.status, 200);
        (path, pages) = (next(&reply), pages + 1);
        seen.extend(tags(&reply));
    }
    assert_eq!((seen.iter().map(String::as_str).collect::<Vec<_>>(), pages), (TAGS.to_vec(), 3));
}

// Spec: tags.6, tags.7
#[tokio::test]
async fn n_of_zero_is_an_empty_list_without_a_link() {
    let registry = tagged().await;
    for query in ["?n=0", "?n=0&last=10"] {
        let reply = registry.get(format!("/v2/team/app/tags/list{query}")).send().await;
        assert_eq!((reply.status.as_u16(), json(&reply)["tags"].clone()), (200, serde_json::json!([])), "{query}");
        assert_eq!(reply.header("link"), None, "{query}");
    }
}

// Spec: tags.8, tags.11, tags.16
#[tokio::test]
async fn a_list_goes_on_after_last_and_without_it() {
    let registry = tagged().await;
    for (at, last) in TAGS.iter().enumerate() {
        let rest = &TAGS[at + 1..];
        let listed = registry.tags("team/app", &format!("?n=2&last={last}")).await;
        assert_eq!(listed, rest[..rest.len().min(2)], "after {last}");
        assert!(listed.is_sorted());
    }
}

// Spec: tags.17
#[tokio::test]
async fn last_needs_no_n() {
    let registry = tagged().await;
    assert_eq!(registry.tags("team/app", "?last=A").await, ["_z", "b", "latest"]);
    assert_eq!(registry.tags("team/app", "?last=latest").await, [""; 0]);
}

// Spec: tags.9, tags.10
#[tokio::test]
async fn last_is_a_tag_and_no_number_of_tags() {
    let registry = tagged().await;
    // Were it an index, `2` would leave out two tags.
    assert_eq!(registry.tags("team/app", "?last=2").await, ["A", "_z", "b", "latest"]);
    // It need not be there any more: a client goes on where a tag was deleted meanwhile.
    assert_eq!(registry.tags("team/app", "?last=B").await, ["_z", "b", "latest"]);
}

// Spec: tags.1
#[tokio::test]
async fn an_n_that_is_no_number_is_400() {
    let registry = tagged().await;
    for query in ["?n=many", "?n=-1", "?n=1.5"] {
        assert_eq!(registry.get(format!("/v2/team/app/tags/list{query}")).send().await.status, 400, "{query}");
    }
}
