//! How long does a collection of 100,000 blobs take, and how much longer do pulls of what is kept take meanwhile?

#[path = "support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::far::{Blob, Far, REPOSITORY};
use support::process::{free_address, settle};
use support::push::Pusher;
use support::report::ms;
use support::sealock::Sealock;
use support::volley::{Request, Tally, Until, fire};
use support::{Bench, Outcome};

/// Outside every route: this site's own.
const OURS: &str = "team/app";
/// Clients that pull, and clients that push what is to be collected.
const PULLING: usize = 4;
const PUSHING: usize = 16;
const SMALL: u64 = 4096;
/// How long a volley lasts while the collection's end is waited for.
const SLICE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    support::main("collect", run)
}

fn run(bench: &Bench) -> Outcome<String> {
    let mut far = Far::new(bench.folder("far")?)?;
    let sealock = Sealock::open(&bench.folder("sealock")?, free_address()?, "1h")?;
    let pulls = keep_image(&mut far, &sealock)?;
    let count = bench.pick(200, 100_000);
    push_garbage(&sealock, count)?;
    settle();

    let quiet = fire(sealock.address, &pulls, PULLING, Until::Elapsed(Duration::from_millis(bench.pick(200, 5_000))))?;
    let (took, beside) = collect(&sealock, &pulls)?;
    let (quiet_ms, beside_ms) = (ms(quiet.percentile(0.99)), ms(beside.percentile(0.99)));
    Ok(format!(
        "{count} blobs in {:.1} s (target <60); {PULLING} clients' pulls beside it: p99 {beside_ms:.2} ms, quiet {quiet_ms:.2} ms, \
         ratio {:.2} (target ≤2), slowest {:.1} ms, {:.0} per second, quiet {:.0}",
        took.as_secs_f64(),
        beside_ms / quiet_ms,
        ms(beside.slowest()),
        beside.per_second(),
        quiet.per_second(),
    ))
}

/// An image with a tag; returns pulls of its manifest and of its small blob.
fn keep_image(far: &mut Far, sealock: &Sealock) -> Outcome<Vec<Request>> {
    let blob: Blob = far.add_blob(1, SMALL)?;
    let image = far.add_image("kept", std::slice::from_ref(&blob), 1024)?;
    let file = far.root().join("v2").join(REPOSITORY).join("blobs").join(&blob.digest);
    let mut pusher = Pusher::new(sealock.address)?;
    pusher.blob(OURS, &file, blob.size, &blob.digest)?;
    pusher.manifest(OURS, "kept", &image.bytes)?;
    let paths = [
        (format!("/v2/{OURS}/manifests/kept"), image.bytes.len() as u64),
        (format!("/v2/{OURS}/blobs/{}", blob.digest), blob.size),
    ];
    paths.iter().map(|(path, length)| Request::new("GET", path, sealock.address, *length)).collect()
}

/// Pushes blobs that nothing will name.
fn push_garbage(sealock: &Sealock, count: usize) -> Outcome {
    let address = sealock.address;
    let push = |first: usize| {
        let push = |mut pusher: Pusher| {
            (first..count)
                .step_by(PUSHING)
                .try_for_each(|number| pusher.small_blob(OURS, format!("garbage {number}").as_bytes()))
        };
        Pusher::new(address).and_then(push).err().map(|why| why.to_string())
    };
    let push = &push;
    let failed: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PUSHING).map(|first| scope.spawn(move || push(first))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap_or(Some("panicked".to_owned()))).collect()
    });
    failed.first().map_or(Ok(()), |first| Err(format!("{} pushers failed; the first: {first}", failed.len()).into()))
}

/// Runs `sealock gc`, and pulls until it has ended.
fn collect(sealock: &Sealock, pulls: &[Request]) -> Outcome<(Duration, Tally)> {
    std::thread::scope(|scope| {
        let began = Instant::now();
        let collecting =
            scope.spawn(move || sealock.command(&["gc"]).map(|()| began.elapsed()).map_err(|why| why.to_string()));
        let mut beside = fire(sealock.address, pulls, PULLING, Until::Elapsed(SLICE))?;
        while !collecting.is_finished() {
            beside.add(fire(sealock.address, pulls, PULLING, Until::Elapsed(SLICE))?);
        }
        let took = collecting.join().map_err(|_| "the collection's thread panicked")??;
        Ok((took, beside))
    })
}
