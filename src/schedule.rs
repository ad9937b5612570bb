//! (pure) Windows: when the gate opens by itself.

use std::str::FromStr;
use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// The longest window.
pub const WINDOW_MAX: Duration = Duration::from_secs(31 * 24 * 3600);
/// Most windows that follow each other without a gap before an end is named that is not the last.
const CHAIN_MAX: usize = 32;

/// A time that comes again and again: a cron expression for its start, and a length.
#[derive(Clone, Debug)]
pub struct Window {
    starts: Cron,
    zone: TimeZone,
    lasting: SignedDuration,
    /// For the record.
    pub why: Option<String>,
}

/// A window that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub started_at: Timestamp,
    /// When the last of the windows that overlap with it, or follow at once, ends.
    pub closes_at: Timestamp,
    pub why: Option<String>,
}

/// Why there is no such window: the part of the settings, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error(
        "`{text}` is not a cron expression ({why}); write minute, hour, day, month and weekday, such as `0 2 * * *`"
    )]
    Cron { text: String, why: String },
    #[error("no time zone `{0}` is known here; write a name such as `Europe/Berlin`, or leave it out for UTC")]
    TimeZone(String),
    #[error("a window lasts more than nothing and at most 31 days")]
    Length,
}

impl Window {
    /// A window that opens at the times of the five-field cron expression `when`, in UTC or in the time zone `zone`.
    pub fn new(when: &str, lasting: Duration, zone: Option<&str>, why: Option<String>) -> Result<Self, ScheduleError> {
        let wrong = |why: String| ScheduleError::Cron { text: when.to_owned(), why };
        let starts = Cron::from_str(when).map_err(|error| wrong(error.to_string()))?;
        let zone = match zone {
            Some(name) => TimeZone::get(name).map_err(|_| ScheduleError::TimeZone(name.to_owned()))?,
            None => TimeZone::UTC,
        };
        if lasting.is_zero() || lasting > WINDOW_MAX {
            return Err(ScheduleError::Length);
        }
        let lasting = SignedDuration::try_from(lasting).map_err(|_| ScheduleError::Length)?;
        Ok(Self { starts, zone, lasting, why })
    }

    /// The latest start that is not after `now`, and its end, which may be past.
    fn latest(&self, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let start = self.starts.find_previous_occurrence(&now.to_zoned(self.zone.clone()), true).ok()?.timestamp();
        Some((start, start.checked_add(self.lasting).ok()?))
    }

    fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let next = self.starts.find_next_occurrence(&now.to_zoned(self.zone.clone()), false).ok()?;
        Some(next.timestamp())
    }
}

/// The window that is open at `now`, leaving out those that started at or before `after`.
pub fn running(windows: &[Window], now: Timestamp, after: Option<Timestamp>) -> Option<Running> {
    let open_at = |at: Timestamp| {
        windows
            .iter()
            .filter_map(move |window| window.latest(at).map(|(start, end)| (start, end, window)))
            .filter(move |(start, end, _)| at < *end && after.is_none_or(|after| *start > after))
    };
    let (started_at, mut closes_at, window) = open_at(now).max_by_key(|(_, end, _)| *end)?;
    for _ in 0..CHAIN_MAX {
        match open_at(closes_at).map(|(_, end, _)| end).max() {
            Some(end) => closes_at = end,
            None => break,
        }
    }
    Some(Running { started_at, closes_at, why: window.why.clone() })
}

