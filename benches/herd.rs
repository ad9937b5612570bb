//! When 64 clients ask for one cold 128 MiB blob: how often is it downloaded, does anyone fail, and when do all have it,
//! beside nginx's `proxy_cache` with its lock?

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::process::ExitCode;

use support::far::{Blob, Far};
use support::nginx::{Asked, Nginx};
use support::process::settle;
use support::report::{median, rounds};
use support::sealock::Sealock;
use support::{Bench, Outcome, body, report};

fn main() -> ExitCode {
    support::main("herd", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let clients = bench.pick(16, 64);
    let far = Far::new(bench.folder("far")?)?;
    let blob = far.add_blob(1, bench.pick(2, 128) << 20)?;
    let (mut ours, mut theirs) = (Downloads::default(), Downloads::default());
    let what = format!("{clients} clients, one cold {} blob, all done in s", report::size(blob.size));
    let done = rounds(&what, &["sealock", "nginx"], bench.pick(2, 7), |_, name| {
        settle();
        let mut upstream = Nginx::upstream(&bench.folder("upstream")?, &far, None)?;
        let (took_s, downloads) = match name {
            "sealock" => (through_sealock(bench, upstream.address, &blob, clients)?, &mut ours),
            _ => (through_nginx(bench, upstream.address, &blob, clients)?, &mut theirs),
        };
        upstream.running.stop()?;
        downloads.count(&upstream.asked()?, &blob);
        Ok(took_s)
    })?;
    Ok(format!(
        "{what}: {:.3}, nginx {:.3}, ratio {:.2} (target ≤1.0) | upstream requests {:.0} (target 1), {:.2} times its bytes, nginx {:.0} | 0 clients failed (target 0)",
        done.median("sealock"),
        done.median("nginx"),
        done.ratio("sealock", "nginx"),
        median(ours.requests.clone()),
        median(ours.times.clone()),
        median(theirs.requests.clone()),
    ))
}

fn through_sealock(bench: &Bench, upstream: SocketAddr, blob: &Blob, clients: usize) -> Outcome<f64> {
    let sealock = Sealock::open(&bench.folder("sealock")?, upstream, "1h")?;
    let crowd = body::crowd(sealock.address, blob, clients).unharmed()?;
    body::verify(sealock.address, blob)?;
    Ok(crowd.took.as_secs_f64())
}

fn through_nginx(bench: &Bench, upstream: SocketAddr, blob: &Blob, clients: usize) -> Outcome<f64> {
    let nginx = Nginx::cache(&bench.folder("nginx")?, upstream)?;
    let crowd = body::crowd(nginx.address, blob, clients).unharmed()?;
    body::verify(nginx.address, blob)?;
    Ok(crowd.took.as_secs_f64())
}

/// What each round cost upstream.
#[derive(Default)]
struct Downloads {
    requests: Vec<f64>,
    /// Bytes sent, as a multiple of the blob's size.
    times: Vec<f64>,
}

impl Downloads {
    fn count(&mut self, asked: &[Asked], blob: &Blob) {
        let gets: Vec<&Asked> = asked.iter().filter(|one| one.method == "GET" && one.path == blob.path()).collect();
        self.requests.push(gets.len() as f64);
        self.times.push(gets.iter().map(|one| one.bytes).sum::<u64>() as f64 / blob.size as f64);
    }
}
