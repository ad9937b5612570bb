//! Tokens that others issue and that are taken as logins: GitLab's for its CI jobs, by OpenID Connect.
//!
//! What a token must have: a signature of a kind that the settings name, by a key of the issuer's set with the token's
//! `kid`; the issuer and the audience of the settings; a `sub`; and its time. The set is fetched when it is first needed,
//! and anew when it is old; a key that is known is gone on with while that takes long or fails.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::caller::{Caller, Subject};
use super::file;
use super::member::CLAIM_VALUE_MAX;
use super::settings::{IssuerSettings, Signature};
use super::token::TOKEN_BYTES_MAX;
use crate::files::Stamp;
use crate::gate::{Client, ClientSettings, Gate, Purpose};
use crate::secret::Secret;
use crate::tls::{self, TlsError};

/// Largest key set that is read, in bytes, and most keys of it.
pub const SET_BYTES_MAX: usize = 256 << 10;
const KEYS_MAX: usize = 64;
/// The issuer is asked again for its keys after this long, so that a key that it took back is not believed for ever.
const FRESH_FOR: SignedDuration = SignedDuration::from_hours(1);
/// Keys that could not be asked for again are believed no longer than this.
const BELIEVED_FOR: SignedDuration = SignedDuration::from_hours(24);
/// How long the one login that has old keys fetched anew waits for them, where its key is known.
const PATIENCE: Duration = Duration::from_secs(1);
/// And no sooner than this after the last try, whatever unknown keys tokens name.
const PAUSE: SignedDuration = SignedDuration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Values of one claim that are looked at.
const VALUES_MAX: usize = 64;

/// One `[access.issuer.…]`.
pub struct Issuer {
    name: String,
    settings: IssuerSettings,
    source: Source,
    set: ArcSwap<Set>,
    /// When the keys were last tried for.
    tried_at: Arc<Mutex<Option<Timestamp>>>,
}

enum Source {
    File(PathBuf),
    Url { client: Client, uri: Uri },
}

#[derive(Default)]
struct Set {
    keys: Vec<Jwk>,
    /// `None`: never.
    read_at: Option<Timestamp>,
    stamp: Option<Stamp>,
}

/// Why a token is no login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotTaken {
    /// Its own fault.
    Invalid(&'static str),
    /// The issuer's keys cannot be had; the log says why.
    NoKeys,
}

/// An issuer that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error("[access.issuer.{issuer}]")]
    Tls {
        issuer: String,
        #[source]
        source: TlsError,
    },
    #[error("[access.issuer.{issuer}] jwks_url: `{url}` is not a URL")]
    Url { issuer: String, url: String },
}

impl Issuer {
    /// Asks for nothing yet.
    pub fn new(name: &str, settings: &IssuerSettings, gate: &Gate) -> Result<Self, IssuerError> {
        let source = match (&settings.jwks_file, &settings.jwks_url) {
            (Some(path), _) => Source::File(path.clone()),
            (None, url) => {
                let url = url.clone().unwrap_or_default();
                let wrong = || IssuerError::Url { issuer: name.to_owned(), url: url.clone() };
                let uri: Uri = url.parse().map_err(|_| wrong())?;
                let host = uri.authority().ok_or_else(wrong)?.to_string();
                let tls = tls::client_config(settings.ca_file.as_deref())
                    .map_err(|source| IssuerError::Tls { issuer: name.to_owned(), source })?;
                let client = ClientSettings {
                    upstream: format!("issuer:{name}").into(),
                    tls,
                    proxy: None,
                    connect_timeout: CONNECT_TIMEOUT,
                    response_timeout: RESPONSE_TIMEOUT,
                    stall_timeout: RESPONSE_TIMEOUT,
                };
                Source::Url { client: Client::inside(gate.clone(), client, &host), uri }
            }
        };
        let (set, tried_at) = (ArcSwap::default(), Arc::default());
        Ok(Self { name: name.to_owned(), settings: settings.clone(), source, set, tried_at })
    }

    /// What is wrong with its file of keys, if it has one.
    pub fn problem(settings: &IssuerSettings) -> Option<String> {
        let path = settings.jwks_file.as_ref()?;
        let why = read_keys(path).err()?;
        Some(format!("the keys in `{}`: {why}", path.display()))
    }

