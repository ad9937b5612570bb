//! A manifest by tag: what is kept, what upstream says now, and which of the two is served.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use tracing::warn;

use super::fresh::{Decision, Known, decide};
use super::memory::Subject;
use super::{Ask, FetchError, FoundManifest, Miss, Pull, because, last_confirmed, stored, what_manifest};
use crate::names::{Source, Target};
use crate::oci::{Algorithm, Digest, Manifest, Reference, Tag};
use crate::store::{KeptManifest, StoreError, TagRecord, TagSource};
use crate::upstream::UpstreamError;

/// How long a client waits for upstream's word on a tag when something kept can be served instead.
const PATIENCE: Duration = Duration::from_millis(1500);

impl Pull {
    pub(super) async fn manifest_by_tag(&self, ask: &Ask, tag: &Tag) -> Result<FoundManifest, Miss> {
        let reference = Reference::Tag(tag.clone());
        let what = || what_manifest(ask, &reference);
        let record = self.0.store.tag(&ask.target.repository, tag).await.map_err(|why| stored(what(), why))?;
        let refusal = ask.target.source.as_ref().and_then(|source| self.0.gate.refusal(&source.upstream));
        let known = Known {
            checked_at: record.as_ref().map(|record| record.checked_at),
            ours: ask.target.source.is_none()
                || record.as_ref().is_some_and(|r| r.pinned || r.source != TagSource::Filled),
            open: refusal.is_none(),
        };
        let fresh_for = ask.target.source.as_ref().map_or(Duration::MAX, |source| source.policy.fresh_for);
        let decision = decide(known, self.0.clock.now(), fresh_for);
        match (decision, record) {
            (Decision::Serve, Some(record)) => {
                let checked_at = (!known.ours).then_some(record.checked_at);
                self.serve_kept(ask, &reference, &record, refusal.is_some(), None, checked_at).await
            }
            (Decision::ServeStale, Some(record)) => {
                let why = refusal.as_ref().map(because).unwrap_or_default();
                self.serve_stale(ask, &reference, &record, refusal.is_some(), &why).await
            }
            (Decision::AskElseServe, Some(record)) => self.ask_else_serve(ask, &reference, record).await,
            _ => self.ask(ask, &reference).await,
        }
    }

    /// Nothing can be served instead: upstream's word, or why there is none.
    async fn ask(&self, ask: &Ask, reference: &Reference) -> Result<FoundManifest, Miss> {
        let what = || what_manifest(ask, reference);
        let source = self.may_ask(ask, &what).await?;
        let offline_miss = source.policy.offline_miss;
        if let Some(why) = self.0.memory.refused(&ask.target.repository, &Subject::Manifest(reference.clone())) {
            return Err(why.miss(what(), offline_miss));
        }
        let kept = self.fetch_manifest(&ask.target, &source, reference.clone(), true).await;
        let kept = kept.map_err(|why| why.miss(what(), offline_miss))?;
        Ok(FoundManifest { kept, checked_at: Some(self.0.clock.now()), stale: None })
    }

