//! Manifests of unknown types that an older version kept without what they name: they are read once more.

use super::touched::Touched;
use super::{Connection, Pool, content, digest, integer};
use crate::oci::{Digest, Manifest};
use crate::store::StoreError;

/// At most `limit` of them after `after` that are still to be read.
pub async fn page(readers: &Pool, after: &str, limit: usize) -> Result<Vec<Digest>, StoreError> {
    let sql = "SELECT digest FROM reread WHERE digest > $1 ORDER BY digest LIMIT $2";
    let page = sqlx::query_scalar(sql).bind(after).bind(integer(limit as u64)).fetch_all(readers).await?;
    let page: Vec<String> = page;
    page.iter().map(|text| digest(text)).collect()
}

/// Records what the manifest names and what it refers to. `false`: it is not to be read any more.
pub async fn record(c: &mut Connection, manifest: &Manifest, touched: &mut Touched) -> Result<bool, StoreError> {
    let text = manifest.digest.to_string();
    let read = sqlx::query("DELETE FROM reread WHERE digest = $1").bind(&text).execute(&mut *c).await?;
    if read.rows_affected() == 0 {
        return Ok(false);
    }
    content::rewrite_opaque(c, manifest, &text).await?;
    touched.manifest(manifest.digest);
    Ok(true)
}
