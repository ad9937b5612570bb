//! Images, indexes and artifacts to push, put together as the image specification has them.

use bytes::Bytes;
use sealock::oci::{Algorithm, Digest};
use serde_json::{Value, json};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Something to PUT under `/manifests/`.
pub trait Manifest {
    fn bytes(&self) -> Bytes;
    fn media_type(&self) -> String;
    /// What has to be there before it.
    fn blobs(&self) -> Vec<Bytes>;
    fn children(&self) -> Vec<(Bytes, String)> {
        Vec::new()
    }

    fn digest(&self) -> String {
        digest_of(&self.bytes())
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type(), "digest": self.digest(), "size": self.bytes().len() })
    }
}

/// An image of one config and a layer. The fields can be changed before it is pushed.
#[derive(Clone)]
pub struct Image {
    pub json: Value,
    pub config: Bytes,
    pub layer: Bytes,
}

/// An artifact: an empty config and one file.
#[derive(Clone)]
pub struct Artifact {
    pub json: Value,
    file: Bytes,
}

/// An index over manifests.
#[derive(Clone)]
pub struct Index {
    pub json: Value,
    blobs: Vec<Bytes>,
    children: Vec<(Bytes, String)>,
}

impl Image {
    /// Different for each seed.
    pub fn of(seed: &str) -> Self {
        Self::typed(seed, [OCI_MANIFEST, OCI_CONFIG, OCI_LAYER])
    }

    pub fn docker(seed: &str) -> Self {
        Self::typed(seed, [DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER])
    }

    fn typed(seed: &str, [own, config_type, layer_type]: [&str; 3]) -> Self {
        let config = json!({ "architecture": "amd64", "os": "linux", "author": seed, "rootfs": { "type": "layers", "diff_ids": [] } });
        let (config, layer) = (Bytes::from(config.to_string()), Bytes::from(format!("the layer of {seed}")));
        let json = json!({
            "schemaVersion": 2,
            "mediaType": own,
            "config": descriptor(config_type, &config),
            "layers": [descriptor(layer_type, &layer)],
        });
        Self { json, config, layer }
    }

    /// With one more field, or another value.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.json[key] = value;
        self
    }

    pub fn layer_digest(&self) -> String {
        digest_of(&self.layer)
    }
}

impl Artifact {
    pub fn of(artifact_type: &str, seed: &str) -> Self {
        let file = Bytes::from(format!("the file of {seed}"));
        let json = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": descriptor(OCI_EMPTY, b"{}"),
            "layers": [descriptor("text/plain", &file)],
        });
        Self { json, file }
    }

    pub fn about(mut self, subject: &impl Manifest) -> Self {
        self.json["subject"] = subject.descriptor();
        self
    }

    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.json[key] = value;
        self
    }
}

impl Index {
    pub fn over(children: &[&dyn Manifest]) -> Self {
        Self::typed(OCI_INDEX, children)
    }

    pub fn docker(children: &[&dyn Manifest]) -> Self {
        Self::typed(DOCKER_LIST, children)
    }

    fn typed(own: &str, children: &[&dyn Manifest]) -> Self {
        let listed: Vec<Value> = children.iter().map(|child| child.descriptor()).collect();
        let json = json!({ "schemaVersion": 2, "mediaType": own, "manifests": listed });
        let blobs = children.iter().flat_map(|child| child.blobs()).collect();
        let each = |child: &&dyn Manifest| [child.children(), vec![(child.bytes(), child.media_type())]].concat();
        Self { json, blobs, children: children.iter().flat_map(each).collect() }
    }

    pub fn about(mut self, subject: &impl Manifest) -> Self {
        self.json["subject"] = subject.descriptor();
        self
    }

    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.json[key] = value;
        self
    }
}

impl Manifest for Image {
    fn bytes(&self) -> Bytes {
        self.json.to_string().into()
    }

    fn media_type(&self) -> String {
        media_type(&self.json)
    }

    fn blobs(&self) -> Vec<Bytes> {
        vec![self.config.clone(), self.layer.clone()]
    }
}

impl Manifest for Artifact {
    fn bytes(&self) -> Bytes {
        self.json.to_string().into()
    }

    fn media_type(&self) -> String {
        media_type(&self.json)
    }

    fn blobs(&self) -> Vec<Bytes> {
        vec![Bytes::from("{}"), self.file.clone()]
    }
}

impl Manifest for Index {
    fn bytes(&self) -> Bytes {
        self.json.to_string().into()
    }

    fn media_type(&self) -> String {
        media_type(&self.json)
    }

    fn blobs(&self) -> Vec<Bytes> {
        self.blobs.clone()
    }

    fn children(&self) -> Vec<(Bytes, String)> {
        self.children.clone()
    }
}

fn media_type(json: &Value) -> String {
    json["mediaType"].as_str().unwrap_or(OCI_MANIFEST).to_owned()
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len() })
}

pub fn digest_of(bytes: &[u8]) -> String {
    Digest::sha256(bytes).to_string()
}

pub fn sha512_of(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha512, bytes).to_string()
}

/// `size` bytes that repeat nowhere near.
pub fn noise(size: usize) -> Vec<u8> {
    (0..size as u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).take(size).collect()
}
