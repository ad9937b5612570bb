//! Who asks at the admin API, and how much of it they may.
//!
//! By the socket it is everything or nothing. Over the network the access rules say: the verb `admin` on everything is for
//! all orders, on a repository for those that concern that repository alone. All of it is decided before the store is
//! asked: what is absent and what is somebody else's are answered alike (invariant 14).

use http::StatusCode;

use super::Office;
use super::api::Trouble;
use crate::access::{Caller, Verb};
use crate::names::{Origin, Repository};

/// Who asks.
pub(super) struct Asker {
    /// For the audit file: `alice (uid 1000)`, `user:alice from 10.0.0.7`.
    pub(super) who: String,
    pub(super) leave: Leave,
}

/// What they may.
pub(super) enum Leave {
    Everything,
    Nothing,
    /// What the rules say of this caller.
    ByRules(Caller),
}

impl Office {
    /// For orders to the server itself, and about all that it keeps.
    pub(super) fn allow_everything(&self, asker: &Asker) -> Result<(), Trouble> {
        let may = |caller: &Caller| self.source.access.decide_everywhere(caller, Verb::Admin).is_ok();
        asker.allowed(may, "give this order")
    }

    /// For orders that concern one repository, by a name as clients write it.
    pub(super) fn allow_name(&self, asker: &Asker, name: &str) -> Result<(), Trouble> {
        // Whether it is a name at all depends on nothing that is kept.
        let repository = self.find_repository(name)?;
        let may = |caller: &Caller| self.source.access.decide(caller, Verb::Admin, &repository).is_ok();
        asker.allowed(may, &format!("give orders about `{name}`"))
    }

    /// Whether the asker may give orders about a repository, by its name with its host.
    pub(super) fn may_list(&self, asker: &Asker, repository: &str) -> bool {
        let Leave::ByRules(caller) = &asker.leave else { return self.allow_everything(asker).is_ok() };
        let below = |host: &str| repository.strip_prefix(host)?.strip_prefix('/')?.parse().ok();
        let hosts = self.source.upstreams.iter().map(|upstream| upstream.host());
        let there = hosts.filter_map(|host| Some((Origin::Upstream(host.into()), below(host)?))).next();
        let found = there.or_else(|| Some((Origin::Local, repository.parse().ok()?)));
        let found = found.map(|(origin, name)| Repository { origin, name });
        match found {
            Some(repository) => self.source.access.decide(caller, Verb::Admin, &repository).is_ok(),
            // Of an upstream that is no more.
            None => self.allow_everything(asker).is_ok(),
        }
    }

    /// For lists that hold no more than what the asker may give orders about.
    pub(super) fn allow_something(&self, asker: &Asker) -> Result<(), Trouble> {
        asker.allowed(|caller| self.source.access.may_order_somewhere(caller), "give this order")
    }

    pub(super) fn allow_metrics(&self, asker: &Asker) -> Result<(), Trouble> {
        asker.allowed(|caller| self.source.access.may_watch(caller), "read the metrics")
    }
}

impl Asker {
    fn allowed(&self, by_rules: impl FnOnce(&Caller) -> bool, what: &str) -> Result<(), Trouble> {
        let is_allowed = match &self.leave {
            Leave::Everything => true,
            Leave::ByRules(caller) => by_rules(caller),
            Leave::Nothing => false,
        };
        if is_allowed { Ok(()) } else { Err(self.refused(what)) }
    }

    pub(super) fn refused(&self, what: &str) -> Trouble {
        let hint = match &self.leave {
            Leave::ByRules(caller) if caller.is_scoped() => {
                "a token of the token endpoint is for pulls and pushes; log in with a password or a robot's token"
            }
            Leave::ByRules(_) => {
                "it takes an access rule with the verb `admin`, for the repository or, where the order is about more, for `**`"
            }
            Leave::Everything | Leave::Nothing => {
                "run this as root or as the user that runs the server, or be of the group that `admin.group` names"
            }
        };
        let error = format!("{} may not {what}", self.who);
        Trouble { status: StatusCode::FORBIDDEN, error, hint: Some(hint.to_owned()) }
    }
}
