//! What clients show of themselves and ask for, and the users' file, for `fuzz/`.

use std::collections::HashSet;
use std::future::Future as _;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use argon2::Params;
use argon2::password_hash::phc::PasswordHash;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::caller::{Caller, Subject};
use super::issuer::Issuer;
use super::keys::Keys;
use super::member::CLAIM_VALUE_MAX;
use super::password::{Hash, InvalidHash};
use super::scope::Scope;
use super::token::{self, TOKEN_BYTES_MAX, Use};
use super::users::{NAME_MAX, Users};
use crate::secret::Secret;

/// The one key, the same in each run, so that tokens in the corpus stay good.
const SEED: [u8; 32] = [7; 32];
const KEY_ID: &str = "fixed";
/// The time that it is.
const NOW: i64 = 1_790_000_000;
/// How far a job's issuer may be off, as its settings have it where they say nothing, in seconds.
const SKEW: f64 = 30.0;

struct Fixed {
    pair: Ed25519KeyPair,
    keys: Keys,
    issuer: Arc<Issuer>,
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let pair = Ed25519KeyPair::from_seed_unchecked(&SEED).unwrap_or_else(|why| panic!("{why}"));
    let keys = Keys::of_one(KEY_ID, &pair, now()).unwrap_or_else(|| panic!("the key is none"));
    let settings = json!({"issuer": "https://git.site", "audience": "registry", "algorithms": ["EdDSA"]});
    let public = BASE64.encode(pair.public_key().as_ref());
    let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": KEY_ID, "use": "sig", "x": public}]});
    let settings = serde_json::from_value(settings).unwrap_or_else(|why| panic!("{why}"));
    let issuer = Issuer::of_keys("git", &settings, set.to_string().as_bytes()).unwrap_or_else(|why| panic!("{why}"));
    Fixed { pair, keys, issuer: Arc::new(issuer) }
});

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap_or_else(|why| panic!("{why}"))
}

/// A token of ours: believed only with our signature, in its time, for its use. The bytes are a token as it is shown,
/// and then the claims of one that is signed by us.
pub(crate) fn jwt(data: &[u8]) {
    for text in shown(data) {
        for (used, audience) in [(Use::Access, "sealock"), (Use::Refresh, "sealock-refresh")] {
            let Some(caller) = our_caller(used, &text) else { continue };
            let claims = signed_claims(&text);
            assert_eq!((&claims["iss"], &claims["aud"]), (&json!("sealock"), &json!(audience)), "{claims}");
            assert!(claims["exp"].as_i64().is_some_and(|exp| exp > NOW), "{claims}");
            assert!(claims["nbf"].as_i64().is_some_and(|nbf| nbf <= NOW + 60), "{claims}");
            let who: Option<Subject> = serde_json::from_value(claims["who"].clone()).ok();
            assert_eq!(who.as_ref(), Some(&caller.0.subject), "{claims}");
            let granted = caller.0.grants.as_ref().map(|grants| (grants.repositories.len(), grants.catalog));
            let claimed = (claims["access"].as_array().map_or(0, Vec::len), claims["catalog"] == true);
            assert_eq!(granted, (used == Use::Access).then_some(claimed), "{claims}");
        }
    }
}

/// A token of a job's issuer, in the same two ways.
pub(crate) fn job(data: &[u8]) {
    for text in shown(data) {
        let Some(caller) = job_caller(&text) else { continue };
        let claims = signed_claims(&text);
        let is = |name: &str, value: &str| claims[name] == value;
        let audiences = claims["aud"].as_array().map_or(&[][..], Vec::as_slice);
        assert!(is("iss", "https://git.site"), "{claims}");
        assert!(is("aud", "registry") || audiences.iter().any(|one| one == "registry"), "{claims}");
        assert!(claims["exp"].as_f64().is_some_and(|exp| exp + SKEW > NOW as f64), "{claims}");
        for begin in ["nbf", "iat"].into_iter().filter_map(|name| claims.get(name)) {
            // Parts of a second do not count.
            assert!(begin.as_f64().is_some_and(|begin| begin < NOW as f64 + SKEW + 1.0), "{claims}");
        }
        let Subject::Job { issuer, subject, claims: kept } = &caller.0.subject else { panic!("{caller} is no job") };
        assert!(issuer == "git" && is("sub", subject) && (1..=CLAIM_VALUE_MAX).contains(&subject.len()), "{claims}");
        for (name, values) in kept {
            assert_eq!(name, "project_path", "a rule asks for no other");
            assert!(values.len() <= 64 && values.iter().all(|value| value.len() <= CLAIM_VALUE_MAX), "{claims}");
        }
    }
}

