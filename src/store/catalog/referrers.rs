//! What refers to a manifest, read in pages: the order is that of the digests, because new ones may come between two.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::sweep::{LIST_MAX, bound, placeholders};
use super::{Pool, digest, integer, number};
use crate::oci::{Descriptor, Digest};
use crate::store::memory::RepositoryId;
use crate::store::{ReferrersPage, StoreError};

/// Most referrers in one page.
pub const REFERRERS_PAGE_MAX: usize = 1_000;
/// Most bytes of them as JSON: clients read no larger index. One that is larger by itself is a page of its own.
pub const REFERRERS_BYTES_MAX: usize = 3 << 20;

/// Digests and sizes of what refers to `$2` in repository `$1`, after `$3`, at most `$5`: whose subject it is; or what is
/// of a type that we do not know and names no subject, but stands in the index under the fallback tag `$4`.
macro_rules! referring {
    ($filter:literal) => {
        concat!(
            "SELECT m.digest, m.size FROM manifest m
                JOIN manifest_grant g ON g.repository = $1 AND g.digest = m.digest
                WHERE m.subject = $2 AND m.digest > $3 ",
            $filter,
            " UNION ALL SELECT m.digest, m.size FROM manifest m
                WHERE m.digest IN (SELECT p.digest FROM tag t JOIN part p ON p.manifest = t.digest
                        WHERE t.repository = $1 AND t.name = $4 AND p.kind IN ('manifest', 'attestation'))
                    AND EXISTS (SELECT 1 FROM manifest_grant g WHERE g.repository = $1 AND g.digest = m.digest)
                    AND m.digest > $3 AND m.subject IS NULL
                    AND m.media_type NOT IN (
                        'application/vnd.oci.image.manifest.v1+json',
                        'application/vnd.oci.image.index.v1+json',
                        'application/vnd.docker.distribution.manifest.v2+json',
                        'application/vnd.docker.distribution.manifest.list.v2+json') ",
            $filter,
            " ORDER BY 1 LIMIT $5"
        )
    };
}

pub(super) const ALL: &str = referring!("");
pub(super) const OF_TYPE: &str = referring!("AND m.artifact_type = $6");

pub async fn page(
    readers: &Pool,
    id: RepositoryId,
    subject: &Digest,
    artifact_type: Option<&str>,
    after: Option<&Digest>,
) -> Result<ReferrersPage, StoreError> {
    let (found, more) = found(readers, id, subject, artifact_type, after).await?;
    let (mut listed, mut bytes, mut left) = (Vec::new(), 0, found.as_slice());
    let mut more_after = left.last().map(|(last, _)| *last).filter(|_| more);
    'page: while !left.is_empty() {
        let (some, rest) = left.split_at(readable_at_once(left));
        left = rest;
        for (kept_at, descriptor) in descriptors(readers, some).await? {
            bytes += descriptor.wire_bytes();
            if bytes > REFERRERS_BYTES_MAX && !listed.is_empty() {
                more_after = listed.last().map(|(_, last): &(i64, Descriptor)| last.digest);
                break 'page;
            }
            listed.push((kept_at, descriptor));
        }
    }
    if more_after.is_none() && after.is_none() {
        listed.sort_by_key(|(kept_at, _)| std::cmp::Reverse(*kept_at));
    }
    Ok(ReferrersPage { descriptors: listed.into_iter().map(|(_, descriptor)| descriptor).collect(), more_after })
}

/// Digests and sizes of a page's worth, and whether more follow.
async fn found(
    readers: &Pool,
    id: RepositoryId,
    subject: &Digest,
    artifact_type: Option<&str>,
    after: Option<&Digest>,
) -> Result<(Vec<(Digest, u64)>, bool), StoreError> {
    let query = sqlx::query(if artifact_type.is_some() { OF_TYPE } else { ALL });
    let query = query.bind(id).bind(subject.to_string()).bind(after.map(Digest::to_string).unwrap_or_default());
    let query = query.bind(subject.fallback_tag()).bind(integer(REFERRERS_PAGE_MAX as u64 + 1));
    let query = match artifact_type {
        Some(artifact_type) => query.bind(artifact_type),
        None => query,
    };
    let rows = query.fetch_all(readers).await?;
    let more = rows.len() > REFERRERS_PAGE_MAX;
    let some = rows.iter().take(REFERRERS_PAGE_MAX);
    let found = some.map(|row| Ok((digest(row.try_get(0)?)?, number(row.try_get(1)?))));
    Ok((found.collect::<Result<_, StoreError>>()?, more))
}

/// How many of them are read together: no more than a page takes, were each as large as its manifest, which it never
/// exceeds by much; and one at least.
fn readable_at_once(found: &[(Digest, u64)]) -> usize {
    let mut bytes = 0;
    let fits = |(_, size): &&(Digest, u64)| {
        bytes += size;
        bytes <= REFERRERS_BYTES_MAX as u64
    };
    found.iter().take(LIST_MAX).take_while(fits).count().max(1)
}

/// When each came, and its descriptor, by digest. One that went meanwhile is left out.
async fn descriptors(readers: &Pool, found: &[(Digest, u64)]) -> Result<Vec<(i64, Descriptor)>, StoreError> {
    let texts: Vec<String> = found.iter().map(|(digest, _)| digest.to_string()).collect();
    let sql = format!(
        "SELECT digest, media_type, size, artifact_type, annotations, kept_at FROM manifest
        WHERE digest IN ({}) ORDER BY digest",
        placeholders(1, texts.len())
    );
    let rows = bound(&sql, &texts).fetch_all(readers).await?;
    rows.iter().map(|row| Ok((row.try_get("kept_at")?, descriptor(row)?))).collect()
}

fn descriptor(row: &SqliteRow) -> Result<Descriptor, StoreError> {
    Ok(Descriptor {
        media_type: row.try_get("media_type")?,
        digest: digest(row.try_get("digest")?)?,
        size: number(row.try_get("size")?),
        platform: None,
        artifact_type: row.try_get("artifact_type")?,
        annotations: serde_json::from_str(row.try_get("annotations")?).map_err(StoreError::catalog)?,
        foreign: false,
    })
}
