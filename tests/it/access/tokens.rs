//! The token endpoint, and tokens with requests: as docker, containerd and the others ask for them and show them.

use std::time::Duration;

use http::StatusCode;
use sealock::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// Alice may do everything in `team/`, anybody may read `open/`.
async fn site() -> Sealock {
    let rules = rule("team/**", &["pull", "push", "delete"], &["user:alice"])
        + &rule("team/**", &["pull"], &["user:bob"])
        + &rule("open/**", &["pull"], &["anonymous"])
        + &rule("open/**", &["push"], &["user:alice"]);
    let site = Sealock::setup().settings(&rules).start().await;
    add_users(&site, &["alice", "bob"]);
    push(&site, "team/app", "team layer", &of("alice")).await;
    push(&site, "open/app", "open layer", &of("alice")).await;
    site
}

#[tokio::test]
async fn docker_logs_in_pulls_and_pushes() {
    let site = site().await;
    let base = get(&site, "/v2/", "").await;
    let realm = format!("Bearer realm=\"http://{0}/token\",service=\"{0}\"", site.address);
    assert_eq!(challenge(&base), realm);
    let login = get(&site, "/token?account=alice&client_id=docker&offline_token=true&service=x", &of("alice")).await;
    let reply = json(&login);
    assert_eq!(reply["token"], reply["access_token"]);
    assert!(reply["expires_in"].as_i64().unwrap() >= 300, "{reply}");
    assert!(reply["issued_at"].as_str().unwrap().ends_with('Z'), "{reply}");
    assert_eq!(login.header("cache-control"), Some("no-store"));
    assert_eq!(status(&site, "/v2/", &format!("Bearer {}", reply["token"].as_str().unwrap())).await, 200);
    let pull = token(&site, &of("bob"), &["repository:team/app:pull"]).await;
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &pull).await, 200);
    let both = token(&site, &of("alice"), &["repository:team/new:push,pull", "repository:team/app:pull"]).await;
    push(&site, "team/new", "another layer", &both).await;
    assert_eq!(status(&site, "/v2/team/app/tags/list", &both).await, 200);
}

#[tokio::test]
async fn a_token_says_no_more_than_its_owner_may() {
    // Invariant 14
    let site = site().await;
    let token = token(&site, &of("bob"), &["repository:team/app:pull,push,delete", "repository:other/app:pull"]).await;
    let claims = token.split('.').nth(1).unwrap();
    let claims: Value =
        serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    assert_eq!(claims["access"], serde_json::json!([["", "team/app", ["pull"]]]));
}

