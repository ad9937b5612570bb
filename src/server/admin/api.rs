//! Each admin request and its answer.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::error;

use super::report::{
    CloseOrder, CollectOrder, Complaint, DAMAGE_LISTED_MAX, OpenOrder, RouteLine, StatusReport, TagOrder, VerifyOrder,
    WatchEnd, WatchOrder,
};
use super::rights::{Asker, Leave};
use super::tags::TagMoves;
use super::{Office, metrics};
use crate::gate::{GateError, GateStatus, Order, with_causes};
use crate::keep::{KeepError, VerifyReport};
use crate::names::Origin;
use crate::oci::RepositoryName;
use crate::store::{StoreError, TagLine};

/// Largest order.
const BODY_MAX: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const JSON: &str = "application/json";

/// An error reply in the making.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) status: StatusCode,
    pub(super) error: String,
    pub(super) hint: Option<String>,
}

type Answer = Result<Value, Trouble>;

impl Office {
    pub(super) async fn respond(&self, head: &request::Parts, body: &[u8], asker: &Asker) -> Response<Bytes> {
        let answer = match (&head.method, head.uri.path()) {
            _ if matches!(asker.leave, Leave::Nothing) => Err(asker.refused("give orders here")),
            (&Method::GET | &Method::HEAD, metrics::PATH) => {
                self.metrics(asker).await.map(|text| reply(metrics::CONTENT_TYPE, text))
            }
            _ => self.answer(head, body, asker).await.map(|document| reply(JSON, document.to_string())),
        };
        answer.unwrap_or_else(Trouble::respond)
    }

