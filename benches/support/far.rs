//! The far registry's content: a folder laid out so that a plain file server answers as a registry does.
//!
//! `<root>/v2/bench/app/{blobs,manifests}/…`, each file named as the last part of its address.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Outcome;

/// The one repository of every bench.
pub const REPOSITORY: &str = "bench/app";
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const PIECE: usize = 1 << 20;

/// A folder that becomes a registry.
pub struct Far {
    root: PathBuf,
    tags: Vec<(String, String)>,
}

/// Noise, named by its digest.
#[derive(Clone)]
pub struct Blob {
    pub digest: String,
    pub size: u64,
}

/// A manifest with a tag.
pub struct Image {
    pub tag: String,
    pub digest: String,
    pub bytes: Vec<u8>,
}

impl Far {
    pub fn new(root: PathBuf) -> Outcome<Self> {
        for kind in ["blobs", "manifests"] {
            fs::create_dir_all(root.join("v2").join(REPOSITORY).join(kind))?;
        }
        Ok(Self { root, tags: Vec::new() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Each tag and its digest.
    pub fn tags(&self) -> &[(String, String)] {
        &self.tags
    }

    /// `size` bytes that only `seed` decides, and that no compression makes smaller.
    pub fn add_blob(&self, seed: u64, size: u64) -> Outcome<Blob> {
        let mut noise = fastrand::Rng::with_seed(seed);
        let folder = self.folder("blobs");
        let unnamed = folder.join("unnamed");
        let mut file = BufWriter::with_capacity(PIECE, fs::File::create(&unnamed)?);
        let (mut hash, mut piece, mut left) = (Sha256::new(), vec![0; PIECE], size);
        while left > 0 {
            let length = usize::try_from(left.min(PIECE as u64))?;
            noise.fill(&mut piece[..length]);
            hash.update(&piece[..length]);
            file.write_all(&piece[..length])?;
            left -= length as u64;
        }
        file.into_inner().map_err(|why| why.into_error())?;
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        fs::rename(unnamed, folder.join(&digest))?;
        Ok(Blob { digest, size })
    }

    /// An image manifest of exactly `length` bytes (or as many as it needs) over `blobs`, the first being its config.
    pub fn add_image(&mut self, tag: &str, blobs: &[Blob], length: usize) -> Outcome<Image> {
        let write = |padding: usize| {
            let descriptor = |kind: &str, blob: &Blob| {
                serde_json::json!({
                    "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": blob.digest, "size": blob.size
                })
            };
            let layers = blobs.iter().skip(1).map(|blob| descriptor("layer.v1.tar+gzip", blob));
            serde_json::to_vec(&serde_json::json!({
                "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
                "config": descriptor("config.v1+json", &blobs[0]), "layers": layers.collect::<Vec<_>>(),
                "annotations": { "bench.tag": tag, "bench.padding": "x".repeat(padding) }
            }))
        };
        let bytes = write(length.saturating_sub(write(0)?.len()))?;
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        for name in [tag, digest.as_str()] {
            fs::write(self.folder("manifests").join(name), &bytes)?;
        }
        self.tags.push((tag.to_owned(), digest.clone()));
        Ok(Image { tag: tag.to_owned(), digest, bytes })
    }

    fn folder(&self, kind: &str) -> PathBuf {
        self.root.join("v2").join(REPOSITORY).join(kind)
    }
}

impl Blob {
    /// Where every registry has it.
    pub fn path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", self.digest)
    }

    pub fn hex(&self) -> &str {
        self.digest.trim_start_matches("sha256:")
    }
}

impl Image {
    pub fn path(&self) -> String {
        manifest_path(&self.tag)
    }

    pub fn path_by_digest(&self) -> String {
        manifest_path(&self.digest)
    }
}

fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}")
}
