//! Lists: the tags of a repository, and what refers to a manifest.
//!
//! While the gate is open upstream's list counts, joined with what is kept; else what is kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;

use super::{Ask, FetchError, Miss, Pull, because, stored};
use crate::names::{Repository, Source};
use crate::oci::{Content, Descriptor, Digest, Reference, Tag};
use crate::store::StoreError;
use crate::upstream::Patience;

/// Repositories whose upstream tag list is remembered.
const LISTS_MAX: usize = 256;
/// Longest tag list that is remembered; a longer one is asked for each time.
const LIST_LENGTH_MAX: usize = 10_000;

/// A page of tags.
pub struct TagPage {
    /// In byte order.
    pub tags: Vec<Tag>,
    /// Whether tags follow the last of them.
    pub more: bool,
    /// What the `Warning` says, if upstream could not be asked.
    pub stale: Option<String>,
}

/// What refers to a manifest.
pub struct Referrers {
    pub descriptors: Vec<Descriptor>,
    /// What the `Warning` says, if upstream could not be asked.
    pub stale: Option<String>,
}

/// Upstreams' tag lists of the last minutes, in byte order.
pub(super) struct Lists(Cache<Repository, (Timestamp, Arc<Vec<Tag>>)>);

impl Lists {
    pub(super) fn new() -> Self {
        Self(Cache::new(LISTS_MAX))
    }
}

impl Pull {
    /// At most `limit` tags after `last`.
    pub async fn tags(&self, ask: &Ask, last: Option<&str>, limit: usize) -> Result<TagPage, Miss> {
        let what = || format!("the list of {}'s tags", ask.target.asked);
        let repository = &ask.target.repository;
        let kept = self.0.store.tags(repository, last, limit.saturating_add(1)).await;
        let mut tags: BTreeSet<Tag> = kept.map_err(|why| stored(what(), why))?.into_iter().collect();
        let (mut stale, some_kept) = (None, !tags.is_empty());
        match self.upstream_tags(ask, some_kept).await {
            Ok(None) => {}
            Ok(Some(upstream)) => {
                let after = upstream.partition_point(|tag| last.is_some_and(|last| tag.as_str() <= last));
                tags.extend(upstream[after..].iter().take(limit.saturating_add(1)).cloned());
            }
            Err(why) => {
                let known = self.0.store.has_repository(repository).await.map_err(|why| stored(what(), why))?;
                if !some_kept && !known {
                    let offline_miss = ask.target.source.as_ref().map(|source| source.policy.offline_miss);
                    return Err(match why.miss(what(), offline_miss.unwrap_or(crate::names::OfflineMiss::NotFound)) {
                        Miss::Closed { what, refusal, .. } => Miss::NotListed { what, refusal },
                        miss => miss,
                    });
                }
                stale = Some(format!("only what is kept is listed: {why}"));
            }
        }
        if ask.target.source.is_none() && tags.is_empty() {
            self.local_repository(ask, &what).await?;
        }
        let more = tags.len() > limit;
        Ok(TagPage { tags: tags.into_iter().take(limit).collect(), more, stale })
    }

    /// What refers to `subject`, of the given artifact type if one is asked for.
    pub async fn referrers(&self, ask: &Ask, subject: &Digest, artifact_type: Option<&str>) -> Result<Referrers, Miss> {
        let what = || format!("the list of what refers to {}@{subject}", ask.target.asked);
        let repository = &ask.target.repository;
        let kept = self.kept_referrers(repository, subject).await;
        let mut descriptors = kept.map_err(|why| stored(what(), why))?;
        let mut stale = None;
        if let Some(source) = &ask.target.source {
            let upstreams = match self.0.gate.refusal(&source.upstream) {
                Some(refusal) => Err(because(&refusal)),
                None => {
                    let patience = patience(!descriptors.is_empty());
                    let listed = self.upstream_referrers(source, repository, subject, patience).await;
                    listed.map_err(|why| why.to_string())
                }
            };
            match upstreams {
                Ok(listed) => {
                    let known: BTreeSet<Digest> = descriptors.iter().map(|kept| kept.digest).collect();
                    descriptors.extend(listed.into_iter().filter(|listed| !known.contains(&listed.digest)));
                }
                Err(why) => stale = Some(format!("only what is kept is listed: {why}")),
            }
        }
        // A registry that has this endpoint never answers 404 on it, not even where nothing is kept.
        if let Some(artifact_type) = artifact_type {
            descriptors.retain(|descriptor| descriptor.artifact_type.as_deref() == Some(artifact_type));
        }
        Ok(Referrers { descriptors, stale })
    }

