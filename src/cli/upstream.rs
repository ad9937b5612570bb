//! `sealock upstream check`: whether the upstreams can be reached and let us in, and if not, why.

use clap::{Args, Subcommand};

use super::{Common, Failure, print};
use crate::server::admin::CheckOrder;
use crate::upstream::{Step, UpstreamCheck};

#[derive(Subcommand)]
pub enum UpstreamCommand {
    /// Ask the upstreams step by step, through the gate: name, connection, TLS, registry, login, a manifest
    Check(Check),
}

#[derive(Args)]
pub struct Check {
    /// Its key in the settings, such as gitlab [default: all of them]
    name: Option<String>,
    /// What to ask for, as clients name it [default: something that was filled from there]
    #[arg(long, value_name = "NAME:TAG")]
    image: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl UpstreamCommand {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let Self::Check(Check { name, image, json }) = self;
        let client = common.client()?;
        let order = CheckOrder { upstream: name, image };
        let checks = super::block_on(async { Ok(client.check_upstreams(&order).await?) })?;
        if json {
            print::json(&checks)?;
        } else {
            checks.iter().try_for_each(show)?;
        }
        let bad: Vec<_> = checks.iter().filter(|check| !check.good).collect();
        let Some(first) = bad.first() else { return Ok(()) };
        let names = bad.iter().map(|check| check.upstream.as_str()).collect::<Vec<_>>().join(", ");
        let hint = first.refused.as_ref().map(|_| match bad.as_slice() {
            [one] => format!("open it with `sealock gate open --for 10m --upstream {}`", one.upstream),
            _ => "open it with `sealock gate open --for 10m`".to_owned(),
        });
        let closed = first.refused.as_ref().map(|refused| format!(": {refused}")).unwrap_or_default();
        Err(Failure {
            hint,
            ..Failure::found(format!("of {} upstreams, {} cannot be used: {names}{closed}", checks.len(), bad.len()))
        })
    }
}

fn show(check: &UpstreamCheck) -> Result<(), Failure> {
    print::line(&format!("{} ({})", check.upstream, check.host))?;
    if let Some(refused) = &check.refused {
        print::line(&format!("  {refused}"))?;
    }
    for endpoint in &check.endpoints {
        print::line(&format!("  {}", endpoint.endpoint))?;
        for step in &endpoint.steps {
            let state = if step.good { "ok  " } else { "FAIL" };
            print::line(&format!("    {state}  {:<10}  {}", word(step.step), step.detail))?;
            if let Some(hint) = &step.hint {
                print::line(&format!("          hint: {hint}"))?;
            }
        }
    }
    Ok(())
}

fn word(step: Step) -> &'static str {
    match step {
        Step::Name => "name",
        Step::Connection => "connection",
        Step::Tls => "TLS",
        Step::Registry => "registry",
        Step::Login => "login",
        Step::Manifest => "manifest",
    }
}
