//! (pure) The access rules, and what they say of a caller, a verb and a repository.
//!
//! Patterns are in names as clients write them; decisions are about the repository that a name leads to. A rule covers
//! a repository if any of its names matches, so no other name of it is a way around, and none is needed (invariant 14).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use quick_cache::sync::Cache;

use super::caller::{Subject, Verb, Verbs};
use super::member::{Glob, Member};
use super::settings::AccessSettings;
use crate::names::{Origin, Pattern, Repository, Routes};
use crate::oci::RepositoryName;

/// Repositories whose rules are remembered.
const PLACES_MAX: usize = 8192;

/// What was had with credentials, and is not for anonymous callers: by the upstream's host, its key in the settings and
/// the names there.
pub type Private = HashMap<Arc<str>, (Arc<str>, Vec<Pattern>)>;

/// The rules, compiled.
pub struct Rules {
    rules: Vec<Rule>,
    routes: Arc<Routes>,
    private: Private,
    /// All that there is, as one place.
    everything: Place,
    places: Cache<Repository, Arc<Place>>,
}

/// Who decides where no rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No rule, no user, no robot: everybody may do everything with content.
    Open,
    /// No rule: users may do everything with content, robots what their tokens say.
    Logins,
    /// What no rule allows is denied.
    Rules,
}

/// Why it is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grounds {
    Open,
    Login,
    /// Its place in the settings, from 0.
    Rule(usize),
    /// The place of the pattern in the robot's scope, from 0.
    RobotScope(usize),
}

/// Why it is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    NoRule,
    /// Nor is there anybody who would be allowed it without one.
    NoAdmin,
    NotLoggedIn,
    /// The upstream is asked with credentials, and the caller has not logged in.
    Private {
        upstream: Arc<str>,
    },
}

/// What a robot's own token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RobotScope {
    pub patterns: Vec<Pattern>,
    pub verbs: Verbs,
}

struct Rule {
    pattern: Pattern,
    verbs: Verbs,
    to: Members,
}

/// Whom a rule lets.
#[derive(Default)]
pub struct Members {
    anonymous: bool,
    authenticated: bool,
    users: HashSet<String>,
    robots: HashSet<String>,
    certificates: HashSet<String>,
    claims: Vec<Vec<(String, Glob)>>,
}

/// What is always the same of a repository.
struct Place {
    names: Vec<RepositoryName>,
    /// Numbers of the rules that cover it, in order.
    rules: Vec<usize>,
    private: Option<Arc<str>>,
}

