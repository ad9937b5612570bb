//! Our own tokens: made for a caller and a scope, and believed only with our signature, in their time, for their use.

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize};

use super::caller::{Caller, Grants, Subject, Verb, Verbs};
use super::keys::{Keys, NoKey};
use crate::names::{Origin, Repository};
use crate::secret::Secret;

/// Longest token that is looked at, in bytes; ours and others'.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Who signs them.
pub const ISSUER: &str = "sealock";
/// The one kind of signature that is made and believed.
const ALGORITHM: Algorithm = Algorithm::EdDSA;
/// How far the clock may be set back without voiding tokens that were just made.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(60);
/// An Ed25519 signature in base64, in characters.
const SIGNATURE_CHARS: usize = 86;

/// Why no token could be made.
#[derive(Debug, thiserror::Error)]
pub enum NoToken {
    #[error(transparent)]
    Key(#[from] NoKey),
    #[error("what is to be said of the caller does not fit into a token of {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("making it was broken off")]
    Stopped,
}

/// What a token is for; one kind is never taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// With requests, in its scope.
    Access,
    /// At the token endpoint alone, in place of a password.
    Refresh,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    exp: i64,
    nbf: i64,
    iat: i64,
    /// Makes no two tokens the same.
    jti: String,
    who: Subject,
    /// `[host, name, verbs]`; a local repository has no host.
    #[serde(default)]
    access: Vec<(String, String, Vec<Verb>)>,
    #[serde(default)]
    catalog: bool,
}

impl Use {
    fn audience(self) -> &'static str {
        match self {
            Self::Access => "sealock",
            Self::Refresh => "sealock-refresh",
        }
    }
}

/// Makes a token for `subject` that is good until `ends_at`, with the first of the grants, as many as fit into a token that
/// [`check`] looks at. Not for an async thread: a key may have to be made.
pub fn sign(
    keys: &Keys,
    used: Use,
    subject: &Subject,
    grants: &Grants,
    now: Timestamp,
    ends_at: Timestamp,
) -> Result<Secret, NoToken> {
    let key = keys.signing(now)?;
    let access = grants.repositories.iter().map(|(repository, verbs)| {
        let host = match &repository.origin {
            Origin::Local => String::new(),
            Origin::Upstream(host) => host.to_string(),
        };
        (host, repository.name.to_string(), verbs.iter().collect())
    });
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| NoKey)?;
    let mut claims = Claims {
        iss: ISSUER.to_owned(),
        aud: used.audience().to_owned(),
        exp: ends_at.as_second(),
        nbf: now.as_second(),
        iat: now.as_second(),
        jti: hex::encode(id),
        who: subject.clone(),
        access: Vec::new(),
        catalog: grants.catalog,
    };
    let mut header = Header::new(ALGORITHM);
    header.kid = Some(key.id.clone());
    // Three parts with a dot between them; three bytes are four characters.
    let others = json_bytes(&header).div_ceil(3).saturating_mul(4).saturating_add(SIGNATURE_CHARS + 2);
    let room = TOKEN_BYTES_MAX.saturating_sub(others) / 4 * 3;
    let mut room = room.checked_sub(json_bytes(&claims)).ok_or(NoToken::TooLong)?;
    claims.access.extend(access.map_while(|grant| {
        // With the comma after it.
        room = room.checked_sub(json_bytes(&grant).saturating_add(1))?;
        Some(grant)
    }));
    Ok(jsonwebtoken::encode(&header, &claims, &key.signing).map(Secret::new).map_err(|_| NoKey)?)
}

fn json_bytes(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |text| text.len())
}

/// Who the token is for, if it is one of ours, for this use, and good now.
pub fn check(keys: &Keys, used: Use, token: &Secret, now: Timestamp) -> Option<Caller> {
    let text = token.expose();
    if text.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let header = jsonwebtoken::decode_header(text).ok()?;
    let key = keys.find(header.kid.as_deref()?)?;
    let mut wanted = Validation::new(ALGORITHM);
    wanted.set_issuer(&[ISSUER]);
    wanted.set_audience(&[used.audience()]);
    wanted.set_required_spec_claims(&["exp", "nbf", "iss", "aud"]);
    // Our clock may be wound by hand: see below.
    (wanted.validate_exp, wanted.validate_nbf) = (false, false);
    let claims: Claims = jsonwebtoken::decode(text, &key.checking, &wanted).ok()?.claims;
    let ends_at = Timestamp::from_second(claims.exp).ok()?;
    let begins_at = Timestamp::from_second(claims.nbf).ok()?;
    if now >= ends_at || now + CLOCK_STEP < begins_at {
        return None;
    }
    let repositories = claims.access.into_iter().map(|(host, name, verbs)| {
        let origin = if host.is_empty() { Origin::Local } else { Origin::Upstream(host.into()) };
        Some((Repository { origin, name: name.parse().ok()? }, verbs.into_iter().collect::<Verbs>()))
    });
    let grants = match used {
        Use::Access => Some(Grants { repositories: repositories.collect::<Option<_>>()?, catalog: claims.catalog }),
        Use::Refresh => None,
    };
    Some(Caller::new(claims.who, grants, Some(ends_at)))
}

