//! `[upstream.NAME]` of the settings, and what can be wrong in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::address::Origin;
use crate::names::Pattern;
use crate::oci::RepositoryName;
use crate::size::{Size, Span};

/// `[upstream.NAME]`: one remote registry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSettings {
    /// The name by which clients know it, such as `registry.gitlab.com`: the identity of its content.
    pub host: String,
    /// Where it is reached, in order; the next is tried when one fails. Default: `https://<host>`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Whether `http://` endpoints are allowed beyond loopback. Default: no.
    #[serde(default)]
    pub plain_http: bool,
    /// PEM file with certificate authorities that are trusted besides the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// With one of `password_file` and `password_env`. Default: anonymous.
    #[serde(default)]
    pub username: Option<String>,
    /// File that holds the password; a line end at its end does not count.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Environment variable that holds the password.
    #[serde(default)]
    pub password_env: Option<String>,
    /// Docker's `config.json`, with its credential helpers; instead of `username`.
    #[serde(default)]
    pub docker_config: Option<PathBuf>,
    /// Instead, for some of its repositories: a name, or all below a prefix (`group/**`); the longest that fits counts.
    #[serde(default)]
    pub credentials: BTreeMap<String, CredentialSettings>,
    /// Whether those who have not logged in here may read what was had with credentials. Default: no.
    #[serde(default)]
    pub anonymous: bool,
    /// Origins besides the endpoint's own that may be asked for tokens and see the credentials, such as `https://gitlab.com`.
    #[serde(default)]
    pub token_realms: Vec<String>,
    /// Origins with a private address to which it may redirect, such as `https://10.0.0.5:9000`; those outside need no leave.
    #[serde(default)]
    pub redirect_origins: Vec<String>,
    /// Put before names of one component, as Docker Hub's `library`. Default: nothing.
    #[serde(default)]
    pub default_namespace: Option<String>,
    /// Longest wait for a connection: name, TCP and TLS. Default: 5s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// Longest wait for the head of a response. Default: 30s.
    #[serde(default = "response_timeout")]
    pub response_timeout: Span,
    /// Longest silence within a body. Default: 30s.
    #[serde(default = "stall_timeout")]
    pub stall_timeout: Span,
    /// How often a failed request is tried again. Default: 3.
    #[serde(default = "retries_max")]
    pub retries_max: u32,
    /// Longest pause before the first retry; it doubles with each one, up to 4s, and is drawn at random. Default: 250ms.
    #[serde(default = "retry_pause")]
    pub retry_pause: Span,
    /// How often in a row a blob is resumed without getting further. Default: 5.
    #[serde(default = "resumes_max")]
    pub resumes_max: u32,
    /// Largest blob that is taken in. Default: 256GiB.
    #[serde(default = "blob_size_max")]
    pub blob_size_max: Size,
}

/// `[upstream.NAME.credentials."PATTERN"]`: what we log in with for repositories that it fits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CredentialSettings {
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub password_env: Option<String>,
    pub docker_config: Option<PathBuf>,
}

fn connect_timeout() -> Span {
    Span(Duration::from_secs(5))
}

fn response_timeout() -> Span {
    Span(Duration::from_secs(30))
}

fn stall_timeout() -> Span {
    Span(Duration::from_secs(30))
}

fn retries_max() -> u32 {
    3
}

fn retry_pause() -> Span {
    Span(Duration::from_millis(250))
}

fn resumes_max() -> u32 {
    5
}

fn blob_size_max() -> Size {
    Size(256 << 30)
}

/// Most retries and resumes that can be set.
const TRIES_MAX: u32 = 20;
/// Most credentials of one upstream besides its own.
const CREDENTIALS_MAX: usize = 64;
/// Most endpoints, token realms and redirect origins.
const ORIGINS_MAX: usize = 16;

