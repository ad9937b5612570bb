//! How long from the start of the program until `GET /v2/` is answered, and how much memory does it take when idle?

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use support::far::Far;
use support::nginx::Nginx;
use support::process::{Running, free_address};
use support::registry::DockerRegistry;
use support::report::{median, ms, rounds};
use support::sealock::{program, write_settings};
use support::{Bench, Outcome};

/// Until what a start needed once has been given back.
const SETTLE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    support::main("start", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let far = Far::new(bench.folder("far")?)?;
    let upstream = Nginx::upstream(&bench.folder("upstream")?, &far, None)?;
    let (mut resident_mib, mut anonymous_mib, mut docker_mib) = (Vec::new(), Vec::new(), Vec::new());
    let names = ["empty folder", "known folder", "nginx", "docker-registry"];
    let done = rounds("start to first answer in ms", &names, bench.pick(3, 21), |_, name| {
        let began = Instant::now();
        match name {
            "nginx" => {
                let folder = bench.folder("nginx")?;
                let _nginx = Nginx::files(&folder, &far)?;
                Ok(ms(began.elapsed()))
            }
            "docker-registry" => {
                let docker = DockerRegistry::proxy(&bench.folder("docker")?, upstream.address)?;
                let took_ms = ms(began.elapsed());
                std::thread::sleep(SETTLE);
                docker_mib.push(docker.running.memory_kib("VmRSS") as f64 / 1024.0);
                Ok(took_ms)
            }
            _ => {
                let folder = if name == "empty folder" { bench.folder("sealock")? } else { bench.root().join("known") };
                if !folder.exists() {
                    std::fs::create_dir(&folder)?;
                    start(&folder, upstream.address)?.0.stop()?;
                }
                let (sealock, took) = start(&folder, upstream.address)?;
                std::thread::sleep(SETTLE);
                resident_mib.push(sealock.memory_kib("VmRSS") as f64 / 1024.0);
                anonymous_mib.push(sealock.memory_kib("RssAnon") as f64 / 1024.0);
                Ok(ms(took))
            }
        }
    })?;
    Ok(format!(
        "first answer after {:.1} ms with an empty folder, {:.1} ms with a known one (target ≤50), nginx {:.1} ms, docker-registry {:.1} ms, ratio {:.2} of nginx | idle memory {:.1} MiB (target <20), of it anonymous {:.1} MiB, docker-registry {:.1} MiB",
        done.median("empty folder"),
        done.median("known folder"),
        done.median("nginx"),
        done.median("docker-registry"),
        done.ratio("empty folder", "nginx"),
        median(resident_mib),
        median(anonymous_mib),
        median(docker_mib),
    ))
}

/// Straight from this process, so that nothing but the program is timed.
fn start(folder: &Path, upstream: SocketAddr) -> Outcome<(Running, Duration)> {
    let settings = write_settings(folder, upstream, "1h")?;
    let address = free_address()?;
    let mut command = Command::new(program());
    command.arg("-c").arg(settings).args(["serve", "--listen", &address.to_string()]);
    let began = Instant::now();
    let mut sealock = Running::start("sealock", &mut command, folder)?;
    sealock.ready(address)?;
    Ok((sealock, began.elapsed()))
}
