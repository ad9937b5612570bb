//! (pure) containerd, and what runs on it: a `hosts.toml` for each upstream and for the proxy itself.

use super::merge::{CONTAINERD_HOSTS, Merge};
use super::plan::Plan;
use super::site::Site;

pub(super) fn plan(site: &Site) -> Plan {
    let (mut plan, address) = (Plan::default(), &site.address);
    let folder = format!("{CONTAINERD_HOSTS}/{address}");
    if let Some(authority) = &site.authority {
        plan.own(format!("{folder}/ca.crt"), authority);
    }
    plan.identity(site, &format!("{folder}/client"));
    for host in &site.hosts {
        plan.own(format!("{CONTAINERD_HOSTS}/{host}/hosts.toml"), &hosts_toml(site, host, &folder));
    }
    let own = host_table(site, &["pull", "resolve", "push"], &folder);
    let own = format!("{}\n{own}", last_resort(site, &folder));
    plan.own(format!("{folder}/hosts.toml"), &own);
    plan.merge("/etc/containerd/config.toml", Merge::ContainerdConfig);
    plan.step("systemctl restart containerd, if its config.toml changed; what is in certs.d counts at once");
    plan.step(format!("ctr does not read config.toml: ctr images pull --hosts-dir {CONTAINERD_HOSTS} IMAGE"));
    if let Some(user) = &site.user {
        plan.step(format!("a login is the puller's: ctr images pull --user {user} IMAGE, or a pull secret of the pod"));
    }
    plan
}

/// For the upstream `host`: every pull goes to the proxy, which learns by `?ns=` whose name it is. What the client trusts
/// and shows is in `folder`.
pub(super) fn hosts_toml(site: &Site, host: &str, folder: &str) -> String {
    let server = match site.fallback {
        true => format!("# Without `server`, what the proxy does not have is asked of {host} itself.\n"),
        false => {
            let server = last_resort(site, folder);
            format!("# The last resort is the proxy, too: nothing falls back to {host}.\n{server}")
        }
    };
    // Without `resolve`, tags would be looked up past the proxy.
    format!("{server}\n{}", host_table(site, &["pull", "resolve"], folder))
}

/// It is asked for what the host's table has no capability for, such as referrers, and after a refusal: without the
/// authority, a tag that is not there would end as a certificate that is not trusted.
fn last_resort(site: &Site, folder: &str) -> String {
    format!("server = \"{}\"\n{}", site.url(), tls(site, folder, ""))
}

fn host_table(site: &Site, capabilities: &[&str], folder: &str) -> String {
    format!("[host.\"{}\"]\n  capabilities = {capabilities:?}\n{}", site.url(), tls(site, folder, "  "))
}

/// What the client trusts and shows.
fn tls(site: &Site, folder: &str, indent: &str) -> String {
    let mut text = String::new();
    if site.authority.is_some() {
        text.push_str(&format!("{indent}ca = \"{folder}/ca.crt\"\n"));
    }
    if site.identity.is_some() {
        text.push_str(&format!("{indent}client = [[\"{folder}/client.cert\", \"{folder}/client.key\"]]\n"));
    }
    text
}
