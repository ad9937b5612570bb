//! What nothing refers to: found by a reader, looked at once more and taken off by the writer.
//!
//! Roots are manifests that a tag names or named lately, that were pushed by digest alone, or that came, were used
//! or were deleted within the grace time. What is alive follows from them by the view `keeps`: a manifest keeps its parts, a subject its
//! referrers. A reader's finding is a guess by the time that it is acted upon, so [`alive`] goes up from each thing that
//! is to go, within the transaction that takes it off (invariant 8).

use std::collections::{HashMap, HashSet};

use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use super::complete::is_whole_in;
use super::touched::Touched;
use super::{Connection, Pool, complete, content, digest, integer, number};
use crate::oci::Digest;
use crate::store::StoreError;
use crate::store::records::{CollectRules, Garbage, GarbageKind};

/// Most digests in one statement.
pub const LIST_MAX: usize = 200;
/// Most that are visited for one batch; beyond that all of it stays.
const REACHED_MAX: usize = 50_000;

/// Whether the host `$origin` is among `$open`, as [`Origins::text`](crate::store::Origins) writes them.
macro_rules! is_open {
    ($origin:literal, $open:literal) => {
        concat!("(LENGTH(REPLACE(", $open, ", ' ' || ", $origin, " || ' ', '')) < LENGTH(", $open, "))")
    };
}
pub(super) use is_open;

