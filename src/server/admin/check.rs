//! `POST /upstream/check`: each upstream asked step by step, for something that it is known to have.

use std::sync::Arc;

use futures_util::future::join_all;

use super::Office;
use super::api::Trouble;
use super::report::CheckOrder;
use crate::names::Origin;
use crate::oci::{Reference, RepositoryName};
use crate::store::TagSource;
use crate::upstream::{Upstream, UpstreamCheck};

/// What is asked for at an upstream.
type Probe = (RepositoryName, Reference);

impl Office {
    pub(super) async fn check(&self, order: &CheckOrder) -> Result<Vec<UpstreamCheck>, Trouble> {
        let named = order.image.as_deref().map(|image| self.probe_named(image)).transpose()?;
        let wanted = order.upstream.as_deref().or(named.as_ref().map(|(upstream, _)| upstream.as_ref()));
        if let Some(wanted) = wanted {
            self.know(wanted)?;
        }
        let mut upstreams: Vec<&Arc<Upstream>> = self
            .source
            .upstreams
            .iter()
            .filter(|upstream| wanted.is_none_or(|wanted| wanted == upstream.name()))
            .collect();
        upstreams.sort_by_key(|upstream| upstream.name());
        let mut probes = Vec::new();
        for upstream in &upstreams {
            probes.push(match &named {
                Some((of, probe)) if of.as_ref() == upstream.name() => Some(probe.clone()),
                Some((of, _)) => {
                    let hint = format!("name something of `{}`, or leave one of the two out", upstream.name());
                    return Err(Trouble::wrong(format!("what --image names is of the upstream `{of}`"), hint));
                }
                None => self.probe_for(upstream).await?,
            });
        }
        let checks = upstreams.iter().zip(&probes).map(|(upstream, probe)| upstream.check(probe.as_ref()));
        Ok(join_all(checks).await)
    }

    /// Whether there is such an upstream.
    pub(super) fn know(&self, wanted: &str) -> Result<(), Trouble> {
        let mut known: Vec<&str> = self.source.upstreams.iter().map(|upstream| upstream.name()).collect();
        if known.contains(&wanted) {
            return Ok(());
        }
        known.sort_unstable();
        let known = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        Err(Trouble::wrong(format!("there is no upstream `{wanted}`"), format!("the upstreams are {known}")))
    }

    /// `NAME`, `NAME:TAG` or `NAME@DIGEST` as clients write it: the upstream, and what it is there.
    fn probe_named(&self, image: &str) -> Result<(Arc<str>, Probe), Trouble> {
        let hint = "write it as clients do, such as `security-products/semgrep:6`";
        let wrong = || Trouble::wrong(format!("`{image}` is not the name of an image"), hint);
        let (name, reference) = match (image.split_once('@'), image.rsplit_once(':')) {
            (Some((name, digest)), _) => (name, Reference::Digest(digest.parse().map_err(|_| wrong())?)),
            (None, Some((name, tag))) => (name, Reference::Tag(tag.parse().map_err(|_| wrong())?)),
            (None, None) => (image, Reference::Tag("latest".parse().map_err(|_| wrong())?)),
        };
        let name: RepositoryName = name.parse().map_err(|_| wrong())?;
        let target = self.source.routes.resolve(&name, None).map_err(|why| Trouble::wrong(why.to_string(), hint))?;
        let of = target.source.map(|source| source.upstream);
        let of = of.ok_or_else(|| Trouble::wrong(format!("no route leads from `{name}` to an upstream"), hint))?;
        Ok((of, (target.repository.name, reference)))
    }

    /// The tag that moved last of those that were filled from there, or the repository of a route for one name.
    async fn probe_for(&self, upstream: &Upstream) -> Result<Option<Probe>, Trouble> {
        let origin = Origin::Upstream(upstream.host().into());
        let kept = self.source.store.list(Some(&origin), None).await?;
        let filled = kept.iter().filter(|line| line.source == TagSource::Filled);
        let newest = filled.max_by_key(|line| line.moved_at).and_then(|line| {
            let name = line.repository.strip_prefix(upstream.host())?.strip_prefix('/')?;
            Some((name.parse().ok()?, Reference::Tag(line.tag.parse().ok()?)))
        });
        let routed = || {
            let routes = self.source.routes.describe().into_iter();
            let mut names = routes.filter_map(|(pattern, of, to)| {
                let one = of == upstream.name() && !pattern.ends_with("**");
                one.then(|| to.strip_prefix(upstream.host())?.strip_prefix('/')?.parse().ok()).flatten()
            });
            Some((names.next()?, Reference::Tag("latest".parse().ok()?)))
        };
        Ok(newest.or_else(routed))
    }
}
