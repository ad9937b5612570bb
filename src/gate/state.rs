//! (pure) What was ordered, and what follows from it now.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{GateStatus, Order, Refusal, UpstreamGate};
use crate::schedule::{self, Window};

/// A clock may be set back by this much before the gate no longer believes it.
pub const CLOCK_STEP_MAX: SignedDuration = SignedDuration::from_secs(60);

/// The state as it is kept in `gate.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    pub(super) version: u32,
    /// The last order for all upstreams; without one, the windows alone decide.
    pub(super) told: Option<Told>,
    /// Upstreams that were opened by themselves.
    pub(super) upstreams: BTreeMap<String, Told>,
    /// Who changed it last, an order or the clock, and whether that opened it.
    pub(super) changed: Option<Changed>,
    /// The latest time at which the gate looked at the clock and wrote this.
    pub(super) seen: Timestamp,
}

/// An order that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Told {
    pub(super) open: bool,
    /// Of an opening: when it is over.
    pub(super) until: Option<Timestamp>,
    pub(super) at: Timestamp,
    pub(super) who: String,
    pub(super) why: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changed {
    pub(super) open: bool,
    pub(super) at: Timestamp,
    pub(super) who: String,
    pub(super) why: Option<String>,
}

/// The only version of `gate.json` so far.
pub(super) const VERSION: u32 = 1;

/// What holds now, read on the hot path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) general: Stand,
    pub(super) upstreams: BTreeMap<String, (Stand, Told)>,
}

/// Whether requests may leave, and until when that holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) open: bool,
    /// While open; `None`: until told.
    pub(super) closes_at: Option<Timestamp>,
    /// While closed: when the next window starts.
    pub(super) opens_at: Option<Timestamp>,
    /// Of the window that keeps it open, if one does.
    pub(super) window: Option<Option<String>>,
}

impl Told {
    pub(super) fn closed(order: &Order, at: Timestamp) -> Self {
        Self { open: false, until: None, at, who: order.who.clone(), why: order.why.clone() }
    }

    pub(super) fn open(order: &Order, at: Timestamp, until: Option<Timestamp>) -> Self {
        Self { open: true, until, at, who: order.who.clone(), why: order.why.clone() }
    }

    fn is_open_at(&self, now: Timestamp) -> bool {
        self.open && self.until.is_none_or(|until| now < until)
    }
}

impl Kept {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { version: VERSION, told: None, upstreams: BTreeMap::new(), changed: None, seen: now }
    }

    /// How far the clock went back since this was written, when that is more than a correction.
    pub(super) fn clock_went_back(&self, now: Timestamp) -> Option<SignedDuration> {
        let back = self.seen.duration_since(now);
        (back > CLOCK_STEP_MAX).then_some(back)
    }

    /// Everything closed by `order`; a window that is running stays shut.
    pub(super) fn close(&mut self, order: &Order, now: Timestamp) {
        self.told = Some(Told::closed(order, now));
        self.upstreams.clear();
    }

    /// What follows at `now`. An explicit opening holds until its own end, an explicit closing until the next window.
    pub(super) fn decide(&self, windows: &[Window], now: Timestamp) -> Decision {
        let general = self.general(windows, now);
        let alive = self.upstreams.iter().filter(|(_, told)| told.is_open_at(now));
        let upstreams = alive.map(|(name, told)| {
            let closes_at = match general.open {
                // Both hold it open: the later end counts, and no end is the latest.
                true => general.closes_at.zip(told.until).map(|(a, b)| a.max(b)),
                false => told.until,
            };
            (name.clone(), (Stand { open: true, closes_at, opens_at: None, window: None }, told.clone()))
        });
        Decision { upstreams: upstreams.collect(), general }
    }

    fn general(&self, windows: &[Window], now: Timestamp) -> Stand {
        if let Some(told) = &self.told
            && told.is_open_at(now)
        {
            // A window that runs when the order ends takes over.
            let handed_over = told.until.and_then(|until| schedule::running(windows, until, None));
            let closes_at = handed_over.map(|window| window.closes_at).or(told.until);
            return Stand { open: true, closes_at, opens_at: None, window: None };
        }
        let closed_at = self.told.as_ref().filter(|told| !told.open).map(|told| told.at);
        match schedule::running(windows, now, closed_at) {
            Some(window) => {
                Stand { open: true, closes_at: Some(window.closes_at), opens_at: None, window: Some(window.why) }
            }
            None => Stand { open: false, closes_at: None, opens_at: schedule::next_start(windows, now), window: None },
        }
    }
}

