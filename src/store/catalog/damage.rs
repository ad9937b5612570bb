//! What was kept and was found wrong or missing, until it is kept again.

use std::sync::Arc;

use jiff::SignedDuration;
use sqlx::Row;

use super::touched::Touched;
use super::{Connection, Pool, content, digest, integer, number, time};
use crate::names::{Origin, Repository};
use crate::oci::Digest;
use crate::store::disk::{Disk, Found};
use crate::store::memory::RepositoryId;
use crate::store::trash::FileId;
use crate::store::{Damage, FoundBy, GarbageKind, StoreError, Verdict, blocking};

/// Most records; beyond that what was kept again goes first, then the longest damaged.
pub const DAMAGE_MAX: u64 = 10_000;
/// How long it is told of what was kept again.
const HEALED_TOLD: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Something is to be taken off because it is damaged: who found that out, and when that is recorded.
#[derive(Clone, Copy)]
pub struct Finding {
    pub by: FoundBy,
    pub now_ms: i64,
}

/// As what somebody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Blob,
    Manifest,
}

/// The file is gone or has another length, unless it has come again.
pub async fn lose_blob(
    c: &mut Connection,
    disk: &Arc<Disk>,
    blob: &Digest,
    size: u64,
    finding: Finding,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    // It may have been kept again between the look and now.
    if find(disk, blob).await?.has_size(size) || !content::has_blob(c, blob).await? {
        return Ok(false);
    }
    tracing::error!(digest = %blob, "the file of a kept blob is missing or has the wrong length: {blob} is no longer kept");
    note(c, blob, Need::Blob, Verdict::Missing, finding, touched).await?;
    content::lose_blob(c, blob, touched).await?;
    Ok(true)
}

/// The file is gone, or its bytes are wrong and it is set aside; unless it has come again.
pub async fn lose_manifest(
    c: &mut Connection,
    disk: &Arc<Disk>,
    manifest: &Digest,
    finding: Finding,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    let (there, digest) = (disk.clone(), *manifest);
    match blocking(move || there.hash(&digest, |_| true)).await? {
        Some((_, true)) => return Ok(false),
        Some((look, false)) => return set_aside(c, disk, manifest, look.id, finding, touched).await,
        None => {}
    }
    tracing::error!(digest = %manifest, "the file of a kept manifest is missing: {manifest} is no longer kept");
    note(c, manifest, Need::Manifest, Verdict::Missing, finding, touched).await?;
    content::lose_manifest(c, manifest, touched).await?;
    Ok(true)
}

/// The bytes are wrong, unless another file has come in the place of the one that was read.
pub async fn set_aside(
    c: &mut Connection,
    disk: &Arc<Disk>,
    digest: &Digest,
    wrong: FileId,
    finding: Finding,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    let (there, moved) = (disk.clone(), *digest);
    if !blocking(move || there.set_aside(&moved, wrong)).await? {
        return Ok(false);
    }
    tracing::error!(%digest, "the bytes of {digest} are wrong: it is no longer kept, and its file is in `quarantine/`");
    for need in [Need::Blob, Need::Manifest] {
        note(c, digest, need, Verdict::Wrong, finding, touched).await?;
    }
    content::lose_blob(c, digest, touched).await?;
    content::lose_manifest(c, digest, touched).await?;
    Ok(true)
}

/// It is kept again.
pub async fn heal(
    c: &mut Connection,
    what: &Digest,
    need: Need,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let sql = "UPDATE damage SET healed_at = $3 WHERE digest = $1 AND kind = $2 AND healed_at IS NULL";
    let healed = sqlx::query(sql).bind(what.to_string()).bind(need.kind().as_str()).bind(now_ms);
    if healed.execute(&mut *c).await?.rows_affected() > 0 {
        tracing::info!(digest = %what, "{what} was found damaged and is kept again");
        touched.healed(*what);
    }
    Ok(())
}

