//! Credentials go to the origin they were configured for and to its token realm, and nowhere else.

use futures_util::future::join_all;
use http::Method;
use sealock::upstream::UpstreamError;
use tempfile::TempDir;

use super::{APP, CANARY, Site, app, name, patterned, tag};
use crate::support::far::{Access, FarRegistry};

fn bearer() -> Access {
    Access::Bearer { username: "robot".to_owned(), password: CANARY.to_owned() }
}

fn basic() -> Access {
    Access::Basic { username: "robot".to_owned(), password: CANARY.to_owned() }
}

async fn far_with(access: Access) -> FarRegistry {
    let far = FarRegistry::start().await;
    far.put_image(APP, "1", &[b"layer"]);
    far.access(access);
    far
}

fn tokens_asked(far: &FarRegistry) -> usize {
    far.count(Method::GET, "/token") + far.count(Method::POST, "/token")
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_per_repository() {
    let far = far_with(Access::AnonymousBearer).await;
    far.put_image("team/two", "1", &[b"layer"]);
    let site = Site::of(&far, "").await;
    for _ in 0..3 {
        site.manifest("1").await.unwrap();
    }
    site.upstream.manifest(&name("team/two"), &tag("1")).await.unwrap();
    assert_eq!(tokens_asked(&far), 2);
    // Only the very first request had to be refused; the second repository's token was fetched beforehand.
    assert_eq!(far.count(Method::GET, "/manifests/1"), 5);
    let asked: Vec<_> = far.requests().into_iter().filter(|request| request.path == "/token").collect();
    assert_eq!(asked[0].query, "service=far.test&scope=repository%3Ateam%2Fapp%3Apull");
    assert!(asked.iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn all_who_wait_share_one_token_request() {
    let far = far_with(Access::AnonymousBearer).await;
    let held = far.hold_tokens();
    let site = Site::of(&far, "").await;
    let release = async {
        far.wait_until(|log| log.requests.len() >= 17).await;
        held.release();
    };
    let (all, ()) = tokio::join!(join_all((0..16).map(|_| site.manifest("1"))), release);
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(tokens_asked(&far), 1);
}

#[tokio::test]
async fn a_failed_token_request_is_not_repeated_by_each_who_waited() {
    // Invariant 17
    let far = far_with(Access::AnonymousBearer).await;
    let site = Site::of(&far, "retries_max = 0").await;
    // From here on they know that they need a token, and ask for it first.
    site.manifest("1").await.unwrap();
    site.advance(1000);
    far.switch(|switches| switches.token_get_status = Some(500));
    let held = far.hold_tokens();
    let release = async {
        far.wait_held(1).await;
        held.release();
    };
    let (all, ()) = tokio::join!(join_all((0..16).map(|_| site.manifest("1"))), release);
    assert!(all.iter().all(|one| matches!(one, Err(UpstreamError::Failed { status: 500, .. }))));
    assert_eq!(tokens_asked(&far), 2);
}

#[tokio::test]
async fn a_registry_that_changes_how_it_lets_in_is_followed() {
    let far = far_with(basic()).await;
    let site = Site::with_password(&far, "").await;
    for access in [basic(), bearer(), Access::Open, bearer(), basic()] {
        far.access(access);
        site.manifest("1").await.unwrap();
    }
    let tokens = FarRegistry::start().await;
    far.access(Access::AnonymousBearer);
    let anonymous = Site::of(&far, "").await;
    far.switch(|switches| switches.realm = Some(tokens.url("/token")));
    anonymous.manifest("1").await.unwrap();
    // The realm moves while tokens run out.
    tokens.switch(|switches| switches.token_get_status = Some(404));
    far.expire_tokens();
    far.switch(|switches| switches.realm = None);
    anonymous.advance(1000);
    anonymous.manifest("1").await.unwrap();
}

#[tokio::test]
async fn a_token_is_renewed_early_and_after_a_401() {
    let far = far_with(Access::AnonymousBearer).await;
    far.switch(|switches| switches.token_expires_in = Some(100));
    let site = Site::of(&far, "").await;
    site.manifest("1").await.unwrap();
    site.advance(89);
    site.manifest("1").await.unwrap();
    assert_eq!(tokens_asked(&far), 1);
    site.advance(2);
    site.manifest("1").await.unwrap();
    assert_eq!(tokens_asked(&far), 2);
    far.expire_tokens();
    site.manifest("1").await.unwrap();
    assert_eq!(tokens_asked(&far), 3);
}

#[tokio::test]
async fn a_registry_that_refuses_its_own_tokens_is_left_after_few_tries() {
    // Invariant 17
    let far = far_with(Access::AnonymousBearer).await;
    far.switch(|switches| switches.tokens_expired = u64::MAX);
    let site = Site::of(&far, "").await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::AnonymousDenied { status: 401, .. })));
    assert!(far.requests().len() <= 5);
}

