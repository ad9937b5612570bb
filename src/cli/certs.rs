//! `sealock certs`: an authority and certificates of our own, and how long they last.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Common, Failure, print};
use crate::clock::Clock;
use crate::tls::{self, Folder, IssueError, Name, PairError, Role, Shown, TlsSettings};

#[derive(Subcommand)]
pub enum CertsCommand {
    /// Make an authority that clients can trust, and a server's certificate that it issued
    Init(Init),
    /// Make a new server's certificate of the same authority; a running server takes it by itself
    ///
    /// It is for the names that the old one was for; --host and --ip name others in their place, all of them.
    Renew(Renew),
    /// Show the certificates: for whom, by whom, how long; exit with 3 if one, or its key, needs attention
    Show(Show),
}

#[derive(Args)]
pub struct Init {
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    place: Place,
    /// Replace what is there; clients must be given the new authority
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub struct Renew {
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    place: Place,
    /// The authority's key, if it is kept elsewhere
    #[arg(long, value_name = "FILE")]
    ca_key: Option<PathBuf>,
}

#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    place: Place,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Names {
    /// A host name that clients write, such as registry.site.internal; may be given more than once
    #[arg(long, value_name = "NAME")]
    host: Vec<Name>,
    /// An address that clients write; may be given more than once
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
}

#[derive(Args)]
struct Place {
    /// The folder of the certificates [default: that of `tls.certificate` in the settings, or certs]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl CertsCommand {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        match self {
            Self::Init(command) => command.run(common),
            Self::Renew(command) => command.run(common),
            Self::Show(command) => command.run(common),
        }
    }
}

impl Init {
    fn run(self, common: &Common) -> Result<(), Failure> {
        let (names, folder) = (self.names.all(), self.place.folder(&common.settings()?.tls));
        if names.is_empty() {
            let message = "a certificate is for names, and none is given".to_owned();
            let hint = "name what clients write: `sealock certs init --host registry.site.internal --ip 10.0.0.5`";
            return Err(Failure { message, hint: Some(hint.to_owned()), code: 2 });
        }
        tls::init(&folder, &names, self.force, Clock::system().now())?;
        tell(&folder)?;
        let certificate = absolute(&folder.certificate());
        print::line(&format!(
            "\nserve with it:\n  sealock serve --listen 0.0.0.0:5000 --certificate {certificate}\n\
             or, in the settings:\n  [server]\n  listen = [\"0.0.0.0:5000\"]\n  [tls]\n  certificate = \"{certificate}\""
        ))?;
        let host = names.iter().map(ToString::to_string).find(|name| !name.starts_with("*."));
        let host = host.map_or_else(|| "HOST:5000".to_owned(), |host| format!("{}:5000", bracketed(&host)));
        let authority = absolute(&folder.ca_certificate());
        print::line(&format!(
            "\nlet clients trust it, each with a copy of {authority}:\n  \
             docker      /etc/docker/certs.d/{host}/ca.crt\n  \
             podman      /etc/containers/certs.d/{host}/ca.crt\n  \
             containerd  ca = \"…/ca.crt\" in its hosts.toml\n  \
             the system  /usr/local/share/ca-certificates/sealock.crt, then update-ca-certificates (Debian)\n\n\
             keep {} offline: only `sealock certs renew` needs it",
            folder.ca_key().display()
        ))
    }
}

impl Renew {
    fn run(self, common: &Common) -> Result<(), Failure> {
        let folder = self.place.folder(&common.settings()?.tls);
        let before = names_in(&folder);
        tls::renew(&folder, &self.names.all(), self.ca_key.as_deref(), Clock::system().now())?;
        tell(&folder)?;
        let now = names_in(&folder);
        let gone: Vec<_> = before.into_iter().filter(|name| !now.contains(name)).collect();
        match gone.is_empty() {
            true => print::line("a running server takes it by itself; clients need nothing new"),
            false => print::line(&format!(
                "a running server takes it by itself, and then is no longer trusted as {}; to keep a name, give it with --host \
                 or --ip, too",
                gone.join(", ")
            )),
        }
    }
}

/// Of the server's certificate that is there now.
fn names_in(folder: &Folder) -> Vec<String> {
    let shown = tls::shown(&folder.certificate(), Role::Server, Clock::system().now()).unwrap_or_default();
    shown.into_iter().flat_map(|one| one.facts.names).collect()
}

