//! Manifests and indexes: bytes as they came, and what they refer to.
//!
//! The bytes are never changed, because the digest is theirs. Type confusion (CVE-2021-41190) is refused here: a
//! `mediaType` that differs from the `Content-Type`, both `manifests` and `layers`, or a key that stands twice.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use oci_spec::image::{ImageIndex, ImageManifest};
use serde::{Deserialize, Serialize};

use super::digest::{Algorithm, Digest, InvalidDigest};
use super::media_type::MediaType;

/// Largest manifest that is taken in, in bytes: what containers/image reads at most.
pub const MANIFEST_SIZE_MAX: u64 = 4 << 20;
/// Most descriptors in one manifest.
pub const DESCRIPTORS_MAX: usize = 4096;

/// A manifest or index, parsed, with the bytes that its digest covers.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
    pub content: Content,
    /// What it refers to as a referrer: its `subject`.
    pub subject: Option<Descriptor>,
    /// `artifactType`, or else the config's media type (distribution specification, "Listing Referrers").
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// What a manifest is made of.
#[derive(Clone, Debug)]
pub enum Content {
    Image {
        config: Box<Descriptor>,
        layers: Vec<Descriptor>,
    },
    Index {
        manifests: Vec<Descriptor>,
    },
    /// A media type that we do not know: kept, with what it seems to name ([`Manifest::named`]).
    Opaque,
}

/// What a manifest says of a piece of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub platform: Option<Platform>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
    /// Foreign content: `urls` were given. It is never fetched from there.
    pub foreign: bool,
}

/// `os/architecture[/variant]`, as in `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

/// Why bytes are not a manifest that we take in.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    #[error("a manifest has at most {MANIFEST_SIZE_MAX} bytes, not {0}")]
    TooLarge(u64),
    #[error("schema 1 manifests are not supported; ask for a newer image or a newer format")]
    SchemaOne,
    #[error("its `mediaType` is `{inside}`, but it came as `{outside}`")]
    MediaTypeDiffers { inside: String, outside: String },
    #[error("it has both `manifests` and `layers`")]
    Ambiguous,
    #[error("it refers to more than {DESCRIPTORS_MAX} pieces of content")]
    TooManyDescriptors,
    #[error("it is not valid JSON of its type")]
    Json(#[from] serde_json::Error),
    #[error("it names `{0}`")]
    Digest(String, #[source] InvalidDigest),
}

/// The keys by which an index and an image manifest are told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

/// What makes a referrer of a manifest whose type we do not know.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referring {
    subject: Option<serde_json::Value>,
    artifact_type: Option<serde_json::Value>,
    annotations: Option<serde_json::Value>,
}

impl Manifest {
    /// Parses `bytes` that came as `media_type` and hashes them with `algorithm`.
    pub fn parse(bytes: Bytes, media_type: MediaType, algorithm: Algorithm) -> Result<Self, InvalidManifest> {
        if bytes.len() as u64 > MANIFEST_SIZE_MAX {
            return Err(InvalidManifest::TooLarge(bytes.len() as u64));
        }
        if media_type.as_str() == MediaType::DOCKER_SCHEMA_1 {
            return Err(InvalidManifest::SchemaOne);
        }
        let digest = Digest::of(algorithm, &bytes);
        check_shape(&bytes, &media_type)?;
        if media_type.is_index() {
            Self::index(digest, bytes, media_type)
        } else if media_type.is_image() {
            Self::image(digest, bytes, media_type)
        } else {
            Ok(Self::opaque(digest, bytes, media_type))
        }
    }

    /// The media type that the bytes themselves claim: for content that came without a `Content-Type`.
    pub fn sniff_media_type(bytes: &[u8]) -> Option<MediaType> {
        let shape: Shape = serde_json::from_slice(bytes).ok()?;
        match (shape.media_type, shape.manifests, shape.config) {
            (Some(named), ..) => MediaType::parse(&named),
            (None, Some(_), None) => MediaType::parse(MediaType::OCI_INDEX),
            (None, None, Some(_)) => MediaType::parse(MediaType::OCI_MANIFEST),
            _ => None,
        }
    }

