//! How fast is a kept 512 MiB blob served over TLS 1.3, to 1 curl and to 16 by HTTP/1.1 and to 1 by HTTP/2, and how many
//! new connections a second are taken, beside nginx with the same certificate?

#[path = "support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use rustls::HandshakeKind;
use support::far::Far;
use support::nginx::Nginx;
use support::process::free_address;
use support::report::{Spent, mib_per_s, rounds};
use support::sealock::Sealock;
use support::{Bench, Outcome, body, report, tls};

const CONTESTANTS: [&str; 2] = ["sealock", "nginx"];

fn main() -> ExitCode {
    support::main("tls", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let far = Far::new(bench.folder("far")?)?;
    let blob = far.add_blob(1, bench.pick(8, 512) << 20)?;
    let (certs, ours, theirs) = (bench.root().join("certs"), free_address()?, free_address()?);
    let upstream = Nginx::upstream(&bench.folder("upstream")?, &far, None)?;
    let sealock = Sealock::open_tls(&bench.folder("sealock")?, upstream.address, ours, &certs)?;
    let nginx = Nginx::files_tls(&bench.folder("nginx")?, &far, theirs, &certs)?;
    let ca = certs.join("ca.crt");
    body::verify(sealock.address, &blob)?;
    sealock.close_gate()?;

    let contestant = |name: &str| match name {
        "sealock" => (ours, &sealock.running),
        _ => (theirs, &nginx.running),
    };
    let mut figures = Vec::new();
    for (clients, http, target) in [(1, "1.1", 1.15), (16, "1.1", 1.25), (1, "2", 0.95)] {
        let mut spent = Spent::default();
        let what = format!("{clients} x {} by HTTP/{http} in MiB/s", report::size(blob.size));
        let done = rounds(&what, &CONTESTANTS, bench.pick(2, 7), |_, name| {
            let (address, running) = contestant(name);
            let before_s = running.cpu_s();
            let took = tls::crowd(address, &blob, clients, http, &ca)?;
            let bytes = blob.size * clients as u64;
            spent.add(name, running.cpu_s() - before_s, bytes as f64 / f64::from(1 << 30));
            Ok(mib_per_s(bytes, took))
        })?;
        spent.tell(&what, "GiB in ms", 1e3);
        figures.push(format!(
            "{clients} x {} by HTTP/{http}: {:.0} MiB/s, nginx {:.0}, ratio {:.2} (target ≥{target})",
            report::size(blob.size),
            done.median("sealock"),
            done.median("nginx"),
            done.ratio("sealock", "nginx"),
        ));
    }
    let span = Duration::from_millis(bench.pick(200, 2_000));
    for (kind, what) in [(HandshakeKind::Full, "new"), (HandshakeKind::Resumed, "resumed")] {
        let mut spent = Spent::default();
        let done = rounds(&format!("{what} connections/s"), &CONTESTANTS, bench.pick(2, 7), |_, name| {
            let (address, running) = contestant(name);
            let before_s = running.cpu_s();
            let each_s = tls::connections_per_s(address, &ca, 4, kind, span)?;
            spent.add(name, running.cpu_s() - before_s, each_s * span.as_secs_f64());
            Ok(each_s)
        })?;
        spent.tell(what, "connection in µs", 1e6);
        figures.push(format!(
            "{what} connections: {:.0}/s, nginx {:.0}, ratio {:.2} (target ≥0.8)",
            done.median("sealock"),
            done.median("nginx"),
            done.ratio("sealock", "nginx"),
        ));
    }
    Ok(figures.join(" | "))
}
