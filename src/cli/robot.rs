//! `sealock robot add|list|revoke`: access tokens for programs.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Args, Subcommand};

use super::{Common, Failure, as_owner, print};
use crate::access::{self, RobotOrder, RobotRecord, RobotsError, RobotsFile, Verb};
use crate::clock::Clock;
use crate::size::Span;

#[derive(Subcommand)]
pub enum RobotCommand {
    /// Add a robot and print its token, which cannot be shown again
    ///
    /// `docker login -u NAME` with the token as the password. A robot may do what its scope says here, what access rules
    /// give to `robot:NAME`, and what anonymous callers may.
    Add(Add),
    /// List the robots: what they may do, and until when
    List(List),
    /// Make a robot's token void, at once
    Revoke(Named),
}

#[derive(Args)]
pub struct Add {
    name: String,
    /// What it may reach: a name, or everything below a prefix, such as 'team/**'; may be given more than once
    #[arg(long = "repository", value_name = "PATTERN", requires = "verbs")]
    repositories: Vec<String>,
    /// What it may do there: pull, push, delete, admin
    #[arg(long, value_name = "VERB,…", value_delimiter = ',', requires = "repositories")]
    verbs: Vec<Verb>,
    /// How long its token is good for, such as 90d
    #[arg(long = "for", value_name = "DURATION")]
    lasting: Span,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct List {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Named {
    name: String,
}

impl RobotCommand {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let data = common.settings()?.server.data;
        let file = RobotsFile::new(&access::folder(&data));
        match self {
            Self::Add(add) => add.run(&file, &data),
            Self::List(list) => show(&as_owner(&data, || file.list())?, list.json),
            Self::Revoke(robot) => {
                as_owner(&data, || file.revoke(&robot.name))?;
                print::line(&format!("the token of robot `{}` is void", robot.name))
            }
        }
    }
}

impl Add {
    fn run(self, file: &RobotsFile, data: &Path) -> Result<(), Failure> {
        let order = RobotOrder { repositories: self.repositories, verbs: self.verbs, lasting: self.lasting.0 };
        let (token, record) = as_owner(data, || file.add(&self.name, &order, Clock::system().now()))?;
        if self.json {
            let shown = serde_json::json!({
                "name": self.name, "token": token.expose(), "expires_at": record.expires_at,
                "repositories": record.repositories, "verbs": record.verbs,
            });
            return print::json(&shown);
        }
        eprintln!(
            "robot `{}` of the server of {} until {}; nobody comes in without a login now but where a rule says so; this \
             is its token, and it is not shown again:",
            self.name,
            print::folder(data),
            print::minute(record.expires_at)
        );
        print::line(token.expose())
    }
}

fn show(robots: &BTreeMap<String, RobotRecord>, json: bool) -> Result<(), Failure> {
    if json {
        let shown: Vec<_> = robots
            .iter()
            .map(|(name, robot)| {
                serde_json::json!({
                    "name": name, "repositories": robot.repositories, "verbs": robot.verbs,
                    "created_at": robot.created_at, "expires_at": robot.expires_at,
                })
            })
            .collect();
        return print::json(&shown);
    }
    if robots.is_empty() {
        return print::line("there are no robots; add one with `sealock robot add NAME --for 90d …`");
    }
    let now = Clock::system().now();
    let rows = robots.iter().map(|(name, robot)| {
        let verbs: Vec<&str> = robot.verbs.iter().map(|verb| verb.as_str()).collect();
        let state = if robot.expires_at > now { "expires" } else { "expired" };
        vec![
            name.clone(),
            if verbs.is_empty() { "by rules".to_owned() } else { verbs.join(",") },
            if robot.repositories.is_empty() { "-".to_owned() } else { robot.repositories.join(" ") },
            format!("{state} {}", print::relative(now, robot.expires_at)),
        ]
    });
    print::table(&["ROBOT", "MAY", "WHERE", "UNTIL"], &rows.collect::<Vec<_>>())
}

impl From<RobotsError> for Failure {
    fn from(why: RobotsError) -> Self {
        let hint = match &why {
            RobotsError::Unknown(_) => Some("list them with `sealock robot list`".to_owned()),
            _ => None,
        };
        Self::new(&why, hint)
    }
}
