//! What clients send, for `fuzz/`.

use http::{HeaderMap, HeaderValue, header};

use super::auth;
use super::range::{self, Chunk, Part};
use super::route::{Asked, Route};
use super::token::Wanted;
use crate::access::{SCOPES_MAX, Shown, fuzz::written};
use crate::oci::{Reference, RepositoryName};

/// A request's path and query: what is parsed says no more than what it was parsed from, and names lead nowhere else.
pub(crate) fn route(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    let Ok(asked) = Asked::parse(path, query) else { return };
    let name: Option<&RepositoryName> = match &asked.route {
        Route::Base | Route::Catalog { .. } | Route::Live | Route::Ready | Route::Token => None,
        Route::Manifest { name, .. } | Route::Blob { name, .. } | Route::Tags { name, .. } => Some(name),
        Route::Referrers { name, .. } | Route::Uploads { name, .. } | Route::Upload { name, .. } => Some(name),
    };
    if let Some(name) = name {
        assert!(path.starts_with(&format!("/v2/{name}/")), "{name} of {path:?}");
        assert!(name.components().all(|part| !part.is_empty() && !part.starts_with('.')), "{name}");
    }
    if let Route::Manifest { name, reference, .. } = &asked.route {
        assert!(!reference.to_string().contains('/'));
        let again = Asked::parse(&format!("/v2/{name}/manifests/{reference}"), query);
        assert_eq!(again.as_ref(), Ok(&asked), "{reference} does not lead where it came from");
        assert!(matches!(reference, Reference::Tag(_) | Reference::Digest(_)));
    }
}

/// Eight bytes of size, then a `Range`: what is to be sent exists.
pub(crate) fn range(data: &[u8]) {
    let Some((size, text)) = data.split_first_chunk::<8>() else { return };
    let Ok(value) = HeaderValue::from_bytes(text) else { return };
    let size = u64::from_le_bytes(*size);
    let mut headers = HeaderMap::new();
    headers.insert(header::RANGE, value.clone());
    if let Part::Range(range) = range::part(&headers, "\"e\"", size) {
        assert!(range.start < range.end && range.end <= size, "{range:?} of {size}");
    }
    headers.insert(header::CONTENT_RANGE, value.clone());
    if let Chunk::Range(range) = range::chunk(&headers) {
        assert!(range.start < range.end, "{range:?}");
    }
    headers.insert(header::IF_NONE_MATCH, value);
    range::has_already(&headers, "\"e\"");
}

/// `Authorization`, a value a line: one is taken, and what it shows is written as it is read.
pub(crate) fn authorization(data: &[u8]) {
    let values = data.split(|byte| *byte == b'\n').take(3).map(HeaderValue::from_bytes);
    let Ok(values) = values.collect::<Result<Vec<_>, _>>() else { return };
    let shown = |values: &[HeaderValue]| {
        let headers: HeaderMap = values.iter().map(|value| (header::AUTHORIZATION, value.clone())).collect();
        auth::shown(&headers)
    };
    let again = |text: &str| shown(&[HeaderValue::from_str(text).unwrap_or_else(|why| panic!("{text:?}: {why}"))]);
    match shown(&values) {
        Shown::Nothing => panic!("{values:?} show something"),
        Shown::Unreadable => {}
        Shown::Bearer(token) => {
            assert!(values.len() == 1 && values[0].as_bytes().trim_ascii_end().ends_with(token.expose().as_bytes()));
            assert!(matches!(again(&format!("Bearer {}", token.expose())), Shown::Bearer(read) if read == token));
        }
        Shown::Basic { username, password } => {
            assert!(values.len() == 1 && !username.contains(':'), "{username:?}");
            assert!(username.len() + password.expose().len() < values[0].len());
            let Shown::Basic { username: name, password: word } = again(&auth::basic(&username, password.expose()))
            else {
                panic!("{username:?} cannot be shown again")
            };
            assert!(name == username && word == password, "{username:?} is shown as {name:?}");
        }
    }
}

/// A line of query, then a form: scopes have a bound, secrets come in forms alone, and a form can say it all.
pub(crate) fn token_request(data: &[u8]) {
    let (query, form) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let form = form.get(1..).unwrap_or_default();
    let wanted = |query: &[u8], form: &[u8]| {
        let mut wanted = Wanted::default();
        wanted.add(query, false);
        wanted.add(form, true);
        wanted
    };
    let asked = wanted(query, form);
    assert!(asked.scopes.len() <= SCOPES_MAX);
    let Wanted { scopes: _, offline: _, grant, username, password, refresh } = wanted(query, b"");
    assert!(grant.is_none() && username.is_none() && password.is_none() && refresh.is_none());
    let mut again = form_urlencoded::Serializer::new(String::new());
    again.extend_pairs(asked.scopes.iter().map(|scope| ("scope", written(scope))));
    again.extend_pairs(asked.offline.then_some(("access_type", "offline")));
    again.extend_pairs(asked.grant.iter().map(|grant| ("grant_type", grant)));
    again.extend_pairs(asked.username.iter().map(|name| ("username", name)));
    again.extend_pairs(asked.password.iter().map(|word| ("password", word.expose())));
    again.extend_pairs(asked.refresh.iter().map(|token| ("refresh_token", token.expose())));
    assert_eq!(wanted(b"", again.finish().as_bytes()), asked);
}