impl Decision {
    fn stand(&self, upstream: &str) -> &Stand {
        self.upstreams.get(upstream).map_or(&self.general, |(stand, _)| stand)
    }

    /// Why a request to `upstream` may not leave at `now`. An end that has passed counts before anyone has acted on it.
    pub(super) fn refusal(&self, upstream: &str, now: impl FnOnce() -> Timestamp) -> Option<Refusal> {
        let stand = self.stand(upstream);
        let open = stand.open && stand.closes_at.is_none_or(|closes_at| now() < closes_at);
        (!open).then_some(Refusal::Closed { opens_at: stand.opens_at })
    }

    pub(super) fn is_open_for(&self, upstream: &str) -> bool {
        self.stand(upstream).open
    }

    /// For all, or for some upstream by itself.
    pub(super) fn is_open_at_all(&self) -> bool {
        self.general.open || !self.upstreams.is_empty()
    }

    /// Open only where both are: what may hold while a change is being recorded.
    pub(super) fn and(&self, other: &Self) -> Self {
        let names = self.upstreams.keys().chain(other.upstreams.keys());
        let both = names.filter(|name| self.is_open_for(name) && other.is_open_for(name));
        let upstreams = both
            .filter_map(|name| Some((name.clone(), other.upstreams.get(name).or(self.upstreams.get(name))?.clone())))
            .collect();
        let closed = Stand { open: false, closes_at: None, ..other.general.clone() };
        let general = if self.general.open && other.general.open { other.general.clone() } else { closed };
        Self { general, upstreams }
    }

    /// Whether `other` lets something leave that this does not.
    pub(super) fn opens_less_than(&self, other: &Self) -> bool {
        let general = other.general.open && !self.general.open;
        general || other.upstreams.keys().any(|name| !self.is_open_for(name))
    }

    /// When the clock alone will change it.
    pub(super) fn next_change(&self) -> Option<Timestamp> {
        let ends = self.upstreams.values().flat_map(|(stand, told)| [stand.closes_at, told.until]);
        ends.chain([self.general.closes_at, self.general.opens_at]).flatten().min()
    }

