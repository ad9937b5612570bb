//! `[access]` of the settings, and what can be wrong in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::caller::Verb;
use super::member::Member;
use crate::names::Pattern;
use crate::size::Span;

/// Most rules.
pub const RULES_MAX: usize = 1000;
/// Most groups, and most members of one.
const GROUPS_MAX: usize = 1000;
/// Clients take a shorter life for 60 seconds, and docker asks for no second token while a push runs.
const TOKEN_LIFE_LEAST: Duration = Duration::from_secs(300);
const TOKEN_LIFE_MOST: Duration = Duration::from_secs(86_400);
const REFRESH_LIFE_MOST: Duration = Duration::from_secs(366 * 86_400);
const SKEW_MOST: Duration = Duration::from_secs(600);

/// `[access]`: who may do what.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessSettings {
    /// Users and hashes of their passwords, as `htpasswd -B` writes them. Default: `access/users` in the data folder.
    pub htpasswd: Option<PathBuf>,
    /// The token endpoint's URL as clients reach it, where a proxy stands in front. Default: from the request.
    pub realm: Option<String>,
    /// How long a token is good for.
    pub token_life: Span,
    /// How long `docker login` lasts before it must be done again; 0s: docker keeps the password instead.
    pub refresh_life: Span,
    /// Members by a name of the operator's choice.
    pub groups: BTreeMap<String, Vec<String>>,
    /// In order: the first that fits is the one that `sealock access explain` names.
    pub rule: Vec<RuleSettings>,
    /// Who issues tokens that are taken as logins, by a name of the operator's choice.
    pub issuer: BTreeMap<String, IssuerSettings>,
}

/// `[[access.rule]]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// Pattern of names as clients ask for them.
    pub repository: String,
    pub verbs: Vec<Verb>,
    /// Whom it lets: `anonymous`, `authenticated`, `user:NAME`, `group:NAME`, `robot:NAME`, `certificate:NAME`,
    /// `claim:NAME=VALUE`.
    pub to: Vec<String>,
}

/// `[access.issuer.NAME]`: GitLab, say, and its CI job tokens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerSettings {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// The `aud` that its tokens must have.
    pub audience: String,
    /// Its keys: a file with a JWK set.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// Its keys: where it serves them. It is asked also while the gate is closed: it must be inside the site.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// PEM file with certificate authorities that are trusted besides the system's, for `jwks_url`.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Signatures that are taken.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<Signature>,
    /// How far its clock may be off.
    #[serde(default = "clock_skew")]
    pub clock_skew: Span,
}

/// A signature by a private key. Those by a shared secret are not taken: who can check one can make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Signature {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// What is wrong with a key of `[access]`, and what to write instead. The key as its parts below `access`.
pub type Wrong = (Vec<String>, String);

fn algorithms() -> Vec<Signature> {
    vec![Signature::RS256]
}

fn clock_skew() -> Span {
    Span(Duration::from_secs(30))
}

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            htpasswd: None,
            realm: None,
            token_life: Span(Duration::from_secs(15 * 60)),
            refresh_life: Span(Duration::from_secs(30 * 86_400)),
            groups: BTreeMap::new(),
            rule: Vec::new(),
            issuer: BTreeMap::new(),
        }
    }
}

impl AccessSettings {
    /// The first thing that is wrong. Reads no file.
    pub fn check(&self) -> Result<(), Wrong> {
        let wrong = |key: &str, message: &str| Err((vec![key.to_owned()], message.to_owned()));
        if !(TOKEN_LIFE_LEAST..=TOKEN_LIFE_MOST).contains(&self.token_life.0) {
            return wrong("token_life", "write 5m to 1d: clients count on some minutes, and what is taken along lasts");
        }
        if self.refresh_life.0 > REFRESH_LIFE_MOST {
            return wrong("refresh_life", "write 0s to 366d");
        }
        if let Some(realm) = &self.realm
            && !is_url(realm)
        {
            return wrong("realm", "write a URL as clients reach it, such as \"https://registry.site.internal/token\"");
        }
        self.check_groups()?;
        self.check_rules()?;
        self.issuer.iter().try_for_each(|(name, issuer)| {
            let below = |key: &str, message| (vec!["issuer".to_owned(), name.clone(), key.to_owned()], message);
            issuer.check().map_err(|(key, message)| below(key, message))?;
            let same = |other: &IssuerSettings| other.issuer == issuer.issuer;
            if self.issuer.values().filter(|other| same(other)).count() > 1 {
                return Err(below("issuer", "two issuers have this `issuer`; keep one".to_owned()));
            }
            // Else everybody would be let in as if nothing had been set.
            if self.rule.is_empty() {
                return Err(below("issuer", "no rule lets anybody do anything; add an [[access.rule]]".to_owned()));
            }
            Ok(())
        })
    }

