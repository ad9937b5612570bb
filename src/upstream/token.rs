//! Bearer tokens: kept per realm, service, scope and credential; fetched once for all who wait for one.
//!
//! Credentials go to a realm only where the settings allow it: see [`allowed_realm`] (invariant 12).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dashmap::DashMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::Remote;
use super::address::Origin;
use super::challenge::Bearer;
use super::credentials::Credential;
use super::error::{Fault, UpstreamError};
use super::send::{drain, read_whole};
use crate::gate::{Body, Purpose};
use crate::oci::RepositoryName;
use crate::secret::Secret;

/// Longest reply of a token endpoint, in bytes.
const REPLY_BYTES_MAX: u64 = 64 << 10;
/// Most tokens that are kept.
const TOKENS_MAX: usize = 1024;
/// What a reply without `expires_in` means (distribution, "Token Authentication Specification").
const LIFE_SECONDS: u64 = 60;
const LIFE_SECONDS_MAX: u64 = 24 * 3600;
/// Escaped in queries and forms: all but RFC 3986's unreserved characters.
const ESCAPED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a token is good for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    realm: Uri,
    service: Option<String>,
    scope: String,
    credential: Option<Arc<Credential>>,
}

pub(super) struct Token {
    secret: Secret,
    refresh_at: Timestamp,
    fetched_at: Timestamp,
}

/// The tokens of one upstream.
#[derive(Default)]
pub(super) struct Tokens {
    slots: DashMap<Key, Arc<Slot>>,
}

#[derive(Default)]
struct Slot {
    /// Fetches that have ended so far.
    fetches: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Token>>,
    /// Of the last fetch: shared by those who waited for it.
    failure: Option<Fault>,
}

