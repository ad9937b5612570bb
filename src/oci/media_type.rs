//! Media types: kept and answered as they came, compared without parameters.

use std::fmt;

/// A media type without parameters, such as `application/vnd.oci.image.manifest.v1+json`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MediaType(String);

impl MediaType {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's schema 1, whose digest does not cover its bytes: refused.
    pub const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

    /// Every type that we ask an upstream for, in one `Accept` header. An upstream that is not offered indexes may
    /// answer 404 or downgrade to schema 1 (docker-registry 2.8.2).
    pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
        application/vnd.docker.distribution.manifest.list.v2+json, \
        application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

    /// Reads a `Content-Type`: parameters are dropped, letters are lowered. `None` unless it is printable ASCII of the form `a/b`.
    pub fn parse(text: &str) -> Option<Self> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        let (kind, subtype) = essence.split_once('/')?;
        let token = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
        };
        (essence.len() <= 255 && token(kind) && token(subtype)).then(|| Self(essence.to_ascii_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is an OCI index or a Docker manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self.as_str(), Self::OCI_INDEX | Self::DOCKER_LIST)
    }

    /// Whether it is an OCI image manifest or a Docker schema 2 manifest.
    pub fn is_image(&self) -> bool {
        matches!(self.as_str(), Self::OCI_MANIFEST | Self::DOCKER_MANIFEST)
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
