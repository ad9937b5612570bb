//! What we log in with at an upstream, by repository, and whether it is any good.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::breaker::{Admission, Breaker, Weight};
use super::credentials::{Credential, Source};
use super::error::UpstreamSetupError;
use super::settings::UpstreamSettings;
use crate::oci::RepositoryName;

/// One credential and its standing.
pub(super) struct Account {
    pub source: Source,
    pub standing: Standing,
}

/// All credentials of an upstream. Each is shown for its own repositories only.
pub(super) struct Accounts {
    own: Account,
    exact: HashMap<String, Account>,
    /// By prefix, without the `/**`.
    below: HashMap<String, Account>,
}

/// Whether the credential is good: a refused one rests, so that a wrong password does not lock the account.
#[derive(Default)]
pub(super) struct Standing(Mutex<Stood>);

#[derive(Default)]
struct Stood {
    breaker: Breaker,
    worked: bool,
    refused: Option<(Arc<Credential>, u16)>,
}

impl Accounts {
    /// Reads what the settings name; touches no network.
    pub fn read(upstream: &str, settings: &UpstreamSettings) -> Result<Self, UpstreamSetupError> {
        let own = Account::new(Source::read(upstream, &settings.host, &settings.own_credentials())?);
        let mut accounts = Self { own, exact: HashMap::new(), below: HashMap::new() };
        for (pattern, credentials) in &settings.credentials {
            let source = Source::read(upstream, &settings.host, credentials).map_err(|why| {
                let (key, message) = why.of_setting();
                let message = format!("`{pattern}`: {key}: {message}");
                UpstreamSetupError::Setting { upstream: upstream.to_owned(), key: "credentials", message }
            })?;
            match pattern.strip_suffix("/**") {
                Some(prefix) => accounts.below.insert(prefix.to_owned(), Account::new(source)),
                None => accounts.exact.insert(pattern.clone(), Account::new(source)),
            };
        }
        Ok(accounts)
    }

    /// The one for `repository`: of those that fit, that of the longest pattern.
    pub fn of(&self, repository: &RepositoryName) -> &Account {
        let name = repository.as_str();
        if let Some(account) = self.exact.get(name) {
            return account;
        }
        let mut prefixes = name.rmatch_indices('/').map(|(at, _)| &name[..at]);
        prefixes.find_map(|prefix| self.below.get(prefix)).unwrap_or(&self.own)
    }

    /// What failed before says nothing about now.
    pub fn forget_failures(&self) {
        let all = self.exact.values().chain(self.below.values()).chain([&self.own]);
        all.for_each(|account| account.standing.forget_failures());
    }
}

impl Account {
    fn new(source: Source) -> Self {
        Self { source, standing: Standing::default() }
    }
}

impl Standing {
    /// The status with which `credential` was refused, while it rests.
    pub fn admit(&self, credential: &Arc<Credential>, now: Timestamp) -> Option<u16> {
        let mut stood = self.lock();
        let status = stood.refused.as_ref().filter(|(refused, _)| refused == credential).map(|(_, status)| *status)?;
        (stood.breaker.admit(now) == Admission::Rest).then_some(status)
    }

    /// One that has worked may have been refused for one repository only: that counts little.
    pub fn refused(&self, credential: &Arc<Credential>, status: u16, now: Timestamp) {
        let mut stood = self.lock();
        let weight = if stood.worked { Weight::Light } else { Weight::Heavy };
        stood.breaker.failed(now, weight);
        if stood.breaker.resting_until(now).is_some() {
            stood.worked = false;
        }
        stood.refused = Some((credential.clone(), status));
    }

    pub fn worked(&self) {
        let mut stood = self.lock();
        stood.breaker.succeeded();
        stood.worked = true;
        stood.refused = None;
    }

    fn forget_failures(&self) {
        let mut stood = self.lock();
        stood.breaker.succeeded();
        stood.refused = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stood> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
