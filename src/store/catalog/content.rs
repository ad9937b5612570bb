//! Writes what content is kept, and where it may be read.

use super::damage::{self, Need};
use super::touched::Touched;
use super::{Connection, complete, integer};
use crate::names::{Origin, Repository};
use crate::oci::{Content, Descriptor, Digest, Manifest, MediaType};
use crate::store::StoreError;
use crate::store::memory::RepositoryId;

/// The key of `repository`, which is made if it is new.
pub async fn repository(c: &mut Connection, repository: &Repository) -> Result<RepositoryId, StoreError> {
    let (origin, name) = key(repository);
    let made = "INSERT INTO repository (id, origin, name)
        SELECT COALESCE(MAX(id), 0) + 1, $1, $2 FROM repository WHERE TRUE ON CONFLICT (origin, name) DO NOTHING";
    let known = "SELECT id FROM repository WHERE origin = $1 AND name = $2";
    for _ in 0..2 {
        let found = sqlx::query_scalar(known).bind(origin).bind(name).fetch_optional(&mut *c).await;
        if let Some(id) = found.map_err(StoreError::catalog)? {
            return Ok(id);
        }
        sqlx::query(made).bind(origin).bind(name).execute(&mut *c).await.map_err(StoreError::catalog)?;
    }
    Err(StoreError::catalog(format!("`{repository}` cannot be recorded")))
}

/// How the catalog writes a repository: an upstream's host is never empty, so '' is this site.
pub fn key(repository: &Repository) -> (&str, &str) {
    (origin(&repository.origin), repository.name.as_str())
}

pub fn origin(origin: &Origin) -> &str {
    match origin {
        Origin::Local => "",
        Origin::Upstream(host) => host,
    }
}

/// Records a blob whose file is durable, grants it, and completes what waited for it.
pub async fn keep_blob(
    c: &mut Connection,
    to: &Repository,
    blob: &Digest,
    size: u64,
    filled: bool,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    record_blob(c, blob, size, now_ms, touched).await?;
    grant_blob(c, to, blob, filled, touched).await
}

/// Records a blob whose file is durable.
pub async fn record_blob(
    c: &mut Connection,
    blob: &Digest,
    size: u64,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let text = blob.to_string();
    let sql = "INSERT INTO blob (digest, size, kept_at, used_at) VALUES ($1, $2, $3, $3)
        ON CONFLICT (digest) DO UPDATE SET size = excluded.size WHERE blob.size <> excluded.size";
    let kept = sqlx::query(sql).bind(&text).bind(integer(size)).bind(now_ms).execute(&mut *c).await;
    if kept.map_err(StoreError::catalog)?.rows_affected() > 0 {
        damage::heal(c, blob, Need::Blob, now_ms, touched).await?;
        complete::blob_came(c, &text, touched).await?;
    }
    touched.blob_kept(*blob, size);
    Ok(())
}

/// Makes a kept blob readable in `to`, also where it was deleted. `filled`: it came from there, and can be fetched again;
/// what was ever brought by other ways counts as brought.
pub async fn grant_blob(
    c: &mut Connection,
    to: &Repository,
    blob: &Digest,
    filled: bool,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let id = repository(c, to).await?;
    let sql = "INSERT INTO blob_grant (repository, digest, filled) VALUES ($1, $2, $3)
        ON CONFLICT (repository, digest) DO UPDATE SET filled = FALSE WHERE blob_grant.filled AND NOT excluded.filled";
    let granted = sqlx::query(sql).bind(id).bind(blob.to_string()).bind(filled).execute(&mut *c).await;
    granted.map_err(StoreError::catalog)?;
    for sql in [
        "DELETE FROM blob_deleted WHERE repository = $1 AND digest = $2",
        // It need not be put back here; and if it is deleted here from now on, it must not be.
        "DELETE FROM trash_grant WHERE repository = $1 AND digest = $2 AND kind = 'blob'",
    ] {
        sqlx::query(sql).bind(id).bind(blob.to_string()).execute(&mut *c).await.map_err(StoreError::catalog)?;
    }
    touched.blob_grant(id, *blob);
    Ok(())
}