    /// What is about a repository that the order names, and so for those, too, who may give orders about that one alone.
    async fn answer(&self, head: &request::Parts, body: &[u8], asker: &Asker) -> Answer {
        let tag = || {
            let order: TagOrder = order(body)?;
            self.allow_name(asker, &order.name)?;
            Ok::<_, Trouble>(order)
        };
        let move_tag = async |how| document(&self.move_tag(&tag()?, how).await?);
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/ls") => {
                self.allow_something(asker)?;
                let mut lines = self.list(name_of(head.uri.query())?.as_deref()).await?;
                lines.retain(|line| self.may_list(asker, &line.repository));
                document(&lines)
            }
            (&Method::POST, "/tag") => document(&self.tag(&tag()?).await?),
            (&Method::POST, "/tag/rollback") => move_tag(TagMoves::Rollback).await,
            (&Method::POST, "/tag/pin") => move_tag(TagMoves::Pin).await,
            (&Method::POST, "/tag/unpin") => move_tag(TagMoves::Unpin).await,
            (&Method::POST, "/tag/release") => move_tag(TagMoves::Release).await,
            (&Method::POST, "/verify") => {
                let order: VerifyOrder = order(body)?;
                match &order.name {
                    Some(name) => self.allow_name(asker, name)?,
                    None => self.allow_everything(asker)?,
                }
                document(&self.verify(order).await?)
            }
            _ => {
                self.allow_everything(asker)?;
                self.answer_to_all(head, body, &asker.who).await
            }
        }
    }

    /// The rest, for those who may give all orders.
    async fn answer_to_all(&self, head: &request::Parts, body: &[u8], who: &str) -> Answer {
        let (gate, store, keep) = (&self.source.gate, &self.source.store, &self.source.keep);
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/gate") => document(&gate.status()),
            (&Method::POST, "/gate/open") => document(&self.open(order(body)?, who).await?),
            (&Method::POST, "/gate/close") => document(&self.close(order(body)?, who).await?),
            (&Method::GET, "/status") => document(&self.report().await?),
            (&Method::GET, "/status/wanted") => document(&store.wanted().await?),
            (&Method::POST, "/gc") => {
                let CollectOrder { dry_run } = order(body)?;
                document(&keep.collect(dry_run).await?)
            }
            (&Method::GET, "/verify") => {
                let (checked, size_bytes) = keep.progress().so_far();
                document(&VerifyReport { checked, size_bytes, ..VerifyReport::default() })
            }
            (&Method::POST, "/upstream/check") => document(&self.check(&order(body)?).await?),
            (&Method::POST, "/watch") => {
                let WatchOrder { name } = order(body)?;
                document(&WatchEnd { id: self.source.recent.watch(&name, self.source.clock.now()) })
            }
            (&Method::POST, "/watch/end") => {
                let WatchEnd { id } = order(body)?;
                let over = || Trouble::absent("that watch is over".to_owned(), "begin another".to_owned());
                document(&self.source.recent.end(id).ok_or_else(over)?)
            }
            (&Method::POST, "/gc/undo") => document(&keep.undo().await?),
            (&Method::GET, "/ready") => {
                store.check_catalog().await?;
                Ok(json!({ "status": "ready" }))
            }
            (method, path) => {
                let error = format!("the admin API has no `{method} {path}`");
                let hint = "orders are sent as POST, with curl: --json '{}'; otherwise use a `sealock` of the server's version";
                let hint = hint.to_owned();
                Err(Trouble { status: StatusCode::NOT_FOUND, error, hint: Some(hint) })
            }
        }
    }

    async fn metrics(&self, asker: &Asker) -> Result<String, Trouble> {
        self.allow_metrics(asker)?;
        metrics::render(&self.report().await?).map_err(|why| Trouble {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            error: format!("cannot write the metrics: {why}"),
            hint: None,
        })
    }

    async fn open(&self, order: OpenOrder, caller: &str) -> Result<GateStatus, Trouble> {
        if let Some(wanted) = &order.upstream {
            self.know(wanted)?;
        }
        let lasting = order.for_ms.map(Duration::from_millis);
        if lasting == Some(Duration::ZERO) {
            return Err(Trouble::wrong(
                "an opening must last longer than 0s",
                "to close the gate, use `sealock gate close`",
            ));
        }
        let who = who(order.who, caller);
        Ok(self
            .source
            .gate
            .open(Order { who, why: order.why.map(|why| plain(&why)) }, lasting, order.upstream.as_deref())
            .await?)
    }

    async fn close(&self, order: CloseOrder, caller: &str) -> Result<GateStatus, Trouble> {
        let drain = order.drain_ms.map(Duration::from_millis);
        let who = who(order.who, caller);
        Ok(self.source.gate.close(Order { who, why: order.why.map(|why| plain(&why)) }, drain).await?)
    }

    async fn verify(&self, order: VerifyOrder) -> Result<VerifyReport, Trouble> {
        let repository = order.name.as_deref().map(|name| self.find_repository(name)).transpose()?;
        if let (Some(name), Some(repository)) = (&order.name, &repository)
            && !self.source.store.has_repository(repository).await?
        {
            let hint = "`sealock ls` lists what is kept; without a name, everything is verified".to_owned();
            return Err(Trouble::absent(format!("nothing is kept in `{name}`"), hint));
        }
        Ok(self.source.keep.verify(repository.as_ref()).await?)
    }

    async fn report(&self) -> Result<StatusReport, Trouble> {
        let source = &self.source;
        let routes = source.routes.describe().into_iter();
        let mut upstreams: Vec<_> = source.upstreams.iter().map(|upstream| upstream.health()).collect();
        upstreams.sort_by(|a, b| a.name.cmp(&b.name));
        let tls = source.tls.as_ref().map(|tls| tls.report());
        let (mut certificates, warnings) = tls.map_or_else(Default::default, |tls| (tls.certificates, tls.warnings));
        // Who asks may be in another folder.
        for one in &mut certificates {
            one.file = std::path::absolute(&one.file).unwrap_or_else(|_| std::mem::take(&mut one.file));
        }
        Ok(StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            now: source.clock.now(),
            addresses: source.addresses.clone(),
            origins: source.origins.clone(),
            certificates,
            warnings: source.warnings.iter().cloned().chain(warnings).collect(),
            gate: source.gate.status(),
            access: source.access.report(),
            totals: source.store.totals().await?,
            keep: source.keep.status().await?,
            read_only: source.store.check_writable().is_err(),
            under_way: source.pull.under_way(),
            wanted: source.store.wanted().await?.len(),
            damaged: source.store.damage_count().await?,
            damage: source.store.damage(DAMAGE_LISTED_MAX).await?,
            routes: routes.map(|(pattern, upstream, repository)| RouteLine { pattern, upstream, repository }).collect(),
            upstreams,
        })
    }

    /// Tags below `name`, which is as clients write it, perhaps with a tag, or the beginning of that.
    async fn list(&self, name: Option<&str>) -> Result<Vec<TagLine>, Trouble> {
        let Some(name) = name else {
            return Ok(self.source.store.list(None, None).await?);
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let mut lines = Vec::new();
        for (origin, below) in self.places(name) {
            lines.extend(self.source.store.list(origin.as_ref(), below.as_deref()).await?);
        }
        lines.retain(|line| tag.is_none_or(|tag| line.tag == tag));
        lines.sort_by(|a, b| (&a.repository, &a.tag).cmp(&(&b.repository, &b.tag)));
        lines.dedup_by(|a, b| (&a.repository, &a.tag) == (&b.repository, &b.tag));
        Ok(lines)
    }

    /// Where what clients call `name`, or something below it, is kept: the origin, and how repositories begin there.
    fn places(&self, name: &str) -> Vec<(Option<Origin>, Option<String>)> {
        let mut places = vec![(None, Some(name.to_owned()))];
        let parsed = name.parse::<RepositoryName>().ok();
        if let Some(target) = parsed.and_then(|name| self.source.routes.resolve(&name, None).ok()) {
            places.push((Some(target.repository.origin), Some(target.repository.name.to_string())));
        }
        for (pattern, _, goes_to) in self.source.routes.describe() {
            let prefix = pattern.trim_end_matches("/**");
            let below = prefix.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            let Some((host, repository)) = goes_to.trim_end_matches("**").split_once('/') else { continue };
            let origin = || Some(Origin::Upstream(host.into()));
            if below {
                let repository = repository.trim_end_matches('/');
                places.push((origin(), (!repository.is_empty()).then(|| repository.to_owned())));
            } else if let Some(rest) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')) {
                places.push((origin(), Some(format!("{repository}{rest}"))));
            }
        }
        places
    }
}

