//! What can be fetched again: found in the order of its last use, and taken off whole images at a time.
//!
//! A unit is a manifest that no kept manifest names, with what only it keeps. It may go if all of it came from upstreams
//! that are open now, nothing of it was used lately, and nothing that was pushed, imported, pinned or can be turned back
//! to for such a tag needs it (invariants 7 and 8). What a unit shares with another stays with that one. Manifests that keep
//! one another in a circle, as an index that refers to its own child, stay.

use std::collections::{HashMap, HashSet};

use sqlx::{AssertSqlSafe, Row};

use super::sweep::{LIST_MAX, Walk, bound, is_open, keepers, placeholders, text, walk};
use super::touched::Touched;
use super::{Connection, content, digest, integer, number, time};
use crate::oci::Digest;
use crate::store::StoreError;
use crate::store::records::{EvictRules, Evictable, GarbageKind, Origins};

/// Manifests that stay for their own sake, whatever their last use: `all`, or those of the digests `{list}`. `$1`: the open
/// hosts.
macro_rules! needed {
    (@within all, $x:literal) => {
        ""
    };
    (@within some, $x:literal) => {
        concat!(" AND ", $x, " IN ({list})")
    };
    ($which:ident) => {
        concat!(
            "SELECT t.digest FROM tag t WHERE (t.pinned OR t.source <> 'filled')",
            needed!(@within $which, "t.digest"),
            " UNION
                SELECT h.digest FROM tag_history h WHERE h.digest IS NOT NULL AND (h.source <> 'filled'
                    OR EXISTS (SELECT 1 FROM tag t WHERE t.repository = h.repository AND t.name = h.tag
                        AND (t.pinned OR t.source <> 'filled')))",
            needed!(@within $which, "h.digest"),
            " UNION
                SELECT g.digest FROM manifest_grant g JOIN repository r ON r.id = g.repository
                    WHERE (NOT g.filled OR NOT ",
            is_open!("r.origin", "$1"),
            ")",
            needed!(@within $which, "g.digest"),
            " UNION
                SELECT d.digest FROM manifest_deleted d WHERE TRUE",
            needed!(@within $which, "d.digest"),
            " UNION
                SELECT m.digest FROM manifest m
                    WHERE NOT EXISTS (SELECT 1 FROM manifest_grant g WHERE g.digest = m.digest)",
            needed!(@within $which, "m.digest"),
        )
    };
}

/// What is needed and all that this keeps, as `held`.
macro_rules! held {
    () => {
        concat!(
            "WITH RECURSIVE needed (digest) AS (",
            needed!(all),
            "),
            held (digest) AS (
                SELECT digest FROM needed
                UNION SELECT k.kept FROM held JOIN keeps k ON k.keeper = held.digest) "
        )
    };
}

/// Whether the blob `b` belongs to nobody but open upstreams. `$1`: the open hosts.
macro_rules! can_come_back {
    () => {
        concat!(
            "(EXISTS (SELECT 1 FROM blob_grant g WHERE g.digest = b.digest)
            AND NOT EXISTS (SELECT 1 FROM blob_grant g JOIN repository r ON r.id = g.repository
                WHERE g.digest = b.digest AND (NOT g.filled OR NOT ",
            is_open!("r.origin", "$1"),
            ")))"
        )
    };
}

/// Blobs that no manifest names and that may go. `$1`: the open hosts, `$2`: since when what was used stays, in
/// milliseconds.
macro_rules! loose_blobs {
    () => {
        concat!(
            "SELECT b.digest, b.used_at FROM blob b WHERE b.used_at < $2
                AND NOT EXISTS (SELECT 1 FROM part p WHERE p.digest = b.digest) AND ",
            can_come_back!()
        )
    };
}

/// At most `limit` units that may go, the longest unused first. Blobs among them are those that no manifest names.
/// `busy`: what is being brought now.
pub async fn units(
    c: &mut Connection,
    rules: &EvictRules,
    busy: &[Digest],
    limit: usize,
) -> Result<Vec<Evictable>, StoreError> {
    let Some(busy) = above(c, busy).await? else { return Ok(Vec::new()) };
    let manifests = concat!(
        held!(),
        ", top (digest) AS (
            SELECT m.digest FROM manifest m WHERE m.digest NOT IN (SELECT digest FROM held)
                AND NOT EXISTS (SELECT 1 FROM keeps k JOIN manifest km ON km.digest = k.keeper
                    WHERE k.kept = m.digest)),
        unit (top, digest) AS (
            SELECT digest, digest FROM top
            UNION
            SELECT unit.top, k.kept FROM unit JOIN keeps k ON k.keeper = unit.digest
                JOIN manifest m ON m.digest = k.kept)
        SELECT unit.top AS digest, MAX(m.used_at) AS used_at FROM unit JOIN manifest m ON m.digest = unit.digest
        GROUP BY unit.top HAVING MAX(m.used_at) < $2 ORDER BY used_at, digest LIMIT $3"
    );
    let blobs = concat!(loose_blobs!(), " ORDER BY b.used_at, b.digest LIMIT $3");
    let mut found = Vec::new();
    for (kind, sql) in [(GarbageKind::Manifest, manifests), (GarbageKind::Blob, blobs)] {
        let rows = sqlx::query(sql).bind(rules.open.text()).bind(rules.since.as_millisecond());
        for row in rows.bind(integer(limit as u64)).fetch_all(&mut *c).await? {
            let name = text(&row, "digest")?;
            if !busy.contains(&name) {
                found.push(Evictable { digest: digest(&name)?, kind, used_at: time(row.try_get("used_at")?) });
            }
        }
    }
    found.sort_by_key(|one| one.used_at);
    found.truncate(limit);
    Ok(found)
}

/// The repositories in which it can be read.
pub async fn places(c: &mut Connection, one: &Evictable) -> Result<Vec<(String, String)>, StoreError> {
    let sql = match one.kind {
        GarbageKind::Manifest => {
            "SELECT r.origin, r.name FROM manifest_grant g JOIN repository r ON r.id = g.repository
                WHERE g.digest = $1 ORDER BY r.id"
        }
        _ => {
            "SELECT r.origin, r.name FROM blob_grant g JOIN repository r ON r.id = g.repository
                WHERE g.digest = $1 ORDER BY r.id"
        }
    };
    Ok(sqlx::query_as(sql).bind(one.digest.to_string()).fetch_all(c).await?)
}

/// What is busy and all that is made of it; `None` if that is too much to look through.
async fn above(c: &mut Connection, busy: &[Digest]) -> Result<Option<HashSet<String>>, StoreError> {
    let busy: Vec<String> = busy.iter().map(Digest::to_string).collect();
    Ok(keepers(c, &busy).await?.map(|(met, _)| met))
}

/// Those of `asked` that may go now, the longest unused first, and what of that below them stays whatever its last use.
///
/// It finds what [`units`] finds, but by going down from these, and from there up to all that keeps any of it: it runs
/// while nobody else can write, and must not cost by the number of all that is kept.
pub async fn may_go(
    c: &mut Connection,
    asked: &[Evictable],
    rules: &EvictRules,
    busy: &[Digest],
) -> Result<(Vec<Evictable>, HashSet<String>), StoreError> {
    let nothing = (Vec::new(), HashSet::new());
    let of = |kind| asked.iter().filter(move |one| one.kind == kind).map(|one| one.digest.to_string());
    let (tops, blobs): (Vec<_>, Vec<_>) = (of(GarbageKind::Manifest).collect(), of(GarbageKind::Blob).collect());
    let Some(busy) = above(c, busy).await? else { return Ok(nothing) };
    let Some((below, parts)) = kept_manifests(c, &tops).await? else { return Ok(nothing) };
    let Some((near, keeps)) = keepers(c, &below.into_iter().collect::<Vec<_>>()).await? else { return Ok(nothing) };
    let near: Vec<String> = near.into_iter().collect();
    let held = reached(needed(c, &near, &rules.open).await?, &keeps);
    let (used, since_ms) = (used_of(c, &near).await?, rules.since.as_millisecond());
    let kept: HashSet<&String> =
        keeps.iter().filter(|(keeper, _)| used.contains_key(*keeper)).flat_map(|(_, kept)| kept).collect();
    let mut found = Vec::new();
    for top in tops.iter().filter(|top| used.contains_key(*top) && !held.contains(*top) && !kept.contains(*top)) {
        let unit = reached(vec![top.clone()], &parts);
        let last = unit.iter().filter_map(|one| used.get(one)).max().copied().unwrap_or(i64::MAX);
        if last < since_ms && !busy.contains(top) {
            found.push(Evictable { digest: digest(top)?, kind: GarbageKind::Manifest, used_at: time(last) });
        }
    }
    for some in blobs.chunks(LIST_MAX) {
        let sql = format!("{} AND b.digest IN ({})", loose_blobs!(), placeholders(3, some.len()));
        let query = sqlx::query(AssertSqlSafe(sql)).bind(rules.open.text()).bind(since_ms);
        for row in some.iter().fold(query, |query, blob| query.bind(blob)).fetch_all(&mut *c).await? {
            let name = text(&row, "digest")?;
            if !busy.contains(&name) {
                let used_at = time(row.try_get("used_at")?);
                found.push(Evictable { digest: digest(&name)?, kind: GarbageKind::Blob, used_at });
            }
        }
    }
    found.sort_by_key(|one| one.used_at);
    Ok((found, held))
}

/// `tops`, and the kept manifests that they keep, by whom; `None` if that is too much to look through.
async fn kept_manifests(c: &mut Connection, tops: &[String]) -> Result<Option<Walk>, StoreError> {
    let sqls = [
        "SELECT p.manifest, m.digest FROM part p JOIN manifest m ON m.digest = p.digest WHERE p.manifest IN ({list})",
        "SELECT subject, digest FROM manifest WHERE subject IN ({list})",
    ];
    walk(c, tops, sqls, |_, kept| kept).await
}

/// Which of `digests` stay for their own sake.
async fn needed(c: &mut Connection, digests: &[String], open: &Origins) -> Result<Vec<String>, StoreError> {
    let mut needed = Vec::new();
    for some in digests.chunks(LIST_MAX) {
        let sql = needed!(some).replace("{list}", &placeholders(2, some.len()));
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(open.text());
        let found: Vec<String> = some.iter().fold(query, |query, one| query.bind(one)).fetch_all(&mut *c).await?;
        needed.extend(found);
    }
    Ok(needed)
}

/// When those of `digests` that are kept manifests were last used.
async fn used_of(c: &mut Connection, digests: &[String]) -> Result<HashMap<String, i64>, StoreError> {
    let mut used = HashMap::new();
    for some in digests.chunks(LIST_MAX) {
        let list = placeholders(1, some.len());
        let sql = format!("SELECT digest, used_at FROM manifest WHERE digest IN ({list})");
        for row in bound(&sql, some).fetch_all(&mut *c).await? {
            used.insert(row.try_get(0)?, row.try_get(1)?);
        }
    }
    Ok(used)
}

/// `from`, and all that it keeps by `keeps`.
fn reached(from: Vec<String>, keeps: &HashMap<String, Vec<String>>) -> HashSet<String> {
    let (mut work, mut reached) = (from, HashSet::new());
    while let Some(one) = work.pop() {
        if !reached.contains(&one) {
            work.extend(keeps.get(&one).into_iter().flatten().cloned());
            reached.insert(one);
        }
    }
    reached
}

/// What went with one unit.
#[derive(Debug, Default)]
pub struct Went {
    pub manifests: u64,
    pub blobs: u64,
    pub size_bytes: u64,
    /// `repository:tag` of those that no longer resolve here.
    pub tags: Vec<String>,
    pub digests: Vec<Digest>,
}

/// Takes a unit that [`may_go`] has just named off the catalog.
pub async fn evict(
    c: &mut Connection,
    unit: &Evictable,
    held: &HashSet<String>,
    rules: &EvictRules,
    busy: &[Digest],
    touched: &mut Touched,
) -> Result<Went, StoreError> {
    let (mut went, mut blobs) = (Went::default(), Vec::new());
    if unit.kind == GarbageKind::Blob {
        blobs.push(unit.digest.to_string());
    } else {
        let (mut work, mut seen) = (vec![unit.digest.to_string()], HashSet::new());
        let readers = granted(c, &work[0]).await?;
        while let Some(manifest) = work.pop() {
            let below = manifest_goes(c, &manifest, &mut blobs, &mut went, touched).await?;
            for child in below.into_iter().filter(|child| !held.contains(child)) {
                if seen.insert(child.clone()) && goes_along(c, &child, &readers).await? {
                    work.push(child);
                }
            }
        }
    }
    blobs.sort_unstable();
    blobs.dedup();
    blobs.retain(|blob| !busy.iter().any(|busy| busy.to_string() == *blob));
    for some in blobs.chunks(LIST_MAX) {
        blobs_go(c, some, rules, &mut went, touched).await?;
    }
    Ok(went)
}

async fn granted(c: &mut Connection, manifest: &str) -> Result<HashSet<i64>, StoreError> {
    let sql = "SELECT repository FROM manifest_grant WHERE digest = $1";
    let granted: Vec<i64> = sqlx::query_scalar(sql).bind(manifest).fetch_all(c).await?;
    Ok(granted.into_iter().collect())
}

/// Whether a manifest is there for that alone which has just gone: nothing else keeps it, no tag names it, and it can be
/// read nowhere but where that could.
async fn goes_along(c: &mut Connection, child: &str, readers: &HashSet<i64>) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM keeps k JOIN manifest km ON km.digest = k.keeper WHERE k.kept = $1)
        OR EXISTS (SELECT 1 FROM tag WHERE digest = $1) OR EXISTS (SELECT 1 FROM tag_history WHERE digest = $1)";
    let stays: bool = sqlx::query_scalar(sql).bind(child).fetch_one(&mut *c).await?;
    Ok(!stays && granted(c, child).await?.is_subset(readers))
}