#[tokio::test]
async fn both_names_of_the_token_are_understood_and_others_are_not() {
    let far = far_with(Access::AnonymousBearer).await;
    far.switch(|switches| {
        switches.token_key = "access_token";
        switches.token_expires_in = None;
    });
    let site = Site::of(&far, "").await;
    site.manifest("1").await.unwrap();
    far.expire_tokens();
    for reply in ["", "[]", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#] {
        far.switch(|switches| switches.token_body = Some(reply.into()));
        assert!(matches!(site.manifest("1").await, Err(UpstreamError::Misbehaved { .. })), "{reply}");
    }
    // Invariant 17
    far.switch(|switches| switches.token_body = Some(format!("{{\"token\":\"{}\"}}", "t".repeat(65 << 10)).into()));
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Misbehaved { .. })));
}

#[tokio::test]
async fn a_password_buys_a_token_by_get_or_else_by_form() {
    let far = far_with(bearer()).await;
    let site = Site::with_password(&far, "").await;
    site.manifest("1").await.unwrap();
    assert_eq!((far.count(Method::GET, "/token"), far.count(Method::POST, "/token")), (1, 0));
    far.switch(|switches| switches.token_get_status = Some(405));
    far.expire_tokens();
    site.manifest("1").await.unwrap();
    assert_eq!(far.count(Method::POST, "/token"), 1);
    assert!(
        far.requests()
            .iter()
            .filter(|request| request.path != "/token")
            .all(|request| { request.header("authorization").is_none_or(|value| value.starts_with("Bearer ")) })
    );
}

#[tokio::test]
async fn basic_is_shown_where_it_is_asked_for() {
    let far = far_with(basic()).await;
    let site = Site::with_password(&far, "").await;
    site.manifest("1").await.unwrap();
    site.manifest("1").await.unwrap();
    // The first request was refused; from then on they go out with it.
    assert_eq!(far.requests().len(), 3);
    let anonymous = Site::of(&far, "").await;
    assert!(matches!(anonymous.manifest("1").await, Err(UpstreamError::AnonymousDenied { status: 401, .. })));
}

#[tokio::test]
async fn docker_configuration_is_understood() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.json");
    let settings = format!("docker_config = {file:?}");
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("robot:{CANARY}"))
    };
    std::fs::write(&file, format!(r#"{{"auths":{{"far.test":{{"auth":"{encoded}"}}}}}}"#)).unwrap();
    let far = far_with(basic()).await;
    Site::of(&far, &settings).await.manifest("1").await.unwrap();

    std::fs::write(&file, format!(r#"{{"auths":{{"far.test":{{"identitytoken":"{CANARY}"}}}}}}"#)).unwrap();
    far.access(Access::Refresh { token: CANARY.to_owned() });
    Site::of(&far, &settings).await.manifest("1").await.unwrap();
    assert_eq!((far.count(Method::GET, "/token"), far.count(Method::POST, "/token")), (0, 1));

    std::fs::write(&file, r#"{"auths":{"other.test":{"auth":"eDp5"}}}"#).unwrap();
    far.access(Access::AnonymousBearer);
    Site::of(&far, &settings).await.manifest("1").await.unwrap();
}

#[tokio::test]
async fn a_helper_that_fails_does_not_become_an_anonymous_request() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, r#"{"credsStore":"there-is-no-such-helper-of-sealock"}"#).unwrap();
    let far = far_with(Access::AnonymousBearer).await;
    let site = Site::of(&far, &format!("docker_config = {file:?}\nretries_max = 0")).await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Unreachable { .. })));
    assert_eq!(tokens_asked(&far), 0);
}

#[tokio::test]
async fn who_is_refused_is_told_apart_by_what_was_shown() {
    let far = far_with(Access::AnonymousBearer).await;
    let anonymous = Site::of(&far, "").await;
    far.fail_next_on("/manifests/", 403, 1);
    assert!(matches!(anonymous.manifest("1").await, Err(UpstreamError::AnonymousDenied { status: 403, .. })));
    far.access(bearer());
    assert!(matches!(anonymous.manifest("1").await, Err(UpstreamError::AnonymousDenied { status: 401, .. })));
    far.access(Access::Bearer { username: "robot".to_owned(), password: "another".to_owned() });
    let known = Site::with_password(&far, "").await;
    let error = known.manifest("1").await.unwrap_err();
    assert!(matches!(error, UpstreamError::CredentialsDenied { status: 401, .. }));
    assert!(error.to_string().contains("far"));
}

