//! `sealock serve`: starts the registry, says how to use it, and runs until it is told to stop.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::{Common, Failure, journal, notify, print};
use crate::app::App;
use crate::clock::Clock;
use crate::config::{LogFormat, LogSettings};
use crate::gate::Mode;
use crate::server::listen_address;
use crate::tls::ServerTls;

#[derive(Args)]
pub struct Serve {
    /// Order the gate open or closed at the start. Without it, the gate is as it was left; at the very first, closed
    #[arg(long, value_enum)]
    gate: Option<GateMode>,
    /// Address for clients, in place of `server.listen` of the settings; may be given more than once
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address)]
    listen: Vec<SocketAddr>,
    /// Speak TLS with this certificate and the key beside it (server.crt, server.key), in place of `tls.certificate` and
    /// `tls.key` of the settings
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum GateMode {
    /// Fill from upstream when asked
    Open,
    /// Let nothing out
    Closed,
}

/// How long everything else may take to end after the last client: only a disk that does not answer takes longer.
const END_TIMEOUT: Duration = Duration::from_secs(30);

impl Serve {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let mut settings = common.settings_to_serve(self.certificate.is_some())?;
        if !self.listen.is_empty() {
            settings.server.listen = self.listen;
        }
        if self.certificate.is_some() {
            (settings.tls.certificate, settings.tls.key) = (self.certificate, None);
        }
        start_logging(&settings.log);
        // What is kept, and who asked for it, is no other user's to read.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let mode = self.gate.map(|mode| match mode {
            GateMode::Open => Mode::Open,
            GateMode::Closed => Mode::Closed,
        });
        let runtime = tokio::runtime::Runtime::new().map_err(|why| Failure::new(&why, None))?;
        let ended = runtime.block_on(async {
            let stop = CancellationToken::new();
            stop_on_signal(stop.clone(), settings.server.shutdown_timeout.0 + END_TIMEOUT)?;
            let app = App::start(settings, mode, Clock::system()).await;
            let app = app.map_err(|why| match (Failure::new(&why, why.hint()), why.is_lasting()) {
                (failure, true) => Failure { code: 2, ..failure },
                (failure, false) => failure,
            })?;
            banner(&app)?;
            notify::tell("READY=1");
            app.run(stop).await;
            Ok(())
        });
        // By itself, it would wait for every read under way.
        runtime.shutdown_timeout(END_TIMEOUT);
        ended
    }
}

/// Ends on Ctrl-C, SIGTERM or SIGHUP; a second one ends at once, and so does `limit` after the first: whatever hangs then
/// is as safe as after a crash.
fn stop_on_signal(stop: CancellationToken, limit: Duration) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|why| Failure::new(&why, None));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    // Sent when the terminal goes away.
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut either = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        };
        either().await;
        notify::tell("STOPPING=1");
        tracing::info!("stopping: running replies may end; a second signal stops at once");
        stop.cancel();
        if tokio::time::timeout(limit, either()).await.is_err() {
            tracing::error!("stopped, although not all had ended: is there a disk that does not answer?");
            std::process::exit(1);
        }
        tracing::warn!("stopped at once: running replies were cut");
        std::process::exit(130);
    });
    Ok(())
}

fn start_logging(settings: &LogSettings) {
    // The settings have checked it.
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.format {
        LogFormat::Text if journal::takes_stderr() => logging.event_format(journal::Lines).init(),
        LogFormat::Text => logging.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logging.json().init(),
    }
}

/// Where it listens, what it routes, how the gate stands, and a line for each client.
fn banner(app: &App) -> Result<(), Failure> {
    for origin in app.origins() {
        print::line(&format!("listening on {origin}"))?;
    }
    for origin in app.admin_origins() {
        print::line(&format!("orders with a login on {origin}"))?;
    }
    let data = &app.settings().server.data;
    print::line(&format!("data in {}", data.canonicalize().as_ref().unwrap_or(data).display()))?;
    print::line(&format!("the gate is {}", super::gate::describe(&app.gate().status(), Clock::system().now())))?;
    print::line(&super::access::describe(&app.access().report()))?;
    print::line("\nroutes:")?;
    let routes = app.routes().describe();
    let rows: Vec<_> = routes.iter().map(|(name, _, to)| vec![format!("  {name}"), format!("-> {to}")]).collect();
    print::table(&["  NAME", "GOES TO"], &rows)?;
    let is_tls = app.origins()[0].starts_with("https:");
    let clients = clients(&routes, &reachable(app, is_tls), is_tls);
    if !clients.is_empty() {
        print::line(&format!("\nclients:\n{}\n", clients.join("\n")))?;
    }
    Ok(())
}

/// A line for each client that has something to ask for at `shown`.
fn clients(routes: &[(String, String, String)], shown: &str, is_tls: bool) -> Vec<String> {
    let has = |name: &str| routes.iter().any(|(pattern, ..)| pattern == name);
    let plain = |flag: &'static str| if is_tls { "" } else { flag };
    let mut clients = Vec::new();
    if has("security-products/**") {
        clients.push(format!("  GitLab CI   SECURE_ANALYZERS_PREFIX: {shown}/security-products"));
    }
    if has("trivy-db") {
        clients.push(format!(
            "  Trivy       trivy image --db-repository {shown}/trivy-db --java-db-repository {shown}/trivy-java-db \
             --checks-bundle-repository {shown}/trivy-checks IMAGE"
        ));
    }
    if let Some((_, _, to)) = routes.iter().find(|(pattern, ..)| pattern.ends_with(".io/**")) {
        let host = to.trim_end_matches("/**");
        let image =
            if has("docker.io/**") { "docker.io/library/alpine:3".to_owned() } else { format!("{host}/NAME:TAG") };
        let host = if has("docker.io/**") { "docker.io" } else { host };
        let origin = format!("{}://{shown}", if is_tls { "https" } else { "http" });
        let authority = if is_tls { ", ca = \"…/ca.crt\"" } else { "" };
        clients.push(format!("  docker      docker pull {shown}/{image}"));
        clients.push(format!("  podman      podman pull {}{shown}/{image}", plain("--tls-verify=false ")));
        clients.push(format!(
            "  containerd  in certs.d/{host}/hosts.toml: server = \"{origin}\", [host.\"{origin}\"], \
             capabilities = [\"pull\", \"resolve\"]{authority}"
        ));
        let copy = plain("--src-tls-verify=false ");
        clients.push(format!("  skopeo      skopeo copy {copy}docker://{shown}/{image} dir:alpine"));
    }
    if has("trivy-db") {
        clients.push(format!("  oras        oras pull {}{shown}/trivy-db:2", plain("--plain-http ")));
    }
    clients
}

/// What a client writes: with TLS the name that it checks, otherwise an address for this machine.
fn reachable(app: &App, is_tls: bool) -> String {
    let address = app.addresses()[0];
    if let Some(host) = app.tls().filter(|_| is_tls).and_then(ServerTls::host) {
        format!("{host}:{}", address.port())
    } else if address.ip().is_unspecified() {
        format!("127.0.0.1:{}", address.port())
    } else {
        address.to_string()
    }
}