/// Makes a kept manifest readable in `to`, also where it was deleted. `filled` is as for [`grant_blob`].
pub async fn grant_manifest(
    c: &mut Connection,
    to: RepositoryId,
    manifest: &Digest,
    filled: bool,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let text = manifest.to_string();
    let sql = "INSERT INTO manifest_grant (repository, digest, filled) VALUES ($1, $2, $3)
        ON CONFLICT (repository, digest) DO UPDATE SET filled = FALSE
            WHERE manifest_grant.filled AND NOT excluded.filled";
    let granted = sqlx::query(sql).bind(to).bind(&text).bind(filled).execute(&mut *c).await;
    let mut changed = granted.map_err(StoreError::catalog)?.rows_affected();
    let sql = "DELETE FROM manifest_deleted WHERE repository = $1 AND digest = $2";
    let revived = sqlx::query(sql).bind(to).bind(&text).execute(&mut *c).await;
    changed += revived.map_err(StoreError::catalog)?.rows_affected();
    let sql = "DELETE FROM trash_grant WHERE repository = $1 AND digest = $2 AND kind = 'manifest'";
    sqlx::query(sql).bind(to).bind(&text).execute(&mut *c).await.map_err(StoreError::catalog)?;
    touched.manifest_grant(to, *manifest);
    // Thousands of tags may name it: they are read again only if it could not be read before.
    if changed > 0 { touched.readable(c, &text).await } else { Ok(()) }
}

pub async fn has_blob(c: &mut Connection, blob: &Digest) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM blob WHERE digest = $1)";
    sqlx::query_scalar(sql).bind(blob.to_string()).fetch_one(&mut *c).await.map_err(StoreError::catalog)
}

/// Records a manifest whose file is durable, with its parts, and makes it readable in `to`.
pub async fn keep_manifest(
    c: &mut Connection,
    to: &Repository,
    manifest: &Manifest,
    filled: bool,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let id = repository(c, to).await?;
    record_manifest(c, manifest, now_ms, touched).await?;
    grant_manifest(c, id, &manifest.digest, filled, touched).await
}

