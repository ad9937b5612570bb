//! Settings: presets, files and environment, merged key by key, checked as a whole.
//!
//! Later layers win: presets, then each `-c` file in order, then `SEALOCK_SECTION_KEY`. A wrong or unknown key stops the
//! start with one line that names file, line and key, and says what to write (invariant 20). `conf/sealock.toml` is the
//! reference of every key.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod layers;
mod presets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use self::layers::Layers;
pub use self::presets::Preset;
use crate::access::{AccessSettings, Private};
use crate::clock::Clock;
use crate::gate::{AuditSettings, GateSettings};
use crate::keep::KeepSettings;
use crate::names::{Host, OfflineMiss, Policy, Route, Routes};
use crate::oci::Platform;
use crate::push::PushSettings;
use crate::server::ServerSettings;
use crate::server::admin::AdminSettings;
use crate::size::Span;
use crate::tls::{ServerTls, TlsSettings};
use crate::upstream::UpstreamSettings;

/// Where settings are looked for when no `-c` is given.
pub const DEFAULT_FILE: &str = "/etc/sealock/sealock.toml";

/// Everything that can be set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Built-in upstreams and routes to begin with.
    pub presets: Vec<Preset>,
    pub server: ServerSettings,
    pub admin: AdminSettings,
    pub tls: TlsSettings,
    pub gate: GateSettings,
    pub audit: AuditSettings,
    pub log: LogSettings,
    pub pull: PullSettings,
    pub push: PushSettings,
    pub keep: KeepSettings,
    pub access: AccessSettings,
    /// By a name of the operator's choice.
    pub upstream: BTreeMap<String, UpstreamSettings>,
    /// By pattern.
    pub route: BTreeMap<String, RouteSettings>,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,sealock::pull=debug`.
    pub level: String,
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `[pull]`: what holds for every route that does not say otherwise, `<host>/**` included.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PullSettings {
    /// How long after a check a tag is served without asking upstream again.
    pub fresh_for: Span,
    /// Whether the rest of what a pulled manifest needs is fetched in the background.
    pub prefetch: bool,
    /// Platforms of an index that are fetched besides those that clients ask for.
    pub platforms: Vec<Platform>,
    /// Status of a manifest that is not kept while the gate is closed: 404, or 503 for clients that try again.
    pub offline_miss: u16,
}

/// `[route."PATTERN"]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSettings {
    /// Key of an `[upstream.…]`.
    pub upstream: String,
    /// Repository there: a name for a name, a prefix and `/**` (or `**`) for a prefix; the same if not given.
    #[serde(default)]
    pub repository: Option<String>,
    #[serde(default)]
    pub fresh_for: Option<Span>,
    #[serde(default)]
    pub prefetch: Option<bool>,
    #[serde(default)]
    pub platforms: Option<Vec<Platform>>,
    #[serde(default)]
    pub offline_miss: Option<u16>,
    /// Whether clients may push to it and delete there; no if not given.
    #[serde(default)]
    pub push: bool,
}

/// A setting that stops the start: `conf/site.toml:14: upstream.hub.username: …`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{place}: {key}: {message}")]
    Wrong { place: String, key: String, message: String },
    #[error("{place}: {message}")]
    Syntax { place: String, message: String },
    #[error("cannot read the settings file `{path}`")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Settings {
    /// Loads `files` over the presets, and `environment` (`SEALOCK_…` variables) over both.
    pub fn load(
        files: &[PathBuf],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Self::load_with_layers(files, environment).map(|(settings, _)| settings)
    }

    /// As [`Settings::load`], for who is going to serve: also reads the credentials and authorities of the upstreams,
    /// the server's certificates and keys, which may be for the server's eyes only, and the groups of this machine.
    /// `is_tls`: whether the command line names a certificate.
    pub fn load_to_serve(
        files: &[PathBuf],
        environment: impl IntoIterator<Item = (String, String)>,
        is_tls: bool,
    ) -> Result<Self, ConfigError> {
        let (settings, layers) = Self::load_with_layers(files, environment)?;
        // The command line's certificate takes the place of that of the settings.
        let tls = if is_tls {
            TlsSettings { certificate: None, key: None, ..settings.tls.clone() }
        } else {
            settings.tls.clone()
        };
        for (name, upstream) in &settings.upstream {
            if let Err((key, message)) = upstream.check_files(name) {
                return Err(layers.wrong(&["upstream", name, key], message));
            }
        }
        if let Some(message) = settings.admin.wrong_here() {
            return Err(layers.wrong(&["admin", "group"], message));
        }
        if let Err(why) = ServerTls::load(&tls, &Clock::system()) {
            let key: Vec<&str> = ["tls"].into_iter().chain(why.key()).collect();
            return Err(layers.wrong(&key, why.in_one_line()));
        }
        if let Err(why) = settings.admin.check_listen(is_tls || settings.tls.certificate.is_some()) {
            return Err(layers.wrong(&["admin", "listen"], why));
        }
        Ok(settings)
    }

    fn load_with_layers(
        files: &[PathBuf],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Layers), ConfigError> {
        let read = |file: &PathBuf| match std::fs::read_to_string(file) {
            Ok(text) => Ok((file.display().to_string(), text)),
            Err(source) => Err(ConfigError::Unreadable { path: file.clone(), source }),
        };
        let texts = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Self::of_texts(texts, environment)
    }

    /// `files`: name and text of each.
    fn of_texts(
        files: impl IntoIterator<Item = (String, String)>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Layers), ConfigError> {
        let mut layers = Layers::default();
        for (name, text) in files {
            layers.add_file(&name, &text)?;
        }
        layers.add_presets()?;
        layers.add_environment(environment)?;
        let settings: Self = layers.read()?;
        settings.check(&layers)?;
        Ok((settings, layers))
    }

    /// The files that count when the command line names none: the system's, unless there is none.
    pub fn default_files() -> Vec<PathBuf> {
        unless_absent(Path::new(DEFAULT_FILE))
    }

    /// The routing table. [`Settings::load`] has checked that it can be built.
    pub fn routes(&self) -> Result<Routes, crate::names::InvalidRoute> {
        let everywhere = Arc::new(self.pull.policy());
        let hosts = self.upstream.iter().map(|(key, upstream)| Host {
            upstream: key.as_str().into(),
            host: upstream.host.as_str().into(),
            default_namespace: upstream.default_namespace.clone(),
            policy: everywhere.clone(),
        });
        let routes = self.route.iter().map(|(pattern, route)| Route {
            pattern: pattern.clone(),
            upstream: route.upstream.clone(),
            repository: route.repository.clone(),
            policy: Arc::new(route.policy(&everywhere)),
        });
        Routes::new(hosts.collect(), routes.collect())
    }

    /// What was had with credentials and so needs a login here: by the upstream's host, its key and names there.
    pub fn private_repositories(&self) -> Private {
        let private = self.upstream.iter().map(|(key, upstream)| (key, upstream, upstream.private()));
        let private = private.filter(|(_, _, patterns)| !patterns.is_empty());
        private.map(|(key, it, patterns)| (it.host.as_str().into(), (key.as_str().into(), patterns))).collect()
    }

    /// What no section can see by itself.
    fn check(&self, layers: &Layers) -> Result<(), ConfigError> {
        for (name, upstream) in &self.upstream {
            if let Some((key, message)) = upstream.check().into_iter().next() {
                return Err(layers.wrong(&["upstream", name, key], message));
            }
        }
        if let Err(wrong) = self.server.check() {
            return Err(layers.wrong(&["server", wrong.key], format!("it is {}; {}", wrong.value, wrong.advice)));
        }
        if let Err((key, message)) = self.tls.check() {
            return Err(layers.wrong(&["tls", key], message));
        }
        if let Err(why) = self.access.check_members(&self.admin.metrics_to) {
            return Err(layers.wrong(&["admin", "metrics_to"], why));
        }
        let sections = [("gate", self.gate.check()), ("audit", self.audit.check()), ("keep", self.keep.check())];
        for (section, checked) in sections {
            if let Err((key, message)) = checked {
                let key: Vec<&str> = [section].into_iter().chain(parts(&key)).collect();
                return Err(layers.wrong(&key, message));
            }
        }
        let misses = self.route.iter().filter_map(|(pattern, route)| Some((pattern.as_str(), route.offline_miss?)));
        for (pattern, status) in [("", self.pull.offline_miss)].into_iter().chain(misses) {
            if !matches!(status, 404 | 503) {
                let key: &[&str] =
                    if pattern.is_empty() { &["pull", "offline_miss"] } else { &["route", pattern, "offline_miss"] };
                return Err(layers.wrong(key, "write 404 or 503".to_owned()));
            }
        }
        if let Err(wrong) = self.routes() {
            let key: Vec<&str> = wrong.key.iter().map(String::as_str).collect();
            return Err(layers.wrong(&key, wrong.message));
        }
        if let Err((key, message)) = self.access.check() {
            let key: Vec<&str> = ["access"].into_iter().chain(key.iter().map(String::as_str)).collect();
            return Err(layers.wrong(&key, message));
        }
        if !is_filter(&self.log.level) {
            let level = &self.log.level;
            let message = format!(
                "`{level}` is not a level; write error, warn, info, debug or trace, or a filter such as info,sealock::pull=debug"
            );
            return Err(layers.wrong(&["log", "level"], message));
        }
        if self.server.data.as_os_str().is_empty() {
            return Err(layers.wrong(&["server", "data"], "write the folder for the data".to_owned()));
        }
        Ok(())
    }
}

/// The parts of a key such as `windows[0].when`; what stands in brackets is one.
fn parts(key: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for (number, piece) in key.split(['[', ']']).enumerate() {
        if number % 2 == 0 {
            parts.extend(piece.split('.').filter(|part| !part.is_empty()));
        } else {
            parts.push(piece);
        }
    }
    parts
}

/// Whether it says what to log. A single word is a level: as a target, which it could be too, it would log nothing.
fn is_filter(text: &str) -> bool {
    text.parse::<tracing_subscriber::filter::Targets>().is_ok()
        && text.split(',').all(|part| {
            part.contains('=')
                || part.contains("::")
                || part.trim().parse::<tracing_subscriber::filter::LevelFilter>().is_ok()
        })
}

impl PullSettings {
    fn policy(&self) -> Policy {
        Policy {
            fresh_for: self.fresh_for.0,
            prefetch: self.prefetch,
            platforms: self.platforms.clone(),
            offline_miss: offline_miss(self.offline_miss),
            push: false,
        }
    }
}

impl RouteSettings {
    fn policy(&self, everywhere: &Policy) -> Policy {
        Policy {
            fresh_for: self.fresh_for.map_or(everywhere.fresh_for, |span| span.0),
            prefetch: self.prefetch.unwrap_or(everywhere.prefetch),
            platforms: self.platforms.clone().unwrap_or_else(|| everywhere.platforms.clone()),
            offline_miss: self.offline_miss.map_or(everywhere.offline_miss, offline_miss),
            push: self.push,
        }
    }
}

/// A file that is there and cannot be reached is no reason to serve without settings: reading it says why.
fn unless_absent(file: &Path) -> Vec<PathBuf> {
    match file.symlink_metadata() {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        _ => vec![file.to_owned()],
    }
}

fn offline_miss(status: u16) -> OfflineMiss {
    if status == 503 { OfflineMiss::Unavailable } else { OfflineMiss::NotFound }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Default for PullSettings {
    fn default() -> Self {
        let fresh_for = Span(Duration::from_secs(15 * 60));
        Self { fresh_for, prefetch: true, platforms: Vec::new(), offline_miss: 404 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_reached_are_not_taken_for_absent() {
        // Invariant 20
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        // The first is what a folder that may not be entered is to others than root: an error that is not `NotFound`.
        for unreachable in ["file/sealock.toml", "dangling"] {
            let files = unless_absent(&at(unreachable));
            assert!(matches!(Settings::load(&files, []), Err(ConfigError::Unreadable { .. })), "{unreachable}");
        }
        assert_eq!(unless_absent(&at("file")), [at("file")]);
        assert!(unless_absent(&at("absent")).is_empty());
    }
}