    /// Size of the bytes.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Everything it is made of: config and layers, or the manifests of an index. The subject is not part of it.
    pub fn parts(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, rest) = match &self.content {
            Content::Image { config, layers } => (Some(config.as_ref()), layers.as_slice()),
            Content::Index { manifests } => (None, manifests.as_slice()),
            Content::Opaque => (None, [].as_slice()),
        };
        config.into_iter().chain(rest)
    }

    /// What a manifest of a type that we do not know seems to name: each digest that stands under a `digest` in it, but
    /// its subject's. None for the types that we know: they say it by [`Manifest::parts`].
    pub fn named(&self) -> BTreeSet<Digest> {
        let mut named = BTreeSet::new();
        let parsed = matches!(self.content, Content::Opaque).then(|| serde_json::from_slice(&self.bytes).ok());
        let Some(serde_json::Value::Object(mut top)) = parsed.flatten() else { return named };
        top.remove("subject");
        let mut left = vec![serde_json::Value::Object(top)];
        while let Some(value) = left.pop() {
            match value {
                serde_json::Value::Array(values) => left.extend(values),
                serde_json::Value::Object(fields) => {
                    let digest = fields.get("digest").and_then(|text| text.as_str()?.parse::<Digest>().ok());
                    named.extend(digest);
                    left.extend(fields.into_iter().map(|(_, value)| value));
                }
                _ => {}
            }
        }
        named
    }

    /// The descriptor by which the referrers list names it.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.as_str().to_owned(),
            digest: self.digest,
            size: self.size(),
            platform: None,
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
            foreign: false,
        }
    }

    fn image(digest: Digest, bytes: Bytes, media_type: MediaType) -> Result<Self, InvalidManifest> {
        let parsed: ImageManifest = serde_json::from_slice(&bytes)?;
        let config = Box::new(Descriptor::read(parsed.config())?);
        let layers = read_all(parsed.layers())?;
        let subject = parsed.subject().as_ref().map(Descriptor::read).transpose()?;
        let artifact_type = artifact_type(parsed.artifact_type());
        let artifact_type = artifact_type.or_else(|| Some(config.media_type.clone()));
        let annotations = sorted(parsed.annotations());
        let content = Content::Image { config, layers };
        Ok(Self { digest, media_type, bytes, content, subject, artifact_type, annotations })
    }

    fn index(digest: Digest, bytes: Bytes, media_type: MediaType) -> Result<Self, InvalidManifest> {
        let parsed: ImageIndex = serde_json::from_slice(&bytes)?;
        let manifests = read_all(parsed.manifests())?;
        let subject = parsed.subject().as_ref().map(Descriptor::read).transpose()?;
        let artifact_type = artifact_type(parsed.artifact_type());
        let annotations = sorted(parsed.annotations());
        let content = Content::Index { manifests };
        Ok(Self { digest, media_type, bytes, content, subject, artifact_type, annotations })
    }

    /// Of a type that we do not know. The specification lists images and indexes as referrers, but artifact manifests
    /// had a `subject` before they did (ORAS 0.15, OCI 1.1.0-rc.2), and its conformance suite wants `OCI-Subject` for
    /// any type: whoever writes one as images do refers to it, and is kept and carried with it. What is written
    /// otherwise may mean anything, and counts for nothing.
    fn opaque(digest: Digest, bytes: Bytes, media_type: MediaType) -> Self {
        let referring: Referring = serde_json::from_slice(&bytes).unwrap_or_default();
        let subject = referring.subject.and_then(|value| serde_json::from_value(value).ok());
        let subject = subject.and_then(|parsed| Descriptor::read(&parsed).ok());
        let artifact_type = referring.artifact_type.and_then(|value| value.as_str().map(str::to_owned));
        let artifact_type = artifact_type.filter(|named| !named.is_empty());
        let annotations = referring.annotations.and_then(|value| serde_json::from_value(value).ok());
        let (content, annotations) = (Content::Opaque, annotations.unwrap_or_default());
        Self { digest, media_type, bytes, content, subject, artifact_type, annotations }
    }
}