    /// Upstream's tags, remembered while they are fresh. `None`: a local name.
    async fn upstream_tags(&self, ask: &Ask, some_kept: bool) -> Result<Option<Arc<Vec<Tag>>>, FetchError> {
        let (Some(source), repository) = (&ask.target.source, &ask.target.repository) else { return Ok(None) };
        if let Some(refusal) = self.0.gate.refusal(&source.upstream) {
            return Err(crate::upstream::UpstreamError::Refused(refusal).into());
        }
        let now = self.0.clock.now();
        let fresh_for = SignedDuration::try_from(source.policy.fresh_for).unwrap_or(SignedDuration::MAX);
        if let Some((at, tags)) = self.0.lists.0.get(repository)
            && (SignedDuration::ZERO..fresh_for).contains(&now.duration_since(at))
        {
            return Ok(Some(tags));
        }
        let upstream = self.upstream(source)?;
        let mut tags = upstream.tags_with(&repository.name, patience(some_kept)).await?;
        tags.sort_unstable();
        let tags = Arc::new(tags);
        if tags.len() <= LIST_LENGTH_MAX {
            self.0.lists.0.insert(repository.clone(), (now, tags.clone()));
        }
        Ok(Some(tags))
    }

    pub(super) async fn upstream_referrers(
        &self,
        source: &Source,
        repository: &Repository,
        subject: &Digest,
        patience: Patience,
    ) -> Result<Vec<Descriptor>, FetchError> {
        Ok(self.upstream(source)?.referrers_with(&repository.name, subject, patience).await?)
    }

    /// Kept manifests with this subject, and those that a kept fallback tag lists.
    async fn kept_referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        let store = &self.0.store;
        let mut descriptors = store.referrers(repository, subject, None).await?;
        let Ok(fallback) = subject.fallback_tag().parse::<Tag>() else { return Ok(descriptors) };
        let Some(record) = store.tag(repository, &fallback).await? else { return Ok(descriptors) };
        let Some(index) = store.manifest(repository, &record.digest).await? else { return Ok(descriptors) };
        if let Content::Index { manifests } = &index.manifest.content {
            for listed in manifests {
                let new = descriptors.iter().all(|known| known.digest != listed.digest);
                if !new {
                    continue;
                }
                let Some(kept) = store.manifest(repository, &listed.digest).await? else { continue };
                // What does not say that it refers to the subject does not, whoever lists it; unless we cannot read it.
                let refers = kept.manifest.subject.as_ref().is_some_and(|named| named.digest == *subject);
                if refers || matches!(kept.manifest.content, Content::Opaque) {
                    // Its own words: whoever wrote the list may have left some out.
                    descriptors.push(kept.manifest.descriptor());
                }
            }
        }
        Ok(descriptors)
    }

    async fn local_repository(&self, ask: &Ask, what: &impl Fn() -> String) -> Result<(), Miss> {
        let known = self.0.store.has_repository(&ask.target.repository).await;
        match known.map_err(|why| stored(what(), why))? {
            true => Ok(()),
            false => Err(Miss::UnknownName { name: ask.target.asked.to_string() }),
        }
    }

    /// The references under which cosign keeps what it signs: `sha256-<hex>.sig`, `.att`, `.sbom`.
    pub(super) fn cosign_tags(subject: &Digest) -> impl Iterator<Item = Reference> {
        let stem = format!("{}-{}", subject.algorithm(), subject.hex());
        let tags = ["sig", "att", "sbom"].map(|kind| format!("{stem}.{kind}").parse::<Tag>());
        tags.into_iter().flatten().map(Reference::Tag)
    }
}

/// How long a client waits for upstream's list: not long when what is kept can be listed instead.
fn patience(some_kept: bool) -> Patience {
    if some_kept { Patience::Short } else { Patience::Full }
}
