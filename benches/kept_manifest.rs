//! How many kept manifests of 1 KiB are served per second, GET and HEAD, by tag and by digest, over 64 keep-alive
//! connections, beside nginx serving the same bytes? And how late is the slowest in a hundred? How many are left where
//! there are users and rules, and each request shows a token, or a password?

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use support::far::{Blob, Far, Image};
use support::nginx::Nginx;
use support::registry::DockerRegistry;
use support::report::{Spent, median, ms, rounds};
use support::sealock::Sealock;
use support::volley::{Request, Until, fire};
use support::{Bench, Outcome, body};

const CONNECTIONS: usize = 64;
const LENGTH: usize = 1024;

fn main() -> ExitCode {
    support::main("kept_manifest", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let mut far = Far::new(bench.folder("far")?)?;
    let blobs = [far.add_blob(1, 2048)?, far.add_blob(2, 4096)?];
    let image = far.add_image("latest", &blobs, LENGTH)?;
    let upstream = Nginx::upstream(&bench.folder("upstream")?, &far, None)?;
    let nginx = Nginx::files(&bench.folder("nginx")?, &far)?;
    let docker = DockerRegistry::proxy(&bench.folder("docker")?, upstream.address)?;
    let sealock = Sealock::open(&bench.folder("sealock")?, upstream.address, "1h")?;
    for path in [image.path(), image.path_by_digest(), blobs[0].path(), blobs[1].path()] {
        body::get(sealock.address, &path)?;
        body::get(docker.address, &path)?;
    }
    sealock.close_gate()?;

    let contestant = |name: &str| match name {
        "sealock" => (sealock.address, &sealock.running),
        "nginx" => (nginx.address, &nginx.running),
        _ => (docker.address, &docker.running),
    };
    let length = image.bytes.len() as u64;
    let span = Duration::from_millis(bench.pick(100, 2000));
    let mut figures = Vec::new();
    let (by_tag, by_digest) = (image.path(), image.path_by_digest());
    for (method, kind, path) in [
        ("GET", "tag", &by_tag),
        ("GET", "digest", &by_digest),
        ("HEAD", "tag", &by_tag),
        ("HEAD", "digest", &by_digest),
    ] {
        let (mut late_ms, mut docker_late_ms) = (Vec::new(), Vec::new());
        let (what, mut spent) = (format!("{method} by {kind} per second"), Spent::default());
        let done = rounds(&what, &["sealock", "nginx", "docker-registry"], bench.pick(2, 5), |_, name| {
            let (address, running) = contestant(name);
            let requests = [Request::new(method, path, address, length)?];
            let before_s = running.cpu_s();
            let tally = fire(address, &requests, CONNECTIONS, Until::Elapsed(span))?;
            spent.add(name, running.cpu_s() - before_s, tally.answers as f64);
            match name {
                "sealock" => late_ms.push(ms(tally.percentile(0.99))),
                "docker-registry" => docker_late_ms.push(ms(tally.percentile(0.99))),
                _ => {}
            }
            Ok(tally.per_second())
        })?;
        spent.tell(&what, "answer in µs", 1e6);
        figures.push(format!(
            "{method} by {kind}: {:.0}/s, nginx {:.0}/s, docker-registry {:.0}/s, ratio {:.2} of nginx (target ≥0.8), p99 {:.2} ms (target <5), docker-registry's {:.0} ms",
            done.median("sealock"),
            done.median("nginx"),
            done.median("docker-registry"),
            done.ratio("sealock", "nginx"),
            median(late_ms),
            median(docker_late_ms),
        ));
    }
    figures.push(guarded(bench, upstream.address, &sealock, &image, &blobs)?);
    Ok(figures.join(" | "))
}

/// The same server, but with users and rules, beside the one without.
fn guarded(bench: &Bench, upstream: SocketAddr, open: &Sealock, image: &Image, blobs: &[Blob]) -> Outcome<String> {
    let guarded = Sealock::open_guarded(&bench.folder("guarded")?, upstream)?;
    let (bearer, basic) = (guarded.bearer()?, Sealock::basic());
    let paths = [image.path(), image.path_by_digest()].into_iter().chain(blobs.iter().map(Blob::path));
    for path in paths {
        body::get_showing(guarded.address, &path, &basic)?;
    }
    guarded.close_gate()?;
    if body::get(guarded.address, &image.path()).is_ok() {
        return Err("the guarded server lets everybody in".into());
    }

    let length = image.bytes.len() as u64;
    let (span, count) = (Duration::from_millis(bench.pick(100, 2000)), bench.pick(2, 7));
    let mut figures = Vec::new();
    for (kind, path) in [("tag", image.path()), ("digest", image.path_by_digest())] {
        let (what, mut spent) = (format!("GET by {kind} per second"), Spent::default());
        let done = rounds(&what, &["open", "token", "password"], count, |_, name| {
            let (server, line) = match name {
                "open" => (open, ""),
                "token" => (&guarded, bearer.as_str()),
                _ => (&guarded, basic.as_str()),
            };
            let requests = [Request::showing("GET", &path, server.address, length, line)?];
            let before_s = server.running.cpu_s();
            let tally = fire(server.address, &requests, CONNECTIONS, Until::Elapsed(span))?;
            spent.add(name, server.running.cpu_s() - before_s, tally.answers as f64);
            Ok(tally.per_second())
        })?;
        spent.tell(&what, "answer in µs", 1e6);
        figures.push(format!(
            "GET by {kind} with rules: {:.0}/s with a token, ratio {:.2} of without rules (target >0.8), {:.0}/s with a password, ratio {:.2}",
            done.median("token"),
            done.ratio("token", "open"),
            done.median("password"),
            done.ratio("password", "open"),
        ));
    }
    Ok(figures.join(" | "))
}
