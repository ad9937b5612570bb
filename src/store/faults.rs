//! Disk faults on order, so that tests can fail the n-th step of a write; without an order it does nothing.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A step towards durability that a disk can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asking for free room.
    Room,
    Write,
    SyncFile,
    Rename,
    SyncFolder,
    Commit,
}

/// Orders of faults, shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    orders: Arc<Mutex<Vec<Order>>>,
    /// 0: none was ordered.
    catalog_pages_max: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Order {
    step: Step,
    passes: u32,
    errno: i32,
}

impl Faults {
    /// The `step` after the next `passes` of its kind fails, once, with the system's error number `errno`.
    pub fn fail(&self, step: Step, passes: u32, errno: i32) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(Order { step, passes, errno });
    }

    /// The catalog takes no more pages than it has, as on a full disk; `false`: there is room again.
    pub fn fill_catalog(&self, full: bool) {
        self.catalog_pages_max.store(if full { 1 } else { u32::MAX - 1 }, Ordering::Relaxed);
    }

    pub(super) fn catalog_pages_max(&self) -> Option<u32> {
        Some(self.catalog_pages_max.load(Ordering::Relaxed)).filter(|pages| *pages > 0)
    }

    pub(super) fn pass(&self, step: Step) -> io::Result<()> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = orders.iter().position(|order| order.step == step) else { return Ok(()) };
        if orders[at].passes > 0 {
            orders[at].passes -= 1;
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(orders.remove(at).errno))
    }
}
