//! A kept tag has to be checked, but upstream is dead or a black hole: how long does the first client wait, and how long
//! do all that follow, for this tag and for every other one?

#[path = "support/mod.rs"]
mod support;

use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::far::{Blob, Far, Image};
use support::nginx::Nginx;
use support::registry::DockerRegistry;
use support::report::ms;
use support::sealock::Sealock;
use support::volley::{Request, Tally, Until, fire};
use support::{Bench, Outcome, body};

const CONNECTIONS: usize = 16;

fn main() -> ExitCode {
    support::main("upstream_dead", run)
}

/// What is left of upstream.
#[derive(Clone, Copy)]
enum Ruin {
    /// Nothing listens: connections are refused.
    Refused,
    /// The kernel drops every SYN, as a firewall would.
    Dropped,
    /// Connections stay and new ones are made, requests go out, no answer comes.
    Frozen,
}

fn run(bench: &Bench) -> Outcome<String> {
    let mut far = Far::new(bench.folder("far")?)?;
    let blobs = [far.add_blob(1, 2048)?, far.add_blob(2, 4096)?];
    let tags: Vec<Image> = (0..bench.pick(20, 200))
        .map(|number| far.add_image(&format!("v{number}"), &blobs, 1024))
        .collect::<Outcome<_>>()?;
    let mut figures = Vec::new();
    for (name, ruin) in [("refused", Ruin::Refused), ("dropped", Ruin::Dropped), ("frozen", Ruin::Frozen)] {
        figures.push(format!("{name}: {}", one(bench, &far, &tags, &blobs, ruin)?));
    }
    Ok(figures.join(" | "))
}

fn one(bench: &Bench, far: &Far, tags: &[Image], blobs: &[Blob], ruin: Ruin) -> Outcome<String> {
    let mut upstream = Nginx::upstream(&bench.folder("upstream")?, far, None)?;
    let sealock = Sealock::open(&bench.folder("sealock")?, upstream.address, "1ms")?;
    let docker = DockerRegistry::proxy(&bench.folder("docker")?, upstream.address)?;
    for address in [sealock.address, docker.address] {
        let mut paths = tags.iter().map(Image::path).chain(blobs.iter().map(Blob::path));
        paths.try_for_each(|path| body::get(address, &path).map(drop))?;
    }
    let _ruin = leave(ruin, &mut upstream)?;

    let first = body::get(sealock.address, &tags[0].path())?;
    if !first.head.to_ascii_lowercase().contains("\r\nwarning: 299") {
        return Err(format!("stale content without a Warning:\n{}", first.head).into());
    }
    let others = ask(&sealock, &tags[1..], 1, Until::Once)?;
    let span = Duration::from_millis(bench.pick(500, 15_000));
    let many = ask(&sealock, tags, CONNECTIONS, Until::Elapsed(span))?;
    let patience = Duration::from_secs(bench.pick(1, 20));
    Ok(format!(
        "first {:.0} ms (target <2000), each of {} other tags p99 {:.2} ms, slowest {:.1} ms, then {:.0}/s p99 {:.2} ms (target <5), slowest {:.1} ms, docker-registry's first {}",
        ms(first.took),
        others.answers,
        ms(others.percentile(0.99)),
        ms(others.slowest()),
        many.per_second(),
        ms(many.percentile(0.99)),
        ms(many.slowest()),
        peer(&docker, &tags[0], patience),
    ))
}

fn ask(sealock: &Sealock, tags: &[Image], connections: usize, until: Until) -> Outcome<Tally> {
    let requests: Vec<Request> = tags
        .iter()
        .map(|tag| Request::new("GET", &tag.path(), sealock.address, tag.bytes.len() as u64))
        .collect::<Outcome<_>>()?;
    fire(sealock.address, &requests, connections, until)
}

/// How a peer fares is a figure, never a failure.
fn peer(docker: &DockerRegistry, tag: &Image, patience: Duration) -> String {
    let began = Instant::now();
    match body::get_within(docker.address, &tag.path(), patience) {
        Ok(got) => format!("{:.0} ms", ms(got.took)),
        Err(_) if began.elapsed() >= patience => format!("none in {} s", patience.as_secs()),
        Err(_) => "an error".to_owned(),
    }
}

/// Ruins upstream; the sockets keep it a ruin.
fn leave(ruin: Ruin, upstream: &mut Nginx) -> Outcome<Option<(TcpListener, Vec<TcpStream>)>> {
    match ruin {
        Ruin::Refused => upstream.running.stop().map(|()| None),
        Ruin::Frozen => upstream.running.freeze().map(|()| None),
        Ruin::Dropped => {
            upstream.running.stop()?;
            let listener = support::process::listen(upstream.address)?;
            rustix::net::listen(&listener, 0)?;
            let full = support::process::fill_backlog(upstream.address)?;
            Ok(Some((listener, full)))
        }
    }
}