/// Takes one manifest off; returns the kept manifests that it kept, and adds the blobs that it named to `blobs`.
async fn manifest_goes(
    c: &mut Connection,
    manifest: &str,
    blobs: &mut Vec<String>,
    went: &mut Went,
    touched: &mut Touched,
) -> Result<Vec<String>, StoreError> {
    let parsed = digest(manifest)?;
    let sql = "SELECT CASE r.origin WHEN '' THEN r.name ELSE r.origin || '/' || r.name END || ':' || t.name
        FROM tag t JOIN repository r ON r.id = t.repository WHERE t.digest = $1 ORDER BY r.origin, r.name, t.name";
    let tags: Vec<String> = sqlx::query_scalar(sql).bind(manifest).fetch_all(&mut *c).await?;
    went.tags.extend(tags);
    let sql = "SELECT m.digest FROM part p JOIN manifest m ON m.digest = p.digest WHERE p.manifest = $1
        UNION SELECT digest FROM manifest WHERE subject = $1";
    let below: Vec<String> = sqlx::query_scalar(sql).bind(manifest).fetch_all(&mut *c).await?;
    let sql = "SELECT b.digest FROM part p JOIN blob b ON b.digest = p.digest WHERE p.manifest = $1";
    let named: Vec<String> = sqlx::query_scalar(sql).bind(manifest).fetch_all(&mut *c).await?;
    blobs.extend(named);
    // What could be read here only because this manifest names it must be asked for anew.
    let sql = "SELECT g.repository, p.digest FROM manifest_grant g JOIN part p ON p.manifest = g.digest
        WHERE g.digest = $1";
    for row in sqlx::query(sql).bind(manifest).fetch_all(&mut *c).await? {
        touched.blob_grant_lost(row.try_get(0)?, digest(row.try_get(1)?)?);
    }
    let sql = "DELETE FROM manifest_grant WHERE digest = $1 RETURNING repository";
    for row in sqlx::query(sql).bind(manifest).fetch_all(&mut *c).await? {
        touched.manifest_grant_lost(row.try_get(0)?, parsed);
    }
    let sql = "SELECT size FROM manifest WHERE digest = $1";
    let size: Option<i64> = sqlx::query_scalar(sql).bind(manifest).fetch_optional(&mut *c).await?;
    content::lose_manifest(c, &parsed, touched).await?;
    touched.thrown(parsed);
    went.digests.push(parsed);
    went.manifests += 1;
    went.size_bytes += number(size.unwrap_or(0));
    Ok(below)
}

