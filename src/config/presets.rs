//! Built-in upstreams and routes, written as settings are.

use serde::Deserialize;

/// A set of upstreams and routes that many sites need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// GitLab's analyzers and runner images.
    Gitlab,
    /// Trivy's databases and checks, under the names of its own guide.
    Trivy,
    /// Docker Hub and Quay, by host.
    Hub,
}

impl Preset {
    /// What holds where no file says `presets`.
    pub const DEFAULT: [Self; 3] = [Self::Gitlab, Self::Trivy, Self::Hub];

    /// Its name, and its settings as TOML.
    pub fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Gitlab => ("preset gitlab", include_str!("presets/gitlab.toml")),
            Self::Trivy => ("preset trivy", include_str!("presets/trivy.toml")),
            Self::Hub => ("preset hub", include_str!("presets/hub.toml")),
        }
    }
}