    /// Fetches (or only confirms) a manifest: one flight per reference, its outcome shared and remembered. With
    /// `survey`, what it needs and what refers to it follows in the background.
    pub(super) fn fetch_manifest(
        &self,
        target: &Target,
        source: &Source,
        reference: Reference,
        survey: bool,
    ) -> BoxFuture<'_, Result<Arc<KeptManifest>, FetchError>> {
        let key = (target.repository.clone(), reference.clone());
        let (pull, target, source) = (self.clone(), target.clone(), source.clone());
        let job = move || async move {
            let fetched = match &reference {
                Reference::Tag(tag) => pull.ask_for_tag(&target, &source, tag).await,
                Reference::Digest(digest) => pull.fetch_digest(&target, &source, digest).await,
            };
            match fetched {
                Ok(kept) => {
                    pull.0.memory.answered(&source.upstream);
                    if survey {
                        pull.complete_later(&target, &reference, &kept, true);
                    }
                    if kept.complete {
                        pull.cross_off(&target.repository, &reference).await;
                    }
                    Ok(kept)
                }
                Err(why) => Err(pull.0.memory.note(&target.repository, &Subject::Manifest(reference), why)),
            }
        };
        // Boxed, because a tag's flight waits for its digest's.
        Box::pin(async { self.0.manifests.join(key, job).await.unwrap_or(Err(FetchError::GaveUp)) })
    }

    async fn ask_else_serve(
        &self,
        ask: &Ask,
        reference: &Reference,
        record: Arc<TagRecord>,
    ) -> Result<FoundManifest, Miss> {
        let Some(source) = &ask.target.source else {
            return self.serve_stale(ask, reference, &record, false, "there is no upstream").await;
        };
        if let Some(why) = self.0.memory.refused(&ask.target.repository, &Subject::Manifest(reference.clone())) {
            return self.serve_stale(ask, reference, &record, false, &why.to_string()).await;
        }
        // The flight goes on when the client's patience ends, so the tag follows upstream all the same.
        let asking = self.fetch_manifest(&ask.target, source, reference.clone(), true);
        let answer = match self.0.memory.is_slow(&source.upstream) {
            true => asking.now_or_never(),
            false => tokio::time::timeout(PATIENCE, asking).await.ok(),
        };
        match answer {
            Some(Ok(kept)) => Ok(FoundManifest { kept, checked_at: Some(self.0.clock.now()), stale: None }),
            Some(Err(why)) => self.serve_stale(ask, reference, &record, false, &why.to_string()).await,
            None => {
                self.0.memory.was_slow(&source.upstream);
                let why = format!("`{}` is slow to answer", source.upstream);
                self.serve_stale(ask, reference, &record, false, &why).await
            }
        }
    }

    async fn serve_stale(
        &self,
        ask: &Ask,
        reference: &Reference,
        record: &TagRecord,
        closed: bool,
        why: &str,
    ) -> Result<FoundManifest, Miss> {
        let stale = format!("{why}; {}", last_confirmed(self.0.clock.now(), record.checked_at));
        self.serve_kept(ask, reference, record, closed, Some(stale), Some(record.checked_at)).await
    }

    /// Serves the newest complete manifest of the tag (invariant 5): with the gate closed nothing else can be, and with
    /// a failing upstream the rest could not be had either. A fresh tag with the gate open is served as upstream has it.
    async fn serve_kept(
        &self,
        ask: &Ask,
        reference: &Reference,
        record: &TagRecord,
        closed: bool,
        stale: Option<String>,
        checked_at: Option<Timestamp>,
    ) -> Result<FoundManifest, Miss> {
        let what = || what_manifest(ask, reference);
        // What was pushed was taken in as it is; nobody else has more of it.
        let fallback = if closed && record.source == TagSource::Filled { None } else { Some(record.digest) };
        let chosen = match closed || stale.is_some() {
            true => record.newest_complete.or(fallback),
            false => Some(record.digest),
        };
        let kept = match chosen {
            Some(digest) => self.0.store.manifest(&ask.target.repository, &digest).await,
            None => Ok(None),
        };
        let Some(kept) = kept.map_err(|why| stored(what(), why))? else {
            // Its file was lost, or all of it is in part: with the gate open upstream can mend that.
            return if closed { Err(self.in_part(ask, what())) } else { self.ask(ask, reference).await };
        };
        self.complete_later(&ask.target, reference, &kept, false);
        let older = || format!("a newer {} is kept only in part; this is the last whole one", what());
        let stale = match (stale, chosen == Some(record.digest)) {
            (stale, true) => stale,
            (Some(why), false) => Some(format!("{}; {why}", older())),
            (None, false) => Some(older()),
        };
        Ok(FoundManifest { kept, checked_at, stale })
    }

    fn in_part(&self, ask: &Ask, what: String) -> Miss {
        let Some(source) = &ask.target.source else { return Miss::NotFound { what, upstream: None } };
        match self.0.gate.refusal(&source.upstream) {
            Some(refusal) => Miss::InPart { what, refusal, offline_miss: source.policy.offline_miss },
            // It opened meanwhile; the next try will ask.
            None => Miss::GaveUp { what },
        }
    }

    /// HEAD where something is kept, so that an unmoved tag costs no download; GET only when the digest moved.
    async fn ask_for_tag(&self, target: &Target, source: &Source, tag: &Tag) -> Result<Arc<KeptManifest>, FetchError> {
        let (store, repository, upstream) = (&self.0.store, &target.repository, self.upstream(source)?);
        let reference = Reference::Tag(tag.clone());
        let record = store.tag(repository, tag).await?;
        let named = match &record {
            Some(_) => upstream.resolve(&repository.name, &reference).await?.digest,
            None => None,
        };
        let kept = match named {
            Some(digest) => self.fetch_manifest(target, source, Reference::Digest(digest), false).await?,
            None => self.fetch_bytes(target, source, &reference, Algorithm::Sha256).await?,
        };
        // On a full disk it passes unkept; then the tag stays where it was.
        if store.manifest(repository, &kept.manifest.digest).await?.is_some() {
            let moved = store.point_tag(repository, tag, &kept.manifest.digest, TagSource::Filled).await?;
            // It was pushed or pinned meanwhile.
            if !moved
                && let Some(record) = store.tag(repository, tag).await?
                && let Some(ours) = store.manifest(repository, &record.digest).await?
            {
                return Ok(ours);
            }
        }
        Ok(kept)
    }

    /// A manifest by digest: what this repository keeps, else downloaded.
    async fn fetch_digest(
        &self,
        target: &Target,
        source: &Source,
        digest: &Digest,
    ) -> Result<Arc<KeptManifest>, FetchError> {
        if let Some(kept) = self.0.store.manifest(&target.repository, digest).await? {
            return Ok(kept);
        }
        self.fetch_bytes(target, source, &Reference::Digest(*digest), digest.algorithm()).await
    }

    async fn fetch_bytes(
        &self,
        target: &Target,
        source: &Source,
        reference: &Reference,
        algorithm: Algorithm,
    ) -> Result<Arc<KeptManifest>, FetchError> {
        let upstream = self.upstream(source)?;
        let fetched = upstream.manifest(&target.repository.name, reference).await?;
        let misbehaved =
            |why: &str| UpstreamError::Misbehaved { upstream: source.upstream.to_string(), why: why.to_owned() };
        let named = fetched.media_type.filter(|named| named.is_image() || named.is_index());
        // Some registries name a generic type, and a captive portal answers everything with a page: the bytes say
        // what they are.
        let media_type = match named.or_else(|| Manifest::sniff_media_type(&fetched.bytes)) {
            Some(known) => known,
            None => return Err(misbehaved("what it sent is no manifest").into()),
        };
        let manifest = Manifest::parse(fetched.bytes, media_type, algorithm)
            .map_err(|why| FetchError::InvalidManifest { upstream: source.upstream.to_string(), why: Arc::new(why) })?;
        if let Reference::Digest(asked) = reference
            && manifest.digest != *asked
        {
            let upstream = source.upstream.to_string();
            return Err(FetchError::WrongDigest { upstream, actual: manifest.digest });
        }
        match self.0.store.keep_manifest(&target.repository, &manifest).await {
            Err(StoreError::Full(_)) => {
                warn!(digest = %manifest.digest, "the disk is full: a manifest of {} passes unkept", target.repository);
                Ok(Arc::new(KeptManifest { manifest, complete: false }))
            }
            kept => Ok(kept?),
        }
    }
}
