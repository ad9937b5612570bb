//! How fast is a kept 512 MiB blob served over TLS 1.3, to 1 curl and to 16 by HTTP/1.1 and to 1 by HTTP/2, and how many
//! new connections a second are taken, beside nginx with the same certificate?
//!
//! Each load as curl negotiates it with each server, then with both held to the same cipher.

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
use support::tls::Curl;
use support::{Bench, Outcome, body, report, tls};

const CONTESTANTS: [&str; 2] = ["sealock", "nginx"];
/// `None` is what curl and the server agree on by themselves.
const CIPHERS: [Option<&str>; 3] = [None, Some("TLS_AES_128_GCM_SHA256"), Some("TLS_AES_256_GCM_SHA384")];

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
    for cipher in CIPHERS {
        let how = |http| Curl { http, cipher };
        let (ciphers, peers) = (tls::negotiated(ours, how("1.1"), &ca)?, tls::negotiated(theirs, how("1.1"), &ca)?);
        figures.push(match cipher {
            Some(cipher) if [&ciphers, &peers].iter().all(|agreed| *agreed == cipher) => format!("both {cipher}"),
            Some(cipher) => return Err(format!("wanted {cipher}, got {ciphers}, and {peers} of nginx").into()),
            None => format!("curl's default, which is {ciphers}, {peers} of nginx"),
        });
        let count = if cipher.is_none() { bench.pick(2, 7) } else { bench.pick(1, 3) };
        for (clients, http, target) in [(1, "1.1", 1.15), (16, "1.1", 1.25), (1, "2", 0.95)] {
            let mut spent = Spent::default();
            let load = format!("{clients} x {} by HTTP/{http}", report::size(blob.size));
            let what = format!("{load}, {}, in MiB/s", cipher.unwrap_or("curl's default"));
            let done = rounds(&what, &CONTESTANTS, count, |_, name| {
                let (address, running) = contestant(name);
                let before_s = running.cpu_s();
                let took = tls::crowd(address, &blob, clients, how(http), &ca)?;
                let bytes = blob.size * clients as u64;
                spent.add(name, running.cpu_s() - before_s, bytes as f64 / f64::from(1 << 30));
                Ok(mib_per_s(bytes, took))
            })?;
            spent.tell(&what, "GiB in ms", 1e3);
            figures.push(format!(
                "{load}: {:.0} MiB/s, nginx {:.0}, ratio {:.2} (target ≥{target})",
                done.median("sealock"),
                done.median("nginx"),
                done.ratio("sealock", "nginx"),
            ));
        }
    }
    let span = Duration::from_millis(bench.pick(200, 2_000));
    for (kind, what) in [(HandshakeKind::Full, "new"), (HandshakeKind::Resumed, "resumed")] {
        let mut spent = Spent::default();
        let done = rounds(&format!("{what} connections/s"), &CONTESTANTS, bench.pick(2, 7), |_, name| {
            let (address, running) = contestant(name);
            let before_s = running.cpu_s();
            let tally = tls::connections(address, &ca, 4, kind, span)?;
            spent.add(name, running.cpu_s() - before_s, tally.answers as f64);
            Ok(tally.per_second())
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
