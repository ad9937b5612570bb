//! Which manifests are complete: kept up to date by the transaction that brings or loses content.
//!
//! An image is complete when its config and every layer that is not foreign are kept, an index when a child that is
//! not an attestation is complete, or when it has no children. It goes up from parts to what they are part of by a
//! work list; digests cannot form a circle, so it ends.

use sqlx::Row;

use super::touched::Touched;
use super::{Connection, digest};
use crate::store::StoreError;

/// Most manifests that one change may reach.
const REACHED_MAX: usize = 100_000;

/// Whether the `manifest` of the statement around it is complete.
macro_rules! is_complete {
    () => {
        "(NOT EXISTS (SELECT 1 FROM part p WHERE p.manifest = manifest.digest AND p.kind IN ('config', 'layer')
                AND NOT EXISTS (SELECT 1 FROM blob b WHERE b.digest = p.digest))
            AND (NOT EXISTS (SELECT 1 FROM part p WHERE p.manifest = manifest.digest AND p.kind = 'manifest')
                OR EXISTS (SELECT 1 FROM part p JOIN manifest child ON child.digest = p.digest
                    WHERE p.manifest = manifest.digest AND p.kind = 'manifest' AND child.complete)))"
    };
}

/// Whether the complete manifest `$digest` can be had whole in `$repository`: of an index, a complete child must be
/// readable there, too.
macro_rules! is_whole_in {
    ($repository:literal, $digest:literal) => {
        concat!(
            "(NOT EXISTS (SELECT 1 FROM part p WHERE p.manifest = ",
            $digest,
            " AND p.kind = 'manifest')
            OR EXISTS (SELECT 1 FROM part p
                JOIN manifest child ON child.digest = p.digest AND child.complete
                JOIN manifest_grant cg ON cg.repository = ",
            $repository,
            " AND cg.digest = p.digest
                WHERE p.manifest = ",
            $digest,
            " AND p.kind = 'manifest'))"
        )
    };
}
pub(super) use is_whole_in;

/// What has `$1` as a part that completeness turns on.
macro_rules! is_made_of {
    () => {
        "digest IN (SELECT manifest FROM part WHERE digest = $1 AND kind IN ('config', 'layer', 'manifest'))"
    };
}

/// A manifest was recorded, incomplete, with its parts.
pub async fn manifest_came(c: &mut Connection, manifest: &str, touched: &mut Touched) -> Result<bool, StoreError> {
    let sql = concat!("UPDATE manifest SET complete = TRUE WHERE digest = $1 AND NOT complete AND ", is_complete!());
    let updated = sqlx::query(sql).bind(manifest).execute(&mut *c).await.map_err(StoreError::catalog)?;
    let complete = updated.rows_affected() > 0;
    if complete {
        touched.completeness(c, manifest).await?;
        spread(c, manifest, RISE, touched).await?;
    }
    Ok(complete)
}

/// A blob was recorded.
pub async fn blob_came(c: &mut Connection, blob: &str, touched: &mut Touched) -> Result<(), StoreError> {
    spread(c, blob, RISE, touched).await
}

/// A blob's or manifest's row was removed.
pub async fn content_went(c: &mut Connection, lost: &str, touched: &mut Touched) -> Result<(), StoreError> {
    spread(c, lost, FALL, touched).await
}

const RISE: &str = concat!(
    "UPDATE manifest SET complete = TRUE WHERE NOT complete AND ",
    is_made_of!(),
    " AND ",
    is_complete!(),
    " RETURNING digest"
);
const FALL: &str = concat!(
    "UPDATE manifest SET complete = FALSE WHERE complete AND ",
    is_made_of!(),
    " AND NOT ",
    is_complete!(),
    " RETURNING digest"
);

async fn spread(c: &mut Connection, from: &str, sql: &'static str, touched: &mut Touched) -> Result<(), StoreError> {
    let mut work = vec![from.to_owned()];
    let mut reached = 0;
    while let Some(part) = work.pop() {
        let rows = sqlx::query(sql).bind(&part).fetch_all(&mut *c).await.map_err(StoreError::catalog)?;
        reached += rows.len();
        if reached > REACHED_MAX {
            return Err(StoreError::catalog(format!("more than {REACHED_MAX} manifests are made of `{from}`")));
        }
        for row in rows {
            let manifest: String = row.try_get(0).map_err(StoreError::catalog)?;
            touched.completeness(c, &manifest).await?;
            work.push(manifest);
        }
    }
    Ok(())
}

impl Touched {
    /// The manifest became readable in one more repository, or in one less: so may what the tags of the indexes around it resolve to.
    pub async fn readable(&mut self, c: &mut Connection, manifest: &str) -> Result<(), StoreError> {
        let sql = "SELECT DISTINCT manifest FROM part WHERE digest = $1 AND kind = 'manifest'";
        let indexes = sqlx::query_scalar(sql).bind(manifest).fetch_all(&mut *c).await.map_err(StoreError::catalog)?;
        for index in indexes {
            let index: String = index;
            self.tags_that_named(c, &index).await?;
        }
        self.tags_that_named(c, manifest).await
    }

    /// The manifest's completeness changed: so may what the tags that ever named it resolve to.
    pub async fn completeness(&mut self, c: &mut Connection, manifest: &str) -> Result<(), StoreError> {
        self.manifest(digest(manifest)?);
        self.tags_that_named(c, manifest).await
    }
}
