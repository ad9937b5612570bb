//! `GET` and `HEAD /v2/<name>/manifests/<reference>`.

use http::{HeaderValue, Response, header};

use super::{Tagged, not_modified, warn_if_stale};
use crate::oci::Reference;
use crate::pull::{Ask, FoundManifest};
use crate::server::body::Body;
use crate::server::face::{Answer, Call};
use crate::server::range;
use crate::server::reply::{self, Problem, Wanted};

/// The manifest's exact bytes under their exact type. `Accept` does not matter: a digest has one representation.
pub(in crate::server) async fn serve(call: &Call<'_>, ask: &Ask, reference: &Reference) -> Answer {
    let found = call.face.pull.manifest(ask, reference).await;
    reply_with(call, found.map_err(|miss| call.missed(&miss, Wanted::Manifest))?)
}

fn reply_with(call: &Call<'_>, found: FoundManifest) -> Answer {
    let manifest = &found.kept.manifest;
    let tagged = Tagged::new(&manifest.digest);
    let mut response = if range::has_already(call.headers, tagged.etag()) {
        not_modified(tagged)
    } else {
        let mut response = Response::new(Body::full(manifest.bytes.clone()));
        let headers = response.headers_mut();
        headers.reserve(10);
        let media_type = HeaderValue::from_str(manifest.media_type.as_str());
        headers.insert(header::CONTENT_TYPE, media_type.map_err(|_| Problem::internal("the manifest's media type"))?);
        headers.insert(header::CONTENT_LENGTH, manifest.size().into());
        tagged.insert(headers);
        response
    };
    if let Some(checked_at) = found.checked_at {
        response.headers_mut().insert(header::AGE, reply::age(checked_at, call.face.clock.now()));
    }
    warn_if_stale(response.headers_mut(), found.stale.as_deref());
    Ok(response)
}