    fn check_groups(&self) -> Result<(), Wrong> {
        if self.groups.len() > GROUPS_MAX {
            return Err((vec!["groups".to_owned()], format!("at most {GROUPS_MAX} groups")));
        }
        for (name, members) in &self.groups {
            let wrong = |message: String| (vec!["groups".to_owned(), name.clone()], message);
            if members.len() > GROUPS_MAX {
                return Err(wrong(format!("at most {GROUPS_MAX} members")));
            }
            for member in members {
                match Member::parse_in_group(member).map_err(wrong)? {
                    Member::Group(_) => return Err(wrong(format!("`{member}`: a group holds no groups"))),
                    Member::Anonymous | Member::Authenticated => {
                        return Err(wrong(format!("`{member}` is no member; write it into the rule")));
                    }
                    member => self.check_claims(&member).map_err(wrong)?,
                }
            }
        }
        Ok(())
    }

    fn check_rules(&self) -> Result<(), Wrong> {
        if self.rule.len() > RULES_MAX {
            return Err((vec!["rule".to_owned()], format!("at most {RULES_MAX} rules")));
        }
        for (number, rule) in self.rule.iter().enumerate() {
            let wrong = |key: &str, message| (vec!["rule".to_owned(), number.to_string(), key.to_owned()], message);
            rule.repository.parse::<Pattern>().map_err(|why| wrong("repository", why.to_string()))?;
            if rule.verbs.is_empty() {
                return Err(wrong("verbs", "name one or more of pull, push, delete and admin".to_owned()));
            }
            if rule.to.is_empty() {
                return Err(wrong("to", "say whom it lets, such as `user:alice` or `anonymous`".to_owned()));
            }
            for member in &rule.to {
                let member = self.check_member(member).map_err(|why| wrong("to", why))?;
                if member == Member::Anonymous && rule.verbs.contains(&Verb::Admin) {
                    let message = "orders are taken from those who have logged in; give `admin` to a user, a group or a \
                                   robot, in a rule of its own";
                    return Err(wrong("to", message.to_owned()));
                }
            }
        }
        Ok(())
    }

    /// An entry of a rule's `to`, or of another list of that kind.
    fn check_member(&self, text: &str) -> Result<Member, String> {
        let member: Member = text.parse()?;
        self.check_claims(&member)?;
        match &member {
            Member::Group(name) if !self.groups.contains_key(name) => {
                Err(format!("there is no group `{name}`; add it to [access.groups]"))
            }
            _ => Ok(member),
        }
    }

    /// The first thing that is wrong with a list that is written as a rule's `to`.
    pub fn check_members(&self, to: &[String]) -> Result<(), String> {
        if to.len() > GROUPS_MAX {
            return Err(format!("at most {GROUPS_MAX} members"));
        }
        to.iter().try_for_each(|member| self.check_member(member).map(drop))
    }

    /// Claims are worth what their issuer is worth.
    fn check_claims(&self, member: &Member) -> Result<(), String> {
        let Member::Claims(claims) = member else { return Ok(()) };
        let named = claims.iter().find(|(name, _)| name == "iss").map(|(_, value)| value.to_string());
        match (self.issuer.len(), named) {
            (0, _) => Err("no issuer vouches for claims; add an [access.issuer.…]".to_owned()),
            (1, None) => Ok(()),
            (_, None) => Err("say of which issuer: `claim:iss=https://…,NAME=VALUE`".to_owned()),
            (_, Some(iss)) if self.issuer.values().any(|issuer| issuer.issuer == iss) => Ok(()),
            (_, Some(iss)) => Err(format!("`{iss}` is the `issuer` of no [access.issuer.…]")),
        }
    }
}

impl IssuerSettings {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, message: &str| Err((key, message.to_owned()));
        if self.issuer.is_empty() || self.issuer.len() > 300 {
            return wrong("issuer", "write the `iss` of its tokens, such as \"https://gitlab.site.internal\"");
        }
        if self.audience.is_empty() {
            return wrong(
                "audience",
                "write the `aud` that its tokens have, such as \"https://registry.site.internal\"",
            );
        }
        match (&self.jwks_file, &self.jwks_url) {
            (Some(_), Some(_)) => return wrong("jwks_url", "the keys are given twice; keep `jwks_file` or `jwks_url`"),
            (None, None) => {
                return wrong(
                    "jwks_url",
                    "say where its keys are: `jwks_url`, such as \"https://gitlab.site.internal/oauth/discovery/keys\", or `jwks_file`",
                );
            }
            (None, Some(url)) if !is_url(url) => {
                return wrong("jwks_url", "write a URL, such as \"https://gitlab.site.internal/oauth/discovery/keys\"");
            }
            (None, Some(url)) if !url.starts_with("https://") && !is_loopback(url) => {
                return wrong(
                    "jwks_url",
                    "write `https://`: who can change these keys on the way can log in as anybody",
                );
            }
            (Some(_), None) if self.ca_file.is_some() => return wrong("ca_file", "it is of use with `jwks_url` alone"),
            _ => {}
        }
        if self.algorithms.is_empty() {
            return wrong("algorithms", "name one or more, such as [\"RS256\"]");
        }
        if self.clock_skew.0 > SKEW_MOST {
            return wrong("clock_skew", "write 0s to 10m");
        }
        Ok(())
    }
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'@' | b'?' | b'#');
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && rest.len() < 1000 && rest.bytes().all(plain))
}

fn is_loopback(url: &str) -> bool {
    let rest = url.strip_prefix("http://").unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
