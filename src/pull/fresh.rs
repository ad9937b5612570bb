//! (pure) Whether a kept tag is served as it is, or upstream is asked first.

use std::time::Duration;

use jiff::Timestamp;

/// What is known when a tag is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// When upstream last confirmed the kept tag; `None`: nothing is kept.
    pub checked_at: Option<Timestamp>,
    /// Pushed, imported or pinned: upstream has no say in it until it is released.
    pub ours: bool,
    /// Whether the gate is open for its upstream.
    pub open: bool,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// What is kept is as good as upstream's.
    Serve,
    /// Ask; if that fails, what is kept is served, marked stale.
    AskElseServe,
    /// Nothing is kept: ask.
    Ask,
    /// The gate is closed: what is kept is served, marked stale.
    ServeStale,
    /// The gate is closed and nothing is kept.
    Refuse,
}

/// Decides. A check in the future (the clock jumped) counts as old.
pub fn decide(known: Known, now: Timestamp, fresh_for: Duration) -> Decision {
    match (known.checked_at, known.open) {
        (Some(_), _) if known.ours => Decision::Serve,
        (Some(checked_at), _) if is_fresh(checked_at, now, fresh_for) => Decision::Serve,
        (Some(_), true) => Decision::AskElseServe,
        (Some(_), false) => Decision::ServeStale,
        (None, true) => Decision::Ask,
        (None, false) => Decision::Refuse,
    }
}

fn is_fresh(checked_at: Timestamp, now: Timestamp, fresh_for: Duration) -> bool {
    Duration::try_from(now.duration_since(checked_at)).is_ok_and(|age| age < fresh_for)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_tag_is_asked_after_only_when_it_is_old_and_the_gate_is_open() {
        // Invariant 7
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |ago_s: i64| Timestamp::from_second(1_000_000 - ago_s).ok();
        let cases = [
            (at(0), false, true, Decision::Serve),
            (at(899), false, true, Decision::Serve),
            (at(900), false, true, Decision::AskElseServe),
            (at(-1), false, true, Decision::AskElseServe),
            (at(899), false, false, Decision::Serve),
            (at(900), false, false, Decision::ServeStale),
            (at(900_000), false, false, Decision::ServeStale),
            (at(900_000), true, true, Decision::Serve),
            (at(900_000), true, false, Decision::Serve),
            (None, false, true, Decision::Ask),
            (None, false, false, Decision::Refuse),
        ];
        for (checked_at, ours, open, expected) in cases {
            let decision = decide(Known { checked_at, ours, open }, now, Duration::from_secs(900));
            assert_eq!(decision, expected, "{checked_at:?} ours={ours} open={open}");
        }
    }

    #[test]
    fn nothing_is_fresh_when_every_pull_shall_ask() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let known = Known { checked_at: Some(now), ours: false, open: true };
        assert_eq!(decide(known, now, Duration::ZERO), Decision::AskElseServe);
    }
}
