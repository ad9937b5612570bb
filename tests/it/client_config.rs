//! `sealock client-config`: what it prints, what it leaves alone, and whether a pull came through here.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::cli::{done, serve};
use crate::support::far::FarRegistry;
use crate::support::site::Sealock;
use crate::support::tls::Authority;

fn client_config(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
    command.current_dir(folder).env_clear().arg("client-config").args(arguments).output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The authority of a far side, and its private key beside it.
fn authority(folder: &Path, far: &FarRegistry) -> String {
    let path = folder.join("ca.crt");
    let key = "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----\n";
    fs::write(&path, format!("{}{key}", far.ca_pem())).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn what_is_printed_goes_by_the_settings_and_is_written_as_printed() {
    let (folder, far) = (tempfile::tempdir().unwrap(), FarRegistry::start_tls().await);
    let (ca, root) = (authority(folder.path(), &far), folder.path().join("root"));
    fs::create_dir(&root).unwrap();
    fs::write(folder.path().join("site.toml"), "[upstream.corp]\nhost = \"registry.corp.example\"\n").unwrap();
    let (address, root_text) = ("registry.site.internal:5000", root.display().to_string());
    let common = ["-c", "site.toml", "containerd", "--address", address, "--ca-file", &ca, "--user", "ci"];
    let printed = words(&client_config(folder.path(), &common));
    for expected in
        ["/etc/containerd/certs.d/registry.corp.example/hosts.toml", "server = \"https://registry.site.internal:5000\""]
    {
        assert!(printed.contains(expected), "{printed}");
    }
    // Invariant 12
    assert!(!printed.contains("PRIVATE") && !printed.contains("Y2FuYXJ5"), "a key went along");

    let write = |more: &[&str]| client_config(folder.path(), &[&common[..], &["--root", &root_text], more].concat());
    let dry = write(&["--dry-run"]);
    assert!(
        dry.status.success() && words(&dry).contains("+server = \"https://registry.site.internal:5000\""),
        "{dry:?}"
    );
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let written = write(&["--write", "--json"]);
    assert!(written.status.success(), "{written:?}");
    let report: Value = serde_json::from_slice(&written.stdout).unwrap();
    for file in report["files"].as_array().unwrap() {
        assert_eq!(file["outcome"], "created");
        let path = file["path"].as_str().unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(printed.contains(&text), "{path}");
    }
    assert!(words(&write(&["--write"])).lines().filter(|line| line.ends_with(": as it should be")).count() >= 7);
}

#[test]
fn files_of_others_are_told_of_and_left() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("etc/containers/registries.conf.d/50-sealock.conf");
    fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    fs::write(&theirs, "unqualified-search-registries = []\n").unwrap();
    let root = folder.path().display().to_string();
    let write = |more: &[&str]| client_config(folder.path(), &[&["podman", "--write", "--root", &root], more].concat());
    let left = write(&[]);
    assert_eq!(left.status.code(), Some(3), "{left:?}");
    assert!(words(&left).contains("left as it is: sealock did not write it"), "{left:?}");
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "unqualified-search-registries = []\n");
    assert!(write(&["--force"]).status.success());
    assert_eq!(
        fs::read_to_string(theirs.with_extension("conf.before-sealock")).unwrap(),
        "unqualified-search-registries = []\n"
    );
}

#[test]
fn what_cannot_be_right_is_told_with_what_to_write() {
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.toml"), "[server]\nlisten = [\"[::]:5000\"]\n").unwrap();
    let cases = [
        (&["-c", "all.toml", "docker"][..], "--address registry.site.internal:5000"),
        (&["docker", "--address", "https://registry:5000"], "write a host and a port"),
        (&["docker", "--ca-file", "none.crt"], "cannot read the certificates in `none.crt`"),
        (&["docker", "--user", "a b"], "use letters, digits"),
        (&["docker", "--scheme", "http", "--ca-file", "ca.crt"], "nothing to check on plain HTTP"),
        (&["docker", "--scheme", "http", "--client-cert", "a", "--client-key", "b"], "nothing to check on plain HTTP"),
        (&["docker", "--client-cert", "none.crt"], "--client-key"),
        (&["docker", "--client-cert", "a b.crt", "--client-key", "b"], "rename it"),
        (&["harbour"], "invalid value 'harbour'"),
        (&["docker", "--check"], "no sealock serves `data`"),
    ];
    for (arguments, expected) in cases {
        let output = client_config(folder.path(), arguments);
        assert!(!output.status.success() && words(&output).contains(expected), "{arguments:?}: {}", words(&output));
    }
}

