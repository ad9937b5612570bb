//! The list of a repository's tags.
//!
//! While the gate is open upstream's list counts, joined with what is kept; else what is kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;

use super::{Ask, FetchError, Miss, Pull, stored};
use crate::names::Repository;
use crate::oci::Tag;
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

    async fn local_repository(&self, ask: &Ask, what: &impl Fn() -> String) -> Result<(), Miss> {
        let known = self.0.store.has_repository(&ask.target.repository).await;
        match known.map_err(|why| stored(what(), why))? {
            true => Ok(()),
            false => Err(Miss::UnknownName { name: ask.target.asked.to_string() }),
        }
    }
}

/// How long a client waits for upstream's list: not long when what is kept can be listed instead.
pub(super) fn patience(some_kept: bool) -> Patience {
    if some_kept { Patience::Short } else { Patience::Full }
}
