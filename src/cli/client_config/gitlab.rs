//! (pure) GitLab: the CI variables by which its scanners are pulled from here, and the runner's own images.

use super::plan::Plan;
use super::site::Site;
use super::trivy;

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
    if let Some(user) = &site.user {
        login(site, user, &mut plan);
    }
    if site.wants_certificates() {
        plan.step(
            "the certificate of a runner is its docker's (or containerd's, podman's): `sealock client-config docker \
             --client-cert FILE --client-key FILE --write` on each; `tls-cert-file` of its config.toml is for GitLab itself",
        );
        plan.warn(
            "Container Scanning pulls what it scans and its Java database with Trivy, which has no option for a client's \
             certificate: it needs `client_auth = \"optional\"`",
        );
    }
    if !site.https {
        plan.warn("over plain HTTP, Container Scanning pulls what it scans from port 80 only");
    }
    plan
}

/// Variables that hold a password are made in GitLab's settings: what stands in .gitlab-ci.yml is no secret.
fn login(site: &Site, user: &str, plan: &mut Plan) {
    let address = &site.address;
    plan.step(format!(
        "make a CI/CD variable DOCKER_AUTH_CONFIG, of type variable and masked, from the config.json that \
         `docker login -u {user} {address}` writes"
    ));
    plan.step(format!(
        "for Container Scanning of images from here (CS_IMAGE: {address}/…): CS_REGISTRY_USER ({user}) and \
         CS_REGISTRY_PASSWORD as masked CI/CD variables, for those projects alone: they take the place of GitLab's own"
    ));
    plan.step(format!(
        "for jobs that run Trivy themselves: TRIVY_USERNAME ({user}) and TRIVY_PASSWORD as masked CI/CD variables"
    ));
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
    set("TRIVY_TIMEOUT", trivy::TIMEOUT.to_owned());
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
