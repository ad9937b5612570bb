//! `sealock user`, `robot` and `access explain`; and callers that show a certificate.

use std::path::Path;
use std::process::{Command, Output};

use rcgen::{CertificateParams, DnType, KeyPair};
use sealock::access::{Caller, Denial, Reason, Shown, Visitor};

use super::*;

/// Runs a command with `input` on standard input: exit code, standard output, standard error.
fn run(folder: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    std::fs::write(folder.join("input"), input).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
    command.current_dir(folder).env_clear().args(["-c", "site.toml"]).args(arguments);
    let Output { status, stdout, stderr } =
        command.stdin(std::fs::File::open(folder.join("input")).unwrap()).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn folder(settings: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("site.toml"), settings).unwrap();
    folder
}

#[test]
fn users_are_kept_by_commands_and_never_on_the_command_line() {
    let folder = folder("presets = []\n");
    let done = |arguments: &[&str], input: &str| {
        let (code, out, err) = run(folder.path(), arguments, input);
        assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}");
        out
    };
    let refused = |arguments: &[&str], input: &str, words: &str| {
        let (code, _, err) = run(folder.path(), arguments, input);
        assert!(code != 0 && err.contains(words), "{arguments:?}: {code} {err}");
    };
    assert!(done(&["user", "list"], "").contains("there are no users"));
    done(&["user", "add", "alice"], "sesame-open\n");
    std::fs::write(folder.path().join("secret"), "open-sesame\r\n").unwrap();
    done(&["user", "add", "bob", "--password-file", "secret"], "");
    refused(&["user", "add", "alice"], "sesame-open", "there is a user `alice` already");
    refused(&["user", "add", "carol"], "short", "fewer than 8 characters");
    refused(&["user", "add", "carol", "sesame-open"], "", "unexpected argument");
    refused(&["user", "add", "a:b"], "sesame-open", "no name for a user");
    done(&["user", "passwd", "alice"], "open-sesame");
    assert_eq!(done(&["user", "list"], ""), "alice\nbob\n");
    let file = std::fs::read_to_string(folder.path().join("data/access/users")).unwrap();
    assert!(file.lines().all(|line| line.contains(":$argon2id$")), "{file}");
    done(&["user", "rm", "alice"], "");
    refused(&["user", "rm", "alice"], "", "there is no user `alice`");
    assert_eq!(done(&["user", "list", "--json"], "").split_whitespace().collect::<String>(), r#"["bob"]"#);
}

#[test]
fn robots_are_listed_without_what_would_let_them_in() {
    // Invariant 12
    let folder = folder("presets = []\n");
    let add = ["robot", "add", "ci", "--repository", "team/**", "--verbs", "pull,push", "--for", "90d"];
    let (code, token, _) = run(folder.path(), &add, "");
    assert!(code == 0 && token.starts_with("slr_"), "{code} {token}");
    let (_, listed, _) = run(folder.path(), &["robot", "list"], "");
    assert!(listed.contains("ci") && listed.contains("pull,push") && listed.contains("team/**"), "{listed}");
    assert!(!listed.contains(token.trim()));
    for wrong in [
        &["robot", "add", "x", "--for", "90d", "--verbs", "pull"][..],
        &["robot", "add", "x", "--for", "90d", "--repository", "team/*", "--verbs", "pull"],
        &["robot", "add", "x", "--repository", "team/**", "--verbs", "pull"],
        &["robot", "add", "ci", "--for", "90d"],
        &["robot", "revoke", "x"],
    ] {
        assert_ne!(run(folder.path(), wrong, "").0, 0, "{wrong:?}");
    }
    assert_eq!(run(folder.path(), &["robot", "revoke", "ci"], "").0, 0);
    assert!(run(folder.path(), &["robot", "list"], "").1.contains("there are no robots"));
}