impl UpstreamSettings {
    /// The defaults for a registry at `https://<host>`.
    pub fn for_host(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            endpoints: Vec::new(),
            plain_http: false,
            ca_file: None,
            username: None,
            password_file: None,
            password_env: None,
            docker_config: None,
            credentials: BTreeMap::new(),
            anonymous: false,
            token_realms: Vec::new(),
            redirect_origins: Vec::new(),
            default_namespace: None,
            connect_timeout: connect_timeout(),
            response_timeout: response_timeout(),
            stall_timeout: stall_timeout(),
            retries_max: retries_max(),
            retry_pause: retry_pause(),
            resumes_max: resumes_max(),
            blob_size_max: blob_size_max(),
        }
    }

    /// Everything that is wrong: the key, and what to write instead. Reads no files; [`Self::check_files`] does.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        self.check_host(&mut wrong);
        self.check_endpoints(&mut wrong);
        self.check_credentials(&mut wrong);
        self.check_other_origins(&mut wrong);
        self.check_limits(&mut wrong);
        if self.default_namespace.as_ref().is_some_and(|name| name.parse::<RepositoryName>().is_err()) {
            wrong.push(("default_namespace", "write a repository name, such as `library`".to_owned()));
        }
        wrong
    }

    /// What holds for repositories that nothing in `credentials` fits.
    pub(super) fn own_credentials(&self) -> CredentialSettings {
        CredentialSettings {
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            password_env: self.password_env.clone(),
            docker_config: self.docker_config.clone(),
        }
    }

    /// What of it was had with credentials and is for those alone who have logged in here: names there, or prefixes.
    pub fn private(&self) -> Vec<Pattern> {
        if self.anonymous {
            return Vec::new();
        }
        let with = |settings: &CredentialSettings| settings.username.is_some() || settings.docker_config.is_some();
        let own = with(&self.own_credentials()).then_some("**");
        let others =
            self.credentials.iter().filter(|(_, settings)| with(settings)).map(|(pattern, _)| pattern.as_str());
        own.into_iter().chain(others).filter_map(|pattern| pattern.parse().ok()).collect()
    }

    /// The endpoints as written, or the default one.
    pub(super) fn endpoint_texts(&self) -> Vec<String> {
        if self.endpoints.is_empty() { vec![format!("https://{}", self.host)] } else { self.endpoints.clone() }
    }

    fn check_host(&self, wrong: &mut Vec<(&'static str, String)>) {
        let parsed = Origin::parse(&format!("https://{}", self.host));
        if parsed.is_none() || self.host.contains('/') || self.host != self.host.to_ascii_lowercase() {
            let message =
                format!("`{}` is not a host; write one such as `registry.gitlab.com`", self.host.escape_debug());
            wrong.push(("host", message));
        }
    }

    fn check_endpoints(&self, wrong: &mut Vec<(&'static str, String)>) {
        if self.endpoints.len() > ORIGINS_MAX {
            wrong.push(("endpoints", format!("at most {ORIGINS_MAX} endpoints")));
        }
        for text in &self.endpoints {
            match Origin::parse(text) {
                None => wrong.push(("endpoints", not_an_origin(text))),
                Some(origin) if !origin.is_https() && !origin.is_loopback() && !self.plain_http => {
                    let message = format!("`{origin}` is not encrypted; write `https://`, or set `plain_http = true`");
                    wrong.push(("endpoints", message));
                }
                Some(_) => {}
            }
        }
    }

    fn check_credentials(&self, wrong: &mut Vec<(&'static str, String)>) {
        wrong.extend(self.own_credentials().check().into_iter().map(|(key, message)| (key, message.to_owned())));
        if self.credentials.len() > CREDENTIALS_MAX {
            wrong.push(("credentials", format!("at most {CREDENTIALS_MAX} of them")));
        }
        for (pattern, credentials) in &self.credentials {
            let name = pattern.strip_suffix("/**").unwrap_or(pattern);
            if name.parse::<RepositoryName>().is_err() {
                let message =
                    "is neither a repository there, such as `group/app`, nor all below a prefix, such as `group/**`";
                wrong.push(("credentials", format!("`{}` {message}", pattern.escape_debug())));
            }
            if credentials.username.is_none() && credentials.docker_config.is_none() {
                wrong.push(("credentials", format!("`{pattern}`: add `username` and `password_file`, or remove it")));
            }
            let each = credentials.check().into_iter();
            wrong.extend(each.map(|(key, message)| ("credentials", format!("`{pattern}`: {key} {message}"))));
        }
    }

    fn check_other_origins(&self, wrong: &mut Vec<(&'static str, String)>) {
        let plain = self.endpoints.iter().filter_map(|text| Origin::parse(text)).any(|origin| !origin.is_https());
        for (key, texts) in [("token_realms", &self.token_realms), ("redirect_origins", &self.redirect_origins)] {
            if texts.len() > ORIGINS_MAX {
                wrong.push((key, format!("at most {ORIGINS_MAX} origins")));
            }
            for text in texts {
                match Origin::parse(text) {
                    None => wrong.push((key, not_an_origin(text))),
                    Some(origin) if !origin.is_https() && !plain => {
                        wrong.push((key, format!("`{origin}` is not encrypted; write `https://`")));
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn check_limits(&self, wrong: &mut Vec<(&'static str, String)>) {
        let spans = [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("stall_timeout", self.stall_timeout),
        ];
        for (key, span) in spans {
            if span.0.is_zero() || span.0 > Duration::from_secs(3600) {
                wrong.push((key, "must be more than 0s and at most 1h".to_owned()));
            }
        }
        for (key, tries) in [("retries_max", self.retries_max), ("resumes_max", self.resumes_max)] {
            if tries > TRIES_MAX {
                wrong.push((key, format!("at most {TRIES_MAX}")));
            }
        }
    }
}

impl CredentialSettings {
    /// Everything that is wrong: the key, and what to write instead.
    fn check(&self) -> Vec<(&'static str, &'static str)> {
        let mut wrong = Vec::new();
        let mut add = |key, message| wrong.push((key, message));
        let password = self.password_file.is_some() || self.password_env.is_some();
        if self.password_file.is_some() && self.password_env.is_some() {
            add("password_env", "the password is given twice; keep one of `password_file` and `password_env`");
        }
        match &self.username {
            Some(_) if !password => add("username", "has no password; add `password_file` or remove `username`"),
            Some(username) if username.is_empty() || username.contains(':') || username.contains(char::is_control) => {
                add("username", "a username is not empty and has neither `:` nor control characters");
            }
            None if self.password_file.is_some() => {
                add("password_file", "has no username; add `username` or remove it")
            }
            None if self.password_env.is_some() => add("password_env", "has no username; add `username` or remove it"),
            _ => {}
        }
        if self.docker_config.is_some() && (self.username.is_some() || password) {
            add(
                "docker_config",
                "the credentials are given twice; keep `username` and its password, or `docker_config`",
            );
        }
        wrong
    }
}

fn not_an_origin(text: &str) -> String {
    format!(
        "`{}` is not an origin; write scheme, host and port only, such as `https://registry.gitlab.com`",
        text.escape_debug()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_keys(toml: &str) -> Vec<&'static str> {
        let settings: UpstreamSettings = toml::from_str(toml).unwrap();
        settings.check().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn good_settings_have_nothing_wrong() {
        let good = [
            "host = 'registry.gitlab.com'",
            "host = 'a.b:5000'\nendpoints = ['https://a.b:5000', 'http://127.0.0.1:5000', 'http://localhost:1']",
            "host = 'a.b'\nendpoints = ['http://a.b']\nplain_http = true",
            "host = 'a.b'\nusername = 'u'\npassword_file = '/p'\ntoken_realms = ['https://auth.a.b']",
            "host = 'a.b'\nusername = 'u'\npassword_env = 'P'",
            "host = 'a.b'\ndocker_config = '/c'",
            "host = 'a.b'\n[credentials.'a/**']\nusername = 'u'\npassword_file = '/p'\n[credentials.'a/b']\ndocker_config = '/c'",
        ];
        for toml in good {
            assert_eq!(wrong_keys(toml), Vec::<&str>::new(), "{toml}");
        }
    }

    #[test]
    fn each_wrong_setting_is_named_by_its_key() {
        // Invariant 20
        let cases = [
            ("host = 'a.b/c'", "host"),
            ("host = 'https://a.b'", "host"),
            ("host = ''", "host"),
            ("host = 'u@a.b'", "host"),
            ("host = 'a.b'\nendpoints = ['http://a.b']", "endpoints"),
            ("host = 'a.b'\nendpoints = ['a.b']", "endpoints"),
            ("host = 'a.b'\nendpoints = ['https://u:p@a.b']", "endpoints"),
            ("host = 'a.b'\nendpoints = ['https://a.b/v2']", "endpoints"),
            ("host = 'a.b'\nusername = 'u'", "username"),
            ("host = 'a.b'\nusername = 'u:x'\npassword_env = 'P'", "username"),
            ("host = 'a.b'\npassword_file = '/p'", "password_file"),
            ("host = 'a.b'\npassword_env = 'P'", "password_env"),
            ("host = 'a.b'\nusername = 'u'\npassword_file = '/p'\npassword_env = 'P'", "password_env"),
            ("host = 'a.b'\nusername = 'u'\npassword_env = 'P'\ndocker_config = '/c'", "docker_config"),
            ("host = 'a.b'\n[credentials.'a/*']\nusername = 'u'\npassword_env = 'P'", "credentials"),
            ("host = 'a.b'\n[credentials.'**']\nusername = 'u'\npassword_env = 'P'", "credentials"),
            ("host = 'a.b'\n[credentials.'a/**']\nusername = 'u'", "credentials"),
            ("host = 'a.b'\n[credentials.'a/**']", "credentials"),
            ("host = 'a.b'\ntoken_realms = ['auth.a.b']", "token_realms"),
            ("host = 'a.b'\ntoken_realms = ['http://auth.a.b']", "token_realms"),
            ("host = 'a.b'\nredirect_origins = ['10.0.0.1']", "redirect_origins"),
            ("host = 'a.b'\nstall_timeout = '0s'", "stall_timeout"),
            ("host = 'a.b'\nretries_max = 1000", "retries_max"),
        ];
        for (toml, key) in cases {
            assert_eq!(wrong_keys(toml), [key], "{toml}");
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        // Invariant 20
        let error = toml::from_str::<UpstreamSettings>("host = 'a.b'\npasword_file = '/p'").unwrap_err();
        assert!(error.to_string().contains("pasword_file"), "{error}");
    }

    #[test]
    fn the_defaults_of_a_file_are_those_of_the_code() {
        let from_file: UpstreamSettings = toml::from_str("host = 'a.b'").unwrap();
        assert_eq!(format!("{from_file:?}"), format!("{:?}", UpstreamSettings::for_host("a.b")));
    }
}