/// Records what is still kept and will not be in a moment.
async fn note(
    c: &mut Connection,
    what: &Digest,
    need: Need,
    verdict: Verdict,
    finding: Finding,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let sql = match need {
        Need::Blob => {
            "INSERT INTO damage (digest, kind, size, verdict, found_by, found_at, healed_at)
            SELECT digest, $2, size, $3, $4, $5, NULL FROM blob WHERE digest = $1
            ON CONFLICT (digest, kind) DO UPDATE SET size = excluded.size, verdict = excluded.verdict,
                found_by = excluded.found_by, found_at = excluded.found_at, healed_at = NULL"
        }
        Need::Manifest => {
            "INSERT INTO damage (digest, kind, size, verdict, found_by, found_at, healed_at)
            SELECT digest, $2, size, $3, $4, $5, NULL FROM manifest WHERE digest = $1
            ON CONFLICT (digest, kind) DO UPDATE SET size = excluded.size, verdict = excluded.verdict,
                found_by = excluded.found_by, found_at = excluded.found_at, healed_at = NULL"
        }
    };
    let noted = sqlx::query(sql).bind(what.to_string()).bind(need.kind().as_str()).bind(verdict.as_str());
    let noted = noted.bind(finding.by.as_str()).bind(finding.now_ms).execute(&mut *c).await?;
    if noted.rows_affected() == 0 {
        return Ok(());
    }
    touched.damaged();
    shrink(c, finding.now_ms).await
}

async fn shrink(c: &mut Connection, now_ms: i64) -> Result<(), StoreError> {
    let told_ms = now_ms.saturating_sub(HEALED_TOLD.as_millis() as i64);
    sqlx::query("DELETE FROM damage WHERE healed_at < $1").bind(told_ms).execute(&mut *c).await?;
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM damage").fetch_one(&mut *c).await?;
    let surplus = number(count).saturating_sub(DAMAGE_MAX);
    if surplus > 0 {
        let sql = "DELETE FROM damage WHERE (digest, kind) IN (SELECT digest, kind FROM damage
            ORDER BY CASE WHEN healed_at IS NULL THEN 1 ELSE 0 END, found_at, digest LIMIT $1)";
        sqlx::query(sql).bind(integer(surplus)).execute(&mut *c).await?;
    }
    Ok(())
}

/// See [`Store::damage`](crate::store::Store::damage); without repositories.
pub async fn list(readers: &Pool, limit: usize) -> Result<Vec<Damage>, StoreError> {
    let sql = "SELECT digest, kind, size, verdict, found_by, found_at, healed_at FROM damage
        ORDER BY CASE WHEN healed_at IS NULL THEN 0 ELSE 1 END, found_at DESC, digest, kind LIMIT $1";
    let rows = sqlx::query(sql).bind(integer(limit as u64)).fetch_all(readers).await?;
    rows.iter()
        .map(|row| {
            let (verdict, found_by): (String, String) = (row.try_get("verdict")?, row.try_get("found_by")?);
            Ok(Damage {
                digest: digest(row.try_get("digest")?)?,
                kind: kind(row.try_get("kind")?)?,
                size_bytes: number(row.try_get("size")?),
                verdict: Verdict::parse(&verdict).ok_or_else(|| strange(&verdict))?,
                found_by: FoundBy::parse(&found_by).ok_or_else(|| strange(&found_by))?,
                found_at: time(row.try_get("found_at")?),
                healed_at: row.try_get::<Option<i64>, _>("healed_at")?.map(time),
                repositories: Vec::new(),
            })
        })
        .collect()
}

/// How much is not kept again.
pub async fn count(readers: &Pool) -> Result<u64, StoreError> {
    let sql = "SELECT COUNT(*) FROM damage WHERE healed_at IS NULL";
    Ok(number(sqlx::query_scalar(sql).fetch_one(readers).await?))
}

