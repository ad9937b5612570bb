//! `GET /v2/<name>/referrers/<digest>`: an index made here of what refers to the digest, in pages.

use http::{HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::warn_if_stale;
use crate::oci::{Descriptor, Digest, MediaType};
use crate::pull::{Ask, Referrers};
use crate::server::face::{Answer, Call};
use crate::server::reply::{self, Problem, Wanted};
use crate::server::route::ReferrersQuery;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The reply. Its descriptors may be megabytes: they are written from where they are.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u8,
    media_type: &'a str,
    manifests: &'a [Descriptor],
}

pub(in crate::server) async fn serve(call: &Call<'_>, ask: &Ask, subject: &Digest, query: &ReferrersQuery) -> Answer {
    let artifact_type = query.artifact_type.as_deref();
    let found = call.face.pull.referrers(ask, subject, artifact_type, query.after.as_ref()).await;
    let Referrers { page, stale } = found.map_err(|miss| call.missed(&miss, Wanted::Referrers))?;
    let index = Index { schema_version: 2, media_type: MediaType::OCI_INDEX, manifests: &page.descriptors };
    let index = serde_json::to_vec(&index).map_err(|_| Problem::internal("writing the list"))?;
    let mut response = reply::json_bytes(StatusCode::OK, index);
    let headers = response.headers_mut();
    // oras takes the referrers API for missing unless this is exact.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MediaType::OCI_INDEX));
    if artifact_type.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(last) = page.more_after {
        let pair = |key, value: Option<&str>| {
            let value = value.map(|value| format!("&{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
            value.unwrap_or_default()
        };
        let (filter, namespace) = (pair("artifactType", artifact_type), pair("ns", call.namespace));
        let link =
            format!("</v2/{}/referrers/{subject}?last={last}{filter}{namespace}>; rel=\"next\"", ask.target.asked);
        headers.extend(HeaderValue::try_from(link).ok().map(|link| (header::LINK, link)));
    }
    warn_if_stale(headers, stale.as_deref());
    Ok(response)
}
