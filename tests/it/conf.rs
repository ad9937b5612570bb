//! Settings: the reference is complete, the examples load, and what is wrong is named by file, line and key.

use std::fs;
use std::path::{Path, PathBuf};

use sealock::config::{LogSettings, PullSettings, RouteSettings, Settings};
use sealock::gate::{AuditSettings, GateSettings, WindowSettings};
use sealock::server::ServerSettings;
use sealock::upstream::UpstreamSettings;
use serde::Deserialize;
use serde::de::{self, Visitor};

/// The keys that a settings type takes, as its `Deserialize` names them.
fn keys<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    struct Asks<'a>(&'a mut &'static [&'static str]);
    impl<'de> de::Deserializer<'de> for Asks<'_> {
        type Error = de::value::Error;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("only its fields are asked for"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut fields: &'static [&'static str] = &[];
    assert!(T::deserialize(Asks(&mut fields)).is_err());
    assert!(!fields.is_empty());
    fields
}

/// The part of the reference under a heading, up to the next.
fn section<'a>(reference: &'a str, heading: &str) -> &'a str {
    let from = reference.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let rest = &reference[from + heading.len() + 2..];
    &rest[..rest.find("\n[").unwrap_or(rest.len())]
}

fn load(text: &str) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    fs::write(&file, text).unwrap();
    let name = format!("{}/", folder.path().display());
    Settings::load(&[file], []).map_err(|why| why.to_string().replace(&name, ""))
}

#[test]
fn the_reference_has_every_key_and_its_default() {
    // Invariant 20
    let reference = fs::read_to_string("conf/sealock.toml").unwrap();
    let sections = [
        ("[server]", keys::<ServerSettings>()),
        ("[gate]", keys::<GateSettings>()),
        ("[audit]", keys::<AuditSettings>()),
        ("[log]", keys::<LogSettings>()),
        ("[pull]", keys::<PullSettings>()),
        ("[upstream.site]", keys::<UpstreamSettings>()),
        ("[route.\"site/**\"]", keys::<RouteSettings>()),
    ];
    let named: Vec<&str> = sections.iter().map(|(heading, _)| heading.trim_matches(['[', ']'])).collect();
    for key in keys::<Settings>() {
        let there = *key == "presets" || named.iter().any(|name| name.split('.').next() == Some(key));
        assert!(there, "conf/sealock.toml lacks [{key}]");
    }
    for (heading, keys) in sections {
        let text = section(&reference, heading);
        for key in keys {
            let there = text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            assert!(there, "conf/sealock.toml lacks `{key}` under {heading}");
        }
    }
    for key in keys::<WindowSettings>() {
        assert!(section(&reference, "[gate]").contains(&format!("{key} = ")), "no window key `{key}`");
    }

    let settings = Settings::load(&[PathBuf::from("conf/sealock.toml")], []).unwrap();
    let default = Settings::default();
    assert_eq!(format!("{:?}", settings.server), format!("{:?}", default.server));
    assert_eq!(format!("{:?}", settings.gate), format!("{:?}", default.gate));
    assert_eq!(format!("{:?}", settings.audit), format!("{:?}", default.audit));
    assert_eq!(format!("{:?}", settings.log), format!("{:?}", default.log));
    assert_eq!(format!("{:?}", settings.pull), format!("{:?}", default.pull));
    let site = &settings.upstream["site"];
    assert_eq!(format!("{site:?}"), format!("{:?}", UpstreamSettings::for_host("registry.example")));
}

#[test]
fn the_examples_load() {
    for entry in fs::read_dir("conf/examples").unwrap() {
        let path = entry.unwrap().path();
        Settings::load(std::slice::from_ref(&path), []).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    }
}

