//! (pure) GitLab: the CI variables by which its scanners are pulled from here, and the runner's own images.

use super::plan::Plan;
use super::site::Site;

const GITLAB: &str = "registry.gitlab.com";

pub(super) fn plan(site: &Site) -> Plan {
    let mut plan = Plan::default();
    if !site.has(GITLAB) {
        plan.warn(format!("no upstream has the host {GITLAB}: add \"gitlab\" to `presets`, or an [upstream.…] for it"));
    }
    plan.snippet("CI/CD variables of the instance, the group or .gitlab-ci.yml", variables(site));
    if let Some(text) = runner(site) {
        plan.snippet("config.toml of each runner", text);
    }
    plan.step("sealock client-config docker (or containerd, podman, k3s) for what the runners pull with");
    if site.user.is_some() {
        plan.step(format!(
            "make a CI/CD variable DOCKER_AUTH_CONFIG, of type variable and masked, from the config.json that \
             `docker login -u {} {}` writes",
            site.user.as_deref().unwrap_or_default(),
            site.address
        ));
    }
    plan
}

fn variables(site: &Site) -> String {
    let mut lines = vec!["variables:".to_owned()];
    let mut set = |name: &str, value: String| lines.push(format!("  {name}: \"{value}\""));
    if let Some(semgrep) = site.reference(GITLAB, "security-products/semgrep") {
        let prefix = semgrep.trim_end_matches("/semgrep");
        set("SECURE_ANALYZERS_PREFIX", prefix.to_owned());
        // Container Scanning takes no notice of that prefix; this host is for templates whose names fit as they are.
        if prefix == format!("{}/security-products", site.address) {
            set("CI_TEMPLATE_REGISTRY_HOST", site.address.clone());
        }
        set("CS_ANALYZER_IMAGE", format!("{prefix}/container-scanning:8"));
    }
    // Without a tag: Trivy adds it.
    if let Some(database) = java_database(site) {
        set("CS_TRIVY_JAVA_DB", database);
    }
    if !site.https {
        set("CS_REGISTRY_INSECURE", "true".to_owned());
    }
    if let Some(authority) = &site.authority {
        lines.push("  ADDITIONAL_CA_CERT_BUNDLE: |".to_owned());
        lines.extend(authority.lines().map(|line| format!("    {line}")));
    }
    lines.join("\n") + "\n"
}

fn java_database(site: &Site) -> Option<String> {
    let ghcr = site.reference("ghcr.io", "aquasecurity/trivy-java-db");
    ghcr.or_else(|| site.reference("mirror.gcr.io", "aquasec/trivy-java-db"))
}

/// Every job of a runner needs its helper image, which no CI variable moves.
fn runner(site: &Site) -> Option<String> {
    let helper = site.reference(GITLAB, "gitlab-org/gitlab-runner/gitlab-runner-helper")?;
    Some(format!(
        "[[runners]]\n  [runners.docker]\n    # The second one keeps jobs running while the proxy is away.\n    \
         pull_policy = [\"always\", \"if-not-present\"]\n    \
         helper_image = \"{helper}:x86_64-v${{CI_RUNNER_VERSION}}\"\n"
    ))
}