#[tokio::test]
async fn a_refused_password_rests_and_is_tried_again_later() {
    for access in [
        Access::Basic { username: "robot".to_owned(), password: "another".to_owned() },
        Access::Bearer { username: "robot".to_owned(), password: "another".to_owned() },
    ] {
        let far = far_with(access).await;
        let site = Site::with_password(&far, "").await;
        let shown = || far.requests().iter().filter(|request| request.header("authorization").is_some()).count();
        for _ in 0..5 {
            assert!(matches!(site.manifest("1").await, Err(UpstreamError::CredentialsDenied { .. })));
        }
        assert_eq!(shown(), 1);
        assert_eq!(site.upstream.health().resting_until, None);
        site.advance(2);
        assert!(matches!(site.manifest("1").await, Err(UpstreamError::CredentialsDenied { .. })));
        assert_eq!(shown(), 2);
    }
}

// Where credentials must not go.

#[tokio::test]
async fn a_redirect_to_another_origin_sees_no_credentials() {
    // Invariant 12
    for access in [basic(), bearer()] {
        let far = far_with(access).await;
        let bytes = patterned(300_000);
        let digest = far.put_blob(APP, bytes.clone());
        let storage = FarRegistry::start().await;
        far.redirect_blobs_to(&storage);
        storage.cut_blob_at(100_000, 1);
        let site = Site::with_password(&far, "").await;
        // The storage answers 400 to whoever shows credentials.
        assert_eq!(site.blob(&digest, 0).await.unwrap(), (0, bytes));
        assert!(!storage.saw(CANARY));
        assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
    }
}

#[tokio::test]
async fn a_redirected_manifest_sees_no_credentials_either() {
    // Invariant 12
    for status in [301, 302, 303, 307, 308] {
        let far = far_with(basic()).await;
        let other = FarRegistry::start().await;
        let image = other.put_image(APP, "1", &[b"layer"]);
        far.switch(|switches| switches.redirect = Some((status, other.url("/v2/team/app/manifests/1"))));
        let site = Site::with_password(&far, "").await;
        assert_eq!(site.manifest("1").await.unwrap(), image.bytes, "{status}");
        assert_eq!(site.upstream.resolve(&app(), &tag("1")).await.unwrap().digest, Some(image.digest));
        assert!(!other.saw(CANARY));
        assert!(other.requests().iter().all(|request| request.header("authorization").is_none()));
    }
}

#[tokio::test]
async fn another_origin_that_asks_for_credentials_gets_none() {
    // Invariant 12
    for access in [basic(), bearer()] {
        let far = far_with(basic()).await;
        let thief = FarRegistry::start().await;
        thief.put_image(APP, "1", &[b"layer"]);
        thief.access(access);
        far.switch(|switches| switches.redirect = Some((307, thief.url("/v2/team/app/manifests/1"))));
        let site = Site::with_password(&far, "retries_max = 1").await;
        assert!(matches!(site.manifest("1").await, Err(UpstreamError::Failed { status: 401, .. })));
        assert!(!thief.saw(CANARY));
        assert_eq!(tokens_asked(&thief), 0);
    }
}

