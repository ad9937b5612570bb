//! How fast is a kept 512 MiB blob served over plain HTTP, to 1 client and to 16, beside nginx's `sendfile` and
//! docker-registry? And how much anonymous memory does it take, also for a blob four times as large?

#[path = "support/mod.rs"]
mod support;

use std::process::ExitCode;

use support::far::{Blob, Far};
use support::nginx::Nginx;
use support::process::Watch;
use support::registry::DockerRegistry;
use support::report::{Spent, mib_per_s, rounds};
use support::sealock::Sealock;
use support::{Bench, Outcome, body, report};

const CONTESTANTS: [&str; 3] = ["sealock", "nginx", "docker-registry"];

fn main() -> ExitCode {
    support::main("kept_blob", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let far = Far::new(bench.folder("far")?)?;
    let blob = far.add_blob(1, bench.pick(8, 512) << 20)?;
    let larger = far.add_blob(2, 4 * blob.size)?;
    let mut upstream = Nginx::upstream(&bench.folder("upstream")?, &far, None)?;
    let nginx = Nginx::files(&bench.folder("nginx")?, &far)?;
    let docker = DockerRegistry::proxy(&bench.folder("docker")?, upstream.address)?;
    let sealock = Sealock::open(&bench.folder("sealock")?, upstream.address, "1h")?;

    let contestant = |name: &str| match name {
        "sealock" => (sealock.address, &sealock.running),
        "nginx" => (nginx.address, &nginx.running),
        _ => (docker.address, &docker.running),
    };
    fill(&sealock, &docker, &blob, &larger)?;
    sealock.close_gate()?;
    upstream.running.stop()?;
    for name in CONTESTANTS {
        body::verify(contestant(name).0, &blob)?;
    }

    let watch = Watch::over(&sealock.running);
    let mut figures = Vec::new();
    for (clients, target) in [(1, 1.2), (16, 1.3)] {
        let mut spent = Spent::default();
        let what = format!("{clients} x {} in MiB/s", report::size(blob.size));
        let done = rounds(&what, &CONTESTANTS, bench.pick(2, 7), |_, name| {
            let (address, running) = contestant(name);
            let before_s = running.cpu_s();
            let crowd = body::crowd(address, &blob, clients).unharmed()?;
            spent.add(name, running.cpu_s() - before_s, crowd.bytes as f64 / f64::from(1 << 30));
            Ok(mib_per_s(crowd.bytes, crowd.took))
        })?;
        spent.tell(&what, "GiB in ms", 1e3);
        figures.push(format!(
            "{clients} x {}: {:.0} MiB/s, nginx {:.0}, docker-registry {:.0}, ratio {:.2} of nginx (target ≥{target}), {:.2} of docker-registry",
            report::size(blob.size),
            done.median("sealock"),
            done.median("nginx"),
            done.median("docker-registry"),
            done.ratio("sealock", "nginx"),
            done.ratio("sealock", "docker-registry"),
        ));
    }
    figures.push(format!("RssAnon {:.1} MiB (target <64)", watch.highest_mib()));
    drop(watch);

    let watch = Watch::over(&sealock.running);
    for clients in [1, 4] {
        body::crowd(sealock.address, &larger, clients).unharmed()?;
    }
    figures.push(format!("with {} {:.1} MiB (target: no larger)", report::size(larger.size), watch.highest_mib()));
    Ok(figures.join(" | "))
}

/// Through the proxies, so that both serve what they fetched themselves.
fn fill(sealock: &Sealock, docker: &DockerRegistry, blob: &Blob, larger: &Blob) -> Outcome {
    body::verify(sealock.address, blob)?;
    body::verify(sealock.address, larger)?;
    body::get(docker.address, &blob.path())?;
    docker.wait_for(blob)
}
