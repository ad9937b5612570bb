//! Fetching in the background what a pulled manifest needs and its client did not ask for.
//!
//! Trivy never fetches the config blob, docker skips layers that it has; offline, another client needs them. With
//! `prefetch` on, the config, the layers, the configured platforms, the referrers and cosign's tags follow; with it
//! off, only the config, which is small. Bounded: [`JOBS_MAX`] wait, [`WORKERS`] run, the rest is left to the next pull.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{FetchError, Pull};
use crate::names::{Source, Target};
use crate::oci::{Content, Descriptor, Digest, Manifest, MediaType, Reference};
use crate::store::KeptManifest;
use crate::upstream::{Patience, UpstreamError};

/// Manifests that wait to be completed.
const JOBS_MAX: usize = 1024;
/// Manifests that are completed at once.
const WORKERS: usize = 4;
/// Manifests that one pull may lead to: an index, its platforms, what refers to them.
const MANIFESTS_PER_JOB_MAX: usize = 256;

/// The queue, and what is in it.
pub(super) struct Prefetch {
    jobs: mpsc::Sender<Job>,
    /// Queued or running, so that a manifest that many clients pull is completed once.
    waiting: Mutex<HashSet<Digest>>,
    under_way: watch::Sender<usize>,
}

pub(super) struct Job {
    target: Target,
    digest: Digest,
}

impl Prefetch {
    pub(super) fn new() -> (Self, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        (Self { jobs, waiting: Mutex::default(), under_way: watch::Sender::new(0) }, queue)
    }

    pub(super) fn under_way(&self) -> usize {
        *self.under_way.borrow()
    }

    pub(super) async fn settled(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.under_way.subscribe().wait_for(|jobs| *jobs == 0).await;
    }

    fn enter(&self, job: Job) {
        let digest = job.digest;
        if !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(digest) {
            return;
        }
        self.under_way.send_modify(|jobs| *jobs += 1);
        if self.jobs.try_send(job).is_err() {
            debug!(%digest, "too much waits to be prefetched; {digest} is left to the next pull");
            self.leave(&digest);
        }
    }

    fn leave(&self, digest: &Digest) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        self.under_way.send_modify(|jobs| *jobs -= 1);
    }
}

/// Starts the workers; they end at `stop`.
pub(super) fn start(pull: &Pull, queue: mpsc::Receiver<Job>, stop: CancellationToken) {
    let queue = Arc::new(tokio::sync::Mutex::new(queue));
    for _ in 0..WORKERS {
        let (pull, queue, stop) = (pull.clone(), queue.clone(), stop.clone());
        pull.0.tasks.clone().spawn(async move {
            let next = async || queue.lock().await.recv().await;
            while let Some(Some(job)) = stop.run_until_cancelled(next()).await {
                let digest = job.digest;
                let guard = Leaving { pull: &pull, digest };
                if stop.run_until_cancelled(pull.complete(job)).await.is_none() {
                    return;
                }
                drop(guard);
            }
        });
    }
}

/// Takes a job off the books also when it panics or is stopped.
struct Leaving<'a> {
    pull: &'a Pull,
    digest: Digest,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.pull.0.prefetch.leave(&self.digest);
    }
}

impl Pull {
    /// Has the rest of what `kept` needs fetched, if there is an upstream and the gate is open. What is complete has
    /// that rest, unless it is `new`: then its referrers and its other platforms are looked for once.
    pub(super) fn complete_later(&self, target: &Target, kept: &KeptManifest, new: bool) {
        let Some(source) = &target.source else { return };
        let nothing_to_do = kept.complete && !(new && source.policy.prefetch);
        if nothing_to_do || self.0.gate.refusal(&source.upstream).is_some() {
            return;
        }
        self.0.prefetch.enter(Job { target: target.clone(), digest: kept.manifest.digest });
    }

    async fn complete(&self, job: Job) {
        let Some(source) = job.target.source.clone() else { return };
        let (mut queue, mut seen) = (VecDeque::from([Reference::Digest(job.digest)]), HashSet::new());
        while let Some(reference) = queue.pop_front() {
            if seen.len() >= MANIFESTS_PER_JOB_MAX || !seen.insert(reference.clone()) {
                continue;
            }
            let fetched = match &reference {
                Reference::Digest(digest) => self.fetch_digest(&job.target, &source, digest).await,
                Reference::Tag(_) => self.fetch_manifest(&job.target, &source, reference.clone()).await,
            };
            let needs = match fetched {
                Ok(kept) => self.complete_one(&job.target, &source, &kept.manifest, &mut queue).await,
                Err(why) => Err(why),
            };
            match needs {
                Ok(()) | Err(FetchError::Upstream(UpstreamError::NotFound { .. })) => {}
                Err(FetchError::Upstream(UpstreamError::Refused(_))) => return,
                Err(why) => {
                    warn!(repository = %job.target.repository, "could not complete {}: {why}", job.target.repository);
                }
            }
        }
    }

    /// Fetches the blobs of one manifest, and queues the manifests that belong to it.
    async fn complete_one(
        &self,
        target: &Target,
        source: &Source,
        manifest: &Manifest,
        queue: &mut VecDeque<Reference>,
    ) -> Result<(), FetchError> {
        match &manifest.content {
            Content::Image { config, layers } => {
                self.fetch_part(target, source, config).await?;
                for layer in layers.iter().filter(|_| source.policy.prefetch) {
                    self.fetch_part(target, source, layer).await?;
                }
            }
            Content::Index { manifests } => {
                let wanted = manifests.iter().filter(|child| is_wanted(source, manifest, child));
                queue.extend(wanted.map(|child| Reference::Digest(child.digest)));
            }
            Content::Opaque => {}
        }
        if source.policy.prefetch {
            let listed = self.upstream_referrers(source, &target.repository, &manifest.digest, Patience::Full).await;
            let listed = listed.inspect_err(|why| debug!("no referrers of {}: {why}", manifest.digest));
            queue.extend(listed.into_iter().flatten().map(|referrer| Reference::Digest(referrer.digest)));
            if manifest.subject.is_none() {
                queue.extend(Self::cosign_tags(&manifest.digest));
            }
        }
        Ok(())
    }

    async fn fetch_part(&self, target: &Target, source: &Source, part: &Descriptor) -> Result<(), FetchError> {
        if part.foreign || self.0.store.blob(&target.repository, &part.digest).await?.is_some() {
            return Ok(());
        }
        self.follow(&target.repository, source, &part.digest).await?.kept().await.map(drop)
    }
}

/// Whether a child of an index is fetched unasked: the configured platforms, and what is attached to them; every
/// child of an index that is no set of platforms.
fn is_wanted(source: &Source, index: &Manifest, child: &Descriptor) -> bool {
    let manifest_type = MediaType::parse(&child.media_type).is_some_and(|named| named.is_image() || named.is_index());
    let by_platform = match &child.platform {
        Some(platform) => source.policy.platforms.iter().any(|wanted| platform.serves(wanted)),
        None => true,
    };
    let attached_to = child.annotations.get("vnd.docker.reference.digest").map(String::as_str);
    let attached = attached_to.is_some_and(|digest| {
        index.parts().any(|other| {
            other.digest.to_string() == digest
                && other.platform.as_ref().is_some_and(|p| source.policy.platforms.iter().any(|w| p.serves(w)))
        })
    });
    manifest_type && (by_platform || attached)
}
