//! Lists that come in pages: tags and referrers, followed by `Link` within bounds.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderMap, Method};
use serde::Deserialize;

use super::address::{self, Origin};
use super::error::UpstreamError;
use super::send::{Answer, Ask};
use super::{Patience, Remote};
use crate::gate::Purpose;
use crate::oci::{Algorithm, Content, Descriptor, Digest, MANIFEST_SIZE_MAX, Manifest, MediaType, RepositoryName, Tag};

/// Most pages of one list.
const PAGES_MAX: usize = 1000;
/// Longest time for all pages of a list together.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);
/// Tags asked for at once: Amazon's registry refuses more.
const TAGS_PER_PAGE: usize = 1000;
/// Longest path and query of a next page, in bytes.
const LINK_BYTES_MAX: usize = 4096;
/// Most tags of one repository.
const TAGS_MAX: usize = 200_000;
/// Largest page of tags, in bytes.
const TAG_PAGE_BYTES_MAX: u64 = 8 << 20;
/// Most referrers of one manifest.
const REFERRERS_MAX: usize = 10_000;

#[derive(Deserialize)]
struct TagPage {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Remote {
    /// Every tag, sorted. What is no tag by the specification's grammar could not be asked for, and is left out.
    pub async fn tags(
        self: &Arc<Self>,
        repository: &RepositoryName,
        patience: Patience,
    ) -> Result<Vec<Tag>, UpstreamError> {
        self.within_list_timeout(self.all_tags(repository, patience)).await
    }

    async fn within_list_timeout<T>(
        &self,
        listing: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let late = |_| UpstreamError::TimedOut { upstream: self.name.to_string() };
        tokio::time::timeout(LIST_TIMEOUT, listing).await.map_err(late)?
    }

    async fn all_tags(
        self: &Arc<Self>,
        repository: &RepositoryName,
        patience: Patience,
    ) -> Result<Vec<Tag>, UpstreamError> {
        let mut tags = BTreeSet::new();
        let first = format!("/v2/{repository}/tags/list?n={TAGS_PER_PAGE}");
        let mut pages = Pages::new(self.clone(), repository, Purpose::Tags, first);
        while let Some(page) = pages.next(patience).await? {
            let page: TagPage = serde_json::from_slice(&page.bytes)
                .map_err(|_| self.misbehaved("its list of tags is not JSON".to_owned()))?;
            tags.extend(page.tags.unwrap_or_default().iter().filter_map(|tag| tag.parse::<Tag>().ok()));
            if tags.len() > TAGS_MAX {
                return Err(self.misbehaved(format!("it has more than {TAGS_MAX} tags in one repository")));
            }
        }
        Ok(tags.into_iter().collect())
    }

    /// By the referrers API; where upstream has none, by the tag that stands in for it (specification, "Referrers Tag Schema").
    pub async fn referrers(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: &Digest,
        patience: Patience,
    ) -> Result<Vec<Descriptor>, UpstreamError> {
        self.within_list_timeout(self.all_referrers(repository, digest, patience)).await
    }

    async fn all_referrers(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: &Digest,
        patience: Patience,
    ) -> Result<Vec<Descriptor>, UpstreamError> {
        let mut found: Vec<Descriptor> = Vec::new();
        let first = format!("/v2/{repository}/referrers/{digest}");
        let mut pages = Pages::new(self.clone(), repository, Purpose::Referrers, first);
        while let Some(page) = pages.next(patience).await? {
            if !page.is_index {
                return self.referrers_by_tag(repository, digest, patience).await;
            }
            found.extend(self.index(page.bytes, MediaType::OCI_INDEX)?);
            if found.len() > REFERRERS_MAX {
                return Err(self.misbehaved(format!("it has more than {REFERRERS_MAX} referrers of one manifest")));
            }
        }
        Ok(found)
    }

