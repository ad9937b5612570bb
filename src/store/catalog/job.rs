//! Where jobs go on after a restart.

use sqlx::Row;

use super::{Connection, Pool, time};
use crate::store::StoreError;
use jiff::Timestamp;

/// The position that a job has noted, and when.
pub async fn read(readers: &Pool, name: &str) -> Result<Option<(String, Timestamp)>, StoreError> {
    let sql = "SELECT position, changed_at FROM job WHERE name = $1";
    let row = sqlx::query(sql).bind(name).fetch_optional(readers).await?;
    row.map(|row| Ok((row.try_get("position")?, time(row.try_get("changed_at")?)))).transpose()
}

pub async fn note(c: &mut Connection, name: &str, position: &str, now_ms: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO job (name, position, changed_at) VALUES ($1, $2, $3)
        ON CONFLICT (name) DO UPDATE SET position = excluded.position, changed_at = excluded.changed_at";
    sqlx::query(sql).bind(name).bind(position).bind(now_ms).execute(&mut *c).await?;
    Ok(())
}
