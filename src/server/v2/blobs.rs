//! `/v2/<name>/blobs/<digest>`: read whole or in part, kept or while the fill runs; deleted.

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, Version, header};
use tracing::error;

use super::{Tagged, not_modified};
use crate::oci::Digest;
use crate::pull::{Ask, FoundBlob, Miss, Tail};
use crate::push::Order;
use crate::server::body::Body;
use crate::server::face::{Answer, Call};
use crate::server::file::{self, WHOLE_MAX};
use crate::server::range::{self, Part};
use crate::server::reply::{Problem, Wanted};
use crate::store::{KeptBlob, Unsound};

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");
/// How often a small blob is looked for: once more when the kept copy was found damaged, or changed while it was read.
const FINDS_MAX: usize = 2;

pub(in crate::server) async fn serve(call: &Call<'_>, ask: &Ask, digest: &Digest) -> Answer {
    let missed = |miss: Miss| call.missed(&miss, Wanted::Blob);
    let found = find(call, ask, digest).await?;
    let tagged = Tagged::new(digest);
    if range::has_already(call.headers, tagged.etag()) {
        return Ok(not_modified(tagged));
    }
    match found {
        FoundBlob::Kept(kept) => {
            let part = range::part(call.headers, tagged.etag(), kept.size);
            let (range, size) = (within(&part, kept.size)?, kept.size);
            let body = kept_body(call, kept, range.clone()).await?;
            Ok(reply_with(tagged, body, part != Part::Whole, range, size))
        }
        // A range of it would have to be read from the start all the same: it is sent whole.
        FoundBlob::Passing(passing) => match passing.size {
            Some(size) => Ok(reply_with(tagged, Body::passing(passing), false, 0..size, size)),
            None if call.is_head || call.version < Version::HTTP_11 => Err(no_length()),
            None => Ok(unsized_reply(tagged, Body::passing(passing))),
        },
        FoundBlob::Filling(tail) => {
            let Some(size) = size(call, &tail).await.map_err(missed)? else {
                let body = Body::filling(tail, 0, None, Arc::clone(&call.face.pool));
                return Ok(unsized_reply(tagged, body));
            };
            let part = range::part(call.headers, tagged.etag(), size);
            let range = within(&part, size)?;
            let body = Body::filling(tail, range.start, Some(range.end), Arc::clone(&call.face.pool));
            Ok(reply_with(tagged, body, part != Part::Whole, range, size))
        }
    }
}

/// What there is to serve. A small blob is told to be right before anything is sent, so that a damaged one is a miss like
/// any other; of a large one the end is held back.
async fn find(call: &Call<'_>, ask: &Ask, digest: &Digest) -> Result<FoundBlob, Problem> {
    for _ in 0..FINDS_MAX {
        // Boxed: what a fill needs would be moved with every request.
        let found = Box::pin(call.face.pull.blob(ask, digest)).await;
        let found = found.map_err(|miss| call.missed(&miss, Wanted::Blob))?;
        let check = match &found {
            FoundBlob::Kept(kept) if kept.size <= WHOLE_MAX && !call.is_head => call.face.store.check(kept),
            _ => None,
        };
        let Some(check) = check else { return Ok(found) };
        match Box::pin(check.outcome()).await {
            Ok(()) => return Ok(found),
            // Nothing was sent yet: once more.
            Err(Unsound::Wrong | Unsound::Unread) => {}
        }
    }
    Err(Problem::internal("reading this blob"))
}

/// `DELETE`: it cannot be read in this repository any more.
pub(in crate::server) async fn delete(call: &Call<'_>, order: &Order, digest: &Digest) -> Answer {
    call.face.push.delete_blob(order, digest).await.map_err(|why| call.refused(&why))?;
    Ok(super::deleted())
}

fn within(part: &Part, size: u64) -> Result<Range<u64>, Problem> {
    match part {
        Part::Whole => Ok(0..size),
        Part::Range(range) => Ok(range.clone()),
        Part::Unsatisfiable => Err(Problem::range(size)),
    }
}

fn reply_with(tagged: Tagged, body: Body, is_part: bool, range: Range<u64>, size: u64) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.reserve(10);
    headers.insert(header::CONTENT_TYPE, OCTETS);
    headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    headers.insert(header::ACCEPT_RANGES, BYTES);
    tagged.insert(headers);
    if is_part {
        let stated = HeaderValue::try_from(format!("bytes {}-{}/{size}", range.start, range.end - 1));
        headers.extend(stated.ok().map(|stated| (header::CONTENT_RANGE, stated)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

/// Small blobs are read at once, so that they leave in one write with their head; larger ones as they are sent.
async fn kept_body(call: &Call<'_>, kept: KeptBlob, range: Range<u64>) -> Result<Body, Problem> {
    let size = range.end - range.start;
    if call.is_head || size == 0 {
        return Ok(Body::empty());
    }
    let check = match size == kept.size {
        true if size > WHOLE_MAX => call.face.store.check(&kept),
        true => None,
        false => {
            call.face.store.check_later(&kept);
            None
        }
    };
    if size > WHOLE_MAX {
        let body = Body::kept(kept.file, range, &call.face.pool);
        return Ok(match check {
            Some(check) => body.held_back(check),
            None => body,
        });
    }
    file::read_whole(kept.file, range.start, size as usize).await.map(Body::full).map_err(|error| {
        let (id, digest) = (call.id, kept.digest);
        error!(%id, %digest, %error, "cannot read the kept blob {digest}: {error}");
        Problem::internal("reading this blob")
    })
}

/// The whole size, waited for where the reply cannot do without: a HEAD and a range name it, and to an HTTP/1.0 client
/// a body without a length that breaks off looks whole (invariant 3).
async fn size(call: &Call<'_>, tail: &Tail) -> Result<Option<u64>, Miss> {
    if let Some(size) = tail.size().await? {
        return Ok(Some(size));
    }
    let needed = call.is_head || call.version < Version::HTTP_11 || call.headers.contains_key(header::RANGE);
    if !needed {
        return Ok(None);
    }
    tail.final_size().await.map(Some)
}

/// For a blob that can be neither kept nor measured, asked for by who must know its length.
fn no_length() -> Problem {
    let message = "this server's disk is full, and upstream does not say how long this blob is; ask with HTTP/1.1 GET";
    Problem::new(StatusCode::BAD_GATEWAY, "UNAVAILABLE", message)
}

fn unsized_reply(tagged: Tagged, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, OCTETS);
    headers.insert(header::ACCEPT_RANGES, BYTES);
    tagged.insert(headers);
    response
}
