//! Tags: what they name, and what they named before.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::complete::is_whole_in;
use super::touched::Touched;
use super::{Connection, Pool, content, digest, time};
use crate::names::Repository;
use crate::oci::{Digest, Tag};
use crate::store::memory::RepositoryId;
use crate::store::{StoreError, TagFacts, TagRecord, TagSource};

/// Digests that a tag's history remembers, besides the newest complete one, which is never forgotten.
pub const HISTORY_MAX: i64 = 32;

/// The newest digest in the history of tag `$2` of repository `$1`, since it was last deleted, that is complete and can
/// be had whole there.
macro_rules! newest_complete {
    ($column:literal) => {
        concat!(
            "SELECT h.",
            $column,
            " FROM tag_history h
                JOIN manifest m ON m.digest = h.digest AND m.complete
                JOIN manifest_grant g ON g.repository = h.repository AND g.digest = h.digest
            WHERE h.repository = $1 AND h.tag = $2
                AND h.position > COALESCE((SELECT MAX(d.position) FROM tag_history d
                    WHERE d.repository = $1 AND d.tag = $2 AND d.digest IS NULL), 0)
                AND ",
            is_whole_in!("h.repository", "h.digest"),
            " ORDER BY h.position DESC LIMIT 1"
        )
    };
}

/// Points the tag; its history grows when the digest changes. `false`: it stays, because what a fill brings moves
/// neither a pinned tag nor one that was pushed or imported.
pub async fn point(
    c: &mut Connection,
    repository: &Repository,
    tag: &Tag,
    to: &Digest,
    source: TagSource,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    let id = content::repository(c, repository).await?;
    let sql =
        "SELECT EXISTS (SELECT 1 FROM tag WHERE repository = $1 AND name = $2 AND (pinned OR source <> 'filled'))";
    let ours = sqlx::query_scalar(sql).bind(id).bind(tag.as_str()).fetch_one(&mut *c).await;
    if ours.map_err(StoreError::catalog)? && source == TagSource::Filled {
        return Ok(false);
    }
    set(c, id, tag, to, source, now_ms, touched).await?;
    Ok(true)
}

/// Points the tag, whatever it is.
pub async fn set(
    c: &mut Connection,
    id: RepositoryId,
    tag: &Tag,
    to: &Digest,
    source: TagSource,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let (name, to) = (tag.as_str(), to.to_string());
    let named: Option<String> = sqlx::query_scalar("SELECT digest FROM tag WHERE repository = $1 AND name = $2")
        .bind(id)
        .bind(name)
        .fetch_optional(&mut *c)
        .await
        .map_err(StoreError::catalog)?;
    let moves = named.as_deref() != Some(to.as_str());
    let sql = "INSERT INTO tag (repository, name, digest, source, checked_at, moved_at) VALUES ($1, $2, $3, $4, $5, $5)
        ON CONFLICT (repository, name) DO UPDATE SET digest = excluded.digest, source = excluded.source,
            checked_at = excluded.checked_at,
            moved_at = CASE WHEN tag.digest = excluded.digest THEN tag.moved_at ELSE excluded.moved_at END";
    let pointed = sqlx::query(sql).bind(id).bind(name).bind(&to).bind(source.as_str()).bind(now_ms);
    pointed.execute(&mut *c).await.map_err(StoreError::catalog)?;
    if moves {
        remember(c, id, name, Some(&to), source, now_ms).await?;
    }
    touched.tag(id, tag.clone());
    Ok(())
}

/// Adds a line to the tag's history: what it names now, or that it was deleted.
pub async fn remember(
    c: &mut Connection,
    id: RepositoryId,
    tag: &str,
    named: Option<&str>,
    source: TagSource,
    now_ms: i64,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO tag_history (repository, tag, position, digest, source, moved_at)
        SELECT $1, $2, COALESCE(MAX(position), 0) + 1, $3, $4, $5
        FROM tag_history WHERE repository = $1 AND tag = $2";
    let added = sqlx::query(sql).bind(id).bind(tag).bind(named).bind(source.as_str()).bind(now_ms);
    added.execute(&mut *c).await.map_err(StoreError::catalog)?;
    thin_out(c, id, tag).await
}

/// Deletes every tag of the repository that names `digest`; returns them. One statement each, however many there are.
pub async fn delete_all(
    c: &mut Connection,
    id: RepositoryId,
    digest: &str,
    now_ms: i64,
) -> Result<Vec<String>, StoreError> {
    let sql = "INSERT INTO tag_history (repository, tag, position, digest, source, moved_at)
        SELECT t.repository, t.name, COALESCE((SELECT MAX(h.position) FROM tag_history h
            WHERE h.repository = t.repository AND h.tag = t.name), 0) + 1, NULL, t.source, $3
        FROM tag t WHERE t.repository = $1 AND t.digest = $2";
    sqlx::query(sql).bind(id).bind(digest).bind(now_ms).execute(&mut *c).await?;
    // As `thin_out`: a tag that was just deleted has no newest complete digest that must stay.
    let sql = "DELETE FROM tag_history
        WHERE repository = $1 AND tag IN (SELECT t.name FROM tag t WHERE t.repository = $1 AND t.digest = $2)
            AND position <= (SELECT MAX(n.position) FROM tag_history n
                WHERE n.repository = tag_history.repository AND n.tag = tag_history.tag) - $3";
    sqlx::query(sql).bind(id).bind(digest).bind(HISTORY_MAX).execute(&mut *c).await?;
    let sql = "DELETE FROM tag WHERE repository = $1 AND digest = $2 RETURNING name";
    Ok(sqlx::query_scalar(sql).bind(id).bind(digest).fetch_all(&mut *c).await?)
}

