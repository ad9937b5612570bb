//! Logins in HTTP: what a request shows of its caller, and what it is told when that is not enough.
//!
//! The same reply for what is there and what is not: all of this is decided before the store is asked (invariant 14).

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::GeneralPurposeConfig;
use http::{HeaderMap, HeaderValue, StatusCode, header, request};
use tracing::{debug, info};

use super::listen::Peer;
use super::reply::{Problem, RequestId};
use crate::access::{Access, Caller, Denial, Shown, Unidentified, Verb, Visitor};
use crate::secret::Secret;

/// Where our own token endpoint is.
pub(super) const TOKEN_PATH: &str = "/token";
/// Longest `Host` that is put into a challenge.
const HOST_BYTES_MAX: usize = 260;
/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The door that one request stands before.
pub(super) struct Door<'a> {
    access: &'a Access,
    head: &'a request::Parts,
    peer: &'a Peer,
    id: RequestId,
}

/// What is asked for, in the words of a token's scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish(Option<String>);

impl Wish {
    /// docker asks for both when it pushes, and a token for one would not do.
    pub(super) fn repository(name: impl std::fmt::Display, verb: Verb) -> Self {
        let actions = if verb == Verb::Push { "pull,push" } else { verb.as_str() };
        Self(Some(format!("repository:{name}:{actions}")))
    }

    /// Both, in one scope: a mount reads one repository and pushes to another.
    pub(super) fn and(self, other: &Self) -> Self {
        Self(self.0.into_iter().chain(other.0.clone()).reduce(|wishes, wish| format!("{wishes} {wish}")))
    }

    pub(super) fn catalog() -> Self {
        Self(Some("registry:catalog:*".to_owned()))
    }

    /// To be let in at all.
    pub(super) fn none() -> Self {
        Self(None)
    }
}

impl<'a> Door<'a> {
    pub(super) fn new(access: &'a Access, head: &'a request::Parts, peer: &'a Peer, id: RequestId) -> Self {
        Self { access, head, peer, id }
    }

    /// Who asks, by what the request's own headers show.
    pub(super) async fn caller(&self) -> Result<Caller, Problem> {
        let shown = shown(&self.head.headers);
        let is_token = matches!(shown, Shown::Bearer(_));
        self.identify(shown).await.map_err(|why| self.unidentified(&why, is_token))
    }

    pub(super) async fn identify(&self, shown: Shown) -> Result<Caller, Unidentified> {
        let certificate = self.peer.certificate.as_ref();
        let visitor = Visitor { address: self.peer.address.ip().to_canonical(), certificate };
        self.access.identify(shown, visitor).await
    }

    /// The reply for who is not identified. `is_token`: by a token, which the client is to get anew.
    pub(super) fn unidentified(&self, why: &Unidentified, is_token: bool) -> Problem {
        debug!(id = %self.id, client = %self.peer.address, "not let in: {why}");
        match why.retry_after() {
            Some(seconds) => Problem::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", why.to_string())
                .with(header::RETRY_AFTER, seconds),
            None => self.unauthorized(why.to_string(), &Wish::none(), is_token.then_some("invalid_token")),
        }
    }

    /// The reply for who may not do what they ask for: `verb` of `what`.
    pub(super) fn denied(&self, why: &Denial, caller: &Caller, what: &str, wish: &Wish) -> Problem {
        let (id, client, reason) = (self.id, self.peer.address, why.reason());
        match why {
            // What clients begin with is no news.
            Denial::LogIn(_) => debug!(%id, %client, "not allowed without a login: {what}: {reason}"),
            _ => {
                let caller = caller.to_string();
                let caller = caller.escape_debug();
                info!(%id, %client, %caller, "`{caller}` may not {what}: {reason}");
            }
        }
        match why {
            Denial::LogIn(_) => {
                let error = caller.is_scoped().then_some("insufficient_scope");
                let message = match self.access.knows_nobody() {
                    true => format!(
                        "only who has logged in may {what}, and there are no users yet: `sealock user add NAME`"
                    ),
                    false => format!("log in to {what}"),
                };
                self.unauthorized(message, wish, error)
            }
            Denial::OutOfScope => {
                let message = format!("the token was made for something else than to {what}");
                self.unauthorized(message, wish, Some("insufficient_scope"))
            }
            Denial::Forbidden => {
                let message = format!("`{caller}` may not {what}: no access rule allows it");
                Problem::new(StatusCode::FORBIDDEN, "DENIED", message)
            }
        }
    }

