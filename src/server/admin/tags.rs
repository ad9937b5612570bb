//! What the admin API answers about one tag, and does to it.

use http::StatusCode;

use super::Office;
use super::api::Trouble;
use super::report::{TagOrder, TagReport};
use crate::names::Repository;
use crate::oci::{Digest, RepositoryName, Tag};
use crate::store::Rollback;

/// What is to become of a tag.
#[derive(Clone, Copy, Debug)]
pub(super) enum TagMoves {
    Rollback,
    Pin,
    Unpin,
    Release,
}

impl Office {
    /// Where the tag is, and where it was.
    pub(super) async fn tag(&self, order: &TagOrder) -> Result<TagReport, Trouble> {
        let (repository, tag) = self.find_tag(order)?;
        let store = &self.source.store;
        let log = store.tag_log(&repository, &tag).await?;
        if log.is_empty() {
            let hint = "`sealock ls` lists what is kept".to_owned();
            return Err(Trouble::absent(format!("{}:{} was never kept here", order.name, order.tag), hint));
        }
        let now = store.tag(&repository, &tag).await?;
        Ok(TagReport {
            repository: repository.to_string(),
            digest: now.as_ref().map(|record| record.digest),
            pinned: now.as_ref().is_some_and(|record| record.pinned),
            log,
        })
    }

    /// Moves it, and tells where it is then.
    pub(super) async fn move_tag(&self, order: &TagOrder, how: TagMoves) -> Result<TagReport, Trouble> {
        let (repository, tag) = self.find_tag(order)?;
        let (store, named) = (&self.source.store, format!("{}:{}", order.name, order.tag));
        let done = match how {
            TagMoves::Rollback => return self.roll_back(order, &repository, &tag).await,
            TagMoves::Pin => store.pin_tag(&repository, &tag, true).await?,
            TagMoves::Unpin => store.pin_tag(&repository, &tag, false).await?,
            TagMoves::Release => store.release_tag(&repository, &tag).await?,
        };
        if !done && store.tag(&repository, &tag).await?.is_none() {
            let hint = "`sealock ls` lists what is kept; a deleted tag comes back by `sealock tag rollback`".to_owned();
            return Err(Trouble::absent(format!("there is no tag {named}"), hint));
        }
        if !done && let TagMoves::Release = how {
            let hint = "only a pushed, imported or pinned tag of a routed name can be released".to_owned();
            return Err(Trouble::conflict(format!("{named} follows upstream already, or has none"), hint));
        }
        self.tag(order).await
    }

    async fn roll_back(&self, order: &TagOrder, repository: &Repository, tag: &Tag) -> Result<TagReport, Trouble> {
        let hint = format!("`sealock tag log {}:{}` lists what it named", order.name, order.tag);
        let to = order.to.as_deref().map(str::parse::<Digest>).transpose();
        let to = to.map_err(|why| Trouble::wrong(why.to_string(), hint.clone()))?;
        match self.source.store.rollback_tag(repository, tag, to.as_ref()).await? {
            Rollback::To(_) => self.tag(order).await,
            Rollback::Unknown => {
                let what = to.map_or_else(|| "anything else that is kept".to_owned(), |to| to.to_string());
                Err(Trouble::absent(format!("{}:{} never named {what}", order.name, order.tag), hint))
            }
            Rollback::Gone(digest) => {
                let hint = "if it was collected lately, `sealock gc --undo` puts it back".to_owned();
                Err(Trouble::conflict(format!("{digest} is kept no longer"), hint))
            }
        }
    }

    /// The repository that clients reach by `name`.
    pub(super) fn find_repository(&self, name: &str) -> Result<Repository, Trouble> {
        let hint = "write it as clients do, such as `security-products/semgrep`";
        let parsed: RepositoryName =
            name.parse().map_err(|_| Trouble::wrong(format!("`{name}` is not a name"), hint))?;
        let target = self.source.routes.resolve(&parsed, None);
        Ok(target.map_err(|why| Trouble::wrong(why.to_string(), hint))?.repository)
    }

    fn find_tag(&self, order: &TagOrder) -> Result<(Repository, Tag), Trouble> {
        let hint = "write it as clients do, such as `6` or `latest`";
        let repository = self.find_repository(&order.name)?;
        let tag = order.tag.parse().map_err(|_| Trouble::wrong(format!("`{}` is not a tag", order.tag), hint))?;
        Ok((repository, tag))
    }
}

impl Trouble {
    pub(super) fn absent(error: String, hint: String) -> Self {
        Self { status: StatusCode::NOT_FOUND, error, hint: Some(hint) }
    }

    fn conflict(error: String, hint: String) -> Self {
        Self { status: StatusCode::CONFLICT, error, hint: Some(hint) }
    }
}
