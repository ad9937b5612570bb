//! The demand ledger: what was asked for while it could not be had.

use std::net::IpAddr;

use sqlx::Row;

use super::{Connection, Pool, integer, number, time};
use crate::store::{StoreError, Wanted};

/// Most names that are noted; the longest unasked go first.
pub const WANTED_MAX: u64 = 10_000;
/// Longest name or reference that is noted, in bytes; longer ones are cut.
const TEXT_MAX: usize = 512;

pub async fn note(
    c: &mut Connection,
    name: &str,
    reference: &str,
    client: IpAddr,
    now_ms: i64,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO wanted (name, reference, client, first_at, last_at, count) VALUES ($1, $2, $3, $4, $4, 1)
        ON CONFLICT (name, reference) DO UPDATE
            SET client = excluded.client, last_at = excluded.last_at, count = wanted.count + 1
        RETURNING count";
    let noted = sqlx::query_scalar(sql).bind(cut(name)).bind(cut(reference)).bind(client.to_string()).bind(now_ms);
    let count: i64 = noted.fetch_one(&mut *c).await.map_err(StoreError::catalog)?;
    if count == 1 { shrink(c).await } else { Ok(()) }
}

async fn shrink(c: &mut Connection) -> Result<(), StoreError> {
    let noted: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM wanted").fetch_one(&mut *c).await.map_err(StoreError::catalog)?;
    let surplus = number(noted).saturating_sub(WANTED_MAX);
    if surplus == 0 {
        return Ok(());
    }
    let sql = "DELETE FROM wanted WHERE (name, reference) IN
        (SELECT name, reference FROM wanted ORDER BY last_at, first_at, name, reference LIMIT $1)";
    sqlx::query(sql).bind(integer(surplus)).execute(&mut *c).await.map_err(StoreError::catalog).map(drop)
}

pub async fn forget(c: &mut Connection, name: &str, reference: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM wanted WHERE name = $1 AND reference = $2";
    let forgotten = sqlx::query(sql).bind(cut(name)).bind(cut(reference)).execute(&mut *c).await;
    forgotten.map_err(StoreError::catalog).map(drop)
}

/// The last asked for first.
pub async fn list(readers: &Pool) -> Result<Vec<Wanted>, StoreError> {
    let sql = "SELECT name, reference, client, first_at, last_at, count FROM wanted
        ORDER BY last_at DESC, name, reference LIMIT $1";
    let rows = sqlx::query(sql).bind(integer(WANTED_MAX)).fetch_all(readers).await.map_err(StoreError::catalog)?;
    rows.iter()
        .map(|row| {
            let text = |column| row.try_get::<String, _>(column).map_err(StoreError::catalog);
            let integer = |column| row.try_get::<i64, _>(column).map_err(StoreError::catalog);
            Ok(Wanted {
                name: text("name")?,
                reference: text("reference")?,
                client: text("client")?.parse().map_err(StoreError::catalog)?,
                first_at: time(integer("first_at")?),
                last_at: time(integer("last_at")?),
                count: number(integer("count")?),
            })
        })
        .collect()
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