/// Whether the manifest `$x` is a root. `$1`: digests of a tag's history that count, `$2`: whether what was never named
/// by a pushed tag stays, `$3`: since when nothing goes, in milliseconds, `$4`: the hosts that can be asked again for
/// what came from them, of which alone such a thing goes.
macro_rules! is_root {
    ($x:literal) => {
        concat!(
            "(EXISTS (SELECT 1 FROM tag t WHERE t.digest = ",
            $x,
            ") OR EXISTS (SELECT 1 FROM manifest m WHERE m.digest = ",
            $x,
            " AND (m.kept_at >= $3 OR m.used_at >= $3))
            OR EXISTS (SELECT 1 FROM manifest_deleted d WHERE d.digest = ",
            $x,
            " AND d.deleted_at >= $3)
            OR EXISTS (SELECT 1 FROM tag_history h
                LEFT JOIN manifest_grant g ON g.repository = h.repository AND g.digest = h.digest
                WHERE h.digest = ",
            $x,
            " AND (
                ((SELECT COUNT(*) FROM tag_history n
                        WHERE n.repository = h.repository AND n.tag = h.tag AND n.position > h.position
                            AND n.digest IS NOT NULL) < $1
                    AND ((g.digest IS NOT NULL
                            AND EXISTS (SELECT 1 FROM tag t WHERE t.repository = h.repository AND t.name = h.tag))
                        OR EXISTS (SELECT 1 FROM tag_history n
                            WHERE n.repository = h.repository AND n.tag = h.tag AND n.moved_at >= $3)))
                OR (g.digest IS NOT NULL
                    AND EXISTS (SELECT 1 FROM tag t WHERE t.repository = h.repository AND t.name = h.tag)
                    AND EXISTS (SELECT 1 FROM manifest m WHERE m.digest = h.digest AND m.complete)
                    AND NOT EXISTS (SELECT 1 FROM tag_history n
                        JOIN manifest nm ON nm.digest = n.digest AND nm.complete
                        JOIN manifest_grant ng ON ng.repository = n.repository AND ng.digest = n.digest
                        WHERE n.repository = h.repository AND n.tag = h.tag AND n.position > h.position AND ",
            is_whole_in!("n.repository", "n.digest"),
            "))))
            OR EXISTS (SELECT 1 FROM manifest_grant g JOIN repository r ON r.id = g.repository WHERE g.digest = ",
            $x,
            " AND ($2 OR (r.origin <> '' AND NOT ",
            is_open!("r.origin", "$4"),
            "))
                AND NOT EXISTS (SELECT 1 FROM tag_history h
                    WHERE h.repository = g.repository AND h.digest = g.digest AND h.source = 'pushed')
                AND NOT EXISTS (SELECT 1 FROM keeps k JOIN manifest km ON km.digest = k.keeper WHERE k.kept = ",
            $x,
            "
                    AND (NOT EXISTS (SELECT 1 FROM manifest_grant kg WHERE kg.digest = k.keeper)
                        OR EXISTS (SELECT 1 FROM manifest_grant kg
                            WHERE kg.repository = g.repository AND kg.digest = k.keeper)))))"
        )
    };
}

/// All that is alive, for the statement that follows.
macro_rules! live {
    () => {
        concat!(
            "WITH RECURSIVE
            asked (digest) AS (SELECT digest FROM manifest UNION SELECT subject FROM manifest WHERE subject IS NOT NULL),
            live (digest) AS (
                SELECT x.digest FROM asked x WHERE ",
            is_root!("x.digest"),
            " UNION SELECT k.kept FROM live JOIN keeps k ON k.keeper = live.digest) "
        )
    };
}

/// At most `limit` manifests, then blobs, that nothing refers to. Manifests stand before those that keep them, so that
/// none is ever taken for one that was pushed by itself because its index went first.
pub async fn garbage(readers: &Pool, rules: &CollectRules, limit: usize) -> Result<Vec<Garbage>, StoreError> {
    let manifests = concat!(
        live!(),
        "SELECT m.digest, m.size, (SELECT MIN(CASE r.origin WHEN '' THEN r.name ELSE r.origin || '/' || r.name END)
            FROM manifest_grant g JOIN repository r ON r.id = g.repository WHERE g.digest = m.digest) AS repository
        FROM manifest m WHERE m.digest NOT IN (SELECT digest FROM live) LIMIT $5"
    );
    let blobs = concat!(
        live!(),
        "SELECT b.digest, b.size, (SELECT MIN(CASE r.origin WHEN '' THEN r.name ELSE r.origin || '/' || r.name END)
            FROM blob_grant g JOIN repository r ON r.id = g.repository WHERE g.digest = b.digest) AS repository
        FROM blob b WHERE b.kept_at < $3 AND b.used_at < $3 AND b.digest NOT IN (SELECT digest FROM live) LIMIT $5"
    );
    let mut found = Vec::new();
    for (kind, sql) in [(GarbageKind::Manifest, manifests), (GarbageKind::Blob, blobs)] {
        let left = integer((limit - found.len()) as u64);
        let rows = sqlx::query(sql).bind(rules.history).bind(rules.keep_untagged).bind(rules.since_ms());
        let rows = rows.bind(rules.open.text()).bind(left);
        for row in rows.fetch_all(readers).await? {
            let repository = row.try_get("repository")?;
            found.push(Garbage {
                digest: digest(row.try_get("digest")?)?,
                kind,
                size_bytes: number(row.try_get("size")?),
                repository,
            });
        }
    }
    let from = found.iter().position(|one| one.kind == GarbageKind::Blob).unwrap_or(found.len());
    let blobs = found.split_off(from);
    let mut ordered = kept_first(readers, found).await?;
    ordered.extend(blobs);
    Ok(ordered)
}

/// Puts what is kept by another before that other one.
async fn kept_first(readers: &Pool, manifests: Vec<Garbage>) -> Result<Vec<Garbage>, StoreError> {
    let mut by_digest: HashMap<String, Garbage> =
        manifests.into_iter().map(|one| (one.digest.to_string(), one)).collect();
    let all: Vec<String> = by_digest.keys().cloned().collect();
    let mut keeps: HashMap<String, Vec<String>> = HashMap::new();
    for some in all.chunks(LIST_MAX) {
        let list = placeholders(1, some.len());
        for sql in [
            format!(
                "SELECT manifest, digest FROM part WHERE manifest IN ({list}) AND kind IN ('manifest', 'attestation')"
            ),
            format!("SELECT subject, digest FROM manifest WHERE subject IN ({list})"),
        ] {
            for row in bound(&sql, some).fetch_all(readers).await? {
                let (keeper, kept): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                keeps.entry(keeper).or_default().push(kept);
            }
        }
    }
    let mut ordered = Vec::with_capacity(all.len());
    for first in all {
        let mut work = vec![(first, false)];
        while let Some((at, seen)) = work.pop() {
            if seen {
                ordered.extend(by_digest.remove(&at));
            } else if by_digest.contains_key(&at) {
                // Taken out, so that two that keep each other do not go round in a circle.
                let below = keeps.remove(&at).unwrap_or_default();
                work.push((at, true));
                work.extend(below.into_iter().map(|kept| (kept, false)));
            }
        }
    }
    Ok(ordered)
}

/// What a walk met, and who keeps what of it.
pub type Walk = (HashSet<String>, HashMap<String, Vec<String>>);

/// `digests`, and all that keeps them; `None` if that is too much to look through.
pub async fn keepers(c: &mut Connection, digests: &[String]) -> Result<Option<Walk>, StoreError> {
    let sqls = [
        "SELECT manifest, digest FROM part WHERE digest IN ({list})",
        "SELECT subject, digest FROM manifest WHERE digest IN ({list}) AND subject IS NOT NULL",
    ];
    walk(c, digests, sqls, |keeper, _| keeper).await
}

/// From `digests` on to what `next` says of each keeper and what it keeps, which `sqls` find for the digests `{list}`.
pub async fn walk(
    c: &mut Connection,
    digests: &[String],
    sqls: [&str; 2],
    next: for<'a> fn(&'a String, &'a String) -> &'a String,
) -> Result<Option<Walk>, StoreError> {
    let mut met: HashSet<String> = digests.iter().cloned().collect();
    let (mut work, mut keeps) = (digests.to_vec(), HashMap::<String, Vec<String>>::new());
    while !work.is_empty() {
        let some = work.split_off(work.len().saturating_sub(LIST_MAX));
        let list = placeholders(1, some.len());
        for sql in sqls {
            for row in bound(&sql.replace("{list}", &list), &some).fetch_all(&mut *c).await? {
                let (keeper, kept): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                let to = next(&keeper, &kept);
                if met.insert(to.clone()) {
                    work.push(to.clone());
                }
                keeps.entry(keeper).or_default().push(kept);
            }
        }
        if met.len() > REACHED_MAX {
            return Ok(None);
        }
    }
    Ok(Some((met, keeps)))
}

/// Which of `digests` are alive now.
async fn alive(c: &mut Connection, digests: &[String], rules: &CollectRules) -> Result<HashSet<String>, StoreError> {
    let Some((met, mut keeps)) = keepers(c, digests).await? else { return Ok(digests.iter().cloned().collect()) };
    let mut alive = HashSet::new();
    let mut work = roots(c, &met.into_iter().collect::<Vec<_>>(), rules).await?;
    while let Some(one) = work.pop() {
        work.extend(keeps.remove(&one).unwrap_or_default());
        alive.insert(one);
    }
    Ok(alive)
}

async fn roots(c: &mut Connection, digests: &[String], rules: &CollectRules) -> Result<Vec<String>, StoreError> {
    let mut roots = Vec::new();
    for some in digests.chunks(LIST_MAX) {
        let asked: Vec<String> = (0..some.len()).map(|number| format!("(${})", number + 5)).collect();
        let (asked, is_root) = (asked.join(","), is_root!("x.digest"));
        let sql = format!("WITH asked (digest) AS (VALUES {asked}) SELECT x.digest FROM asked x WHERE {is_root}");
        let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
        query = query.bind(rules.history).bind(rules.keep_untagged).bind(rules.since_ms()).bind(rules.open.text());
        for digest in some {
            query = query.bind(digest);
        }
        roots.extend(query.fetch_all(&mut *c).await?);
    }
    Ok(roots)
}

/// Takes those of `digests` off the catalog that nothing refers to now, and notes them in the trash; returns them.
pub async fn throw_away(
    c: &mut Connection,
    kind: GarbageKind,
    digests: &[Digest],
    rules: &CollectRules,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<Vec<Digest>, StoreError> {
    let all: Vec<String> = digests.iter().map(Digest::to_string).collect();
    let alive = alive(c, &all, rules).await?;
    let mut dead: Vec<String> = all.into_iter().filter(|digest| !alive.contains(digest)).collect();
    if kind == GarbageKind::Blob {
        dead = old_blobs(c, &dead, rules).await?;
    }
    if dead.is_empty() {
        return Ok(Vec::new());
    }
    let gone = match kind {
        GarbageKind::Manifest => throw_manifests(c, &dead, now_ms, touched).await?,
        GarbageKind::Blob => throw_blobs(c, &dead, now_ms, touched).await?,
        GarbageKind::File => throw_files(c, &dead, now_ms).await?,
    };
    for digest in &gone {
        touched.thrown(*digest);
    }
    Ok(gone)
}

/// Blobs that are old enough, and that no manifest names any more. Manifests are looked for before blobs: one that leaves
/// its tag's history between the two looks is in no batch, while its blobs are. It is whole until it goes itself.
async fn old_blobs(c: &mut Connection, digests: &[String], rules: &CollectRules) -> Result<Vec<String>, StoreError> {
    let since_ms = rules.since_ms();
    let sql = "SELECT digest FROM blob WHERE kept_at < {since} AND used_at < {since} AND digest IN ({list})
        AND NOT EXISTS (SELECT 1 FROM part p JOIN manifest m ON m.digest = p.manifest WHERE p.digest = blob.digest)";
    let sql = sql.replace("{since}", &since_ms.to_string()).replace("{list}", &placeholders(1, digests.len()));
    let rows = bound(&sql, digests).fetch_all(&mut *c).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn throw_manifests(
    c: &mut Connection,
    dead: &[String],
    now_ms: i64,
    touched: &mut Touched,
) -> Result<Vec<Digest>, StoreError> {
    let mut gone = Vec::new();
    for one in dead {
        let list = std::slice::from_ref(one);
        if note_in_trash(c, GarbageKind::Manifest, list, now_ms).await?.is_empty() {
            continue;
        }
        let parsed = digest(one)?;
        // What could be read here only because this manifest names it must be asked for anew.
        let sql = "SELECT g.repository, p.digest FROM manifest_grant g JOIN part p ON p.manifest = g.digest
            WHERE g.digest = $1";
        for row in bound(sql, list).fetch_all(&mut *c).await? {
            touched.blob_grant_lost(row.try_get(0)?, digest(row.try_get(1)?)?);
        }
        let sql = "DELETE FROM manifest_grant WHERE digest = $1 RETURNING repository";
        for row in bound(sql, list).fetch_all(&mut *c).await? {
            touched.manifest_grant_lost(row.try_get(0)?, parsed);
        }
        content::lose_manifest(c, &parsed, touched).await?;
        gone.push(parsed);
    }
    Ok(gone)
}

async fn throw_blobs(
    c: &mut Connection,
    dead: &[String],
    now_ms: i64,
    touched: &mut Touched,
) -> Result<Vec<Digest>, StoreError> {
    let gone = note_in_trash(c, GarbageKind::Blob, dead, now_ms).await?;
    let list = placeholders(1, dead.len());
    let sql = format!("DELETE FROM blob_grant WHERE digest IN ({list}) RETURNING repository, digest");
    for row in bound(&sql, dead).fetch_all(&mut *c).await? {
        touched.blob_grant_lost(row.try_get(0)?, digest(row.try_get(1)?)?);
    }
    let sql = format!("DELETE FROM blob WHERE digest IN ({list}) RETURNING digest");
    for row in bound(&sql, dead).fetch_all(&mut *c).await? {
        touched.blob_lost(digest(row.try_get(0)?)?);
    }
    // Hardly ever any: a manifest that went unread just before, and could not be taken off.
    let sql = format!("SELECT DISTINCT digest FROM part WHERE digest IN ({list})");
    for row in bound(&sql, dead).fetch_all(&mut *c).await? {
        complete::content_went(c, row.try_get(0)?, touched).await?;
    }
    Ok(gone)
}

/// Files without a row; one that was given a row meanwhile is none.
async fn throw_files(c: &mut Connection, dead: &[String], now_ms: i64) -> Result<Vec<Digest>, StoreError> {
    let known = known(c, dead).await?;
    let mut gone = Vec::new();
    for one in dead.iter().filter(|one| !known.contains(*one)) {
        // What was on its way to the trash when we were killed is there with its row already.
        let sql = "INSERT INTO trash (digest, kind, size, thrown_at) SELECT $1, 'file', 0, $2
            WHERE NOT EXISTS (SELECT 1 FROM trash WHERE digest = $1)";
        sqlx::query(sql).bind(one).bind(now_ms).execute(&mut *c).await?;
        gone.push(digest(one)?);
    }
    Ok(gone)
}

/// Notes rows and their grants in the trash; returns the digests that have a row.
async fn note_in_trash(
    c: &mut Connection,
    kind: GarbageKind,
    dead: &[String],
    now_ms: i64,
) -> Result<Vec<Digest>, StoreError> {
    let (row, grants) = match kind {
        GarbageKind::Manifest => {
            ("'manifest', size, media_type, {now} FROM manifest", "'manifest', repository, filled FROM manifest_grant")
        }
        GarbageKind::Blob => ("'blob', size, NULL, {now} FROM blob", "'blob', repository, filled FROM blob_grant"),
        GarbageKind::File => return Ok(Vec::new()),
    };
    let (row, list) = (row.replace("{now}", &now_ms.to_string()), placeholders(1, dead.len()));
    let sql = format!(
        "INSERT INTO trash (digest, kind, size, media_type, thrown_at) SELECT digest, {row} WHERE digest IN ({list})
        ON CONFLICT (digest, kind) DO UPDATE SET size = excluded.size, thrown_at = excluded.thrown_at RETURNING digest"
    );
    let rows = bound(&sql, dead).fetch_all(&mut *c).await?;
    let gone: Result<Vec<Digest>, StoreError> = rows.iter().map(|row| digest(row.try_get(0)?)).collect();
    let sql = format!(
        "INSERT INTO trash_grant (digest, kind, repository, filled) SELECT digest, {grants} WHERE digest IN ({list})
        ON CONFLICT DO NOTHING"
    );
    bound(&sql, dead).execute(&mut *c).await?;
    gone
}

/// Which of `digests` have a row.
pub async fn known(c: &mut Connection, digests: &[String]) -> Result<HashSet<String>, StoreError> {
    let mut known = HashSet::new();
    for some in digests.chunks(LIST_MAX) {
        let list = placeholders(1, some.len());
        let sql = format!(
            "SELECT digest FROM blob WHERE digest IN ({list}) UNION SELECT digest FROM manifest WHERE digest IN ({list})"
        );
        for row in bound(&sql, some).fetch_all(&mut *c).await? {
            known.insert(row.try_get(0)?);
        }
    }
    Ok(known)
}

/// Bytes of what the trash knows.
pub async fn trash_size(readers: &Pool) -> Result<u64, StoreError> {
    let sql = "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM trash";
    Ok(number(sqlx::query_scalar(sql).fetch_one(readers).await?))
}

/// `$first, …`, `count` of them.
pub fn placeholders(first: usize, count: usize) -> String {
    (first..first + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(",")
}

/// The statement with `texts` as its arguments.
pub fn bound<'q>(sql: &str, texts: &'q [String]) -> sqlx::query::Query<'q, sqlx::Sqlite, SqliteArguments> {
    texts.iter().fold(sqlx::query(AssertSqlSafe(sql.to_owned())), |query, text| query.bind(text))
}

/// A text column.
pub fn text(row: &SqliteRow, column: &str) -> Result<String, StoreError> {
    Ok(row.try_get(column)?)
}