impl Rules {
    /// `settings` have been checked.
    pub fn new(settings: &AccessSettings, routes: Arc<Routes>, private: Private) -> Self {
        let rules = settings.rule.iter().filter_map(|rule| {
            let (pattern, verbs) = (rule.repository.parse().ok()?, rule.verbs.iter().copied().collect());
            Some(Rule { pattern, verbs, to: Members::new(&rule.to, settings) })
        });
        let rules: Vec<Rule> = rules.collect();
        // What has no name is covered by what covers everything alone.
        let upstream = private.values().map(|(upstream, _)| upstream).min();
        let everything = Place { names: Vec::new(), rules: covering(&rules, &[]), private: upstream.cloned() };
        Self { rules, routes, private, everything, places: Cache::new(PLACES_MAX) }
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether some upstream is not for anonymous callers.
    pub fn has_private(&self) -> bool {
        !self.private.is_empty()
    }

    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// Claims that some rule asks for: the others of a token are of no use.
    pub fn claims(&self) -> HashSet<&str> {
        self.rules.iter().flat_map(|rule| rule.to.claims()).collect()
    }

    /// `scope`: of a robot, what its own token allows.
    pub fn judge(
        &self,
        mode: Mode,
        subject: &Subject,
        scope: Option<&RobotScope>,
        verb: Verb,
        repository: &Repository,
    ) -> Result<Grounds, Reason> {
        self.weigh(&self.place(repository), mode, subject, scope, verb)
    }

    /// As [`Rules::judge`], for all that there is: names of nothing are answered by it, and orders to the server itself.
    pub fn everywhere(
        &self,
        mode: Mode,
        subject: &Subject,
        scope: Option<&RobotScope>,
        verb: Verb,
    ) -> Result<Grounds, Reason> {
        self.weigh(&self.everything, mode, subject, scope, verb)
    }

    fn weigh(
        &self,
        place: &Place,
        mode: Mode,
        subject: &Subject,
        scope: Option<&RobotScope>,
        verb: Verb,
    ) -> Result<Grounds, Reason> {
        if verb == Verb::Admin && subject.is_anonymous() {
            return Err(Reason::NotLoggedIn);
        }
        if let (Some(upstream), true) = (&place.private, subject.is_anonymous()) {
            return Err(Reason::Private { upstream: upstream.clone() });
        }
        if mode == Mode::Open && verb.is_of_content() {
            return Ok(Grounds::Open);
        }
        let covering = place.rules.iter().filter_map(|number| Some((*number, self.rules.get(*number)?)));
        for (number, rule) in covering {
            if rule.verbs.has(verb) && rule.to.admits(subject) {
                return Ok(Grounds::Rule(number));
            }
        }
        if let Some(scope) = scope.filter(|scope| scope.verbs.has(verb))
            && let Some(number) = scope.patterns.iter().position(|pattern| pattern.covers(&place.names))
        {
            return Ok(Grounds::RobotScope(number));
        }
        match subject {
            Subject::User { .. } if mode == Mode::Logins && verb.is_of_content() => Ok(Grounds::Login),
            Subject::Anonymous => Err(Reason::NotLoggedIn),
            _ if verb == Verb::Admin => Err(Reason::NoAdmin),
            _ => Err(Reason::NoRule),
        }
    }

    /// Whether the rules let the caller do this to some repository.
    pub fn somewhere(&self, mode: Mode, subject: &Subject, scope: Option<&RobotScope>, verb: Verb) -> bool {
        if verb == Verb::Admin && subject.is_anonymous() {
            return false;
        }
        let by_rule = || self.rules.iter().any(|rule| rule.verbs.has(verb) && rule.to.admits(subject));
        let unruled = || match mode {
            Mode::Open => true,
            Mode::Logins => matches!(subject, Subject::User { .. }),
            Mode::Rules => false,
        };
        (verb.is_of_content() && unruled())
            || by_rule()
            || scope.is_some_and(|scope| scope.verbs.has(verb) && !scope.patterns.is_empty())
    }

    /// `grounds` in words.
    pub fn explain(&self, grounds: &Grounds, scope: Option<&RobotScope>) -> String {
        let pattern = |pattern: Option<&Pattern>| pattern.map(ToString::to_string).unwrap_or_default();
        match grounds {
            Grounds::Open => "there are no rules, users and robots: everybody may pull, push and delete".to_owned(),
            Grounds::Login => "there are no rules: users may pull, push and delete".to_owned(),
            Grounds::Rule(at) => {
                format!("rule {}, for `{}`", at + 1, pattern(self.rules.get(*at).map(|rule| &rule.pattern)))
            }
            Grounds::RobotScope(at) => {
                format!("the robot's own scope, `{}`", pattern(scope.and_then(|scope| scope.patterns.get(*at))))
            }
        }
    }

    fn place(&self, repository: &Repository) -> Arc<Place> {
        if let Some(place) = self.places.get(repository) {
            return place;
        }
        let names = self.routes.names_of(repository);
        let rules = covering(&self.rules, &names);
        let private = match &repository.origin {
            Origin::Local => None,
            Origin::Upstream(host) => self.private.get(host).and_then(|(upstream, patterns)| {
                patterns.iter().any(|pattern| pattern.matches(&repository.name)).then(|| upstream.clone())
            }),
        };
        let place = Arc::new(Place { names, rules, private });
        self.places.insert(repository.clone(), place.clone());
        place
    }
}

/// Numbers of the rules that cover a repository of these names, in order.
fn covering(rules: &[Rule], names: &[RepositoryName]) -> Vec<usize> {
    let covers = |(number, rule): (usize, &Rule)| rule.pattern.covers(names).then_some(number);
    rules.iter().enumerate().filter_map(covers).collect()
}

impl Mode {
    /// `logins`: whether there is a file of users or robots. With nobody left in it, nobody can log in: removing the last
    /// user opens nothing.
    pub fn of(rules: &Rules, logins: bool) -> Self {
        match (rules.is_empty(), logins) {
            (false, _) => Self::Rules,
            (true, true) => Self::Logins,
            (true, false) => Self::Open,
        }
    }
}

impl Members {
    /// `to` has been checked.
    pub fn new(to: &[String], settings: &AccessSettings) -> Self {
        let mut members = Self::default();
        for member in to.iter().filter_map(|member| member.parse().ok()) {
            members.let_in(member, settings);
        }
        members
    }

    /// Claims that they are known by.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        self.claims.iter().flatten().map(|(name, _)| name.as_str())
    }