#[test]
fn a_wrong_setting_is_one_line_with_file_line_and_key() {
    // Invariant 20
    let cases = [
        ("[server]\nlisten = [\"nonsense\"]", "site.toml:2: server.listen"),
        ("[server]\nliste = []", "site.toml:2: server.liste: unknown field `liste`"),
        ("[serve]\n", "site.toml:1: serve: unknown field `serve`"),
        ("presets = [\"gitlap\"]", "site.toml:1: presets: unknown variant `gitlap`"),
        ("\n\n[pull]\nfresh_for = 15", "site.toml:4: pull.fresh_for"),
        ("[pull]\nfresh_for = \"15\"", "write numbers and units"),
        ("[pull]\noffline_miss = 500", "site.toml:2: pull.offline_miss: write 404 or 503"),
        ("[pull]\nplatforms = [\"amd64\"]", "write one as `linux/amd64`"),
        ("[log]\nlevel = \"loud=very\"", "site.toml:2: log.level"),
        (
            "[gate]\nwindows = [{ when = \"often\", for = \"2h\" }]",
            "site.toml:2: gate.windows.0.when: `often` is not a cron expression",
        ),
        ("[gate]\nmode = \"ajar\"", "site.toml:2: gate.mode"),
        ("[upstream.x]\nusername = \"u\"", "site.toml:1: upstream.x: missing field `host`"),
        ("[upstream.x]\nhost = \"x.io\"\nusername = \"u\"", "site.toml:3: upstream.x.username: has no password"),
        ("[upstream.hub]\nendpoints = [\"http://mirror.lan\"]", "site.toml:2: upstream.hub.endpoints"),
        ("[upstream.x]\nhost = \"ghcr.io\"", "is already the host of"),
        ("[route.\"a/**\"]\nupstream = \"nope\"", "site.toml:2: route.\"a/**\".upstream: there is no [upstream.nope]"),
        ("[route.\"A/**\"]\nupstream = \"hub\"", "site.toml:1: route.\"A/**\": `A/**` is not a route"),
        ("[route.\"quay.io/**\"]\nupstream = \"hub\"", "site.toml:1: route.\"quay.io/**\": it overlaps `quay.io/**`"),
        ("[server]\ndata = \"x\"\ndata = \"y\"", "site.toml:3:"),
        ("[server\n", "site.toml:1:"),
    ];
    for (text, expected) in cases {
        let why = load(text).map(|_| ()).expect_err(text);
        assert!(why.contains(expected), "{text:?}\n  says      {why}\n  should be {expected}");
        assert!(!why.contains('\n'), "more than one line: {why}");
    }
}

#[test]
fn later_files_win_key_by_key_and_the_environment_wins_over_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let first = write("1.toml", "[server]\ndata = \"one\"\nidle_timeout = \"5s\"");
    let second = write("2.toml", "[server]\ndata = \"two\"\n[upstream.gitlab]\nendpoints = [\"http://127.0.0.1:1\"]");
    let environment = [
        ("SEALOCK_SERVER_STREAMS_MAX".to_owned(), "7".to_owned()),
        ("SEALOCK_UPSTREAM_MIRROR_GCR_CA_FILE".to_owned(), "ca.pem".to_owned()),
        ("PATH".to_owned(), "/bin".to_owned()),
    ];
    let settings = Settings::load(&[first.clone(), second], environment).unwrap();
    assert_eq!(settings.server.data, Path::new("two"));
    assert_eq!(settings.server.idle_timeout.0.as_secs(), 5);
    assert_eq!(settings.server.streams_max, 7);
    assert_eq!(settings.upstream["gitlab"].host, "registry.gitlab.com", "the preset's key stays");
    assert_eq!(settings.upstream["gitlab"].endpoints, ["http://127.0.0.1:1"]);
    assert_eq!(settings.upstream["mirror-gcr"].ca_file.as_deref(), Some(Path::new("ca.pem")));

    let unknown = [("SEALOCK_SERVR_DATA".to_owned(), "x".to_owned())];
    let why = Settings::load(&[], unknown).map(|_| ()).unwrap_err().to_string();
    assert!(why.contains("SEALOCK_SERVR_DATA"), "{why}");
    let wrong = [("SEALOCK_SERVER_IDLE_TIMEOUT".to_owned(), "soon".to_owned())];
    let why = Settings::load(&[first], wrong).map(|_| ()).unwrap_err().to_string();
    assert!(why.contains("environment variable SEALOCK_SERVER_IDLE_TIMEOUT"), "{why}");
}

#[test]
fn the_presets_lead_where_the_readme_says() {
    let routes = Settings::load(&[], []).unwrap().routes().unwrap();
    let cases = [
        ("security-products/semgrep", "registry.gitlab.com/security-products/semgrep"),
        ("gitlab-org/x/y", "registry.gitlab.com/gitlab-org/x/y"),
        ("trivy-db", "ghcr.io/aquasecurity/trivy-db"),
        ("trivy-java-db", "ghcr.io/aquasecurity/trivy-java-db"),
        ("trivy-checks", "ghcr.io/aquasecurity/trivy-checks"),
        ("aquasecurity/trivy", "ghcr.io/aquasecurity/trivy"),
        ("aquasec/trivy-db", "mirror.gcr.io/aquasec/trivy-db"),
        ("docker.io/alpine", "docker.io/library/alpine"),
        ("docker.io/library/alpine", "docker.io/library/alpine"),
        ("quay.io/podman/hello", "quay.io/podman/hello"),
        ("alpine", "alpine"),
    ];
    for (asked, expected) in cases {
        let target = routes.resolve(&asked.parse().unwrap(), None).unwrap();
        assert_eq!(target.repository.to_string(), expected);
    }
}
