//! `sealock client-config KIND`: exactly what a client needs to pull from here: printed, written, or tried for real.
//!
//! ```text
//! settings, flags -> Site (pure) -> docker | containerd | podman | k3s | gitlab | trivy | artifacts -> Plan (pure)
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
mod site;
mod trivy;
mod write;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use serde_json::json;

use self::plan::Plan;
use self::site::Site;
use self::write::{Leave, Outcome};
use super::user::ask_password;
use super::{Common, Failure, print};
use crate::config::Settings;
use crate::tls::{self, Facts, Folder};

/// What a client needs to pull from here: print it, write it, or try it
///
/// Nothing is changed without --write; --dry-run shows what it would change. Files that sealock did not write are left
/// alone, or merged into with a copy beside them.
#[derive(Args)]
pub struct ClientConfig {
    #[arg(value_enum)]
    kind: Kind,
    /// How clients reach the registry [default: the name in its certificate, or the first address of `server.listen`]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// PEM file with the authority that clients must trust [default: ca.crt beside the server's certificate; without one,
    /// clients must trust the certificate already]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Whether clients speak TLS [default: as the settings say, or https with --ca-file]
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

/// Whether clients speak TLS, and the file with the authority that they must be told to trust.
struct Trust {
    https: bool,
    ca_file: Option<PathBuf>,
}

impl ClientConfig {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let settings = common.settings()?;
        let trust = trust(&settings, &self);
        let site = self.site(&settings, &trust)?;
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
        if site.address.starts_with("127.")
            || site.address.starts_with("localhost")
            || site.address.starts_with("[::1]")
        {
            plan.warn(format!("only clients on this machine reach {}; for others, give --address", site.address));
        }
        if self.write || self.dry_run {
            return self.apply(&plan);
        }
        if self.json { print::json(&plan) } else { print::line(plan.text().trim_end()) }
    }

    fn site(&self, settings: &Settings, trust: &Trust) -> Result<Site, Failure> {
        let address = match &self.address {
            Some(address) => host_and_port(address).ok_or_else(|| {
                wrong(
                    format!("`{address}` is not how clients reach the registry"),
                    "write a host and a port, such as `registry.site.internal:5000`",
                )
            })?,
            None => first_listener(settings)?,
        };
        let authority = trust.ca_file.as_deref().map(authority_of).transpose()?;
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
        Ok(Site { address, https: trust.https, authority, user, fallback, hosts, routes })
    }

    fn apply(&self, plan: &Plan) -> Result<(), Failure> {
        if plan.files.is_empty() {
            let why = format!("{} needs no file here", self.kind.name());
            return Err(wrong(why, "without --write, what it needs is printed"));
        }
        let leave = Leave { dry_run: self.dry_run, force: self.force };
        let lines = write::apply(&self.root, plan, leave);
        let left = lines.iter().filter(|line| matches!(line.outcome, Outcome::Left { .. })).count();
        if self.json {
            print::json(&json!({ "files": lines, "steps": plan.steps, "warnings": plan.warnings }))?;
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
    match kind {
        Kind::Docker => docker::plan(site, containerd_store),
        Kind::Containerd => containerd::plan(site),
        Kind::Podman => podman::plan(site, "podman"),
        Kind::CriO => podman::plan(site, "cri-o"),
        Kind::K3s => k3s::plan(site),
        Kind::Gitlab => gitlab::plan(site),
        Kind::Trivy => trivy::plan(site),
        Kind::Oras => artifacts::oras(site),
        Kind::Helm => artifacts::helm(site),
    }
}

/// The one place that knows how the server's TLS is set up: by default, clients are told to trust the authority that
/// `sealock certs init` put beside the server's certificate.
fn trust(settings: &Settings, flags: &ClientConfig) -> Trust {
    let server = settings.tls.certificate.as_deref().filter(|_| !settings.server.listen.is_empty());
    let https = match flags.scheme {
        Some(scheme) => scheme == Scheme::Https,
        None => flags.ca_file.is_some() || server.is_some(),
    };
    let beside = server.and_then(Path::parent).map(|folder| Folder::new(folder).ca_certificate());
    let ca_file = flags.ca_file.clone().or_else(|| beside.filter(|path| path.exists()));
    Trust { https, ca_file: ca_file.filter(|_| https) }
}

/// The certificates of a file and nothing else of it: a key that stands there, too, goes nowhere.
fn authority_of(path: &Path) -> Result<String, Failure> {
    let certificates = tls::read_certificates(path).map_err(|why| Failure::new(&why, why.hint()))?;
    let blocks = certificates.iter().map(|certificate| {
        let encoded = STANDARD.encode(certificate);
        let lines: Vec<_> = encoded.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    });
    Ok(blocks.collect())
}

/// The first listener: by the name that its certificate is for, where there is one that clients will check.
fn first_listener(settings: &Settings) -> Result<String, Failure> {
    let hint = "name how clients reach it: --address registry.site.internal:5000";
    let listen = settings.server.listen.first().or(settings.server.listen_plain.first());
    let Some(first) = listen.filter(|first| first.port() != 0) else {
        return Err(wrong("the settings name no address that clients could use".to_owned(), hint));
    };
    if let Some(host) = settings.tls.certificate.as_deref().and_then(named) {
        return Ok(format!("{host}:{}", first.port()));
    }
    match first.ip().is_unspecified() {
        true => Err(wrong(format!("the server listens on {first}, which is no address that clients can use"), hint)),
        false => Ok(first.to_string()),
    }
}

/// The first host that a certificate is for.
fn named(certificate: &Path) -> Option<String> {
    let shown = tls::read_certificates(certificate).ok()?;
    let names = Facts::of(shown.first()?)?.names;
    names.into_iter().find(|name| !name.starts_with("*.") && name.parse::<std::net::IpAddr>().is_err())
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
