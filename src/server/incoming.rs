//! Request bodies: piece by piece for uploads, whole and bounded for manifests; a client that falls silent is not waited
//! for.
//!
//! The connection's own clocks stand still while a handler runs (see `wire`), so the one for bodies is kept here.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tracing::debug;

use super::reply::Problem;

/// Bytes of all manifests together that are being received.
pub(super) const MANIFESTS_BYTES_MAX: usize = 64 << 20;

/// A request's body, and how long it may stand still.
pub(super) struct Receiving<'a> {
    body: &'a mut Incoming,
    stall: Duration,
}

impl<'a> Receiving<'a> {
    pub(super) fn new(body: &'a mut Incoming, stall: Duration) -> Self {
        Self { body, stall }
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = match tokio::time::timeout(self.stall, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    debug!(error = &error as &dyn std::error::Error, "a request's body broke off");
                    return Err(broken(StatusCode::BAD_REQUEST, "the body ended before its end"));
                }
                Err(_) => return Err(broken(StatusCode::REQUEST_TIMEOUT, "the body stood still for too long")),
            };
            // Trailers mean nothing here.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    /// All of it, if it is at most `size_max` bytes; `room` is what all such bodies share.
    pub(super) async fn whole(
        mut self,
        headers: &HeaderMap,
        size_max: u64,
        room: &Arc<Semaphore>,
    ) -> Result<Bytes, Problem> {
        let too_large = || {
            let message = format!("a manifest has at most {size_max} bytes here");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", message)
        };
        if length(headers).is_some_and(|length| length > size_max) {
            return Err(too_large());
        }
        let (mut whole, mut taken) = (BytesMut::new(), None::<tokio::sync::OwnedSemaphorePermit>);
        while let Some(piece) = self.piece().await? {
            if (whole.len() + piece.len()) as u64 > size_max {
                return Err(too_large());
            }
            // Not waited for: whoever holds some may be waiting for the rest.
            let more = Arc::clone(room).try_acquire_many_owned(piece.len() as u32).map_err(|_| Problem::busy())?;
            match &mut taken {
                Some(taken) => taken.merge(more),
                None => taken = Some(more),
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

/// What the client says of its body's length, in bytes.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn broken(status: StatusCode, message: &'static str) -> Problem {
    Problem::new(status, "BLOB_UPLOAD_INVALID", message)
}
