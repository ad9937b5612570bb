//! `--check`: pulls with the installed client, and says whether the server was asked. A mirror that does not work is
//! passed over in silence, so that a pull that succeeds proves nothing.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use toml_edit::{DocumentMut, Item, value};

use super::choose::choose;
use super::merge::CONTAINERD_HOSTS;
use super::site::Site;
use super::{Failure, Kind, artifacts, print, trivy, wrong};
use crate::secret::Secret;
use crate::server::Seen;
use crate::server::admin::AdminClient;

/// Longest time that a client may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(600);
/// Last lines of a client's words that are shown.
const WORDS_MAX: usize = 8;

/// What came of it.
#[derive(Debug, Serialize)]
struct Verdict {
    image: String,
    command: String,
    pulled: bool,
    /// Whether the manifest was asked of the server, and answered, while the client ran.
    through_here: bool,
    /// What the server saw from this machine.
    seen: Vec<Seen>,
    /// The client's last words, where it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    words: String,
}

/// What is to be tried.
pub(super) struct Check<'a> {
    pub(super) kind: Kind,
    pub(super) site: &'a Site,
    pub(super) containerd_store: bool,
    /// The authority, for those that are told of it by a flag, where nothing is in place below `root`.
    pub(super) ca_file: Option<&'a Path>,
    pub(super) root: &'a Path,
    pub(super) image: Option<&'a str>,
    /// For those that keep no login of their own.
    pub(super) password: Option<Secret>,
}

pub(super) fn run(check: &Check, client: AdminClient, as_json: bool) -> Result<(), Failure> {
    let verdict = super::super::block_on(async {
        let image = match check.image {
            Some(image) => image.to_owned(),
            None => choose(check.kind, check.containerd_store, check.site, &client.list(None).await?)?,
        };
        // A login may lie in it.
        let mut folder = tempfile::Builder::new();
        let folder = folder.prefix("sealock-check-").permissions(Permissions::from_mode(0o700)).tempdir();
        let folder = folder.map_err(|why| Failure::new(&why, None))?;
        let watch = client.watch(watched(&image)).await?;
        let mut tried = Vec::new();
        for candidate in check.commands(folder.path(), &image)? {
            let shown = shown(&candidate);
            let mut command = Command::from(candidate);
            let running = command.kill_on_drop(true).stdin(std::process::Stdio::null()).output();
            let ended = tokio::select! {
                ended = tokio::time::timeout(PULL_TIMEOUT, running) => ended,
                // The folder goes with us.
                told = interrupted() => {
                    told.map_err(|why| Failure::new(&why, None))?;
                    return Err(Failure { code: 130, ..Failure::found("interrupted".to_owned()) });
                }
            };
            match ended {
                Ok(Ok(output)) => return Ok(judge(image, shown, &output, client.seen(&watch).await?)),
                Ok(Err(why)) if why.kind() == std::io::ErrorKind::NotFound => {
                    tried.push(shown.split(' ').next().unwrap_or_default().to_owned());
                }
                Ok(Err(why)) => return Err(Failure::new(&why, Some(format!("it was to run: {shown}")))),
                Err(_) => {
                    return Err(Failure::found(format!("`{shown}` did not end within {} s", PULL_TIMEOUT.as_secs())));
                }
            }
        }
        let hint = "install it, or run this on a client's machine that also runs the server";
        Err(wrong(format!("there is no {} here", tried.join(", nor ")), hint))
    })?;
    tell(check, &verdict, as_json)
}

/// Until Ctrl-C, or whatever else asks us to end.
async fn interrupted() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        told = tokio::signal::ctrl_c() => told?,
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// The part of a reference that every way of asking for it has in common: its repository's last component.
fn watched(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split(':').next().unwrap_or(last)
}

fn judge(image: String, command: String, output: &Output, seen: Vec<Seen>) -> Verdict {
    let seen: Vec<_> = seen.into_iter().filter(|seen| is_of_this_machine(seen.client)).collect();
    let answered = |seen: &Seen| seen.path.contains("/manifests/") && (200..300).contains(&seen.status);
    let pulled = output.status.success();
    let words = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    let lines: Vec<_> = words.lines().filter(|line| !line.trim().is_empty()).collect();
    let words = if pulled { String::new() } else { lines[lines.len().saturating_sub(WORDS_MAX)..].join("\n") };
    Verdict { image, command, pulled, through_here: seen.iter().any(answered), seen, words }
}