/// What is not kept again: manifests first, because they say what else is needed.
pub async fn open(readers: &Pool, limit: usize) -> Result<Vec<(Digest, GarbageKind)>, StoreError> {
    let sql = "SELECT digest, kind FROM damage WHERE healed_at IS NULL
        ORDER BY kind DESC, found_at, digest LIMIT $1";
    let rows = sqlx::query(sql).bind(integer(limit as u64)).fetch_all(readers).await?;
    rows.iter().map(|row| Ok((digest(row.try_get("digest")?)?, kind(row.try_get("kind")?)?))).collect()
}

/// Repositories that hold it, or a manifest that names it; upstreams' first.
pub async fn needed_by(readers: &Pool, what: &Digest, limit: usize) -> Result<Vec<Repository>, StoreError> {
    let sql = "SELECT r.origin, r.name FROM repository r WHERE r.id IN (
            SELECT repository FROM blob_grant WHERE digest = $1
            UNION SELECT repository FROM manifest_grant WHERE digest = $1
            UNION SELECT g.repository FROM part p JOIN manifest_grant g ON g.digest = p.manifest
                WHERE p.digest = $1 AND p.kind <> 'foreign')
        AND NOT EXISTS (SELECT 1 FROM blob_deleted d WHERE d.repository = r.id AND d.digest = $1)
        ORDER BY r.origin DESC, r.name LIMIT $2";
    let rows = sqlx::query(sql).bind(what.to_string()).bind(integer(limit as u64)).fetch_all(readers).await?;
    rows.iter()
        .map(|row| {
            let (origin, name): (String, String) = (row.try_get("origin")?, row.try_get("name")?);
            let origin = if origin.is_empty() { Origin::Local } else { Origin::Upstream(origin.into()) };
            Ok(Repository { origin, name: name.parse().map_err(StoreError::catalog)? })
        })
        .collect()
}

/// Whether the repository could read it before: by the same rule as
/// [`granted_blob_size`](super::read::granted_blob_size), so that nobody learns of what others had (invariant 14).
pub async fn is_damaged(readers: &Pool, id: RepositoryId, need: Need, what: &Digest) -> Result<bool, StoreError> {
    let sql = match need {
        Need::Blob => {
            "SELECT EXISTS (SELECT 1 FROM damage WHERE digest = $2 AND kind = 'blob' AND healed_at IS NULL)
            AND NOT EXISTS (SELECT 1 FROM blob_deleted WHERE repository = $1 AND digest = $2) AND (
                EXISTS (SELECT 1 FROM blob_grant WHERE repository = $1 AND digest = $2)
                OR EXISTS (SELECT 1 FROM part p JOIN manifest_grant g ON g.digest = p.manifest AND g.repository = $1
                    JOIN repository r ON r.id = g.repository AND r.origin <> ''
                    WHERE p.digest = $2 AND p.kind IN ('config', 'layer')))"
        }
        Need::Manifest => {
            "SELECT EXISTS (SELECT 1 FROM damage WHERE digest = $2 AND kind = 'manifest' AND healed_at IS NULL)
            AND EXISTS (SELECT 1 FROM manifest_grant WHERE repository = $1 AND digest = $2)"
        }
    };
    Ok(sqlx::query_scalar(sql).bind(id).bind(what.to_string()).fetch_one(readers).await?)
}

impl Need {
    fn kind(self) -> GarbageKind {
        match self {
            Self::Blob => GarbageKind::Blob,
            Self::Manifest => GarbageKind::Manifest,
        }
    }
}

async fn find(disk: &Arc<Disk>, blob: &Digest) -> Result<Found, StoreError> {
    let (disk, blob) = (disk.clone(), *blob);
    blocking(move || disk.find(&blob)).await
}

fn kind(text: &str) -> Result<GarbageKind, StoreError> {
    GarbageKind::parse(text).ok_or_else(|| strange(text))
}

fn strange(text: &str) -> StoreError {
    StoreError::catalog(format!("`{text}` is not a word of the list of damage"))
}
