//! Which rule decides: for the operator who wonders, without a server that runs.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::book::{Book, Entries};
use super::caller::{Mark, Subject, Verb};
use super::member::{Claims, Member};
use super::rules::{Mode, Private, Reason, Rules};
use super::settings::AccessSettings;
use crate::names::Routes;
use crate::oci::RepositoryName;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// As in rules; a name without a kind is a user.
    pub caller: &'a str,
    pub verb: Verb,
    /// `None`: all that there is.
    pub name: Option<&'a RepositoryName>,
    /// `?ns=`
    pub namespace: Option<&'a str>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub allowed: bool,
    pub why: String,
    /// Where the name leads.
    pub place: Option<Place>,
}

/// A repository, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// With its host.
    pub repository: String,
    /// All names that lead there.
    pub names: Vec<String>,
}

/// Decides as the server would, by the same rules and files. An error, in words, for a question that makes no sense.
pub fn explain(
    settings: &AccessSettings,
    data: &Path,
    routes: Arc<Routes>,
    private: Private,
    question: Question<'_>,
    now: Timestamp,
) -> Result<Explanation, String> {
    let target = question.name.map(|name| routes.resolve(name, question.namespace).map_err(|why| why.to_string()));
    let repository = target.transpose()?.map(|target| target.repository);
    let place = repository.as_ref().map(|repository| Place {
        repository: repository.to_string(),
        names: routes.names_of(repository).iter().map(ToString::to_string).collect(),
    });
    let rules = Rules::new(settings, routes, private);
    let entries = Book::open(&super::folder(data), settings.htpasswd.as_deref()).now();
    let subject = subject(question.caller)?;
    let mode = Mode::of(&rules, entries.exists);
    let robot = match &subject {
        Subject::Robot { name, .. } => entries.robots.by_name.get(name),
        _ => None,
    };
    let scope = robot.map(|robot| &robot.scope);
    let nobody = nobody(&subject, &entries, now);
    // Where there are no logins, whoever shows one is as good as anybody.
    let judged = if mode == Mode::Open && nobody.is_some() { &Subject::Anonymous } else { &subject };
    let judgement = match &repository {
        Some(repository) => rules.judge(mode, judged, scope, question.verb, repository),
        None => rules.everywhere(mode, judged, scope, question.verb),
    };
    let all = if repository.is_none() { "; for all that there is, it takes a rule for `**`" } else { "" };
    let (may, why) = match judgement {
        Ok(grounds) => (true, rules.explain(&grounds, scope)),
        Err(reason @ (Reason::NoRule | Reason::NoAdmin)) => (false, format!("{reason}{all}")),
        Err(reason) => (false, reason.to_string()),
    };
    let (allowed, why) = match nobody {
        Some(nobody) if mode != Mode::Open => {
            let would = if may { "would be allowed" } else { "would be denied" };
            (false, format!("{nobody}; with such a login it {would}: {why}"))
        }
        Some(nobody) if !may => (false, format!("{why} ({nobody})")),
        _ => (may, why),
    };
    Ok(Explanation { allowed, why, place })
}

/// Why nobody can log in as that, if so.
fn nobody(subject: &Subject, entries: &Entries, now: Timestamp) -> Option<String> {
    let missing = match subject {
        Subject::User { name, .. } if !entries.users.accounts.contains_key(name) => {
            format!("there is no user `{name}`")
        }
        Subject::Robot { name, .. } => match entries.robots.by_name.get(name) {
            Some(robot) if robot.expires_at > now => return None,
            Some(_) => return Some(format!("the token of robot `{name}` has expired")),
            None => format!("there is no robot `{name}`"),
        },
        _ => return None,
    };
    // It may be in a file that cannot be read.
    Some([missing].into_iter().chain(entries.problems()).collect::<Vec<_>>().join("; "))
}

/// Users and robots that rules, groups and `watchers` name and that are not there, a sentence each: they may come later,
/// or be misspelt.
pub(super) fn missing(settings: &AccessSettings, watchers: &[String], entries: &Entries) -> Vec<String> {
    let rules = settings.rule.iter().enumerate();
    let rules = rules.flat_map(|(at, rule)| rule.to.iter().map(move |member| (format!("rule {}", at + 1), member)));
    let groups = settings.groups.iter();
    let groups =
        groups.flat_map(|(name, members)| members.iter().map(move |member| (format!("group `{name}`"), member)));
    let watchers = watchers.iter().map(|member| ("admin.metrics_to".to_owned(), member));
    let named = rules.chain(groups).chain(watchers);
    let missing = named.filter_map(|(place, member)| match Member::parse_in_group(member).ok()? {
        Member::User(name) | Member::Robot(name) if name.contains('*') => Some(format!(
            "{place} names `{name}`, and nobody is called that; `*` stands for no name: `authenticated` is every user, \
             certificate and job, and robots are named one by one"
        )),
        Member::User(name) if !entries.users.accounts.contains_key(&name) => {
            Some(format!("{place} names a user `{name}`, and there is none; `sealock user add {name}` adds one"))
        }
        Member::Robot(name) if !entries.robots.by_name.contains_key(&name) => {
            Some(format!("{place} names a robot `{name}`, and there is none; `sealock robot add {name}` adds one"))
        }
        _ => None,
    });
    missing.collect()
}

fn subject(text: &str) -> Result<Subject, String> {
    let mark = Mark(String::new());
    match Member::parse_in_group(text)? {
        Member::Anonymous => Ok(Subject::Anonymous),
        Member::User(name) => Ok(Subject::User { name, mark }),
        Member::Robot(name) => Ok(Subject::Robot { name, mark }),
        Member::Certificate(name) => Ok(Subject::Certificate { names: vec![name] }),
        Member::Claims(claims) => {
            let claims: Claims = claims.into_iter().map(|(name, value)| (name, vec![value.to_string()])).collect();
            Ok(Subject::Job { issuer: "-".to_owned(), subject: "-".to_owned(), claims })
        }
        Member::Group(_) | Member::Authenticated => Err(format!(
            "`{text}` is not one caller; name a user, robot:NAME, certificate:NAME, claim:NAME=VALUE or anonymous"
        )),
    }
}