/// An address is this machine's if a socket can be bound to it; nothing is sent.
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn tell(check: &Check, verdict: &Verdict, as_json: bool) -> Result<(), Failure> {
    let Verdict { image, command, pulled, through_here, seen, words } = verdict;
    if as_json {
        print::json(verdict)?;
    } else {
        print::line(command)?;
        for seen in seen {
            print::line(&format!(
                "  the server answered {} to {} {} by {}",
                seen.status, seen.method, seen.path, seen.agent
            ))?;
        }
        if !words.is_empty() {
            print::line(&words.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))?;
        }
    }
    match (pulled, through_here) {
        (true, true) if as_json => Ok(()),
        (true, true) => print::line(&format!("{image} came through here")),
        (true, false) => Err(Failure {
            hint: Some("the client passed its mirror over: put in place what `sealock client-config` prints for it, and restart it".to_owned()),
            ..Failure::found(format!("{image} was pulled, but not through here"))
        }),
        (false, _) => {
            let unasked = if seen.is_empty() { ", and the server was not asked for it" } else { "" };
            Err(Failure {
                hint: Some(advice(check, verdict)),
                ..Failure::found(format!("{image} was not pulled{unasked}"))
            })
        }
    }
}

/// What to do about a pull that failed, by the server's last answer, for a manifest if it came to that.
fn advice(check: &Check, verdict: &Verdict) -> String {
    let address = &check.site.address;
    let kind = check.kind.name();
    // All of them are Go programs, which word it so.
    if verdict.words.lines().any(|line| line.contains("x509:") && line.contains(address)) {
        return format!(
            "the client does not trust the certificate of {address}: put in place what `sealock client-config {kind}` prints"
        );
    }
    let manifest = verdict.seen.iter().rfind(|seen| seen.path.contains("/manifests/"));
    let is_by_our_name = verdict.image.trim_start_matches("oci://").starts_with(&format!("{address}/"));
    match manifest.or(verdict.seen.last()).map(|seen| seen.status) {
        None => "it did not even ask: look at its words above for the address and the certificate".to_owned(),
        Some(401) if check.kind.is_told_the_login() => match &check.site.user {
            Some(user) => format!("it was not let in as `{user}`: try the password again"),
            None => "it was not logged in: say who pulls with --user, or open the name to anonymous pulls".to_owned(),
        },
        Some(401) if check.kind == Kind::Docker && !is_by_our_name => format!(
            "dockerd asks for other registries' names without a login: open this one to anonymous pulls, or pull it as {address}/HOST/NAME"
        ),
        Some(401) => format!(
            "it was not logged in, or not with a good password: `sealock client-config {kind} --user NAME` prints how to"
        ),
        Some(403) => {
            "no access rule lets this login pull it: `sealock access explain` shows the rules at work".to_owned()
        }
        Some(404) => {
            "it is not kept under this name: `sealock ls` shows what is, and the server's log why it was not fetched"
                .to_owned()
        }
        Some(200..300) => {
            "the server answered for its manifest: what failed then is in the client's words above".to_owned()
        }
        Some(_) => "the server was asked: its log has the reason".to_owned(),
    }
}

