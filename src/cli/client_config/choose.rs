//! (pure) What `--check` pulls if nobody says: something small that is kept whole, by the name that the client would use
//! without knowing of the proxy, if it has a way to.

use super::site::{HUB, Site};
use super::{Failure, Kind, wrong};
use crate::oci::MediaType;
use crate::store::TagLine;

/// What manifests of images have for a config.
const IMAGE: [&str; 2] = ["application/vnd.docker.container.image.v1+json", MediaType::OCI_CONFIG];
/// What manifests of charts have for a config.
const CHART: &str = "application/vnd.cncf.helm.config.v1+json";

/// `containerd_store`: docker has a way to come here for all upstreams' names.
pub(super) fn choose(kind: Kind, containerd_store: bool, site: &Site, kept: &[TagLine]) -> Result<String, Failure> {
    let host = |line: &TagLine| {
        line.repository.split_once('/').filter(|(host, _)| site.has(host)).map(|(host, _)| host.to_owned())
    };
    let remapped = |line: &TagLine| match kind {
        Kind::Docker => host(line).is_some_and(|host| containerd_store || host == HUB),
        Kind::Containerd | Kind::Podman | Kind::CriO | Kind::K3s => host(line).is_some(),
        Kind::Gitlab | Kind::Trivy | Kind::Oras | Kind::Helm => false,
    };
    let pullable = |line: &&TagLine| match kind {
        Kind::Trivy => line.repository.ends_with("/trivy-db"),
        Kind::Helm => line.artifact_type.as_deref() == Some(CHART),
        Kind::Oras => !is_image(line) && !is_about_another(line),
        Kind::Gitlab => is_image(line) && line.repository.starts_with("registry.gitlab.com/"),
        Kind::Docker | Kind::Containerd | Kind::Podman | Kind::CriO | Kind::K3s => is_image(line),
    };
    let complete = kept.iter().filter(|line| line.complete);
    // Those that can be pulled past us prove more.
    let found = complete.filter(pullable).min_by_key(|line| (!remapped(line), line.size_bytes)).ok_or_else(|| {
        wrong("nothing is kept that this client could pull".to_owned(), "name something with --image")
    })?;
    Ok(match remapped(found) {
        true => format!("{}:{}", found.repository, found.tag),
        false => format!("{}/{}:{}", site.address, found.repository, found.tag),
    })
}

/// A chart or a database is none: most clients refuse them.
fn is_image(line: &TagLine) -> bool {
    let named = line.artifact_type.as_deref();
    named.is_none_or(|named| IMAGE.contains(&named)) && !is_about_another(line)
}

/// A signature or a list of referrers, under the tag that is made from its subject's digest.
fn is_about_another(line: &TagLine) -> bool {
    line.tag.starts_with("sha256-")
}

#[cfg(test)]
mod tests {
    use super::super::tests::site;
    use super::*;
    use crate::store::TagSource;

    fn kept(repository: &str, tag: &str, artifact_type: Option<&str>, size_bytes: u64) -> TagLine {
        let now = jiff::Timestamp::UNIX_EPOCH;
        TagLine {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: String::new(),
            media_type: String::new(),
            artifact_type: artifact_type.map(str::to_owned),
            source: TagSource::Filled,
            complete: size_bytes != 1,
            size_bytes,
            checked_at: now,
            moved_at: now,
        }
    }

    #[test]
    fn each_kind_gets_something_that_it_can_pull_by_a_name_that_can_go_past_us() {
        let kept = [
            kept("team/app", "1", Some(IMAGE[1]), 10),
            kept("team/charts/tide", "1.2.3", Some(CHART), 5),
            kept("ghcr.io/aquasecurity/trivy-db", "2", Some("application/vnd.aquasec.trivy.config.v1+json"), 20),
            kept("registry.gitlab.com/security-products/semgrep", "5", None, 30),
            kept("registry.gitlab.com/security-products/semgrep", "sha256-0a.sig", Some(IMAGE[1]), 2),
            kept("registry.gitlab.com/security-products/secrets", "6", None, 1),
            kept("docker.io/library/alpine", "3", None, 40),
        ];
        let here = "registry.site.internal:5000";
        let (alpine, semgrep) = ("docker.io/library/alpine:3", "registry.gitlab.com/security-products/semgrep:5");
        let cases = [
            (Kind::Docker, false, alpine.to_owned()),
            (Kind::Docker, true, semgrep.to_owned()),
            (Kind::Containerd, false, semgrep.to_owned()),
            (Kind::Podman, false, semgrep.to_owned()),
            (Kind::Gitlab, false, format!("{here}/{semgrep}")),
            (Kind::Trivy, false, format!("{here}/ghcr.io/aquasecurity/trivy-db:2")),
            (Kind::Helm, false, format!("{here}/team/charts/tide:1.2.3")),
            (Kind::Oras, false, format!("{here}/team/charts/tide:1.2.3")),
        ];
        for (kind, containerd_store, expected) in cases {
            let chosen = choose(kind, containerd_store, &site(true), &kept);
            assert_eq!(chosen.unwrap_or_else(|why| panic!("{kind:?}: {}", why.message)), expected, "{kind:?}");
        }
        assert_eq!(choose(Kind::Docker, false, &site(true), &kept[..2]).ok(), Some(format!("{here}/team/app:1")));
        assert!(choose(Kind::Docker, false, &site(true), &kept[1..3]).is_err());
    }
}
