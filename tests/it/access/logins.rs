//! Passwords and robots: let in, turned away, slowed down, and out at once.

use std::time::Duration;

use http::StatusCode;
use sealock::access::{ACCOUNT_TRIES, Verb};
use sealock::secret::Secret;

use super::*;

#[tokio::test]
async fn with_no_rule_and_no_user_everybody_may_do_everything_whatever_they_show() {
    let site = Sealock::setup().start().await;
    push(&site, "team/app", "layer", "").await;
    for shown in ["", "Basic Og==", "Bearer rubbish", "Digest x", &of("alice")] {
        assert_eq!(status(&site, "/v2/", shown).await, 200, "{shown}");
        assert_eq!(status(&site, "/v2/team/app/manifests/1", shown).await, 200, "{shown}");
    }
    assert!(site.app.access().report().open);
}

#[tokio::test]
async fn the_first_user_closes_the_door_and_the_last_one_opens_it_to_nobody() {
    let site = Sealock::setup().start().await;
    push(&site, "team/app", "layer", "").await;
    add_users(&site, &["alice"]);
    let path = "/v2/team/app/manifests/1";
    for (authorization, expected) in [(String::new(), 401), (of("alice"), 200), (basic("alice", "wrong-word"), 401)] {
        assert_eq!(status(&site, "/v2/", &authorization).await, expected, "{authorization}");
        assert_eq!(status(&site, path, &authorization).await, expected, "{authorization}");
    }
    push(&site, "team/other", "layer", &of("alice")).await;
    users(&site).remove("alice").unwrap();
    assert_eq!(status(&site, path, &of("alice")).await, 401);
    assert_eq!(status(&site, path, "").await, 401);
    assert!(!site.app.access().report().open);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_name_are_told_the_same() {
    // Invariant 14
    let site = Sealock::setup().start().await;
    add_users(&site, &["alice"]);
    let wrong = get(&site, "/v2/", &basic("alice", "wrong-word")).await;
    let unknown = get(&site, "/v2/", &basic("mallory", PASSWORD)).await;
    assert_eq!(same(&wrong), same(&unknown));
    assert_eq!(wrong.error().0, "UNAUTHORIZED");
    assert!(challenge(&wrong).starts_with(&format!("Bearer realm=\"http://{}/token\"", site.address)));
    // Its password is that of whose hash an unknown name is held against.
    assert_eq!(status(&site, "/token", &basic("mallory", PASSWORD)).await, 401);
}

#[tokio::test]
async fn a_new_password_voids_the_old_one_at_once() {
    let site = Sealock::setup().start().await;
    add_users(&site, &["alice"]);
    assert_eq!(status(&site, "/v2/", &of("alice")).await, 200);
    let token = token(&site, &of("alice"), &[]).await;
    assert_eq!(status(&site, "/v2/", &token).await, 200);
    users(&site).set_password("alice", &Secret::new("open-sesame")).unwrap();
    assert_eq!(status(&site, "/v2/", &of("alice")).await, 401);
    assert_eq!(status(&site, "/v2/", &token).await, 401);
    assert_eq!(status(&site, "/v2/", &basic("alice", "open-sesame")).await, 200);
}

#[tokio::test]
async fn guesses_are_slowed_down_and_who_is_known_is_not() {
    // Invariant 17
    let site = Sealock::setup().start().await;
    add_users(&site, &["alice", "bob"]);
    assert_eq!(status(&site, "/v2/", &of("alice")).await, 200);
    for name in ["alice", "mallory"] {
        for _ in 0..ACCOUNT_TRIES {
            assert_eq!(status(&site, "/v2/", &basic(name, "wrong-word")).await, 401);
        }
        let slowed = get(&site, "/v2/", &basic(name, "wrong-word")).await;
        assert_eq!(slowed.status, StatusCode::TOO_MANY_REQUESTS, "{name}: {slowed:?}");
        assert_eq!((slowed.header("retry-after"), slowed.error().0.as_str()), (Some("1"), "TOOMANYREQUESTS"));
    }
    assert_eq!(status(&site, "/v2/", &of("alice")).await, 200, "remembered");
    assert_eq!(status(&site, "/v2/", &of("bob")).await, 200, "another account");
    // Also the right one has to wait where it is not remembered.
    users(&site).set_password("alice", &Secret::new("open-sesame")).unwrap();
    assert_eq!(status(&site, "/v2/", &basic("alice", "open-sesame")).await, 429);
    site.advance(Duration::from_secs(1));
    assert_eq!(status(&site, "/v2/", &basic("alice", "open-sesame")).await, 200);
}

#[tokio::test]
async fn what_is_no_login_is_refused_and_breaks_nothing() {
    // Invariant 16
    let site = Sealock::setup().start().await;
    add_users(&site, &["alice"]);
    let long = format!("Basic {}", "QQ".repeat(20_000));
    for shown in ["Digest x", "Basic !", "Basic", "Bearer", "Bearer a.b.c", "Bearer ..", &basic("", "x"), &long] {
        let reply = get(&site, "/v2/", shown).await;
        assert_eq!((reply.status.as_u16(), reply.error().0.as_str()), (401, "UNAUTHORIZED"), "{shown:.40}");
    }
    // skopeo's, where it has nothing to log in with.
    assert!(challenge(&get(&site, "/v2/", "Basic Og==").await).starts_with("Bearer "));
    for open in ["/livez", "/readyz"] {
        assert_eq!(status(&site, open, "").await, 200);
    }
}

#[tokio::test]
async fn a_robot_has_its_scope_and_no_more_until_it_ends() {
    let site = Sealock::setup().settings(&rule("**", &["pull", "push"], &["authenticated"])).start().await;
    add_users(&site, &["alice"]);
    push(&site, "team/app", "layer", &of("alice")).await;
    push(&site, "other/app", "layer", &of("alice")).await;
    let secret = add_robot(&site, "ci", "team/**", &[Verb::Pull], 90);
    let robot = basic("ci", secret.expose());
    let bearer = format!("Bearer {}", secret.expose());
    let token = token(&site, &robot, &["repository:team/app:pull"]).await;
    for shown in [&robot, &bearer, &token] {
        assert_eq!(status(&site, "/v2/team/app/manifests/1", shown).await, 200);
    }
    assert_eq!(status(&site, "/v2/other/app/manifests/1", &robot).await, 403, "`authenticated` is no robot");
    let pushed = ask(&site, Method::POST, "/v2/team/app/blobs/uploads/", &robot).await;
    assert_eq!(pushed.status, StatusCode::FORBIDDEN);
    assert_eq!(status(&site, "/v2/", &basic("other", secret.expose())).await, 401, "of another name");
    robots(&site).revoke("ci").unwrap();
    for shown in [&robot, &bearer, &token] {
        assert_eq!(status(&site, "/v2/team/app/manifests/1", shown).await, 401, "revoked");
    }
    let robot = basic("day", add_robot(&site, "day", "team/**", &[Verb::Pull], 1).expose());
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &robot).await, 200);
    site.advance(Duration::from_secs(86_400));
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &robot).await, 401, "expired");
}

#[tokio::test]
async fn a_file_of_users_may_stand_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("htpasswd");
    let bcrypt = bcrypt::hash(PASSWORD, 4).unwrap().replacen("$2b$", "$2y$", 1);
    std::fs::write(&file, format!("alice:{bcrypt}\n")).unwrap();
    let site = Sealock::setup().settings(&format!("[access]\nhtpasswd = {file:?}")).start().await;
    assert_eq!(status(&site, "/v2/", &of("alice")).await, 200);
    assert_eq!(status(&site, "/v2/", "").await, 401);
    std::fs::write(&file, "").unwrap();
    assert_eq!(status(&site, "/v2/", &of("alice")).await, 401);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(status(&site, "/v2/", "").await, 401, "what is away lets nobody in");
}
