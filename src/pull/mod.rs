//! A pull: kept first, else filled from upstream while the gate is open.
//!
//! ```text
//! manifest ── digest: kept means served ── tag: fresh::decide ── ask upstream (one flight per tag) ── keep, point the tag
//! blob     ── kept, or follow the one fill of its digest
//! ```
//! Knows no HTTP: what is found or missed is a value, and the server says it in statuses.

mod fill;
mod flights;
mod follow;
mod fresh;
mod heal;
mod lists;
mod memory;
mod miss;
mod passing;
mod prefetch;
mod recent;
mod referrers;
mod tags;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

pub use self::fill::{FILLS_MAX, FILLS_PER_UPSTREAM_MAX};
use self::fill::{Fills, Joined, Order};
use self::flights::Flights;
use self::follow::Following;
pub use self::follow::{HELD_BACK, Readable};
use self::lists::Lists;
pub use self::lists::TagPage;
use self::memory::{Memory, Subject};
pub use self::miss::{FetchError, Miss};
use self::passing::Passage;
pub use self::passing::Passing;
use self::prefetch::Prefetch;
pub use self::referrers::Referrers;
use crate::clock::Clock;
use crate::gate::{Gate, Refusal};
use crate::names::{OfflineMiss, Repository, Routes, Source, Target};
use crate::oci::{Digest, Reference};
use crate::store::{GarbageKind, KeptBlob, KeptManifest, Store};
use crate::upstream::{Upstream, UpstreamError};

/// Blobs up to this size are served only once they are kept, so that a wrong one is a clear error and not a broken body.
const WHOLE_FIRST_MAX: u64 = HELD_BACK;

/// How many fills that others ordered may fail under a client before it is told.
const FOREIGN_FAILURES_MAX: usize = 32;

/// Serves and fills. Cheap to clone.
#[derive(Clone)]
pub struct Pull(Arc<Inner>);

struct Inner {
    store: Store,
    gate: Gate,
    upstreams: HashMap<Arc<str>, Arc<Upstream>>,
    routes: Arc<Routes>,
    clock: Clock,
    fills: Fills,
    manifests: Flights<(Repository, Reference), Result<Arc<KeptManifest>, FetchError>>,
    memory: Memory,
    lists: Lists,
    prefetch: Prefetch,
    tasks: TaskTracker,
}

/// Who asks for what name.
#[derive(Clone, Debug)]
pub struct Ask {
    pub target: Target,
    pub client: IpAddr,
}

/// A manifest to serve.
#[derive(Clone, Debug)]
pub struct FoundManifest {
    pub kept: Arc<KeptManifest>,
    /// When upstream last confirmed the tag; `None` for what does not age (asked by digest, or not of an upstream).
    pub checked_at: Option<Timestamp>,
    /// What the `Warning` says, if it is stale.
    pub stale: Option<String>,
}

/// A blob to serve.
pub enum FoundBlob {
    Kept(KeptBlob),
    /// Its fill is under way, and upstream has answered.
    Filling(Tail),
    /// It passes through unkept, because the disk is full.
    Passing(Passing),
}

/// A client's place at a fill. It is left by dropping it; clones are the same place.
#[derive(Clone)]
pub struct Tail {
    following: Following,
    what: String,
    offline_miss: OfflineMiss,
}

impl Tail {
    /// The size, where upstream or a manifest states it.
    pub async fn size(&self) -> Result<Option<u64>, Miss> {
        self.following.size().await.map_err(|why| why.miss(self.what.clone(), self.offline_miss))
    }

    /// Waits until all of it is kept.
    pub async fn final_size(&self) -> Result<u64, Miss> {
        let kept = self.following.kept().await;
        kept.map(|blob| blob.size).map_err(|why| why.miss(self.what.clone(), self.offline_miss))
    }

    /// Waits until bytes past `offset` may be read. After an error, what was sent so far must not look complete.
    pub async fn readable(&self, offset: u64) -> Result<Readable, Miss> {
        self.following.readable(offset).await.map_err(|why| why.miss(self.what.clone(), self.offline_miss))
    }
}

impl Pull {
    /// `upstreams` by their keys in the settings. Background work runs until `stop`.
    pub fn new(
        store: Store,
        gate: Gate,
        upstreams: HashMap<Arc<str>, Arc<Upstream>>,
        routes: Arc<Routes>,
        clock: Clock,
        stop: CancellationToken,
    ) -> Self {
        let tasks = TaskTracker::new();
        let fills = Fills::new(store.clone(), tasks.clone(), stop.clone());
        let manifests = Flights::new(tasks.clone(), stop.clone());
        let (prefetch, jobs) = Prefetch::new();
        let memory = Memory::new(clock.clone());
        let lists = Lists::new();
        let inner = Inner { store, gate, upstreams, routes, clock, fills, manifests, memory, lists, prefetch, tasks };
        let pull = Self(Arc::new(inner));
        prefetch::start(&pull, jobs, stop.clone());
        heal::start(&pull, stop);
        pull
    }

