//! `/v2/<name>/manifests/<reference>`: read, pushed, deleted.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{Tagged, not_modified, warn_if_stale};
use crate::oci::{MANIFEST_SIZE_MAX, MediaType, Reference, Tag};
use crate::pull::{Ask, FoundManifest};
use crate::push::Order;
use crate::server::body::Body;
use crate::server::face::{Answer, Call};
use crate::server::incoming::Receiving;
use crate::server::range;
use crate::server::reply::{self, Problem, Wanted};

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

/// The manifest's exact bytes under their exact type. `Accept` does not matter: a digest has one representation.
pub(in crate::server) async fn serve(call: &Call<'_>, ask: &Ask, reference: &Reference) -> Answer {
    let found = call.face.pull.manifest(ask, reference).await;
    reply_with(call, found.map_err(|miss| call.missed(&miss, Wanted::Manifest))?)
}

/// `PUT`: takes the manifest in as it comes, under its reference and `tags`.
pub(in crate::server) async fn put(
    call: &Call<'_>,
    order: &Order,
    reference: &Reference,
    tags: &[Tag],
    body: &mut Incoming,
) -> Answer {
    let push = &call.face.push;
    push.check_manifest(order, tags).map_err(|why| call.refused(&why))?;
    let media_type = match call.headers.get(header::CONTENT_TYPE) {
        None => None,
        Some(named) => match named.to_str().ok().and_then(MediaType::parse) {
            None => {
                let message = "the `Content-Type` is not a media type";
                return Err(Problem::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message));
            }
            known => known,
        },
    };
    let receiving = Receiving::new(body, call.face.stall);
    let bytes = receiving.whole(call.headers, MANIFEST_SIZE_MAX, &call.face.manifest_room).await?;
    let pushed = push.put_manifest(order, reference, tags, media_type, bytes).await;
    let pushed = pushed.map_err(|why| call.refused(&why))?;

    let named = || Problem::internal("naming what was pushed");
    let location = format!("/v2/{}/manifests/{}", order.target.asked, pushed.digest);
    let mut response = super::created(location.try_into().map_err(|_| named())?, Tagged::new(&pushed.digest));
    let headers = response.headers_mut();
    if let Some(subject) = pushed.subject {
        headers.insert(SUBJECT, subject.to_string().try_into().map_err(|_| named())?);
    }
    for tag in tags {
        headers.append(TAG, tag.as_str().try_into().map_err(|_| named())?);
    }
    Ok(response)
}

/// `DELETE`: a tag, or a manifest and the tags that name it.
pub(in crate::server) async fn delete(call: &Call<'_>, order: &Order, reference: &Reference) -> Answer {
    call.face.push.delete_manifest(order, reference).await.map_err(|why| call.refused(&why))?;
    Ok(super::deleted())
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
