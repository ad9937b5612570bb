//! Pushes and deletions through the front door: what is taken in, what is refused, and what is left when it breaks off.

mod collected;
mod deletes;
mod manifests;
mod mounts;
mod routed;
mod uploads;

use bytes::Bytes;
use http::{Method, StatusCode};
use sealock::oci::{Digest, MediaType};
use serde_json::{Value, json};

use crate::support::site::{Reply, Sealock};

const NAME: &str = "team/app";
const OTHER: &str = "team/other";

fn uploads(name: &str) -> String {
    format!("/v2/{name}/blobs/uploads/")
}

/// Bytes that nothing compresses and no other seed gives.
fn noise(seed: u8, count: usize) -> Bytes {
    let mut state = u32::from(seed) + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(next).collect()
}

/// Begins an upload; its `Location`.
async fn begin(site: &Sealock, name: &str) -> String {
    let begun = site.send(Method::POST, &uploads(name), &[]).await.unwrap();
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{begun:?}");
    begun.header("location").unwrap().to_owned()
}

async fn patch(site: &Sealock, location: &str, range: Option<&str>, bytes: impl Into<Bytes>) -> Reply {
    let headers: Vec<(&str, &str)> = range.map(|range| ("content-range", range)).into_iter().collect();
    site.send_body(Method::PATCH, location, &headers, bytes).await.unwrap()
}

async fn finish(site: &Sealock, location: &str, digest: &Digest, bytes: impl Into<Bytes>) -> Reply {
    site.send_body(Method::PUT, &format!("{location}?digest={digest}"), &[], bytes).await.unwrap()
}

/// Pushes a blob in one request.
pub(super) async fn push_blob(site: &Sealock, name: &str, bytes: impl Into<Bytes>) -> Digest {
    let bytes = bytes.into();
    let digest = Digest::sha256(&bytes);
    let path = format!("{}?digest={digest}", uploads(name));
    let pushed = site.send_body(Method::POST, &path, &[], bytes).await.unwrap();
    assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
    digest
}

fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// An image of `{}` and layers.
fn image(layers: &[(Digest, usize)]) -> Value {
    let layer = |(digest, size): &(Digest, usize)| descriptor("application/vnd.oci.image.layer.v1.tar", digest, *size);
    json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": descriptor(MediaType::OCI_CONFIG, &Digest::sha256(b"{}"), 2),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

async fn put(site: &Sealock, name: &str, reference: &str, media_type: &str, bytes: impl Into<Bytes>) -> Reply {
    let path = format!("/v2/{name}/manifests/{reference}");
    site.send_body(Method::PUT, &path, &[("content-type", media_type)], bytes).await.unwrap()
}

async fn delete(site: &Sealock, path: &str) -> Reply {
    site.send(Method::DELETE, path, &[]).await.unwrap()
}

/// Pushes an image of one layer; its bytes.
async fn push_image(site: &Sealock, name: &str, tag: &str, layer: &[u8]) -> Bytes {
    push_blob(site, name, &b"{}"[..]).await;
    let digest = push_blob(site, name, Bytes::copy_from_slice(layer)).await;
    let bytes = Bytes::from(image(&[(digest, layer.len())]).to_string());
    let pushed = put(site, name, tag, MediaType::OCI_MANIFEST, bytes.clone()).await;
    assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
    bytes
}

/// Status and code of an error reply.
fn refusal(reply: &Reply) -> (u16, String) {
    (reply.status.as_u16(), reply.error().0)
}
