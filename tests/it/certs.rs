//! `sealock certs`: what it makes, that it overwrites nothing, and that a client needs its authority alone.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::cli::{done, json, run, serve};
use crate::support::tls::{Client, shown};

const HOST: &str = "registry.site.internal";
const MAKE: [&str; 6] = ["certs", "init", "--host", HOST, "--ip", "127.0.0.1"];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// What is in the four files.
fn contents(folder: &Path) -> Vec<String> {
    let names = ["ca.crt", "ca.key", "server.crt", "server.key"];
    names.map(|name| fs::read_to_string(folder.join("certs").join(name)).unwrap_or_default()).to_vec()
}

fn failed(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(folder, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn four_files_are_made_and_none_is_ever_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let told = done(folder.path(), &MAKE);
    let certs = folder.path().join("certs");
    assert_eq!(mode(&certs), 0o755, "others read the authority there; each key is its owner's alone");
    for (name, expected) in [("ca.crt", 0o644), ("ca.key", 0o600), ("server.crt", 0o644), ("server.key", 0o600)] {
        assert_eq!(mode(&certs.join(name)), expected, "{name}");
    }
    assert_eq!(fs::read_dir(&certs).unwrap().count(), 4);
    for words in
        ["sealock serve --listen 0.0.0.0:5000 --certificate ", "certs.d/registry.site.internal:5000/ca.crt", "offline"]
    {
        assert!(told.contains(words), "no {words:?} in\n{told}");
    }
    let before = contents(folder.path());
    let why = failed(folder.path(), &MAKE, 1);
    assert!(why.contains("is there already") && why.contains("certs renew") && why.contains("--force"), "{why}");
    assert_eq!(contents(folder.path()), before);
    done(folder.path(), &[&MAKE[..], &["--force"]].concat());
    let after = contents(folder.path());
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
}

#[test]
fn names_that_are_none_are_refused_and_so_is_having_none() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (&["certs", "init"][..], "--host registry.site.internal"),
        (&["certs", "init", "--host", "10.0.0.5"], "an address goes to --ip"),
        (&["certs", "init", "--host", "https://a"], "write a host name alone"),
        (&["certs", "init", "--ip", "registry"], "invalid value"),
    ] {
        let why = failed(folder.path(), arguments, 2);
        assert!(why.contains(words), "{arguments:?}: {why}");
    }
    assert!(!folder.path().join("certs").exists());
}

#[test]
fn the_certificates_are_such_that_every_client_takes_them() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &[&MAKE[..], &["--host", "*.site.internal", "--ip", "fd00::5"]].concat());
    let read = |name: &str| {
        let path = folder.path().join("certs").join(name);
        sealock::tls::read_certificates(&path).unwrap().swap_remove(0)
    };
    let (ca, server) = (read("ca.crt"), read("server.crt"));
    let (ca, server) = (X509Certificate::from_der(&ca).unwrap().1, X509Certificate::from_der(&server).unwrap().1);
    let days = |one: &X509Certificate<'_>| {
        (one.validity().not_after.timestamp() - one.validity().not_before.timestamp()) / 86_400
    };
    assert!(ca.is_ca() && ca.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!((days(&ca), days(&server)), (3654, 825));
    assert!(!server.is_ca() && server.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(server.extended_key_usage().unwrap().unwrap().value.server_auth);
    assert_eq!(server.issuer(), ca.subject());
    assert!(server.verify_signature(Some(ca.public_key())).is_ok());
    let shown = run(folder.path(), &["certs", "show", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown[0]["names"], serde_json::json!([HOST, "*.site.internal", "127.0.0.1", "fd00::5"]));
    assert_eq!((&shown[0]["role"], &shown[1]["role"]), (&"server".into(), &"authority".into()));
    assert!(matches!(shown[0]["days_left"].as_i64(), Some(823 | 824)), "{shown}");
}

#[test]
fn a_renewal_needs_the_authoritys_key_and_takes_the_names_over() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &MAKE);
    let before = contents(folder.path());
    let (here, away) = (folder.path().join("certs/ca.key"), folder.path().join("away.key"));
    fs::rename(&here, &away).unwrap();
    let why = failed(folder.path(), &["certs", "renew"], 1);
    assert!(why.contains("ca.key` is not there") && why.contains("--ca-key"), "{why}");
    assert_eq!(contents(folder.path())[2..], before[2..]);

    done(folder.path(), &["certs", "renew", "--ca-key", "away.key"]);
    let after = contents(folder.path());
    assert_eq!(after[0], before[0]);
    assert!(after[2] != before[2] && after[3] != before[3]);
    let names = |folder| json(folder, &["certs", "show", "--json"])[0]["names"].clone();
    assert_eq!(names(folder.path()), serde_json::json!([HOST, "127.0.0.1"]));

    let told = done(folder.path(), &["certs", "renew", "--ca-key", "away.key", "--host", "new.site"]);
    assert!(told.contains(&format!("no longer trusted as {HOST}, 127.0.0.1")), "{told}");
    assert_eq!(names(folder.path()), serde_json::json!(["new.site"]));

    fs::write(&away, &after[3]).unwrap();
    let why = failed(folder.path(), &["certs", "renew", "--ca-key", "away.key"], 1);
    assert!(why.contains("`away.key` is not the key of `certs/ca.crt`"), "{why}");
}

#[test]
fn of_two_at_once_one_gives_way_or_a_key_would_stand_with_the_others_certificate() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &MAKE);
    let (before, other) = (contents(folder.path()), fs::File::open(folder.path().join("certs")).unwrap());
    other.lock().unwrap();
    for command in [&["certs", "renew"][..], &[&MAKE[..], &["--force"]].concat()] {
        let why = failed(folder.path(), command, 1);
        assert!(why.contains("somebody else works on the certificates in `certs`") && why.contains("fuser"), "{why}");
    }
    assert_eq!(contents(folder.path()), before);
    drop(other);
    done(folder.path(), &["certs", "renew"]);
    assert_ne!(contents(folder.path()), before);
}

