//! What clients and operators take away or turn back: tags, and what may be read in a repository. Bytes stay where they
//! are until they are collected.

use sqlx::Row;

use super::touched::Touched;
use super::{Connection, Pool, content, digest, integer, read, tags, time};
use crate::names::{Origin, Repository};
use crate::oci::{Digest, Tag};
use crate::store::memory::RepositoryId;
use crate::store::{StoreError, TagFacts, TagMove, TagSource};

#[derive(Clone, Debug)]
pub enum Erase {
    Tag {
        repository: Repository,
        tag: Tag,
    },
    /// If it is still so, not pinned, and not the last one.
    Retire {
        repository: Repository,
        tag: TagFacts,
    },
    Manifest {
        repository: Repository,
        manifest: Digest,
    },
    Blob {
        repository: Repository,
        blob: Digest,
    },
    /// To a digest of its history that is still kept.
    Rollback {
        repository: Repository,
        tag: Tag,
        to: Digest,
    },
    Pin {
        repository: Repository,
        tag: Tag,
        pinned: bool,
    },
    Release {
        repository: Repository,
        tag: Tag,
    },
}

/// Returns whether there was what the change is about.
pub async fn make(c: &mut Connection, change: &Erase, now_ms: i64, touched: &mut Touched) -> Result<bool, StoreError> {
    let (Erase::Tag { repository, .. }
    | Erase::Retire { repository, .. }
    | Erase::Manifest { repository, .. }
    | Erase::Blob { repository, .. }
    | Erase::Rollback { repository, .. }
    | Erase::Pin { repository, .. }
    | Erase::Release { repository, .. }) = change;
    let Some(id) = read::repository(&mut *c, repository).await? else { return Ok(false) };
    match change {
        Erase::Tag { tag, .. } => tag_goes(c, id, tag, now_ms, touched).await,
        Erase::Retire { tag, .. } => retire(c, id, tag, now_ms, touched).await,
        Erase::Manifest { manifest, .. } => manifest_goes(c, id, manifest, now_ms, touched).await,
        Erase::Blob { blob, .. } => blob_goes(c, id, blob, now_ms, touched).await,
        Erase::Rollback { tag, to, .. } => rollback(c, id, repository, tag, to, now_ms, touched).await,
        Erase::Pin { tag, pinned, .. } => pin(c, id, tag, *pinned, touched).await,
        // What is this site's own has nobody else to follow.
        Erase::Release { .. } if repository.origin == Origin::Local => Ok(false),
        Erase::Release { tag, .. } => release(c, id, tag, touched).await,
    }
}

async fn tag_goes(
    c: &mut Connection,
    id: RepositoryId,
    tag: &Tag,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    let sql = "DELETE FROM tag WHERE repository = $1 AND name = $2 RETURNING source";
    let gone: Option<String> = sqlx::query_scalar(sql)
        .bind(id)
        .bind(tag.as_str())
        .fetch_optional(&mut *c)
        .await
        .map_err(StoreError::catalog)?;
    let Some(source) = gone else { return Ok(false) };
    tags::remember(c, id, tag.as_str(), None, tags::source(&source)?, now_ms).await?;
    touched.tag(id, tag.clone());
    Ok(true)
}

async fn retire(
    c: &mut Connection,
    id: RepositoryId,
    tag: &TagFacts,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM tag WHERE repository = $1 AND name = $2 AND digest = $3 AND source = $4
            AND moved_at = $5 AND NOT pinned)
        AND EXISTS (SELECT 1 FROM tag WHERE repository = $1 AND name <> $2)";
    let same = sqlx::query_scalar(sql).bind(id).bind(tag.name.as_str()).bind(tag.digest.to_string());
    let same = same.bind(tag.source.as_str()).bind(tag.moved_at.as_millisecond()).fetch_one(&mut *c).await;
    if same.map_err(StoreError::catalog)? { tag_goes(c, id, &tag.name, now_ms, touched).await } else { Ok(false) }
}

