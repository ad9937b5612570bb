//! Response bodies: bytes at hand, a range of a kept file, or a range of a file that is still being filled.

use std::fs::File;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::file::Cursor;
use super::pool::Pool;
use super::pulse::Exchange;
use crate::pull::{HELD_BACK, Miss, Passing, Readable, Tail};
use crate::store::{Check, Unsound};

/// What a response carries.
pub struct Body {
    kind: Kind,
    /// The request that this answers, so that a client that takes nothing is told from one that waits for us.
    exchange: Option<Exchange>,
}

enum Kind {
    Empty,
    Full(Bytes),
    Kept {
        cursor: Cursor,
        end: u64,
        /// Until the file is known to be right, the end is held back.
        held: Option<Held>,
        /// Of a whole read: how the file looked when it began.
        begun: Option<Written>,
    },
    Filling(Box<Following>),
    /// What upstream sends, unkept; `left` bytes of it are to come, if it says how many.
    Passing {
        passing: Passing,
        left: Option<u64>,
    },
}

/// A check of a kept file's bytes, and where reading stops until it came out well.
struct Held {
    until: u64,
    outcome: Pin<Box<dyn Future<Output = Result<(), Unsound>> + Send>>,
}

/// When a file was last written to, and how long it was.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Written([i64; 3]);

type Asking = Pin<Box<dyn Future<Output = Result<Readable, Miss>> + Send>>;

/// A range of a fill in progress.
struct Following {
    tail: Tail,
    at: u64,
    /// Where the response ends; `None`: where the fill does.
    end: Option<u64>,
    pool: Arc<Pool>,
    piece_max: Option<usize>,
    /// What can be read without asking again: up to where, and whether the fill ends there.
    readable: Option<(Cursor, u64, bool)>,
    /// Bytes at hand, not handed over yet.
    at_hand: Bytes,
    waiting: Option<Asking>,
    done: bool,
}

