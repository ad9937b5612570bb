//! (pure) containerd, and what runs on it: a `hosts.toml` for each upstream and for the proxy itself.

use super::merge::{CONTAINERD_HOSTS, Merge};
use super::plan::Plan;
use super::site::Site;

pub(super) fn plan(site: &Site) -> Plan {
    let (mut plan, address) = (Plan::default(), &site.address);
    let ca_file = format!("{CONTAINERD_HOSTS}/{address}/ca.crt");
    if let Some(authority) = &site.authority {
        plan.own(&ca_file, authority);
    }
    let ca_file = site.authority.as_ref().map(|_| ca_file.as_str());
    for host in &site.hosts {
        plan.own(format!("{CONTAINERD_HOSTS}/{host}/hosts.toml"), &hosts_toml(site, host, ca_file));
    }
    let own = host_table(site, &["pull", "resolve", "push"], ca_file);
    let own = format!("{}\n{own}", last_resort(site, ca_file));
    plan.own(format!("{CONTAINERD_HOSTS}/{address}/hosts.toml"), &own);
    plan.merge("/etc/containerd/config.toml", Merge::ContainerdConfig);
    plan.step("systemctl restart containerd, if its config.toml changed; what is in certs.d counts at once");
    plan.step(format!("ctr does not read config.toml: ctr images pull --hosts-dir {CONTAINERD_HOSTS} IMAGE"));
    if let Some(user) = &site.user {
        plan.step(format!("a login is the puller's: ctr images pull --user {user} IMAGE, or a pull secret of the pod"));
    }
    plan
}

/// For the upstream `host`: every pull goes to the proxy, which learns by `?ns=` whose name it is.
pub(super) fn hosts_toml(site: &Site, host: &str, ca_file: Option<&str>) -> String {
    let server = match site.fallback {
        true => format!("# Without `server`, what the proxy does not have is asked of {host} itself.\n"),
        false => {
            let server = last_resort(site, ca_file);
            format!("# The last resort is the proxy, too: nothing falls back to {host}.\n{server}")
        }
    };
    // Without `resolve`, tags would be looked up past the proxy.
    format!("{server}\n{}", host_table(site, &["pull", "resolve"], ca_file))
}

/// It is asked for what the host's table has no capability for, such as referrers, and after a refusal: without the
/// authority, a tag that is not there would end as a certificate that is not trusted.
fn last_resort(site: &Site, ca_file: Option<&str>) -> String {
    let ca = ca_file.map(|path| format!("ca = \"{path}\"\n")).unwrap_or_default();
    format!("server = \"{}\"\n{ca}", site.url())
}

fn host_table(site: &Site, capabilities: &[&str], ca_file: Option<&str>) -> String {
    let ca = ca_file.map(|path| format!("  ca = \"{path}\"\n")).unwrap_or_default();
    format!("[host.\"{}\"]\n  capabilities = {capabilities:?}\n{ca}", site.url())
}