async fn manifest_goes(
    c: &mut Connection,
    id: RepositoryId,
    manifest: &Digest,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    let text = manifest.to_string();
    let sql = "DELETE FROM manifest_grant WHERE repository = $1 AND digest = $2";
    let gone = sqlx::query(sql).bind(id).bind(&text).execute(&mut *c).await.map_err(StoreError::catalog)?;
    if gone.rows_affected() == 0 {
        return Ok(false);
    }
    let sql = "INSERT INTO manifest_deleted (repository, digest, deleted_at) VALUES ($1, $2, $3)
        ON CONFLICT (repository, digest) DO UPDATE SET deleted_at = excluded.deleted_at";
    sqlx::query(sql).bind(id).bind(&text).bind(now_ms).execute(&mut *c).await.map_err(StoreError::catalog)?;
    for name in tags::delete_all(c, id, &text, now_ms).await? {
        touched.tag(id, name.parse().map_err(StoreError::catalog)?);
    }
    touched.manifest_grant_lost(id, *manifest);
    // Its blobs may have been readable through it alone.
    let sql = "SELECT digest FROM part WHERE manifest = $1 AND kind IN ('config', 'layer', 'foreign')";
    let blobs = sqlx::query_scalar(sql).bind(&text).fetch_all(&mut *c).await;
    let blobs: Vec<String> = blobs.map_err(StoreError::catalog)?;
    for blob in blobs {
        touched.blob_grant_lost(id, digest(&blob)?);
    }
    touched.readable(c, &text).await?;
    Ok(true)
}

async fn blob_goes(
    c: &mut Connection,
    id: RepositoryId,
    blob: &Digest,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    if read::granted_blob_size(&mut *c, id, blob).await?.is_none() {
        return Ok(false);
    }
    let text = blob.to_string();
    let sql = "DELETE FROM blob_grant WHERE repository = $1 AND digest = $2";
    sqlx::query(sql).bind(id).bind(&text).execute(&mut *c).await.map_err(StoreError::catalog)?;
    let sql = "INSERT INTO blob_deleted (repository, digest, deleted_at) VALUES ($1, $2, $3)";
    sqlx::query(sql).bind(id).bind(&text).bind(now_ms).execute(&mut *c).await.map_err(StoreError::catalog)?;
    touched.blob_grant_lost(id, *blob);
    Ok(true)
}

async fn rollback(
    c: &mut Connection,
    id: RepositoryId,
    repository: &Repository,
    tag: &Tag,
    to: &Digest,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    let text = to.to_string();
    // Only what this repository had: a tag may have named what was never kept here and is kept elsewhere.
    let sql = "SELECT h.source FROM tag_history h JOIN manifest m ON m.digest = h.digest
        WHERE h.repository = $1 AND h.tag = $2 AND h.digest = $3 AND (
            EXISTS (SELECT 1 FROM manifest_grant g WHERE g.repository = $1 AND g.digest = $3)
            OR EXISTS (SELECT 1 FROM manifest_deleted d WHERE d.repository = $1 AND d.digest = $3))
        ORDER BY h.position DESC LIMIT 1";
    let found = sqlx::query_scalar(sql).bind(id).bind(tag.as_str()).bind(&text).fetch_optional(&mut *c).await;
    let found: Option<String> = found.map_err(StoreError::catalog)?;
    let Some(source) = found else { return Ok(false) };
    let source = tags::source(&source)?;
    // Whoever turns back to it wants it, wherever it came from.
    content::grant_manifest(c, id, to, false, touched).await?;
    tags::set(c, id, tag, to, source, now_ms, touched).await?;
    // Else the next fill would take it back to where upstream is.
    if source == TagSource::Filled && repository.origin != Origin::Local {
        pin(c, id, tag, true, touched).await?;
    }
    Ok(true)
}

async fn pin(
    c: &mut Connection,
    id: RepositoryId,
    tag: &Tag,
    pinned: bool,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    let sql = "UPDATE tag SET pinned = $3 WHERE repository = $1 AND name = $2";
    let set = sqlx::query(sql).bind(id).bind(tag.as_str()).bind(pinned).execute(&mut *c).await;
    touched.tag(id, tag.clone());
    Ok(set.map_err(StoreError::catalog)?.rows_affected() > 0)
}

