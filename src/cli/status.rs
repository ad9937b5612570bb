//! `sealock status`: what the running server is doing, and what is missed.

use clap::Args;
use jiff::Timestamp;

use super::{Common, Failure, access, gate, print};
use crate::clock::Clock;
use crate::keep::{Done, KeepStatus};
use crate::server::admin::StatusReport;
use crate::size::Size;
use crate::store::{Damage, GarbageKind, Verdict, Wanted};
use crate::tls::Role;

/// Pieces of damaged content that are shown.
const DAMAGE_SHOWN: usize = 20;

#[derive(Args)]
pub struct Status {
    /// List what clients asked for and could not have, the latest first
    #[arg(long)]
    wanted: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        if self.wanted {
            let wanted = super::block_on(async { Ok(client.wanted().await?) })?;
            return if self.json { print::json(&wanted) } else { show_wanted(wanted) };
        }
        let report = super::block_on(async { Ok(client.status().await?) })?;
        if self.json { print::json(&report) } else { show(&report) }
    }
}

fn show(report: &StatusReport) -> Result<(), Failure> {
    if report.read_only {
        print::line("the store is read-only: a write to its disk failed; mend the disk, then restart sealock")?;
    }
    let totals = &report.totals;
    print::line(&format!(
        "sealock {} on {}, started {}",
        report.version,
        report.origins.join(", "),
        print::relative(report.now, report.started_at)
    ))?;
    print::line(&format!("the gate is {}", gate::describe(&report.gate, report.now)))?;
    print::line(&access::describe(&report.access))?;
    print::line(&format!(
        "kept: {} in {} blobs and manifests; {} tags in {} repositories, {} of them incomplete",
        Size(totals.size_bytes),
        totals.blobs + totals.manifests,
        totals.tags,
        totals.repositories,
        totals.incomplete_tags
    ))?;
    if totals.pushed_tags + totals.imported_tags > 0 {
        print::line(&format!(
            "tags that upstream does not move: {} pushed, {} imported (`sealock ls` tells which)",
            totals.pushed_tags, totals.imported_tags
        ))?;
    }
    show_keep(&report.keep, report.now)?;
    if totals.staged_bytes > 0 || report.under_way > 0 {
        print::line(&format!(
            "under way: {} fills and fetches; {} staged",
            report.under_way,
            Size(totals.staged_bytes)
        ))?;
    }
    if report.wanted > 0 {
        print::line(&format!("wanted: {} (list them with `sealock status --wanted`)", report.wanted))?;
    }
    for one in report.certificates.iter().filter(|one| one.role == Role::Server) {
        print::line(&format!("certificate: {}, for {} days", one.file.display(), one.days_left))?;
    }
    for warning in &report.warnings {
        print::line(&format!("warning: {warning}"))?;
    }
    show_damage(report)?;
    print::line("\nupstreams:")?;
    let rows = report.upstreams.iter().map(|upstream| {
        let state = match (&upstream.resting_until, &upstream.last_error) {
            (Some(until), _) => format!("left alone until {}", print::minute(*until)),
            (None, Some(why)) => format!("last error: {why}"),
            (None, None) => "no error".to_owned(),
        };
        vec![format!("  {}", upstream.name), upstream.host.clone(), state]
    });
    print::table(&["  UPSTREAM", "HOST", "STATE"], &rows.collect::<Vec<_>>())
}

/// Only what there is to tell.
fn show_keep(keep: &KeepStatus, now: Timestamp) -> Result<(), Failure> {
    let pressure = &keep.pressure;
    let limits = [
        pressure.max_size_bytes.map(|max| format!("{} of at most {}", Size(pressure.kept_bytes), Size(max))),
        pressure.min_free_bytes.map(|min| format!("{} free of at least {}", Size(pressure.free_bytes), Size(min))),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    if !limits.is_empty() {
        let over = match pressure.over_bytes {
            0 => String::new(),
            over => format!("; {} too much", Size(over)),
        };
        print::line(&format!("room: {}{over}", limits.join(", ")))?;
    }
    let done = |what: &str, done: &Option<Done>| match done {
        Some(Done { at, sum }) => {
            let when = print::relative(now, *at);
            print::line(&format!(
                "{what} {when}: {} in {} manifests and {} blobs",
                Size(sum.size_bytes),
                sum.manifests,
                sum.blobs
            ))
        }
        None => Ok(()),
    };
    done("evicted", &keep.last_eviction)?;
    done("collected", &keep.last_collection)?;
    if keep.trash_bytes > 0 {
        print::line(&format!("in the trash: {} (put back with `sealock gc --undo`)", Size(keep.trash_bytes)))?;
    }
    Ok(())
}

/// What is not kept again; what is, is in the JSON.
fn show_damage(report: &StatusReport) -> Result<(), Failure> {
    if report.damaged == 0 {
        return Ok(());
    }
    print::line(&format!("\ndamaged: {} (set aside, and fetched again while the gate is open)", report.damaged))?;
    let open: Vec<&Damage> = report.damage.iter().filter(|one| one.healed_at.is_none()).take(DAMAGE_SHOWN).collect();
    let rows = open.iter().map(|one| {
        let kind = if one.kind == GarbageKind::Manifest { "manifest" } else { "blob" };
        let what = if one.verdict == Verdict::Missing { "missing" } else { "wrong bytes" };
        let needed_by = match one.repositories.as_slice() {
            [] => "nothing needs it".to_owned(),
            [one] => one.clone(),
            [first, others @ ..] => format!("{first} and {} more", others.len()),
        };
        vec![
            format!("  {}", one.digest),
            kind.to_owned(),
            Size(one.size_bytes).to_string(),
            what.to_owned(),
            format!("{:?} {}", one.found_by, print::relative(report.now, one.found_at)).to_lowercase(),
            needed_by,
        ]
    });
    print::table(&["  DIGEST", "WHAT", "SIZE", "STATE", "FOUND", "NEEDED BY"], &rows.collect::<Vec<_>>())?;
    match report.damaged.saturating_sub(open.len() as u64) {
        0 => Ok(()),
        more => print::line(&format!("  and {more} more (`sealock status --json` lists up to 200)")),
    }
}

fn show_wanted(mut wanted: Vec<Wanted>) -> Result<(), Failure> {
    if wanted.is_empty() {
        return print::line("nothing is wanted: whatever was asked for was had");
    }
    wanted.sort_by_key(|one| std::cmp::Reverse(one.last_at));
    let now = Clock::system().now();
    let rows = wanted.iter().map(|one| {
        let separator = if one.reference.contains(':') { '@' } else { ':' };
        vec![
            format!("{}{separator}{}", one.name, one.reference),
            format!("{} times", one.count),
            format!("first {}", print::relative(now, one.first_at)),
            format!("last {}", print::relative(now, one.last_at)),
            format!("by {}", one.client),
        ]
    });
    print::table(&["WANTED", "COUNT", "FIRST", "LAST", "CLIENT"], &rows.collect::<Vec<_>>())
}
