//! `[gate]` of the settings.

use serde::Deserialize;

use super::GateError;
use crate::schedule::Window;
use crate::size::Span;

/// Most windows.
pub const WINDOWS_MAX: usize = 64;

/// `[gate]`: whether sealock may reach out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// `closed` or `open`, for a data folder in which the gate has never been opened or closed.
    pub mode: Mode,
    /// When the gate opens by itself.
    pub windows: Vec<WindowSettings>,
}

/// A state without an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Closed,
    Open,
}

/// One of `windows`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSettings {
    /// When it opens: minute, hour, day of the month, month, weekday, as in cron.
    pub when: String,
    /// How long it stays open, such as `2h`.
    #[serde(rename = "for")]
    pub lasting: Span,
    /// For the audit file.
    #[serde(default)]
    pub why: Option<String>,
    /// The time zone of `when`, such as `Europe/Berlin`; UTC when left out.
    #[serde(default)]
    pub time_zone: Option<String>,
}

impl GateSettings {
    /// The first value that makes no sense: its key below `gate`, and what to write instead.
    pub fn check(&self) -> Result<(), (String, String)> {
        self.windows().map(drop)
    }

    /// The windows, as [`GateError::Settings`] when one makes no sense.
    pub(super) fn parsed_windows(&self) -> Result<Vec<Window>, GateError> {
        self.windows().map_err(|(key, message)| GateError::Settings { key: format!("gate.{key}"), message })
    }

    fn windows(&self) -> Result<Vec<Window>, (String, String)> {
        if self.windows.len() > WINDOWS_MAX {
            return Err(("windows".to_owned(), format!("has more than {WINDOWS_MAX} windows")));
        }
        let parse = |(index, window): (usize, &WindowSettings)| {
            Window::new(&window.when, window.lasting.0, window.time_zone.as_deref(), window.why.clone()).map_err(
                |error| {
                    let key = match error {
                        crate::schedule::ScheduleError::Cron { .. } => "when",
                        crate::schedule::ScheduleError::TimeZone(_) => "time_zone",
                        crate::schedule::ScheduleError::Length => "for",
                    };
                    (format!("windows[{index}].{key}"), error.to_string())
                },
            )
        };
        self.windows.iter().enumerate().map(parse).collect()
    }
}
