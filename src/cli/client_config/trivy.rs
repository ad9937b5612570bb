//! (pure) Trivy: where it gets its databases, as flags, as variables, and as `trivy.yaml`.

use super::plan::Plan;
use super::site::{HUB, Site};

const FILE: &str = "/etc/trivy/trivy.yaml";
pub(super) const CA_FILE: &str = "/etc/trivy/sealock-ca.crt";

/// Trivy's own five minutes are short for what is fetched first.
pub(super) const TIMEOUT: &str = "30m";

/// Trivy's artifacts: flag, variable, name, tag.
const ARTIFACTS: [(&str, &str, &str, &str); 3] = [
    ("--db-repository", "TRIVY_DB_REPOSITORY", "trivy-db", "2"),
    ("--java-db-repository", "TRIVY_JAVA_DB_REPOSITORY", "trivy-java-db", "1"),
    ("--checks-bundle-repository", "TRIVY_CHECKS_BUNDLE_REPOSITORY", "trivy-checks", "2"),
];

pub(super) fn plan(site: &Site) -> Plan {
    let mut plan = Plan::default();
    let found: Vec<_> = ARTIFACTS.iter().map(|artifact| (artifact, reference(site, artifact.2))).collect();
    if found.iter().any(|(_, reference)| reference.is_none()) {
        plan.warn("some of Trivy's databases have no route here: add \"trivy\" to `presets`");
    }
    if site.wants_certificates() {
        plan.warn(
            "Trivy has no option for a client's certificate: where the server requires one, let it have `client_auth = \
             \"optional\"`, or fetch with skopeo and oras, and scan what they fetched with --input and --skip-db-update",
        );
    }
    if let Some(authority) = &site.authority {
        // Trivy takes no notice of docker's certs.d.
        plan.own(CA_FILE, authority);
    }
    let known = || found.iter().filter_map(|(artifact, reference)| Some((*artifact, reference.as_ref()?)));
    let insecure = if site.https { "" } else { " --insecure" };
    let flags: Vec<_> = known().map(|((flag, _, _, tag), at)| format!("{flag} {at}:{tag}")).collect();
    let flags = format!("trivy image {} --offline-scan --timeout {TIMEOUT}{insecure} IMAGE\n", flags.join(" "));
    plan.snippet("flags (newer versions also take --skip-version-check and --disable-telemetry)", flags);

    let mut variables: Vec<_> = known().map(|((_, name, _, tag), at)| format!("{name}={at}:{tag}\n")).collect();
    variables.push(format!("TRIVY_OFFLINE_SCAN=true\nTRIVY_TIMEOUT={TIMEOUT}\n"));
    if !site.https {
        variables.push("TRIVY_INSECURE=true\n".to_owned());
    }
    if site.authority.is_some() {
        variables.push(format!("SSL_CERT_FILE={CA_FILE}\n"));
    }
    plan.snippet("variables, in place of the flags", variables.concat());
    plan.own(FILE, &yaml(site, |name| reference(site, name)));
    let trust = if site.authority.is_some() { format!("SSL_CERT_FILE={CA_FILE} ") } else { String::new() };
    plan.step(format!("{trust}trivy image --config {FILE} IMAGE, or TRIVY_CONFIG={FILE}"));
    if let Some(user) = &site.user {
        plan.step(format!(
            "docker login -u {user} {}, whose config.json Trivy reads; or TRIVY_USERNAME ({user}) and TRIVY_PASSWORD, both \
             as masked variables: Trivy tries them at every registry that it asks",
            site.address
        ));
    }
    plan
}

fn reference(site: &Site, name: &str) -> Option<String> {
    let ghcr = site.reference("ghcr.io", &format!("aquasecurity/{name}"));
    ghcr.or_else(|| site.reference("mirror.gcr.io", &format!("aquasec/{name}")))
}

fn yaml(site: &Site, reference: impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::new();
    let databases = [("repository", "trivy-db", "2"), ("java-repository", "trivy-java-db", "1")];
    let lines: Vec<_> = databases
        .iter()
        .filter_map(|(key, name, tag)| Some(format!("  {key}:\n    - \"{}:{tag}\"\n", reference(name)?)))
        .collect();
    if !lines.is_empty() {
        text.push_str(&format!("db:\n{}", lines.concat()));
    }
    if let Some(checks) = reference("trivy-checks") {
        text.push_str(&format!("misconfiguration:\n  checks-bundle-repository: \"{checks}:2\"\n"));
    }
    text.push_str("# The images that are scanned; Trivy goes on to the registry itself when a mirror fails.\nregistry:\n  mirrors:\n");
    for host in &site.hosts {
        let known_as = if host == HUB { "index.docker.io" } else { host };
        text.push_str(&format!("    {known_as}:\n      - \"{}/{host}\"\n", site.address));
    }
    text.push_str(&format!("scan:\n  offline: true\ntimeout: {TIMEOUT}\ninsecure: {}\n", !site.https));
    text
}
