//! The buffers that kept files are read into: few, large, and used again while they are still in the processor's cache.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes of a large buffer: what one read takes from a file, and one write gives to a socket. Larger ones are a little
/// faster for one client, and slower for many: together they leave the processor's caches.
pub(super) const PIECE_LARGE: usize = 64 << 10;
/// Bytes of a buffer once [`LENT_LARGE`] are lent, and once [`LENT_MIDDLE`] are: hyper gathers up to 16 pieces for each
/// reader, and a thousand slow readers must not hold a gigabyte.
const PIECE_MIDDLE: usize = 16 << 10;
const PIECE_SMALL: usize = 4 << 10;
/// Bytes lent at one time up to which buffers are large, and up to which they are middling.
const LENT_LARGE: usize = 16 << 20;
const LENT_MIDDLE: usize = 32 << 20;
/// Large buffers that are held ready.
const FREE_MAX: usize = 64;

/// Buffers, the smaller the more of them are lent.
pub struct Pool {
    free: Mutex<Vec<Box<[u8]>>>,
    /// In bytes.
    lent: AtomicUsize,
}

/// A buffer on loan; it goes back when the last [`Bytes`] made of it is dropped.
pub(super) struct Piece {
    bytes: Box<[u8]>,
    filled: usize,
    home: Arc<Pool>,
}

impl Pool {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(Vec::new()), lent: AtomicUsize::new(0) })
    }

    /// A buffer for at most `wanted` bytes: perhaps a smaller one, never an empty one.
    pub(super) fn lend(self: &Arc<Self>, wanted: usize) -> Piece {
        let size = match self.lent.load(Ordering::Relaxed) {
            ..LENT_LARGE => PIECE_LARGE,
            LENT_LARGE..LENT_MIDDLE => PIECE_MIDDLE,
            _ => PIECE_SMALL,
        };
        let size = if wanted <= PIECE_MIDDLE { wanted.clamp(1, size) } else { size };
        self.lent.fetch_add(size, Ordering::Relaxed);
        let free = (size == PIECE_LARGE).then(|| self.free.lock().unwrap_or_else(PoisonError::into_inner).pop());
        let bytes = free.flatten().unwrap_or_else(|| vec![0; size].into_boxed_slice());
        Piece { bytes, filled: 0, home: Arc::clone(self) }
    }

    fn take_back(&self, bytes: Box<[u8]>) {
        self.lent.fetch_sub(bytes.len(), Ordering::Relaxed);
        if bytes.len() == PIECE_LARGE {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < FREE_MAX {
                free.push(bytes);
            }
        }
    }
}

impl Piece {
    /// Room for `wanted` bytes, or as many as there is.
    pub(super) fn room(&mut self, wanted: usize) -> &mut [u8] {
        let count = wanted.min(self.bytes.len());
        &mut self.bytes[..count]
    }

    /// The first `filled` bytes, for the socket.
    pub(super) fn freeze(mut self, filled: usize) -> Bytes {
        self.filled = filled;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.home.take_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_bytes_are_dropped() {
        let pool = Pool::new();
        let bytes = pool.lend(PIECE_LARGE).freeze(10);
        let slice = bytes.slice(2..4);
        drop(bytes);
        assert_eq!(pool.free.lock().unwrap().len(), 0);
        drop(slice);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
        assert_eq!(pool.lent.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_more_is_lent_the_smaller_are_the_buffers() {
        // Invariant 17
        let pool = Pool::new();
        let size = |held: &mut Vec<Piece>| {
            held.push(pool.lend(1 << 20));
            held.last_mut().map(|piece| piece.room(1 << 20).len())
        };
        let mut held = Vec::new();
        for _ in 0..LENT_LARGE / PIECE_LARGE {
            assert_eq!(size(&mut held), Some(PIECE_LARGE));
        }
        for _ in 0..(LENT_MIDDLE - LENT_LARGE) / PIECE_MIDDLE {
            assert_eq!(size(&mut held), Some(PIECE_MIDDLE));
        }
        assert_eq!(size(&mut held), Some(PIECE_SMALL));
        assert_eq!(pool.lend(PIECE_MIDDLE).room(PIECE_MIDDLE).len(), PIECE_SMALL);
        drop(held);
        assert_eq!(pool.free.lock().unwrap().len(), FREE_MAX);
        assert_eq!(pool.lent.load(Ordering::Relaxed), 0);
        assert_eq!(pool.lend(1 << 20).room(1 << 20).len(), PIECE_LARGE);
    }
}
