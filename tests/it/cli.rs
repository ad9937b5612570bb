//! The program itself: its commands, its exit codes, its words.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// `sealock serve`, running; killed when dropped.
pub struct Serving {
    child: Child,
    address: String,
    pub banner: Vec<String>,
}

fn sealock(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
    command.current_dir(folder).env_clear();
    command
}

pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    sealock(folder).args(arguments).output().unwrap()
}

/// Runs a command that must succeed; its standard output.
pub fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn json(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&done(folder, arguments)).unwrap()
}

pub fn serve(folder: &Path, arguments: &[&str]) -> Serving {
    let mut command = sealock(folder);
    command.args(["serve", "--listen", "127.0.0.1:0"]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut banner: Vec<String> = lines.by_ref().take_while(|line| line != "clients:").collect();
    let address = banner[0].split_once("://").unwrap().1.to_owned();
    banner.extend(lines.take_while(|line| !line.is_empty()));
    Serving { child, address, banner }
}

impl Serving {
    /// SIGTERM, and the exit status.
    fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_newcomer_sees_where_it_listens_what_it_routes_and_how_to_point_clients_at_it() {
    // Invariant 15
    let folder = tempfile::tempdir().unwrap();
    let serving = serve(folder.path(), &["--gate", "open"]);
    let banner = serving.banner.join("\n");
    for words in [
        "the gate is open",
        "security-products/**",
        "registry.gitlab.com/security-products/**",
        "ghcr.io/aquasecurity/trivy-db",
        "docker.io/**",
        &format!("SECURE_ANALYZERS_PREFIX: {}/security-products", serving.address),
        &format!("--db-repository {}/trivy-db", serving.address),
        &format!("docker pull {}/docker.io/library/alpine:3", serving.address),
        "hosts.toml",
        "podman pull",
        "oras pull",
    ] {
        assert!(banner.contains(words), "{words} is not in\n{banner}");
    }
    assert!(folder.path().join("data/catalog.sqlite").exists(), "its data is in ./data");
    assert_eq!(serving.stop(), Some(0));
    assert!(!folder.path().join("data/sealock.sock").exists());
}

#[test]
fn the_gate_is_closed_unless_it_is_opened_and_stays_as_it_was_over_a_restart() {
    // Invariant 19
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let serving = serve(at, &[]);
    assert_eq!(json(at, &["gate", "status", "--json"])["open"], false);
    let opened = json(at, &["gate", "open", "--for", "2h", "--why", "weekly update", "--json"]);
    assert_eq!((&opened["open"], &opened["why"]), (&Value::Bool(true), &Value::from("weekly update")));
    assert!(opened["closes_at"].is_string());
    assert!(done(at, &["gate", "status"]).contains("weekly update"));
    serving.stop();

    let serving = serve(at, &[]);
    assert_eq!(json(at, &["gate", "status", "--json"])["open"], true);
    assert_eq!(json(at, &["gate", "close", "--why", "done", "--json"])["open"], false);
    serving.stop();
    let serving = serve(at, &[]);
    assert_eq!(json(at, &["gate", "status", "--json"])["open"], false);
    let audit = std::fs::read_to_string(at.join("data/audit/audit.jsonl")).unwrap();
    assert!(audit.contains("weekly update") && audit.contains("done"), "{audit}");
    drop(serving);
}

#[test]
fn status_ls_and_healthcheck_answer_in_words_and_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let serving = serve(at, &[]);
    assert_eq!(done(at, &["healthcheck"]), "ready\n");
    assert_eq!(json(at, &["healthcheck", "--json"])["status"], "ready");
    let status = json(at, &["status", "--json"]);
    assert_eq!(status["addresses"][0], serving.address);
    assert_eq!(status["gate"]["open"], false);
    assert!(status["upstreams"].as_array().unwrap().iter().any(|upstream| upstream["host"] == "registry.gitlab.com"));
    assert!(done(at, &["status"]).contains("the gate is closed"));
    assert_eq!(json(at, &["status", "--wanted", "--json"]), Value::Array(Vec::new()));
    assert_eq!(json(at, &["ls", "--json"]), Value::Array(Vec::new()));
    assert!(done(at, &["ls", "trivy-db"]).contains("nothing is kept"));
}

#[test]
fn a_data_folder_has_one_owner_and_a_second_start_says_who() {
    let folder = tempfile::tempdir().unwrap();
    let serving = serve(folder.path(), &[]);
    let second = run(folder.path(), &["serve", "--listen", "127.0.0.1:0"]);
    let words = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{words}");
    assert!(words.contains(&serving.child.id().to_string()) && words.contains("in use"), "{words}");
}

#[test]
fn a_command_without_a_server_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["gate", "status"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(words.contains("sealock serve"), "{words}");
}

#[test]
fn wrong_settings_and_wrong_usage_exit_with_2() {
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("site.toml"), "[server]\nlisten = [\"127.0.0.1:0\"]\n[gate]\nmod = \"open\"\n").unwrap();
    for command in [&["-c", "site.toml", "config", "check"][..], &["-c", "site.toml", "serve"]] {
        let output = run(at, command);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(words.starts_with("sealock: site.toml:4: gate.mod: unknown field `mod`"), "{words}");
    }
    assert_eq!(run(at, &["gate", "open", "--for", "2"]).status.code(), Some(2));
    assert_eq!(run(at, &["gat"]).status.code(), Some(2));
    assert!(!at.join("data").exists(), "nothing was started");
    std::fs::write(at.join("site.toml"), "presets = [\"trivy\"]\n").unwrap();
    let good = json(at, &["-c", "site.toml", "config", "check", "--json"]);
    assert_eq!(good["ok"], true);
    assert!(good["routes"].as_array().unwrap().iter().any(|route| route["name"] == "trivy-db"));
}

