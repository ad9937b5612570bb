//! Uploads' rows: whose they are, and how far they are durable.

use std::collections::HashMap;

use sqlx::Row;

use super::{Connection, Pool, content, integer, number};
use crate::names::Repository;
use crate::oci::Algorithm;
use crate::store::{StoreError, UPLOADS_MAX, UploadId};

/// How far an upload is durable.
#[derive(Clone, Debug)]
pub struct UploadRow {
    /// In bytes.
    pub size: u64,
    pub algorithm: Algorithm,
    /// The hash's after `size` bytes.
    pub state: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum UploadChange {
    Begin {
        id: UploadId,
        repository: Repository,
        owner: String,
        row: UploadRow,
    },
    Leave {
        id: UploadId,
        row: UploadRow,
    },
    /// With a time: only if it was not touched since.
    End {
        id: UploadId,
        untouched_since_ms: Option<i64>,
    },
}

/// Returns whether there was such an upload; for a new one, whether there was room for it.
pub async fn make(c: &mut Connection, change: &UploadChange, now_ms: i64) -> Result<bool, StoreError> {
    match change {
        UploadChange::Begin { id, repository, owner, row } => begin(c, id, repository, owner, row, now_ms).await,
        UploadChange::Leave { id, row } => leave(c, id, row, now_ms).await,
        UploadChange::End { id, untouched_since_ms } => end(c, id, *untouched_since_ms).await,
    }
}

async fn begin(
    c: &mut Connection,
    id: &UploadId,
    repository: &Repository,
    owner: &str,
    row: &UploadRow,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let (origin, name) = content::key(repository);
    let sql = "INSERT INTO upload (id, origin, name, owner, size, algorithm, state, touched_at)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE (SELECT COUNT(*) FROM upload) < $9";
    let begun = sqlx::query(sql).bind(id.to_string()).bind(origin).bind(name).bind(owner);
    let begun = begun.bind(integer(row.size)).bind(row.algorithm.as_str()).bind(hex::encode(&row.state)).bind(now_ms);
    let begun = begun.bind(integer(UPLOADS_MAX as u64)).execute(&mut *c).await.map_err(StoreError::catalog)?;
    Ok(begun.rows_affected() > 0)
}

async fn leave(c: &mut Connection, id: &UploadId, row: &UploadRow, now_ms: i64) -> Result<bool, StoreError> {
    let sql = "UPDATE upload SET size = $2, algorithm = $3, state = $4, touched_at = $5 WHERE id = $1";
    let left = sqlx::query(sql).bind(id.to_string()).bind(integer(row.size)).bind(row.algorithm.as_str());
    let left = left.bind(hex::encode(&row.state)).bind(now_ms).execute(&mut *c).await;
    Ok(left.map_err(StoreError::catalog)?.rows_affected() > 0)
}

/// Removes the row; with a time, only if nobody touched it since. `false`: there is none.
pub async fn end(c: &mut Connection, id: &UploadId, untouched_since_ms: Option<i64>) -> Result<bool, StoreError> {
    let sql = "DELETE FROM upload WHERE id = $1 AND touched_at <= $2";
    let ended = sqlx::query(sql).bind(id.to_string()).bind(untouched_since_ms.unwrap_or(i64::MAX));
    Ok(ended.execute(&mut *c).await.map_err(StoreError::catalog)?.rows_affected() > 0)
}

/// `None` also where it is another repository's or another owner's.
pub async fn read(
    readers: &Pool,
    repository: &Repository,
    owner: &str,
    id: &UploadId,
) -> Result<Option<UploadRow>, StoreError> {
    let (origin, name) = content::key(repository);
    let sql = "SELECT size, algorithm, state FROM upload
        WHERE id = $1 AND origin = $2 AND name = $3 AND owner = $4";
    let row = sqlx::query(sql).bind(id.to_string()).bind(origin).bind(name).bind(owner).fetch_optional(readers).await;
    let Some(row) = row.map_err(StoreError::catalog)? else { return Ok(None) };
    let text = |column| row.try_get::<String, _>(column).map_err(StoreError::catalog);
    let named = text("algorithm")?;
    let algorithm = Algorithm::parse(&named);
    Ok(Some(UploadRow {
        size: number(row.try_get("size").map_err(StoreError::catalog)?),
        algorithm: algorithm.ok_or_else(|| StoreError::catalog(format!("`{named}` is not an algorithm")))?,
        state: hex::decode(text("state")?).map_err(StoreError::catalog)?,
    }))
}

/// All that there are, [`UPLOADS_MAX`] at most, and how many bytes of each are durable.
pub async fn sizes(readers: &Pool) -> Result<HashMap<UploadId, u64>, StoreError> {
    let rows = sqlx::query_as("SELECT id, size FROM upload").fetch_all(readers).await;
    let rows: Vec<(String, i64)> = rows.map_err(StoreError::catalog)?;
    rows.iter().map(|(id, size)| Ok((id.parse().map_err(StoreError::catalog)?, number(*size)))).collect()
}

/// Those that were not touched since `before_ms`, the longest untouched first.
pub async fn untouched(readers: &Pool, before_ms: i64) -> Result<Vec<UploadId>, StoreError> {
    let sql = "SELECT id FROM upload WHERE touched_at <= $1 ORDER BY touched_at, id";
    let ids: Vec<String> =
        sqlx::query_scalar(sql).bind(before_ms).fetch_all(readers).await.map_err(StoreError::catalog)?;
    ids.iter().map(|id| id.parse().map_err(StoreError::catalog)).collect()
}
