//! `GET /v2/<name>/referrers/<digest>`: an index made here of what refers to the digest.

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use super::warn_if_stale;
use crate::oci::{Digest, MediaType};
use crate::pull::Ask;
use crate::server::face::{Answer, Call};
use crate::server::reply::{self, Wanted};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

pub(in crate::server) async fn serve(
    call: &Call<'_>,
    ask: &Ask,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Answer {
    let found = call.face.pull.referrers(ask, subject, artifact_type).await;
    let found = found.map_err(|miss| call.missed(&miss, Wanted::Referrers))?;
    let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": found.descriptors });
    let mut response = reply::json_reply(StatusCode::OK, &index);
    let headers = response.headers_mut();
    // oras takes the referrers API for missing unless this is exact.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MediaType::OCI_INDEX));
    if artifact_type.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    warn_if_stale(headers, found.stale.as_deref());
    Ok(response)
}
