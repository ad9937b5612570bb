//! How many 4 KiB blobs per second over keep-alive connections: cold ones beside nginx's `proxy_cache`, each fetched from
//! upstream once, and kept ones beside nginx serving the same files?

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use support::far::{Blob, Far};
use support::nginx::Nginx;
use support::process::settle;
use support::report::{Spent, median, ms, rounds};
use support::sealock::Sealock;
use support::volley::{Request, Tally, Until, fire};
use support::{Bench, Outcome, body, report};

const SIZE: u64 = 4096;
const CONNECTIONS: usize = 64;

fn main() -> ExitCode {
    support::main("small_blobs", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let far = Far::new(bench.folder("far")?)?;
    let blobs: Vec<Blob> = (0..bench.pick(200, 20_000)).map(|seed| far.add_blob(seed, SIZE)).collect::<Outcome<_>>()?;
    Ok(format!("{} | {}", cold(bench, &far, &blobs)?, kept(bench, &far, &blobs)?))
}

/// Also leaves sealock's folder filled, for [`kept`].
fn cold(bench: &Bench, far: &Far, blobs: &[Blob]) -> Outcome<String> {
    let (mut requests, mut late_ms) = (Vec::new(), Vec::new());
    let what = format!("{} cold blobs of {} per second", blobs.len(), report::size(SIZE));
    let done = rounds(&what, &["sealock", "nginx"], bench.pick(1, 3), |_, name| {
        settle();
        let mut upstream = Nginx::upstream(&bench.folder("upstream")?, far, None)?;
        let tally = match name {
            "sealock" => {
                let sealock = Sealock::open(&bench.folder("sealock")?, upstream.address, "1h")?;
                all(sealock.address, blobs, Until::Once)?
            }
            _ => all(Nginx::cache(&bench.folder("cache")?, upstream.address)?.address, blobs, Until::Once)?,
        };
        upstream.running.stop()?;
        if name == "sealock" {
            requests.push(upstream.asked()?.len() as f64 / blobs.len() as f64);
            late_ms.push(ms(tally.percentile(0.99)));
        }
        Ok(tally.per_second())
    })?;
    Ok(format!(
        "{what}: {:.0}, nginx {:.0}, ratio {:.2} (target ≥0.1), p99 {:.1} ms, {:.3} upstream requests each (target 1)",
        done.median("sealock"),
        done.median("nginx"),
        done.ratio("sealock", "nginx"),
        median(late_ms),
        median(requests)
    ))
}

fn kept(bench: &Bench, far: &Far, blobs: &[Blob]) -> Outcome<String> {
    let nginx = Nginx::files(&bench.folder("nginx")?, far)?;
    let sealock = Sealock::open(&bench.root().join("sealock"), nginx.address, "1h")?;
    sealock.close_gate()?;
    for blob in blobs.iter().step_by(blobs.len() / 100) {
        body::verify(sealock.address, blob)?;
    }
    let span = Duration::from_millis(bench.pick(200, 3000));
    let (mut late_ms, mut spent) = (Vec::new(), Spent::default());
    let what = format!("{} kept blobs of {} per second", blobs.len(), report::size(SIZE));
    let done = rounds(&what, &["sealock", "nginx"], bench.pick(2, 7), |_, name| {
        let (address, running) = match name {
            "sealock" => (sealock.address, &sealock.running),
            _ => (nginx.address, &nginx.running),
        };
        let before_s = running.cpu_s();
        let tally = all(address, blobs, Until::Elapsed(span))?;
        spent.add(name, running.cpu_s() - before_s, tally.answers as f64);
        if name == "sealock" {
            late_ms.push(ms(tally.percentile(0.99)));
        }
        Ok(tally.per_second())
    })?;
    spent.tell(&what, "answer in µs", 1e6);
    Ok(format!(
        "{what}: {:.0}, nginx {:.0}, ratio {:.2} (target ≥0.5), p99 {:.2} ms",
        done.median("sealock"),
        done.median("nginx"),
        done.ratio("sealock", "nginx"),
        median(late_ms)
    ))
}

fn all(address: SocketAddr, blobs: &[Blob], until: Until) -> Outcome<Tally> {
    let requests: Vec<Request> =
        blobs.iter().map(|blob| Request::new("GET", &blob.path(), address, SIZE)).collect::<Outcome<_>>()?;
    fire(address, &requests, CONNECTIONS, until)
}
