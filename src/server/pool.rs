//! The buffers that kept files are read into: few, large, and used again while they are still in the processor's cache.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes of a large buffer: what one read takes from a file, and one write gives to a socket. Larger ones are a little
/// faster for one client, and slower for many: together they leave the processor's caches.
pub(super) const PIECE_LARGE: usize = 64 << 10;
/// Bytes of a small buffer, used when all large ones are lent: so a thousand slow readers hold 16 MiB and not 256.
pub(super) const PIECE_SMALL: usize = 16 << 10;
/// Large buffers that may be in use at one time.
const LENT_MAX: usize = 256;
/// Large buffers that are held ready.
const FREE_MAX: usize = 64;

/// A bounded set of large buffers.
pub struct Pool {
    free: Mutex<Vec<Box<[u8]>>>,
    lent: AtomicUsize,
}

/// A buffer on loan; it goes back when the last [`Bytes`] made of it is dropped.
pub(super) struct Piece {
    bytes: Box<[u8]>,
    filled: usize,
    home: Option<Arc<Pool>>,
}

impl Pool {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(Vec::new()), lent: AtomicUsize::new(0) })
    }

    /// A buffer for at most `wanted` bytes: perhaps a smaller one, never an empty one.
    pub(super) fn lend(self: &Arc<Self>, wanted: usize) -> Piece {
        if wanted <= PIECE_SMALL {
            return Piece::own(wanted.max(1));
        }
        if self.lent.fetch_add(1, Ordering::Relaxed) >= LENT_MAX {
            self.lent.fetch_sub(1, Ordering::Relaxed);
            return Piece::own(PIECE_SMALL);
        }
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = free.unwrap_or_else(|| vec![0; PIECE_LARGE].into_boxed_slice());
        Piece { bytes, filled: 0, home: Some(Arc::clone(self)) }
    }

    fn take_back(&self, bytes: Box<[u8]>) {
        self.lent.fetch_sub(1, Ordering::Relaxed);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_MAX {
            free.push(bytes);
        }
    }
}

impl Piece {
    fn own(size: usize) -> Self {
        Self { bytes: vec![0; size].into_boxed_slice(), filled: 0, home: None }
    }

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
        if let Some(home) = self.home.take() {
            home.take_back(std::mem::take(&mut self.bytes));
        }
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
    fn when_all_large_buffers_are_lent_small_ones_serve() {
        // Invariant 17
        let pool = Pool::new();
        let mut held: Vec<Piece> = (0..LENT_MAX).map(|_| pool.lend(1 << 20)).collect();
        assert!(held.iter_mut().all(|piece| piece.room(1 << 20).len() == PIECE_LARGE));
        assert_eq!(pool.lend(1 << 20).room(1 << 20).len(), PIECE_SMALL);
        drop(held);
        assert_eq!(pool.free.lock().unwrap().len(), FREE_MAX);
        assert_eq!(pool.lend(1 << 20).room(1 << 20).len(), PIECE_LARGE);
    }
}
