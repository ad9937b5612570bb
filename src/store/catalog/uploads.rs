//! Uploads' rows: whose they are, and how far they are durable.

use std::collections::HashSet;

use sqlx::Row;

use super::{Connection, Pool, content, integer, number};
use crate::names::Repository;
use crate::oci::Algorithm;
use crate::store::{StoreError, UPLOADS_MAX, UPLOADS_PER_CLIENT_MAX, UploadId};

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
        /// Its address.
        client: String,
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
        UploadChange::Begin { id, repository, owner, client, row } => {
            begin(c, id, (repository, owner, client), row, now_ms).await
        }
        UploadChange::Leave { id, row } => leave(c, id, row, now_ms).await,
        UploadChange::End { id, untouched_since_ms } => end(c, id, *untouched_since_ms).await,
    }
}

async fn begin(
    c: &mut Connection,
    id: &UploadId,
    (repository, owner, client): (&Repository, &str, &str),
    row: &UploadRow,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let (origin, name) = content::key(repository);
    let sql = "INSERT INTO upload (id, origin, name, owner, client, size, algorithm, state, touched_at)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9 WHERE (SELECT COUNT(*) FROM upload) < $10
            AND (SELECT COUNT(*) FROM upload WHERE owner = $4 AND client = $5) < $11";
    let begun = sqlx::query(sql).bind(id.to_string()).bind(origin).bind(name).bind(owner).bind(client);
    let begun = begun.bind(integer(row.size)).bind(row.algorithm.as_str()).bind(hex::encode(&row.state)).bind(now_ms);
    let begun = begun.bind(integer(UPLOADS_MAX as u64)).bind(integer(UPLOADS_PER_CLIENT_MAX as u64));
    let begun = begun.execute(&mut *c).await.map_err(StoreError::catalog)?;
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

/// All that there are, [`UPLOADS_MAX`] at most.
pub async fn ids(readers: &Pool) -> Result<HashSet<UploadId>, StoreError> {
    let ids = sqlx::query_scalar("SELECT id FROM upload").fetch_all(readers).await;
    let ids: Vec<String> = ids.map_err(StoreError::catalog)?;
    ids.iter().map(|id| id.parse().map_err(StoreError::catalog)).collect()
}

/// Those that were not touched since `before_ms`, the longest untouched first.
pub async fn untouched(readers: &Pool, before_ms: i64) -> Result<Vec<UploadId>, StoreError> {
    let sql = "SELECT id FROM upload WHERE touched_at <= $1 ORDER BY touched_at, id";
    let ids: Vec<String> =
        sqlx::query_scalar(sql).bind(before_ms).fetch_all(readers).await.map_err(StoreError::catalog)?;
    ids.iter().map(|id| id.parse().map_err(StoreError::catalog)).collect()
}

/// Those that may go to make room for one more of this client's, the first to go first: where it has as many as it may,
/// its own. What is empty goes before what has bytes.
pub async fn in_the_way(
    readers: &Pool,
    owner: &str,
    client: &str,
    empty_before_ms: i64,
    before_ms: i64,
) -> Result<Vec<(UploadId, i64)>, StoreError> {
    let sql = "SELECT id, touched_at FROM upload
        WHERE touched_at <= CASE WHEN size = 0 THEN $3 ELSE $4 END
            AND ((SELECT COUNT(*) FROM upload WHERE owner = $1 AND client = $2) < $5 OR (owner = $1 AND client = $2))
        ORDER BY CASE WHEN size = 0 THEN 0 ELSE 1 END, touched_at, id";
    let rows = sqlx::query(sql).bind(owner).bind(client).bind(empty_before_ms).bind(before_ms);
    let rows = rows.bind(integer(UPLOADS_PER_CLIENT_MAX as u64)).fetch_all(readers).await?;
    let parsed = rows.iter().map(|row| {
        let id: String = row.try_get("id")?;
        Ok((id.parse().map_err(StoreError::catalog)?, row.try_get("touched_at")?))
    });
    parsed.collect()
}