    /// With this set of keys, and none that could be had elsewhere, for `fuzz/`.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of_keys(name: &str, settings: &IssuerSettings, set: &[u8]) -> Result<Self, String> {
        let path = PathBuf::from("/dev/null/keys");
        let set = Set { keys: parse(set)?, read_at: Some(Timestamp::UNIX_EPOCH), stamp: Some(Stamp::of(&path)) };
        let (set, source) = (ArcSwap::from_pointee(set), Source::File(path));
        Ok(Self { name: name.to_owned(), settings: settings.clone(), source, set, tried_at: Arc::default() })
    }

    /// Its key in the settings.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is this issuer's that a token claims to be.
    pub fn is(&self, iss: &str) -> bool {
        self.settings.issuer == iss
    }

    /// The job that the token is of; `wanted` are the claims that rules ask for.
    pub async fn check(
        self: &Arc<Self>,
        token: &Secret,
        wanted: &HashSet<&str>,
        now: Timestamp,
    ) -> Result<Caller, NotTaken> {
        let text = token.expose();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(NotTaken::Invalid("it is too long"));
        }
        let header = jsonwebtoken::decode_header(text).map_err(|_| NotTaken::Invalid("it is no token"))?;
        if !self.settings.algorithms.iter().any(|taken| taken.algorithm() == header.alg) {
            return Err(NotTaken::Invalid("its kind of signature is not taken"));
        }
        // RFC 7515, 4.1.11: whoever does not know an extension that must be understood refuses the token.
        if header.crit.is_some() {
            return Err(NotTaken::Invalid("it has extensions that are not known here"));
        }
        let kid = header.kid.as_deref().ok_or(NotTaken::Invalid("it does not say by which key it is signed"))?;
        let key = self.key(kid, header.alg, now).await?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&[&self.settings.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Our clock may be wound by hand: see below.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let claims: BTreeMap<String, serde_json::Value> = jsonwebtoken::decode(text, &key, &validation)
            .map_err(|_| NotTaken::Invalid("its signature, issuer or audience is wrong, or a claim is missing"))?
            .claims;
        self.caller(&claims, wanted, now)
    }

    fn caller(
        &self,
        claims: &BTreeMap<String, serde_json::Value>,
        wanted: &HashSet<&str>,
        now: Timestamp,
    ) -> Result<Caller, NotTaken> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => {
                let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
                let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
                time.map(Some).ok_or(NotTaken::Invalid("its times are none"))
            }
        };
        let skew = SignedDuration::try_from(self.settings.clock_skew.0).unwrap_or_default();
        let ends_at = time("exp")?.ok_or(NotTaken::Invalid("it has no end"))?;
        let ends_at = ends_at.checked_add(skew).map_err(|_| NotTaken::Invalid("its times are none"))?;
        if now >= ends_at {
            return Err(NotTaken::Invalid("it has expired"));
        }
        if time("nbf")?.max(time("iat")?).is_some_and(|begins_at| now + skew < begins_at) {
            return Err(NotTaken::Invalid("it is not valid yet; compare the clocks"));
        }
        let subject = claims.get("sub").and_then(serde_json::Value::as_str).filter(|sub| !sub.is_empty());
        let subject = subject.filter(|sub| sub.len() <= CLAIM_VALUE_MAX).ok_or(NotTaken::Invalid("it is of nobody"))?;
        let kept = claims.iter().filter(|(name, _)| wanted.contains(name.as_str()));
        let kept = kept.map(|(name, value)| (name.clone(), values(value)));
        let job = Subject::Job { issuer: self.name.clone(), subject: subject.to_owned(), claims: kept.collect() };
        Ok(Caller::new(job, None, Some(ends_at)))
    }

    async fn key(self: &Arc<Self>, kid: &str, algorithm: Algorithm, now: Timestamp) -> Result<DecodingKey, NotTaken> {
        if let Source::File(path) = &self.source {
            self.read_again(path, now);
        } else {
            self.fetch_again(kid, now).await;
        }
        let set = self.set.load();
        // A file says what holds now as long as it stays as it is.
        let believed = matches!(self.source, Source::File(_)) || set.is_younger_than(BELIEVED_FOR, now);
        if set.read_at.is_none() || !believed {
            return Err(NotTaken::NoKeys);
        }
        let unknown = NotTaken::Invalid("it is signed by a key that its issuer does not have");
        let key = set.find(kid).ok_or(unknown)?;
        let misused = key.common.public_key_use.as_ref().is_some_and(|use_for| *use_for != PublicKeyUse::Signature);
        let other = key.common.key_algorithm.is_some_and(|named| !is_for(named, algorithm));
        if misused || other {
            return Err(NotTaken::Invalid("it is signed by a key that is not for this"));
        }
        DecodingKey::from_jwk(key).map_err(|_| NotTaken::Invalid("it is signed by a key that is not for this"))
    }

    /// A file is read when it has changed.
    fn read_again(&self, path: &Path, now: Timestamp) {
        let stamp = Stamp::of(path);
        let set = self.set.load();
        if set.stamp.as_ref() == Some(&stamp) {
            return;
        }
        match read_keys(path) {
            Ok(keys) => self.set.store(Arc::new(Set { keys, read_at: Some(now), stamp: Some(stamp) })),
            Err(why) => {
                warn!(issuer = self.name, "the keys of issuer `{}` in `{}`: {why}", self.name, path.display());
                let kept = Set { keys: set.keys.clone(), read_at: set.read_at, stamp: Some(stamp) };
                self.set.store(Arc::new(kept));
            }
        }
    }

    /// Asks for the keys where they are old or lack this one, now and then.
    async fn fetch_again(self: &Arc<Self>, kid: &str, now: Timestamp) {
        let is_enough = |set: &Set| set.is_younger_than(FRESH_FOR, now) && set.find(kid).is_some();
        let set = self.set.load_full();
        if is_enough(&set) {
            return;
        }
        let is_known = set.is_younger_than(BELIEVED_FOR, now) && set.find(kid).is_some();
        let mut tried_at = match self.tried_at.clone().try_lock_owned() {
            Ok(tried_at) => tried_at,
            // They are being fetched.
            Err(_) if is_known => return,
            Err(_) => self.tried_at.clone().lock_owned().await,
        };
        let just_tried = tried_at.is_some_and(|at| now.duration_since(at).abs() < PAUSE);
        if just_tried || is_enough(&self.set.load()) {
            return;
        }
        *tried_at = Some(now);
        let issuer = self.clone();
        // To the end also when nobody waits for it any more.
        let fetching = tokio::spawn(async move {
            issuer.fetch_now(now).await;
            drop(tried_at);
        });
        let patience = if is_known { PATIENCE } else { CONNECT_TIMEOUT + 2 * RESPONSE_TIMEOUT };
        // Whatever came of it is in the set and the log.
        let _ = tokio::time::timeout(patience, fetching).await;
    }

    async fn fetch_now(&self, now: Timestamp) {
        match self.fetch().await {
            Ok(keys) => {
                info!(issuer = self.name, keys = keys.len(), "fetched {} keys of issuer `{}`", keys.len(), self.name);
                self.set.store(Arc::new(Set { keys, read_at: Some(now), stamp: None }));
            }
            Err(why) => warn!(issuer = self.name, "cannot fetch the keys of issuer `{}`: {why}", self.name),
        }
    }

    async fn fetch(&self) -> Result<Vec<Jwk>, String> {
        let Source::Url { client, uri } = &self.source else { return Err("they are in a file".to_owned()) };
        let request = Request::get(uri.clone()).header(header::ACCEPT, "application/json");
        let request = request.body(Full::<Bytes>::default()).map_err(|why| why.to_string())?;
        let response = client.send(Purpose::Keys, request).await.map_err(|why| crate::gate::with_causes(&why))?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("it answers {}", response.status()));
        }
        let body = Limited::new(response.into_body(), SET_BYTES_MAX).collect().await.map_err(|why| why.to_string())?;
        parse(&body.to_bytes())
    }
}