async fn thin_out(c: &mut Connection, id: RepositoryId, tag: &str) -> Result<(), StoreError> {
    let sql = concat!(
        "DELETE FROM tag_history WHERE repository = $1 AND tag = $2
            AND position <= (SELECT MAX(position) FROM tag_history WHERE repository = $1 AND tag = $2) - $3
            AND position <> COALESCE((",
        newest_complete!("position"),
        "), 0)"
    );
    let thinned = sqlx::query(sql).bind(id).bind(tag).bind(HISTORY_MAX).execute(&mut *c).await;
    thinned.map_err(StoreError::catalog).map(drop)
}

pub async fn read(readers: &Pool, id: RepositoryId, tag: &Tag) -> Result<Option<TagRecord>, StoreError> {
    let sql = concat!(
        "SELECT digest, source, checked_at, moved_at, pinned, (",
        newest_complete!("digest"),
        ") AS newest_complete FROM tag WHERE repository = $1 AND name = $2"
    );
    let row = sqlx::query(sql).bind(id).bind(tag.as_str()).fetch_optional(readers).await;
    row.map_err(StoreError::catalog)?.map(|row| record(&row)).transpose()
}

fn record(row: &SqliteRow) -> Result<TagRecord, StoreError> {
    let text = |column| row.try_get::<String, _>(column).map_err(StoreError::catalog);
    let ms = |column| row.try_get::<i64, _>(column).map_err(StoreError::catalog);
    let newest: Option<String> = row.try_get("newest_complete").map_err(StoreError::catalog)?;
    Ok(TagRecord {
        digest: digest(&text("digest")?)?,
        source: source(&text("source")?)?,
        checked_at: time(ms("checked_at")?),
        moved_at: time(ms("moved_at")?),
        pinned: row.try_get("pinned").map_err(StoreError::catalog)?,
        newest_complete: newest.as_deref().map(digest).transpose()?,
    })
}

pub fn source(text: &str) -> Result<TagSource, StoreError> {
    TagSource::parse(text).ok_or_else(|| StoreError::catalog(format!("`{text}` is not a source of tags")))
}

pub(super) const PAGE: &str = "SELECT name FROM tag WHERE repository = $1 AND name > $2 ORDER BY name LIMIT $3";

/// At most `limit` tags after `last`, in byte order.
pub async fn page(readers: &Pool, id: RepositoryId, last: Option<&str>, limit: usize) -> Result<Vec<Tag>, StoreError> {
    let names = sqlx::query_scalar(PAGE).bind(id).bind(last.unwrap_or("")).bind(super::integer(limit as u64));
    let names: Vec<String> = names.fetch_all(readers).await.map_err(StoreError::catalog)?;
    names.iter().map(|name| name.parse().map_err(StoreError::catalog)).collect()
}

/// Repositories that have a tag.
pub async fn tagged(readers: &Pool) -> Result<Vec<(String, String)>, StoreError> {
    let sql = "SELECT r.origin, r.name FROM repository r
        WHERE EXISTS (SELECT 1 FROM tag t WHERE t.repository = r.id) ORDER BY r.origin, r.name";
    Ok(sqlx::query_as(sql).fetch_all(readers).await?)
}

/// At most `limit` tags, by name.
pub async fn facts(readers: &Pool, id: RepositoryId, limit: usize) -> Result<Vec<TagFacts>, StoreError> {
    let sql = "SELECT name, digest, source, pinned, moved_at FROM tag WHERE repository = $1 ORDER BY name LIMIT $2";
    let rows = sqlx::query(sql).bind(id).bind(super::integer(limit as u64)).fetch_all(readers).await?;
    let facts = rows.iter().map(|row| {
        let text = |column| row.try_get::<String, _>(column);
        Ok(TagFacts {
            name: text("name")?.parse().map_err(StoreError::catalog)?,
            digest: digest(&text("digest")?)?,
            source: source(&text("source")?)?,
            pinned: row.try_get("pinned")?,
            moved_at: time(row.try_get("moved_at")?),
        })
    });
    facts.collect()
}

impl Touched {
    /// Every tag that ever named `manifest` is read again.
    pub async fn tags_that_named(&mut self, c: &mut Connection, manifest: &str) -> Result<(), StoreError> {
        let sql = "SELECT DISTINCT repository, tag FROM tag_history WHERE digest = $1";
        for row in sqlx::query(sql).bind(manifest).fetch_all(&mut *c).await.map_err(StoreError::catalog)? {
            let name: String = row.try_get("tag").map_err(StoreError::catalog)?;
            let id = row.try_get("repository").map_err(StoreError::catalog)?;
            self.tag(id, name.parse().map_err(StoreError::catalog)?);
        }
        Ok(())
    }
}