#[derive(Deserialize)]
struct Reply {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

impl Key {
    /// For what `challenge` of `endpoint` asks; the scope of `repository` where it names none.
    pub fn of(
        remote: &Remote,
        endpoint: &Origin,
        challenge: &Bearer,
        repository: &RepositoryName,
        credential: Option<Arc<Credential>>,
    ) -> Result<Self, UpstreamError> {
        let realm = allowed_realm(remote, endpoint, &challenge.realm, credential.is_some())?;
        let scope = challenge.scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
        Ok(Self { realm, service: challenge.service.clone(), scope, credential })
    }
}

impl Token {
    /// `Authorization: Bearer …`
    pub fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.secret.expose())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Tokens {
    /// A token, and whether it was fetched since this was called. Whoever waits for another's fetch shares its outcome.
    pub async fn token(&self, remote: &Remote, key: &Key) -> Result<(Arc<Token>, bool), Fault> {
        let slot = self.slot(key, remote.clock.now());
        let ended_before = slot.fetches.load(Ordering::SeqCst);
        let mut state = slot.state.lock().await;
        let ended_meanwhile = slot.fetches.load(Ordering::SeqCst) > ended_before;
        let now = remote.clock.now();
        if let Some(token) = state.token.as_ref().filter(|token| token.is_good(now)) {
            return Ok((token.clone(), ended_meanwhile));
        }
        if let Some(fault) = state.failure.as_ref().filter(|_| ended_meanwhile) {
            return Err(fault.clone());
        }
        let fetched = fetch(remote, key).await;
        slot.fetches.fetch_add(1, Ordering::SeqCst);
        match fetched {
            Ok(token) => {
                let token = Arc::new(token);
                *state = State { token: Some(token.clone()), failure: None };
                Ok((token, true))
            }
            Err(fault) => {
                *state = State { token: None, failure: Some(fault.clone()) };
                Err(fault)
            }
        }
    }

    /// `refused` was answered with 401: it is not used again. A newer one stays.
    pub async fn forget(&self, key: &Key, refused: &Arc<Token>) {
        let Some(slot) = self.slots.get(key).map(|slot| slot.clone()) else { return };
        let mut state = slot.state.lock().await;
        if state.token.as_ref().is_some_and(|token| Arc::ptr_eq(token, refused)) {
            state.token = None;
        }
    }

    fn slot(&self, key: &Key, now: Timestamp) -> Arc<Slot> {
        if let Some(slot) = self.slots.get(key) {
            return slot.clone();
        }
        if self.slots.len() >= TOKENS_MAX {
            let in_use = |slot: &Arc<Slot>| {
                slot.state.try_lock().map_or(true, |state| state.token.as_ref().is_some_and(|token| token.is_good(now)))
            };
            self.slots.retain(|_, slot| in_use(slot));
            if self.slots.len() >= TOKENS_MAX {
                self.slots.clear();
            }
        }
        self.slots.entry(key.clone()).or_default().clone()
    }
}

impl Token {
    /// A clock that was set back makes it doubtful.
    fn is_good(&self, now: Timestamp) -> bool {
        (self.fetched_at..self.refresh_at).contains(&now)
    }
}

/// The realm, if it may be asked: https (or http beside a plain http endpoint), and the endpoint's own origin or one of
/// `token_realms`. Without credentials another port of the endpoint's host will do.
fn allowed_realm(remote: &Remote, endpoint: &Origin, realm: &str, credentials: bool) -> Result<Uri, UpstreamError> {
    let url: Option<Uri> = realm.parse().ok();
    let Some((url, origin)) = url.and_then(|url| Origin::of(&url).map(|origin| (url, origin))) else {
        return Err(remote.misbehaved(format!(
            "its token realm `{}` is not a URL",
            realm.chars().take(200).collect::<String>().escape_debug()
        )));
    };
    if !origin.is_https() && endpoint.is_https() {
        return Err(remote.misbehaved(format!("its token realm `{origin}` is not encrypted")));
    }
    let own = origin == *endpoint || (!credentials && origin.host() == endpoint.host());
    if !own && !remote.token_realms.contains(&origin) {
        let name = &remote.name;
        return Err(remote.misbehaved(format!(
            "its token realm `{origin}` is not its own; if it is right, add it to `token_realms` of `[upstream.{name}]`"
        )));
    }
    Ok(url)
}

async fn fetch(remote: &Remote, key: &Key) -> Result<Token, Fault> {
    let credential = key.credential.as_deref();
    if let Some(Credential::Refresh(secret)) = credential {
        let form = form(key, &[("grant_type", "refresh_token"), ("refresh_token", secret.expose())]);
        let (status, body) = post(remote, key, form).await?;
        return judge(remote, key, status, body).await;
    }
    let account = match credential {
        Some(Credential::Password { username, .. }) => vec![("account", username.as_str())],
        _ => Vec::new(),
    };
    let (status, body) = get(remote, key, &account).await?;
    // A token endpoint that only knows OAuth2: the password goes by form.
    if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
        && let Some(Credential::Password { username, password }) = credential
    {
        drain(body).await;
        let secrets = [("grant_type", "password"), ("username", username), ("password", password.expose())];
        let (status, body) = post(remote, key, form(key, &secrets)).await?;
        return judge(remote, key, status, body).await;
    }
    judge(remote, key, status, body).await
}

async fn get(remote: &Remote, key: &Key, extra: &[(&str, &str)]) -> Result<(StatusCode, Body), Fault> {
    let mut fields: Vec<(&str, &str)> = extra.to_vec();
    fields.extend(key.service.as_deref().map(|service| ("service", service)));
    fields.extend(key.scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope)));
    let mark = if key.realm.query().is_some() { '&' } else { '?' };
    let url = format!("{}{mark}{}", key.realm, encode(&fields));
    let mut request = Request::builder().method(Method::GET).uri(url);
    if let Some(basic) = key.credential.as_deref().and_then(Credential::basic) {
        request = request.header(AUTHORIZATION, basic);
    }
    send(remote, request, Bytes::new()).await
}

