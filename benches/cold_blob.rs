//! How long does a client wait for a cold 512 MiB blob: from a fast upstream beside nginx's `proxy_cache` and
//! docker-registry, through an upstream of 100 MiB/s beside a direct download, and until its first byte?

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::process::ExitCode;

use support::far::{Blob, Far};
use support::nginx::Nginx;
use support::process::{Watch, settle};
use support::registry::DockerRegistry;
use support::report::{median, ms, rounds};
use support::sealock::Sealock;
use support::{Bench, Outcome, body, report};

fn main() -> ExitCode {
    support::main("cold_blob", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let far = Far::new(bench.folder("far")?)?;
    let blob = far.add_blob(1, bench.pick(8, 512) << 20)?;
    let firsts: Vec<Blob> =
        (0..bench.pick(5, 60)).map(|seed| far.add_blob(100 + seed, 4 << 20)).collect::<Outcome<_>>()?;
    let fast = Nginx::upstream(&bench.folder("upstream")?, &far, None)?;
    let slow = Nginx::upstream(&bench.folder("slow")?, &far, Some("100m"))?;
    let figures = [
        from_fast(bench, &blob, fast.address)?,
        from_slow(bench, &blob, slow.address)?,
        first_byte(bench, &firsts, fast.address)?,
    ];
    Ok(figures.join(" | "))
}

fn from_fast(bench: &Bench, blob: &Blob, upstream: SocketAddr) -> Outcome<String> {
    let mut highest_mib: f64 = 0.0;
    let what = format!("cold {} from a fast upstream in s", report::size(blob.size));
    let names = ["sealock", "nginx", "docker-registry", "direct"];
    let done = rounds(&what, &names, bench.pick(2, 7), |_, name| {
        settle();
        match name {
            "sealock" => {
                let (took_s, mib) = through_sealock(bench, blob, upstream)?;
                highest_mib = highest_mib.max(mib);
                Ok(took_s)
            }
            "nginx" => {
                let nginx = Nginx::cache(&bench.folder("nginx")?, upstream)?;
                timed(nginx.address, blob)
            }
            "docker-registry" => {
                let docker = DockerRegistry::proxy(&bench.folder("docker")?, upstream)?;
                let took_s = timed(docker.address, blob)?;
                // Its second download, for its own store, is still running: let it not disturb the next.
                docker.wait_for(blob)?;
                Ok(took_s)
            }
            _ => timed(upstream, blob),
        }
    })?;
    Ok(format!(
        "{what}: {:.3}, nginx {:.3}, docker-registry {:.3}, direct {:.3}, ratio {:.2} of nginx (target ≤1.0), {:.2} of docker-registry, RssAnon {highest_mib:.1} MiB (target <64)",
        done.median("sealock"),
        done.median("nginx"),
        done.median("docker-registry"),
        done.median("direct"),
        done.ratio("sealock", "nginx"),
        done.ratio("sealock", "docker-registry"),
    ))
}

fn from_slow(bench: &Bench, blob: &Blob, upstream: SocketAddr) -> Outcome<String> {
    let what = format!("cold {} through 100 MiB/s in s", report::size(blob.size));
    let done = rounds(&what, &["sealock", "direct"], bench.pick(1, 5), |_, name| {
        settle();
        match name {
            "sealock" => Ok(through_sealock(bench, blob, upstream)?.0),
            _ => timed(upstream, blob),
        }
    })?;
    Ok(format!(
        "{what}: {:.3}, direct {:.3}, ratio {:.3} (target ≤1.02)",
        done.median("sealock"),
        done.median("direct"),
        done.ratio("sealock", "direct")
    ))
}

/// A new blob per round, through one sealock: its connection to upstream is warm, as it is within a pull.
fn first_byte(bench: &Bench, blobs: &[Blob], upstream: SocketAddr) -> Outcome<String> {
    let sealock = Sealock::open(&bench.folder("sealock")?, upstream, "1h")?;
    let mut delays_ms = Vec::new();
    let (mut ours_ms, mut theirs_ms) = (Vec::new(), Vec::new());
    for (round, blob) in blobs.iter().enumerate() {
        let mut pair = [(sealock.address, 0.0), (upstream, 0.0)];
        for place in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            pair[place].1 = ms(body::get(pair[place].0, &blob.path())?.first_byte);
        }
        ours_ms.push(pair[0].1);
        theirs_ms.push(pair[1].1);
        delays_ms.push(pair[0].1 - pair[1].1);
    }
    Ok(format!(
        "first byte after {:.2} ms, upstream's own {:.2} ms, later by {:.2} ms (target ≤3)",
        median(ours_ms),
        median(theirs_ms),
        median(delays_ms)
    ))
}

/// Seconds, and the highest anonymous memory in MiB. The blob must be kept by the time that its client has it.
fn through_sealock(bench: &Bench, blob: &Blob, upstream: SocketAddr) -> Outcome<(f64, f64)> {
    let sealock = Sealock::open(&bench.folder("sealock")?, upstream, "1h")?;
    let watch = Watch::over(&sealock.running);
    let took_s = timed(sealock.address, blob)?;
    let kept = sealock.kept(blob);
    let length = std::fs::metadata(&kept).map_err(|why| format!("not kept when its client had it: {why}"))?.len();
    if length != blob.size {
        return Err(format!("{} has {length} bytes", kept.display()).into());
    }
    Ok((took_s, watch.highest_mib()))
}

fn timed(address: SocketAddr, blob: &Blob) -> Outcome<f64> {
    let got = body::get(address, &blob.path())?;
    if got.bytes == blob.size { Ok(got.took.as_secs_f64()) } else { Err(format!("got {} bytes", got.bytes).into()) }
}