/// Names and hashes are written as they are read, and a bad line is one message that says nothing of its hash.
pub(crate) fn htpasswd(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let users = Users::parse(text);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let meant = lines.iter().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    assert_eq!(users.accounts.len() + users.broken.len(), meant, "each line is a user or is told of, once");
    assert!(users.broken.is_sorted_by_key(|(number, _)| number));
    for (number, why) in &users.broken {
        told_without_secret(lines[number - 1], why);
    }
    let written: String =
        users.accounts.iter().map(|(name, account)| format!("{name}:{}\n", account.hash.expose())).collect();
    let again = Users::parse(&written);
    assert!(again.broken.is_empty() && again.accounts.len() == users.accounts.len(), "{:?}", again.broken);
    for (name, account) in &users.accounts {
        let read = again.accounts.get(name).unwrap_or_else(|| panic!("{name:?} is not there again"));
        assert!(read.hash == account.hash && read.caller.0.subject == account.caller.0.subject, "{name:?}");
        try_password(&account.hash);
    }
    assert_eq!(users.stand_in(data.len() as u64).is_some(), !users.accounts.is_empty());
}

/// What is asked for is written as it is read, names stand in the text, and there is no more than the text has.
pub(crate) fn scope(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let scopes: Vec<Scope> = Scope::parse_all(text).collect();
    assert!(scopes.len() <= text.split(' ').count());
    for scope in &scopes {
        let Scope::Repository { name, .. } = scope else { continue };
        assert!(text.contains(&format!("repository:{name}:")), "{name} of {text:?}");
    }
    let written: Vec<String> = scopes.iter().map(written).collect();
    assert_eq!(Scope::parse_all(&written.join(" ")).collect::<Vec<_>>(), scopes);
}

/// A scope as clients write it.
pub(crate) fn written(scope: &Scope) -> String {
    match scope {
        Scope::Repository { name, verbs } => format!("repository:{name}:{verbs}"),
        Scope::Catalog => "registry:catalog:*".to_owned(),
    }
}

/// The bytes as a token, and a token with the bytes as its claims.
fn shown(data: &[u8]) -> Vec<String> {
    let header = json!({"alg": "EdDSA", "kid": KEY_ID});
    let message = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(data));
    let signature = BASE64.encode(FIXED.pair.sign(message.as_bytes()));
    // We sign nothing but JSON, which is text.
    let text = std::str::from_utf8(data).ok();
    text.into_iter().flat_map(|text| [text.to_owned(), format!("{message}.{signature}")]).collect()
}

fn our_caller(used: Use, text: &str) -> Option<Caller> {
    token::check(&FIXED.keys, used, &Secret::new(text), now())
}

fn job_caller(text: &str) -> Option<Caller> {
    let token = Secret::new(text);
    token::claimed_issuer(&token).filter(|iss| FIXED.issuer.is(iss))?;
    let wanted = HashSet::from(["project_path"]);
    // Nothing is waited for: the keys are there.
    let Poll::Ready(checked) =
        pin!(FIXED.issuer.check(&token, &wanted, now())).poll(&mut Context::from_waker(Waker::noop()))
    else {
        panic!("it waits for something")
    };
    checked.ok()
}

