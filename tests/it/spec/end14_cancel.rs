//! end-14: an upload is cancelled, or ends by itself.

use std::time::Duration;

use super::Registry;
use super::client::{and, location, refusal};
use super::content::digest_of;

const DAY: Duration = Duration::from_secs(24 * 3600);

// Spec: cancel.1, endpoints.6
#[tokio::test]
async fn a_cancelled_upload_is_204_and_then_gone() {
    let registry = Registry::start().await;
    for bytes in [&b""[..], b"some bytes"] {
        let mut at = registry.begin("team/app").await;
        if !bytes.is_empty() {
            at = location(&registry.patch(&at).octets(bytes).send().await);
        }
        assert_eq!(registry.delete(&at).send().await.status, 204);
        assert_eq!(registry.get(&at).send().await.status, 404);
        let closing = and(&at, &format!("digest={}", digest_of(bytes)));
        assert_eq!(refusal(&registry.put(closing).send().await), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
        assert_eq!(registry.head(format!("/v2/team/app/blobs/{}", digest_of(bytes))).send().await.status, 404);
    }
}

// Spec: endpoints.6
#[tokio::test]
async fn nobody_cancels_an_upload_through_another_repository() {
    // Invariant 14
    let registry = Registry::start().await;
    let at = registry.begin("team/app").await;
    let reply = registry.delete(at.replace("team/app", "team/other")).send().await;
    assert_eq!(refusal(&reply), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    assert_eq!(registry.get(&at).send().await.status, 204);
}

// Spec: endpoints.6
#[tokio::test]
async fn an_upload_that_nobody_began_cannot_be_cancelled() {
    let registry = Registry::start().await;
    let reply = registry.delete("/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef").send().await;
    assert_eq!(refusal(&reply), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
}

// Spec: cancel.4
#[tokio::test]
async fn an_upload_that_nobody_goes_on_with_ends_by_itself() {
    let registry = Registry::start().await;
    let at = location(&registry.patch(registry.begin("team/app").await).octets(b"some").send().await);
    let at = at.replace(&format!("http://{}", registry.site.address), "");
    registry.site.advance(DAY);
    let registry = Registry { site: registry.site.stop().await.start().await };
    assert_eq!(registry.get(&at).send().await.status, 204, "a day is no reason to give up");
    registry.site.advance(30 * DAY);
    let registry = Registry { site: registry.site.stop().await.start().await };
    assert_eq!(registry.get(&at).send().await.status, 404);
}