    /// Fills in what can be told from here; the gate knows the rest.
    pub(super) fn status(&self, changed: Option<&Changed>) -> GateStatus {
        let upstreams = self.upstreams.iter().map(|(name, (stand, told))| {
            let shown = UpstreamGate {
                closes_at: stand.closes_at,
                who: told.who.clone(),
                why: told.why.clone(),
                since: told.at,
            };
            (name.clone(), shown)
        });
        GateStatus {
            open: self.general.open,
            closes_at: self.general.closes_at,
            opens_at: self.general.opens_at,
            who: changed.map(|c| c.who.clone()),
            why: changed.and_then(|c| c.why.clone()),
            since: changed.map(|c| c.at),
            upstreams: upstreams.collect(),
            draining: false,
            under_way: 0,
            sockets: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(hour: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour)
    }

    fn order() -> Order {
        Order::new("alice", None)
    }

    fn open(until: Option<i64>) -> Option<Told> {
        Some(Told::open(&order(), at(1), until.map(at)))
    }

    fn kept(told: Option<Told>) -> Kept {
        Kept { told, ..Kept::new(at(0)) }
    }

    /// Open from 2 to 4 o'clock.
    fn nightly() -> Vec<Window> {
        vec![Window::new("0 2 * * *", Duration::from_secs(2 * 3600), None, None).unwrap()]
    }

    #[test]
    fn orders_and_windows_decide_by_the_hour() {
        // What was told, the hour; open?, closes at, opens at.
        let closed = |hour| Some(Told::closed(&order(), at(hour)));
        let cases = [
            (None, 1, false, None, Some(2)),
            (None, 2, true, Some(4), None),
            (None, 4, false, None, Some(26)),
            (closed(0), 2, true, Some(4), None),
            (closed(2), 3, false, None, Some(26)),
            (closed(3), 3, false, None, Some(26)),
            (closed(3), 26, true, Some(28), None),
            (open(None), 1, true, None, None),
            (open(None), 4, true, None, None),
            (open(Some(3)), 1, true, Some(4), None),
            (open(Some(3)), 3, true, Some(4), None),
            (open(Some(2)), 1, true, Some(4), None),
            (open(Some(6)), 3, true, Some(6), None),
            (open(Some(6)), 6, false, None, Some(26)),
        ];
        for (number, (told, hour, is_open, closes_at, opens_at)) in cases.into_iter().enumerate() {
            let found = kept(told).decide(&nightly(), at(hour)).general;
            let wanted = (is_open, closes_at.map(at), opens_at.map(at));
            assert_eq!((found.open, found.closes_at, found.opens_at), wanted, "case {number}");
        }
    }

    #[test]
    fn an_upstream_is_open_as_long_as_anything_holds_it_open() {
        // The general order's end, the upstream's end; open at 5?, until.
        let cases = [
            (Some(4), Some(6), true, Some(6)),
            (Some(6), Some(4), true, Some(6)),
            (Some(6), Some(8), true, Some(8)),
            (None, Some(6), true, None),
            (Some(4), None, true, None),
            (Some(4), Some(5), false, None),
        ];
        for (number, (general, upstream, is_open, until)) in cases.into_iter().enumerate() {
            let mut kept = kept(open(general));
            kept.upstreams.extend(open(upstream).map(|told| ("hub".to_owned(), told)));
            let decision = kept.decide(&[], at(5));
            let stand = decision.stand("hub");
            assert_eq!((stand.open, stand.closes_at), (is_open, until.map(at)), "case {number}");
            assert_eq!(decision.refusal("hub", || at(5)).is_none(), is_open, "case {number}");
        }
    }

    #[test]
    fn an_end_that_has_passed_refuses_before_anybody_acts_on_it() {
        // Invariant 1
        let decision = kept(open(Some(6))).decide(&[], at(5));
        assert_eq!(decision.refusal("hub", || at(5)), None);
        assert_eq!(decision.refusal("hub", || at(6)), Some(Refusal::Closed { opens_at: None }));
    }

    #[test]
    fn while_a_change_is_recorded_only_what_both_allow_may_leave() {
        // Invariant 1
        let decide = |general: Option<Told>, upstreams: &[&str]| {
            let mut kept = kept(general);
            kept.upstreams.extend(upstreams.iter().flat_map(|name| open(None).map(|told| ((*name).to_owned(), told))));
            kept.decide(&[], at(5))
        };
        let all = [
            decide(None, &[]),
            decide(open(None), &[]),
            decide(None, &["hub"]),
            decide(None, &["hub", "quay"]),
            decide(open(None), &["quay"]),
        ];
        for old in &all {
            for new in &all {
                let narrow = old.and(new);
                for name in ["hub", "quay", "ghcr"] {
                    assert_eq!(narrow.is_open_for(name), old.is_open_for(name) && new.is_open_for(name), "{name}");
                }
                let opens = ["hub", "quay", "ghcr"].iter().any(|name| new.is_open_for(name) && !old.is_open_for(name));
                assert_eq!(narrow.opens_less_than(new), opens);
            }
        }
    }
}
