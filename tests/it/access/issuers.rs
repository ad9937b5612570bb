//! Tokens of others: GitLab's jobs log in by what GitLab says of them, and by nothing that it did not sign.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use http::StatusCode;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use super::*;
use crate::support::site::Setup;

const ISS: &str = "https://gitlab.test";
const AUD: &str = "https://registry.test";

/// A key of the issuer's.
struct Signer {
    kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    fn es256(kid: &'static str) -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Self { kid, algorithm: Algorithm::ES256, key: EncodingKey::from_ec_der(pkcs8.as_ref()) }
    }

    fn es384(kid: &'static str) -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Self { kid, algorithm: Algorithm::ES384, key: EncodingKey::from_ec_der(pkcs8.as_ref()) }
    }

    fn rs256(kid: &'static str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let pkcs8: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
        // Version, algorithm (26 bytes in all), and the key itself in an octet string with four bytes of head.
        Self { kid, algorithm: Algorithm::RS256, key: EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..]) }
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    /// A job's token, with some claims in place of the usual.
    fn token(&self, site: &Sealock, other: &Value) -> String {
        let now = site.clock.now().as_second();
        let mut claims = json!({
            "iss": ISS, "aud": AUD, "iat": now, "nbf": now - 5, "exp": now + 300, "jti": "1",
            "sub": "project_path:team/app:ref_type:branch:ref:main",
            "project_path": "team/app", "ref_protected": "true",
        });
        for (name, value) in other.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        self.sign(Header::new(self.algorithm), &claims)
    }

    fn sign(&self, mut header: Header, claims: &Value) -> String {
        header.kid = Some(self.kid.to_owned());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

/// Where the issuer serves its keys: whatever was put there, and how often it was asked.
struct KeyServer {
    url: String,
    body: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl KeyServer {
    async fn start(keys: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/oauth/discovery/keys", listener.local_addr().unwrap());
        let (body, asked) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicUsize::new(0)));
        let (served, counted) = (body.clone(), asked.clone());
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let body = served.lock().await.clone();
                let reply =
                    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                socket.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        let server = Self { url, body, asked };
        server.serve(keys).await;
        server
    }

    async fn serve(&self, keys: &[&Signer]) {
        *self.body.lock().await = set(keys);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn set(keys: &[&Signer]) -> String {
    json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Jobs of `team/` push to `team/`, where their branch is protected.
fn setup(keys: &str) -> Setup {
    let issuer = format!(
        "[access.issuer.gitlab]\nissuer = \"{ISS}\"\naudience = \"{AUD}\"\nalgorithms = [\"ES256\", \"RS256\"]\n{keys}\n"
    );
    let rules = rule("team/**", &["pull", "push"], &["claim:project_path=team/*,ref_protected=true"]);
    Sealock::setup().settings(&format!("{issuer}{rules}"))
}

#[tokio::test]
async fn a_job_pushes_with_its_token_as_the_password() {
    let (ec, rsa) = (Signer::es256("ec"), Signer::rs256("rsa"));
    let keys = KeyServer::start(&[&ec, &rsa]).await;
    let site = setup(&format!("jwks_url = \"{}\"", keys.url)).start().await;
    for signer in [&ec, &rsa] {
        let job = signer.token(&site, &json!({}));
        let password = basic("gitlab-ci-token", &job);
        push(&site, "team/app", "layer", &password).await;
        let bearer = format!("Bearer {job}");
        let ours = token(&site, &password, &["repository:team/app:pull,push"]).await;
        for shown in [&password, &bearer, &ours] {
            assert_eq!(status(&site, "/v2/team/app/manifests/1", shown).await, 200);
            assert_eq!(status(&site, "/v2/other/app/manifests/1", shown).await, 403);
        }
        let unprotected = basic("x", &signer.token(&site, &json!({ "ref_protected": "false" })));
        let other = basic("x", &signer.token(&site, &json!({ "project_path": "other/team/app" })));
        assert_eq!(status(&site, "/v2/team/app/manifests/1", &unprotected).await, 403);
        assert_eq!(status(&site, "/v2/team/app/manifests/1", &other).await, 403);
        // Ours ends with the job's.
        site.advance(Duration::from_secs(300 + 30));
        for shown in [&password, &bearer, &ours] {
            assert_eq!(status(&site, "/v2/team/app/manifests/1", shown).await, 401);
        }
    }
    assert_eq!(keys.asked(), 1, "one set for all");
}

#[tokio::test]
async fn a_job_gives_orders_by_a_rule_and_reads_metrics_by_a_claim_that_no_rule_asks_for() {
    // Invariant 14
    let signer = Signer::es256("ec");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    std::fs::write(&file, set(&[&signer])).unwrap();
    let rules = rule("**", &["admin"], &["claim:project_path=ops/*,ref_protected=true"]);
    let metrics = format!("{}metrics_to = [\"claim:environment=monitoring\"]\n", orders::LISTEN);
    let site = setup(&format!("jwks_file = {file:?}")).settings(&rules).settings(&metrics).start().await;
    for (claims, status, metrics) in [
        (json!({ "project_path": "ops/gate" }), 200, 200),
        (json!({ "project_path": "ops/gate", "ref_protected": "false" }), 403, 403),
        (json!({ "environment": "monitoring" }), 403, 200),
        (json!({}), 403, 403),
    ] {
        let job = signer.token(&site, &claims);
        for shown in [format!("Bearer {job}"), basic("gitlab-ci-token", &job)] {
            assert_eq!(orders::ask_admin(&site, "/status", &shown).await, status, "{claims}");
            assert_eq!(orders::ask_admin(&site, "/metrics", &shown).await, metrics, "{claims}");
        }
    }
}

#[tokio::test]
async fn keys_are_fetched_with_the_gate_closed_and_put_on_record() {
    // Invariants 1, 15, 19
    let signer = Signer::es256("ec");
    let keys = KeyServer::start(&[&signer]).await;
    let site = setup(&format!("jwks_url = \"{}\"", keys.url)).start().await;
    assert_eq!(keys.asked(), 0, "the start asks nobody");
    assert!(!site.app.gate().status().open);
    let job = format!("Bearer {}", signer.token(&site, &json!({})));
    assert_eq!(status(&site, "/v2/", &job).await, 200);
    assert_eq!(site.app.gate().status().sockets, 0, "it is no upstream");
    site.app.gate().flush().await.unwrap();
    let audit = site.audit();
    let record = audit.iter().find(|line| line["purpose"] == "keys").unwrap_or_else(|| panic!("{audit:?}"));
    assert_eq!((record["upstream"].as_str(), record["outcome"].as_str()), (Some("issuer:gitlab"), Some("done")));
}

#[tokio::test]
async fn a_token_that_the_issuer_did_not_make_for_us_is_refused() {
    // Invariant 16
    let (signer, stranger) = (Signer::es256("ec"), Signer::es256("ec"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    // Its own key, but of a kind that the settings do not name.
    let es384 = Signer::es384("384");
    std::fs::write(&file, set(&[&signer, &es384])).unwrap();
    let site = setup(&format!("jwks_file = {file:?}")).start().await;
    let now = site.clock.now().as_second();
    assert_eq!(status(&site, "/v2/", &format!("Bearer {}", signer.token(&site, &json!({})))).await, 200);
    let unknown = Signer { kid: "other", algorithm: signer.algorithm, key: signer.key.clone() };
    let public = serde_json::to_vec(&signer.jwk()).unwrap();
    let hmac = Signer { kid: "ec", algorithm: Algorithm::HS256, key: EncodingKey::from_secret(&public) };
    let claims = json!({ "iss": ISS, "aud": AUD, "exp": now + 300, "sub": "job" });
    assert_eq!(
        status(&site, "/v2/", &format!("Bearer {}", signer.sign(Header::new(signer.algorithm), &claims))).await,
        200
    );
    let extended = Header { crit: Some(vec!["b64".to_owned()]), ..Header::new(signer.algorithm) };
    let cases = [
        ("an extension that must be understood", signer.sign(extended, &claims)),
        ("another's signature", stranger.token(&site, &json!({}))),
        ("another key", unknown.token(&site, &json!({}))),
        ("another kind of signature", es384.token(&site, &json!({}))),
        ("a shared secret", hmac.token(&site, &json!({}))),
        ("another issuer", signer.token(&site, &json!({ "iss": "https://evil.test" }))),
        ("another audience", signer.token(&site, &json!({ "aud": "https://elsewhere.test" }))),
        ("no audience", signer.token(&site, &json!({ "aud": null }))),
        ("expired", signer.token(&site, &json!({ "exp": now - 31 }))),
        ("no end", signer.token(&site, &json!({ "exp": null }))),
        ("an end that is no number", signer.token(&site, &json!({ "exp": "never" }))),
        ("not yet", signer.token(&site, &json!({ "nbf": now + 31 }))),
        ("of nobody", signer.token(&site, &json!({ "sub": null }))),
    ];
    for (what, token) in cases {
        for shown in [format!("Bearer {token}"), basic("gitlab-ci-token", &token)] {
            assert_eq!(get(&site, "/v2/", &shown).await.status, StatusCode::UNAUTHORIZED, "{what}");
        }
    }
    for (what, other) in [("a late clock", json!({ "exp": now - 29 })), ("an early one", json!({ "nbf": now + 29 }))] {
        assert_eq!(status(&site, "/v2/", &format!("Bearer {}", signer.token(&site, &other))).await, 200, "{what}");
    }
    // A file that changes is read again; a key of a kind that nobody knows spoils no others.
    let newer = json!({ "keys": [{ "kty": "newer", "kid": "n", "pub": "AA" }, unknown.jwk()] });
    std::fs::write(&file, newer.to_string()).unwrap();
    assert_eq!(status(&site, "/v2/", &format!("Bearer {}", unknown.token(&site, &json!({})))).await, 200);
}

#[tokio::test]
async fn a_new_key_is_fetched_and_a_flood_of_unknown_ones_is_not() {
    // Invariant 17
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let keys = KeyServer::start(&[&old]).await;
    let site = setup(&format!("jwks_url = \"{}\"", keys.url)).start().await;
    let of = |signer: &Signer, number: usize| format!("Bearer {}", signer.token(&site, &json!({ "jti": number })));
    assert_eq!(status(&site, "/v2/", &of(&old, 0)).await, 200);
    for number in 0..20 {
        assert_eq!(status(&site, "/v2/", &of(&new, number)).await, 401);
    }
    assert_eq!(keys.asked(), 1);
    keys.serve(&[&old, &new]).await;
    site.advance(Duration::from_secs(30));
    assert_eq!(status(&site, "/v2/", &of(&new, 1)).await, 200);
    assert_eq!(keys.asked(), 2);
    // A key that was taken back is not believed for ever; and a set that cannot be had is no reason to forget.
    keys.serve(&[&new]).await;
    site.advance(Duration::from_secs(3600));
    assert_eq!(status(&site, "/v2/", &of(&old, 9)).await, 401);
    *keys.body.lock().await = "rubbish".to_owned();
    site.advance(Duration::from_secs(3600));
    assert_eq!(status(&site, "/v2/", &of(&new, 2)).await, 200);
    assert_eq!(keys.asked(), 4);
}

#[tokio::test]
async fn a_known_key_waits_for_no_refresh_and_is_not_believed_for_ever() {
    // Invariant 16
    let (signer, new) = (Signer::es256("ec"), Signer::es256("new"));
    let keys = KeyServer::start(&[&signer]).await;
    let site = setup(&format!("jwks_url = \"{}\"", keys.url)).start().await;
    let of = |signer: &Signer, number: usize| format!("Bearer {}", signer.token(&site, &json!({ "jti": number })));
    assert_eq!(status(&site, "/v2/", &of(&signer, 0)).await, 200);
    // The issuer takes its time: the server waits for what the test holds.
    site.advance(Duration::from_secs(3600));
    let mut body = keys.body.lock().await;
    let logins = futures_util::future::join_all((1..9).map(|number| {
        let token = of(&signer, number);
        let site = &site;
        async move { status(site, "/v2/", &token).await }
    }));
    // Less than it takes to give the issuer up.
    let answers = tokio::time::timeout(Duration::from_secs(4), logins).await.expect("they wait for the issuer");
    assert_eq!((answers, keys.asked()), (vec![200; 8], 2));
    *body = set(&[&new]);
    drop(body);
    // Who has a key that is not known waits for it; what was taken back is out then.
    assert_eq!(status(&site, "/v2/", &of(&new, 1)).await, 200);
    assert_eq!(status(&site, "/v2/", &of(&signer, 10)).await, 401);
    assert_eq!(keys.asked(), 2, "it was fetched to its end though nobody waited");

    *keys.body.lock().await = "rubbish".to_owned();
    site.advance(Duration::from_secs(23 * 3600));
    assert_eq!(status(&site, "/v2/", &of(&new, 2)).await, 200);
    site.advance(Duration::from_secs(3600));
    assert_ne!(status(&site, "/v2/", &of(&new, 3)).await, 200, "a day without the issuer's word");
    keys.serve(&[&new]).await;
    site.advance(Duration::from_secs(30));
    assert_eq!(status(&site, "/v2/", &of(&new, 4)).await, 200);
}

#[tokio::test]
async fn a_set_of_keys_that_is_too_large_is_not_read() {
    // Invariant 17
    let signer = Signer::es256("ec");
    let keys = KeyServer::start(&[&signer]).await;
    let site = setup(&format!("jwks_url = \"{}\"", keys.url)).start().await;
    let job = format!("Bearer {}", signer.token(&site, &json!({})));
    let large = format!("{}{}", set(&[&signer]), " ".repeat(256 << 10));
    *keys.body.lock().await = large;
    assert_eq!(status(&site, "/v2/", &job).await, 401);
    keys.serve(&[&signer]).await;
    site.advance(Duration::from_secs(30));
    assert_eq!((status(&site, "/v2/", &job).await, keys.asked()), (200, 2));
}