/// What the token says, which was believed: it must be short enough, and signed by the key. Checked without the library
/// that checks tokens.
fn signed_claims(text: &str) -> Value {
    assert!(text.len() <= TOKEN_BYTES_MAX);
    let decode = |part: &str| BASE64.decode(part).unwrap_or_else(|why| panic!("{part:?}: {why}"));
    let Some((message, signature)) = text.rsplit_once('.') else { panic!("{text:?} has no signature") };
    let Some((header, claims)) = message.split_once('.') else { panic!("{text:?} has no claims") };
    let key = UnparsedPublicKey::new(&ED25519, FIXED.pair.public_key().as_ref());
    assert!(key.verify(message.as_bytes(), &decode(signature)).is_ok(), "{text:?} was not signed");
    let parse = |part: &str| serde_json::from_slice::<Value>(&decode(part)).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!((&parse(header)["alg"], &parse(header)["kid"]), (&json!("EdDSA"), &json!(KEY_ID)));
    parse(claims)
}

/// One of the messages that there are, which know no more of the line than its name.
fn told_without_secret(line: &str, why: &str) {
    let name = line.split_once(':').map_or("", |(name, _)| name);
    let known = [
        "it is not `name:hash`".to_owned(),
        "its name is empty, too long, or holds control characters".to_owned(),
        format!("user `{name}`: {}", InvalidHash::Unknown),
        format!("user `{name}`: {}", InvalidHash::TooCostly),
        format!("user `{name}` stands there twice"),
    ];
    assert!(known.iter().any(|known| known == why), "{why:?} of {line:?}");
    assert!(why.len() <= NAME_MAX + 200 && !why.contains(char::is_control), "{why:?}");
}

/// A hash that was taken can be asked, whatever it is. Only cheap ones, for the others would take all the time.
fn try_password(hash: &Hash) {
    let text = hash.expose();
    let argon2 = PasswordHash::new(text).ok().and_then(|parsed| Params::try_from(&parsed).ok());
    let is_cheap = match argon2 {
        Some(params) => params.m_cost() <= 64 && params.t_cost() <= 2,
        None => text.contains("$04$"),
    };
    if is_cheap {
        hash.is_of(&Secret::new("sesame-open"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(target: &str, name: &str) -> Vec<u8> {
        std::fs::read(format!("fuzz/corpus/{target}/{name}")).unwrap()
    }

    #[test]
    fn the_seeds_reach_what_is_believed() {
        // Else the targets would say nothing of it, and nobody would notice. Invariant 16
        let believed = |target: &str, name: &str| {
            let texts = shown(&seed(target, name));
            let by = |used| texts.iter().filter(|text| our_caller(used, text).is_some()).count();
            (by(Use::Access), by(Use::Refresh), texts.iter().filter(|text| job_caller(text).is_some()).count())
        };
        for (target, name, expected) in [
            ("jwt", "token", (1, 0, 0)),
            ("jwt", "claims-access", (1, 0, 0)),
            ("jwt", "claims-refresh", (0, 1, 0)),
            ("jwt", "claims-expired", (0, 0, 0)),
            ("jwt", "claims-not-yet", (0, 0, 0)),
            ("jwt", "claims-audience-list", (0, 0, 0)),
            ("jwt", "claims-issuer-other", (0, 0, 0)),
            ("jwt", "token-alg-none", (0, 0, 0)),
            ("jwt", "token-changed", (0, 0, 0)),
            ("job", "claims", (0, 0, 1)),
            ("job", "claims-audience-list", (0, 0, 1)),
            ("job", "claims-end-with-fraction", (0, 0, 1)),
            ("job", "claims-end-beyond-time", (0, 0, 0)),
            ("job", "claims-audience-other", (0, 0, 0)),
            ("job", "claims-of-nobody", (0, 0, 0)),
            ("job", "claims-not-yet", (0, 0, 0)),
        ] {
            assert_eq!(believed(target, name), expected, "{target}/{name}");
        }
        let users = Users::parse(&String::from_utf8(seed("htpasswd", "both-kinds")).unwrap());
        assert_eq!((users.accounts.len(), users.broken.len()), (3, 0));
    }
}
