//! Do 400 connections of each kind that stalls on purpose, at default settings, keep honest clients waiting, and how many
//! of them are held after 45 s?

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustls::HandshakeKind;
use support::far::Far;
use support::loris::{self, Kind, Stalled, Target, UNREAD};
use support::nginx::Nginx;
use support::process::free_address;
use support::report::{ms, rounds};
use support::sealock::Sealock;
use support::volley::{Request, Until, fire};
use support::{Bench, Outcome, body, tls};

/// Honest clients: few, so that they wait for the server and not for one another.
const CONNECTIONS: usize = 4;
const HANDSHAKES: usize = 2;
const HELD_MAX: Duration = Duration::from_secs(45);
/// When those are counted that do not read: their limit is a minute.
const UNREAD_MAX: Duration = Duration::from_secs(70);

/// What honest clients ask.
struct Honest<'a> {
    server: &'a Sealock,
    manifest: [Request; 1],
    tls: SocketAddr,
    ca: &'a Path,
    span: Duration,
}

fn main() -> ExitCode {
    support::main("slow_loris", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let mut far = Far::new(bench.folder("far")?)?;
    let blobs = [far.add_blob(1, 2048)?, far.add_blob(2, 16 << 20)?];
    let image = far.add_image("latest", &blobs, 1024)?;
    let (certs, tls) = (bench.root().join("certs"), free_address()?);
    let upstream = Nginx::upstream(&bench.folder("upstream")?, &far, None)?;
    let server = Sealock::open_tls(&bench.folder("sealock")?, upstream.address, tls, &certs)?;
    for path in [image.path(), blobs[0].path(), blobs[1].path()] {
        body::get(server.address, &path)?;
    }
    server.close_gate()?;

    let ca = certs.join("ca.crt");
    let kinds = loris::kinds(&Target { plain: server.address, tls, ca: &ca, blob: &blobs[1] })?;
    let kinds: Vec<&Kind> = kinds.iter().collect();
    let manifest = [Request::new("GET", &image.path(), server.address, image.bytes.len() as u64)?];
    let honest =
        Honest { server: &server, manifest, tls, ca: &ca, span: Duration::from_millis(bench.pick(200, 2_000)) };
    let count = bench.pick(40, 400);
    let mut figures =
        vec![format!("{count} connections of each kind, p99 of honest clients beside them against alone")];
    if !bench.small {
        for kind in &kinds {
            figures.push(beside(&honest, kind.name, &[*kind], count, 3)?);
        }
    }
    // So few that all of them hang before the first is ended.
    let share = bench.pick(count, 1000 / kinds.len());
    figures.push(beside(&honest, &format!("{share} of each at once"), &kinds, share, bench.pick(1, 3))?);
    figures.push(held(bench, &server, &kinds, share)?);
    Ok(figures.join(" | "))
}

/// How late the slowest in a hundred is while `count` of each of `kinds` hang, beside the same without them.
fn beside(honest: &Honest<'_>, what: &str, kinds: &[&Kind], count: usize, times: usize) -> Outcome<String> {
    let measure = |unit: &str, p99: &dyn Fn() -> Outcome<Duration>| {
        let done = rounds(&format!("{what}, p99 of {unit} in ms"), &["alone", "beside"], times, |_, name| {
            let stalled = match name {
                "beside" => Some(Stalled::open(kinds, count, &honest.server.running)?),
                _ => None,
            };
            let late = p99()?;
            drop(stalled);
            // The server is done with them, too, before the next.
            gone(honest.server, kinds)?;
            Ok(ms(late))
        })?;
        let (alone, beside, ratio) = (done.median("alone"), done.median("beside"), done.ratio("beside", "alone"));
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(format!(
            "{unit} {beside:.2} / {alone:.2} ms, ratio {ratio:.2}"
        ))
    };
    let manifests = measure("manifests", &|| {
        let tally = fire(honest.server.address, &honest.manifest, CONNECTIONS, Until::Elapsed(honest.span))?;
        Ok(tally.percentile(0.99))
    })?;
    let handshakes = measure("new TLS", &|| {
        let tally = tls::connections(honest.tls, honest.ca, HANDSHAKES, HandshakeKind::Full, honest.span)?;
        Ok(tally.percentile(0.99))
    })?;
    Ok(format!("{what}: {manifests}, {handshakes}"))
}

fn gone(server: &Sealock, kinds: &[&Kind]) -> Outcome {
    let until = Instant::now() + HELD_MAX;
    for kind in kinds {
        while loris::held(&server.running, kind)? > 0 {
            if Instant::now() > until {
                return Err(format!("connections of the kind `{}` are held after their clients left", kind.name).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Holds `count` of each kind open until the server has ended them: how many it still has after 45 s, and when it had none.
fn held(bench: &Bench, server: &Sealock, kinds: &[&Kind], count: usize) -> Outcome<String> {
    let stalled = Stalled::open(kinds, count, &server.running)?;
    let mut ends: Vec<Option<Duration>> = vec![None; kinds.len()];
    // Those that do not read have longer, and a small run does not wait for them.
    let watched = |kind: &Kind| kind.name != UNREAD || !bench.small;
    let all_ended =
        |ends: &[Option<Duration>]| kinds.iter().zip(ends).all(|(kind, end)| end.is_some() || !watched(kind));
    let mut late = Vec::new();
    let mut is_counted = false;
    while stalled.began.elapsed() < UNREAD_MAX && !all_ended(&ends) {
        let at = stalled.began.elapsed();
        let is_due = !is_counted && at >= HELD_MAX;
        for (kind, end) in kinds.iter().zip(&mut ends) {
            let held = loris::held(&server.running, kind)?;
            if held == 0 {
                end.get_or_insert(at);
            } else if is_due {
                late.push((*kind, held));
            }
        }
        is_counted |= is_due;
        std::thread::sleep(Duration::from_millis(200));
    }
    let (by_design, late): (Vec<_>, Vec<_>) = late.into_iter().partition(|(kind, _)| kind.name == UNREAD);
    if let Some((kind, held)) = late.first() {
        return Err(format!("{held} connections of the kind `{}` are held after 45 s", kind.name).into());
    }
    let ends = kinds.iter().zip(ends).map(|(kind, end)| {
        let end = end.map_or_else(|| "not awaited".to_owned(), |end| format!("gone after {:.1} s", end.as_secs_f64()));
        format!("{} {end} (limit {})", kind.name, kind.limit)
    });
    let ends = ends.collect::<Vec<_>>().join(", ");
    let unread = by_design.first().map_or(String::new(), |(_, held)| format!(", and {held} whose answer is not read"));
    Ok(format!("held after 45 s: 0 (target 0){unread}: {ends}"))
}
