//! `sealock user add|passwd|rm|list`: who can log in with a password.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Common, Failure, as_owner, print};
use crate::access::{self, BrokenLine, PASSWORD_BYTES_MAX, UsersError};
use crate::files;
use crate::secret::Secret;

#[derive(Subcommand)]
pub enum UserCommand {
    /// Add a user; the password is asked for, or is the first line of standard input
    ///
    /// It takes effect at once, also in a server that runs. With the first user or rule, whoever has no login is let in
    /// by access rules alone.
    Add(WithPassword),
    /// Set a user's password; whoever logged in with the old one must log in again
    Passwd(WithPassword),
    /// Remove a user, at once
    Rm(Named),
    /// List the users
    List(List),
}

#[derive(Args)]
pub struct WithPassword {
    name: String,
    /// Read the password from the first line of this file; its line end does not count
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Named {
    name: String,
}

#[derive(Args)]
pub struct List {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl UserCommand {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let settings = common.settings()?;
        let file = access::users_file(&settings.access, &settings.server.data);
        let htpasswd = settings.access.htpasswd.as_deref();
        let home = htpasswd.map_or(settings.server.data.as_path(), files::folder_of);
        match self {
            Self::Add(user) => {
                as_owner(home, || file.check_new(&user.name))?;
                let password = user.password()?;
                as_owner(home, || file.add(&user.name, &password))?;
                print::line(&format!(
                    "user `{}` can log in to the server of {}",
                    user.name,
                    print::folder(&settings.server.data)
                ))
            }
            Self::Passwd(user) => {
                as_owner(home, || file.check_known(&user.name))?;
                let password = user.password()?;
                as_owner(home, || file.set_password(&user.name, &password))?;
                print::line(&format!("user `{}` has a new password", user.name))
            }
            Self::Rm(user) => {
                as_owner(home, || file.remove(&user.name))?;
                print::line(&format!("user `{}` is removed", user.name))
            }
            Self::List(list) => as_owner(home, || file.list()).and_then(|found| show(found, list.json)),
        }
    }
}

impl WithPassword {
    fn password(&self) -> Result<Secret, Failure> {
        let failed = |why: io::Error| Failure::new(&why, None);
        if let Some(path) = &self.password_file {
            let file = std::fs::File::open(path).map_err(|why| {
                Failure::new(&why, Some(format!("cannot read the password file `{}`", path.display())))
            })?;
            return read(file).map_err(failed);
        }
        let password = ask_password(&self.name)?;
        if io::stdin().is_terminal() && ask("Again: ")? != password {
            return Err(Failure::found("the two passwords differ; nothing is changed".to_owned()));
        }
        Ok(password)
    }
}

/// The password of `name`: asked for at a terminal, otherwise the first line of standard input.
pub(super) fn ask_password(name: &str) -> Result<Secret, Failure> {
    if io::stdin().is_terminal() {
        return ask(&format!("Password for {name}: "));
    }
    read(io::stdin()).map_err(|why| Failure::new(&why, None))
}

fn ask(prompt: &str) -> Result<Secret, Failure> {
    prompted(prompt).map(Secret::new).map_err(|why| Failure::new(&why, None))
}

/// What is typed, without echo. Ctrl-C ends the process, with the terminal as it was.
fn prompted(prompt: &str) -> io::Result<String> {
    let terminal = std::fs::File::open("/dev/tty")?;
    let before = rustix::termios::tcgetattr(&terminal)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let prompt = prompt.to_owned();
    let asked = runtime.block_on(async {
        tokio::select! {
            asked = tokio::task::spawn_blocking(move || rpassword::prompt_password(prompt)) => asked?,
            _ = tokio::signal::ctrl_c() => Err(io::ErrorKind::Interrupted.into()),
        }
    });
    if asked.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::Interrupted) {
        rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &before)?;
        eprintln!();
        std::process::exit(130);
    }
    asked
}

/// The first line, and no more than a password may have.
fn read(from: impl io::Read) -> io::Result<Secret> {
    let mut line = Vec::new();
    io::BufReader::new(from.take(PASSWORD_BYTES_MAX as u64 + 3)).read_until(b'\n', &mut line)?;
    let line = String::from_utf8(line).map_err(|_| io::Error::other("the password is not UTF-8"))?;
    Ok(Secret::new(line.strip_suffix('\n').map_or(line.as_str(), |line| line.trim_end_matches('\r'))))
}

fn show((names, broken): (Vec<String>, Vec<BrokenLine>), json: bool) -> Result<(), Failure> {
    for (line, why) in &broken {
        eprintln!("sealock: line {line} of the users' file is of no use: {why}");
    }
    if json {
        return print::json(&names);
    }
    if names.is_empty() {
        return print::line("there are no users; add one with `sealock user add NAME`");
    }
    names.iter().try_for_each(|name| print::line(name))
}

impl From<UsersError> for Failure {
    fn from(why: UsersError) -> Self {
        let hint = match &why {
            UsersError::Unknown(_) => Some("list them with `sealock user list`".to_owned()),
            _ => None,
        };
        Self::new(&why, hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_first_line() {
        for text in
            ["sesame-open", "sesame-open\n", "sesame-open\r\n", "sesame-open\nits hint\n", "sesame-open\r\n\r\n"]
        {
            assert!(read(text.as_bytes()).unwrap() == Secret::new("sesame-open"), "{text:?}");
        }
        assert!(read(&b"sesame open \n"[..]).unwrap() == Secret::new("sesame open "), "blanks are of it");
        assert!(read(&b"\nsesame-open"[..]).unwrap().expose().is_empty());
        assert!(read(&b"sesame-\xff\n"[..]).is_err());
        let long = "a".repeat(PASSWORD_BYTES_MAX + 100);
        assert!(read(long.as_bytes()).unwrap().expose().len() > PASSWORD_BYTES_MAX, "it is refused, not cut");
    }
}
