//! Holds the catalog's rows against the files: what a crash, an operator or a disk took away is no longer kept.

use std::sync::{Arc, Weak};

use super::catalog::read::{self, Kept};
use super::catalog::writer::Change;
use super::{FoundBy, Inner, StoreError, blocking};
use crate::oci::Digest;

/// Rows that are looked at together.
const PAGE: usize = 1_000;

/// [`files`], without keeping a store alive that everyone else let go of.
pub async fn at_start(store: Weak<Inner>) {
    let Some(inner) = store.upgrade() else { return };
    match inner.reread_manifests().await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "recorded what {count} manifests of unknown types name"),
        Err(why) => tracing::error!(error = &why as &dyn std::error::Error, "nothing can be collected for now: {why}"),
    }
    match files(&inner).await {
        Ok(0) => {}
        Ok(lost) => tracing::error!(lost, "{lost} blobs and manifests were lost since the last start"),
        Err(why) => tracing::error!(error = %why, "the kept files could not all be checked"),
    }
}

/// Returns how many rows had no file of the right length.
pub async fn files(store: &Arc<Inner>) -> Result<u64, StoreError> {
    Ok(check(store, Kept::Manifests).await? + check(store, Kept::Blobs).await?)
}

async fn check(store: &Arc<Inner>, table: Kept) -> Result<u64, StoreError> {
    let (mut after, mut lost) = (String::new(), 0);
    while !store.closing.is_cancelled() {
        let page = read::kept_page(&store.readers, table, &after, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = last.to_string();
        let disk = store.disk.clone();
        let gone = blocking(move || {
            let mut gone: Vec<(Digest, u64)> = Vec::new();
            for (digest, size) in page {
                match disk.find(&digest) {
                    Ok(found) if found.has_size(size) => {}
                    Ok(_) => gone.push((digest, size)),
                    // Perhaps only for now: it stays known, and does not keep the others from being checked.
                    Err(why) => tracing::error!(%digest, error = %why, "a kept file cannot be read"),
                }
            }
            Ok(gone)
        });
        for (digest, size) in gone.await? {
            let change = match table {
                Kept::Blobs => Change::LoseBlob { blob: digest, size, by: FoundBy::Start },
                Kept::Manifests => Change::LoseManifest { manifest: digest, by: FoundBy::Start },
            };
            lost += u64::from(store.writer.apply(change).await?);
        }
    }
    Ok(lost)
}
