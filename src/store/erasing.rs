//! Deleting, and turning tags back: what the store offers to push and to the operator. Nothing here removes bytes.

use super::catalog::erase::{self, Erase};
use super::catalog::writer::Change;
use super::{Store, StoreError, TagMove};
use crate::names::{Origin, Repository};
use crate::oci::{Digest, Tag};

/// What became of [`Store::rollback_tag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// The tag names this again.
    To(Digest),
    /// The tag has no history, it never named that digest, or there is nothing kept before what it names.
    Unknown,
    /// The tag named it, but it is kept no longer.
    Gone(Digest),
}

impl Store {
    /// `false`: there is none. Its history keeps what it named.
    pub async fn delete_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, StoreError> {
        self.erase(Erase::Tag { repository: repository.clone(), tag: tag.clone() }).await
    }

    /// Takes the manifest from the repository, with the tags that name it and what could be read through it alone.
    /// Until it is collected, a tag can be rolled back to it. `false`: it is not readable there.
    pub async fn delete_manifest(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.erase(Erase::Manifest { repository: repository.clone(), manifest: *digest }).await
    }

    /// Makes the blob unreadable in this repository, also when a manifest there names it, until it is uploaded, mounted
    /// or filled there again. `false`: it is not readable there.
    pub async fn delete_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.erase(Erase::Blob { repository: repository.clone(), blob: *digest }).await
    }

    /// At most `limit` repositories that may hold the blob; whether one does is [`Store::blob`]'s to say.
    pub async fn holders(&self, blob: &Digest, limit: usize) -> Result<Vec<Repository>, StoreError> {
        parsed(erase::holders(&self.0.readers, blob, limit).await?)
    }

    /// At most `limit` repositories that hold anything, after `after`, in byte order of how they are shown: local ones by
    /// name, an upstream's as `<host>/<name>`.
    pub async fn repositories(&self, after: Option<&str>, limit: usize) -> Result<Vec<Repository>, StoreError> {
        parsed(erase::repositories(&self.0.readers, after, limit).await?)
    }

    /// What the tag named, newest first, also when it is deleted.
    pub async fn tag_log(&self, repository: &Repository, tag: &Tag) -> Result<Vec<TagMove>, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(Vec::new()) };
        erase::log(&self.0.readers, id, tag).await
    }

    /// Turns the tag back to `to`, or to the newest kept digest before what it names now; a manifest that was deleted
    /// is readable again. A filled tag is pinned with it, because the next fill would move it on.
    pub async fn rollback_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        to: Option<&Digest>,
    ) -> Result<Rollback, StoreError> {
        let log = self.tag_log(repository, tag).await?;
        let to = match to {
            Some(to) if log.iter().any(|line| line.digest == Some(*to)) => *to,
            Some(_) => return Ok(Rollback::Unknown),
            None => {
                let now = log.first().and_then(|line| line.digest);
                let before = log.iter().filter(|line| line.kept && line.digest != now);
                let Some(to) = before.filter_map(|line| line.digest).next() else { return Ok(Rollback::Unknown) };
                to
            }
        };
        let change = Erase::Rollback { repository: repository.clone(), tag: tag.clone(), to };
        Ok(if self.erase(change).await? { Rollback::To(to) } else { Rollback::Gone(to) })
    }

    /// A pinned tag does not move by fills, and what it names is not collected. `false`: there is no such tag.
    pub async fn pin_tag(&self, repository: &Repository, tag: &Tag, pinned: bool) -> Result<bool, StoreError> {
        self.erase(Erase::Pin { repository: repository.clone(), tag: tag.clone(), pinned }).await
    }

    /// Lets a pushed, imported or pinned tag follow upstream again. `false`: there is none, or it does so already, or
    /// the repository is this site's own.
    pub async fn release_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, StoreError> {
        self.erase(Erase::Release { repository: repository.clone(), tag: tag.clone() }).await
    }

    pub(super) async fn erase(&self, change: Erase) -> Result<bool, StoreError> {
        self.0.writer.apply(Change::Erase(change)).await
    }
}

fn parsed(rows: Vec<(String, String)>) -> Result<Vec<Repository>, StoreError> {
    let parsed = rows.into_iter().map(|(origin, name)| {
        let origin = if origin.is_empty() { Origin::Local } else { Origin::Upstream(origin.into()) };
        Ok(Repository { origin, name: name.parse().map_err(StoreError::catalog)? })
    });
    parsed.collect()
}
