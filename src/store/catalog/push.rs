//! What comes true with a pushed manifest: its tags, and that nobody asks for it in vain any more.

use super::touched::Touched;
use super::{Connection, read, tags, wanted};
use crate::names::Repository;
use crate::oci::Manifest;
use crate::store::{Pushing, StoreError, TagSource};

/// Whether what the manifest needs can be read in its repository now. A collection may have taken it since it was looked
/// for; that its bytes came again for another repository does not help.
pub async fn has_needs(
    c: &mut Connection,
    repository: &Repository,
    manifest: &Manifest,
    pushing: &Pushing,
) -> Result<bool, StoreError> {
    if pushing.needs.is_empty() {
        return Ok(true);
    }
    let Some(id) = read::repository(&mut *c, repository).await? else { return Ok(false) };
    for part in &pushing.needs {
        let content = &manifest.content;
        let readable = content.names_blobs() && read::granted_blob_size(&mut *c, id, part).await?.is_some()
            || content.names_manifests() && read::manifest_is_readable(c, id, part).await?;
        if !readable {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Points its tags, and crosses it off the wanted list under each of its names.
pub async fn name(
    c: &mut Connection,
    repository: &Repository,
    manifest: &Manifest,
    pushing: &Pushing,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let (asked, digest) = (repository.to_string(), manifest.digest);
    wanted::forget(c, &asked, &digest.to_string()).await?;
    for tag in &pushing.tags {
        tags::point(c, repository, tag, &digest, TagSource::Pushed, now_ms, touched).await?;
        wanted::forget(c, &asked, tag.as_str()).await?;
    }
    Ok(())
}
