//! What is in the trash: listed, put back, forgotten.

use std::sync::Arc;

use sqlx::Row;

use super::sweep::{LIST_MAX, bound, placeholders, text};
use super::touched::Touched;
use super::{Connection, Pool, content, digest, integer, number, time};
use crate::names::{Origin, Repository};
use crate::oci::{Digest, Manifest, MediaType};
use crate::store::StoreError;
use crate::store::records::{GarbageKind, Trashed};

/// A page of the trash after (`after`, `kind`), blobs before manifests of the same digest.
pub async fn page(readers: &Pool, after: (&str, &str), limit: usize) -> Result<Vec<Trashed>, StoreError> {
    let sql = "SELECT digest, kind, size, media_type, thrown_at FROM trash
        WHERE digest > $1 OR (digest = $1 AND kind > $2) ORDER BY digest, kind LIMIT $3";
    let rows = sqlx::query(sql).bind(after.0).bind(after.1).bind(integer(limit as u64)).fetch_all(readers).await?;
    let mut page = Vec::with_capacity(rows.len());
    for row in rows {
        let (name, kind) = (text(&row, "digest")?, text(&row, "kind")?);
        let sql = "SELECT r.origin, r.name, g.filled FROM trash_grant g JOIN repository r ON r.id = g.repository
            WHERE g.digest = $1 AND g.kind = $2 ORDER BY r.id";
        let grants = sqlx::query(sql).bind(&name).bind(&kind).fetch_all(readers).await?;
        let repositories = grants.iter().map(|row| {
            let origin = text(row, "origin")?;
            let origin = if origin.is_empty() { Origin::Local } else { Origin::Upstream(origin.into()) };
            let name = text(row, "name")?.parse().map_err(StoreError::catalog)?;
            Ok((Repository { origin, name }, row.try_get("filled")?))
        });
        let media_type: Option<String> = row.try_get("media_type")?;
        page.push(Trashed {
            digest: digest(&name)?,
            kind: GarbageKind::parse(&kind)
                .ok_or_else(|| StoreError::catalog(format!("`{kind}` is no kind of trash")))?,
            size_bytes: number(row.try_get("size")?),
            media_type: media_type.as_deref().and_then(MediaType::parse),
            repositories: repositories.collect::<Result<_, StoreError>>()?,
            thrown_at: time(row.try_get("thrown_at")?),
        });
    }
    Ok(page)
}

/// Takes a blob back in whose file is in its place again, readable where it was.
pub async fn restore_blob(
    c: &mut Connection,
    blob: &Digest,
    size: u64,
    repositories: &[(Repository, bool)],
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    content::record_blob(c, blob, size, now_ms, touched).await?;
    for (repository, filled) in repositories {
        content::grant_blob(c, repository, blob, *filled, touched).await?;
    }
    forget(c, blob, GarbageKind::Blob).await
}

/// Takes a manifest back in whose file is in its place again, readable where it was.
pub async fn restore_manifest(
    c: &mut Connection,
    manifest: &Arc<Manifest>,
    repositories: &[(Repository, bool)],
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    content::record_manifest(c, manifest, now_ms, touched).await?;
    for (repository, filled) in repositories {
        let id = content::repository(c, repository).await?;
        content::grant_manifest(c, id, &manifest.digest, *filled, touched).await?;
    }
    forget(c, &manifest.digest, GarbageKind::Manifest).await
}

/// Takes a line off the trash.
pub async fn forget(c: &mut Connection, what: &Digest, kind: GarbageKind) -> Result<(), StoreError> {
    for sql in
        ["DELETE FROM trash_grant WHERE digest = $1 AND kind = $2", "DELETE FROM trash WHERE digest = $1 AND kind = $2"]
    {
        sqlx::query(sql).bind(what.to_string()).bind(kind.as_str()).execute(&mut *c).await?;
    }
    Ok(())
}

/// Takes what was thrown away before `before_ms` off the trash; returns whether there was any.
pub async fn expire(c: &mut Connection, before_ms: i64) -> Result<bool, StoreError> {
    let sql = "DELETE FROM trash_grant WHERE EXISTS (SELECT 1 FROM trash t
        WHERE t.digest = trash_grant.digest AND t.kind = trash_grant.kind AND t.thrown_at < $1)";
    sqlx::query(sql).bind(before_ms).execute(&mut *c).await?;
    // Nobody can be turned back to it any more.
    let sql = "DELETE FROM manifest_deleted WHERE digest IN (SELECT digest FROM trash WHERE thrown_at < $1)
        AND NOT EXISTS (SELECT 1 FROM manifest m WHERE m.digest = manifest_deleted.digest)";
    sqlx::query(sql).bind(before_ms).execute(&mut *c).await?;
    let gone = sqlx::query("DELETE FROM trash WHERE thrown_at < $1").bind(before_ms).execute(&mut *c).await?;
    Ok(gone.rows_affected() > 0)
}

/// Those of `digests` of which the trash knows nothing.
pub async fn unknown(c: &mut Connection, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
    let mut unknown = digests.to_vec();
    for some in digests.chunks(LIST_MAX) {
        let texts: Vec<String> = some.iter().map(Digest::to_string).collect();
        let sql = format!("SELECT DISTINCT digest FROM trash WHERE digest IN ({})", placeholders(1, texts.len()));
        for row in bound(&sql, &texts).fetch_all(&mut *c).await? {
            let known = digest(row.try_get(0)?)?;
            unknown.retain(|one| *one != known);
        }
    }
    Ok(unknown)
}
