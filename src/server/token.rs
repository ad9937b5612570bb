//! `/token`: tokens for clients that log in, as Docker's specification has it (GET with Basic, POST with a form).

use form_urlencoded::parse;
use http::{HeaderValue, Method, StatusCode, header, request};
use hyper::body::Incoming;
use serde_json::json;
use tracing::error;

use super::auth::{Door, Wish};
use super::face::{Answer, Face};
use super::incoming::Receiving;
use super::reply::{self, Problem, RequestId};
use crate::access::{Caller, SCOPES_MAX, Scope, Shown};
use crate::secret::Secret;

/// Largest form that is taken.
const FORM_BYTES_MAX: usize = 64 << 10;

/// What a client asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) scopes: Vec<Scope>,
    /// Something to get further tokens with.
    pub(super) offline: bool,
    pub(super) grant: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) refresh: Option<Secret>,
}

impl Wanted {
    /// Of a form, or of a query. Some clients send the scopes as several fields, some as one with spaces. Secrets are not
    /// taken from a query, which ends up in the logs of whatever stands between.
    pub(super) fn add(&mut self, encoded: &[u8], is_form: bool) {
        for (name, value) in parse(encoded) {
            match &*name {
                "scope" => {
                    let room = SCOPES_MAX.saturating_sub(self.scopes.len());
                    self.scopes.extend(Scope::parse_all(&value).take(room));
                }
                "offline_token" => self.offline |= value == "true",
                "access_type" => self.offline |= value == "offline",
                "grant_type" if is_form => self.grant = Some(value.into_owned()),
                "username" if is_form => self.username = Some(value.into_owned()),
                "password" if is_form => self.password = Some(Secret::new(value)),
                "refresh_token" if is_form => self.refresh = Some(Secret::new(value)),
                _ => {}
            }
        }
    }
}

pub(super) async fn serve(
    face: &Face,
    door: &Door<'_>,
    head: &request::Parts,
    body: &mut Incoming,
    id: RequestId,
) -> Answer {
    let mut wanted = Wanted::default();
    wanted.add(head.uri.query().unwrap_or_default().as_bytes(), false);
    let caller = match head.method {
        Method::GET => door.caller().await?,
        Method::POST => {
            let late = || Problem::new(StatusCode::REQUEST_TIMEOUT, "UNSUPPORTED", "the form did not come in time");
            let form = tokio::time::timeout(face.form_timeout, form(face, body)).await;
            wanted.add(&form.map_err(|_| late())??, true);
            by_form(face, door, &mut wanted).await?
        }
        _ => return Err(Problem::method("GET, POST", "this path does not take this method")),
    };
    if caller.is_scoped() && !caller.is_anonymous() {
        // Else a token would live for as long as somebody renews it, and grow beyond its scope.
        let message = "a token buys no other token; log in with a password or a refresh token";
        return Err(door.unauthorized(message.to_owned(), &Wish::none(), None));
    }
    let issued = face.access.issue(&caller, &wanted.scopes, wanted.offline).await.map_err(|why| {
        error!(%id, "no token for {caller}: {why}");
        Problem::internal("making a token")
    })?;
    let token = issued.token.expose();
    let mut document = json!({
        "token": token,
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": issued.expires_in,
        "issued_at": issued.issued_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    if let Some(refresh) = &issued.refresh {
        document["refresh_token"] = json!(refresh.expose());
    }
    let mut response = reply::json_reply(StatusCode::OK, &document);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn by_form(face: &Face, door: &Door<'_>, wanted: &mut Wanted) -> Result<Caller, Problem> {
    match wanted.grant.as_deref() {
        Some("password") => {
            let username = wanted.username.take().unwrap_or_default();
            let password = wanted.password.take().unwrap_or_else(|| Secret::new(""));
            let identified = door.identify(Shown::Basic { username, password }).await;
            identified.map_err(|why| door.unidentified(&why, false))
        }
        Some("refresh_token") => {
            let token = wanted.refresh.take().unwrap_or_else(|| Secret::new(""));
            face.access.refresh(&token).map_err(|why| door.unidentified(&why, false))
        }
        _ => {
            let message = "write `grant_type=password` with username and password, or `grant_type=refresh_token`";
            Err(Problem::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message))
        }
    }
}

async fn form(face: &Face, body: &mut Incoming) -> Result<Vec<u8>, Problem> {
    let (mut receiving, mut form) = (Receiving::new(body, face.stall), Vec::new());
    while let Some(piece) = receiving.piece().await? {
        if form.len() + piece.len() > FORM_BYTES_MAX {
            let message = format!("a token request has at most {FORM_BYTES_MAX} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message));
        }
        form.extend_from_slice(&piece);
    }
    Ok(form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_in_forms_alone() {
        // Invariant 12
        let text =
            b"grant_type=password&username=a&password=b&refresh_token=c&scope=repository:a:pull&offline_token=true";
        let (mut query, mut form) = (Wanted::default(), Wanted::default());
        query.add(text, false);
        form.add(text, true);
        assert!(
            query.grant.is_none() && query.username.is_none() && query.password.is_none() && query.refresh.is_none()
        );
        assert!(form.grant.is_some() && form.username.is_some() && form.password.is_some() && form.refresh.is_some());
        assert_eq!((query.offline, query.scopes), (form.offline, form.scopes));
    }

    #[test]
    fn several_scopes_come_in_several_ways_and_have_a_bound() {
        // Invariant 17
        let scopes = |text: &str| {
            let mut wanted = Wanted::default();
            wanted.add(text.as_bytes(), false);
            wanted.scopes.len()
        };
        assert_eq!(scopes("scope=repository%3Aa%3Apull&scope=repository:b:push,pull&service=x"), 2);
        assert_eq!(scopes("scope=repository:a:pull+repository:b:pull"), 2);
        assert_eq!(scopes(&"scope=repository:a:pull&".repeat(500)), SCOPES_MAX);
        assert_eq!(scopes(&format!("scope={}", "repository:a:pull+".repeat(500))), SCOPES_MAX);
    }
}
