//! The one place that reads the time of day, so that tests can wind it by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

/// The time of day: the system's, or a hand-wound one. Cheap to clone; clones of a hand-wound clock move together.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System,
    /// Milliseconds since the epoch.
    Wound(Arc<AtomicI64>),
}

impl Clock {
    pub fn system() -> Self {
        Self(Kind::System)
    }

    /// A clock that stands at `start` until [`Clock::advance`].
    pub fn wound(start: Timestamp) -> Self {
        Self(Kind::Wound(Arc::new(AtomicI64::new(start.as_millisecond()))))
    }

    /// Now, to the millisecond: finer would not survive the catalog.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the time of day")]
    pub fn now(&self) -> Timestamp {
        let ms = match &self.0 {
            Kind::System => Timestamp::now().as_millisecond(),
            Kind::Wound(ms) => ms.load(Ordering::Relaxed),
        };
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Moves a hand-wound clock; the system's is left alone.
    pub fn advance(&self, by: SignedDuration) {
        if let Kind::Wound(ms) = &self.0 {
            ms.fetch_add(by.as_millis() as i64, Ordering::Relaxed);
        }
    }
}
