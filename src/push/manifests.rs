//! A pushed manifest: parsed, held against what its repository has, kept as it came, and named by its tags.

use std::collections::BTreeSet;

use bytes::Bytes;
use tracing::info;

use super::{Order, Push, PushError};
use crate::oci::{Algorithm, Content, Digest, Manifest, MediaType, Reference, Tag};
use crate::store::Pushing;

/// Most tags that one push points, that of its path included.
pub const TAGS_MAX: usize = 64;
/// How often what a manifest names may go and come back between two looks.
const TRIES_MAX: usize = 8;

/// A manifest that was taken in.
#[derive(Clone, Debug)]
pub struct PushedManifest {
    pub digest: Digest,
    /// What it refers to as a referrer.
    pub subject: Option<Digest>,
}

impl Push {
    /// Takes in `bytes` under `reference`, and points `tags` at it as well. Without a media type, its own counts.
    pub async fn put_manifest(
        &self,
        order: &Order,
        reference: &Reference,
        tags: &[Tag],
        media_type: Option<MediaType>,
        bytes: Bytes,
    ) -> Result<PushedManifest, PushError> {
        self.check_manifest(order, tags)?;
        let media_type = media_type.or_else(|| Manifest::sniff_media_type(&bytes)).ok_or(PushError::NoMediaType)?;
        let algorithm = match reference {
            Reference::Digest(digest) => digest.algorithm(),
            Reference::Tag(_) => Algorithm::Sha256,
        };
        let manifest = Manifest::parse(bytes, media_type, algorithm)?;
        if let Reference::Digest(expected) = reference
            && manifest.digest != *expected
        {
            let (expected, actual) = (expected.to_string(), manifest.digest.to_string());
            return Err(PushError::DigestDiffers { expected, actual });
        }
        let named = match reference {
            Reference::Tag(tag) => Some(tag),
            Reference::Digest(_) => None,
        };
        let (repository, digest) = (&order.target.repository, manifest.digest);
        self.keep(order, &manifest, named.into_iter().chain(tags).cloned().collect()).await?;
        info!(%repository, %reference, %digest, size_bytes = manifest.size(), "kept {digest}, pushed as {repository}{}", reference.suffix());
        Ok(PushedManifest { digest, subject: manifest.subject.map(|subject| subject.digest) })
    }

    /// Keeps the manifest and points all its tags, or does nothing.
    async fn keep(&self, order: &Order, manifest: &Manifest, tags: Vec<Tag>) -> Result<(), PushError> {
        for _ in 0..TRIES_MAX {
            let pushing = Pushing { needs: self.check_parts(order, manifest).await?, tags: tags.clone() };
            // Where a collection takes what was here a moment ago, the next look says so.
            if self.0.store.push_manifest(&order.target.repository, manifest, pushing).await? {
                return Ok(());
            }
        }
        Err(PushError::GaveUp)
    }

    /// Whether a manifest may come at all: asked before its body is read.
    pub fn check_manifest(&self, order: &Order, tags: &[Tag]) -> Result<(), PushError> {
        self.check_push(order)?;
        if tags.len() < TAGS_MAX { Ok(()) } else { Err(PushError::TooManyTags { max: TAGS_MAX }) }
    }

    /// What the manifest needs, which must be readable in its repository: all that it names but its subject and foreign
    /// layers. That also holds where the bytes are kept for another one: naming them must not make them readable here
    /// (invariant 14).
    async fn check_parts(&self, order: &Order, manifest: &Manifest) -> Result<Vec<Digest>, PushError> {
        let settings = &self.0.settings;
        let local = order.target.source.is_none();
        let needs: BTreeSet<Digest> = match &manifest.content {
            Content::Index { .. } if settings.sparse_indexes => BTreeSet::new(),
            Content::Image { .. } if settings.sparse_images && local => BTreeSet::new(),
            Content::Opaque if local => BTreeSet::new(),
            // Of an upstream's repository, a manifest that somebody else has sent as an image opens what it names.
            Content::Opaque => manifest.named(),
            _ => manifest.parts().filter(|part| !part.foreign).map(|part| part.digest).collect(),
        };
        let mut missing = Vec::new();
        for digest in &needs {
            if !self.has_part(order, &manifest.content, digest).await? {
                missing.push(*digest);
            }
        }
        if missing.is_empty() {
            return Ok(needs.into_iter().collect());
        }
        Err(PushError::PartsUnknown { name: order.target.asked.to_string(), missing })
    }

    async fn has_part(&self, order: &Order, content: &Content, part: &Digest) -> Result<bool, PushError> {
        let (store, repository) = (&self.0.store, &order.target.repository);
        Ok(content.names_blobs() && store.blob(repository, part).await?.is_some()
            || content.names_manifests() && store.manifest(repository, part).await?.is_some())
    }
}
