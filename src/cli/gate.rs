//! `sealock gate open|close|status`: orders for the running server.

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{Common, Failure, print};
use crate::clock::Clock;
use crate::gate::GateStatus;
use crate::server::admin::{CloseOrder, OpenOrder};
use crate::size::Span;

#[derive(Subcommand)]
pub enum GateCommand {
    /// Let sealock reach upstreams, for a while or until `gate close`
    Open(Open),
    /// Let nothing out any more; what was being filled is kept in part and goes on at the next opening
    Close(Close),
    /// Whether it is open, since when, until when, and why
    Status(Status),
}

#[derive(Args)]
pub struct Open {
    /// How long, such as 30m or 2h; without it, until `gate close`
    #[arg(long = "for", value_name = "DURATION")]
    lasting: Option<Span>,
    /// The reason, for the audit file
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Open it for this upstream alone: its key in the settings, such as gitlab
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    /// Print the new state as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Close {
    /// Let what is under way end first, for at most this long; nothing new leaves meanwhile
    #[arg(long, value_name = "DURATION")]
    drain: Option<Span>,
    /// The reason, for the audit file
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Print the new state as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Status {
    /// Print the state as JSON
    #[arg(long)]
    json: bool,
}

impl GateCommand {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        let (status, json) = super::block_on(async {
            match self {
                Self::Open(open) => {
                    let for_ms = open.lasting.map(milliseconds);
                    let order = OpenOrder { for_ms, who: None, why: open.why, upstream: open.upstream };
                    Ok((client.open_gate(&order).await?, open.json))
                }
                Self::Close(close) => {
                    let order = CloseOrder { drain_ms: close.drain.map(milliseconds), who: None, why: close.why };
                    Ok((client.close_gate(&order).await?, close.json))
                }
                Self::Status(status) => Ok((client.gate().await?, status.json)),
            }
        })?;
        if json {
            return print::json(&status);
        }
        print::line(&format!("the gate is {}", describe(&status, Clock::system().now())))
    }
}

/// `open until 2026-11-21 14:30 UTC (in 2h), by uid 0: weekly update`.
pub fn describe(status: &GateStatus, now: Timestamp) -> String {
    let (state, until) = match status.open {
        true => ("open", status.closes_at.map(|at| ("until", at))),
        false => ("closed", status.opens_at.map(|at| ("until", at))),
    };
    let mut text = state.to_owned();
    if status.draining {
        text.push_str(" to new requests, while those under way may end");
    }
    if let Some((word, at)) = until {
        text.push_str(&format!(" {word} {} ({})", print::minute(at), print::relative(now, at)));
    }
    if let Some(since) = status.since {
        text.push_str(&format!(", since {}", print::minute(since)));
    }
    if let Some(who) = &status.who {
        text.push_str(&format!(", by {who}"));
    }
    if let Some(why) = &status.why {
        text.push_str(&format!(": {why}"));
    }
    for (name, one) in &status.upstreams {
        let until = one.closes_at.map(|at| format!(" until {}", print::minute(at))).unwrap_or_default();
        text.push_str(&format!("\n  open for {name}{until}, by {}", one.who));
    }
    text
}

fn milliseconds(span: Span) -> u64 {
    u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)
}
