//! end-13: how far an upload is.

use super::Registry;
use super::client::{and, location, refusal};
use super::content::{digest_of, noise};

// Spec: chunks.18, chunks.19, chunks.23, endpoints.5
#[tokio::test]
async fn an_upload_says_how_far_it_is_and_where_to_go_on() {
    let registry = Registry::start().await;
    let bytes = noise(1000);
    let at = location(&registry.patch(registry.begin("team/app").await).octets(&bytes[..600]).send().await);
    let state = registry.get(&at).send().await;
    assert_eq!((state.status.as_u16(), state.header("range")), (204, Some("0-599")));
    let reply = registry.patch(location(&state)).header("content-range", "600-999").octets(&bytes[600..]).send().await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let state = registry.get(location(&reply)).send().await;
    assert_eq!(state.header("range"), Some("0-999"));
}

// Spec: chunks.18, chunks.19
#[tokio::test]
async fn an_upload_with_nothing_in_it_has_a_state_too() {
    let registry = Registry::start().await;
    let at = registry.begin("team/app").await;
    let state = registry.get(&at).send().await;
    assert_eq!(state.status, 204);
    // `0--1` would be exact, and no client reads it.
    assert_eq!(state.header("range"), Some("0-0"));
    assert_eq!(registry.patch(location(&state)).octets(b"x").send().await.status, 202);
}

// Spec: chunks.18, chunks.23
#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let registry = Registry::start().await;
    let bytes = noise(100_000);
    let begun = registry.begin("team/app").await;
    let reply = registry.patch(&begun).header("content-range", "0-59999").octets(&bytes[..60_000]).send().await;
    let path = location(&reply).replace(&format!("http://{}", registry.site.address), "");
    let registry = Registry { site: registry.site.stop().await.start().await };
    let state = registry.get(&path).send().await;
    assert_eq!((state.status.as_u16(), state.header("range")), (204, Some("0-59999")));
    let digest = digest_of(&bytes);
    let closing = and(&location(&state), &format!("digest={digest}"));
    let reply = registry.put(closing).header("content-range", "60000-99999").octets(&bytes[60_000..]).send().await;
    assert_eq!(reply.status, 201, "{reply:?}");
    assert_eq!(registry.get(format!("/v2/team/app/blobs/{digest}")).send().await.body, bytes);
}

// Spec: endpoints.5
#[tokio::test]
async fn an_upload_that_nobody_began_has_no_state() {
    let registry = Registry::start().await;
    let begun = registry.begin("team/app").await;
    let made_up = "/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef".to_owned();
    // Invariant 14
    for at in [made_up, begun.replace("team/app", "team/other")] {
        let reply = registry.get(&at).send().await;
        assert_eq!(refusal(&reply), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()), "{at}");
    }
}
