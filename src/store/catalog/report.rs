//! What `sealock ls` and `sealock status` tell.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::complete::is_whole_in;
use super::{Pool, content, integer, number, tags, time};
use crate::names::Origin;
use crate::store::{StoreError, TagLine, Totals};

/// Most lines of one list.
pub const LINES_MAX: usize = 100_000;

/// Tags of `origin`, or of all, in repositories whose name begins with `name_prefix`, in byte order.
pub async fn list(
    readers: &Pool,
    origin: Option<&Origin>,
    name_prefix: Option<&str>,
) -> Result<Vec<TagLine>, StoreError> {
    // `reach` is each tag's manifest and all that it is made of, found once however many ways lead to it.
    let sql = concat!(
        "WITH RECURSIVE
        line AS (
            SELECT r.id, r.origin, r.name AS repository, t.name AS tag, t.digest, t.source, t.checked_at, t.moved_at
            FROM tag t JOIN repository r ON r.id = t.repository
            WHERE (CAST($1 AS TEXT) IS NULL OR r.origin = $1) AND (CAST($2 AS TEXT) IS NULL OR SUBSTR(r.name, 1, LENGTH($2)) = $2)
            ORDER BY r.origin, r.name, t.name LIMIT $3),
        reach (root, digest) AS (
            SELECT DISTINCT digest, digest FROM line
            UNION
            SELECT reach.root, p.digest FROM reach JOIN part p ON p.manifest = reach.digest AND p.kind <> 'foreign'),
        weight AS (
            SELECT reach.root, CAST(SUM(COALESCE(b.size, m.size, 0)) AS BIGINT) AS size
            FROM reach LEFT JOIN blob b ON b.digest = reach.digest LEFT JOIN manifest m ON m.digest = reach.digest
            GROUP BY reach.root)
        SELECT line.*, m.media_type, m.artifact_type, weight.size,
            m.complete AND ",
        is_whole_in!("line.id", "line.digest"),
        " AS complete
        FROM line LEFT JOIN manifest m ON m.digest = line.digest LEFT JOIN weight ON weight.root = line.digest
        ORDER BY line.origin, line.repository, line.tag"
    );
    let rows = sqlx::query(sql).bind(origin.map(content::origin)).bind(name_prefix);
    let rows = rows.bind(integer(LINES_MAX as u64)).fetch_all(readers).await.map_err(StoreError::catalog)?;
    rows.iter().map(line).collect()
}

fn line(row: &SqliteRow) -> Result<TagLine, StoreError> {
    let text = |column| row.try_get::<String, _>(column).map_err(StoreError::catalog);
    let ms = |column| row.try_get::<i64, _>(column).map_err(StoreError::catalog);
    let (origin, name) = (text("origin")?, text("repository")?);
    let media_type: Option<String> = row.try_get("media_type").map_err(StoreError::catalog)?;
    let complete: Option<bool> = row.try_get("complete").map_err(StoreError::catalog)?;
    let size: Option<i64> = row.try_get("size").map_err(StoreError::catalog)?;
    Ok(TagLine {
        repository: if origin.is_empty() { name } else { format!("{origin}/{name}") },
        tag: text("tag")?,
        digest: text("digest")?,
        media_type: media_type.unwrap_or_default(),
        artifact_type: row.try_get("artifact_type").map_err(StoreError::catalog)?,
        source: tags::source(&text("source")?)?,
        complete: complete.unwrap_or(false),
        size_bytes: number(size.unwrap_or(0)),
        checked_at: time(ms("checked_at")?),
        moved_at: time(ms("moved_at")?),
    })
}

/// All but `staged_bytes`, which the catalog does not know.
pub async fn totals(readers: &Pool) -> Result<Totals, StoreError> {
    let sql = concat!(
        "SELECT
        (SELECT COUNT(*) FROM repository r WHERE EXISTS (SELECT 1 FROM manifest_grant g WHERE g.repository = r.id)
            OR EXISTS (SELECT 1 FROM blob_grant g WHERE g.repository = r.id)
            OR EXISTS (SELECT 1 FROM tag t WHERE t.repository = r.id)) AS repositories,
        (SELECT COUNT(*) FROM tag) AS tags,
        (SELECT COUNT(*) FROM tag WHERE source = 'pushed') AS pushed_tags,
        (SELECT COUNT(*) FROM tag WHERE source = 'imported') AS imported_tags,
        (SELECT COUNT(*) FROM manifest) AS manifests,
        (SELECT COUNT(*) FROM blob) AS blobs,
        (SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM blob)
            + (SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM manifest) AS size_bytes,
        (SELECT COUNT(*) FROM tag t WHERE NOT EXISTS
            (SELECT 1 FROM manifest m WHERE m.digest = t.digest AND m.complete AND ",
        is_whole_in!("t.repository", "t.digest"),
        ")) AS incomplete_tags"
    );
    let row = sqlx::query(sql).fetch_one(readers).await.map_err(StoreError::catalog)?;
    let count = |column| row.try_get::<i64, _>(column).map(number).map_err(StoreError::catalog);
    Ok(Totals {
        repositories: count("repositories")?,
        tags: count("tags")?,
        pushed_tags: count("pushed_tags")?,
        imported_tags: count("imported_tags")?,
        manifests: count("manifests")?,
        blobs: count("blobs")?,
        size_bytes: count("size_bytes")?,
        staged_bytes: 0,
        incomplete_tags: count("incomplete_tags")?,
    })
}

/// Bytes of kept blobs and manifests.
pub async fn kept_bytes(readers: &Pool) -> Result<u64, StoreError> {
    let sql = "SELECT (SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM blob)
        + (SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM manifest)";
    Ok(number(sqlx::query_scalar(sql).fetch_one(readers).await?))
}
