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

use super::memory::Subject;
use super::{FetchError, Pull};
use crate::names::{Repository, Source, Target};
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
    waiting: Mutex<HashSet<(Repository, Digest)>>,
    under_way: watch::Sender<usize>,
}

pub(super) struct Job {
    target: Target,
    /// As it was asked for.
    reference: Reference,
    digest: Digest,
}

impl Job {
    fn key(&self) -> (Repository, Digest) {
        (self.target.repository.clone(), self.digest)
    }
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
        let key = job.key();
        if !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return;
        }
        self.under_way.send_modify(|jobs| *jobs += 1);
        if self.jobs.try_send(job).is_err() {
            debug!(digest = %key.1, "too much waits to be prefetched; {} is left to the next pull", key.1);
            self.leave(&key);
        }
    }

    fn leave(&self, key: &(Repository, Digest)) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
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
                let guard = Leaving { pull: &pull, key: job.key() };
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
    key: (Repository, Digest),
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.pull.0.prefetch.leave(&self.key);
    }
}

impl Pull {
    /// Has the rest of what `kept` needs fetched, if there is an upstream and the gate is open. When upstream was
    /// `asked` just now, also what may have come since: platforms, referrers, signatures; about once an hour.
    pub(super) fn complete_later(&self, target: &Target, reference: &Reference, kept: &KeptManifest, asked: bool) {
        let (Some(source), digest) = (&target.source, kept.manifest.digest) else { return };
        let survey = asked && source.policy.prefetch && !self.0.memory.is_surveyed(&target.repository, &digest);
        if (kept.complete && !survey) || self.0.gate.refusal(&source.upstream).is_some() {
            return;
        }
        self.0.prefetch.enter(Job { target: target.clone(), reference: reference.clone(), digest });
    }

    /// Goes through a manifest and all that belongs to it; what fails is left out and tried again by a later pull.
    async fn complete(&self, job: Job) {
        let Some(source) = job.target.source.clone() else { return };
        let (mut queue, mut seen) = (VecDeque::from([Reference::Digest(job.digest)]), HashSet::new());
        let mut whole = true;
        while let Some(reference) = queue.pop_front() {
            if seen.len() >= MANIFESTS_PER_JOB_MAX || !seen.insert(reference.clone()) {
                continue;
            }
            let known = match self.0.memory.refused(&job.target.repository, &Subject::Manifest(reference.clone())) {
                Some(why) => Err(why),
                None => self.fetch_manifest(&job.target, &source, reference, false).await,
            };
            let needs = match known {
                Ok(kept) => self.complete_one(&job.target, &source, &kept.manifest, &mut queue).await,
                Err(why) => Err(why),
            };
            match needs {
                Ok(()) => {}
                // Most images have no signature. A layer that upstream has not is another matter.
                Err(FetchError::Upstream(UpstreamError::NotFound { .. })) if seen.len() > 1 => {}
                Err(FetchError::Upstream(UpstreamError::Refused(_))) => return,
                Err(why) => {
                    whole = false;
                    warn!(repository = %job.target.repository, "could not complete {}: {why}", job.target.repository);
                }
            }
        }
        if whole {
            self.0.memory.was_surveyed(&job.target.repository, &job.digest);
            self.cross_off(&job.target.repository, &job.reference).await;
        }
    }

    /// Fetches the blobs of one manifest, and queues the manifests that belong to it. One that fails does not keep the
    /// others from coming; the first failure is told.
    async fn complete_one(
        &self,
        target: &Target,
        source: &Source,
        manifest: &Manifest,
        queue: &mut VecDeque<Reference>,
    ) -> Result<(), FetchError> {
        let mut outcome = Ok(());
        match &manifest.content {
            Content::Image { config, layers } => {
                let layers = layers.iter().filter(|_| source.policy.prefetch);
                for part in [config.as_ref()].into_iter().chain(layers) {
                    let fetched = self.fetch_part(target, source, part).await;
                    outcome = outcome.and(fetched);
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
            match listed {
                Ok(listed) => queue.extend(listed.into_iter().map(|referrer| Reference::Digest(referrer.digest))),
                Err(FetchError::Upstream(UpstreamError::NotFound { .. })) => {}
                Err(why) => outcome = outcome.and(Err(why)),
            }
            if manifest.subject.is_none() {
                queue.extend(Self::cosign_tags(&manifest.digest));
            }
        }
        outcome
    }

    async fn fetch_part(&self, target: &Target, source: &Source, part: &Descriptor) -> Result<(), FetchError> {
        if part.foreign || self.0.store.blob(&target.repository, &part.digest).await?.is_some() {
            return Ok(());
        }
        self.fetch_blob(&target.repository, source, &part.digest).await
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
