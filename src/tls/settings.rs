//! `[tls]` of the settings: what is shown to clients, and who of them must show something.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::size::Span;

/// `[tls]`. With a `certificate`, `server.listen` speaks TLS.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// PEM: the server's certificate, then the one that issued it, and so on, without the root.
    pub certificate: Option<PathBuf>,
    /// PEM, not encrypted; beside the certificate, with the ending `.key`, if not given.
    pub key: Option<PathBuf>,
    /// Further ones, for other names.
    pub also: Vec<PairSettings>,
    /// PEM file of the authorities whose clients are believed.
    pub client_ca: Option<PathBuf>,
    pub client_auth: ClientAuth,
    /// How often the files are looked at for changes.
    pub reload_every: Span,
}

/// `[[tls.also]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSettings {
    pub certificate: PathBuf,
    #[serde(default)]
    pub key: Option<PathBuf>,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// None is asked for.
    #[default]
    Off,
    /// Those that have one show it; a wrong one is refused.
    Optional,
    /// Nobody comes in without one.
    Required,
}

impl Default for TlsSettings {
    fn default() -> Self {
        let reload_every = Span(Duration::from_secs(5));
        let client_auth = ClientAuth::Off;
        Self { certificate: None, key: None, also: Vec::new(), client_ca: None, client_auth, reload_every }
    }
}

impl TlsSettings {
    /// Refuses what cannot be meant: the key, and what to write instead. Reads no files.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, message: &str| Err((key, message.to_owned()));
        if self.certificate.is_none() {
            let alone = [
                ("key", self.key.is_some()),
                ("also", !self.also.is_empty()),
                ("client_ca", self.client_ca.is_some()),
                ("client_auth", self.client_auth != ClientAuth::Off),
            ];
            if let Some((key, _)) = alone.into_iter().find(|(_, is_set)| *is_set) {
                return wrong(
                    key,
                    "has no `certificate` beside it; name the server's certificate in `tls.certificate`",
                );
            }
        }
        if self.client_ca.is_some() && self.client_auth == ClientAuth::Off {
            return wrong("client_ca", "is not used; write `client_auth = \"optional\"` or \"required\", or remove it");
        }
        if self.client_ca.is_none() && self.client_auth != ClientAuth::Off {
            return wrong("client_auth", "needs `client_ca`, the authorities whose clients are believed");
        }
        if self.reload_every.0.is_zero() {
            return wrong("reload_every", "write a duration above 0, such as \"5s\"");
        }
        Ok(())
    }

    /// Every pair with the key under which it is set: `certificate`, `also.0.certificate`, …; the default one first.
    pub fn pairs(&self) -> Vec<(String, &Path, PathBuf)> {
        let first = self.certificate.as_deref().map(|path| (String::new(), path, key_of(path, self.key.as_deref())));
        let also = self.also.iter().enumerate().map(|(number, pair)| {
            (format!("also.{number}."), pair.certificate.as_path(), key_of(&pair.certificate, pair.key.as_deref()))
        });
        first.into_iter().chain(also).collect()
    }
}

fn key_of(certificate: &Path, key: Option<&Path>) -> PathBuf {
    key.map_or_else(|| certificate.with_extension("key"), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_setting_names_its_key() {
        // Invariant 20
        let cases = [
            ("key = 'a.key'", "key"),
            ("also = [{ certificate = 'a.crt' }]", "also"),
            ("client_auth = 'required'", "client_auth"),
            ("certificate = 'a.crt'\nclient_ca = 'ca.crt'", "client_ca"),
            ("certificate = 'a.crt'\nclient_auth = 'optional'", "client_auth"),
            ("certificate = 'a.crt'\nreload_every = '0s'", "reload_every"),
        ];
        for (toml, key) in cases {
            let settings: TlsSettings = toml::from_str(toml).unwrap();
            assert_eq!(settings.check().unwrap_err().0, key, "{toml}");
        }
        assert!(TlsSettings::default().check().is_ok());
    }

    #[test]
    fn the_key_is_beside_its_certificate_unless_it_is_named() {
        let toml = "certificate = 'c/server.crt'\nalso = [{ certificate = 'b.pem', key = 'k' }]";
        let settings: TlsSettings = toml::from_str(toml).unwrap();
        let keys: Vec<_> = settings.pairs().into_iter().map(|(at, _, key)| (at, key)).collect();
        let expected = [(String::new(), PathBuf::from("c/server.key")), ("also.0.".to_owned(), PathBuf::from("k"))];
        assert_eq!(keys, expected);
    }
}
