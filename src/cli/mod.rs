//! The command line: one file per command, each of them fields -> call -> print.

mod access;
mod certs;
mod client_config;
mod config;
mod gate;
mod gc;
mod healthcheck;
mod journal;
mod ls;
mod notify;
mod print;
mod robot;
mod serve;
mod status;
mod tag;
mod upstream;
mod user;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, Settings};
use crate::files;
use crate::server::admin::{AdminClient, AdminError};

/// A registry proxy for sites with no internet, or with some of it some of the time.
///
/// It rewrites the names that clients ask for to upstream registries, fills from upstream only while its gate is open,
/// keeps everything it has verified, and serves it when nothing else can be reached.
#[derive(Parser)]
#[command(
    name = "sealock",
    version,
    max_term_width = 110,
    after_help = "\
Begin with:  sealock serve --gate open
Then pull:   docker pull 127.0.0.1:5000/docker.io/library/alpine:3
And close:   sealock gate close

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 done in part."
)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args)]
struct Common {
    /// A settings file; may be given more than once, later ones win key by key [default: /etc/sealock/sealock.toml, if it
    /// is there]
    #[arg(short, long = "config", value_name = "FILE", global = true)]
    config: Vec<PathBuf>,
    /// The data folder, in place of `server.data` of the settings [default: data]
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the registry
    Serve(serve::Serve),
    /// Open or close the way out, or say how it stands
    #[command(subcommand)]
    Gate(gate::GateCommand),
    /// What the running server is doing: gate, upstreams, what is kept; with --wanted, what is missed
    Status(status::Status),
    /// What is kept: repositories and tags, whether they are complete, their size and age
    Ls(ls::Ls),
    Gc(gc::Gc),
    Verify(verify::Verify),
    /// What a tag named; roll it back, pin it, let it follow upstream again
    #[command(subcommand)]
    Tag(tag::TagCommand),
    /// Make, renew and look at the server's certificates
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    ClientConfig(Box<client_config::ClientConfig>),
    /// Whether the upstreams can be reached and let us in
    #[command(subcommand)]
    Upstream(upstream::UpstreamCommand),
    /// Who can log in with a password
    #[command(subcommand)]
    User(user::UserCommand),
    /// Access tokens for programs: named, scoped, with an end
    #[command(subcommand)]
    Robot(robot::RobotCommand),
    /// Who may do what
    #[command(subcommand)]
    Access(access::AccessCommand),
    /// Look at the settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Exit with 0 if the server is ready to serve; for container health checks
    Healthcheck(healthcheck::Healthcheck),
}

/// An error of a command: what failed, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    fn new(why: &dyn std::error::Error, hint: Option<String>) -> Self {
        let mut message = why.to_string();
        let mut cause = why.source();
        while let Some(why) = cause {
            message = format!("{message}: {why}");
            cause = why.source();
        }
        Self { message, hint, code: 1 }
    }

    /// Done, and what was found is bad.
    fn found(message: String) -> Self {
        Self { message, hint: None, code: 1 }
    }

    /// Done in part; what was left out was listed.
    fn partly(message: String) -> Self {
        Self { message, hint: None, code: 3 }
    }

    fn usage(why: &ConfigError) -> Self {
        Self { code: 2, ..Self::new(why, None) }
    }
}

impl Common {
    /// The settings that the command line, the environment and the files make together.
    fn settings(&self) -> Result<Settings, Failure> {
        self.settings_by(Settings::load)
    }

    /// As [`Common::settings`]; the files that they name for the upstreams must be of use, too.
    /// `is_tls`: whether a certificate is named besides.
    fn settings_to_serve(&self, is_tls: bool) -> Result<Settings, Failure> {
        self.settings_by(|files, environment| Settings::load_to_serve(files, environment, is_tls))
    }

    fn settings_by(
        &self,
        load: impl FnOnce(&[PathBuf], std::env::Vars) -> Result<Settings, ConfigError>,
    ) -> Result<Settings, Failure> {
        let mut settings = load(&self.files(), std::env::vars()).map_err(|why| Failure::usage(&why))?;
        if let Some(data) = &self.data {
            settings.server.data.clone_from(data);
        }
        Ok(settings)
    }

    /// The settings files that are read, the later ones above the earlier.
    fn files(&self) -> Vec<PathBuf> {
        if self.config.is_empty() { Settings::default_files() } else { self.config.clone() }
    }

    /// The way to the server that runs on the data folder.
    fn client(&self) -> Result<AdminClient, Failure> {
        Ok(AdminClient::new(self.settings()?.server.data))
    }
}

impl From<AdminError> for Failure {
    fn from(why: AdminError) -> Self {
        Self::new(&why, why.hint())
    }
}

/// Changes files in `folder` with the rights of its owner: see [`files::as_owner`].
fn as_owner<T: Send, E: Send>(folder: &Path, what: impl FnOnce() -> Result<T, E> + Send) -> Result<T, Failure>
where
    Failure: From<E>,
{
    Ok(files::as_owner(folder, what).map_err(|why| Failure::new(&why, None))??)
}

/// Runs a command's one question to the server.
fn block_on<T>(asking: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|why| Failure::new(&why, None))?.block_on(asking)
}

/// Runs the command; prints its error, if it has one.
pub fn run(cli: Cli) -> ExitCode {
    let Cli { common, command } = cli;
    let done = match command {
        Command::Serve(command) => command.run(&common),
        Command::Gate(command) => command.run(&common),
        Command::Status(command) => command.run(&common),
        Command::Ls(command) => command.run(&common),
        Command::Gc(command) => command.run(&common),
        Command::Tag(command) => command.run(&common),
        Command::Verify(command) => command.run(&common),
        Command::Certs(command) => command.run(&common),
        Command::ClientConfig(command) => command.run(&common),
        Command::Upstream(command) => command.run(&common),
        Command::User(command) => command.run(&common),
        Command::Robot(command) => command.run(&common),
        Command::Access(command) => command.run(&common),
        Command::Config(command) => command.run(&common),
        Command::Healthcheck(command) => command.run(&common),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let level = if journal::takes_stderr() { journal::ERROR } else { "" };
            eprintln!("{level}sealock: {}", failure.message);
            if let Some(hint) = &failure.hint {
                eprintln!("{level}  hint: {hint}");
            }
            ExitCode::from(failure.code)
        }
    }
}