impl Set {
    fn find(&self, kid: &str) -> Option<&Jwk> {
        self.keys.iter().find(|key| key.common.key_id.as_deref() == Some(kid))
    }

    fn is_younger_than(&self, age: SignedDuration, now: Timestamp) -> bool {
        self.read_at.is_some_and(|at| now.duration_since(at).abs() < age)
    }
}

impl Signature {
    fn algorithm(self) -> Algorithm {
        match self {
            Self::RS256 => Algorithm::RS256,
            Self::RS384 => Algorithm::RS384,
            Self::RS512 => Algorithm::RS512,
            Self::PS256 => Algorithm::PS256,
            Self::PS384 => Algorithm::PS384,
            Self::PS512 => Algorithm::PS512,
            Self::ES256 => Algorithm::ES256,
            Self::ES384 => Algorithm::ES384,
            Self::EdDSA => Algorithm::EdDSA,
        }
    }
}

fn is_for(named: KeyAlgorithm, algorithm: Algorithm) -> bool {
    // Both are written as RFC 7518 does.
    named.to_string() == format!("{algorithm:?}")
}

fn read_keys(path: &Path) -> Result<Vec<Jwk>, String> {
    let bytes = file::read(path).map_err(|why| why.to_string())?;
    parse(&bytes.ok_or("it is not there")?)
}

fn parse(bytes: &[u8]) -> Result<Vec<Jwk>, String> {
    let set: JwkSet = serde_json::from_slice(bytes).map_err(|_| "it is no JWK set".to_owned())?;
    match set.keys.len() {
        0 => Err("it has no key".to_owned()),
        count if count > KEYS_MAX => Err(format!("it has {count} keys; at most {KEYS_MAX}")),
        _ => Ok(set.keys),
    }
}

/// A claim as texts: a list has several.
fn values(value: &serde_json::Value) -> Vec<String> {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    let list = match value {
        serde_json::Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    list.iter().take(VALUES_MAX).filter_map(text).filter(|text| text.len() <= CLAIM_VALUE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_so_many_keys_and_a_claim_so_many_values() {
        // Invariant 17
        let key = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "a" });
        let set = |count| serde_json::json!({ "keys": vec![key.clone(); count] }).to_string();
        assert_eq!(parse(set(KEYS_MAX).as_bytes()).map(|keys| keys.len()), Ok(KEYS_MAX));
        assert!(parse(set(KEYS_MAX + 1).as_bytes()).is_err());
        assert_eq!(values(&vec!["x"; 3 * VALUES_MAX].into()).len(), VALUES_MAX);
        let (longest, longer) = ("x".repeat(CLAIM_VALUE_MAX), "x".repeat(CLAIM_VALUE_MAX + 1));
        assert_eq!(values(&vec![longer, longest.clone()].into()), [longest]);
    }
}
