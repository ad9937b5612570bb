//! Logins and rules through the front door: who is let in, what they may do, and what the others are told.

mod commands;
mod issuers;
mod logins;
mod orders;
mod rules;
mod secrets;
mod tokens;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use sealock::access::{RobotOrder, RobotsFile, UsersFile, Verb};
use sealock::oci::{Digest, MediaType};
use sealock::secret::Secret;
use serde_json::Value;

use crate::support::site::{Reply, Sealock};

/// Everybody's password.
const PASSWORD: &str = "sesame-open";

/// A rule of the settings.
fn rule(repository: &str, verbs: &[&str], to: &[&str]) -> String {
    format!("[[access.rule]]\nrepository = \"{repository}\"\nverbs = {verbs:?}\nto = {to:?}\n")
}

/// Adds users with a hash that is quickly made; a running server knows them at once.
fn add_users(site: &Sealock, names: &[&str]) {
    let folder = site.data().join("access");
    std::fs::create_dir_all(&folder).unwrap();
    let hash = bcrypt::hash(PASSWORD, 4).unwrap();
    let before = std::fs::read_to_string(folder.join("users")).unwrap_or_default();
    let lines: String = names.iter().map(|name| format!("{name}:{hash}\n")).collect();
    std::fs::write(folder.join("users"), before + &lines).unwrap();
}

fn users(site: &Sealock) -> UsersFile {
    UsersFile::new(site.data().join("access/users"))
}

fn robots(site: &Sealock) -> RobotsFile {
    RobotsFile::new(&site.data().join("access"))
}

/// A robot's token.
fn add_robot(site: &Sealock, name: &str, pattern: &str, verbs: &[Verb], days: u64) -> Secret {
    let lasting = std::time::Duration::from_secs(days * 86_400);
    let order = RobotOrder { repositories: vec![pattern.to_owned()], verbs: verbs.to_vec(), lasting };
    robots(site).add(name, &order, site.clock.now()).unwrap().0
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// The `Authorization` of a user.
fn of(name: &str) -> String {
    basic(name, PASSWORD)
}

async fn ask(site: &Sealock, method: Method, path: &str, authorization: &str) -> Reply {
    let headers = [("authorization", authorization)];
    let shown = if authorization.is_empty() { &headers[..0] } else { &headers[..] };
    site.send(method, path, shown).await.unwrap()
}

async fn get(site: &Sealock, path: &str, authorization: &str) -> Reply {
    ask(site, Method::GET, path, authorization).await
}

async fn status(site: &Sealock, path: &str, authorization: &str) -> u16 {
    get(site, path, authorization).await.status.as_u16()
}

/// A token of the token endpoint's, as an `Authorization`; `authorization`: what it is asked with.
async fn token(site: &Sealock, authorization: &str, scopes: &[&str]) -> String {
    let query: Vec<String> = scopes.iter().map(|scope| format!("scope={}", scope.replace('/', "%2F"))).collect();
    let reply = get(site, &format!("/token?{}", query.join("&")), authorization).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    format!("Bearer {}", json(&reply)["token"].as_str().unwrap())
}

/// The token endpoint, asked with a form.
async fn post_form(site: &Sealock, form: impl Into<Bytes>) -> Reply {
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    site.send_body(Method::POST, "/token", &headers, form).await.unwrap()
}

fn json(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|why| panic!("{why} in {reply:?}"))
}

fn challenge(reply: &Reply) -> &str {
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
    reply.header("www-authenticate").unwrap()
}

/// Pushes an image of one layer under the tag `1`; the layer's digest.
async fn push(site: &Sealock, name: &str, layer: &str, authorization: &str) -> Digest {
    let mut digests = Vec::new();
    for blob in ["{}", layer] {
        let digest = Digest::sha256(blob.as_bytes());
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let headers = [("authorization", authorization)];
        let reply = site.send_body(Method::POST, &path, &headers, blob.to_owned()).await.unwrap();
        assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
        digests.push(digest);
    }
    let part = |media_type: &str, digest: &Digest, size: usize| serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size });
    let image = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": part(MediaType::OCI_CONFIG, &digests[0], 2),
        "layers": [part("application/vnd.oci.image.layer.v1.tar", &digests[1], layer.len())],
    });
    let headers = [("authorization", authorization), ("content-type", MediaType::OCI_MANIFEST)];
    let path = format!("/v2/{name}/manifests/1");
    let reply = site.send_body(Method::PUT, &path, &headers, image.to_string()).await.unwrap();
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    digests[1]
}

/// A reply without what is another with every request.
fn same(reply: &Reply) -> (u16, Vec<(String, String)>, Value) {
    let mut headers: Vec<(String, String)> = reply
        .headers
        .iter()
        .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    let mut body = json(reply);
    body["errors"][0].as_object_mut().unwrap().remove("detail");
    (reply.status.as_u16(), headers, body)
}
