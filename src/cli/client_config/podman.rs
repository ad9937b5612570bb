//! (pure) podman, buildah, skopeo and CRI-O: `registries.conf.d` puts the proxy's names in place of the upstreams'.

use super::plan::Plan;
use super::site::Site;

pub(super) fn plan(site: &Site, kind: &str) -> Plan {
    let (mut plan, address) = (Plan::default(), &site.address);
    if let Some(authority) = &site.authority {
        plan.own(format!("/etc/containers/certs.d/{address}/ca.crt"), authority);
    }
    plan.identity(site, &format!("/etc/containers/certs.d/{address}/client"));
    plan.own("/etc/containers/registries.conf.d/50-sealock.conf", &registries(site));
    if kind == "cri-o" {
        plan.step("systemctl reload crio");
    }
    if site.identity.is_some() && kind != "cri-o" {
        plan.step(format!(
            "users other than root cannot read that key: for each, ca.crt, client.cert and client.key go to \
             ~/.config/containers/certs.d/{address}, which is read in place of the folder in /etc"
        ));
    }
    if let Some(user) = &site.user {
        match kind {
            "cri-o" => plan.step(format!(
                "podman login -u {user} --authfile FILE {address}, and FILE as global_auth_file of crio.conf"
            )),
            _ => plan.step(format!("podman login -u {user} {address}")),
        }
    }
    plan
}

fn registries(site: &Site) -> String {
    let (mut text, address) = (String::new(), &site.address);
    if site.fallback {
        text.push_str("# What the proxy does not have is asked of the registry itself.\n");
    } else {
        text.push_str("# The proxy's names stand in place of the others: nothing falls back to the internet.\n");
    }
    let insecure = if site.https { "" } else { "insecure = true\n" };
    for host in &site.hosts {
        let there = format!("location = \"{address}/{host}\"\n{insecure}");
        text.push_str(&match site.fallback {
            true => {
                format!("\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n[[registry.mirror]]\n{there}")
            }
            false => format!("\n[[registry]]\nprefix = \"{host}\"\n{there}"),
        });
    }
    if !site.https {
        text.push_str(&format!("\n[[registry]]\nlocation = \"{address}\"\n{insecure}"));
    }
    text
}
