//! `sealock client-config KIND`: exactly what a client needs to pull from here: printed, written, or tried for real.
//!
//! ```text
//! flags, the running server (served) or the settings -> Site (pure)
//! Site -> docker | containerd | podman | k3s | gitlab | trivy | artifacts -> Plan (pure)
//! Plan -> text | write (files below a root, with merge) ;  check (the installed client, and who asked the server)
//! ```

mod artifacts;
mod check;
mod choose;
mod containerd;
mod docker;
mod gitlab;
mod k3s;
mod merge;
mod plan;
mod podman;
mod served;
mod site;
mod trivy;
mod write;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use self::plan::Plan;
use self::served::Served;
use self::site::{Identity, Site, is_loopback};
use self::write::{Leave, Outcome};
use super::user::ask_password;
use super::{Common, Failure, print};
use crate::config::Settings;
use crate::tls::{self, ClientAuth, Facts, PairError};

/// What a client needs to pull from here: print it, write it, or try it
///
/// Nothing is changed without --write; --dry-run shows what it would change. Files that sealock did not write are left
/// alone, or merged into with a copy beside them.
#[derive(Args)]
pub struct ClientConfig {
    #[arg(value_enum)]
    kind: Kind,
    /// How clients reach the registry [default: the name in its certificate, or the first address that it listens on]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// PEM file with the authority that clients must trust [default: ca.crt beside the server's certificate; without one,
    /// clients must trust the certificate already]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A certificate that clients show the registry, as PEM, where it wants one (`tls.client_auth`)
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// The key of --client-cert. It is copied with --write, and never printed
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// Whether clients speak TLS [default: https with --ca-file; else as the running server does, or as the settings say]
    #[arg(long, value_enum)]
    scheme: Option<Scheme>,
    /// Who logs in; only the command is printed, never a password
    ///
    /// With --check, containerd, CRI-O and k3s pull as them: the password is asked for, or is the first line of standard
    /// input. All others have a login of their own, or none.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Let clients go on to the internet for what is not here
    #[arg(long)]
    fallback: bool,
    /// docker keeps its images in containerd's store (the default of new installations from version 29 on)
    #[arg(long)]
    containerd_store: bool,
    /// Put the files in place
    #[arg(long)]
    write: bool,
    /// The folder below which they are put
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Only show what --write would change
    #[arg(long, conflicts_with = "check")]
    dry_run: bool,
    /// Replace files that sealock did not write, too; a copy is kept
    #[arg(long)]
    force: bool,
    /// Pull with the installed client, and say whether it came through here. Run it where the server runs
    #[arg(long, conflicts_with_all = ["write", "force"])]
    check: bool,
    /// What --check pulls, as the client names it [default: something that is kept]
    #[arg(long, value_name = "NAME", requires = "check")]
    image: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Docker,
    Containerd,
    /// podman, buildah and skopeo
    Podman,
    CriO,
    /// k3s and RKE2
    K3s,
    Gitlab,
    Trivy,
    Oras,
    Helm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scheme {
    Http,
    Https,
}

impl Kind {
    fn name(self) -> String {
        self.to_possible_value().map(|kind| kind.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it keeps no login, but is told it with each pull.
    fn is_told_the_login(self) -> bool {
        matches!(self, Self::Containerd | Self::CriO | Self::K3s)
    }
}

const SAY_HOW: &str = "name the authority that they must trust, --ca-file certs/ca.crt; or the server's certificate in [tls] of the \
                       settings (-c FILE); or say --scheme https where they trust it already, --scheme http if it has no TLS";

/// Whether clients speak TLS, and the file with the authority that they must be told to trust.
struct Trust {
    https: bool,
    ca_file: Option<PathBuf>,
}

impl ClientConfig {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let settings = common.settings()?;
        let served = self.served(&settings, common)?;
        let address = self.address(&served)?;
        let trust = self.trust(&served, &address)?;
        let site = self.site(&settings, address, &trust)?;
        if self.check {
            let client = common.client()?;
            let user = self.user.as_deref().filter(|_| self.kind.is_told_the_login());
            let check = check::Check {
                kind: self.kind,
                site: &site,
                containerd_store: self.containerd_store,
                ca_file: trust.ca_file.as_deref(),
                root: &self.root,
                image: self.image.as_deref(),
                password: user.map(ask_password).transpose()?,
            };
            return check::run(&check, client, self.json);
        }
        let mut plan = plan_of(self.kind, &site, self.containerd_store);
        if site.is_loopback() {
            plan.warn(format!("only clients on this machine reach {}; for others, give --address", site.address));
        }
        if self.write || self.dry_run {
            return self.apply(&plan);
        }
        if self.json { print::json(&plan) } else { print::line(plan.text().trim_end()) }
    }

    /// The server is asked for what the flags leave open.
    fn served(&self, settings: &Settings, common: &Common) -> Result<Served, Failure> {
        let is_said = self.ca_file.is_some() || self.scheme == Some(Scheme::Http);
        match is_said && self.address.is_some() {
            true => Ok(Served::by(settings)),
            false => Served::ask(settings, &common.client()?),
        }
    }

    fn address(&self, served: &Served) -> Result<String, Failure> {
        let Some(address) = &self.address else { return served.address() };
        host_and_port(address).ok_or_else(|| {
            wrong(
                format!("`{address}` is not how clients reach the registry"),
                "write a host and a port, such as `registry.site.internal:5000`",
            )
        })
    }

    /// By default, clients are told to trust the authority that `sealock certs init` put beside the server's certificate.
    /// Plain HTTP is for those on this machine, and where somebody said it.
    fn trust(&self, served: &Served, address: &str) -> Result<Trust, Failure> {
        let secured = self.ca_file.is_some() || self.client_cert.is_some();
        let port = served.port(address);
        let https = match self.scheme {
            Some(scheme) => scheme == Scheme::Https,
            None => secured || port.is_some_and(|port| port.https),
        };
        if !https && secured {
            let hint = "leave out --scheme, or --ca-file and --client-cert";
            return Err(wrong("there is nothing to check on plain HTTP".to_owned(), hint));
        }
        let is_said = self.scheme.is_some() || port.is_some_and(|port| port.is_said);
        if !https && !is_said {
            let silent = served.silent().map(|why| Failure::new(why, None).message);
            let unknown = "no server runs here that could be asked".to_owned();
            if let Some(why) = silent.or_else(|| (!is_loopback(address)).then_some(unknown)) {
                return Err(wrong(format!("how do clients speak to {address}? {why}, and no setting tells"), SAY_HOW));
            }
        }
        let ca_file = match &self.ca_file {
            Some(path) => Some(path.clone()),
            None if https => served.authority()?,
            None => None,
        };
        if let Some(path) = &ca_file {
            check_authority(path, served)?;
        }
        Ok(Trust { https, ca_file })
    }

    /// What clients show the server. The key is held against the certificate and left where it is.
    fn identity(&self) -> Result<Option<Identity>, Failure> {
        let (Some(certificate), Some(key)) = (&self.client_cert, &self.client_key) else { return Ok(None) };
        let absolute = |path: &Path| {
            let path = std::path::absolute(path).map_err(|why| Failure::new(&why, None))?;
            let plain = path.to_str().filter(|path| path.split('/').all(|part| part.is_empty() || is_plain(part)));
            plain.map(str::to_owned).ok_or_else(|| {
                let message = format!("`{}` has letters that have a meaning in files and shells", path.display());
                wrong(message, "rename it, or its folder: letters, digits, and . _ - + @")
            })
        };
        let (certificate_file, key_file) = (absolute(certificate)?, absolute(key)?);
        tls::check_key(certificate, key).map_err(|why| match why {
            PairError::Certificates(_) | PairError::NotX509 { .. } | PairError::Order { .. } | PairError::NotFirst { .. } => {
                let hint = "it must hold the client's certificate as a `-----BEGIN CERTIFICATE-----` block, and after it \
                            the one that issued it, and so on";
                Failure::new(&why, Some(hint.to_owned()))
            }
            why => why.into(),
        })?;
        let certificate = served::certificates_of(certificate)?;
        Ok(Some(Identity { certificate, certificate_file, key_file }))
    }

    fn site(&self, settings: &Settings, address: String, trust: &Trust) -> Result<Site, Failure> {
        let authority = trust.ca_file.as_deref().map(served::certificates_of).transpose()?;
        if self.user.as_ref().is_some_and(|user| !is_plain(user)) {
            return Err(wrong(
                "the name of --user has letters that have a meaning in files and shells".to_owned(),
                "use letters, digits, and . _ - + @",
            ));
        }
        let mut hosts: Vec<String> = settings.upstream.values().map(|upstream| upstream.host.clone()).collect();
        hosts.sort();
        let routes = settings.routes().map_err(|why| Failure::new(&why, None))?;
        let (user, fallback) = (self.user.clone(), self.fallback);
        let (https, identity, client_auth) = (trust.https, self.identity()?, settings.tls.client_auth);
        Ok(Site { address, https, authority, client_auth, identity, user, fallback, hosts, routes })
    }

    fn apply(&self, plan: &Plan) -> Result<(), Failure> {
        let leave = Leave { dry_run: self.dry_run, force: self.force };
        let lines = write::apply(&self.root, plan, leave);
        let left = lines.iter().filter(|line| matches!(line.outcome, Outcome::Left { .. })).count();
        if self.json {
            let Plan { snippets, steps, warnings, .. } = plan;
            print::json(&json!({ "files": lines, "snippets": snippets, "steps": steps, "warnings": warnings }))?;
        } else if plan.files.is_empty() {
            print::line(&format!(
                "{}note: no file of this machine is needed for it: nothing was to be written",
                plan.text()
            ))?;
        } else {
            for line in &lines {
                print::line(&describe(line, self.dry_run))?;
            }
            print::line(plan.advice().trim_end())?;
        }
        match left {
            0 => Ok(()),
            left => Err(Failure::partly(format!("{left} of {} files were left as they are", lines.len()))),
        }
    }
}

fn describe(line: &write::Line, dry_run: bool) -> String {
    let (path, would) = (line.path.display(), if dry_run { "would be " } else { "" });
    let diff = if dry_run { line.diff.as_str() } else { "" };
    match &line.outcome {
        Outcome::Unchanged => format!("{path}: as it should be"),
        Outcome::Created => format!("{path}: {would}written\n{diff}").trim_end().to_owned(),
        Outcome::Changed { copy } => {
            let kept = format!("{path}: {would}changed; as it was before, it is kept in {}", copy.display());
            format!("{kept}\n{diff}").trim_end().to_owned()
        }
        Outcome::Left { why } => format!("{path}: left as it is: {why}"),
    }
}

fn plan_of(kind: Kind, site: &Site, containerd_store: bool) -> Plan {
    let mut plan = match kind {
        Kind::Docker => docker::plan(site, containerd_store),
        Kind::Containerd => containerd::plan(site),
        Kind::Podman => podman::plan(site, "podman"),
        Kind::CriO => podman::plan(site, "cri-o"),
        Kind::K3s => k3s::plan(site),
        Kind::Gitlab => gitlab::plan(site),
        Kind::Trivy => trivy::plan(site),
        Kind::Oras => artifacts::oras(site),
        Kind::Helm => artifacts::helm(site),
    };
    if !site.https && !site.is_loopback() {
        plan.warn(
            "plain HTTP: whoever is on the way reads passwords and changes images, and no client notices; `sealock certs \
             init` makes certificates",
        );
    }
    let takes_one = site.https && site.identity.is_none() && !matches!(kind, Kind::Trivy | Kind::Gitlab);
    match site.client_auth {
        ClientAuth::Required if takes_one => plan.warn(
            "the server wants a certificate of every client (`tls.client_auth`), and nothing here has one: name it with \
             --client-cert and --client-key",
        ),
        ClientAuth::Optional if takes_one => {
            plan.warn("the server takes certificates of clients that have one: --client-cert and --client-key put it in place");
        }
        _ => {}
    }
    plan
}

/// A server's certificate in the place of its authority works with some clients, and until the next renewal.
fn check_authority(path: &Path, served: &Served) -> Result<(), Failure> {
    let certificates = tls::read_certificates(path).map_err(|why| Failure::new(&why, why.hint()))?;
    let facts: Vec<_> = certificates.iter().filter_map(Facts::of).collect();
    let is_one = |facts: &Facts| facts.is_ca || (facts.subject == facts.issuer && served.may_show(facts));
    if facts.iter().any(is_one) {
        return Ok(());
    }
    let issuer = facts.first().map_or_else(String::new, |facts| format!(": it was issued by `{}`", facts.issuer));
    Err(wrong(
        format!("`{}` is no authority{issuer}", path.display()),
        "name the certificate of the authority that issued the server's; `sealock certs init` calls it ca.crt",
    ))
}

/// A host name or address, perhaps with a port, in the form in which it can stand in references and files.
fn host_and_port(text: &str) -> Option<String> {
    let authority: http::uri::Authority = text.parse().ok()?;
    let port = authority.as_str().strip_prefix(authority.host())?;
    let port_is_good =
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let host = authority.host();
    let host_is_good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
        }
    };
    (port_is_good && host_is_good).then(|| text.to_ascii_lowercase())
}

/// Nothing in it has a meaning in TOML, YAML or a shell.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+@".contains(&byte))
}

fn wrong(message: String, hint: &str) -> Failure {
    Failure { message, hint: Some(hint.to_owned()), code: 2 }
}

#[cfg(test)]
mod tests;