impl Check<'_> {
    /// What would pull it, the best first; the first that is installed is run.
    fn commands(&self, folder: &Path, image: &str) -> Result<Vec<std::process::Command>, Failure> {
        let out = folder.display().to_string();
        Ok(match self.kind {
            Kind::Docker | Kind::Gitlab => vec![command("docker", &["pull", image])],
            Kind::Containerd => self.containerd(folder, image)?,
            Kind::Podman => vec![
                command("podman", &["pull", image]),
                // By itself it does not ask for what it has.
                command("buildah", &["pull", "--policy=always", image]),
                command("skopeo", &["copy", &format!("docker://{image}"), &format!("dir:{out}/image")]),
            ],
            Kind::CriO => vec![self.crictl("crictl", &["pull", image])],
            Kind::K3s => vec![self.crictl("k3s", &["crictl", "pull", image])],
            Kind::Trivy => {
                let mut trivy =
                    command("trivy", &["image", "--download-db-only", "--cache-dir", &out, "--db-repository", image]);
                if !self.site.https {
                    trivy.arg("--insecure");
                }
                trivy.envs(self.authority(trivy::CA_FILE).map(|path| ("SSL_CERT_FILE", path)));
                vec![trivy]
            }
            Kind::Oras => {
                let mut oras = command("oras", &["pull", "-o", &out]);
                oras.args(self.trust()).arg(image);
                vec![oras]
            }
            Kind::Helm => {
                let chart = image.trim_start_matches("oci://");
                let (name, version) = match chart.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
                    Some((name, version)) => (format!("oci://{name}"), Some(version)),
                    None => (format!("oci://{chart}"), None),
                };
                let mut helm = command("helm", &["pull", "-d", &out]);
                helm.args(self.trust()).arg(&name).args(version.into_iter().flat_map(|version| ["--version", version]));
                vec![helm]
            }
        })
    }

    /// The kubelet's way goes through containerd's own settings, and knows no other root.
    fn containerd(&self, folder: &Path, image: &str) -> Result<Vec<std::process::Command>, Failure> {
        let mut hosts = self.below_root(CONTAINERD_HOSTS);
        if let Some(login) = self.login() {
            let failed =
                |why: io::Error| Failure::new(&why, Some(format!("the login goes into a copy of {}", hosts.display())));
            hosts = hosts_with_login(self.site, &hosts, folder, image, &login).map_err(failed)?;
        }
        let ctr = command("ctr", &["images", "pull", "--hosts-dir", &hosts.display().to_string(), image]);
        Ok(match self.root == Path::new("/") {
            true => vec![self.crictl("crictl", &["pull", image]), ctr],
            false => vec![ctr],
        })
    }

    fn crictl(&self, program: &str, arguments: &[&str]) -> std::process::Command {
        let mut crictl = command(program, arguments);
        // Arguments can be read by everybody on the machine, these cannot.
        crictl.envs(self.login().map(|login| ("CRICTL_CREDS", login)));
        crictl
    }

    /// `name:password`.
    fn login(&self) -> Option<String> {
        Some(format!("{}:{}", self.site.user.as_ref()?, self.password.as_ref()?.expose()))
    }

    /// What is in place is tried before what would be put there.
    fn authority(&self, in_place: &str) -> Option<PathBuf> {
        let in_place = Some(self.below_root(in_place)).filter(|path| path.exists());
        self.ca_file.map(|given| in_place.unwrap_or_else(|| given.to_owned()))
    }

    fn trust(&self) -> Vec<String> {
        let authority = self.authority(artifacts::CA_FILE).unwrap_or_default();
        let flag = self.site.trust_flag("FILE");
        flag.split_whitespace()
            .map(|word| if word == "FILE" { authority.display().to_string() } else { word.to_owned() })
            .collect()
    }

    fn below_root(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

fn command(program: &str, arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    command
}

/// A copy, below `folder`, of the `hosts.toml` for this image, with a login for us: `ctr` takes passwords as arguments
/// only, which everybody on the machine can read. Where there is none, nothing leads here, and nothing is to log in.
fn hosts_with_login(site: &Site, hosts: &Path, folder: &Path, image: &str, login: &str) -> io::Result<PathBuf> {
    let place = Path::new(image.split('/').next().unwrap_or(image)).join("hosts.toml");
    let text = match std::fs::read_to_string(hosts.join(&place)) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(hosts.to_owned()),
        read => read?,
    };
    let mut document: DocumentMut = text.parse().map_err(io::Error::other)?;
    let (url, basic) = (site.url(), format!("Basic {}", STANDARD.encode(login)));
    if document.get("server").and_then(Item::as_str) == Some(&url) {
        document["header"]["authorization"] = value(&basic);
    }
    if let Some(host) = document.get_mut("host").and_then(|hosts| hosts.get_mut(&url)) {
        host["header"]["authorization"] = value(&basic);
    }
    let copy = folder.join("certs.d");
    std::fs::create_dir_all(copy.join(&place).parent().unwrap_or(&copy))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(copy.join(&place))?;
    file.write_all(document.to_string().as_bytes())?;
    Ok(copy)
}

fn shown(command: &std::process::Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
