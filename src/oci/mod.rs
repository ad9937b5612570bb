//! The specification's words as types that can only be made valid.
//!
//! Names, tags, digests and manifests are parsed once, at the edge; everything further in takes the types.
//! Grammar: OCI distribution specification 1.1.1, "Pulling manifests"; OCI image specification 1.1.1.

mod digest;
mod manifest;
mod media_type;
mod name;

pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use manifest::{Content, DESCRIPTORS_MAX, Descriptor, InvalidManifest, MANIFEST_SIZE_MAX, Manifest, Platform};
pub use media_type::MediaType;
pub use name::{InvalidName, InvalidTag, NAME_LENGTH_MAX, Reference, RepositoryName, TAG_LENGTH_MAX, Tag};