#[tokio::test]
async fn a_form_that_drips_is_not_waited_for() {
    // Invariant 17
    let site = Sealock::setup().settings("[server]\nheader_timeout = \"1s\"\n").start().await;
    #[expect(clippy::disallowed_methods, reason = "a client of the tests, on loopback")]
    let mut client = TcpStream::connect(&site.address).await.unwrap();
    let head = "POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut from, mut to) = client.split();
    let drip = async {
        // Until the server has had enough.
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut answer = [0; 12];
    let answered = async { from.read_exact(&mut answer).await.unwrap() };
    tokio::select! {
        _ = answered => {}
        () = async { drip.await; std::future::pending().await } => {}
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("it is waited for"),
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn what_everybody_may_read_needs_no_login_and_no_token() {
    let site = site().await;
    let path = "/v2/open/app/manifests/1";
    // containerd asks without a token; docker and the others are led to an anonymous one by `/v2/`.
    assert_eq!(status(&site, path, "").await, 200);
    let anonymous = token(&site, "", &["repository:open/app:pull", "repository:team/app:pull"]).await;
    assert_eq!(status(&site, "/v2/", &anonymous).await, 200);
    assert_eq!(status(&site, path, &anonymous).await, 200);
    let denied = get(&site, "/v2/team/app/manifests/1", &anonymous).await;
    assert!(
        challenge(&denied).ends_with("scope=\"repository:team/app:pull\",error=\"insufficient_scope\""),
        "{denied:?}"
    );
    assert!(json(&get(&site, "/token?offline_token=true", "").await).get("refresh_token").is_none());
}

#[tokio::test]
async fn a_token_is_good_for_its_scope_alone() {
    // Invariant 14
    let site = site().await;
    let other = push(&site, "team/other", "other layer", &of("alice")).await;
    let mount = format!("/v2/team/app/blobs/uploads/?mount={other}&from=team/other");
    let token = token(&site, &of("alice"), &["repository:team/app:pull"]).await;
    for (method, path, wish) in [
        (Method::GET, "/v2/team/other/manifests/1", "repository:team/other:pull"),
        (Method::GET, "/v2/team/no-such/manifests/1", "repository:team/no-such:pull"),
        (Method::POST, "/v2/team/app/blobs/uploads/", "repository:team/app:pull,push"),
        // A mount needs both, and the challenge is all that tells some clients.
        (Method::POST, &mount, "repository:team/app:pull,push repository:team/other:pull"),
        (Method::DELETE, "/v2/team/app/manifests/1", "repository:team/app:delete"),
        (Method::GET, "/v2/_catalog", "registry:catalog:*"),
    ] {
        let reply = ask(&site, method, path, &token).await;
        assert!(challenge(&reply).ends_with(&format!("scope=\"{wish}\",error=\"insufficient_scope\"")), "{reply:?}");
    }
    let asked_too_much = super::token(&site, &of("bob"), &["repository:team/app:pull,push,delete"]).await;
    let pushed = ask(&site, Method::POST, "/v2/team/app/blobs/uploads/", &asked_too_much).await;
    assert_eq!((pushed.status.as_u16(), pushed.error().0.as_str()), (403, "DENIED"));
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &asked_too_much).await, 200);
}

#[tokio::test]
async fn a_token_ends_and_its_user_with_it() {
    let site = site().await;
    let path = "/v2/team/app/manifests/1";
    let bobs = token(&site, &of("bob"), &["repository:team/app:pull"]).await;
    assert_eq!(status(&site, path, &bobs).await, 200);
    site.advance(Duration::from_secs(15 * 60 - 1));
    assert_eq!(status(&site, path, &bobs).await, 200);
    site.advance(Duration::from_secs(1));
    let expired = get(&site, path, &bobs).await;
    assert!(challenge(&expired).ends_with("error=\"invalid_token\""), "{expired:?}");
    let bobs = token(&site, &of("bob"), &["repository:team/app:pull"]).await;
    assert_eq!(status(&site, path, &bobs).await, 200);
    users(&site).remove("bob").unwrap();
    assert_eq!(status(&site, path, &bobs).await, 401);
}

#[tokio::test]
async fn containerd_sends_its_password_by_form_and_docker_its_refresh_token() {
    let site = site().await;
    let scope = "scope=repository%3Ateam%2Fapp%3Apull";
    let form = format!("grant_type=password&username=alice&password={PASSWORD}&service=x&client_id=c&{scope}");
    let reply = post_form(&site, form).await;
    let token = format!("Bearer {}", json(&reply)["access_token"].as_str().unwrap());
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &token).await, 200);
    let form = format!("grant_type=password&username=alice&password={PASSWORD}&access_type=offline");
    let refresh = json(&post_form(&site, form).await)["refresh_token"].as_str().unwrap().to_owned();
    let renew = || post_form(&site, format!("grant_type=refresh_token&refresh_token={refresh}&{scope}"));
    let token = format!("Bearer {}", json(&renew().await)["access_token"].as_str().unwrap());
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &token).await, 200);
    assert_eq!(status(&site, "/v2/", &format!("Bearer {refresh}")).await, 401, "it is no access token");
    site.advance(Duration::from_secs(29 * 86_400));
    assert_eq!(renew().await.status, StatusCode::OK);
    users(&site).set_password("alice", &Secret::new("open-sesame")).unwrap();
    assert_eq!(renew().await.status, StatusCode::UNAUTHORIZED, "of the old password");
    let access = token.strip_prefix("Bearer ").unwrap();
    let reply = post_form(&site, format!("grant_type=refresh_token&refresh_token={access}")).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "an access token is no refresh token");
}

#[tokio::test]
async fn requests_for_tokens_that_make_no_sense_are_refused() {
    // Invariants 16, 17
    let site = site().await;
    for (form, status) in [
        ("grant_type=password&username=alice&password=wrong-word".to_owned(), 401),
        ("grant_type=refresh_token&refresh_token=rubbish".to_owned(), 401),
        ("grant_type=refresh_token".to_owned(), 401),
        ("grant_type=authorization_code&code=x".to_owned(), 400),
        (String::new(), 400),
        ("%ff=%fe&&=&grant_type".to_owned(), 400),
        (format!("grant_type=password&username={}", "a".repeat(70_000)), 413),
    ] {
        assert_eq!(post_form(&site, form.clone()).await.status, status, "{form:.80}");
    }
    assert_eq!(ask(&site, Method::DELETE, "/token", "").await.status, StatusCode::METHOD_NOT_ALLOWED);
    let token = token(&site, &of("alice"), &["repository:team/app:pull"]).await;
    assert_eq!(status(&site, "/token?scope=repository:team/app:push", &token).await, 401, "a token buys no other");
    let odd = "/token?scope=repository:A/../b:pull&scope=:::&scope=%00&account=%ff";
    assert_eq!(status(&site, odd, &of("alice")).await, 200);
}

#[tokio::test]
async fn the_realm_is_that_of_the_settings_where_a_proxy_stands_in_front() {
    let settings = "[access]\nrealm = \"https://registry.site.internal/token\"\nrefresh_life = \"0s\"";
    let site = Sealock::setup().settings(settings).start().await;
    add_users(&site, &["alice"]);
    let base = get(&site, "/v2/", "").await;
    assert!(challenge(&base).starts_with("Bearer realm=\"https://registry.site.internal/token\","), "{base:?}");
    let login = get(&site, "/token?offline_token=true", &of("alice")).await;
    assert!(json(&login).get("refresh_token").is_none());
}

#[tokio::test]
async fn tokens_outlast_the_process() {
    let site = site().await;
    let token = token(&site, &of("alice"), &["repository:team/app:pull"]).await;
    let site = site.stop().await.start().await;
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &token).await, 200);
}
