//! (pure) k3s: `registries.yaml`, from which it makes containerd's files at its start.

use super::plan::Plan;
use super::site::Site;

const FOLDER: &str = "/etc/rancher/k3s";

pub(super) fn plan(site: &Site) -> Plan {
    let (mut plan, address, url) = (Plan::default(), &site.address, site.url());
    let ca_file = format!("{FOLDER}/sealock-ca.crt");
    if let Some(authority) = &site.authority {
        plan.own(&ca_file, authority);
    }
    plan.identity(site, &format!("{FOLDER}/sealock-client"));
    let mut text = "mirrors:\n".to_owned();
    // Its own name, too: k3s would try https for it otherwise.
    for host in site.hosts.iter().chain([address]) {
        text.push_str(&format!("  \"{host}\":\n    endpoint:\n      - \"{url}\"\n"));
    }
    let mut tls = String::new();
    if site.authority.is_some() {
        tls.push_str(&format!("      ca_file: \"{ca_file}\"\n"));
    }
    if site.identity.is_some() {
        tls.push_str(&format!(
            "      cert_file: \"{FOLDER}/sealock-client.cert\"\n      key_file: \"{FOLDER}/sealock-client.key\"\n"
        ));
    }
    if !tls.is_empty() {
        text.push_str(&format!("configs:\n  \"{address}\":\n    tls:\n{tls}"));
    }
    plan.own(format!("{FOLDER}/registries.yaml"), &text);
    if !site.fallback {
        let text = "# What the proxy does not have is not asked of the registry itself (k3s 1.26.13, 1.27.10, 1.28.6, 1.29.1 and later).\n\
                    disable-default-registry-endpoint: true\n";
        plan.own(format!("{FOLDER}/config.yaml.d/50-sealock.yaml"), text);
    }
    plan.step("systemctl restart k3s (k3s-agent on agents); on RKE2, put the same under /etc/rancher/rke2");
    if let Some(user) = &site.user {
        plan.step(format!(
            "for the login, add to `configs:` of registries.yaml, and make it readable for root only: \
             \"{address}\": auth: {{ username: {user}, password: … }}; or use pull secrets"
        ));
    }
    plan
}
