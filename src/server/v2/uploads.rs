//! `/v2/<name>/blobs/uploads/`: a blob, mounted, in one request, or in a session of several.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::Tagged;
use crate::names::Repository;
use crate::oci::Digest;
use crate::push::{Appending, Extent, Order, PushError};
use crate::server::body::Body;
use crate::server::face::{Answer, Call};
use crate::server::incoming::{self, Receiving};
use crate::server::range::{self, Chunk};
use crate::server::reply::Problem;
use crate::server::route::Begin;
use crate::store::UploadId;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// `POST`: mounts the blob, takes it in whole, or begins a session. `from`: where the caller may read a blob that
/// `begin` wants mounted.
pub(in crate::server) async fn begin(
    call: &Call<'_>,
    order: &Order,
    begin: &Begin,
    from: &[Repository],
    body: &mut Incoming,
) -> Answer {
    let push = &call.face.push;
    if let Some((digest, _)) = &begin.mount
        && push.mount(order, digest, from).await.map_err(|why| call.refused(&why))?
    {
        return created(call, order, digest);
    }
    let named = begin.digest.or(begin.mount.as_ref().map(|(digest, _)| *digest)).map(|digest| digest.algorithm());
    let id = push.begin(order, begin.algorithm.or(named)).await.map_err(|why| call.refused(&why))?;
    let Some(digest) = &begin.digest else { return at(call, order, &id, StatusCode::ACCEPTED, 0) };
    let stored = store(call, order, &id, digest, body).await;
    if stored.is_err() {
        // Nobody knows its name.
        if let Err(why) = push.cancel(order, &id).await
            && !matches!(why, PushError::UploadUnknown { .. })
        {
            call.refused(&why);
        }
    }
    stored
}

/// `PATCH`: the next chunk, or all of it.
pub(in crate::server) async fn append(call: &Call<'_>, order: &Order, id: &UploadId, body: &mut Incoming) -> Answer {
    let written = match receive(call, order, id, body).await? {
        Received::All(appending) => appending.leave().await.map_err(|why| call.refused(&why))?,
        Received::OutOfOrder(why, written) => return out_of_order(call, order, id, &why, written),
    };
    at(call, order, id, StatusCode::ACCEPTED, written)
}

/// `PUT`: the last chunk, if there is one more, and the digest of the whole.
pub(in crate::server) async fn finish(
    call: &Call<'_>,
    order: &Order,
    id: &UploadId,
    digest: Option<&Digest>,
    body: &mut Incoming,
) -> Answer {
    let Some(digest) = digest else {
        let message = "say what the upload is to be kept under: `?digest=`";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message));
    };
    store(call, order, id, digest, body).await
}

/// `GET`: how far it is.
pub(in crate::server) async fn state(call: &Call<'_>, order: &Order, id: &UploadId) -> Answer {
    let written = call.face.push.written(order, id).await.map_err(|why| call.refused(&why))?;
    at(call, order, id, StatusCode::NO_CONTENT, written)
}

/// `DELETE`.
pub(in crate::server) async fn cancel(call: &Call<'_>, order: &Order, id: &UploadId) -> Answer {
    call.face.push.cancel(order, id).await.map_err(|why| call.refused(&why))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

enum Received {
    All(Box<Appending>),
    /// The upload stands at another byte.
    OutOfOrder(PushError, u64),
}

async fn store(call: &Call<'_>, order: &Order, id: &UploadId, digest: &Digest, body: &mut Incoming) -> Answer {
    match receive(call, order, id, body).await? {
        Received::All(appending) => appending.keep(digest).await.map_err(|why| call.refused(&why))?,
        Received::OutOfOrder(why, written) => return out_of_order(call, order, id, &why, written),
    }
    created(call, order, digest)
}

/// Takes the body in. What has come when it breaks off stays, so that the client can go on from there.
async fn receive(call: &Call<'_>, order: &Order, id: &UploadId, body: &mut Incoming) -> Result<Received, Problem> {
    let extent = extent(call)?;
    let mut appending = match call.face.push.append(order, id, extent).await {
        Ok(appending) => Box::new(appending),
        Err(PushError::OutOfOrder { start, written }) => {
            return Ok(Received::OutOfOrder(PushError::OutOfOrder { start, written }, written));
        }
        Err(why) => return Err(call.refused(&why)),
    };
    let mut receiving = Receiving::new(body, call.face.stall);
    loop {
        match receiving.piece().await {
            Ok(Some(piece)) => appending.write(piece).await.map_err(|why| call.refused(&why))?,
            Ok(None) => return Ok(Received::All(appending)),
            Err(problem) => {
                let left = appending.leave().await;
                // The body's own fault comes first.
                if let Err(why @ PushError::Store(_)) = left {
                    call.refused(&why);
                }
                return Err(problem);
            }
        }
    }
}

/// What the headers say of the chunk, and whether they agree.
fn extent(call: &Call<'_>) -> Result<Extent, Problem> {
    let length = incoming::length(call.headers);
    match range::chunk(call.headers) {
        Chunk::Unsaid => Ok(Extent { start: None, length }),
        Chunk::Range(range) => {
            let stated = range.end - range.start;
            match length.filter(|length| *length != stated) {
                None => Ok(Extent { start: Some(range.start), length: Some(stated) }),
                Some(length) => Err(call.refused(&PushError::SizeDiffers { stated, came: length })),
            }
        }
        Chunk::Malformed => {
            let message = "`Content-Range` of a chunk is its first and its last byte, such as `0-1023`";
            Err(Problem::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message))
        }
    }
}

/// 416, with where the upload goes on.
fn out_of_order(call: &Call<'_>, order: &Order, id: &UploadId, why: &PushError, written: u64) -> Answer {
    let problem = call.refused(why);
    let problem = problem.with(header::LOCATION, location(call, order, id)?).with(header::RANGE, so_far(written)?);
    Err(problem.with(UPLOAD_UUID, uuid(id)?))
}

/// An upload that goes on.
fn at(call: &Call<'_>, order: &Order, id: &UploadId, status: StatusCode, written: u64) -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location(call, order, id)?);
    headers.insert(header::RANGE, so_far(written)?);
    headers.insert(UPLOAD_UUID, uuid(id)?);
    if status != StatusCode::NO_CONTENT {
        headers.insert(header::CONTENT_LENGTH, 0.into());
    }
    Ok(response)
}

/// 201: the blob is kept here.
fn created(call: &Call<'_>, order: &Order, digest: &Digest) -> Answer {
    let location = value(format!("/v2/{}/blobs/{digest}{}", order.target.asked, namespace(call)))?;
    Ok(super::created(location, Tagged::new(digest)))
}

fn location(call: &Call<'_>, order: &Order, id: &UploadId) -> Result<HeaderValue, Problem> {
    value(format!("/v2/{}/blobs/uploads/{id}{}", order.target.asked, namespace(call)))
}

/// containerd does not say again on an upload's way which upstream it means.
fn namespace(call: &Call<'_>) -> String {
    let host = call.namespace.map(|host| format!("?ns={}", utf8_percent_encode(host, NON_ALPHANUMERIC)));
    host.unwrap_or_default()
}

/// First and last byte; an empty upload has none, and says `0-0` like docker-registry.
fn so_far(written: u64) -> Result<HeaderValue, Problem> {
    value(format!("0-{}", written.saturating_sub(1)))
}

fn uuid(id: &UploadId) -> Result<HeaderValue, Problem> {
    value(id.to_string())
}

fn value(text: String) -> Result<HeaderValue, Problem> {
    HeaderValue::try_from(text).map_err(|_| Problem::internal("naming what was pushed"))
}
