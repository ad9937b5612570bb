//! Rules: no name is a way around them, and nothing tells what is kept from what is not.

use http::StatusCode;
use sealock::config::Settings;

use super::*;
use crate::support::far::FarRegistry;

const VERBS: &[&str] = &["pull", "push", "delete"];

/// `team/` is alice's, `shared/` everybody's who logs in.
async fn site() -> Sealock {
    let rules = rule("team/**", VERBS, &["group:staff"]) + &rule("shared/**", VERBS, &["authenticated"]);
    let settings = format!("[access.groups]\nstaff = [\"alice\"]\n{rules}");
    let site = Sealock::setup().settings(&settings).start().await;
    add_users(&site, &["alice", "bob"]);
    push(&site, "team/secret", "secret layer", &of("alice")).await;
    push(&site, "shared/app", "shared layer", &of("bob")).await;
    site
}

#[tokio::test]
async fn absent_and_forbidden_are_told_the_same() {
    // Invariant 14
    let site = site().await;
    let layer = Digest::sha256(b"secret layer");
    let there = |rest: &str| format!("/v2/team/secret/{rest}");
    let pairs = [
        (Method::GET, there("manifests/1"), there("manifests/2")),
        (Method::GET, there(&format!("blobs/{layer}")), there(&format!("blobs/{}", Digest::sha256(b"none")))),
        (Method::GET, there(&format!("referrers/{layer}")), there(&format!("referrers/{}", Digest::sha256(b"none")))),
        (Method::DELETE, there("manifests/1"), there("manifests/2")),
        (Method::POST, there("blobs/uploads/"), there("blobs/uploads/")),
        (Method::PUT, there("manifests/1"), there("manifests/2")),
    ];
    for shown in [String::new(), of("bob")] {
        let expected = if shown.is_empty() { 401 } else { 403 };
        for (method, kept, absent) in &pairs {
            let [kept, absent] =
                [ask(&site, method.clone(), kept, &shown).await, ask(&site, method.clone(), absent, &shown).await];
            assert_eq!(kept.status, expected, "{method} {kept:?}");
            assert_eq!(same(&kept), same(&absent));
        }
        // A repository that there is not: the same but for its name.
        let texts = ["secret", "absent"].map(|name| (name, format!("/v2/team/{name}/manifests/1")));
        let mut told = Vec::new();
        for (name, path) in &texts {
            told.push(format!("{:?}", same(&get(&site, path, &shown).await)).replace(name, "NAME"));
        }
        assert_eq!(told[0], told[1]);
    }
    let head = ask(&site, Method::HEAD, &there("manifests/1"), "").await;
    assert!(challenge(&head).contains("scope=\"repository:team/secret:pull\""));
    assert_eq!(status(&site, &there("manifests/1"), &of("alice")).await, 200);
    assert_eq!(status(&site, &there("manifests/2"), &of("alice")).await, 404);
}

#[tokio::test]
async fn no_other_name_is_a_way_around_a_rule() {
    // Invariant 14
    let far = FarRegistry::start().await;
    far.put_image("security-products/semgrep", "6", &[b"layer"]);
    far.put_image("library/alpine", "3", &[b"layer"]);
    let routes = "[route.\"security-products/**\"]\nupstream = \"gitlab\"\n\
        [route.\"old/**\"]\nupstream = \"gitlab\"\nrepository = \"security-products/**\"\n\
        [route.alpine]\nupstream = \"gitlab\"\nrepository = \"library/alpine\"\n";
    let names = [
        "/v2/security-products/semgrep/manifests/6",
        "/v2/gitlab.test/security-products/semgrep/manifests/6",
        "/v2/old/semgrep/manifests/6",
        "/v2/security-products/semgrep/manifests/6?ns=gitlab.test",
    ];
    let everything_else = rule("library/**", &["pull"], &["anonymous"]) + &rule("local/**", &["pull"], &["anonymous"]);
    for written in ["security-products/**", "old/semgrep", "gitlab.test/security-products/semgrep", "old/**"] {
        let rules = rule(written, &["pull"], &["user:alice"]) + &everything_else;
        let site = Sealock::setup().upstream("gitlab", "gitlab.test", &far).settings(&format!("{routes}{rules}"));
        let site = site.gate_open().start().await;
        add_users(&site, &["alice", "bob"]);
        let before = far.requests().len();
        for path in names {
            assert_eq!(status(&site, path, "").await, 401, "{written}: {path}");
            assert_eq!(status(&site, path, &of("bob")).await, 403, "{written}: {path}");
        }
        assert_eq!(far.requests().len(), before, "nobody who may not pull makes us ask");
        for path in names {
            assert_eq!(status(&site, path, &of("alice")).await, 200, "{written}: {path}");
        }
        // A token's scope is about the repository, too: containerd asks by the name that it knows.
        let token = token(&site, &of("alice"), &["repository:old/semgrep:pull"]).await;
        for path in names {
            assert_eq!(status(&site, path, &token).await, 200, "{written}: {path}");
        }
        // The rule for `library/**` is about local names: the upstream's are reached by others.
        for path in ["/v2/alpine/manifests/3", "/v2/library/alpine/manifests/3?ns=gitlab.test"] {
            assert_eq!(status(&site, path, "").await, 401, "{path}");
        }
        // A namespace that is not there is told to nobody who may not read everything.
        let nowhere = get(&site, "/v2/library/alpine/manifests/3?ns=nowhere.test", "").await;
        assert_eq!(nowhere.status, StatusCode::UNAUTHORIZED, "{nowhere:?}");
    }
}