    fn let_in(&mut self, member: Member, settings: &AccessSettings) {
        match member {
            Member::Anonymous => self.anonymous = true,
            Member::Authenticated => self.authenticated = true,
            Member::User(name) => drop(self.users.insert(name)),
            Member::Robot(name) => drop(self.robots.insert(name)),
            Member::Certificate(name) => drop(self.certificates.insert(name)),
            Member::Claims(claims) => self.claims.push(claims),
            Member::Group(name) => {
                let members = settings.groups.get(&name).into_iter().flatten();
                for member in members.filter_map(|member| Member::parse_in_group(member).ok()) {
                    // A group holds no groups: the settings have been checked.
                    if !matches!(member, Member::Group(_)) {
                        self.let_in(member, settings);
                    }
                }
            }
        }
    }

    pub fn admits(&self, subject: &Subject) -> bool {
        self.anonymous
            || match subject {
                Subject::Anonymous => false,
                Subject::User { name, .. } => self.authenticated || self.users.contains(name),
                Subject::Robot { name, .. } => self.robots.contains(name),
                Subject::Certificate { names } => {
                    self.authenticated || names.iter().any(|name| self.certificates.contains(name))
                }
                Subject::Job { claims, .. } => {
                    self.authenticated || self.claims.iter().any(|wanted| Member::has_claims(wanted, claims))
                }
            }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str("no rule allows it"),
            Self::NoAdmin => f.write_str("no rule with the verb `admin` allows it"),
            Self::NotLoggedIn => f.write_str("no rule allows it to anonymous callers"),
            Self::Private { upstream } => write!(
                f,
                "upstream `{upstream}` is asked with credentials, so its content needs a login; `anonymous = true` in \
                 [upstream.{upstream}] says otherwise"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::RuleSettings;
    use crate::access::caller::Mark;

    /// Of settings that nobody has checked.
    fn rules(verbs: &[Verb], to: &str) -> Rules {
        let rule = RuleSettings { repository: "**".to_owned(), verbs: verbs.to_vec(), to: vec![to.to_owned()] };
        let settings = AccessSettings { rule: vec![rule], ..AccessSettings::default() };
        Rules::new(&settings, Arc::default(), Private::new())
    }

    #[test]
    fn nobody_gives_orders_without_a_login_whatever_a_rule_says() {
        // Invariant 14
        let rules = rules(&Verb::ALL, "anonymous");
        let here = Repository { origin: Origin::Local, name: "team/app".parse().unwrap() };
        let alice = Subject::User { name: "alice".to_owned(), mark: Mark(String::new()) };
        for (subject, verb, expected) in [
            (&Subject::Anonymous, Verb::Admin, false),
            (&Subject::Anonymous, Verb::Push, true),
            (&alice, Verb::Admin, true),
        ] {
            let judged = rules.judge(Mode::Rules, subject, None, verb, &here).is_ok();
            let everywhere = rules.everywhere(Mode::Rules, subject, None, verb).is_ok();
            let somewhere = rules.somewhere(Mode::Rules, subject, None, verb);
            assert_eq!([judged, everywhere, somewhere], [expected; 3], "{subject:?} {verb}");
        }
    }

    #[test]
    fn without_rules_everything_is_allowed_but_orders() {
        // Invariant 14
        let settings = AccessSettings::default();
        let rules = Rules::new(&settings, Arc::default(), Private::new());
        let here = Repository { origin: Origin::Local, name: "team/app".parse().unwrap() };
        let alice = Subject::User { name: "alice".to_owned(), mark: Mark(String::new()) };
        for mode in [Mode::Open, Mode::Logins] {
            for verb in Verb::ALL {
                let judged = rules.judge(mode, &alice, None, verb, &here).is_ok();
                let (everywhere, somewhere) =
                    (rules.everywhere(mode, &alice, None, verb).is_ok(), rules.somewhere(mode, &alice, None, verb));
                assert_eq!([judged, everywhere, somewhere], [verb.is_of_content(); 3], "{mode:?} {verb}");
            }
        }
    }

    #[test]
    fn what_is_remembered_of_repositories_has_a_bound() {
        // Invariant 17
        let rules = Rules::new(&AccessSettings::default(), Arc::default(), Private::new());
        for number in 0..3 * PLACES_MAX {
            let repository = Repository { origin: Origin::Local, name: format!("team/{number}").parse().unwrap() };
            let judged = rules.judge(Mode::Rules, &Subject::Anonymous, None, Verb::Pull, &repository);
            assert_eq!(judged, Err(Reason::NotLoggedIn));
        }
        assert!(rules.places.len() <= PLACES_MAX, "{}", rules.places.len());
    }
}
