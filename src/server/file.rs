//! Reads of kept files: straight from the page cache, or through the blocking pool when the disk must be waited for.

use std::fs::File;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::task::JoinHandle;

use super::pool::{PIECE_LARGE, Piece, Pool};
use crate::store::PROMPT_BYTES_MAX;

/// Blobs up to this size are read in one go and sent with their head in one write; their check is waited for before it.
pub(super) const WHOLE_MAX: u64 = PROMPT_BYTES_MAX;
/// How far the kernel is asked to read ahead once a read had to wait for the disk.
const READ_AHEAD: u64 = 4 << 20;

/// A position in a file, moved by reading.
pub(super) struct Cursor {
    file: Arc<File>,
    at: u64,
    pool: Arc<Pool>,
    piece_max: usize,
    waiting: Option<JoinHandle<io::Result<(Piece, usize)>>>,
}

impl Cursor {
    pub(super) fn new(file: Arc<File>, at: u64, pool: Arc<Pool>) -> Self {
        Self { file, at, pool, piece_max: PIECE_LARGE, waiting: None }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn set_piece_max(&mut self, size: usize) {
        self.piece_max = size;
    }

    /// The next bytes before `end`, which must lie ahead. A file that ends before is an error, never an end.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>, end: u64) -> Poll<io::Result<Bytes>> {
        let (piece, count) = match &mut self.waiting {
            Some(waiting) => {
                let outcome = ready!(Pin::new(waiting).poll(cx));
                self.waiting = None;
                outcome.map_err(io::Error::other)??
            }
            None => {
                let wanted = (end - self.at).min(self.piece_max as u64) as usize;
                let mut piece = self.pool.lend(wanted);
                match read_cached(&self.file, piece.room(wanted), self.at)? {
                    Some(count) => (piece, count),
                    None => {
                        self.waiting = Some(read_slowly(Arc::clone(&self.file), piece, wanted, self.at));
                        return self.poll_piece(cx, end);
                    }
                }
            }
        };
        if count == 0 {
            return Poll::Ready(Err(truncated(self.at, end)));
        }
        self.at += count as u64;
        Poll::Ready(Ok(piece.freeze(count)))
    }
}

/// All of a small file's range, in one read.
pub(super) async fn read_whole(file: Arc<File>, at: u64, size: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; size];
    match read_cached(&file, &mut bytes, at)? {
        Some(count) if count == size => Ok(bytes.into()),
        _ => {
            let read = move || file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes));
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
        }
    }
}

/// Reads what the page cache has. `None`: the disk would have to be waited for, or the file system cannot say.
fn read_cached(file: &File, into: &mut [u8], at: u64) -> io::Result<Option<usize>> {
    loop {
        let outcome = rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], at, ReadWriteFlags::NOWAIT);
        return match outcome {
            Ok(count) => Ok(Some(count)),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

fn read_slowly(file: Arc<File>, mut piece: Piece, wanted: usize, at: u64) -> JoinHandle<io::Result<(Piece, usize)>> {
    tokio::task::spawn_blocking(move || {
        let count = loop {
            match file.read_at(piece.room(wanted), at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => break outcome?,
            }
        };
        let ahead = std::num::NonZeroU64::new(READ_AHEAD);
        // Advice only: where it is not taken, the next read waits here again.
        let _ = rustix::fs::fadvise(&file, at + count as u64, ahead, rustix::fs::Advice::WillNeed);
        Ok((piece, count))
    })
}

fn truncated(at: u64, end: u64) -> io::Error {
    let text = format!("the file ends at byte {at}, before byte {end}");
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    #[tokio::test]
    async fn pieces_add_up_to_the_range() {
        let bytes: Vec<u8> = (0..700_001u32).map(|i| (i % 251) as u8).collect();
        let mut cursor = Cursor::new(file_of(&bytes), 5, Pool::new());
        let mut got = Vec::new();
        while cursor.at() < 700_000 {
            got.extend(std::future::poll_fn(|cx| cursor.poll_piece(cx, 700_000)).await.unwrap());
        }
        assert!(got == bytes[5..700_000]);
    }

    #[tokio::test]
    async fn a_slow_read_gives_the_same_bytes() {
        let (piece, count) = read_slowly(file_of(b"0123456789"), Pool::new().lend(4), 4, 3).await.unwrap().unwrap();
        assert_eq!(piece.freeze(count), "3456");
    }

    #[tokio::test]
    async fn a_file_that_ends_early_is_an_error() {
        // Invariant 3
        let mut cursor = Cursor::new(file_of(b"short"), 0, Pool::new());
        let first = std::future::poll_fn(|cx| cursor.poll_piece(cx, 10)).await.unwrap();
        assert_eq!(first, "short");
        let second = std::future::poll_fn(|cx| cursor.poll_piece(cx, 10)).await;
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_whole(file_of(b"short"), 0, 10).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
