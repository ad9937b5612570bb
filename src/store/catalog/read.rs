//! Reads what content is kept and where it may be read.

use std::collections::HashSet;

use sqlx::sqlite::SqliteRow;
use sqlx::{Executor, Row};

use super::{Connection, Database, Pool, content, digest, integer, number};
use crate::names::Repository;
use crate::oci::{Digest, MediaType};
use crate::store::StoreError;
use crate::store::memory::RepositoryId;

/// A manifest's row.
pub struct ManifestRow {
    pub media_type: MediaType,
    pub complete: bool,
}

pub async fn repository<'c>(
    from: impl Executor<'c, Database = Database>,
    repository: &Repository,
) -> Result<Option<RepositoryId>, StoreError> {
    let (origin, name) = content::key(repository);
    let sql = "SELECT id FROM repository WHERE origin = $1 AND name = $2";
    sqlx::query_scalar(sql).bind(origin).bind(name).fetch_optional(from).await.map_err(StoreError::catalog)
}

/// Whether the repository holds anything.
pub async fn has_repository(readers: &Pool, id: RepositoryId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM manifest_grant WHERE repository = $1)
        OR EXISTS (SELECT 1 FROM blob_grant WHERE repository = $1)
        OR EXISTS (SELECT 1 FROM tag WHERE repository = $1)";
    sqlx::query_scalar(sql).bind(id).fetch_one(readers).await.map_err(StoreError::catalog)
}

pub async fn blob_size(readers: &Pool, blob: &Digest) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT size FROM blob WHERE digest = $1";
    let size: Option<i64> =
        sqlx::query_scalar(sql).bind(blob.to_string()).fetch_optional(readers).await.map_err(StoreError::catalog)?;
    Ok(size.map(number))
}

/// Whether the catalog knows it, as a blob or as a manifest.
pub async fn is_known(readers: &Pool, digest: &Digest) -> Result<bool, StoreError> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM blob WHERE digest = $1) OR EXISTS (SELECT 1 FROM manifest WHERE digest = $1)";
    sqlx::query_scalar(sql).bind(digest.to_string()).fetch_one(readers).await.map_err(StoreError::catalog)
}

/// The size of a kept blob that the repository may read: granted itself, or, in an upstream's, named by a manifest that
/// is; and not deleted there. In a local one a client wrote the manifest, and could name whatever it wants to read; and
/// whoever writes `urls` into any manifest makes a layer foreign, which is never held against what is there.
pub async fn granted_blob_size<'c>(
    from: impl Executor<'c, Database = Database>,
    id: RepositoryId,
    blob: &Digest,
) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT size FROM blob WHERE digest = $2
        AND NOT EXISTS (SELECT 1 FROM blob_deleted WHERE repository = $1 AND digest = $2) AND (
            EXISTS (SELECT 1 FROM blob_grant WHERE repository = $1 AND digest = $2)
            OR EXISTS (SELECT 1 FROM part p JOIN manifest_grant g ON g.digest = p.manifest AND g.repository = $1
                JOIN repository r ON r.id = g.repository AND r.origin <> ''
                WHERE p.digest = $2 AND p.kind IN ('config', 'layer')))";
    let size: Option<i64> = sqlx::query_scalar(sql)
        .bind(id)
        .bind(blob.to_string())
        .fetch_optional(from)
        .await
        .map_err(StoreError::catalog)?;
    Ok(size.map(number))
}

/// What a manifest of the repository says the blob's size is; the blob's own size once it is kept.
pub async fn expected_size(readers: &Pool, id: RepositoryId, blob: &Digest) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT COALESCE((SELECT size FROM blob WHERE digest = $2), p.size)
        FROM part p JOIN manifest_grant g ON g.digest = p.manifest AND g.repository = $1
        WHERE p.digest = $2 AND p.kind IN ('config', 'layer') LIMIT 1";
    let size: Option<i64> = sqlx::query_scalar(sql)
        .bind(id)
        .bind(blob.to_string())
        .fetch_optional(readers)
        .await
        .map_err(StoreError::catalog)?;
    Ok(size.map(number))
}

