//! How fast is a 512 MiB blob pushed, beside docker-registry, although it is fsynced before it is acknowledged? How long
//! takes a page of 10,000 tags, and a tag's move among them? How much memory do 16 uploads at once take?

#[path = "support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use support::far::{Blob, Far, REPOSITORY};
use support::process::{Watch, settle};
use support::push::Pusher;
use support::registry::DockerRegistry;
use support::report::{mib_per_s, ms, rounds};
use support::sealock::Sealock;
use support::volley::{self, Request, Until};
use support::{Bench, Outcome, body, report};

/// Outside every route: this site's own.
const OURS: &str = "team/app";

fn main() -> ExitCode {
    support::main("push", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let mut far = Far::new(bench.folder("far")?)?;
    let figures = [throughput(bench, &far)?, many_tags(bench, &mut far)?, many_uploads(bench, &far)?];
    Ok(figures.join(" | "))
}

fn throughput(bench: &Bench, far: &Far) -> Outcome<String> {
    let blob = far.add_blob(1, bench.pick(8, 512) << 20)?;
    let file = far.root().join("v2").join(REPOSITORY).join("blobs").join(&blob.digest);
    let what = format!("push of {} in MiB/s", report::size(blob.size));
    let done = rounds(&what, &["sealock", "docker-registry"], bench.pick(2, 7), |_, name| {
        settle();
        let push = |address| {
            let began = std::time::Instant::now();
            Pusher::new(address)?.blob(OURS, &file, blob.size, &blob.digest)?;
            Ok(mib_per_s(blob.size, began.elapsed()))
        };
        match name {
            "sealock" => push(alone(bench)?.address),
            _ => push(DockerRegistry::plain(&bench.folder("docker")?)?.address),
        }
    })?;
    Ok(format!(
        "{what}: {:.0}, docker-registry {:.0}, ratio {:.2} (target ≥0.9)",
        done.median("sealock"),
        done.median("docker-registry"),
        done.ratio("sealock", "docker-registry"),
    ))
}

fn many_tags(bench: &Bench, far: &mut Far) -> Outcome<String> {
    let sealock = alone(bench)?;
    let mut pusher = Pusher::new(sealock.address)?;
    let config = far.add_blob(2, 512)?;
    let file = far.root().join("v2").join(REPOSITORY).join("blobs").join(&config.digest);
    pusher.blob(OURS, &file, config.size, &config.digest)?;
    let (images, tags) = (bench.pick(10, 1_000), bench.pick(100, 10_000));
    let mut manifests = Vec::new();
    for number in 0..images {
        manifests.push(far.add_image(&format!("image-{number}"), std::slice::from_ref(&config), 1024)?.bytes);
    }
    for number in 0..tags {
        pusher.manifest(OURS, &format!("tag-{number:05}"), &manifests[number % images])?;
    }
    let mut moves: Vec<Duration> = (0..bench.pick(50, 2_000))
        .map(|number| pusher.manifest(OURS, &format!("tag-{:05}", number % tags), &manifests[(number + 1) % images]))
        .collect::<Outcome<_>>()?;
    moves.sort_unstable();
    let path = format!("/v2/{OURS}/tags/list?n=1000&last=tag-{:05}", tags / 2);
    let length = body::get(sealock.address, &path)?.bytes;
    let page = Request::new("GET", &path, sealock.address, length)?;
    let pages =
        volley::fire(sealock.address, &[page], 1, Until::Elapsed(Duration::from_millis(bench.pick(200, 3_000))))?;
    Ok(format!(
        "{tags} tags of {images} manifests: a page of 1000 p99 {:.2} ms (target <5), a tag's move p99 {:.2} ms (target <5), median {:.2} ms",
        ms(pages.percentile(0.99)),
        ms(moves[(moves.len() * 99).div_ceil(100) - 1]),
        ms(moves[moves.len() / 2]),
    ))
}

fn many_uploads(bench: &Bench, far: &Far) -> Outcome<String> {
    let size = bench.pick(4, 256) << 20;
    let blobs: Vec<Blob> = (0..16).map(|seed| far.add_blob(50 + seed, size)).collect::<Outcome<_>>()?;
    settle();
    let sealock = alone(bench)?;
    let watch = Watch::over(&sealock.running);
    let (address, root) = (sealock.address, far.root().join("v2").join(REPOSITORY).join("blobs"));
    let push = |blob: &Blob| {
        let push = |mut pusher: Pusher| pusher.blob(OURS, &root.join(&blob.digest), blob.size, &blob.digest);
        Pusher::new(address).and_then(push).err().map(|why| why.to_string())
    };
    let push = &push;
    let failed: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = blobs.iter().map(|blob| scope.spawn(move || push(blob))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap_or(Some("panicked".to_owned()))).collect()
    });
    match failed.first() {
        None => Ok(format!(
            "16 uploads of {} at once: RssAnon {:.1} MiB (target <128)",
            report::size(size),
            watch.highest_mib()
        )),
        Some(first) => Err(format!("{} uploads failed; the first: {first}", failed.len()).into()),
    }
}

/// An empty sealock; its one upstream is never asked.
fn alone(bench: &Bench) -> Outcome<Sealock> {
    Sealock::open(&bench.folder("sealock")?, support::process::free_address()?, "1h")
}
