//! Request bodies: piece by piece for uploads, whole and bounded for manifests; a client that falls silent, or only
//! trickles, is not waited for.
//!
//! The connection's own clocks stand still while a handler runs (see `wire`), so the one for bodies is kept here.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::debug;

use super::reply::Problem;

/// Bytes of all manifests together that are being received.
pub(super) const MANIFESTS_BYTES_MAX: usize = 64 << 20;

/// Bytes that a body must bring for each second that it is waited for, on average over the longest silence that it may
/// fall into: a client that sends one now and then holds an upload and a buffer for as long as it likes.
const PACE_BYTES_MIN: u64 = 1 << 10;

/// A request's body, and how long it may stand still.
pub(super) struct Receiving<'a> {
    body: &'a mut Incoming,
    stall: Duration,
    pace: Pace,
}

/// How a body comes along, while it is waited for: what we take to store it is not the client's slowness.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl<'a> Receiving<'a> {
    pub(super) fn new(body: &'a mut Incoming, stall: Duration) -> Self {
        Self { body, stall, pace: Pace::default() }
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let begun = Instant::now();
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
                if self.pace.is_too_slow(begun.elapsed(), bytes.len() as u64, self.stall) {
                    return Err(broken(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"));
                }
                return Ok(Some(bytes));
            }
        }
    }

    /// All of it, if it is at most `size_max` bytes; `room` is what all such bodies share. As a whole it may take as long
    /// as an upload may stand still, because what has come of it takes up room that others need.
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
        let until = Instant::now() + self.stall;
        let late = |_| broken(StatusCode::REQUEST_TIMEOUT, "the manifest took too long to come");
        while let Some(piece) = tokio::time::timeout_at(until, self.piece()).await.map_err(late)?? {
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

impl Pace {
    /// Counts `more` bytes that were waited for, and judges whenever `span` of waiting is over.
    fn is_too_slow(&mut self, waited: Duration, more: u64, span: Duration) -> bool {
        self.waited += waited;
        self.bytes += more;
        if self.waited < span {
            return false;
        }
        let slow = (self.bytes as f64) < PACE_BYTES_MIN as f64 * self.waited.as_secs_f64();
        *self = Self::default();
        slow
    }
}

/// What the client says of its body's length, in bytes.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn broken(status: StatusCode, message: &'static str) -> Problem {
    Problem::new(status, "BLOB_UPLOAD_INVALID", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_only_trickles_is_given_up_and_a_slow_disk_is_not_its_fault() {
        // Invariant 17
        let (span, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let mut pace = Pace::default();
        assert!((0..59).all(|_| !pace.is_too_slow(second, 1, span)), "it has only begun");
        assert!(pace.is_too_slow(second, 1, span));
        assert!((0..600).all(|_| !pace.is_too_slow(second, PACE_BYTES_MIN, span)), "slow, but it gets there");
        assert!((0..600).all(|_| !pace.is_too_slow(Duration::ZERO, 1, span)), "it was not waited for");
    }
}