pub async fn manifest(readers: &Pool, manifest: &Digest) -> Result<Option<ManifestRow>, StoreError> {
    let sql = "SELECT media_type, complete FROM manifest WHERE digest = $1";
    let row = sqlx::query(sql).bind(manifest.to_string()).fetch_optional(readers).await;
    let Some(row) = row.map_err(StoreError::catalog)? else { return Ok(None) };
    let named: String = row.try_get("media_type").map_err(StoreError::catalog)?;
    let media_type = MediaType::parse(&named);
    let media_type = media_type.ok_or_else(|| StoreError::catalog(format!("`{named}` is not a media type")))?;
    Ok(Some(ManifestRow { media_type, complete: row.try_get("complete").map_err(StoreError::catalog)? }))
}

/// Whether a kept manifest can be read in the repository.
pub async fn manifest_is_readable(c: &mut Connection, id: RepositoryId, manifest: &Digest) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM manifest m JOIN manifest_grant g ON g.digest = m.digest
        WHERE g.repository = $1 AND m.digest = $2)";
    let readable = sqlx::query_scalar(sql).bind(id).bind(manifest.to_string()).fetch_one(&mut *c).await;
    readable.map_err(StoreError::catalog)
}

pub async fn manifest_is_granted(readers: &Pool, id: RepositoryId, manifest: &Digest) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM manifest_grant WHERE repository = $1 AND digest = $2)";
    let granted = sqlx::query_scalar(sql).bind(id).bind(manifest.to_string()).fetch_one(readers).await;
    granted.map_err(StoreError::catalog)
}

/// The parts of `manifest` that are not kept: blobs anywhere, children in the repository. Foreign ones are never missed.
pub async fn missing(readers: &Pool, id: RepositoryId, manifest: &Digest) -> Result<HashSet<Digest>, StoreError> {
    let sql = "SELECT DISTINCT p.digest FROM part p WHERE p.manifest = $2 AND (
            (p.kind IN ('config', 'layer') AND NOT EXISTS (SELECT 1 FROM blob b WHERE b.digest = p.digest))
            OR (p.kind IN ('manifest', 'attestation') AND NOT EXISTS (
                SELECT 1 FROM manifest m JOIN manifest_grant g ON g.digest = m.digest AND g.repository = $1
                WHERE m.digest = p.digest)))";
    let missing = sqlx::query_scalar(sql).bind(id).bind(manifest.to_string()).fetch_all(readers).await;
    let missing: Vec<String> = missing.map_err(StoreError::catalog)?;
    missing.iter().map(|text| digest(text)).collect()
}

/// A page of what the catalog says is kept, after `after` in byte order: digest, size.
pub async fn kept_page(
    readers: &Pool,
    table: Kept,
    after: &str,
    limit: usize,
) -> Result<Vec<(Digest, u64)>, StoreError> {
    let sql = match table {
        Kept::Blobs => "SELECT digest, size FROM blob WHERE digest > $1 ORDER BY digest LIMIT $2",
        Kept::Manifests => "SELECT digest, size FROM manifest WHERE digest > $1 ORDER BY digest LIMIT $2",
    };
    sized(&sqlx::query(sql).bind(after).bind(integer(limit as u64)).fetch_all(readers).await?)
}

/// As [`kept_page`], of what can be read in a repository.
pub async fn kept_page_of(
    readers: &Pool,
    table: Kept,
    id: RepositoryId,
    after: &str,
    limit: usize,
) -> Result<Vec<(Digest, u64)>, StoreError> {
    let sql = match table {
        Kept::Blobs => {
            "SELECT digest, size FROM blob WHERE digest > $1 AND digest IN (
                SELECT digest FROM blob_grant WHERE repository = $3
                UNION SELECT p.digest FROM part p JOIN manifest_grant g ON g.digest = p.manifest WHERE g.repository = $3)
            ORDER BY digest LIMIT $2"
        }
        Kept::Manifests => {
            "SELECT m.digest, m.size FROM manifest m JOIN manifest_grant g ON g.digest = m.digest AND g.repository = $3
            WHERE m.digest > $1 ORDER BY m.digest LIMIT $2"
        }
    };
    sized(&sqlx::query(sql).bind(after).bind(integer(limit as u64)).bind(id).fetch_all(readers).await?)
}

fn sized(rows: &[SqliteRow]) -> Result<Vec<(Digest, u64)>, StoreError> {
    rows.iter().map(|row| Ok((digest(row.try_get("digest")?)?, number(row.try_get("size")?)))).collect()
}

/// What has a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Blobs,
    Manifests,
}