/// Records a manifest whose file is durable, with its parts.
pub async fn record_manifest(
    c: &mut Connection,
    manifest: &Manifest,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<(), StoreError> {
    let text = manifest.digest.to_string();
    let known: Option<String> = sqlx::query_scalar("SELECT media_type FROM manifest WHERE digest = $1")
        .bind(&text)
        .fetch_optional(&mut *c)
        .await
        .map_err(StoreError::catalog)?;
    // Who first sent it as a type that we do not know must not hide its parts from everyone else.
    let replaced = known.as_deref().is_some_and(|known| is_opaque(known) && !is_opaque(manifest.media_type.as_str()));
    if replaced {
        lose_manifest(c, &manifest.digest, touched).await?;
    }
    if known.is_none() || replaced {
        damage::heal(c, &manifest.digest, Need::Manifest, now_ms, touched).await?;
        insert_manifest(c, manifest, &text, now_ms).await?;
        insert_parts(c, manifest, &text).await?;
        insert_named(c, manifest, &text).await?;
        complete::manifest_came(c, &text, touched).await?;
    }
    touched.manifest(manifest.digest);
    Ok(())
}

/// The blob's file is gone or has another length: it is not kept.
pub async fn lose_blob(c: &mut Connection, blob: &Digest, touched: &mut Touched) -> Result<(), StoreError> {
    let text = blob.to_string();
    let sql = "DELETE FROM blob WHERE digest = $1";
    sqlx::query(sql).bind(&text).execute(&mut *c).await.map_err(StoreError::catalog)?;
    touched.blob_lost(*blob);
    complete::content_went(c, &text, touched).await
}

/// The manifest's file is gone or wrong: it is not kept. What it was granted to and which tags named it stays known.
pub async fn lose_manifest(c: &mut Connection, manifest: &Digest, touched: &mut Touched) -> Result<(), StoreError> {
    let text = manifest.to_string();
    let sql = "DELETE FROM manifest WHERE digest = $1";
    sqlx::query(sql).bind(&text).execute(&mut *c).await.map_err(StoreError::catalog)?;
    touched.completeness(c, &text).await?;
    complete::content_went(c, &text, touched).await
}

/// Writes when content was last asked for.
pub async fn note_used(c: &mut Connection, used: &[(Digest, i64)]) -> Result<(), StoreError> {
    for (digest, at_ms) in used {
        let text = digest.to_string();
        for sql in [
            "UPDATE blob SET used_at = $2 WHERE digest = $1 AND used_at < $2",
            "UPDATE manifest SET used_at = $2 WHERE digest = $1 AND used_at < $2",
        ] {
            sqlx::query(sql).bind(&text).bind(at_ms).execute(&mut *c).await.map_err(StoreError::catalog)?;
        }
    }
    Ok(())
}

async fn insert_manifest(c: &mut Connection, manifest: &Manifest, text: &str, now_ms: i64) -> Result<(), StoreError> {
    let annotations = serde_json::to_string(&manifest.annotations).map_err(StoreError::catalog)?;
    let sql = "INSERT INTO manifest
            (digest, media_type, size, subject, artifact_type, annotations, complete, kept_at, used_at)
        VALUES ($1, $2, $3, $4, $5, $6, FALSE, $7, $7)";
    sqlx::query(sql)
        .bind(text)
        .bind(manifest.media_type.as_str())
        .bind(integer(manifest.size()))
        .bind(manifest.subject.as_ref().map(|subject| subject.digest.to_string()))
        .bind(manifest.artifact_type.as_deref())
        .bind(annotations)
        .bind(now_ms)
        .execute(&mut *c)
        .await
        .map_err(StoreError::catalog)?;
    Ok(())
}

async fn insert_parts(c: &mut Connection, manifest: &Manifest, text: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO part (manifest, position, digest, kind, size, media_type, platform)
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    for (position, (part, kind)) in manifest.parts().zip(kinds(&manifest.content)).enumerate() {
        sqlx::query(sql)
            .bind(text)
            .bind(integer(position as u64))
            .bind(part.digest.to_string())
            .bind(kind)
            .bind(integer(part.size))
            .bind(&part.media_type)
            .bind(part.platform.clone().map(String::from))
            .execute(&mut *c)
            .await
            .map_err(StoreError::catalog)?;
    }
    Ok(())
}

/// What a manifest of an unknown type names is kept with it; it opens nothing and completes nothing.
async fn insert_named(c: &mut Connection, manifest: &Manifest, text: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO part (manifest, position, digest, kind, size, media_type, platform)
        VALUES ($1, $2, $3, 'named', 0, '', NULL)";
    for (position, named) in manifest.named().iter().enumerate() {
        let named = sqlx::query(sql).bind(text).bind(integer(position as u64)).bind(named.to_string());
        named.execute(&mut *c).await.map_err(StoreError::catalog)?;
    }
    Ok(())
}

/// Records a manifest of an unknown type as it is read now.
pub async fn rewrite_opaque(c: &mut Connection, manifest: &Manifest, text: &str) -> Result<(), StoreError> {
    let annotations = serde_json::to_string(&manifest.annotations).map_err(StoreError::catalog)?;
    let sql = "UPDATE manifest SET subject = $2, artifact_type = $3, annotations = $4 WHERE digest = $1";
    let subject = manifest.subject.as_ref().map(|subject| subject.digest.to_string());
    let rewritten = sqlx::query(sql).bind(text).bind(subject).bind(manifest.artifact_type.as_deref()).bind(annotations);
    rewritten.execute(&mut *c).await?;
    sqlx::query("DELETE FROM part WHERE manifest = $1").bind(text).execute(&mut *c).await?;
    insert_named(c, manifest, text).await
}

/// The kind of each part, in the order of [`Manifest::parts`].
fn kinds(content: &Content) -> Vec<&'static str> {
    match content {
        Content::Image { layers, .. } => {
            let layers = layers.iter().map(|layer| if layer.foreign { "foreign" } else { "layer" });
            std::iter::once("config").chain(layers).collect()
        }
        Content::Index { manifests } => {
            // Where there is nothing but attestations, they are what the index is for.
            let any = manifests.iter().all(Descriptor::is_attestation);
            let kind = |child: &Descriptor| if any || !child.is_attestation() { "manifest" } else { "attestation" };
            manifests.iter().map(kind).collect()
        }
        Content::Opaque => Vec::new(),
    }
}

fn is_opaque(media_type: &str) -> bool {
    MediaType::parse(media_type).is_none_or(|known| !known.is_image() && !known.is_index())
}
