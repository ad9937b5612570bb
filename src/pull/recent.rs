//! The newest bytes of a fill, in memory: a follower that keeps up gets them before they are on disk, and unread from it.

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes that a fill holds for its followers at most, unless one piece is larger.
const RECENT_BYTES: u64 = 4 << 20;

/// Pieces without a gap, the oldest first.
#[derive(Clone, Default)]
pub(super) struct Recent {
    pieces: VecDeque<Bytes>,
    /// Where the first piece begins.
    start: u64,
    end: u64,
}

impl Recent {
    /// None yet; the next piece begins at `at`.
    pub(super) fn starting_at(at: u64) -> Self {
        Self { pieces: VecDeque::new(), start: at, end: at }
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Adds what follows `end`, and lets go of the oldest.
    pub(super) fn push(&mut self, piece: Bytes) {
        self.end += piece.len() as u64;
        self.pieces.push_back(piece);
        while self.end - self.start > RECENT_BYTES && self.pieces.len() > 1 {
            self.start += self.pieces.pop_front().map_or(0, |oldest| oldest.len() as u64);
        }
    }

    /// What it has from `at` on and before `limit`, up to the end of a piece.
    pub(super) fn piece(&self, at: u64, limit: u64) -> Option<Bytes> {
        if at < self.start || at >= limit.min(self.end) {
            return None;
        }
        let mut start = self.start;
        for piece in &self.pieces {
            let end = start + piece.len() as u64;
            if at < end {
                return Some(piece.slice((at - start) as usize..(limit.min(end) - start) as usize));
            }
            start = end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_by_where_they_are_and_cut_at_the_limit() {
        let mut recent = Recent::starting_at(100);
        recent.push(Bytes::from_static(b"01234"));
        recent.push(Bytes::from_static(b"56789"));
        assert_eq!(recent.piece(99, 110), None, "before it");
        assert_eq!(recent.piece(100, 110).unwrap(), "01234");
        assert_eq!(recent.piece(103, 110).unwrap(), "34");
        assert_eq!(recent.piece(105, 108).unwrap(), "567");
        assert_eq!(recent.piece(108, 108), None, "held back");
        assert_eq!(recent.piece(110, 200), None, "not yet there");
    }

    #[test]
    fn what_is_old_is_let_go() {
        // Invariant 17
        let mut recent = Recent::starting_at(0);
        let piece = Bytes::from(vec![7; 1500 << 10]);
        (0..5).for_each(|_| recent.push(piece.clone()));
        assert!(recent.end() - recent.start() <= RECENT_BYTES);
        assert_eq!(recent.end(), 5 * piece.len() as u64);
        recent.push(Bytes::from(vec![7; 5 << 20]));
        assert_eq!(recent.end() - recent.start(), 5 << 20, "one piece at least");
    }
}
