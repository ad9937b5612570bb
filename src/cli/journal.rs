//! Lines for systemd's journal: it knows the time, and takes the level as a number before each line (`sd-daemon(3)`).

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What stands before a line that somebody must act upon.
pub const ERROR: &str = "<3>";

/// Whether standard error goes to the journal: `JOURNAL_STREAM` tells which stream does, and a redirection makes it
/// another one (`systemd.exec(5)`).
pub fn takes_stderr() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let of = |found: rustix::fs::Stat| format!("{}:{}", found.st_dev, found.st_ino);
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|found| of(found) == named)
}

/// An event as one such line.
pub struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        writer.write_str(match *event.metadata().level() {
            Level::ERROR => ERROR,
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            Level::DEBUG | Level::TRACE => "<7>",
        })?;
        let rest = Format::default().without_time().with_level(false).with_target(false).with_ansi(false);
        rest.format_event(context, writer, event)
    }
}
