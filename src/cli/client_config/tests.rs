//! Each kind's plan against the file that shows it whole; `SEALOCK_SHOW=1 cargo test client_config` writes them anew.

use super::site::HUB;
use super::*;
use crate::config::Settings;

const PEM: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

pub(super) fn site(https: bool) -> Site {
    let settings = Settings::load(&[], []).unwrap();
    let mut hosts: Vec<String> = settings.upstream.values().map(|upstream| upstream.host.clone()).collect();
    hosts.sort();
    Site {
        address: "registry.site.internal:5000".to_owned(),
        https,
        authority: https.then(|| PEM.to_owned()),
        client_auth: ClientAuth::Off,
        identity: None,
        user: https.then(|| "ci".to_owned()),
        fallback: false,
        hosts,
        routes: settings.routes().unwrap(),
    }
}

/// Where clients show a certificate.
fn mutual() -> Site {
    let (certificate_file, key_file) = ("/root/node.crt".to_owned(), "/root/node.key".to_owned());
    let identity = Some(Identity { certificate: PEM.to_owned(), certificate_file, key_file });
    Site { client_auth: ClientAuth::Required, identity, user: None, ..site(true) }
}

#[test]
fn each_kind_gets_what_its_file_shows() {
    let kinds = Kind::value_variants().iter().map(|kind| kind.to_possible_value().unwrap().get_name().to_owned());
    let mut wrong = Vec::new();
    for (kind, name) in Kind::value_variants().iter().zip(kinds) {
        for (site, scheme) in [(site(true), "https"), (site(false), "http"), (mutual(), "mutual")] {
            let text = plan_of(*kind, &site, false).text();
            let path = PathBuf::from(format!("tests/fixtures/client-config/{name}.{scheme}.txt"));
            if std::env::var_os("SEALOCK_SHOW").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            if std::fs::read_to_string(&path).unwrap_or_default() != text {
                wrong.push(format!("{}:\n{text}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_falls_back_to_the_internet_unless_that_is_asked_for() {
    let asked = Site { fallback: true, ..site(true) };
    for kind in [Kind::Containerd, Kind::Podman, Kind::CriO, Kind::K3s] {
        let (strict, lax) = (plan_of(kind, &site(true), false).text(), plan_of(kind, &asked, false).text());
        assert!(strict != lax, "{kind:?}");
    }
    let strict = containerd::hosts_toml(&site(true), "ghcr.io", "/x");
    assert!(strict.contains("\nserver = \"https://registry.site.internal:5000\"\n"), "{strict}");
    assert!(!containerd::hosts_toml(&asked, "ghcr.io", "/x").contains("\nserver"));
    let lax = plan_of(Kind::Podman, &asked, false).text();
    assert!(
        lax.contains(
            "location = \"ghcr.io\"\n\n[[registry.mirror]]\nlocation = \"registry.site.internal:5000/ghcr.io\""
        )
    );
    assert!(!plan_of(Kind::K3s, &asked, false).text().contains("disable-default-registry-endpoint"));
}

#[test]
fn whatever_leads_here_from_hosts_toml_has_the_authority() {
    // containerd asks the top level's `server` for what the host's table has no capability for, and after each refusal.
    for kind in [Kind::Docker, Kind::Containerd] {
        let mut seen = 0;
        for file in plan_of(kind, &site(true), true).files.iter().filter(|file| file.path.ends_with("/hosts.toml")) {
            let toml: toml_edit::DocumentMut = file.content.fresh().parse().unwrap();
            let host = &toml["host"]["https://registry.site.internal:5000"];
            let authority =
                host["ca"].as_str().filter(|path| path.ends_with("/certs.d/registry.site.internal:5000/ca.crt"));
            assert!(authority.is_some() && authority == toml["ca"].as_str(), "{}: {toml}", file.path);
            seen += 1;
        }
        assert!(seen >= 5, "{kind:?}: {seen}");
    }
}

#[test]
fn docker_with_containerds_store_has_hosts_toml_for_docker_hub_too() {
    // It looks for the authority of a mirror in the folder of docker.io.
    let paths: Vec<_> = plan_of(Kind::Docker, &site(true), true).files.into_iter().map(|file| file.path).collect();
    assert!(paths.iter().any(|path| path == "/etc/docker/certs.d/docker.io/hosts.toml"), "{paths:?}");
    let text = plan_of(Kind::Docker, &site(true), true).text();
    assert!(text.contains("other registries' names without the login"), "{text}");
    assert!(text.contains("dockerd before version 29 goes on to Docker Hub"), "{text}");
}

#[test]
fn what_is_printed_for_a_program_is_what_it_parses() {
    for site in [site(true), site(false), mutual()] {
        for kind in Kind::value_variants() {
            for file in plan_of(*kind, &site, true).files {
                let text = file.content.fresh();
                if matches!(file.content, plan::Content::Key(_)) {
                    assert_eq!(text, "");
                    continue;
                }
                if file.path.ends_with(".toml") || file.path.ends_with(".conf") {
                    text.parse::<toml_edit::DocumentMut>().unwrap_or_else(|why| panic!("{}: {why}\n{text}", file.path));
                }
                if file.path.ends_with(".json") {
                    serde_json::from_str::<serde_json::Value>(&text).unwrap();
                }
                assert!(file.path.starts_with('/') && text.ends_with('\n'), "{}: {text}", file.path);
            }
        }
    }
}

#[test]
fn names_are_the_shortest_that_lead_there() {
    let site = site(true);
    let cases = [
        ("ghcr.io", "aquasecurity/trivy-db", Some("trivy-db")),
        ("registry.gitlab.com", "security-products/semgrep", Some("security-products/semgrep")),
        ("registry.gitlab.com", "group/app", Some("registry.gitlab.com/group/app")),
        (HUB, "library/alpine", Some("docker.io/library/alpine")),
        ("example.com", "a/b", None),
    ];
    for (host, repository, expected) in cases {
        let expected = expected.map(|name| format!("{}/{name}", site.address));
        assert_eq!(site.reference(host, repository), expected, "{host}/{repository}");
    }
    assert!(!site.leads_to("library/alpine", HUB, "library/alpine"), "without a route for it");
}

#[test]
fn an_address_is_a_host_and_a_port_and_nothing_that_breaks_a_file() {
    for good in ["registry.site.internal:5000", "10.0.0.5:5000", "[fd00::1]:5000", "registry.site.internal"] {
        assert_eq!(host_and_port(good).as_deref(), Some(good));
    }
    assert_eq!(host_and_port("Registry:5000").as_deref(), Some("registry:5000"));
    for bad in ["", "https://a:5000", "a:5000/x", "a:0", "a:x", "a:99999", "u@a:1", "a b", "a\"b", "[x\"]:1", ":5000"] {
        assert_eq!(host_and_port(bad), None, "{bad}");
    }
    for bad in ["", "a b", "a\"", "$(x)", "-u", "a\nb"] {
        assert!(!is_plain(bad), "{bad}");
    }
}

#[test]
fn kinds_that_share_a_file_want_the_same_in_it() {
    for site in [site(true), site(false), mutual()] {
        let mut wanted = std::collections::HashMap::new();
        for kind in Kind::value_variants() {
            for file in plan_of(*kind, &site, false).files {
                let text = file.content.fresh();
                let before = wanted.entry(file.path.clone()).or_insert_with(|| text.clone());
                assert_eq!(*before, text, "{}", file.path);
            }
        }
    }
}