/// When the next window starts, after `now`.
pub fn next_start(windows: &[Window], now: Timestamp) -> Option<Timestamp> {
    windows.iter().filter_map(|window| window.next(now)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn window(when: &str, lasting: Duration, zone: Option<&str>) -> Window {
        Window::new(when, lasting, zone, Some(when.to_owned())).unwrap()
    }

    #[test]
    fn a_window_is_open_from_its_start_to_just_before_its_end() {
        let nightly = [window("0 2 * * *", 2 * HOUR, None)];
        let cases = [
            ("2026-03-01T01:59:59.999Z", None, "2026-03-01T02:00:00Z"),
            ("2026-03-01T02:00:00Z", Some("2026-03-01T04:00:00Z"), "2026-03-02T02:00:00Z"),
            ("2026-03-01T02:00:00.001Z", Some("2026-03-01T04:00:00Z"), "2026-03-02T02:00:00Z"),
            ("2026-03-01T03:59:59.999Z", Some("2026-03-01T04:00:00Z"), "2026-03-02T02:00:00Z"),
            ("2026-03-01T04:00:00Z", None, "2026-03-02T02:00:00Z"),
            ("2026-12-31T23:00:00Z", None, "2027-01-01T02:00:00Z"),
        ];
        for (now, closes, next) in cases {
            let found = running(&nightly, at(now), None);
            assert_eq!(found.map(|r| r.closes_at), closes.map(at), "{now}");
            assert_eq!(next_start(&nightly, at(now)), Some(at(next)), "{now}");
        }
    }

    #[test]
    fn a_window_that_had_started_before_a_closing_stays_shut_and_the_next_one_opens() {
        let windows = [window("0 2 * * *", 2 * HOUR, None), window("0 3 * * *", 2 * HOUR, None)];
        let closed = Some(at("2026-03-01T02:30:00Z"));
        let cases = [
            ("2026-03-01T02:45:00Z", None),
            ("2026-03-01T03:00:00Z", Some("2026-03-01T05:00:00Z")),
            ("2026-03-01T05:00:00Z", None),
            ("2026-03-02T02:00:00Z", Some("2026-03-02T05:00:00Z")),
        ];
        for (now, closes) in cases {
            assert_eq!(running(&windows, at(now), closed).map(|r| r.closes_at), closes.map(at), "{now}");
        }
        assert_eq!(running(&windows, at("2026-03-01T02:00:00Z"), Some(at("2026-03-01T02:00:00Z"))), None);
    }

    #[test]
    fn windows_that_touch_or_overlap_are_one() {
        let windows = [window("0 2 * * *", 2 * HOUR, None), window("0 4 * * *", HOUR, None)];
        let found = running(&windows, at("2026-03-01T03:00:00Z"), None).unwrap();
        assert_eq!(found.closes_at, at("2026-03-01T05:00:00Z"));
        assert_eq!(found.started_at, at("2026-03-01T02:00:00Z"));
        let always = [window("0 * * * *", HOUR, None)];
        let found = running(&always, at("2026-03-01T03:30:00Z"), None).unwrap();
        assert_eq!(found.closes_at, at("2026-03-02T12:00:00Z"), "33 hours ahead and no further");
    }

    #[test]
    fn a_window_follows_the_clock_of_its_time_zone() {
        // 2026-03-29: clocks in Berlin go from 02:00 to 03:00; 2026-10-25: from 03:00 to 02:00.
        let berlin = [window("0 4 * * *", HOUR, Some("Europe/Berlin"))];
        let cases = [
            ("2026-03-28T00:00:00Z", "2026-03-28T03:00:00Z"),
            ("2026-03-29T00:00:00Z", "2026-03-29T02:00:00Z"),
            ("2026-10-24T00:00:00Z", "2026-10-24T02:00:00Z"),
            ("2026-10-25T00:00:00Z", "2026-10-25T03:00:00Z"),
        ];
        for (now, next) in cases {
            assert_eq!(next_start(&berlin, at(now)), Some(at(next)), "{now}");
            assert!(running(&berlin, at(next), None).is_some(), "{next}");
        }
    }

    #[test]
    fn a_date_that_never_comes_never_opens() {
        let never = [window("0 0 30 2 *", HOUR, None)];
        assert_eq!(next_start(&never, at("2026-03-01T00:00:00Z")), None);
        assert_eq!(running(&never, at("2026-03-01T00:00:00Z"), None), None);
    }

    // Invariant 20
    #[test]
    fn a_wrong_window_says_what_to_write() {
        let wrong = |when: &str, lasting, zone| Window::new(when, lasting, zone, None).unwrap_err();
        for when in ["", "2", "nightly", "61 2 * * *", "0 2 * *", "0 25 * * *"] {
            assert!(matches!(wrong(when, HOUR, None), ScheduleError::Cron { .. }), "{when:?}");
        }
        assert_eq!(wrong("0 2 * * *", Duration::ZERO, None), ScheduleError::Length);
        assert_eq!(wrong("0 2 * * *", WINDOW_MAX + HOUR, None), ScheduleError::Length);
        assert_eq!(wrong("0 2 * * *", HOUR, Some("Mars/Base")), ScheduleError::TimeZone("Mars/Base".to_owned()));
    }
}