/// The `iss` that a token claims to be of, before anything of it is believed.
pub fn claimed_issuer(token: &Secret) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    let text = token.expose();
    let looks_like_one = text.len() <= TOKEN_BYTES_MAX && text.starts_with("ey") && text.matches('.').count() == 2;
    if !looks_like_one {
        return None;
    }
    jsonwebtoken::dangerous::insecure_decode_claims::<Issuer>(text).ok().map(|claims| claims.iss)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::access::caller::Mark;

    fn now() -> Timestamp {
        Timestamp::from_second(1_790_000_000).unwrap()
    }

    fn minutes(count: i64) -> SignedDuration {
        SignedDuration::from_mins(count)
    }

    fn alice() -> Subject {
        Subject::User { name: "alice".to_owned(), mark: Mark("m".to_owned()) }
    }

    #[test]
    fn a_token_says_what_was_put_into_it_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path(), minutes(60)).unwrap();
        let repository = |host: &str, name: &str| {
            let origin = if host.is_empty() { Origin::Local } else { Origin::Upstream(host.into()) };
            Repository { origin, name: name.parse().unwrap() }
        };
        let (here, there) = (repository("", "docker.io/x"), repository("docker.io", "x"));
        let pull: Verbs = [Verb::Pull].into_iter().collect();
        let grants = Grants { repositories: vec![(there.clone(), pull)], catalog: true };
        let token = sign(&keys, Use::Access, &alice(), &grants, now(), now() + minutes(15)).unwrap();
        let caller = check(&keys, Use::Access, &token, now() + minutes(14)).unwrap();
        assert_eq!((&**caller.id(), caller.0.grants.as_ref()), ("user:alice", Some(&grants)));
        let scope = caller.0.grants.as_ref().unwrap();
        assert!(
            scope.covers(&there, Verb::Pull) && !scope.covers(&there, Verb::Push) && !scope.covers(&here, Verb::Pull)
        );
        assert!(check(&keys, Use::Access, &token, now() + minutes(15)).is_none(), "expired");
        assert!(check(&keys, Use::Access, &token, now() - minutes(2)).is_none(), "not yet");
        assert!(check(&keys, Use::Refresh, &token, now()).is_none(), "of the other kind");
        let refresh = sign(&keys, Use::Refresh, &alice(), &Grants::default(), now(), now() + minutes(60)).unwrap();
        assert!(check(&keys, Use::Access, &refresh, now()).is_none(), "of the other kind");
        assert!(check(&keys, Use::Refresh, &refresh, now()).is_some());
    }

    #[test]
    fn a_token_has_as_many_grants_as_fit_and_is_taken() {
        // Invariant 17
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path(), minutes(60)).unwrap();
        let repositories: Vec<_> = (0..64)
            .map(|number| {
                let name = format!("{number:02}{}", "a".repeat(238)).parse().unwrap();
                (Repository { origin: Origin::Upstream("far.test".into()), name }, Verbs::CONTENT)
            })
            .collect();
        let mut longest = 0;
        // Whatever the rest of the token needs.
        for extra in 0..300 {
            let subject = Subject::User { name: "a".repeat(extra), mark: Mark("m".to_owned()) };
            let grants = Grants { repositories: repositories.clone(), catalog: true };
            let token = sign(&keys, Use::Access, &subject, &grants, now(), now() + minutes(5)).unwrap();
            let caller = check(&keys, Use::Access, &token, now()).expect("it is taken");
            let got = caller.0.grants.as_ref().unwrap();
            assert!(got.catalog && got.repositories.len() > 35 && repositories.starts_with(&got.repositories));
            longest = longest.max(token.expose().len());
        }
        assert!(longest > TOKEN_BYTES_MAX - 16, "the room is used: {longest}");
        let subject = Subject::User { name: "a".repeat(TOKEN_BYTES_MAX), mark: Mark("m".to_owned()) };
        let refused = sign(&keys, Use::Access, &subject, &Grants::default(), now(), now() + minutes(5));
        assert!(matches!(refused, Err(NoToken::TooLong)));
    }

    #[test]
    fn what_we_did_not_sign_is_not_believed() {
        // Invariant 16
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (keys, others) =
            (Keys::open(folder.path(), minutes(60)).unwrap(), Keys::open(other.path(), minutes(60)).unwrap());
        let make = |keys: &Keys| sign(keys, Use::Access, &alice(), &Grants::default(), now(), now() + minutes(5));
        let (token, foreign) = (make(&keys).unwrap(), make(&others).unwrap());
        assert!(
            check(&keys, Use::Access, &token, now()).is_some() && check(&keys, Use::Access, &foreign, now()).is_none()
        );
        let parts: Vec<&str> = token.expose().split('.').collect();
        let [header, claims, signature] = parts.as_slice() else { panic!("{} parts", parts.len()) };
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let decode = |text: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap();
        let kid = keys.signing(now()).unwrap().id.clone();
        let as_root = encode(&decode(claims).replace("alice", "carol"));
        let none = encode(&format!(r#"{{"alg":"none","kid":"{kid}"}}"#));
        let hmac = encode(&format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#));
        let no_kid = encode(r#"{"alg":"EdDSA"}"#);
        for forged in [
            format!("{header}.{as_root}.{signature}"),
            format!("{none}.{claims}."),
            format!("{none}.{claims}.{signature}"),
            format!("{hmac}.{claims}.{signature}"),
            format!("{no_kid}.{claims}.{signature}"),
            format!("{header}.{claims}.{}", &signature[..signature.len() - 4]),
            format!("{header}.{claims}"),
            format!("{}{}", token.expose(), "A".repeat(TOKEN_BYTES_MAX)),
            String::new(),
            "..".to_owned(),
        ] {
            assert!(check(&keys, Use::Access, &Secret::new(forged.clone()), now()).is_none(), "{forged}");
        }
        assert_eq!(claimed_issuer(&token).as_deref(), Some(ISSUER));
        assert_eq!(claimed_issuer(&Secret::new("a password. with. dots")), None);
    }
}