/// Takes those of `blobs` off that no manifest names any more, that were not used lately and can be fetched again.
async fn blobs_go(
    c: &mut Connection,
    blobs: &[String],
    rules: &EvictRules,
    went: &mut Went,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let sql = format!(
        concat!(
            "SELECT b.digest, b.size FROM blob b WHERE b.digest IN ({}) AND b.used_at < $2
            AND NOT EXISTS (SELECT 1 FROM part p WHERE p.digest = b.digest) AND ",
            can_come_back!()
        ),
        placeholders(3, blobs.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(rules.open.text()).bind(rules.since.as_millisecond());
    for blob in blobs {
        query = query.bind(blob);
    }
    for row in query.fetch_all(&mut *c).await? {
        let (name, size): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        let sql = "DELETE FROM blob_grant WHERE digest = $1 RETURNING repository";
        for grant in sqlx::query(sql).bind(&name).fetch_all(&mut *c).await? {
            touched.blob_grant_lost(grant.try_get(0)?, digest(&name)?);
        }
        sqlx::query("DELETE FROM blob WHERE digest = $1").bind(&name).execute(&mut *c).await?;
        let parsed = digest(&name)?;
        touched.blob_lost(parsed);
        touched.thrown(parsed);
        went.digests.push(parsed);
        went.blobs += 1;
        went.size_bytes += number(size);
    }
    Ok(())
}
