//! What goes on on one connection: requests under way, whose turn it is, and when something last moved.
//!
//! Written by the service and its bodies, read by the wire below them, which ends connections on which nothing moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// One connection's state. All counts are of this connection, so nothing here is contended.
pub(super) struct Pulse {
    born: Instant,
    /// Requests so far.
    begun: AtomicU32,
    /// Requests whose response is not yet handed over whole.
    under_way: AtomicU32,
    /// Those of them that wait for us: a handler runs, or a body waits for a disk or an upstream.
    ours: AtomicU32,
    /// When something last moved, in milliseconds since `born`.
    moved_ms: AtomicU64,
    /// A request's body was left unread: the client may still be sending when we close.
    unread: AtomicBool,
}

/// One request, from its head to the last byte of its response.
pub(super) struct Exchange {
    pulse: Arc<Pulse>,
    ours: bool,
}

impl Pulse {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            begun: AtomicU32::new(0),
            under_way: AtomicU32::new(0),
            ours: AtomicU32::new(0),
            moved_ms: AtomicU64::new(0),
            unread: AtomicBool::new(false),
        })
    }

    /// A request's head has come.
    pub(super) fn begin(self: &Arc<Self>) -> Exchange {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.ours.fetch_add(1, Ordering::Relaxed);
        self.touch();
        Exchange { pulse: Arc::clone(self), ours: true }
    }

    pub(super) fn touch(&self) {
        self.moved_ms.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn born(&self) -> Instant {
        self.born
    }

    pub(super) fn moved_at(&self) -> Instant {
        self.born + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed))
    }

    pub(super) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    pub(super) fn under_way(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) > 0
    }

    /// Whether the client waits for us, and not we for it.
    pub(super) fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Relaxed) > 0
    }

    pub(super) fn leave_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    pub(super) fn left_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }
}

impl Exchange {
    /// A piece was handed over: the next move is the client's.
    pub(super) fn handed_over(&mut self) {
        self.set_ours(false);
        self.pulse.touch();
    }

    /// There is nothing to hand over yet: the next move is ours.
    pub(super) fn waits_for_us(&mut self) {
        self.set_ours(true);
    }

    fn set_ours(&mut self, ours: bool) {
        if self.ours != ours {
            self.ours = ours;
            if ours {
                self.pulse.ours.fetch_add(1, Ordering::Relaxed);
            } else {
                self.pulse.ours.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.handed_over();
        self.pulse.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_ours_until_its_first_piece_and_under_way_until_its_last() {
        let pulse = Pulse::new();
        assert!(!pulse.under_way() && !pulse.is_ours());
        let mut first = pulse.begin();
        let second = pulse.begin();
        assert!(pulse.under_way() && pulse.is_ours());
        first.handed_over();
        first.handed_over();
        assert!(pulse.is_ours(), "the second still waits for us");
        drop(second);
        assert!(!pulse.is_ours() && pulse.under_way());
        first.waits_for_us();
        assert!(pulse.is_ours());
        drop(first);
        assert!(!pulse.is_ours() && !pulse.under_way());
        assert_eq!(pulse.begun(), 2);
    }
}