/// A stand-in for podman in a folder of its own, which is all that PATH then has.
fn client_that(folder: &Path, script: &str) {
    stand_in(folder, "podman", script);
}

fn stand_in(folder: &Path, name: &str, script: &str) {
    let path = folder.join("bin").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Asks the server for `path`, and fails unless it says 200.
fn asking(address: std::net::SocketAddr, path: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/{}/{}\nprintf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\nUser-Agent: stand-in/1\\r\\nConnection: close\\r\\n\\r\\n' >&3\n\
         IFS= read -r first <&3\necho \"$first\"\n[[ $first == *\" 200 \"* ]]",
        address.ip(),
        address.port()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_went_past_here_is_told_from_one_that_came_through() {
    let far = FarRegistry::start().await;
    far.put_image("team/app", "1", &[b"layer"]);
    let site = Sealock::setup().upstream("far", "far.test", &far).gate_open().start().await;
    assert_eq!(site.manifest("far.test/team/app", "1").await.status, 200);
    let (folder, data) = (tempfile::tempdir().unwrap(), site.data());
    let check = async |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
        command.current_dir(folder.path()).env_clear().env("PATH", folder.path().join("bin"));
        command.arg("--data").arg(&data).args(["client-config", "podman", "--check"]).args(more);
        // The server runs in this process: it must not wait for the command.
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    fs::create_dir(folder.path().join("bin")).unwrap();
    let nobody = check(&["--image", "far.test/team/app:1"]).await;
    assert!(words(&nobody).contains("there is no podman, nor buildah, nor skopeo here"), "{nobody:?}");

    client_that(folder.path(), &asking(site.address, "/v2/far.test/team/app/manifests/1"));
    let through = check(&["--image", "far.test/team/app:1"]).await;
    assert!(through.status.success(), "{through:?}");
    assert!(words(&through).contains("far.test/team/app:1 came through here"), "{through:?}");
    assert!(words(&through).contains("by stand-in/1"), "{through:?}");

    client_that(folder.path(), "exit 0");
    let past = check(&["--image", "far.test/team/app:1"]).await;
    assert_eq!(past.status.code(), Some(1));
    assert!(words(&past).contains("was pulled, but not through here"), "{past:?}");

    client_that(folder.path(), "echo 'no such host' >&2; exit 125");
    let away = check(&["--image", "far.test/team/app:1"]).await;
    assert!(words(&away).contains("no such host") && words(&away).contains("the server was not asked"), "{away:?}");

    client_that(folder.path(), &asking(site.address, "/v2/far.test/team/app/manifests/none"));
    let refused = check(&["--image", "far.test/team/app:none", "--json"]).await;
    assert_eq!(refused.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((&report["pulled"], &report["through_here"]), (&Value::Bool(false), &Value::Bool(false)));
    assert_eq!(report["seen"][0]["status"], 404);
    // Another name's requests prove nothing.
    client_that(folder.path(), &asking(site.address, "/v2/far.test/team/app/manifests/1"));
    assert!(words(&check(&["--image", "far.test/team/other:1"]).await).contains("not through here"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_that_is_checked_goes_to_the_proxy_alone_and_into_no_argument() {
    // Invariant 12
    let site = Sealock::setup().start().await;
    let (folder, data) = (tempfile::tempdir().unwrap(), site.data());
    let hosts = folder.path().join("root/etc/containerd/certs.d/ghcr.io");
    fs::create_dir_all(&hosts).unwrap();
    let ours = "[host.\"https://proxy.test:5000\"]\n  capabilities = [\"pull\"]\n";
    let told = "for word in \"$@\"; do echo \"told $word\"; [[ $last == --hosts-dir ]] && from=$word; last=$word; done\n\
                while IFS= read -r line; do echo \"line $line\"; done <\"$from/ghcr.io/hosts.toml\"\nexit 1";
    stand_in(folder.path(), "ctr", told);
    stand_in(
        folder.path(),
        "crictl",
        "for word in \"$@\"; do echo \"told $word\"; done; echo \"knows $CRICTL_CREDS\"; exit 1",
    );
    let check = async |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
        command.current_dir(folder.path()).env_clear().env("PATH", folder.path().join("bin"));
        command.arg("--data").arg(&data).arg("client-config").args(more);
        command.args(["--check", "--address", "proxy.test:5000", "--scheme", "https", "--image", "ghcr.io/team/app:1"]);
        command.args(["--user", "ci"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"ebb: 1\n").unwrap();
        // The server runs in this process: it must not wait for the command.
        words(&tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap())
    };
    // `ci:ebb: 1`
    let basic = "\"Basic Y2k6ZWJiOiAx\"";
    for (server, logins) in [("https://proxy.test:5000", 2), ("https://ghcr.io", 1)] {
        fs::write(hosts.join("hosts.toml"), format!("server = \"{server}\"\n{ours}")).unwrap();
        let said = check(&["containerd", "--root", "root"]).await;
        assert_eq!(said.matches(basic).count(), logins, "{said}");
        assert!(said.contains("told ghcr.io/team/app:1") && !said.contains("ebb"), "{said}");
    }
    for kind in ["containerd", "cri-o"] {
        let said = check(&[kind]).await;
        assert!(said.contains("knows ci:ebb: 1"), "{said}");
        assert_eq!(said.matches("ebb").count(), 1, "{said}");
    }
    let said = check(&["containerd", "--root", "elsewhere"]).await;
    assert!(said.contains("told elsewhere/etc/containerd/certs.d") && !said.contains("ebb"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_is_told_with_what_to_do() {
    // Invariant 20
    let site = Sealock::setup().start().await;
    let (folder, data) = (tempfile::tempdir().unwrap(), site.data());
    let untrusted =
        |host| format!("echo 'Get \"https://{host}/v2/\": x509: certificate signed by unknown authority'; exit 1");
    let cases = [
        (asking(site.address, "/v2/far.test/team/app/manifests/1"), "it is not kept under this name"),
        (asking(site.address, "/v2/far.test/team/app/tags/list"), "it is not kept under this name"),
        (untrusted("proxy.test:5000"), "does not trust the certificate of proxy.test:5000"),
        (untrusted("registry-1.docker.io"), "it did not even ask"),
        ("exit 1".to_owned(), "it did not even ask"),
    ];
    for (script, expected) in cases {
        client_that(folder.path(), &script);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
        command.current_dir(folder.path()).env_clear().env("PATH", folder.path().join("bin"));
        command.arg("--data").arg(&data).args(["client-config", "podman", "--check", "--image", "far.test/team/app:1"]);
        command.args(["--address", "proxy.test:5000"]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(words(&output).contains(expected), "{expected}: {}", words(&output));
    }
}

const NAME: &str = "registry.site.internal:5000";
const PLAIN: &str = "note: plain HTTP: whoever is on the way reads passwords and changes images";

#[test]
fn plain_http_is_told_to_others_only_where_it_was_said_and_never_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("open.toml"), "[server]\nlisten = [\"0.0.0.0:5000\"]\n").unwrap();
    fs::write(at.join("meant.toml"), "[server]\nlisten_plain = [\"0.0.0.0:5000\"]\nlisten = []\n").unwrap();
    for settings in [&[][..], &["-c", "open.toml"]] {
        for kind in ["docker", "podman", "containerd", "k3s", "trivy", "gitlab", "oras"] {
            let refused = client_config(at, &[settings, &[kind, "--address", NAME]].concat());
            assert_eq!(refused.status.code(), Some(2), "{refused:?}");
            let words = words(&refused);
            for expected in ["--scheme http", "--ca-file", "[tls]"] {
                assert!(words.contains(expected) && refused.stdout.is_empty(), "{words}");
            }
        }
    }
    for arguments in [&["--scheme", "http"][..], &["-c", "meant.toml"]] {
        for kind in ["docker", "podman", "containerd", "k3s", "trivy", "gitlab", "oras"] {
            let output = client_config(at, &[&[kind, "--address", NAME], arguments].concat());
            assert!(output.status.success() && words(&output).contains(PLAIN), "{kind} {arguments:?}: {output:?}");
        }
    }
    let here = client_config(at, &["docker"]);
    assert!(words(&here).contains("http://127.0.0.1:5000") && !words(&here).contains(PLAIN), "{here:?}");
    // One that runs and speaks it is as good as a setting.
    let serving = serve(at, &[]);
    let port = serving.banner[0].rsplit(':').next().unwrap().to_owned();
    let output = client_config(at, &["docker", "--address", &format!("registry.site.internal:{port}")]);
    assert!(output.status.success() && words(&output).contains(PLAIN), "{output:?}");
}

#[test]
fn the_servers_own_certificate_counts_also_where_only_its_command_line_names_it() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = folder.path();
    done(at, &["certs", "init", "--host", "registry.site.internal", "--ip", "10.0.0.5"]);
    let serving = serve(at, &["--certificate", "certs/server.crt"]);
    let port = serving.banner[0].rsplit(':').next().unwrap().to_owned();
    let (address, root) = (format!("registry.site.internal:{port}"), elsewhere.path().display().to_string());
    let written = client_config(at, &["docker", "--address", &address, "--write", "--root", &root]);
    assert!(written.status.success() && !words(&written).contains(PLAIN), "{written:?}");
    let docker = elsewhere.path().join("etc/docker");
    let trusted = fs::read_to_string(docker.join(format!("certs.d/{address}/ca.crt"))).unwrap();
    assert!(trusted.ends_with(&fs::read_to_string(at.join("certs/ca.crt")).unwrap()), "{trusted}");
    let json: Value = serde_json::from_str(&fs::read_to_string(docker.join("daemon.json")).unwrap()).unwrap();
    assert_eq!(json, serde_json::json!({ "registry-mirrors": [format!("https://{address}")] }));
    // From another folder, and without a name: it is the certificate's.
    let data = at.join("data").display().to_string();
    let printed = client_config(elsewhere.path(), &["--data", &data, "podman"]);
    assert!(words(&printed).contains(&format!("certs.d/{address}/ca.crt")), "{printed:?}");
    drop(serving);
    let refused = client_config(at, &["docker", "--address", &address]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    // As a server that takes no orders from this user, which root cannot have: it may well speak TLS.
    fs::remove_file(at.join("data/sealock.sock")).unwrap();
    std::os::unix::fs::symlink("sealock.sock", at.join("data/sealock.sock")).unwrap();
    for more in [&[][..], &["--address", &address]] {
        let refused = client_config(at, &[&["docker"], more].concat());
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(words(&refused).contains("sealock.sock") && words(&refused).contains("--scheme"), "{refused:?}");
    }
    let said = client_config(at, &["docker", "--scheme", "http"]);
    assert!(said.status.success(), "{said:?}");
}

#[test]
fn an_authority_that_cannot_be_read_or_is_none_is_never_left_out_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    done(at, &["certs", "init", "--host", "registry.site.internal"]);
    fs::write(at.join("site.toml"), "[tls]\ncertificate = \"certs/server.crt\"\n").unwrap();
    let trusting = |more: &[&str]| client_config(at, &[&["-c", "site.toml", "podman"], more].concat());
    assert!(words(&trusting(&[])).contains("certs.d/registry.site.internal:5000/ca.crt"));

    let leaf = trusting(&["--ca-file", "certs/server.crt"]);
    assert_eq!(leaf.status.code(), Some(2), "{leaf:?}");
    assert!(words(&leaf).contains("`certs/server.crt` is no authority") && words(&leaf).contains("ca.crt"), "{leaf:?}");
    let alone = rcgen::generate_simple_self_signed(["registry.site.internal".to_owned()]).unwrap();
    fs::write(at.join("alone.crt"), alone.cert.pem()).unwrap();
    let other = trusting(&["--ca-file", "alone.crt"]);
    assert_eq!(other.status.code(), Some(2), "the server shows another: {other:?}");
    fs::write(at.join("alone.toml"), "[tls]\ncertificate = \"alone.crt\"\n").unwrap();
    let own = client_config(at, &["-c", "alone.toml", "podman", "--ca-file", "alone.crt"]);
    assert!(own.status.success(), "{own:?}");

    // As a folder that may not be entered, which root cannot have.
    fs::rename(at.join("certs/ca.crt"), at.join("ca.crt")).unwrap();
    std::os::unix::fs::symlink("ca.crt", at.join("certs/ca.crt")).unwrap();
    let unread = trusting(&["--address", NAME]);
    assert_eq!(unread.status.code(), Some(1), "{unread:?}");
    assert!(words(&unread).contains("certs/ca.crt") && words(&unread).contains("--ca-file"), "{unread:?}");
    assert!(trusting(&["--address", NAME, "--ca-file", "ca.crt"]).status.success());
    fs::rename(at.join("certs"), at.join("gone")).unwrap();
    for more in [&[][..], &["--address", NAME]] {
        let unread = trusting(more);
        assert_eq!(unread.status.code(), Some(1), "{unread:?}");
        assert!(words(&unread).contains("certs/server.crt") && words(&unread).contains("--ca-file"), "{unread:?}");
    }
}

#[test]
fn what_goes_into_no_file_is_printed_and_that_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    for more in [&["--write"][..], &["--dry-run"]] {
        let done = client_config(folder.path(), &[&["gitlab"], more].concat());
        assert!(done.status.success(), "{done:?}");
        for expected in ["SECURE_ANALYZERS_PREFIX", "note: no file of this machine"] {
            assert!(words(&done).contains(expected), "{done:?}");
        }
    }
    let report = client_config(folder.path(), &["gitlab", "--write", "--json"]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert!(report["snippets"][0]["text"].as_str().unwrap().contains("SECURE_ANALYZERS_PREFIX"), "{report}");
}

#[test]
fn a_clients_certificate_goes_where_each_kind_takes_it_and_its_key_is_never_shown() {
    // Invariant 12
    let folder = tempfile::tempdir().unwrap();
    let (at, root) = (folder.path(), folder.path().join("root").display().to_string());
    fs::create_dir(at.join("root")).unwrap();
    let company = Authority::new("company");
    let (client, other) = (company.issue(&["node"]), company.issue(&["other"]));
    client.write(at, "client");
    other.write(at, "other");
    fs::write(at.join("company.crt"), &company.pem).unwrap();
    done(at, &["certs", "init", "--host", "registry.site.internal"]);
    let settings = |auth: &str| {
        format!("[tls]\ncertificate = \"certs/server.crt\"\nclient_ca = \"company.crt\"\nclient_auth = \"{auth}\"\n")
    };
    fs::write(at.join("required.toml"), settings("required")).unwrap();
    fs::write(at.join("optional.toml"), settings("optional")).unwrap();
    let places = [
        ("docker", "docker/certs.d/registry.site.internal:5000/client"),
        ("podman", "containers/certs.d/registry.site.internal:5000/client"),
        ("cri-o", "containers/certs.d/registry.site.internal:5000/client"),
        ("containerd", "containerd/certs.d/registry.site.internal:5000/client"),
        ("k3s", "rancher/k3s/sealock-client"),
    ];
    let pair = ["--client-cert", "client.crt", "--client-key", "client.key"];
    let secret = client.key.lines().nth(1).unwrap();
    for (kind, place) in places {
        let bare = client_config(at, &["-c", "required.toml", kind]);
        assert!(words(&bare).contains("note: the server wants a certificate of every client"), "{kind}: {bare:?}");
        let optional = client_config(at, &["-c", "optional.toml", kind]);
        assert!(words(&optional).contains("note: the server takes certificates of clients"), "{kind}: {optional:?}");
        let with = |more: &[&str]| client_config(at, &[&["-c", "required.toml", kind], &pair[..], more].concat());
        let in_place = ["--root", &root];
        let outputs = [
            with(&[]),
            with(&["--json"]),
            with(&[&in_place[..], &["--dry-run"]].concat()),
            with(&[&in_place[..], &["--write"]].concat()),
            with(&[&in_place[..], &["--write", "--json"]].concat()),
        ];
        for output in outputs {
            let words = words(&output);
            assert!(output.status.success() && !words.contains("of every client"), "{kind}: {words}");
            assert!(!words.contains(secret) && !words.contains("PRIVATE KEY"), "the key is shown: {words}");
            assert!(words.contains(&format!("{place}.key")), "{kind}: {words}");
        }
        let file = |ending: &str| at.join("root/etc").join(format!("{place}.{ending}"));
        assert!(fs::read_to_string(file("cert")).unwrap().ends_with(&client.certificate), "{kind}");
        assert!(fs::read_to_string(file("key")).unwrap().ends_with(&client.key), "{kind}");
        assert_eq!(fs::metadata(file("key")).unwrap().permissions().mode() & 0o777, 0o600, "{kind}");
    }
    // A new key in the old one's place: the copy is no more open than it.
    let key = at.join("root/etc/docker").join("certs.d/registry.site.internal:5000/client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let pair = ["--client-cert", "other.crt", "--client-key", "other.key"];
    let again =
        client_config(at, &[&["-c", "required.toml", "docker", "--write", "--root", &root][..], &pair].concat());
    assert!(again.status.success() && !words(&again).contains(secret), "{again:?}");
    for path in [&key, &key.with_extension("key.before-sealock")] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
    }
    let mixed = ["--client-cert", "client.crt", "--client-key", "other.key"];
    let mixed = client_config(at, &[&["-c", "required.toml", "docker"][..], &mixed].concat());
    assert!(!mixed.status.success() && words(&mixed).contains("`other.key` is not that of"), "{mixed:?}");
}
