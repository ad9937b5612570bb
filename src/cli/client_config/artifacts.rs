//! (pure) oras and helm: no files of their own, but the flags that each command needs.

use super::plan::Plan;
use super::site::Site;

/// The copy of the authority that the commands name.
pub(super) const CA_FILE: &str = "/etc/sealock/client-ca.crt";

pub(super) fn oras(site: &Site) -> Plan {
    let (mut plan, address) = (with_authority(site), &site.address);
    let flag = site.trust_flag(CA_FILE);
    let pulled = site.reference("ghcr.io", "aquasecurity/trivy-db");
    let pulled = pulled.map_or_else(|| format!("{address}/NAME:TAG"), |name| format!("{name}:2"));
    let mut commands = String::new();
    if let Some(user) = &site.user {
        commands.push_str(&format!("oras login{flag} -u {user} {address}\n"));
    }
    commands.push_str(&format!(
        "oras pull{flag} {pulled}\noras copy{from} {address}/NAME:TAG --to-oci-layout FOLDER:TAG\n",
        from = flag.replace(" --", " --from-")
    ));
    plan.snippet("commands", commands);
    plan
}

pub(super) fn helm(site: &Site) -> Plan {
    let (mut plan, address) = (with_authority(site), &site.address);
    let flag = site.trust_flag(CA_FILE);
    let mut commands = String::new();
    if let Some(user) = &site.user {
        commands.push_str(&format!("helm registry login{flag} -u {user} {address}\n"));
    }
    commands.push_str(&format!(
        "helm pull{flag} oci://{address}/HOST/CHART --version VERSION\nhelm push{flag} CHART.tgz oci://{address}/charts\n"
    ));
    plan.snippet("commands (HOST: one of the upstreams, such as ghcr.io)", commands);
    plan
}

fn with_authority(site: &Site) -> Plan {
    let mut plan = Plan::default();
    if let Some(authority) = &site.authority {
        plan.own(CA_FILE, authority);
    }
    plan
}