#[test]
fn what_the_server_cannot_read_is_a_wrong_setting_for_it_and_no_matter_to_the_other_commands() {
    // Invariant 12
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let site = "[upstream.hub]\nusername = \"robot\"\npassword_file = \"secret\"\n";
    std::fs::write(at.join("site.toml"), site).unwrap();
    let serve = ["-c", "site.toml", "serve", "--listen", "127.0.0.1:0"];
    for command in [&["-c", "site.toml", "config", "check"][..], &serve] {
        let output = run(at, command);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}");
        let expected = "sealock: site.toml:3: upstream.hub.password_file: cannot read `secret`: No such file";
        assert!(words.starts_with(expected), "{words}");
        assert!(output.stdout.is_empty() && !at.join("data").exists(), "nothing was started");
    }
    // It has settings, and no server: 1, not 2.
    assert_eq!(run(at, &["-c", "site.toml", "gate", "status"]).status.code(), Some(1));
    std::fs::write(at.join("secret"), "canary").unwrap();
    assert!(done(at, &["-c", "site.toml", "config", "check"]).contains("the settings are good"));
}

#[test]
fn a_check_names_each_file_that_would_let_nobody_in() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let site = "[access]\nhtpasswd = \"staff\"\n[access.issuer.git]\n\
                issuer = \"https://git.site\"\naudience = \"a\"\njwks_file = \"keys.json\"\n\
                [[access.rule]]\nrepository = \"**\"\nverbs = [\"pull\"]\nto = [\"authenticated\"]\n";
    std::fs::write(at.join("site.toml"), site).unwrap();
    std::fs::write(at.join("keys.json"), "{\"keys\":[]}").unwrap();
    let output = run(at, &["-c", "site.toml", "config", "check"]);
    let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    for words in ["`staff` cannot be used: it is not there", "keys.json`: it has no key", "has 2 faults"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let output = run(at, &["-c", "site.toml", "config", "check", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((shown["ok"].as_bool(), shown["problems"].as_array().unwrap().len()), (Some(false), 2));
}

#[test]
fn a_check_notes_who_is_let_in_and_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let site = "[admin]\nlisten = [\"127.0.0.1:0\"]\nmetrics_to = [\"robot:prometheus\"]\n\
                [access.groups]\nops = [\"alice\", \"user:allice\"]\n\
                [[access.rule]]\nrepository = \"**\"\nverbs = [\"pull\"]\nto = [\"group:ops\", \"user:bob\", \"robot:ci-*\"]\n";
    std::fs::write(at.join("site.toml"), site).unwrap();
    let hash = bcrypt::hash("sesame-open", 4).unwrap();
    std::fs::create_dir_all(at.join("data/access")).unwrap();
    std::fs::write(at.join("data/access/users"), format!("alice:{hash}\n")).unwrap();
    let checked = json(at, &["-c", "site.toml", "config", "check", "--json"]);
    let notes = serde_json::json!([
        "rule 1 names a user `bob`, and there is none; `sealock user add bob` adds one",
        "rule 1 names `ci-*`, and nobody is called that; `*` stands for no name: `authenticated` is every user, \
         certificate and job, and robots are named one by one",
        "group `ops` names a user `allice`, and there is none; `sealock user add allice` adds one",
        "admin.metrics_to names a robot `prometheus`, and there is none; `sealock robot add prometheus` adds one",
    ]);
    assert_eq!((&checked["ok"], &checked["notes"]), (&true.into(), &notes));
    assert!(done(at, &["-c", "site.toml", "config", "check"]).contains("note: rule 1 names a user `bob`"));
}

#[test]
fn what_is_kept_is_no_other_users_to_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let _serving = serve(folder.path(), &[]);
    let data = folder.path().join("data");
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!(mode(&data), 0);
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0, "{}", path.display());
    }
}