impl Show {
    fn run(self, common: &Common) -> Result<(), Failure> {
        let (settings, now) = (common.settings()?.tls, Clock::system().now());
        let mut all = Vec::new();
        for (path, role) in files(&settings, &self.place.folder(&settings)) {
            all.extend(tls::shown(&path, role, now)?);
        }
        if self.json {
            print::json(&all)?;
        } else {
            all.iter().try_for_each(show)?;
        }
        let mut warnings: Vec<_> = all.iter().filter_map(|one| one.warning(now)).collect();
        let keys = keys(&settings, &self.place.folder(&settings)).into_iter();
        let wrong = keys.filter_map(|(certificate, key)| tls::check_key(&certificate, &key).err());
        warnings.extend(wrong.map(|why| Failure::new(&why, None).message));
        if warnings.is_empty() { Ok(()) } else { Err(Failure::partly(warnings.join("; "))) }
    }
}

impl Names {
    fn all(self) -> Vec<Name> {
        self.host.into_iter().chain(self.ip.into_iter().map(Name::Address)).collect()
    }
}

impl Place {
    /// That of the settings counts if sealock's own names are used there.
    fn folder(&self, settings: &TlsSettings) -> Folder {
        let set = settings.certificate.as_deref().filter(|path| path.ends_with("server.crt"));
        let set = set.and_then(Path::parent).map(Path::to_owned);
        Folder::new(self.folder.clone().or(set).unwrap_or_else(|| PathBuf::from("certs")))
    }
}

/// Those of the settings, and those of the folder that are there; its server's in any case if the settings have none.
fn files(settings: &TlsSettings, folder: &Folder) -> Vec<(PathBuf, Role)> {
    let server = settings.certificate.iter().chain(settings.also.iter().map(|pair| &pair.certificate));
    let mut files: Vec<_> = server.map(|path| (path.clone(), Role::Server)).collect();
    if files.is_empty() || folder.certificate().exists() {
        files.push((folder.certificate(), Role::Server));
    }
    files.extend(settings.client_ca.iter().map(|path| (path.clone(), Role::ClientAuthority)));
    if folder.ca_certificate().exists() {
        files.push((folder.ca_certificate(), Role::Authority));
    }
    let mut seen = HashSet::new();
    files.retain(|(path, role)| seen.insert((path.canonicalize().unwrap_or_else(|_| path.clone()), *role)));
    files
}

/// Each certificate that is shown to clients, with its key.
fn keys(settings: &TlsSettings, folder: &Folder) -> Vec<(PathBuf, PathBuf)> {
    let set = settings.pairs().into_iter().map(|(_, certificate, key)| (certificate.to_owned(), key));
    let mut keys: Vec<_> = set.collect();
    if keys.is_empty() {
        keys.push((folder.certificate(), folder.key()));
    }
    keys
}

fn show(one: &Shown) -> Result<(), Failure> {
    let (facts, role) = (&one.facts, role(one.role));
    print::line(&format!("{}: {role}", one.file.display()))?;
    if !facts.names.is_empty() {
        print::line(&format!("  names    {}", facts.names.join(", ")))?;
    }
    print::line(&format!(
        "  subject  {}\n  issuer   {}\n  until    {}, {} days left\n  sha256   {}",
        facts.subject,
        facts.issuer,
        print::minute(facts.not_after),
        one.days_left,
        facts.fingerprint
    ))
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Server => "shown to clients",
        Role::Authority => "the authority, which clients must trust",
        Role::ClientAuthority => "the authority whose clients are believed",
    }
}

/// What was made.
fn tell(folder: &Folder) -> Result<(), Failure> {
    let now = Clock::system().now();
    for (path, role) in [(folder.certificate(), Role::Server), (folder.ca_certificate(), Role::Authority)] {
        tls::shown(&path, role, now)?.iter().try_for_each(show)?;
    }
    Ok(())
}

fn absolute(path: &Path) -> String {
    path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string()
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

impl From<IssueError> for Failure {
    fn from(why: IssueError) -> Self {
        Self::new(&why, why.hint())
    }
}

impl From<PairError> for Failure {
    fn from(why: PairError) -> Self {
        Self::new(&why, why.hint())
    }
}
