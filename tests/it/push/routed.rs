//! Pushes onto names that a route leads upstream: allowed by the route, served before upstream's, and never asked for.

use http::{Method, StatusCode};
use sealock::oci::{Digest, MediaType};

use super::{begin, delete, image, push_blob, push_image, put, refusal, uploads};
use crate::support::far::FarRegistry;
use crate::support::site::{Sealock, Setup};

const REPOSITORY: &str = "security-products/semgrep";
const HOST: &str = "gitlab.test/security-products/semgrep";

fn site(far: &FarRegistry, push: bool) -> Setup {
    let route = format!("[route.\"security-products/**\"]\nupstream = \"gitlab\"\npush = {push}");
    Sealock::setup().upstream("gitlab", "gitlab.test", far).settings(&route)
}

#[tokio::test]
async fn a_route_that_takes_no_pushes_says_which_setting_would() {
    // Invariant 16
    let far = FarRegistry::start().await;
    let closed = site(&far, false).start().await;
    let open = site(&far, true).start().await;
    for (site, name) in [(&closed, REPOSITORY), (&closed, HOST), (&open, HOST)] {
        let refused = site.send(Method::POST, &uploads(name), &[]).await.unwrap();
        assert_eq!(refusal(&refused), (405, "UNSUPPORTED".to_owned()), "{name}");
        assert!(refused.error().1.contains("`push = true`"), "{refused:?}");
        let refused = delete(site, &format!("/v2/{name}/manifests/1")).await;
        assert_eq!(refusal(&refused), (405, "UNSUPPORTED".to_owned()), "{name}");
    }
    assert!(begin(&open, REPOSITORY).await.starts_with(&uploads(REPOSITORY)));
    assert_eq!(far.connections(), 0);
}

#[tokio::test]
async fn what_is_pushed_while_the_gate_is_closed_is_served_and_no_longer_wanted() {
    // Invariants 1, 5
    let far = FarRegistry::start().await;
    let site = site(&far, true).start().await;
    let layer = Digest::sha256(b"layer");
    // docker asks for each layer before it sends it.
    let path = format!("/v2/{REPOSITORY}/blobs/{layer}");
    assert_eq!(refusal(&site.get(&path).await), (404, "BLOB_UNKNOWN".to_owned()));
    assert_eq!(site.head(&format!("/v2/{REPOSITORY}/manifests/6")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.app.store().wanted().await.unwrap().len(), 2);
    let bytes = push_image(&site, REPOSITORY, "6", b"layer").await;
    assert!(site.app.store().wanted().await.unwrap().is_empty());
    for name in [REPOSITORY, HOST] {
        let found = site.manifest(name, "6").await;
        assert_eq!(found.body, bytes);
        assert_eq!((found.header("warning"), found.header("age")), (None, None), "it does not age");
        assert_eq!(site.blob(name, &layer).await.body, "layer");
    }
    assert_eq!(far.connections(), 0);
}

#[tokio::test]
async fn a_pushed_tag_wins_over_upstreams_until_it_is_deleted() {
    // Invariants 5, 13
    let far = FarRegistry::start().await;
    let theirs = far.put_image(REPOSITORY, "6", &[b"theirs"]);
    let site = site(&far, true).gate_open().start().await;
    let ours = push_image(&site, REPOSITORY, "6", b"ours").await;
    assert_eq!(far.connections(), 0, "a push asks nothing of upstream");
    site.advance(std::time::Duration::from_secs(86_400));
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, ours);
    assert_eq!(far.connections(), 0);
    assert_eq!(delete(&site, &format!("/v2/{REPOSITORY}/manifests/6")).await.status, StatusCode::ACCEPTED);
    assert_eq!(site.manifest(REPOSITORY, "6").await.body, theirs.bytes);
}

#[tokio::test]
async fn a_manifest_under_a_made_up_type_opens_nothing_of_another_repository() {
    // Invariant 14
    let far = FarRegistry::start().await;
    let site = site(&far, true).start().await;
    let secret = push_blob(&site, "team/secret", &b"secret"[..]).await;
    push_blob(&site, "team/secret", &b"{}"[..]).await;
    let mut theirs = image(&[(secret, 6)]);
    theirs.as_object_mut().unwrap().remove("mediaType");
    let theirs = theirs.to_string();
    let kept = put(&site, "team/secret", "1", MediaType::OCI_MANIFEST, theirs.clone()).await;
    assert_eq!(kept.status, StatusCode::CREATED);
    for kind in [MediaType::OCI_MANIFEST, "application/x-foo"] {
        let refused = put(&site, "security-products/evil", "1", kind, theirs.clone()).await;
        assert_eq!(refusal(&refused), (400, "MANIFEST_BLOB_UNKNOWN".to_owned()), "{kind}");
    }
    let read = site.get(&format!("/v2/security-products/evil/blobs/{secret}")).await;
    assert_eq!(read.status, StatusCode::NOT_FOUND);
}