    /// 401 with the challenge that leads clients to the token endpoint.
    pub(super) fn unauthorized(&self, message: String, wish: &Wish, error: Option<&'static str>) -> Problem {
        let problem = Problem::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message);
        match HeaderValue::try_from(self.challenge(wish, error)) {
            Ok(challenge) => problem.with(header::WWW_AUTHENTICATE, challenge),
            Err(_) => problem,
        }
    }

    fn challenge(&self, wish: &Wish, error: Option<&'static str>) -> String {
        let Some(host) = host(self.head) else {
            // Without a host there is no URL of ours to send it to.
            return "Basic realm=\"sealock\"".to_owned();
        };
        let scheme = if self.peer.is_tls { "https" } else { "http" };
        let mut challenge = match self.access.realm() {
            Some(realm) => format!("Bearer realm=\"{realm}\",service=\"{host}\""),
            None => format!("Bearer realm=\"{scheme}://{host}{TOKEN_PATH}\",service=\"{host}\""),
        };
        if let Some(scope) = &wish.0 {
            challenge.push_str(&format!(",scope=\"{scope}\""));
        }
        if let Some(error) = error {
            challenge.push_str(&format!(",error=\"{error}\""));
        }
        challenge
    }
}

/// What the headers show.
pub(super) fn shown(headers: &HeaderMap) -> Shown {
    let mut shown = headers.get_all(header::AUTHORIZATION).iter();
    match (shown.next(), shown.next()) {
        (None, _) => Shown::Nothing,
        (Some(value), None) => credentials(value).unwrap_or(Shown::Unreadable),
        (Some(_), Some(_)) => Shown::Unreadable,
    }
}

fn credentials(value: &HeaderValue) -> Option<Shown> {
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Shown::Bearer(Secret::new(rest)));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Shown::Basic { username: username.to_owned(), password: Secret::new(password) })
}

/// The host, and port, by which the client reached us, if it is one that can stand in a quoted string.
fn host(head: &request::Parts) -> Option<&str> {
    let named = head.uri.authority().map(|authority| authority.as_str());
    let host = named.or_else(|| head.headers.get(header::HOST)?.to_str().ok())?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    (!host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(plain)).then_some(host)
}

#[cfg(any(test, fuzzing))]
pub(super) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{username}:{password}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn credentials_are_read_as_clients_write_them() {
        // Invariant 16
        assert!(matches!(shown(&headers(&[])), Shown::Nothing));
        for text in ["Bearer abc.def", "bearer abc.def", "Bearer  abc.def"] {
            assert!(matches!(shown(&headers(&[text])), Shown::Bearer(token) if token.expose() == "abc.def"));
        }
        for text in [basic("alice", "a:bc"), "basic YWxpY2U6YTpiYw".to_owned(), "Basic YWxpY2U6YTpiYw==".to_owned()] {
            match shown(&headers(&[&text])) {
                Shown::Basic { username, password } => {
                    assert_eq!((username.as_str(), password.expose()), ("alice", "a:bc"));
                }
                _ => panic!("{text}"),
            }
        }
        let wrong: [&[&str]; 7] = [
            &["Digest x"],
            &["Bearer"],
            &["Basic !"],
            &["Basic YWxpY2U="],
            &["Basic /w=="],
            &[""],
            &["Bearer a", "Bearer b"],
        ];
        for values in wrong {
            assert!(matches!(shown(&headers(values)), Shown::Unreadable), "{values:?}");
        }
    }

    #[test]
    fn only_a_plain_host_gets_into_a_challenge() {
        // Invariant 16
        let host = |value: &'static [u8]| {
            let request = http::Request::get("/v2/").header(header::HOST, HeaderValue::from_bytes(value).unwrap());
            let (head, ()) = request.body(()).unwrap().into_parts();
            super::host(&head).map(str::to_owned)
        };
        assert_eq!(host(b"reg.site:5000").as_deref(), Some("reg.site:5000"));
        assert_eq!(host(b"[::1]:5000").as_deref(), Some("[::1]:5000"));
        for bad in [&b""[..], b"a\"b", b"a b", b"a/b", b"a@b", b"\xff", b"a,b"] {
            assert_eq!(host(bad), None, "{bad:?}");
        }
    }
}