impl Content {
    /// Whether what it names may be blobs.
    pub fn names_blobs(&self) -> bool {
        matches!(self, Self::Image { .. } | Self::Opaque)
    }

    /// Whether what it names may be manifests.
    pub fn names_manifests(&self) -> bool {
        matches!(self, Self::Index { .. } | Self::Opaque)
    }
}

impl Descriptor {
    /// Whether it is a BuildKit attestation: a manifest of an index that no platform runs.
    pub fn is_attestation(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
            || self.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
    }

    /// What it adds to a list on the wire, in bytes.
    pub fn wire_bytes(&self) -> usize {
        serde_json::to_vec(self).map_or(0, |text| text.len() + 1)
    }

    fn read(parsed: &oci_spec::image::Descriptor) -> Result<Self, InvalidManifest> {
        let named = parsed.digest().to_string();
        let digest = named.parse().map_err(|why| InvalidManifest::Digest(named.escape_debug().to_string(), why))?;
        Ok(Self {
            media_type: parsed.media_type().to_string(),
            digest,
            size: parsed.size(),
            platform: parsed.platform().as_ref().map(|platform| Platform {
                os: platform.os().to_string(),
                architecture: platform.architecture().to_string(),
                variant: platform.variant().clone(),
            }),
            artifact_type: parsed.artifact_type().as_ref().map(ToString::to_string),
            annotations: sorted(parsed.annotations()),
            foreign: parsed.urls().as_ref().is_some_and(|urls| !urls.is_empty()),
        })
    }
}

impl Serialize for Descriptor {
    /// As the referrers list and an index write it.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            media_type: &'a str,
            digest: String,
            size: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            artifact_type: Option<&'a str>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            annotations: &'a BTreeMap<String, String>,
        }
        let wire = Wire {
            media_type: &self.media_type,
            digest: self.digest.to_string(),
            size: self.size,
            artifact_type: self.artifact_type.as_deref(),
            annotations: &self.annotations,
        };
        wire.serialize(serializer)
    }
}

impl Platform {
    /// Whether an image for `self` serves who asks for `wanted`; a variant that is not asked for does not matter.
    pub fn serves(&self, wanted: &Platform) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_none() || self.variant == wanted.variant)
    }
}

impl TryFrom<String> for Platform {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture] | [os, architecture, _] if parts.iter().all(|part| !part.is_empty()) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: parts.get(2).map(|variant| (*variant).to_owned()),
            }),
            _ => Err(format!("`{text}` is not a platform; write one as `linux/amd64` or `linux/arm64/v8`")),
        }
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        let variant = platform.variant.map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{}/{}{variant}", platform.os, platform.architecture)
    }
}

/// An empty one counts as none.
fn artifact_type(parsed: &Option<oci_spec::image::MediaType>) -> Option<String> {
    parsed.as_ref().map(ToString::to_string).filter(|named| !named.is_empty())
}

fn check_shape(bytes: &[u8], outside: &MediaType) -> Result<(), InvalidManifest> {
    let shape: Shape = serde_json::from_slice(bytes)?;
    let known = outside.is_index() || outside.is_image();
    if known && shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(InvalidManifest::Ambiguous);
    }
    match shape.media_type {
        Some(inside) if inside != outside.as_str() => {
            Err(InvalidManifest::MediaTypeDiffers { inside, outside: outside.as_str().to_owned() })
        }
        _ => Ok(()),
    }
}

fn read_all(parsed: &[oci_spec::image::Descriptor]) -> Result<Vec<Descriptor>, InvalidManifest> {
    if parsed.len() > DESCRIPTORS_MAX {
        return Err(InvalidManifest::TooManyDescriptors);
    }
    parsed.iter().map(Descriptor::read).collect()
}

fn sorted(annotations: &Option<std::collections::HashMap<String, String>>) -> BTreeMap<String, String> {
    annotations.iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}
