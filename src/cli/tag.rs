//! `sealock tag log|rollback|pin|unpin|release`: what a tag named, and what it is to name.

use std::str::FromStr;

use clap::{Args, Subcommand};

use super::{Common, Failure, print};
use crate::clock::Clock;
use crate::server::admin::{TagOrder, TagReport};

#[derive(Subcommand)]
pub enum TagCommand {
    /// What the tag named, the newest first: where each came from, and whether it can be rolled back to
    Log(Asked),
    /// Point the tag to what it named before, or to a digest of its log; a deleted manifest is readable again
    ///
    /// A tag that was filled is pinned with it, because the next check upstream would move it on: `tag release` lets it
    /// follow upstream again.
    Rollback(Rollback),
    /// Hold the tag where it is: fills do not move it, and what it names is never collected
    Pin(Asked),
    /// Let a pinned tag move again
    Unpin(Asked),
    /// Let a pushed, imported or pinned tag of a routed name follow upstream again
    Release(Asked),
}

#[derive(Args)]
pub struct Asked {
    /// As clients write it, such as security-products/semgrep:6
    #[arg(value_name = "NAME:TAG")]
    tag: NameAndTag,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Rollback {
    #[command(flatten)]
    asked: Asked,
    /// The digest to go to; without it, the newest kept one before what the tag names
    #[arg(long, value_name = "DIGEST")]
    to: Option<String>,
}

/// `team/app:1`.
#[derive(Clone, Debug)]
pub struct NameAndTag {
    name: String,
    tag: String,
}

impl FromStr for NameAndTag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.rsplit_once(':') {
            Some((name, tag)) if !name.is_empty() && !tag.is_empty() && !tag.contains('/') => {
                Ok(Self { name: name.to_owned(), tag: tag.to_owned() })
            }
            _ => Err("write a name and a tag, such as `security-products/semgrep:6`"),
        }
    }
}

impl TagCommand {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let (asked, what, to) = match self {
            Self::Log(asked) => return log(common, &asked),
            Self::Rollback(rollback) => (rollback.asked, "rollback", rollback.to),
            Self::Pin(asked) => (asked, "pin", None),
            Self::Unpin(asked) => (asked, "unpin", None),
            Self::Release(asked) => (asked, "release", None),
        };
        let order = asked.order(to);
        let report = super::block_on(async { Ok(common.client()?.move_tag(what, &order).await?) })?;
        if asked.json {
            return print::json(&report);
        }
        let named = format!("{}:{}", order.name, order.tag);
        let digest = report.digest.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
        print::line(&match what {
            "rollback" if report.pinned => format!("{named} names {digest} again, and is pinned to it"),
            "rollback" => format!("{named} names {digest} again"),
            "pin" => format!("{named} is pinned to {digest}"),
            "unpin" => format!("{named} may move again from {digest}"),
            _ => format!("{named} follows upstream again from {digest}"),
        })
    }
}

impl Asked {
    fn order(&self, to: Option<String>) -> TagOrder {
        TagOrder { name: self.tag.name.clone(), tag: self.tag.tag.clone(), to }
    }
}

fn log(common: &Common, asked: &Asked) -> Result<(), Failure> {
    let order = asked.order(None);
    let report: TagReport = super::block_on(async { Ok(common.client()?.tag(&order).await?) })?;
    if asked.json {
        return print::json(&report);
    }
    let now = Clock::system().now();
    let rows = report.log.iter().enumerate().map(|(number, line)| {
        let state = match (line.digest, line.kept) {
            (None, _) => "-",
            (Some(digest), true) if number == 0 && report.pinned && Some(digest) == report.digest => "pinned",
            (Some(_), true) => "kept",
            (Some(_), false) => "gone",
        };
        let source = if line.digest.is_some() { line.source.as_str() } else { "deleted" };
        let when = format!("{} ({})", print::minute(line.moved_at), print::relative(now, line.moved_at));
        vec![
            when,
            source.to_owned(),
            state.to_owned(),
            line.digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string()),
        ]
    });
    print::table(&["WHEN", "HOW", "STATE", "DIGEST"], &rows.collect::<Vec<_>>())
}
