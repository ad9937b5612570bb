//! Error bodies, and warnings.

use std::time::Duration;

use super::{Image, Registry};
use serde_json::Value;

use super::client::and;
use super::content::{Manifest, OCI_MANIFEST, digest_of};
use crate::support::far::FarRegistry;
use crate::support::site::{Reply, Sealock};

const CODES: [&str; 14] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];

/// One request for each way in which a client can be wrong.
async fn refusals() -> Vec<(String, Reply)> {
    let registry = Registry::start().await;
    let image = Image::of("one");
    registry.push("team/app", "1", &image).await;
    let (absent, upload) = (digest_of(b"absent"), registry.begin("team/app").await);
    let blob = format!("/v2/team/app/blobs/{}", image.layer_digest());
    let asks = vec![
        registry.get(format!("/v2/team/app/blobs/{absent}")),
        registry.get("/v2/team/app/blobs/sha256:short"),
        registry.get(&blob).header("range", "bytes=5000-"),
        registry.get("/v2/team/app/manifests/2"),
        registry.get("/v2/team/app/manifests/sha256:short"),
        registry.get("/v2/team/absent/manifests/1"),
        registry.get("/v2/Team/app/manifests/1"),
        registry.get("/v2/team/absent/tags/list"),
        registry.get("/v2/team/app/tags/list?n=many"),
        registry.get("/v2/team/app/referrers/short"),
        registry.get("/v2/team/app/nothing/here"),
        registry.post("/v2/Team/app/blobs/uploads/"),
        registry.post("/v2/team/app/blobs/uploads/?digest=short").octets(b"x"),
        registry.post(format!("/v2/team/app/blobs/uploads/?digest={absent}")).octets(b"x"),
        registry.post("/v2/team/app/blobs/uploads/?digest-algorithm=md5"),
        registry.get("/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef"),
        registry.patch("/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef").octets(b"x"),
        registry.patch(&upload).header("content-range", "7-8").octets(b"xx"),
        registry.patch(&upload).header("content-range", "nonsense").octets(b"xx"),
        registry.put(&upload),
        registry.put(and(&upload, &format!("digest={absent}"))).octets(b"x"),
        registry.put("/v2/team/app/manifests/3").header("content-type", OCI_MANIFEST).body("no json"),
        registry.put("/v2/team/app/manifests/3").header("content-type", OCI_MANIFEST).body(Image::of("two").bytes()),
        registry
            .put(format!("/v2/team/app/manifests/{absent}"))
            .header("content-type", OCI_MANIFEST)
            .body(image.bytes()),
        registry.put("/v2/team/app/manifests/3").header("content-type", OCI_MANIFEST).body(vec![b' '; 5 << 20]),
        registry.delete("/v2/team/app/manifests/3"),
        registry.delete(format!("/v2/team/app/manifests/{absent}")),
        registry.delete(format!("/v2/team/app/blobs/{absent}")),
        registry.delete("/v2/team/absent/manifests/1"),
        registry.ask("TRACE", "/v2/team/app/manifests/1"),
    ];
    let mut replies = Vec::new();
    for ask in asks {
        let said = ask.to_string();
        replies.push((said, ask.send().await));
    }
    replies
}

// Spec: errors.1, errors.2, errors.3, errors.4
#[tokio::test]
async fn every_refusal_is_a_4xx_with_a_code_of_the_list_and_a_message_for_people() {
    // Invariant 16
    let all = refusals().await;
    let wrong: Vec<String> =
        all.iter().filter_map(|(said, reply)| Some(format!("{said}: {} in {reply:?}", complaint(reply)?))).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}

/// What is wrong with a refusal.
fn complaint(reply: &Reply) -> Option<String> {
    if !reply.status.is_client_error() {
        return Some("no 4xx".to_owned());
    }
    if !reply.header("content-type").is_some_and(|found| found.starts_with("application/json")) {
        return Some("not said to be JSON".to_owned());
    }
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let Some(errors) = body["errors"].as_array().filter(|errors| !errors.is_empty()) else {
        return Some("no error".to_owned());
    };
    errors.iter().find_map(|error| {
        let (code, message) =
            (error["code"].as_str().unwrap_or("nothing"), error["message"].as_str().unwrap_or_default());
        let known = error.as_object()?.keys().all(|key| matches!(&**key, "code" | "message" | "detail"));
        if !CODES.contains(&code) {
            Some(format!("{code} is no code of the list"))
        } else if !message.contains(' ') || message.contains("/tmp") {
            Some(format!("`{message}` is no message for people"))
        } else {
            (!known).then(|| "more than code, message and detail".to_owned())
        }
    })
}

// Spec: errors.5
#[tokio::test]
async fn too_many_requests_say_when_to_come_again() {
    let far = FarRegistry::start().await;
    far.put_image("team/app", "1", &[b"layer"]);
    let site = Sealock::setup().upstream("far", "reg.test", &far).gate_open().start().await;
    far.rate_limit(Some("3600"), 100);
    let reply = site.manifest("reg.test/team/app", "1").await;
    assert_eq!((reply.status.as_u16(), reply.error().0), (429, "TOOMANYREQUESTS".to_owned()));
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
}

// Spec: warnings.1, warnings.2, warnings.3
#[tokio::test]
async fn a_warning_is_299_by_nobody_without_a_date_and_short() {
    // Invariant 18
    let far = FarRegistry::start().await;
    far.put_image("team/app", "1", &[b"layer"]);
    let site = Sealock::setup().upstream("far", "reg.test", &far).gate_open().start().await;
    assert_eq!(site.manifest("reg.test/team/app", "1").await.status, 200);
    far.always(503);
    site.advance(Duration::from_secs(24 * 3600));
    let reply = site.manifest("reg.test/team/app", "1").await;
    let warnings: Vec<&str> = reply.headers.get_all("warning").iter().map(|line| line.to_str().unwrap()).collect();
    assert!(!warnings.is_empty(), "nothing says that it is stale: {reply:?}");
    for warning in &warnings {
        let text = warning.strip_prefix("299 - \"").and_then(|rest| rest.strip_suffix('"'));
        assert!(text.is_some_and(|text| !text.is_empty() && !text.contains('"')), "{warning}");
    }
    assert!(warnings.iter().map(|warning| warning.len()).sum::<usize>() <= 4096);
}