    async fn referrers_by_tag(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: &Digest,
        patience: Patience,
    ) -> Result<Vec<Descriptor>, UpstreamError> {
        let ask = Ask {
            purpose: Purpose::Referrers,
            method: Method::GET,
            repository: repository.clone(),
            path_and_query: format!("/v2/{repository}/manifests/{}", digest.fallback_tag()),
            accept: MediaType::ACCEPT,
            range_from: None,
            whole: Some(MANIFEST_SIZE_MAX),
            tolerates: &[],
        };
        match self.ask(&ask, patience).await {
            Ok(answer) => {
                let media_type = media_type(&answer.head.headers);
                self.index(answer.bytes, media_type.as_ref().map_or(MediaType::OCI_INDEX, MediaType::as_str))
            }
            Err(UpstreamError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn index(&self, bytes: Bytes, media_type: &str) -> Result<Vec<Descriptor>, UpstreamError> {
        let wrong = |why: String| self.misbehaved(format!("its list of referrers is not an index: {why}"));
        let media_type = MediaType::parse(media_type).ok_or_else(|| wrong("no media type".to_owned()))?;
        match Manifest::parse(bytes, media_type, Algorithm::Sha256).map_err(|why| wrong(why.to_string()))?.content {
            Content::Index { manifests } => Ok(manifests),
            Content::Image { .. } | Content::Opaque => Err(wrong("another media type".to_owned())),
        }
    }
}

/// A list's pages, one after the other, each asked for once.
struct Pages {
    remote: Arc<Remote>,
    ask: Ask,
    seen: HashSet<String>,
    next: Option<String>,
}

struct Page {
    bytes: Bytes,
    is_index: bool,
}

impl Pages {
    fn new(remote: Arc<Remote>, repository: &RepositoryName, purpose: Purpose, first: String) -> Self {
        let (accept, whole, tolerates): (_, _, &[u16]) = match purpose {
            // Registries without the API answer in all these ways.
            Purpose::Referrers => (MediaType::OCI_INDEX, MANIFEST_SIZE_MAX, &[400, 404, 405, 406, 501]),
            _ => ("application/json", TAG_PAGE_BYTES_MAX, &[]),
        };
        let ask = Ask {
            purpose,
            method: Method::GET,
            repository: repository.clone(),
            path_and_query: String::new(),
            accept,
            range_from: None,
            whole: Some(whole),
            tolerates,
        };
        Self { remote, ask, seen: HashSet::new(), next: Some(first) }
    }

    async fn next(&mut self, patience: Patience) -> Result<Option<Page>, UpstreamError> {
        let Some(path_and_query) = self.next.take() else {
            return Ok(None);
        };
        if self.seen.len() >= PAGES_MAX {
            return Err(self.remote.misbehaved(format!("a list has more than {PAGES_MAX} pages")));
        }
        if !self.seen.insert(path_and_query.clone()) {
            return Err(self.remote.misbehaved("the pages of a list go in a circle".to_owned()));
        }
        self.ask.path_and_query = path_and_query;
        let answer = self.remote.ask(&self.ask, patience).await?;
        self.next = self.following(&answer)?;
        let is_index = answer.head.status.is_success()
            && media_type(&answer.head.headers).is_some_and(|media_type| media_type.as_str() == MediaType::OCI_INDEX);
        Ok(Some(Page { bytes: answer.bytes, is_index }))
    }

    /// Path and query of the next page. A list does not lead elsewhere.
    fn following(&self, answer: &Answer) -> Result<Option<String>, UpstreamError> {
        let links = answer.head.headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
        let Some(link) = address::next_page(links) else {
            return Ok(None);
        };
        let wrong =
            || self.remote.misbehaved("the next page of a list is elsewhere, or its address too long".to_owned());
        let url = address::resolve(&answer.url, link).ok_or_else(wrong)?;
        let path = url.path_and_query().filter(|path| path.path().starts_with("/v2/")).ok_or_else(wrong)?;
        if Origin::of(&url) != Origin::of(&answer.url) || path.as_str().len() > LINK_BYTES_MAX {
            return Err(wrong());
        }
        Ok(Some(path.to_string()))
    }
}

/// The `Content-Type`, where it is one.
pub(super) fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    MediaType::parse(headers.get(CONTENT_TYPE)?.to_str().ok()?)
}