/// Why a body broke off. The connection breaks with it, so that no client takes a part for the whole (invariant 3).
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("a kept file cannot be read")]
    Read(#[from] std::io::Error),
    #[error("a kept file is not what it should be")]
    Unsound(#[from] Unsound),
    #[error("the fill broke off")]
    Fill(#[source] Miss),
    #[error("the fill ended at byte {at}, before byte {end}")]
    Short { at: u64, end: u64 },
}

impl Body {
    pub fn empty() -> Self {
        Self { kind: Kind::Empty, exchange: None }
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { kind: if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) }, exchange: None }
    }

    /// The bytes `range` of a kept file.
    pub fn kept(file: Arc<File>, range: Range<u64>, pool: &Arc<Pool>) -> Self {
        if range.is_empty() {
            return Self::empty();
        }
        let written = Written::of(&file).ok();
        let begun = written.filter(|written| range.start == 0 && i64::try_from(range.end) == Ok(written.0[2]));
        let cursor = Cursor::new(file, range.start, Arc::clone(pool));
        Self { kind: Kind::Kept { cursor, end: range.end, held: None, begun }, exchange: None }
    }

    /// Holds the last bytes of a kept file back until `check` came out well; if it does not, the body breaks off.
    pub(super) fn held_back(mut self, check: Check) -> Self {
        if let Kind::Kept { end, held, .. } = &mut self.kind {
            *held = Some(Held { until: end.saturating_sub(HELD_BACK), outcome: Box::pin(check.outcome()) });
        }
        self
    }

    /// The bytes from `start` to `end` of a fill, or to wherever it ends.
    pub(super) fn filling(tail: Tail, start: u64, end: Option<u64>, pool: Arc<Pool>) -> Self {
        if end.is_some_and(|end| end <= start) {
            return Self::empty();
        }
        let (readable, at_hand, waiting, piece_max, done) = (None, Bytes::new(), None, None, false);
        let following = Following { tail, at: start, end, pool, piece_max, readable, at_hand, waiting, done };
        Self { kind: Kind::Filling(Box::new(following)), exchange: None }
    }

    /// What passes through unkept.
    pub(super) fn passing(passing: Passing) -> Self {
        let left = passing.size;
        Self { kind: Kind::Passing { passing, left }, exchange: None }
    }

    /// Ties the body to its request; `piece_max` bounds each frame.
    pub(super) fn attach(&mut self, exchange: Exchange, piece_max: usize) {
        self.exchange = Some(exchange);
        match &mut self.kind {
            Kind::Empty | Kind::Full(_) | Kind::Passing { .. } => {}
            Kind::Kept { cursor, .. } => cursor.set_piece_max(piece_max),
            Kind::Filling(following) => following.piece_max = Some(piece_max),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Poll::Ready(Some(Ok(bytes)))
            }
            Kind::Kept { cursor, end, .. } if cursor.at() == *end => Poll::Ready(None),
            Kind::Kept { cursor, end, held, begun } => poll_kept(cursor, *end, held, *begun, cx),
            Kind::Filling(following) => following.poll_piece(cx),
            Kind::Passing { passing, left } => passing.poll_next(cx).map(|piece| {
                let piece = piece.map(|piece| piece.map_err(BodyError::Fill));
                if let (Some(left), Some(Ok(piece))) = (left, &piece) {
                    *left = left.saturating_sub(piece.len() as u64);
                }
                piece
            }),
        };
        if let Some(exchange) = &mut self.exchange {
            match &polled {
                Poll::Ready(_) => exchange.handed_over(),
                Poll::Pending => exchange.waits_for_us(),
            }
        }
        polled.map(|piece| piece.map(|outcome| outcome.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Kept { cursor, end, .. } => cursor.at() == *end,
            Kind::Filling(following) => following.end.is_some_and(|end| following.at == end),
            Kind::Passing { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Kept { cursor, end, .. } => SizeHint::with_exact(end - cursor.at()),
            Kind::Filling(following) => match following.end {
                Some(end) => SizeHint::with_exact(end - following.at),
                None => SizeHint::default(),
            },
            Kind::Passing { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

fn poll_kept(
    cursor: &mut Cursor,
    end: u64,
    held: &mut Option<Held>,
    begun: Option<Written>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, BodyError>>> {
    if let Some(check) = held {
        if cursor.at() < check.until {
            return cursor.poll_piece(cx, check.until).map(|piece| Some(piece.map_err(BodyError::Read)));
        }
        if let Err(why) = ready!(check.outcome.as_mut().poll(cx)) {
            // Asked once more, it must not come to an end.
            check.outcome = Box::pin(std::future::ready(Err(why)));
            return Poll::Ready(Some(Err(why.into())));
        }
        *held = None;
    }
    let Some(begun) = begun else {
        return cursor.poll_piece(cx, end).map(|piece| Some(piece.map_err(BodyError::Read)));
    };
    let until = end.saturating_sub(HELD_BACK);
    if cursor.at() < until {
        return cursor.poll_piece(cx, until).map(|piece| Some(piece.map_err(BodyError::Read)));
    }
    // Bytes that were written to the file meanwhile may have gone out already: the last ones do not follow them.
    let piece = ready!(cursor.poll_piece(cx, end)).and_then(|piece| match Written::of(cursor.file())? {
        now if now == begun => Ok(piece),
        _ => Err(io::Error::other("it was written to while it was read")),
    });
    Poll::Ready(Some(piece.map_err(BodyError::Read)))
}

impl Written {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self([found.mtime(), found.mtime_nsec(), found.size() as i64]))
    }
}

impl Following {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            if self.done || self.end == Some(self.at) {
                return Poll::Ready(None);
            }
            if !self.at_hand.is_empty() {
                return Poll::Ready(Some(Ok(self.take_at_hand())));
            }
            if let Some((cursor, until, finished)) = &mut self.readable {
                let until = self.end.map_or(*until, |end| end.min(*until));
                if cursor.at() < until {
                    let piece = ready!(cursor.poll_piece(cx, until));
                    self.at = cursor.at();
                    return Poll::Ready(Some(piece.map_err(BodyError::Read)));
                }
                if *finished {
                    self.done = true;
                    return Poll::Ready(match self.end {
                        Some(end) => Some(Err(BodyError::Short { at: self.at, end })),
                        None => None,
                    });
                }
                self.readable = None;
            }
            let readable = match ready!(self.poll_readable(cx)) {
                Ok(readable) => readable,
                Err(miss) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(BodyError::Fill(miss))));
                }
            };
            match readable {
                Readable::Bytes(bytes) => self.at_hand = bytes,
                Readable::File { file, end, finished } => {
                    let mut cursor = Cursor::new(file, self.at, Arc::clone(&self.pool));
                    if let Some(size) = self.piece_max {
                        cursor.set_piece_max(size);
                    }
                    self.readable = Some((cursor, end, finished));
                }
            }
        }
    }

    /// Of what is at hand, as much as belongs to the range and into one frame.
    fn take_at_hand(&mut self) -> Bytes {
        let left = self.end.map_or(u64::MAX, |end| end - self.at);
        let most = left.min(self.piece_max.map_or(u64::MAX, |max| max as u64));
        let count = most.min(self.at_hand.len() as u64) as usize;
        let piece = self.at_hand.split_to(count);
        self.at += count as u64;
        piece
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<Readable, Miss>> {
        let (tail, at) = (&self.tail, self.at);
        let waiting = self.waiting.get_or_insert_with(|| {
            let tail = tail.clone();
            Box::pin(async move { tail.readable(at).await })
        });
        let outcome = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use http_body_util::BodyExt;

    use super::*;

    fn file_of(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    #[tokio::test]
    async fn a_kept_range_says_its_size_and_ends_with_its_last_byte() {
        use http_body::Body as _;
        let mut body = Body::kept(file_of(b"0123456789"), 2..7, &Pool::new());
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "23456");
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_kept_file_that_was_truncated_ends_in_an_error() {
        // Invariant 3
        let body = Body::kept(file_of(b"0123456789"), 0..20, &Pool::new());
        assert!(matches!(body.collect().await, Err(BodyError::Read(_))));
    }

    #[tokio::test]
    async fn what_is_written_to_a_file_while_it_is_read_breaks_the_read_off() {
        // Invariant 3
        use std::os::unix::fs::FileExt as _;
        let bytes = vec![7; 3 * HELD_BACK as usize];
        let file = file_of(&bytes);
        let other = file.try_clone().unwrap();
        other.set_modified(std::time::UNIX_EPOCH).unwrap();
        let mut body = Body::kept(file, 0..bytes.len() as u64, &Pool::new());
        body.frame().await.unwrap().unwrap();
        other.write_all_at(b"x", bytes.len() as u64 - 1).unwrap();
        assert!(matches!(body.collect().await, Err(BodyError::Read(_))));
    }

    #[tokio::test]
    async fn an_empty_range_is_an_empty_body() {
        use http_body::Body as _;
        assert!(Body::kept(file_of(b""), 0..0, &Pool::new()).is_end_stream());
        assert!(Body::full("").is_end_stream());
    }
}
