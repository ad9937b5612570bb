//! Tags that grew too many: what is known of them, and taking one away if it is still what it was.

use jiff::Timestamp;

use super::catalog::erase::Erase;
use super::catalog::tags;
use super::{Store, StoreError, TagSource};
use crate::names::{Origin, Repository};
use crate::oci::{Digest, Tag};

/// Most tags of one repository that are judged; where there are more, nobody can tell which are the newest.
pub const RETIRE_TAGS_MAX: usize = 200_000;

/// A tag, as a rule about tags sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFacts {
    pub name: Tag,
    pub digest: Digest,
    pub source: TagSource,
    pub pinned: bool,
    /// When it last came to name something else.
    pub moved_at: Timestamp,
}

impl Store {
    /// Every repository that has a tag.
    pub async fn tagged_repositories(&self) -> Result<Vec<Repository>, StoreError> {
        let named = tags::tagged(&self.0.readers).await?.into_iter().map(|(origin, name)| {
            let origin = if origin.is_empty() { Origin::Local } else { Origin::Upstream(origin.into()) };
            Ok(Repository { origin, name: name.parse().map_err(StoreError::catalog)? })
        });
        named.collect()
    }

    /// Every tag of the repository; `None` if there are more than [`RETIRE_TAGS_MAX`].
    pub async fn tag_facts(&self, repository: &Repository) -> Result<Option<Vec<TagFacts>>, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(Some(Vec::new())) };
        let facts = tags::facts(&self.0.readers, id, RETIRE_TAGS_MAX + 1).await?;
        Ok((facts.len() <= RETIRE_TAGS_MAX).then_some(facts))
    }

    /// As [`Store::delete_tag`], but only if it is as it was, not pinned, and not the last one of its repository.
    pub async fn retire_tag(&self, repository: &Repository, tag: &TagFacts) -> Result<bool, StoreError> {
        self.erase(Erase::Retire { repository: repository.clone(), tag: tag.clone() }).await
    }
}