#[tokio::test]
async fn the_catalog_shows_each_caller_what_they_may_read() {
    // Invariant 14
    let site = site().await;
    for name in ["team/a", "team/b", "shared/z"] {
        push(&site, name, "layer", &of("alice")).await;
    }
    let shown = async |authorization: &str, query: &str| {
        let reply = get(&site, &format!("/v2/_catalog{query}"), authorization).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        (json(&reply)["repositories"].to_string(), reply.header("link").map(str::to_owned))
    };
    let all = r#"["shared/app","shared/z","team/a","team/b","team/secret"]"#;
    assert_eq!(shown(&of("alice"), "").await, (all.to_owned(), None));
    assert_eq!(shown(&of("bob"), "").await, (r#"["shared/app","shared/z"]"#.to_owned(), None));
    // The page ends where what bob sees ends: what follows is no concern of his.
    assert_eq!(shown(&of("bob"), "?n=2").await, (r#"["shared/app","shared/z"]"#.to_owned(), None));
    let (first, link) = shown(&of("bob"), "?n=1").await;
    assert_eq!((first.as_str(), link.unwrap().contains("last=shared%2Fapp")), (r#"["shared/app"]"#, true));
    assert!(challenge(&get(&site, "/v2/_catalog", "").await).contains("scope=\"registry:catalog:*\""));
    let token = token(&site, &of("bob"), &["registry:catalog:*"]).await;
    assert_eq!(shown(&token, "").await.0, r#"["shared/app","shared/z"]"#);
}

#[tokio::test]
async fn a_mount_opens_nothing_that_its_caller_may_not_read() {
    // Invariant 14
    let site = site().await;
    let secret = Digest::sha256(b"secret layer");
    for (from, kept) in
        [("&from=team/secret", true), ("", true), ("&from=team/nowhere", false), ("&from=shared/app", false)]
    {
        let path = format!("/v2/shared/app/blobs/uploads/?mount={secret}{from}");
        let reply = ask(&site, Method::POST, &path, &of("bob")).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{from}: {reply:?}");
        assert_eq!(status(&site, &format!("/v2/shared/app/blobs/{secret}"), &of("bob")).await, 404);
        let reply = ask(&site, Method::POST, &path.replace("shared/app/", "team/new/"), &of("alice")).await;
        assert_eq!(reply.status == StatusCode::CREATED, kept, "{from}: {reply:?}");
    }
    // A token for the one repository does not open the other.
    let token = token(&site, &of("alice"), &["repository:shared/third:push,pull"]).await;
    for from in ["&from=team/secret", ""] {
        let path = format!("/v2/shared/third/blobs/uploads/?mount={secret}{from}");
        assert_eq!(ask(&site, Method::POST, &path, &token).await.status, StatusCode::ACCEPTED, "{from}");
    }
}

#[tokio::test]
async fn an_upload_is_its_beginners() {
    let site = site().await;
    let begun = ask(&site, Method::POST, "/v2/shared/app/blobs/uploads/", &of("alice")).await;
    let location = begun.header("location").unwrap();
    assert_eq!(status(&site, location, &of("alice")).await, 204);
    assert_eq!(status(&site, location, &of("bob")).await, 404);
    let token = token(&site, &of("alice"), &["repository:shared/app:push,pull"]).await;
    assert_eq!(status(&site, location, &token).await, 204, "a token is the same caller");
}

#[tokio::test]
async fn what_was_had_with_credentials_needs_a_login_here() {
    let far = FarRegistry::start().await;
    far.put_image("team/app", "1", &[b"layer"]);
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "upstreams-own").unwrap();
    let path = "/v2/far.test/team/app/manifests/1";
    for (lines, rules, expected) in [
        ("", String::new(), 401),
        ("", rule("**", &["pull"], &["anonymous"]), 401),
        ("", rule("**", &["pull", "push", "delete"], &["anonymous"]), 401),
        ("anonymous = true\n", String::new(), 200),
        ("anonymous = true\n", rule("far.test/**", &["pull"], &["anonymous"]), 200),
    ] {
        let credentials = format!("username = \"u\"\npassword_file = {secret:?}\n{lines}");
        let site = Sealock::setup().upstream("far", "far.test", &far).settings(&format!("{credentials}{rules}"));
        let site = site.gate_open().start().await;
        assert_eq!(status(&site, path, "").await, expected, "{lines}{rules}");
        // docker looks nowhere else.
        let open = expected == 200 && rules.is_empty();
        assert_eq!(status(&site, "/v2/", "").await, if open { 200 } else { 401 });
        let anonymous = token(&site, "", &["repository:far.test/team/app:pull"]).await;
        assert_eq!(status(&site, path, &anonymous).await, expected);
        assert_eq!(status(&site, "/v2/", &anonymous).await, 200, "{lines}{rules}");
        if !open {
            for shown in ["Bearer rubbish", "Basic Og=="] {
                assert_eq!(status(&site, "/v2/", shown).await, 401, "{shown}");
            }
        }
        if expected == 401 {
            let denied = get(&site, path, &anonymous).await;
            assert!(challenge(&denied).ends_with("error=\"insufficient_scope\""), "{denied:?}");
        }
        add_users(&site, &["alice"]);
        if rules.is_empty() || expected == 401 {
            assert_eq!(status(&site, path, &of("alice")).await, 200);
        }
    }
}

#[tokio::test]
async fn of_an_upstream_with_credentials_for_some_names_only_those_need_a_login() {
    let far = FarRegistry::start().await;
    for name in ["group/app", "open/app"] {
        far.put_image(name, "1", &[b"layer"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "upstreams-own").unwrap();
    let some = format!("credentials = {{ \"group/**\" = {{ username = \"u\", password_file = {secret:?} }} }}");
    let site = Sealock::setup().upstream("far", "far.test", &far).settings(&some).gate_open().start().await;
    assert_eq!(status(&site, "/v2/far.test/group/app/manifests/1", "").await, 401);
    assert_eq!(status(&site, "/v2/far.test/open/app/manifests/1", "").await, 200);
    // As docker does: `/v2/` sends it for a token, which is good for all but the private names until it ends.
    let scopes = ["repository:far.test/open/app:pull", "repository:far.test/group/app:pull"];
    let anonymous = token(&site, "", &scopes).await;
    assert_eq!(status(&site, "/v2/", "").await, 401);
    assert_eq!(status(&site, "/v2/", &anonymous).await, 200);
    assert_eq!(status(&site, "/v2/far.test/open/app/manifests/1", &anonymous).await, 200);
    assert_eq!(status(&site, "/v2/far.test/group/app/manifests/1", &anonymous).await, 401);
    site.advance(std::time::Duration::from_secs(86_400));
    assert_eq!(status(&site, "/v2/", &anonymous).await, 401);
}

#[test]
fn a_wrong_rule_is_one_line_with_its_own_line() {
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    let good = rule("a/**", &["pull"], &["anonymous"]);
    let issuer = "[access.issuer.gitlab]\nissuer = \"https://gitlab.test\"\naudience = \"us\"\n";
    let cases = [
        (format!("{good}{}", rule("a/*", &["pull"], &["anonymous"])), "site.toml:6: access.rule.1.repository: `a/*`"),
        (rule("a", &["fly"], &["anonymous"]), "site.toml:3: access.rule.0.verbs"),
        (rule("a", &[], &["anonymous"]), "site.toml:3: access.rule.0.verbs: name one or more"),
        (rule("a", &["pull"], &[]), "site.toml:4: access.rule.0.to: say whom it lets"),
        (rule("a", &["pull"], &["everyone"]), "site.toml:4: access.rule.0.to: `everyone` is nobody"),
        (rule("a", &["pull"], &["group:none"]), "there is no group `none`"),
        (rule("a", &["pull"], &["claim:x=y"]), "no issuer vouches"),
        (format!("{good}nonsense = 1"), "unknown field `nonsense`"),
        ("[access]\ntoken_life = \"1m\"".to_owned(), "site.toml:2: access.token_life: write 5m to 1d"),
        ("[access]\nrealm = \"registry\"".to_owned(), "site.toml:2: access.realm: write a URL"),
        ("[access.groups]\nci = [\"group:x\"]".to_owned(), "site.toml:2: access.groups.ci: `group:x`"),
        (format!("{issuer}jwks_file = \"k\""), "site.toml:2: access.issuer.gitlab.issuer: no rule"),
        (issuer.to_owned(), "access.issuer.gitlab.jwks_url: say where its keys are"),
        (
            format!("{issuer}jwks_url = \"http://gitlab.test/keys\""),
            "site.toml:4: access.issuer.gitlab.jwks_url: write `https",
        ),
        (
            format!("{issuer}jwks_file = \"k\"\nalgorithms = [\"HS256\"]"),
            "site.toml:5: access.issuer.gitlab.algorithms",
        ),
    ];
    for (text, expected) in cases {
        std::fs::write(&file, &text).unwrap();
        let why = Settings::load(std::slice::from_ref(&file), []).map(|_| ()).expect_err(&text).to_string();
        assert!(why.contains(expected) && !why.contains('\n'), "{text}\n  says      {why}\n  should be {expected}");
    }
}