#[test]
fn a_start_that_fails_leaves_the_gate_as_it_was() {
    // Invariant 1
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().to_string();
    let output = run(at, &["serve", "--gate", "open", "--listen", &busy]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    std::fs::create_dir(at.join("data/sealock.sock")).unwrap();
    let output = run(at, &["serve", "--gate", "open", "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    std::fs::remove_dir(at.join("data/sealock.sock")).unwrap();

    let serving = serve(at, &[]);
    assert_eq!(json(at, &["gate", "status", "--json"])["open"], false);
    serving.stop();
    // The order of a start that did not fail outlasts the run.
    serve(at, &["--gate", "open"]).stop();
    let _serving = serve(at, &[]);
    assert_eq!(json(at, &["gate", "status", "--json"])["open"], true);
}

#[test]
fn what_nothing_refers_to_is_listed_collected_and_put_back() {
    // Invariant 8
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("site.toml"), "[keep]\ngrace = \"0s\"\n").unwrap();
    let serving = serve(at, &["-c", "site.toml"]);
    let bytes = b"of no repository";
    let digest = sealock::oci::Digest::sha256(bytes);
    let (file, trashed) = (at.join("data/blobs/sha256").join(digest.hex()), at.join("data/trash"));
    let trashed = trashed.join(format!("sha256-{}", digest.hex()));
    std::fs::write(&file, bytes).unwrap();
    // A file counts as old when the second of its change is over.
    let planned = loop {
        let planned = json(at, &["gc", "--dry-run", "--json"]);
        if planned["files"] == 1 {
            break planned;
        }
    };
    assert_eq!(planned["lines"][0]["digest"], digest.to_string());
    assert!(file.exists(), "a dry run changes nothing");
    assert!(done(at, &["gc", "--dry-run"]).contains("would go: 16 B in 0 manifests, 0 blobs and 1 unknown files"));
    assert!(done(at, &["gc"]).contains("went to the trash: 16 B"));
    assert!(!file.exists() && trashed.exists());
    assert!(done(at, &["gc", "--undo"]).contains("put back: "));
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    assert_eq!(run(at, &["gc", "--undo", "--dry-run"]).status.code(), Some(2));
    assert_eq!(serving.stop(), Some(0));
}

/// Three images of `team/app`, and its tag `1` that was pushed to each in turn.
fn pushed_thrice(data: &Path) -> Vec<sealock::oci::Digest> {
    use sealock::clock::Clock;
    use sealock::names::{Origin, Repository};
    use sealock::oci::{Algorithm, Manifest, MediaType};
    use sealock::store::{Store, TagSource};
    let push = async {
        let (store, repository) = (Store::open(data, Clock::system()).await.unwrap(), "team/app".parse().unwrap());
        let (repository, mut digests) = (Repository { origin: Origin::Local, name: repository }, Vec::new());
        for number in 0..3 {
            let text =
                serde_json::json!({"schemaVersion": 2, "manifests": [], "annotations": {"number": number.to_string()}});
            let media_type = MediaType::parse(MediaType::OCI_INDEX).unwrap();
            let manifest = Manifest::parse(text.to_string().into(), media_type, Algorithm::Sha256).unwrap();
            store.keep_manifest(&repository, &manifest).await.unwrap();
            let tag = "1".parse().unwrap();
            store.point_tag(&repository, &tag, &manifest.digest, TagSource::Pushed).await.unwrap();
            digests.push(manifest.digest);
        }
        store.close().await;
        digests
    };
    tokio::runtime::Runtime::new().unwrap().block_on(push)
}

#[test]
fn a_tag_tells_where_it_was_and_is_turned_back_and_pinned_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let digests = pushed_thrice(&at.join("data"));
    let serving = serve(at, &[]);
    let log = json(at, &["tag", "log", "team/app:1", "--json"]);
    assert_eq!(log["digest"], digests[2].to_string());
    let named: Vec<&str> = log["log"].as_array().unwrap().iter().map(|line| line["digest"].as_str().unwrap()).collect();
    assert_eq!(named, [&digests[2], &digests[1], &digests[0]].map(ToString::to_string));
    let words = done(at, &["tag", "log", "team/app:1"]);
    assert_eq!(words.lines().filter(|line| line.contains("pushed") && line.contains("kept")).count(), 3, "{words}");

    assert!(done(at, &["tag", "rollback", "team/app:1"]).contains(&format!("team/app:1 names {} again", digests[1])));
    let to = digests[0].to_string();
    assert!(done(at, &["tag", "rollback", "team/app:1", "--to", &to]).contains(&to));
    assert!(done(at, &["verify", "team/app"]).contains("checked 3 blobs and manifests"));
    let bad = at.join("data/blobs/sha256").join(digests[1].hex());
    std::fs::write(&bad, std::fs::read_to_string(&bad).unwrap().replace('1', "7")).unwrap();
    let output = run(at, &["verify", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["bad"][0]["digest"], digests[1].to_string());
    assert_eq!(json(at, &["tag", "pin", "team/app:1", "--json"])["pinned"], true);
    assert_eq!(json(at, &["tag", "unpin", "team/app:1", "--json"])["pinned"], false);
    let wrong = [
        (&["tag", "pin", "team/app:2"][..], 1, "there is no tag team/app:2"),
        (&["tag", "log", "team/other:1"], 1, "team/other:1 was never kept here"),
        (&["tag", "release", "team/app:1"], 1, "follows upstream already, or has none"),
        (&["tag", "rollback", "team/app:1", "--to", "latest"], 1, "`sealock tag log team/app:1` lists what it named"),
        (&["tag", "log", "Team/app:1"], 1, "`Team/app` is not a name"),
        (&["tag", "log", "team/app"], 2, "write a name and a tag"),
    ];
    for (command, code, expected) in wrong {
        let output = run(at, command);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {words}");
        assert!(words.contains(expected), "{command:?}: {words}");
    }
    assert_eq!(serving.stop(), Some(0));
}

#[test]
fn every_command_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    for command in
        [&["--help"][..], &["serve", "--help"], &["gate", "open", "--help"], &["status", "--help"], &["gc", "--help"]]
    {
        assert!(done(folder.path(), command).len() > 200, "{command:?}");
    }
}