impl Trouble {
    pub(super) fn respond(self) -> Response<Bytes> {
        let mut response = reply(JSON, json!(Complaint { error: self.error, hint: self.hint }).to_string());
        *response.status_mut() = self.status;
        response
    }

    pub(super) fn wrong(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error: error.into(), hint: Some(hint.into()) }
    }
}

impl From<StoreError> for Trouble {
    fn from(why: StoreError) -> Self {
        let (error, hint) = (with_causes(&why), why.hint().map(str::to_owned));
        error!("an admin request failed: {error}");
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, error, hint }
    }
}

impl From<KeepError> for Trouble {
    fn from(why: KeepError) -> Self {
        let hint = why.hint().map(str::to_owned);
        match why {
            KeepError::Busy => Self { status: StatusCode::CONFLICT, error: why.to_string(), hint },
            KeepError::Store(why) => why.into(),
        }
    }
}

impl From<GateError> for Trouble {
    fn from(why: GateError) -> Self {
        let status = match &why {
            GateError::TooLong { .. } | GateError::TooFar | GateError::TooManyUpstreams => StatusCode::BAD_REQUEST,
            GateError::Reopened => StatusCode::CONFLICT,
            GateError::Settings { .. }
            | GateError::State { .. }
            | GateError::Audit(_)
            | GateError::LookUpsUnderWay { .. }
            | GateError::NotReset { .. }
            | GateError::Stopped => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, error: with_causes(&why), hint: why.hint() }
    }
}

fn reply(content_type: &'static str, text: String) -> Response<Bytes> {
    let mut response = Response::new(text.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn document(value: &impl Serialize) -> Answer {
    serde_json::to_value(value).map_err(|why| Trouble {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        error: format!("cannot write the answer: {why}"),
        hint: None,
    })
}

/// What comes with a request: small, and soon.
pub(super) async fn received(body: Incoming) -> Result<Bytes, Trouble> {
    let hint = "an order is a small JSON document";
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(why)) => Err(Trouble::wrong(format!("cannot read the order: {why}"), hint)),
        Err(_) => Err(Trouble::wrong("the order did not come in time", hint)),
    }
}

fn order<T: DeserializeOwned>(body: &[u8]) -> Result<T, Trouble> {
    let hint = "an order is a small JSON document";
    serde_json::from_slice(body).map_err(|why| Trouble::wrong(format!("cannot read the order: {why}"), hint))
}

/// For the audit file: whoever may be named, it says who is calling.
fn who(named: Option<String>, caller: &str) -> String {
    match named.map(|name| plain(&name)).filter(|name| !name.trim().is_empty()) {
        Some(name) => format!("{name}, by {caller}"),
        None => caller.to_owned(),
    }
}

/// Without what would begin a line of its own in a log, or turn one around on a terminal.
fn plain(text: &str) -> String {
    let turns = |c| matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| !c.is_control() && !turns(*c)).collect()
}

fn name_of(query: Option<&str>) -> Result<Option<String>, Trouble> {
    let value = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("name="));
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let decoded = percent_decode_str(value).decode_utf8();
    let decoded = decoded.map_err(|_| Trouble::wrong("`name` is not UTF-8", "write it as clients do"))?;
    Ok(Some(decoded.trim_end_matches(['/', '*']).to_owned()).filter(|name| !name.is_empty()))
}
