//! `sealock access explain`: which rule decides, and about which repository.

use std::fmt;
use std::str::FromStr;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Common, Failure, print};
use crate::access::{self, AccessReport, Verb};
use crate::clock::Clock;
use crate::oci::RepositoryName;

/// As in rules.
const EVERYTHING: &str = "**";

#[derive(Subcommand)]
pub enum AccessCommand {
    /// Say whether somebody may do something, which rule decides, and all names of what they ask for
    ///
    /// Exits with 0 if it is allowed, with 1 if it is denied.
    Explain(Explain),
}

#[derive(Args)]
pub struct Explain {
    /// anonymous, a user's name, robot:NAME, certificate:NAME, or claim:NAME=VALUE,…
    #[arg(value_name = "USER")]
    caller: String,
    /// pull, push, delete, or admin (giving orders over the network)
    verb: Verb,
    /// As clients write it, such as security-products/semgrep; '**' asks about all that there is, and with admin about
    /// all orders
    name: Asked,
    /// The upstream host that containerd names beside it
    #[arg(long, value_name = "HOST")]
    ns: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What is asked about.
#[derive(Clone)]
enum Asked {
    Everything,
    Name(RepositoryName),
}

impl AccessCommand {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let Self::Explain(asked) = self;
        if asked.ns.is_some() && asked.name.repository().is_none() {
            let message = "`--ns` goes with a name, and `**` is none".to_owned();
            return Err(Failure { message, hint: Some("leave one of them out".to_owned()), code: 2 });
        }
        let settings = common.settings()?;
        let routes = settings.routes().map_err(|why| Failure::new(&why, None))?;
        let explanation = access::explain(
            &settings.access,
            &settings.server.data,
            routes.into(),
            settings.private_repositories(),
            access::Question {
                caller: &asked.caller,
                verb: asked.verb,
                name: asked.name.repository(),
                namespace: asked.ns.as_deref(),
            },
            Clock::system().now(),
        )
        .map_err(Failure::found)?;
        let mut why = explanation.why;
        if asked.verb == Verb::Admin && settings.admin.listen.is_empty() {
            why += " (`admin.listen` names no address: orders are taken by the socket in the data folder alone)";
        }
        let verdict = if explanation.allowed { "may" } else { "may not" };
        if asked.json {
            let (repository, names) = explanation.place.map(|place| (place.repository, place.names)).unzip();
            print::json(&json!({
                "allowed": explanation.allowed, "why": why, "repository": repository, "names": names.unwrap_or_default(),
            }))?;
        } else {
            print::line(&format!("`{}` {verdict} {} `{}`: {why}", asked.caller, asked.verb, asked.name))?;
            if let Some(place) = explanation.place {
                print::line(&format!("repository: {}", place.repository))?;
                print::line(&format!("its names:  {}", place.names.join(", ")))?;
            }
        }
        if explanation.allowed { Ok(()) } else { Err(Failure::found("it is denied".to_owned())) }
    }
}

impl Asked {
    fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Everything => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl FromStr for Asked {
    type Err = <RepositoryName as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == EVERYTHING { Ok(Self::Everything) } else { text.parse().map(Self::Name) }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str(EVERYTHING),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// For the banner and the status.
pub fn describe(report: &AccessReport) -> String {
    let AccessReport { open, private, rules, users, robots } = report;
    match (open, rules) {
        (true, _) if *private => {
            "access: everybody who reaches it may pull, push and delete, but not what upstreams with \
                                  credentials gave: that needs a login, and there are no users; `sealock user add NAME`"
                .to_owned()
        }
        (true, _) => "access: everybody who reaches it may pull, push and delete; `sealock user add NAME`, or \
                      [[access.rule]], changes that"
            .to_owned(),
        (false, 0) => format!("access: with a login alone ({users} users, {robots} robots; no rules)"),
        (false, _) => format!("access: by {rules} rules ({users} users, {robots} robots)"),
    }
}