#[tokio::test]
async fn the_way_back_from_another_origin_carries_no_credentials() {
    // Invariant 12
    let far = far_with(basic()).await;
    let other = FarRegistry::start().await;
    far.switch(|switches| switches.redirect = Some((307, other.url("/v2/team/app/manifests/1"))));
    other.switch(|switches| switches.redirect = Some((307, far.url("/v2/team/secret/manifests/1"))));
    let site = Site::with_password(&far, "retries_max = 0").await;
    site.manifest("1").await.unwrap_err();
    let back: Vec<_> = far.requests().into_iter().filter(|request| request.path.contains("secret")).collect();
    assert!(!back.is_empty() && back.iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_foreign_token_realm_is_not_asked() {
    // Invariant 12
    for password in [true, false] {
        let far = far_with(if password { bearer() } else { Access::AnonymousBearer }).await;
        let thief = FarRegistry::start().await;
        let port = thief.address().port();
        // Another port counts as another origin for a password, and `localhost` as another host for everybody.
        let realm = if password { thief.url("/token") } else { format!("http://localhost:{port}/token") };
        far.switch(|switches| switches.realm = Some(realm));
        let site = if password { Site::with_password(&far, "").await } else { Site::of(&far, "").await };
        let error = site.manifest("1").await.unwrap_err();
        assert!(matches!(error, UpstreamError::Misbehaved { .. }), "{error}");
        assert!(error.to_string().contains("token_realms"), "{error}");
        assert_eq!(thief.connections(), 0);
    }
}

#[tokio::test]
async fn a_listed_token_realm_is_asked_with_credentials() {
    let far = far_with(bearer()).await;
    let tokens = FarRegistry::start().await;
    tokens.access(bearer());
    far.switch(|switches| switches.realm = Some(tokens.url("/token")));
    let site = Site::with_password(&far, &format!("token_realms = ['{}']", tokens.origin())).await;
    site.manifest("1").await.unwrap();
    assert_eq!(tokens_asked(&tokens), 1);
}

#[tokio::test]
async fn realms_that_look_like_the_own_one_are_foreign() {
    // Invariant 12
    let far = far_with(bearer()).await;
    let (host, port) = ("127.0.0.1", far.address().port());
    let site = Site::with_password(&far, "").await;
    for realm in [
        format!("http://{host}.evil.test:{port}/token"),
        format!("http://{host}:{port}@evil.test/token"),
        format!("http://robot:x@{host}:{port}/token"),
        format!("https://{host}:{port}/token"),
        format!("//{host}:{port}/token"),
        "/token".to_owned(),
        "file:///token".to_owned(),
    ] {
        far.switch(|switches| switches.realm = Some(realm.clone()));
        assert!(matches!(site.manifest("1").await, Err(UpstreamError::Misbehaved { .. })), "{realm}");
    }
    assert_eq!(tokens_asked(&far), 0);
}

#[tokio::test]
async fn a_token_realm_that_redirects_is_not_followed() {
    // Invariant 12
    for status in [301, 302, 303, 307, 308] {
        let far = far_with(bearer()).await;
        far.switch(|switches| switches.token_get_status = Some(status));
        let site = Site::with_password(&far, "").await;
        assert!(matches!(site.manifest("1").await, Err(UpstreamError::Misbehaved { .. })), "{status}");
        assert_eq!(tokens_asked(&far), 1);
    }
}

#[tokio::test]
async fn https_does_not_lead_to_http() {
    // Invariant 12
    let far = FarRegistry::start_tls().await;
    far.access(basic());
    let plain = FarRegistry::start().await;
    plain.put_image(APP, "1", &[b"layer"]);
    let folder = TempDir::new().unwrap();
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, far.ca_pem()).unwrap();
    let site = Site::with_password(&far, &format!("ca_file = {ca:?}")).await;
    far.switch(|switches| switches.redirect = Some((307, plain.url("/v2/team/app/manifests/1"))));
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Misbehaved { .. })));
    far.access(bearer());
    far.switch(|switches| switches.realm = Some(plain.url("/token")));
    let listed = format!("ca_file = {ca:?}\ntoken_realms = ['{}']", plain.origin().replace("http:", "https:"));
    let site = Site::with_password(&far, &listed).await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Misbehaved { .. })));
    // Not even for an anonymous token, for which the same host will do.
    far.access(Access::AnonymousBearer);
    let site = Site::of(&far, &format!("ca_file = {ca:?}")).await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Misbehaved { .. })));
    assert_eq!(plain.connections(), 0);
}

#[tokio::test]
async fn secrets_are_neither_in_errors_nor_in_the_audit_file() {
    // Invariant 12
    let far = far_with(Access::Bearer { username: "robot".to_owned(), password: "another".to_owned() }).await;
    let storage = FarRegistry::start().await;
    let digest = far.put_blob(APP, &b"blob"[..]);
    let site = Site::with_password(&far, "").await;
    let denied = site.manifest("1").await.unwrap_err();
    site.advance(100);
    far.access(bearer());
    far.redirect_blobs_to(&storage);
    site.blob(&digest, 0).await.unwrap();
    storage.always(503);
    let failed = site.blob(&digest, 0).await.unwrap_err();
    let told = format!("{denied} {denied:?} {failed} {failed:?} {:?} {}", site.upstream.health(), site.audit().await);
    assert!(told.contains("/token"), "{told}");
    for secret in [CANARY, "only-for-you", "Bearer far."] {
        assert!(!told.contains(secret), "`{secret}` in {told}");
    }
}
