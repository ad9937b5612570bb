//! A response's body: counted, stalled out, broken off when the gate closes, and on record when it ends.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::audit::{Outcome, Trail};
use super::{Permit, SendError};

/// A response's body. It ends with an error when the gate closes, or after a silence of the stall time-out.
pub struct Body {
    inner: Incoming,
    /// `None` once the body has ended, for whatever reason.
    running: Option<Running>,
    stall: Stall,
}

/// What a request holds while it is under way.
pub(super) struct Running {
    pub(super) permit: Permit,
    pub(super) trail: Trail,
    pub(super) host: String,
    pub(super) _turn: OwnedSemaphorePermit,
}

/// Measures silence. The timer is made at the first wait and moved only when it fires, so that frames cost nothing.
struct Stall {
    longest: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when nothing has come; `None` when something came since the last wait.
    silent_since: Option<Instant>,
}

impl Body {
    pub(super) fn new(inner: Incoming, running: Running, stall_timeout: Duration) -> Self {
        let stall = Stall { longest: stall_timeout, timer: None, silent_since: None };
        let mut body = Self { inner, running: Some(running), stall };
        body.end_if_whole();
        body
    }

    fn end_if_whole(&mut self) {
        if self.inner.is_end_stream()
            && let Some(running) = self.running.take()
        {
            running.trail.end(Outcome::Done);
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = SendError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let this = &mut *self;
        let Some(running) = &mut this.running else { return Poll::Ready(None) };
        if running.permit.is_revoked() {
            return this.fail(|running| running.permit.refusal().into());
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                running.trail.add(frame.data_ref().map_or(0, Bytes::len));
                this.stall.silent_since = None;
                this.end_if_whole();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => this.fail(|running| match running.permit.is_revoked() {
                true => running.permit.refusal().into(),
                false => SendError::Broken { host: running.host.clone(), source: error.into() },
            }),
            Poll::Ready(None) => {
                if let Some(running) = this.running.take() {
                    running.trail.end(Outcome::Done);
                }
                Poll::Ready(None)
            }
            Poll::Pending => match this.stall.poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(waited) => this.fail(|running| SendError::TimedOut { host: running.host.clone(), waited }),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.running.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Body {
    fn fail(&mut self, error: impl FnOnce(&Running) -> SendError) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let Some(running) = self.running.take() else { return Poll::Ready(None) };
        let error = error(&running);
        running.trail.end_with(&error);
        Poll::Ready(Some(Err(error)))
    }
}

impl Stall {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        let longest = self.longest;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(since + longest)));
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= since + longest {
                return Poll::Ready(longest);
            }
            timer.as_mut().reset(since + longest);
        }
        Poll::Pending
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("running", &self.running.is_some()).finish_non_exhaustive()
    }
}