    /// By tag or digest; fills while the gate is open.
    pub async fn manifest(&self, ask: &Ask, reference: &Reference) -> Result<FoundManifest, Miss> {
        let found = match reference {
            Reference::Tag(tag) => self.manifest_by_tag(ask, tag).await,
            Reference::Digest(digest) => self.manifest_by_digest(ask, digest).await,
        };
        self.ledger(ask, reference, found.as_ref().err()).await;
        found
    }

    /// Kept, or followed while it is filled; waits for upstream's first answer, so that its errors are the client's.
    pub async fn blob(&self, ask: &Ask, digest: &Digest) -> Result<FoundBlob, Miss> {
        let found = self.find_blob(ask, digest).await;
        self.ledger(ask, &Reference::Digest(*digest), found.as_ref().err()).await;
        found
    }

    /// Fills and fetches under way, prefetches waiting.
    pub fn under_way(&self) -> usize {
        self.0.fills.under_way() + self.0.prefetch.under_way()
    }

    /// Waits until nothing is fetched in the background any more.
    pub async fn settled(&self) {
        self.0.prefetch.settled().await;
    }

    /// Waits until every task has ended; for the time after `stop`.
    pub async fn ended(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    async fn manifest_by_digest(&self, ask: &Ask, digest: &Digest) -> Result<FoundManifest, Miss> {
        let (repository, reference) = (&ask.target.repository, Reference::Digest(*digest));
        let what = || what_manifest(ask, &reference);
        if let Some(kept) = self.0.store.manifest(repository, digest).await.map_err(|why| stored(what(), why))? {
            self.complete_later(&ask.target, &reference, &kept, false);
            return Ok(FoundManifest { kept, checked_at: None, stale: None });
        }
        let source = self.may_ask_anew(ask, GarbageKind::Manifest, digest, &what).await?;
        if let Some(why) = self.0.memory.refused(repository, &Subject::Manifest(reference.clone())) {
            return Err(why.miss(what(), source.policy.offline_miss));
        }
        let fetched = self.fetch_manifest(&ask.target, &source, reference.clone(), true).await;
        let kept = fetched.map_err(|why| why.miss(what(), source.policy.offline_miss))?;
        Ok(FoundManifest { kept, checked_at: None, stale: None })
    }

    async fn find_blob(&self, ask: &Ask, digest: &Digest) -> Result<FoundBlob, Miss> {
        let (store, repository) = (&self.0.store, &ask.target.repository);
        let what = || format!("{}@{digest}", ask.target.asked);
        if let Some(kept) = store.blob(repository, digest).await.map_err(|why| stored(what(), why))? {
            return Ok(FoundBlob::Kept(kept));
        }
        let source = self.may_ask_anew(ask, GarbageKind::Blob, digest, &what).await?;
        let offline_miss = source.policy.offline_miss;
        if let Some(why) = self.0.memory.refused(repository, &Subject::Blob(*digest)) {
            return Err(why.miss(what(), offline_miss));
        }
        let found = match self.fill(ask, &source, digest, what()).await {
            // What does not fit here passes through, verified but unkept.
            Err(why) if why.is_disk_full() => self.pass_through(ask, &source, digest, what()).await,
            found => found,
        };
        found.map_err(|why| self.0.memory.note(repository, &Subject::Blob(*digest), why).miss(what(), offline_miss))
    }

    async fn fill(&self, ask: &Ask, source: &Source, digest: &Digest, what: String) -> Result<FoundBlob, FetchError> {
        let mut tries = 0;
        loop {
            let joined = self.follow(&ask.target.repository, source, digest).await?;
            match self.begin(joined.following, source, what.clone()).await {
                // What failed for another repository, or at another upstream, may well be had for this one.
                Err(why) if joined.elsewhere && why.is_upstreams() && tries < FOREIGN_FAILURES_MAX => tries += 1,
                begun => return begun,
            }
        }
    }

    /// Waits for upstream's first answer; for all of it, if it is small.
    async fn begin(&self, following: Following, source: &Source, what: String) -> Result<FoundBlob, FetchError> {
        if following.size().await?.is_some_and(|size| size <= WHOLE_FIRST_MAX) {
            return following.kept().await.map(FoundBlob::Kept);
        }
        Ok(FoundBlob::Filling(Tail { following, what, offline_miss: source.policy.offline_miss }))
    }

    async fn pass_through(
        &self,
        ask: &Ask,
        source: &Source,
        digest: &Digest,
        what: String,
    ) -> Result<FoundBlob, FetchError> {
        let upstream = self.upstream(source)?;
        let stream = upstream.blob(&ask.target.repository.name, digest, 0).await?;
        warn!(%digest, "the disk is full: {what} passes through unkept");
        let (upstream, offline_miss) = (upstream.name().to_owned(), source.policy.offline_miss);
        let passage = Passage { digest: *digest, upstream, what, offline_miss };
        Ok(FoundBlob::Passing(Passing::start(stream, passage, &self.0.tasks)))
    }

    /// Joins or starts the fill of `digest` for `repository`, which must have a right to it (invariant 14): a kept
    /// manifest names it, or the fill is its own, or upstream says so.
    async fn follow(&self, repository: &Repository, source: &Source, digest: &Digest) -> Result<Joined, FetchError> {
        let upstream = self.upstream(source)?;
        let expected_size = self.0.store.expected_size(repository, digest).await?;
        let order =
            Order { digest: *digest, repository: repository.clone(), upstream: upstream.clone(), expected_size };
        let joined = self.0.fills.join(order)?;
        if joined.elsewhere {
            if expected_size.is_none() {
                upstream.has_blob(&repository.name, digest).await?;
            }
            self.grant_when_kept(&joined.following, repository.clone(), *digest);
        }
        Ok(joined)
    }

    fn grant_when_kept(&self, following: &Following, repository: Repository, digest: Digest) {
        let (store, following) = (self.0.store.clone(), following.another());
        self.0.tasks.spawn(async move {
            if following.kept().await.is_ok()
                && let Err(why) = store.grant_blob(&repository, &digest).await
            {
                error!(%repository, %digest, "cannot record that {repository} has {digest}: {why}");
            }
        });
    }

    /// As [`Pull::may_ask`], for content that may have been kept until it was found damaged.
    async fn may_ask_anew(
        &self,
        ask: &Ask,
        kind: GarbageKind,
        digest: &Digest,
        what: &impl Fn() -> String,
    ) -> Result<Source, Miss> {
        let (miss, closed) = match self.may_ask(ask, what).await {
            Err(Miss::Closed { what, refusal, offline_miss }) => {
                let closed = Some((refusal.clone(), offline_miss));
                (Miss::Closed { what, refusal, offline_miss }, closed)
            }
            Err(miss @ Miss::NotFound { .. }) => (miss, None),
            outcome => return outcome,
        };
        let damaged = self.0.store.is_damaged(&ask.target.repository, kind, digest).await;
        match damaged.map_err(|why| stored(what(), why))? {
            true => Err(Miss::Damaged { what: what(), closed }),
            false => Err(miss),
        }
    }

    /// The source to ask, unless the name is local or the gate is closed for it.
    async fn may_ask(&self, ask: &Ask, what: &impl Fn() -> String) -> Result<Source, Miss> {
        let Some(source) = &ask.target.source else {
            let known = self.0.store.has_repository(&ask.target.repository).await;
            return Err(match known.map_err(|why| stored(what(), why))? {
                true => Miss::NotFound { what: what(), upstream: None },
                false => Miss::UnknownName { name: ask.target.asked.to_string() },
            });
        };
        match self.0.gate.refusal(&source.upstream) {
            None => Ok(source.clone()),
            Some(refusal) => Err(Miss::Closed { what: what(), refusal, offline_miss: source.policy.offline_miss }),
        }
    }

    fn upstream(&self, source: &Source) -> Result<Arc<Upstream>, FetchError> {
        let known = self.0.upstreams.get(&source.upstream).cloned();
        known.ok_or_else(|| {
            let why = "it is not configured".to_owned();
            UpstreamError::Misbehaved { upstream: source.upstream.to_string(), why }.into()
        })
    }

    /// Notes what could not be had as wanted: once, by whichever name it was asked for.
    async fn ledger(&self, ask: &Ask, reference: &Reference, miss: Option<&Miss>) {
        let name = ask.target.repository.to_string();
        let noted = match miss {
            Some(miss) if miss.is_wanted() => self.0.store.note_wanted(&name, &reference.to_string(), ask.client).await,
            _ => Ok(()),
        };
        if let Err(why) = noted {
            error!("cannot note that {name}{} is wanted: {why}", reference.suffix());
        }
    }

    /// It came.
    async fn cross_off(&self, repository: &Repository, reference: &Reference) {
        if let Err(why) = self.0.store.forget_wanted(&repository.to_string(), &reference.to_string()).await {
            error!("cannot cross {repository}{} off the wanted list: {why}", reference.suffix());
        }
    }
}

fn what_manifest(ask: &Ask, reference: &Reference) -> String {
    format!("{}{}", ask.target.asked, reference.suffix())
}

fn stored(what: String, why: crate::store::StoreError) -> Miss {
    Miss::Store { what, source: Arc::new(why) }
}

/// How a `Warning` says since when nothing was confirmed.
fn last_confirmed(now: Timestamp, checked_at: Timestamp) -> String {
    // A pushed tag that was released.
    if checked_at == Timestamp::UNIX_EPOCH {
        return "upstream has not confirmed this yet".to_owned();
    }
    let age = Duration::try_from(now.duration_since(checked_at)).unwrap_or_default();
    format!("upstream last confirmed this {} ago", crate::size::Span(age))
}

fn because(refusal: &Refusal) -> String {
    refusal.to_string()
}
