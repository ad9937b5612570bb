//! The real program, run as an operator runs it: a settings file, `serve`, `gate open` and `gate close`.
//!
//! `SEALOCK` names it; else it is the one that was built with the benches.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::Outcome;
use super::body;
use super::far::{Blob, REPOSITORY};
use super::process::{Running, leashed};

const START_MAX: Duration = Duration::from_secs(20);

/// A running sealock whose only upstream is the bench's.
pub struct Sealock {
    pub address: SocketAddr,
    pub running: Running,
    settings: PathBuf,
    data: PathBuf,
}

/// Who may log in to a guarded one, and the word for it.
const USER: &str = "alice";
const PASSWORD: &str = "correct horse battery staple";
/// What a site with several teams has: the rule that lets her in comes last.
const RULES: &str = r#"
[access.groups]
staff = ["bob", "carol", "alice"]
[[access.rule]]
repository = "security-products/**"
verbs = ["pull"]
to = ["anonymous"]
[[access.rule]]
repository = "team/**"
verbs = ["pull", "push", "delete"]
to = ["user:bob", "robot:ci"]
[[access.rule]]
repository = "bench/**"
verbs = ["pull"]
to = ["group:staff"]
"#;

/// The program under test.
pub fn program() -> PathBuf {
    let built = option_env!("CARGO_BIN_EXE_sealock").unwrap_or("target/release/sealock");
    std::env::var_os("SEALOCK").map_or_else(|| built.into(), PathBuf::from)
}

/// Writes a settings file into `folder` and returns its place. Logs only warnings, as its peers do;
/// what is collected needs not be old.
pub fn write_settings(folder: &Path, upstream: SocketAddr, fresh_for: &str) -> Outcome<PathBuf> {
    let (file, data) = (folder.join("sealock.toml"), folder.join("data"));
    let route = REPOSITORY.split('/').next().unwrap_or(REPOSITORY);
    let settings = format!(
        "presets = []\n\
         [server]\nlisten = [\"127.0.0.1:0\"]\ndata = {data:?}\n\
         [log]\nlevel = \"warn\"\n\
         [keep]\ngrace = \"0s\"\n\
         [upstream.far]\nhost = \"far.example\"\nendpoints = [\"http://{upstream}\"]\n\
         [route.\"{route}/**\"]\nupstream = \"far\"\nfresh_for = \"{fresh_for}\"\nprefetch = false\n"
    );
    fs::write(&file, settings)?;
    Ok(file)
}

impl Sealock {
    /// Starts with an empty store (or the one that `folder` has) and the gate open.
    pub fn open(folder: &Path, upstream: SocketAddr, fresh_for: &str) -> Outcome<Self> {
        Self::start(folder, write_settings(folder, upstream, fresh_for)?)
    }

    /// As [`Sealock::open`], with TLS at `tls` beside plain HTTP; makes the certificates for both contestants in `certs`.
    pub fn open_tls(folder: &Path, upstream: SocketAddr, tls: SocketAddr, certs: &Path) -> Outcome<Self> {
        let made = leashed(program()).args(["certs", "init", "--ip", "127.0.0.1", "--folder"]).arg(certs).output()?;
        if !made.status.success() {
            return Err(format!("`sealock certs init` failed: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let settings = write_settings(folder, upstream, "1h")?;
        let listen = "listen = [\"127.0.0.1:0\"]";
        let both = format!("listen = [\"{tls}\"]\nlisten_plain = [\"127.0.0.1:0\"]");
        let more = format!("[tls]\ncertificate = {:?}\n", certs.join("server.crt"));
        fs::write(&settings, fs::read_to_string(&settings)?.replace(listen, &both) + &more)?;
        Self::start(folder, settings)
    }

    /// As [`Sealock::open`], with users and rules: nobody gets anything without [`Sealock::basic`] or [`Sealock::bearer`].
    pub fn open_guarded(folder: &Path, upstream: SocketAddr) -> Outcome<Self> {
        let settings = write_settings(folder, upstream, "1h")?;
        fs::write(&settings, fs::read_to_string(&settings)? + RULES)?;
        for name in ["bob", "carol", USER] {
            let word = folder.join("word");
            fs::write(&word, PASSWORD)?;
            let add = leashed(program())
                .arg("-c")
                .arg(&settings)
                .args(["user", "add", name, "--password-file"])
                .arg(word)
                .output()?;
            if !add.status.success() {
                return Err(format!("`sealock user add` failed: {}", String::from_utf8_lossy(&add.stderr)).into());
            }
        }
        Self::start(folder, settings)
    }

    /// The line that shows a password.
    pub fn basic() -> String {
        format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")))
    }

    /// The line that shows a new token for the bench's repository.
    pub fn bearer(&self) -> Outcome<String> {
        let path = format!("/token?service=bench&scope=repository:{REPOSITORY}:pull");
        let answer: serde_json::Value =
            serde_json::from_slice(&body::get_showing(self.address, &path, &Self::basic())?)?;
        let token = answer["token"].as_str().ok_or("the answer has no token")?;
        Ok(format!("Authorization: Bearer {token}"))
    }

    fn start(folder: &Path, settings: PathBuf) -> Outcome<Self> {
        let mut command = leashed(program());
        command.arg("-c").arg(&settings).arg("serve").stdout(Stdio::piped());
        let mut running = Running::start_heard("sealock", &mut command, folder)?;
        let address = listening(&mut running)?;
        running.ready(address)?;
        let sealock = Self { address, running, settings, data: folder.join("data") };
        sealock.command(&["gate", "open", "--why", "bench"])?;
        Ok(sealock)
    }

    pub fn close_gate(&self) -> Outcome {
        self.command(&["gate", "close"])
    }

    /// The file of a kept blob.
    pub fn kept(&self, blob: &Blob) -> PathBuf {
        self.data.join("blobs/sha256").join(blob.hex())
    }

    /// Runs a command of the program to the running server.
    pub fn command(&self, arguments: &[&str]) -> Outcome {
        let run = leashed(program()).arg("-c").arg(&self.settings).args(arguments).output()?;
        if run.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        Err(format!("`sealock {}` failed, {}: {said}", arguments.join(" "), run.status).into())
    }
}

/// The address out of the line that says so; what else is printed is read and dropped, so that it never blocks.
fn listening(running: &mut Running) -> Outcome<SocketAddr> {
    let output = running.child().stdout.take().ok_or("sealock has no output")?;
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("listening on http://") {
                let address = rest.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).next();
                // The bench may have given up on it; then nobody needs the address.
                let _gone = said.send(address.unwrap_or(rest).to_owned());
            }
        }
    });
    let silent = |_| format!("sealock did not say where it listens\n{}", running.last_words());
    let address = heard.recv_timeout(START_MAX).map_err(silent)?;
    address.parse().map_err(|_| format!("sealock listens on a strange address: `{address}`").into())
}
