//! `--check`: pulls with the installed client, and says whether the server was asked. A mirror that does not work is
//! passed over in silence, so that a pull that succeeds proves nothing.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde::Serialize;
use tokio::process::Command;

use super::site::{HUB, Site};
use super::{Failure, Kind, artifacts, print, wrong};
use crate::server::Seen;
use crate::server::admin::AdminClient;
use crate::store::TagLine;

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

pub(super) fn run(
    kind: Kind,
    site: &Site,
    ca_file: Option<&Path>,
    root: &Path,
    image: Option<&str>,
    client: AdminClient,
    as_json: bool,
) -> Result<(), Failure> {
    let verdict = super::super::block_on(async {
        let image = match image {
            Some(image) => image.to_owned(),
            None => choose(kind, site, &client.list(None).await?)?,
        };
        let folder = tempfile::tempdir().map_err(|why| Failure::new(&why, None))?;
        let watch = client.watch(watched(&image)).await?;
        let mut tried = Vec::new();
        for candidate in commands(kind, site, ca_file, root, folder.path(), &image) {
            let shown = shown(&candidate);
            let mut command = Command::from(candidate);
            let running = command.kill_on_drop(true).stdin(std::process::Stdio::null()).output();
            match tokio::time::timeout(PULL_TIMEOUT, running).await {
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
    tell(&verdict, as_json)
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

fn tell(verdict: &Verdict, as_json: bool) -> Result<(), Failure> {
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
        (false, _) if seen.is_empty() => Err(Failure {
            hint: Some("it did not even ask: look at its words above for the address and the certificate".to_owned()),
            ..Failure::found(format!("{image} was not pulled, and the server was not asked for it"))
        }),
        (false, _) => Err(Failure {
            hint: Some("the server was asked: its log has the reason, and `sealock ls` what is kept".to_owned()),
            ..Failure::found(format!("{image} was not pulled"))
        }),
    }
}

/// Something small that is kept whole, by the name that this kind of client would use without knowing of the proxy, if
/// it has a way to.
fn choose(kind: Kind, site: &Site, kept: &[TagLine]) -> Result<String, Failure> {
    let is_database = |line: &TagLine| line.repository.contains("/trivy-");
    let is_image = |line: &&TagLine| !is_database(line) && !line.tag.starts_with("sha256-");
    let upstream = |line: &TagLine| {
        line.repository.split_once('/').filter(|(host, _)| site.has(host)).map(|(host, _)| host.to_owned())
    };
    let complete = kept.iter().filter(|line| line.complete);
    let found: Option<&TagLine> = match kind {
        Kind::Trivy => {
            complete.filter(|line| line.repository.ends_with("/trivy-db")).min_by_key(|line| line.size_bytes)
        }
        Kind::Helm => None,
        Kind::Oras => complete.min_by_key(|line| line.size_bytes),
        Kind::Gitlab => {
            let ours = |line: &&TagLine| line.repository.starts_with("registry.gitlab.com/");
            complete.filter(is_image).filter(ours).min_by_key(|line| line.size_bytes)
        }
        // Those that can be pulled past us prove more.
        Kind::Docker => {
            complete.filter(is_image).min_by_key(|line| (upstream(line).as_deref() != Some(HUB), line.size_bytes))
        }
        Kind::Containerd | Kind::Podman | Kind::CriO | Kind::K3s => {
            complete.filter(is_image).min_by_key(|line| (upstream(line).is_none(), line.size_bytes))
        }
    };
    let found = found.ok_or_else(|| {
        wrong("nothing is kept that this client could pull".to_owned(), "name something with --image")
    })?;
    let host = upstream(found);
    let remapped = match kind {
        Kind::Docker => host.as_deref() == Some(HUB),
        Kind::Containerd | Kind::Podman | Kind::CriO | Kind::K3s => host.is_some(),
        Kind::Gitlab | Kind::Trivy | Kind::Oras | Kind::Helm => false,
    };
    Ok(match remapped {
        true => format!("{}:{}", found.repository, found.tag),
        false => format!("{}/{}:{}", site.address, found.repository, found.tag),
    })
}

/// What would pull it, the best first; the first that is installed is run.
fn commands(
    kind: Kind,
    site: &Site,
    ca_file: Option<&Path>,
    root: &Path,
    folder: &Path,
    image: &str,
) -> Vec<std::process::Command> {
    let (folder, ca) = (folder.display().to_string(), ca_file.map(|path| path.display().to_string()));
    let command = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        command.args(arguments);
        command
    };
    let trust = site.trust_flag(ca.as_deref().unwrap_or(artifacts::CA_FILE));
    let mut with_trust: Vec<&str> = trust.split_whitespace().collect();
    match kind {
        Kind::Docker | Kind::Gitlab => vec![command("docker", &["pull", image])],
        Kind::Containerd => {
            let hosts = root.join("etc/containerd/certs.d").display().to_string();
            vec![command("ctr", &["images", "pull", "--hosts-dir", &hosts, image])]
        }
        Kind::Podman => vec![
            command("podman", &["pull", image]),
            command("buildah", &["pull", image]),
            command("skopeo", &["copy", &format!("docker://{image}"), &format!("dir:{folder}/image")]),
        ],
        Kind::CriO => vec![command("crictl", &["pull", image])],
        Kind::K3s => vec![command("k3s", &["crictl", "pull", image])],
        Kind::Trivy => {
            let mut trivy =
                command("trivy", &["image", "--download-db-only", "--cache-dir", &folder, "--db-repository", image]);
            if !site.https {
                trivy.arg("--insecure");
            }
            trivy.envs(ca.map(|path| ("SSL_CERT_FILE", path)));
            vec![trivy]
        }
        Kind::Oras => {
            let mut arguments = vec!["pull", "-o", folder.as_str()];
            arguments.append(&mut with_trust);
            arguments.push(image);
            vec![command("oras", &arguments)]
        }
        Kind::Helm => {
            let chart = image.trim_start_matches("oci://");
            let (name, version) = match chart.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
                Some((name, version)) => (format!("oci://{name}"), Some(version)),
                None => (format!("oci://{chart}"), None),
            };
            let mut arguments = vec!["pull", "-d", folder.as_str()];
            arguments.append(&mut with_trust);
            arguments.push(&name);
            arguments.extend(version.into_iter().flat_map(|version| ["--version", version]));
            vec![command("helm", &arguments)]
        }
    }
}

fn shown(command: &std::process::Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