#[test]
fn explain_names_the_rule_and_the_repository() {
    let rules = rule("security-products/**", &["pull"], &["anonymous"])
        + &rule("team/**", &["pull", "push"], &["user:alice"])
        + &rule("team/**", &["pull"], &["robot:ci"])
        + &rule("team/**", &["admin"], &["user:alice"])
        + &rule("**", &["admin"], &["certificate:ops"]);
    let folder = folder(&format!("presets = [\"gitlab\"]\n{rules}"));
    run(folder.path(), &["user", "add", "alice"], "sesame-open");
    for (asked, code, words) in [
        (
            &["anonymous", "pull", "registry.gitlab.com/security-products/semgrep"][..],
            0,
            "rule 1, for `security-products/**`",
        ),
        (&["anonymous", "pull", "security-products/semgrep", "--ns", "registry.gitlab.com"], 0, "rule 1,"),
        (&["anonymous", "push", "security-products/semgrep"], 1, "no rule allows it to anonymous callers"),
        (&["alice", "push", "team/app"], 0, "rule 2, for `team/**`"),
        (&["alice", "delete", "team/app"], 1, "no rule allows it"),
        (&["bob", "pull", "team/app"], 1, "there is no user `bob`; with such a login it would be denied: no rule"),
        (
            &["robot:ci", "pull", "team/app"],
            1,
            "there is no robot `ci`; with such a login it would be allowed: rule 3,",
        ),
        (&["alice", "admin", "team/app"], 0, "rule 4, for `team/**` (`admin.listen` names no address"),
        (&["alice", "admin", "other/app"], 1, "no rule with the verb `admin` allows it"),
        (&["anonymous", "admin", "team/app"], 1, "no rule allows it to anonymous callers"),
        (&["certificate:ops", "admin", "other/app"], 0, "rule 5, for `**`"),
        (&["certificate:ops", "pull", "other/app"], 1, "no rule allows it"),
        (&["certificate:ops", "admin", "**"], 0, "`certificate:ops` may admin `**`: rule 5, for `**`"),
        (
            &["alice", "admin", "**"],
            1,
            "no rule with the verb `admin` allows it; for all that there is, it takes a rule",
        ),
        (&["alice", "pull", "**", "--ns", "registry.gitlab.com"], 2, ""),
        (&["anonymous", "admin", "**"], 1, "no rule allows it to anonymous callers"),
        (&["alice", "pull", "**"], 1, "`alice` may not pull `**`: no rule allows it"),
    ] {
        let mut arguments = vec!["access", "explain"];
        arguments.extend(asked);
        let (exit, out, err) = run(folder.path(), &arguments, "");
        assert_eq!(exit, code, "{asked:?} {out} {err}");
        assert!(out.contains(words), "{asked:?} says {out}");
    }
    let (_, out, _) = run(folder.path(), &["access", "explain", "alice", "pull", "security-products/x"], "");
    assert!(out.contains("repository: registry.gitlab.com/security-products/x\n"), "{out}");
    assert!(out.contains("its names:  registry.gitlab.com/security-products/x, security-products/x\n"), "{out}");
}

#[test]
fn without_rules_users_may_do_everything_but_give_orders() {
    let folder = folder("presets = []\n[admin]\nlisten = [\"127.0.0.1:5001\"]\n");
    let explain = |caller: &str, verb: &str| {
        let (code, out, _) = run(folder.path(), &["access", "explain", caller, verb, "team/app"], "");
        (code, out.lines().next().unwrap().to_owned())
    };
    let denied = |caller: &str, why: &str| {
        assert_eq!(explain(caller, "admin"), (1, format!("`{caller}` may not admin `team/app`: {why}")));
    };
    // Nobody can log in yet.
    assert_eq!(explain("anonymous", "push").0, 0);
    denied("anonymous", "no rule allows it to anonymous callers");
    denied("alice", "no rule allows it to anonymous callers (there is no user `alice`)");
    run(folder.path(), &["user", "add", "alice"], "sesame-open");
    let ops = ["robot", "add", "ops", "--repository", "team/**", "--verbs", "admin", "--for", "90d"];
    assert_eq!(run(folder.path(), &ops, "").0, 0);
    let may = "`alice` may delete `team/app`: there are no rules: users may pull, push and delete";
    assert_eq!(explain("alice", "delete"), (0, may.to_owned()));
    denied("alice", "no rule with the verb `admin` allows it");
    let may = "`robot:ops` may admin `team/app`: the robot's own scope, `team/**`";
    assert_eq!(explain("robot:ops", "admin"), (0, may.to_owned()));
    assert_eq!(explain("robot:ops", "pull").0, 1);
    // As the server would say now: nobody logs in by a token that has ended, or from a file that cannot be read.
    let access = folder.path().join("data/access");
    let text = std::fs::read_to_string(access.join("robots.json")).unwrap();
    let mut robots: Value = serde_json::from_str(&text).unwrap();
    robots["robots"]["ops"]["expires_at"] = "2020-01-01T00:00:00Z".into();
    std::fs::write(access.join("robots.json"), robots.to_string()).unwrap();
    denied(
        "robot:ops",
        "the token of robot `ops` has expired; with such a login it would be allowed: the robot's own scope, \
                         `team/**`",
    );
    std::fs::remove_file(access.join("users")).unwrap();
    std::fs::create_dir(access.join("users")).unwrap();
    let (code, told) = explain("alice", "pull");
    assert!(code == 1 && told.contains("data/access/users` cannot be used"), "{told}");
}