async fn release(c: &mut Connection, id: RepositoryId, tag: &Tag, touched: &mut Touched) -> Result<bool, StoreError> {
    // Upstream never confirmed it, so that the next pull asks.
    let sql = "UPDATE tag SET source = 'filled', pinned = FALSE, checked_at = 0
        WHERE repository = $1 AND name = $2 AND (source <> 'filled' OR pinned)";
    let released = sqlx::query(sql).bind(id).bind(tag.as_str()).execute(&mut *c).await;
    touched.tag(id, tag.clone());
    Ok(released.map_err(StoreError::catalog)?.rows_affected() > 0)
}

/// What the tag named, newest first.
pub async fn log(readers: &Pool, id: RepositoryId, tag: &Tag) -> Result<Vec<TagMove>, StoreError> {
    let sql = "SELECT h.digest, h.source, h.moved_at, EXISTS (SELECT 1 FROM manifest m WHERE m.digest = h.digest AND (
            EXISTS (SELECT 1 FROM manifest_grant g WHERE g.repository = h.repository AND g.digest = h.digest)
            OR EXISTS (SELECT 1 FROM manifest_deleted d WHERE d.repository = h.repository AND d.digest = h.digest)))
            AS kept
        FROM tag_history h WHERE h.repository = $1 AND h.tag = $2 ORDER BY h.position DESC LIMIT $3";
    let rows = sqlx::query(sql).bind(id).bind(tag.as_str()).bind(tags::HISTORY_MAX + 1).fetch_all(readers).await;
    rows.map_err(StoreError::catalog)?
        .iter()
        .map(|row| {
            let named: Option<String> = row.try_get("digest").map_err(StoreError::catalog)?;
            let source: String = row.try_get("source").map_err(StoreError::catalog)?;
            Ok(TagMove {
                digest: named.as_deref().map(digest).transpose()?,
                source: tags::source(&source)?,
                moved_at: time(row.try_get("moved_at").map_err(StoreError::catalog)?),
                kept: row.try_get("kept").map_err(StoreError::catalog)?,
            })
        })
        .collect()
}

/// At most `limit` repositories that may hold the blob, the longest known first.
pub async fn holders(readers: &Pool, blob: &Digest, limit: usize) -> Result<Vec<(String, String)>, StoreError> {
    let sql = "SELECT origin, name FROM repository WHERE id IN (
            SELECT repository FROM blob_grant WHERE digest = $1
            UNION SELECT g.repository FROM part p JOIN manifest_grant g ON g.digest = p.manifest
                WHERE p.digest = $1 AND p.kind IN ('config', 'layer'))
        ORDER BY id LIMIT $2";
    let holders = sqlx::query_as(sql).bind(blob.to_string()).bind(integer(limit as u64)).fetch_all(readers).await;
    holders.map_err(StoreError::catalog)
}

/// The index `repository_by_shown` is of the same expression.
pub(super) const REPOSITORIES: &str = "SELECT origin, name FROM (SELECT id, origin, name,
        CASE WHEN origin = '' THEN name ELSE origin || '/' || name END AS shown FROM repository) r
    WHERE shown > $1 AND (EXISTS (SELECT 1 FROM manifest_grant g WHERE g.repository = r.id)
        OR EXISTS (SELECT 1 FROM blob_grant g WHERE g.repository = r.id)
        OR EXISTS (SELECT 1 FROM tag t WHERE t.repository = r.id))
    ORDER BY shown LIMIT $2";

/// At most `limit` repositories that hold anything, after `after`, by origin and name, in byte order of both together.
pub async fn repositories(
    readers: &Pool,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<(String, String)>, StoreError> {
    let names = sqlx::query_as(REPOSITORIES).bind(after.unwrap_or("")).bind(integer(limit as u64));
    names.fetch_all(readers).await.map_err(StoreError::catalog)
}
