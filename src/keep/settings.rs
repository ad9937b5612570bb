//! `[keep]` of the settings.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::retain::{RetainRule, is_pattern};
use crate::size::{Size, Span};

/// Most digests of a tag's history that can be asked for: more are not remembered.
pub const HISTORY_MAX: u32 = 32;

/// `[keep]`: what is collected, evicted and retired, and how long it can be put back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeepSettings {
    /// How often what nothing refers to is collected; `0s`: only by `sealock gc`.
    pub collect_every: Span,
    /// Digests of each tag's history that stay, the one that it names included.
    pub history: u32,
    /// Whether manifests stay that no tag names and no pushed tag ever named.
    pub keep_untagged: bool,
    /// What was kept or used less long ago stays.
    pub grace: Span,
    /// How long what was collected can be put back.
    pub trash_for: Span,
    /// How often everything is read and held against its name; `0s`: only by `sealock verify`.
    pub scrub_every: Span,
    /// Bytes that it reads in a second, at most.
    pub scrub_rate: Size,
    /// More than this is not kept, if what is above it can be fetched again; `0B`: no limit.
    pub max_size: Size,
    /// What the file system of the data folder is to keep free, as above; `0B`: no limit.
    pub min_free: Size,
    /// Which tags stay, by pattern of the repository as `sealock ls` names it; where there is none, all do.
    pub retain: BTreeMap<String, RetainRule>,
}

impl KeepSettings {
    /// The first value that makes no sense: its key below `keep`, and what to write instead.
    pub fn check(&self) -> Result<(), (String, String)> {
        let minute = Duration::from_secs(60);
        let wrong = |key: &str, message: String| Err((key.to_owned(), message));
        if self.history == 0 || self.history > HISTORY_MAX {
            return wrong("history", format!("write a number from 1 to {HISTORY_MAX}"));
        }
        if !self.collect_every.0.is_zero() && self.collect_every.0 < minute {
            return wrong("collect_every", "write `1m` or more, or `0s` for never".to_owned());
        }
        if self.scrub_rate.0 == 0 {
            return wrong("scrub_rate", "write `1MiB` or more, or `scrub_every = \"0s\"` for never".to_owned());
        }
        for (key, span) in [("grace", self.grace), ("trash_for", self.trash_for)] {
            if span.0 > Duration::from_secs(366 * 24 * 3600) {
                return wrong(key, "write at most 366d".to_owned());
            }
        }
        for (pattern, rule) in &self.retain {
            if !is_pattern(pattern) {
                let example = "`team/app`, a prefix such as `team/**`, or `**`";
                return wrong(
                    &format!("retain[{pattern}]"),
                    format!("write a name as `sealock ls` shows it, such as {example}"),
                );
            }
            if let Err((key, message)) = rule.check() {
                return wrong(&format!("retain[{pattern}]{key}"), message);
            }
        }
        Ok(())
    }

    /// Whether anything is ever evicted.
    pub fn evicts(&self) -> bool {
        self.max_size.0 > 0 || self.min_free.0 > 0
    }
}

impl Default for KeepSettings {
    fn default() -> Self {
        let day = Span(Duration::from_secs(24 * 3600));
        let (scrub_every, scrub_rate) = (Span(30 * day.0), Size(16 << 20));
        Self {
            scrub_every,
            scrub_rate,
            // Only when told: what is thrown away may be the only copy.
            collect_every: Span(Duration::ZERO),
            history: 5,
            keep_untagged: true,
            grace: day,
            trash_for: day,
            max_size: Size(0),
            min_free: Size(0),
            retain: BTreeMap::new(),
        }
    }
}