async fn post(remote: &Remote, key: &Key, form: String) -> Result<(StatusCode, Body), Fault> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(key.realm.clone())
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    send(remote, request, form.into()).await
}

async fn send(remote: &Remote, request: http::request::Builder, body: Bytes) -> Result<(StatusCode, Body), Fault> {
    let request = request.header(ACCEPT, "application/json").header(ACCEPT_ENCODING, "identity").body(Full::new(body));
    let request = request.map_err(|_| Fault::last(remote.misbehaved("its token realm is not a URL".to_owned())))?;
    let response =
        remote.client.send(Purpose::Token, request).await.map_err(|error| Fault::of_send(&remote.name, error))?;
    let (head, body) = response.into_parts();
    if head.status == StatusCode::TOO_MANY_REQUESTS {
        return Err(remote.rate_limited(&head.headers));
    }
    Ok((head.status, body))
}

async fn judge(remote: &Remote, key: &Key, status: StatusCode, body: Body) -> Result<Token, Fault> {
    let upstream = remote.name.to_string();
    match status.as_u16() {
        200 => {}
        401 | 403 if key.credential.is_some() => {
            return Err(Fault::last(UpstreamError::CredentialsDenied { upstream, status: status.as_u16() }));
        }
        401 | 403 => return Err(Fault::last(UpstreamError::AnonymousDenied { upstream, status: status.as_u16() })),
        500.. => return Err(Fault::passing(UpstreamError::Failed { upstream, status: status.as_u16() })),
        // Following it would carry credentials on.
        300..=399 => return Err(Fault::last(remote.misbehaved("its token realm redirects".to_owned()))),
        _ => return Err(Fault::last(UpstreamError::Failed { upstream, status: status.as_u16() })),
    }
    let bytes = read_whole(remote, body, REPLY_BYTES_MAX).await?;
    let wrong = |why: &str| Fault::last(remote.misbehaved(format!("its token realm's reply {why}")));
    let reply: Reply = serde_json::from_slice(&bytes).map_err(|_| wrong("is not JSON"))?;
    let found = [reply.token, reply.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let token = found.ok_or_else(|| wrong("has neither `token` nor `access_token`"))?;
    let life = reply.expires_in.and_then(|life| life.as_u64()).unwrap_or(LIFE_SECONDS).min(LIFE_SECONDS_MAX);
    let fetched_at = remote.clock.now();
    // A tenth early, so that it does not run out on the way.
    let refresh_at = fetched_at + SignedDuration::from_millis((life * 900) as i64);
    let token = Token { secret: Secret::new(token), refresh_at, fetched_at };
    token.header().ok_or_else(|| wrong("has a token that is no header value"))?;
    Ok(token)
}

fn form(key: &Key, secrets: &[(&str, &str)]) -> String {
    let mut fields = secrets.to_vec();
    fields.push(("client_id", "sealock"));
    fields.extend(key.service.as_deref().map(|service| ("service", service)));
    fields.push(("scope", &key.scope));
    encode(&fields)
}

fn encode(fields: &[(&str, &str)]) -> String {
    let pairs = fields.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, &ESCAPED)));
    pairs.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_marked_as_secret_in_its_header() {
        // Invariant 12
        let (refresh_at, fetched_at) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        let header = Token { secret: Secret::new("t0ken"), refresh_at, fetched_at }.header().unwrap();
        assert!(header.is_sensitive() && header == "Bearer t0ken");
    }

    #[test]
    fn what_is_remembered_of_tokens_has_a_bound() {
        // Invariant 17
        let tokens = Tokens::default();
        for number in 0..3 * TOKENS_MAX {
            let (realm, scope) = (Uri::from_static("https://far.test/token"), format!("repository:{number}:pull"));
            tokens.slot(&Key { realm, service: None, scope, credential: None }, Timestamp::UNIX_EPOCH);
        }
        assert!(tokens.slots.len() <= TOKENS_MAX, "{}", tokens.slots.len());
    }
}
