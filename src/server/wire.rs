//! The socket under a connection, which ends it when the client lets nothing move. TLS, where it is spoken, lies above:
//! what counts is what the socket itself takes and gives.
//!
//! hyper's own header timeout also runs while a kept-alive connection idles, and it has none for a response that is not
//! taken; so all three clocks are kept here, in the one place that sees every byte. One timer per connection, moved
//! only when it must ring earlier.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::pulse::Pulse;

/// The three clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) header: Duration,
    pub(super) idle: Duration,
    pub(super) stall: Duration,
}

/// A client's socket.
pub(super) struct Wire {
    socket: TcpStream,
    /// What was read to tell the protocol; read again before the socket.
    sniffed: Bytes,
    pulse: std::sync::Arc<Pulse>,
    patience: Patience,
    is_h2: bool,
    /// Since when a request head is incomplete, and how many requests had begun by then.
    head: Option<(Instant, u32)>,
    /// Since when the client takes nothing of what we write.
    write_blocked: Option<Instant>,
    timer: Option<(Pin<Box<Sleep>>, Instant)>,
    drain: Drain,
}

/// After our last byte: whether the client's unread bytes are taken first. Closing on them would reset the connection,
/// and the reset would overtake our answer.
enum Drain {
    NotBegun,
    Running { until: Instant, left: usize },
}

/// Least size of a write that shows a client taking something: HTTP/2's own pings and acknowledgements are smaller.
const PROGRESS_MIN: usize = 64;
/// Most bytes of a refused body that are taken after the answer.
const DRAIN_MAX: usize = 1 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

impl Wire {
    pub(super) fn new(
        socket: TcpStream,
        sniffed: Bytes,
        is_h2: bool,
        pulse: std::sync::Arc<Pulse>,
        patience: Patience,
    ) -> Self {
        let head = (!is_h2).then(|| (pulse.born(), 0));
        let (write_blocked, timer, drain) = (None, None, Drain::NotBegun);
        Self { socket, sniffed, pulse, patience, is_h2, head, write_blocked, timer, drain }
    }

    /// The TLS handshake is done: the first request may begin.
    pub(super) fn encrypted(&mut self, is_h2: bool) {
        self.is_h2 = is_h2;
        self.head = (!is_h2).then(|| (Instant::now(), 0));
        self.pulse.touch();
    }

    /// When to give up while there is nothing to read; `None`: the next move is ours.
    fn read_deadline(&self) -> Option<Instant> {
        if !self.pulse.under_way() {
            match self.head {
                Some((since, begun)) if begun == self.pulse.begun() => Some(since + self.patience.header),
                _ => Some(self.pulse.moved_at() + self.patience.idle),
            }
        } else if self.pulse.is_ours() {
            None
        } else {
            Some(self.pulse.moved_at() + self.patience.stall)
        }
    }

    /// Ready when `deadline` has passed; otherwise the task is woken in time to look again.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        // Without a deadline the timer still rings now and then: the turn may have changed with nobody waking us.
        let deadline = deadline.unwrap_or_else(|| Instant::now() + self.patience.idle);
        let (timer, rings_at) =
            self.timer.get_or_insert_with(|| (Box::pin(tokio::time::sleep_until(deadline)), deadline));
        if deadline < *rings_at {
            timer.as_mut().reset(deadline);
            *rings_at = deadline;
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
            *rings_at = deadline;
        }
        Poll::Pending
    }

    fn note_read(&mut self) {
        if !self.pulse.under_way() && !self.is_h2 {
            let begun = self.pulse.begun();
            if self.head.is_none_or(|(_, before)| before != begun) {
                self.head = Some((Instant::now(), begun));
            }
        }
    }

    fn note_write(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(Ok(written)) => {
                self.write_blocked = None;
                if written > PROGRESS_MIN {
                    self.pulse.touch();
                }
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let since = *self.write_blocked.get_or_insert_with(Instant::now);
                ready!(self.poll_deadline(cx, Some(since + self.patience.stall)));
                Poll::Ready(Err(gave_up("the client takes nothing of the response")))
            }
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (until, mut left) = match self.drain {
            Drain::NotBegun => (Instant::now() + DRAIN_TIMEOUT, DRAIN_MAX),
            Drain::Running { until, left } => (until, left),
        };
        let mut scratch = [0; 8192];
        loop {
            let mut into = ReadBuf::new(&mut scratch);
            let polled = Pin::new(&mut self.socket).poll_read(cx, &mut into);
            match polled {
                Poll::Ready(Ok(())) if !into.filled().is_empty() && into.filled().len() <= left => {
                    left -= into.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    self.drain = Drain::Running { until, left };
                    return self.poll_deadline(cx, Some(until));
                }
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.sniffed.has_remaining() {
            let count = this.sniffed.len().min(into.remaining());
            into.put_slice(&this.sniffed.split_to(count));
            this.note_read();
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        match Pin::new(&mut this.socket).poll_read(cx, into) {
            Poll::Ready(Ok(())) => {
                if into.filled().len() > before {
                    this.note_read();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(this.poll_deadline(cx, this.read_deadline()));
                Poll::Ready(Err(gave_up("the client lets nothing move")))
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write(cx, from);
        self.note_write(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write_vectored(cx, from);
        self.note_write(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.drain, Drain::NotBegun) {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
        }
        // A head that hyper refused half read (too long, malformed) has more bytes behind it, too.
        let mid_head = self.head.is_some_and(|(_, begun)| begun == self.pulse.begun());
        if mid_head || self.pulse.left_unread() {
            ready!(self.poll_drain(cx));
        }
        Poll::Ready(Ok(()))
    }
}

fn gave_up(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}
