//! Retention: removes the tags that the operator's rules let go. Their history stays, and with it what they named, as after
//! any deletion.

use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::KeepSettings;
use super::reach::Reach;
use super::retain::rule_of;
use crate::oci::Digest;
use crate::store::{RETIRE_TAGS_MAX, Store, StoreError, TagFacts};

/// Tags that are removed at one time, so that they share commits.
const AT_ONCE: usize = 32;

/// A tag that a rule let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    pub repository: String,
    pub tag: String,
    pub digest: Digest,
    /// Its pattern in the settings.
    pub rule: String,
}

/// Removes what goes, or, as a dry run, only tells it.
pub(super) async fn retire(
    store: &Store,
    settings: &KeepSettings,
    reach: &Reach,
    dry_run: bool,
) -> Result<Vec<Retired>, StoreError> {
    let mut retired = Vec::new();
    if settings.retain.is_empty() {
        return Ok(retired);
    }
    for repository in store.tagged_repositories().await? {
        let name = repository.to_string();
        let Some((pattern, rule)) = rule_of(&settings.retain, &name) else { continue };
        let Some(tags) = store.tag_facts(&repository).await? else {
            warn!(%repository, "{name} has more than {RETIRE_TAGS_MAX} tags: none of them is removed by its rule");
            continue;
        };
        let may_fill = reach.is_open(&repository.origin);
        let going: Vec<TagFacts> = rule.retired(&tags, may_fill).into_iter().cloned().collect();
        let (repository, name) = (&repository, &name);
        let going = going.into_iter().map(|tag| async move {
            // Between the look and now it may have been pushed anew or pinned.
            let gone = dry_run || store.retire_tag(repository, &tag).await?;
            let (tag, digest, rule) = (tag.name.to_string(), tag.digest, pattern.to_owned());
            Ok::<_, StoreError>(gone.then(|| Retired { repository: name.clone(), tag, digest, rule }))
        });
        let mut going = stream::iter(going).buffered(AT_ONCE);
        while let Some(gone) = going.next().await {
            let Some(gone) = gone? else { continue };
            if !dry_run {
                let Retired { repository, tag, digest, rule } = &gone;
                info!(%repository, %tag, %digest, rule, "removed the tag {repository}:{tag}, as `{rule}` says");
            }
            retired.push(gone);
        }
    }
    Ok(retired)
}
