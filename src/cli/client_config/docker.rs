//! (pure) docker: `certs.d`, and a mirror, which dockerd asks for Docker Hub's images only.

use super::containerd::hosts_toml;
use super::merge::Merge;
use super::plan::Plan;
use super::site::{HUB, Site};

/// `containerd_store`: dockerd keeps its images in containerd's store, and so reads `hosts.toml`, too. It does so for
/// Docker Hub as well: with a mirror alone, it looks for the mirror's authority among Docker Hub's.
pub(super) fn plan(site: &Site, containerd_store: bool) -> Plan {
    let (mut plan, address) = (Plan::default(), &site.address);
    let folder = format!("/etc/docker/certs.d/{address}");
    if let Some(authority) = &site.authority {
        plan.own(format!("{folder}/ca.crt"), authority);
    }
    plan.identity(site, &format!("{folder}/client"));
    let mirrors = if site.has(HUB) { vec![site.url()] } else { Vec::new() };
    let insecure = if site.https { Vec::new() } else { vec![address.clone()] };
    if !mirrors.is_empty() || !insecure.is_empty() {
        plan.merge("/etc/docker/daemon.json", Merge::DaemonJson { mirrors, insecure });
        plan.step("systemctl reload docker");
    }
    let others = site.hosts.iter().filter(|host| *host != HUB);
    if containerd_store {
        for host in &site.hosts {
            plan.own(format!("/etc/docker/certs.d/{host}/hosts.toml"), &hosts_toml(site, host, &folder));
        }
    } else if let Some(names) = others.cloned().reduce(|names, host| format!("{names}, {host}")) {
        plan.step(format!("docker has mirrors for {HUB} only: of {names}, pull {address}/HOST/NAME"));
    }
    if site.has(HUB) {
        mirror_notes(site, &mut plan, containerd_store);
    }
    if let Some(user) = &site.user {
        plan.step(format!("docker login -u {user} {address}"));
        if containerd_store {
            plan.warn(format!(
                "dockerd asks for other registries' names without the login: they must be open to anonymous pulls, or \
                 be pulled as {address}/HOST/NAME"
            ));
        } else if site.has(HUB) {
            plan.warn("dockerd asks a mirror without the login: Docker Hub's names must be open to anonymous pulls");
        }
    }
    plan
}

fn mirror_notes(site: &Site, plan: &mut Plan, containerd_store: bool) {
    if !containerd_store && !site.leads_to("library/alpine", HUB, "library/alpine") {
        plan.warn(
            "dockerd asks its mirror for `library/alpine` without saying of which registry, and no route takes that \
             here: add [route.\"**\"] with Docker Hub's upstream, or pull the full name",
        );
    }
    let which = if containerd_store && !site.fallback { "dockerd before version 29" } else { "dockerd" };
    plan.warn(format!(
        "{which} goes on to Docker Hub when its mirror has no answer, and says nothing; \
         `sealock client-config docker --check` tells"
    ));
    if let Some(name) = site.reference(HUB, "library/alpine") {
        plan.step(format!("docker pull alpine:3, or surely through here: docker pull {name}:3"));
    }
}
