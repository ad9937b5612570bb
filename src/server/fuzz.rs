//! What clients send, for `fuzz/`.

use http::{HeaderMap, HeaderValue, header};

use super::range::{self, Chunk, Part};
use super::route::{Asked, Route};
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