#[test]
fn explain_knows_what_needs_a_login_where_nobody_has_one() {
    let upstream = "[upstream.corp]\nhost = \"corp.test\"\nusername = \"u\"\npassword_file = \"p\"\n";
    let folder = folder(&format!("presets = []\n{upstream}"));
    let explain = |name: &str| run(folder.path(), &["access", "explain", "alice", "pull", name], "");
    assert_eq!(explain("team/app").0, 0);
    let (code, out, _) = explain("corp.test/app");
    assert!(code == 1 && out.contains("needs a login") && out.contains("there is no user `alice`"), "{out}");
}

#[tokio::test]
async fn a_verified_certificate_is_a_login() {
    let rules = rule("team/**", &["pull"], &["certificate:runner-7"]) + &rule("all/**", &["pull"], &["authenticated"]);
    let site = Sealock::setup().settings(&rules).start().await;
    let certificate = |name: &str| {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    };
    let access = site.app.access();
    let place = |name: &str| site.app.routes().resolve(&name.parse().unwrap(), None).unwrap().repository;
    let token = token(&site, "", &["repository:all/x:pull"]).await;
    for (name, team) in [("runner-7", Ok(())), ("runner-8", Err(Denial::Forbidden))] {
        let login = Caller::of_certificate(&certificate(name)).unwrap();
        let visitor = Visitor { address: "127.0.0.1".parse().unwrap(), certificate: Some(&login) };
        // An anonymous token beside it takes nothing away.
        for shown in [Shown::Nothing, Shown::Bearer(Secret::new(&token["Bearer ".len()..]))] {
            let caller = access.identify(shown, visitor).await.unwrap();
            assert_eq!(&**caller.id(), format!("certificate:{name}"));
            assert_eq!(access.decide(&caller, Verb::Pull, &place("team/app")), team);
            assert_eq!(access.decide(&caller, Verb::Pull, &place("all/app")), Ok(()));
        }
    }
    assert!(Caller::of_certificate(b"rubbish").is_none());
    let visitor = Visitor { address: "127.0.0.1".parse().unwrap(), certificate: None };
    let caller = access.identify(Shown::Nothing, visitor).await.unwrap();
    let denied = access.decide(&caller, Verb::Pull, &place("all/app"));
    assert_eq!(denied, Err(Denial::LogIn(Reason::NotLoggedIn)));
}

#[test]
fn what_the_service_put_into_its_folder_leads_root_nowhere() {
    // Invariant 12
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "acting for others takes root");
        return;
    }
    let folder = folder("presets = []\n");
    let (data, roots) = (folder.path().join("data"), folder.path().join("roots"));
    std::fs::write(&roots, "precious").unwrap();
    std::fs::set_permissions(&roots, std::fs::Permissions::from_mode(0o600)).unwrap();
    // The way there is open to the service's user.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let whose = || std::fs::metadata(&roots).map(|file| (file.uid(), file.mode() & 0o777)).unwrap();
    let before = whose();
    for link in ["users.lock", "users", "robots.json.lock", "robots.json"] {
        let _ = std::fs::remove_dir_all(&data);
        std::fs::create_dir_all(data.join("access")).unwrap();
        symlink(&roots, data.join("access").join(link)).unwrap();
        for path in [&data, &data.join("access")] {
            chown(path, Some(54_321), Some(54_322)).unwrap();
        }
        let add: &[&str] =
            if link.starts_with("users") { &["user", "add", "alice"] } else { &["robot", "add", "ci", "--for", "1d"] };
        let (code, out, err) = run(folder.path(), add, "sesame-open");
        assert_ne!(code, 0, "{link}: {out} {err}");
        assert_eq!((whose(), std::fs::read_to_string(&roots).unwrap()), (before, "precious".to_owned()), "{link}");
    }
    // Without such links, what it writes is the service's.
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    chown(&data, Some(54_321), Some(54_322)).unwrap();
    assert_eq!(run(folder.path(), &["user", "add", "alice"], "sesame-open").0, 0);
    for path in ["access", "access/users"] {
        assert_eq!(std::fs::metadata(data.join(path)).unwrap().uid(), 54_321, "{path}");
    }
}