#[test]
fn a_renewal_leaves_the_files_to_whom_they_belong() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &MAKE);
    let own = fs::metadata(folder.path().join("certs")).unwrap().uid();
    // Only root can give them away: to the user that the server runs as, and a group that may read the key.
    let (owner, group) = if own == 0 { (Some(65534), Some(4242)) } else { (None, None) };
    let files = ["certs/server.key", "certs/server.crt"].map(|name| folder.path().join(name));
    for file in &files {
        chown(file, owner, group).unwrap();
    }
    fs::set_permissions(&files[0], fs::Permissions::from_mode(0o640)).unwrap();
    let whose =
        || files.each_ref().map(|file| fs::metadata(file).map(|file| (file.uid(), file.gid(), file.mode())).unwrap());
    let (before, keys) = (whose(), contents(folder.path()));
    done(folder.path(), &["certs", "renew"]);
    assert_eq!(whose(), before);
    assert_ne!(contents(folder.path()), keys);
}

#[test]
fn show_exits_with_3_when_a_certificate_needs_attention() {
    let folder = tempfile::tempdir().unwrap();
    let authority = crate::support::tls::Authority::new("company");
    let late = authority.issue_with(&[HOST], |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    late.write(folder.path(), "company");
    fs::write(folder.path().join("site.toml"), "[tls]\ncertificate = \"company.crt\"\n").unwrap();
    let why = failed(folder.path(), &["-c", "site.toml", "certs", "show"], 3);
    assert!(why.contains("`company.crt` has expired on 2001-01-01"), "{why}");
    let why = failed(folder.path(), &["certs", "show"], 1);
    assert!(why.contains("certs/server.crt") && why.contains("certs init"), "{why}");
    done(folder.path(), &MAKE);
    done(folder.path(), &["certs", "show"]);
    fs::copy(folder.path().join("certs/ca.key"), folder.path().join("certs/server.key")).unwrap();
    let why = failed(folder.path(), &["certs", "show"], 3);
    assert!(why.contains("the key `certs/server.key` is not that of the certificate"), "{why}");
}

#[tokio::test]
async fn a_newcomer_serves_with_what_was_printed_and_a_renewal_is_taken_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let told = done(folder.path(), &MAKE);
    let line = told.lines().find(|line| line.contains("sealock serve")).unwrap();
    let certificate = line.split_whitespace().last().unwrap();
    let serving = serve(folder.path(), &["--certificate", certificate]);
    let banner = serving.banner.join("\n");
    let origin = serving.banner[0].strip_prefix("listening on https://").unwrap_or_else(|| panic!("{banner}"));
    let address: SocketAddr = origin.parse().unwrap();
    for words in [&format!("docker pull {HOST}:{}/", address.port()), "server = \"https://registry.site.internal:"] {
        assert!(banner.contains(words), "no {words:?} in\n{banner}");
    }
    assert!(!banner.contains("--plain-http") && !banner.contains("tls-verify"), "{banner}");

    let client = Client::trusting(&contents(folder.path())[0]);
    let first = shown(&client.connect(address, HOST).await.unwrap());
    assert_eq!(done(folder.path(), &["healthcheck"]), "ready\n");
    let status = json(folder.path(), &["status", "--json"]);
    assert_eq!(status["origins"][0], format!("https://{address}"));
    assert_eq!((&status["certificates"][0]["names"][0], &status["warnings"]), (&HOST.into(), &serde_json::json!([])));
    assert!(done(folder.path(), &["status"]).contains("server.crt, for 82"));

    done(folder.path(), &["certs", "renew"]);
    let renewed = async {
        while shown(&client.connect(address, "127.0.0.1").await.unwrap()) == first {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.expect("the new one is taken");
}

#[test]
fn plain_http_for_others_is_warned_of_in_the_status_unless_it_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let warnings = |arguments: &[&str]| {
        let _serving = serve(folder.path(), arguments);
        json(folder.path(), &["status", "--json"])["warnings"].clone()
    };
    let told = warnings(&["--listen", "0.0.0.0:0"]);
    assert!(told[0].as_str().unwrap().starts_with("clients reach 0.0.0.0:0 without encryption"), "{told}");
    fs::write(folder.path().join("site.toml"), "[server]\nlisten_plain = [\"0.0.0.0:0\"]\n").unwrap();
    assert_eq!(warnings(&["-c", "site.toml"]), serde_json::json!([]));
}

#[test]
fn a_certificate_that_is_no_good_stops_the_start_with_one_line() {
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &MAKE);
    fs::set_permissions(folder.path().join("certs/server.key"), fs::Permissions::from_mode(0o604)).unwrap();
    fs::write(folder.path().join("site.toml"), "[tls]\ncertificate = \"certs/server.crt\"\n").unwrap();
    for arguments in [&["-c", "site.toml", "config", "check"][..], &["-c", "site.toml", "serve"]] {
        let why = failed(folder.path(), arguments, 2);
        assert_eq!(
            why,
            "sealock: site.toml:1: tls.key: the key `certs/server.key` can be used by others: its mode is 0604; run \
             `chmod 600 certs/server.key`\n"
        );
    }
    let why = failed(folder.path(), &["serve", "--certificate", "certs/server.crt"], 2);
    assert_eq!(why.matches("can be used by others").count(), 1, "{why}");
    assert!(why.contains("can be used by others") && why.contains("hint: run `chmod 600"), "{why}");
}
