//! Settings: the reference is complete, the examples load, and what is wrong is named by file, line and key.

use std::fs;
use std::path::{Path, PathBuf};

use sealock::access::{AccessSettings, IssuerSettings, RuleSettings};
use sealock::config::{LogSettings, PullSettings, RouteSettings, Settings};
use sealock::gate::{AuditSettings, GateSettings, WindowSettings};
use sealock::keep::{KeepSettings, RetainRule};
use sealock::push::PushSettings;
use sealock::server::ServerSettings;
use sealock::server::admin::AdminSettings;
use sealock::tls::{PairSettings, TlsSettings};
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
        ("[tls]", keys::<TlsSettings>()),
        ("[admin]", keys::<AdminSettings>()),
        ("[gate]", keys::<GateSettings>()),
        ("[audit]", keys::<AuditSettings>()),
        ("[log]", keys::<LogSettings>()),
        ("[pull]", keys::<PullSettings>()),
        ("[push]", keys::<PushSettings>()),
        ("[keep]", keys::<KeepSettings>()),
        ("[access]", keys::<AccessSettings>()),
        ("# [[access.rule]]", keys::<RuleSettings>()),
        ("# [access.issuer.gitlab]", keys::<IssuerSettings>()),
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
            if ["groups", "rule", "issuer"].contains(key) {
                assert!(reference.contains(&format!("[access.{key}")), "conf/sealock.toml lacks [access.{key}]");
                continue;
            }
            let there = text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            assert!(there, "conf/sealock.toml lacks `{key}` under {heading}");
        }
    }
    for key in keys::<RetainRule>() {
        assert!(reference.contains(&format!("\n# {key} = ")), "conf/sealock.toml lacks `{key}` of [keep.retain]");
    }
    for key in keys::<WindowSettings>() {
        assert!(section(&reference, "[gate]").contains(&format!("{key} = ")), "no window key `{key}`");
    }

    for key in keys::<PairSettings>() {
        assert!(section(&reference, "[tls]").contains(&format!("{key} = ")), "no key `{key}` in `also`");
    }

    let settings = Settings::load(&[PathBuf::from("conf/sealock.toml")], []).unwrap();
    let default = Settings::default();
    assert_eq!(format!("{:?}", settings.server), format!("{:?}", default.server));
    assert_eq!(format!("{:?}", settings.tls), format!("{:?}", default.tls));
    assert_eq!(settings.admin, default.admin);
    assert_eq!(format!("{:?}", settings.gate), format!("{:?}", default.gate));
    assert_eq!(format!("{:?}", settings.audit), format!("{:?}", default.audit));
    assert_eq!(format!("{:?}", settings.log), format!("{:?}", default.log));
    assert_eq!(format!("{:?}", settings.pull), format!("{:?}", default.pull));
    assert_eq!(format!("{:?}", settings.push), format!("{:?}", default.push));
    assert_eq!(settings.keep, default.keep);
    assert_eq!(settings.access, default.access);
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
        ("[server]\nlisten = [\"localhost:5000\"]", "write an IP address and a port, such as 127.0.0.1:5000"),
        ("[server]\nlisten_plain = [\":5000\"]", "0.0.0.0:5000 for every address"),
        ("[server]\nlisten = [\"http://127.0.0.1:5000\"]", "without a scheme"),
        ("[server]\nliste = []", "site.toml:2: server.liste: unknown field `liste`"),
        ("[serve]\n", "site.toml:1: serve: unknown field `serve`"),
        ("presets = [\"gitlap\"]", "site.toml:1: presets: unknown variant `gitlap`"),
        ("\n\n[pull]\nfresh_for = 15", "site.toml:4: pull.fresh_for"),
        ("[pull]\nfresh_for = \"15\"", "write numbers and units"),
        ("[pull]\noffline_miss = 500", "site.toml:2: pull.offline_miss: write 404 or 503"),
        ("[pull]\nplatforms = [\"amd64\"]", "write one as `linux/amd64`"),
        ("[log]\nlevel = \"loud=very\"", "site.toml:2: log.level"),
        ("[log]\nlevel = \"loud\"", "site.toml:2: log.level: `loud` is not a level"),
        ("[server]\ndata = \"\"", "site.toml:2: server.data: write the folder"),
        (
            "[gate]\nwindows = [{ when = \"often\", for = \"2h\" }]",
            "site.toml:2: gate.windows.0.when: `often` is not a cron expression",
        ),
        ("[tls]\nkey = \"a.key\"", "site.toml:2: tls.key: has no `certificate` beside it"),
        (
            "[tls]\ncertificate = \"a\"\nclient_auth = \"maybe\"",
            "site.toml:3: tls.client_auth: unknown variant `maybe`",
        ),
        ("[gate]\nmode = \"ajar\"", "site.toml:2: gate.mode"),
        (
            "[keep.retain.\"team.one/**\"]\nnewest = 0",
            "site.toml:2: keep.retain.\"team.one/**\".newest: write 1 or more",
        ),
        ("[keep.retain.\"team*\"]\nnewest = 1", "site.toml:1: keep.retain.\"team*\": write a name as `sealock ls`"),
        ("[keep.retain.x]\nnewest = 1\nby = \"age\"", "site.toml:3: keep.retain.x.by: unknown variant `age`"),
        ("[keep.retain.x]\nby = \"moved\"", "site.toml:1: keep.retain.x: missing field `newest`"),
        ("[keep]\nmax_size = 5", "site.toml:2: keep.max_size"),
        ("[keep]\nhistory = 0", "site.toml:2: keep.history: write a number from 1 to 32"),
        ("[keep]\ncollect_every = \"5s\"", "site.toml:2: keep.collect_every: write `1m` or more"),
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
fn every_section_refuses_keys_that_it_does_not_know() {
    // Invariant 20
    let upstream = "[upstream.x]\nhost = \"x.io\"";
    let route = "[route.x]\nupstream = \"hub\"";
    for section in [
        "[server]",
        "[tls]",
        "[[tls.also]]\ncertificate = \"a\"",
        "[gate]",
        "[audit]",
        "[log]",
        "[pull]",
        "[push]",
        "[admin]",
        "[access]",
        upstream,
        route,
    ] {
        let why = load(&format!("{section}\nnonsense = 1")).map(|_| ()).expect_err(section);
        assert!(why.contains("unknown field `nonsense`"), "{section}: {why}");
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
fn a_value_of_another_type_is_told_what_to_write() {
    // Invariant 20
    for (setting, words) in [
        (
            "listen = '0.0.0.0:5000'",
            "server.listen: invalid type: string \"0.0.0.0:5000\", expected a list in brackets",
        ),
        ("listen = [5000]", "server.listen.0: invalid type: integer `5000`, expected text in quotes"),
        ("data = ['a']", "server.data: invalid type: a list, expected a path in quotes"),
        ("connections_max = 'a'", "expected a whole number, without quotes"),
        ("idle_timeout = 5", "expected a number with a unit, in quotes, such as \"15m\""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site.toml");
        std::fs::write(&file, format!("[server]\n{setting}\n")).unwrap();
        let why = Settings::load(&[file], []).map(|_| ()).unwrap_err().to_string();
        assert!(why.contains("site.toml:2: ") && why.contains(words), "{why}");
    }
}

/// With variables of the environment, over no file.
fn load_with(variables: &[(&str, &str)]) -> Result<Settings, String> {
    let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Settings::load(&[], variables).map_err(|why| why.to_string())
}

#[test]
fn a_variable_is_read_as_what_its_setting_takes() {
    let settings = load_with(&[
        ("SEALOCK_UPSTREAM_HUB_USERNAME", "123"),
        ("SEALOCK_UPSTREAM_HUB_PASSWORD_ENV", "true"),
        ("SEALOCK_SERVER_DATA", "2026"),
        ("SEALOCK_SERVER_LISTEN", "127.0.0.1:5001"),
        ("SEALOCK_SERVER_STREAMS_MAX", "7"),
        ("SEALOCK_PULL_PREFETCH", "false"),
        ("SEALOCK_PULL_OFFLINE_MISS", "503"),
        ("SEALOCK_PULL_PLATFORMS", "linux/amd64, linux/arm64"),
        ("SEALOCK_UPSTREAM_QUAY_TOKEN_REALMS", ""),
        ("SEALOCK_UPSTREAM_QUAY_ENDPOINTS", "https://a.lan,https://b.lan:5000"),
    ])
    .unwrap();
    assert_eq!(settings.upstream["hub"].username.as_deref(), Some("123"));
    assert_eq!(settings.upstream["hub"].password_env.as_deref(), Some("true"));
    assert_eq!(settings.server.data, Path::new("2026"));
    assert_eq!(settings.server.listen, ["127.0.0.1:5001".parse().unwrap()]);
    assert_eq!((settings.server.streams_max, settings.pull.prefetch, settings.pull.offline_miss), (7, false, 503));
    assert_eq!(settings.pull.platforms.len(), 2);
    assert_eq!(settings.upstream["quay"].token_realms, Vec::<String>::new());
    assert_eq!(settings.upstream["quay"].endpoints, ["https://a.lan", "https://b.lan:5000"]);
}

#[test]
fn a_wrong_variable_is_named_and_told_what_its_setting_takes() {
    // Invariant 20
    let cases = [
        ("SEALOCK_SERVER_LISTEN", "127.0.0.1:1,nonsense", "server.listen.1: `nonsense` is not an address; write"),
        ("SEALOCK_SERVER_STREAMS_MAX", "many", "server.streams_max: invalid type: string \"many\""),
        ("SEALOCK_SERVER_STREAMS_MAX", "-1", "server.streams_max: invalid value: integer `-1`"),
        ("SEALOCK_PULL_PREFETCH", "1", "pull.prefetch: invalid type"),
        ("SEALOCK_PULL_FRESH_FOR", "15", "pull.fresh_for: `15` is not a duration; write numbers and units"),
        ("SEALOCK_GATE_MODE", "ajar", "gate.mode: unknown variant `ajar`"),
        ("SEALOCK_SERVER_LISTE", "127.0.0.1:1", "server.liste: unknown field `liste`"),
    ];
    for (name, text, expected) in cases {
        let why = load_with(&[(name, text)]).map(|_| ()).expect_err(name);
        let expected = format!("environment variable {name}: {expected}");
        assert!(why.starts_with(&expected), "{name}={text}\n  says      {why}\n  should be {expected}");
    }
}

#[test]
fn who_serves_is_told_which_file_of_an_upstream_is_of_no_use() {
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let secret = "canary-4711-secret";
    fs::write(path("empty"), "\n").unwrap();
    fs::write(path("odd"), [b"\xff", secret.as_bytes()].concat()).unwrap();
    fs::write(path("text"), secret).unwrap();
    let cases = [
        ("username = \"u\"", "password_file", "none", "cannot read `none`: No such file"),
        ("username = \"u\"", "password_file", "", "cannot read ``: "),
        ("username = \"u\"", "password_file", "empty", "the password is empty"),
        ("username = \"u\"", "password_file", "odd", "`odd` is not UTF-8"),
        ("username = \"u\"", "password_env", "SEALOCK_TEST_UNSET", "the variable `"),
        ("", "ca_file", "none", "cannot read the certificates in `none`: No such file"),
        ("", "ca_file", "text", "`text` holds no certificate; it must hold"),
        ("", "docker_config", "none", "cannot read `none`: No such file"),
        ("", "docker_config", "text", "`text` is not a JSON object"),
    ];
    for (more, key, name, expected) in cases {
        let site = path("site.toml");
        fs::write(&site, format!("[upstream.x]\nhost = \"x.io\"\n{more}\n{key} = {:?}\n", path(name))).unwrap();
        let files = [site];
        Settings::load(&files, []).expect("the other commands need no such file");
        let why = Settings::load_to_serve(&files, [], false).map(|_| ()).expect_err(expected).to_string();
        let told = why.replace(&format!("{}/", folder.path().display()), "");
        let expected = format!("site.toml:4: upstream.x.{key}: {expected}");
        assert!(told.starts_with(&expected), "says      {told}\n  should be {expected}");
        assert!(!told.contains('\n') && !told.contains(secret), "{told}");
    }
}

#[test]
fn a_password_that_comes_through_a_pipe_is_left_for_the_start_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let (site, pipe) = (folder.path().join("site.toml"), folder.path().join("pipe"));
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let text = format!("[upstream.x]\nhost = \"x.io\"\nusername = \"u\"\npassword_file = {pipe:?}\n");
    fs::write(&site, text).unwrap();
    Settings::load_to_serve(&[site], [], false).unwrap();
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
