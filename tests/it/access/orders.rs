//! Orders over the network: who logs in, what the verb `admin` is for, and what may be read without it.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sealock::access::ACCOUNT_TRIES;
use sealock::app::App;
use sealock::clock::Clock;
use sealock::config::Settings;
use sealock::server::admin::{AdminClient, CONNECTIONS_PER_ADDRESS_MAX};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::*;
use crate::support::site::{Setup, connect};
use crate::support::tls::{Authority, Client, shown};

pub(super) const LISTEN: &str = "[admin]\nlisten = [\"127.0.0.1:0\"]\n";
const JSON: (&str, &str) = ("content-type", "application/json");
const HOST: &str = "registry.site";
const GIVE_UP: Duration = Duration::from_secs(60);

/// All that may be ordered and asked, with a body that is understood.
const ORDERS: [(Method, &str, &str); 20] = [
    (Method::GET, "/status", ""),
    (Method::GET, "/status/wanted", ""),
    (Method::GET, "/gate", ""),
    (Method::POST, "/gate/open", "{}"),
    (Method::POST, "/gate/close", "{}"),
    (Method::GET, "/ls", ""),
    (Method::POST, "/tag", "{\"name\":\"team/app\",\"tag\":\"1\"}"),
    (Method::POST, "/tag/pin", "{\"name\":\"team/app\",\"tag\":\"1\"}"),
    (Method::POST, "/tag/unpin", "{\"name\":\"team/app\",\"tag\":\"1\"}"),
    (Method::POST, "/tag/release", "{\"name\":\"team/app\",\"tag\":\"1\"}"),
    (Method::POST, "/tag/rollback", "{\"name\":\"team/app\",\"tag\":\"1\"}"),
    (Method::POST, "/gc", "{\"dry_run\":true}"),
    (Method::POST, "/gc/undo", ""),
    (Method::POST, "/verify", "{}"),
    (Method::GET, "/verify", ""),
    (Method::POST, "/upstream/check", "{}"),
    (Method::POST, "/watch", "{\"name\":\"team\"}"),
    (Method::POST, "/watch/end", "{\"id\":1}"),
    (Method::GET, "/ready", ""),
    (Method::GET, "/metrics", ""),
];

/// With `rules`, and users whose password is [`PASSWORD`].
async fn site(rules: &str, names: &[&str]) -> Sealock {
    let site = Sealock::setup().settings(&format!("{LISTEN}{rules}")).start().await;
    if !names.is_empty() {
        add_users(&site, names);
    }
    site
}

fn admin(site: &Sealock) -> SocketAddr {
    site.app.admin_origins()[0].split("//").nth(1).unwrap().parse().unwrap()
}

/// One request on a connection, read to the end.
async fn talk<S>(stream: S, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Reply
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "sealock");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (head, body) =
        sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap().into_parts();
    Reply { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
}

/// An order over the network.
async fn order(site: &Sealock, method: Method, path: &str, authorization: &str, body: &str) -> Reply {
    let mut headers = vec![JSON];
    if !authorization.is_empty() {
        headers.push(("authorization", authorization));
    }
    talk(connect(admin(site)).await.unwrap(), method, path, &headers, body).await
}

pub(super) async fn ask_admin(site: &Sealock, path: &str, authorization: &str) -> u16 {
    order(site, Method::GET, path, authorization, "").await.status.as_u16()
}

/// About one tag.
async fn tag(site: &Sealock, path: &str, name: &str, authorization: &str) -> Reply {
    let body = serde_json::json!({ "name": name, "tag": "1" }).to_string();
    order(site, Method::POST, path, authorization, &body).await
}

/// What is told, without the name that was asked for.
fn told(reply: &Reply, name: &str) -> (u16, String) {
    (reply.status.as_u16(), String::from_utf8_lossy(&reply.body).replace(name, "NAME"))
}

#[tokio::test]
async fn without_a_login_there_is_nothing_but_the_way_to_log_in() {
    // Invariant 14
    for names in [&[][..], &["alice"]] {
        // With nobody who could log in, everybody may push, and still nobody gives orders.
        let site = site("", names).await;
        for (method, path, body) in ORDERS.into_iter().chain([(Method::GET, "/nothing", "")]) {
            let reply = order(&site, method, path, "", body).await;
            assert_eq!(challenge(&reply), "Basic realm=\"sealock admin\"", "{path}");
            assert_eq!(json(&reply)["error"].as_str().unwrap().contains("add a user"), names.is_empty(), "{reply:?}");
            assert_eq!(told(&reply, ""), told(&order(&site, Method::GET, "/", "", "").await, ""), "{path}");
        }
        assert!(!site.app.gate().status().open);
    }
}

#[tokio::test]
async fn guesses_are_refused_and_slowed_down() {
    // Invariant 17
    let site = site(&rule("**", &["admin"], &["user:root"]), &["root"]).await;
    for shown in [basic("root", "wrong-word"), basic("nobody", PASSWORD), "Bearer x".to_owned(), "Digest x".to_owned()]
    {
        let reply = order(&site, Method::GET, "/status", &shown, "").await;
        assert!(challenge(&reply).starts_with("Basic "), "{shown}");
    }
    for _ in 1..ACCOUNT_TRIES {
        assert_eq!(ask_admin(&site, "/status", &basic("root", "wrong-word")).await, 401);
    }
    let slowed = order(&site, Method::GET, "/status", &of("root"), "").await;
    assert_eq!((slowed.status.as_u16(), slowed.header("retry-after")), (429, Some("1")));
    // One brake for all ports.
    assert_eq!(status(&site, "/v2/", &of("root")).await, 429);
    site.advance(Duration::from_secs(1));
    assert_eq!(ask_admin(&site, "/status", &of("root")).await, 200);
}

#[tokio::test]
async fn only_a_rule_with_the_verb_makes_an_admin_and_it_is_for_nothing_else() {
    // Invariant 14
    let rules = rule("**", &["pull", "push", "delete"], &["user:alice"]) + &rule("**", &["admin"], &["user:root"]);
    for (rules, alices) in [(rules.as_str(), "with rules"), ("", "without a rule")] {
        let site = site(rules, &["alice", "root"]).await;
        push(&site, "team/app", "layer", &of("alice")).await;
        for (method, path, body) in ORDERS {
            let reply = order(&site, method, path, &of("alice"), body).await;
            assert_eq!(reply.status, 403, "{path} {alices}: {reply:?}");
        }
        assert!(!site.app.gate().status().open);
    }
    let site = site(&rules, &["alice", "root"]).await;
    push(&site, "team/app", "layer", &of("alice")).await;
    for (method, path, body) in ORDERS {
        let reply = order(&site, method, path, &of("root"), body).await;
        // Two that have nothing to do: a local tag cannot be released, and there is nothing to go back to.
        let expected: &[u16] = if path.starts_with("/tag/r") { &[404, 409] } else { &[200] };
        assert!(expected.contains(&reply.status.as_u16()), "{path}: {reply:?}");
    }
    assert_eq!(ask_admin(&site, "/nothing", &of("root")).await, 404);
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &of("root")).await, 403, "it implies no pull");
    let pushed = ask(&site, Method::POST, "/v2/team/app/blobs/uploads/", &of("root")).await;
    assert_eq!(pushed.status, 403, "it implies no push");
}

#[tokio::test]
async fn the_audit_file_says_who_ordered_it_and_from_where() {
    // Invariant 19
    let site = site(&rule("**", &["admin"], &["user:root"]), &["root"]).await;
    for (path, body) in [("/gate/open", "{\"why\":\"a test\"}"), ("/gate/close", "{\"who\":\"the night shift\"}")] {
        let reply = order(&site, Method::POST, path, &of("root"), body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    site.app.gate().flush().await.unwrap();
    let lines: Vec<_> = site.audit().into_iter().filter(|line| line["event"] == "gate").collect();
    let who = |what: &str| lines.iter().rev().find(|line| line["to"] == what).unwrap()["who"].clone();
    assert_eq!(who("open"), "user:root from 127.0.0.1");
    assert_eq!(who("closed"), "the night shift, by user:root from 127.0.0.1");
}

#[tokio::test]
async fn who_has_one_repository_gives_orders_about_that_one() {
    // Invariant 14
    let rules = rule("**", &["pull", "push"], &["user:alice"]) + &rule("team/**", &["admin"], &["user:lead"]);
    let site = site(&rules, &["alice", "lead"]).await;
    for name in ["team/app", "teams/app", "other/app"] {
        push(&site, name, "layer", &of("alice")).await;
    }
    for path in ["/tag", "/tag/pin", "/tag/unpin"] {
        assert_eq!(tag(&site, path, "team/app", &of("lead")).await.status, 200, "{path}");
    }
    for path in ["/tag", "/tag/pin", "/tag/unpin", "/tag/release", "/tag/rollback"] {
        for foreign in ["teams/app", "other/app", "team"] {
            let reply = tag(&site, path, foreign, &of("lead")).await;
            assert_eq!(reply.status, 403, "{path} {foreign}");
            let absent = tag(&site, path, "other/absent", &of("lead")).await;
            assert_eq!(told(&reply, foreign), told(&absent, "other/absent"), "{path} {foreign}");
        }
    }
    let verify = async |name: &str| {
        let body = serde_json::json!({ "name": name }).to_string();
        order(&site, Method::POST, "/verify", &of("lead"), &body).await
    };
    let verified = verify("team/app").await;
    assert_eq!((verified.status.as_u16(), json(&verified)["checked"].as_u64()), (200, Some(3)), "{verified:?}");
    let (foreign, absent) = (verify("other/app").await, verify("other/absent").await);
    assert_eq!((foreign.status.as_u16(), told(&foreign, "other/app")), (403, told(&absent, "other/absent")));
    assert_eq!(verify("No Name").await.status, 400);
    for (path, expected) in [("/ls", 1), ("/ls?name=team", 1), ("/ls?name=team%2Fapp%3A1", 1), ("/ls?name=other", 0)] {
        let listed = json(&order(&site, Method::GET, path, &of("lead"), "").await);
        let names: Vec<_> = listed.as_array().unwrap().iter().map(|line| line["repository"].clone()).collect();
        assert_eq!(names, vec!["team/app"; expected], "{path}");
    }
    let about_one = ["/ls", "/tag", "/tag/pin", "/tag/unpin", "/tag/release", "/tag/rollback"];
    for (method, path, body) in ORDERS.into_iter().filter(|(_, path, _)| !about_one.contains(path)) {
        let reply = order(&site, method, path, &of("lead"), body).await;
        assert_eq!(reply.status, 403, "{path}: {reply:?}");
    }
    assert_eq!(order(&site, Method::GET, "/ls", &of("alice"), "").await.status, 403);
}

#[tokio::test]
async fn no_other_name_is_a_way_around_a_rule_for_orders() {
    // Invariant 14
    let upstream =
        "[upstream.far]\nhost = \"far.test\"\n[route.\"near/**\"]\nupstream = \"far\"\nrepository = \"team/**\"\n";
    let rules = rule("near/**", &["admin"], &["user:lead"]) + &rule("far.test/team/app", &["admin"], &["user:one"]);
    let site = site(&format!("{upstream}{rules}"), &["lead", "one"]).await;
    for (name, leads, ones) in [
        ("near/app", 404, 404),
        ("far.test/team/app", 404, 404),
        ("near/other", 404, 403),
        ("far.test/team/other", 404, 403),
        ("team/app", 403, 403),
        ("far.test/secret/app", 403, 403),
    ] {
        assert_eq!(tag(&site, "/tag", name, &of("lead")).await.status, leads, "{name}");
        assert_eq!(tag(&site, "/tag", name, &of("one")).await.status, ones, "{name}");
    }
}

#[tokio::test]
async fn the_list_has_each_repository_for_who_gives_orders_about_it() {
    // Invariant 14
    let upstream = "[upstream.far]\nhost = \"far.test:5000\"\n";
    let route = "[route.\"near/**\"]\nupstream = \"far\"\npush = true\n";
    let rules = rule("**", &["pull", "push", "admin"], &["user:root"])
        + &rule("near/**", &["admin"], &["user:lead"])
        + &rule("far.test/**", &["admin"], &["user:other"]);
    let site = site(&format!("{upstream}{route}{rules}"), &["root", "lead", "other"]).await;
    for name in ["near/app", "team/app"] {
        push(&site, name, "layer", &of("root")).await;
    }
    let all = ["far.test:5000/near/app", "team/app"];
    for (name, expected) in [("root", &all[..]), ("lead", &all[..1]), ("other", &[])] {
        let listed = json(&order(&site, Method::GET, "/ls", &of(name), "").await);
        let mut names: Vec<_> = listed.as_array().unwrap().iter().map(|line| line["repository"].clone()).collect();
        names.sort_by_key(ToString::to_string);
        assert_eq!(names, expected, "{name}");
    }
}

#[tokio::test]
async fn who_may_read_the_metrics_reads_nothing_else() {
    // Invariant 14
    let settings = "metrics_to = [\"robot:prometheus\", \"group:watch\"]\n[access.groups]\nwatch = [\"wanda\"]\n";
    let rules = rule("**", &["pull"], &["user:alice"]) + &rule("team/**", &["admin"], &["user:lead"]);
    let site = site(&format!("{settings}{rules}"), &["alice", "lead", "wanda"]).await;
    let order_of_none = RobotOrder { repositories: vec![], verbs: vec![], lasting: Duration::from_secs(3600) };
    let robot = |name: &str| robots(&site).add(name, &order_of_none, site.clock.now()).unwrap().0;
    let (scraper, other) = (robot("prometheus"), robot("other"));
    let bearer = format!("Bearer {}", scraper.expose());
    let scrapers = [basic("prometheus", scraper.expose()), bearer.clone(), of("wanda")];
    for shown in &scrapers {
        for (method, path, body) in ORDERS {
            let expected = if path == "/metrics" { 200 } else { 403 };
            assert_eq!(order(&site, method, path, shown, body).await.status, expected, "{shown} {path}");
        }
    }
    for shown in [of("alice"), of("lead"), basic("other", other.expose())] {
        assert_eq!(ask_admin(&site, "/metrics", &shown).await, 403);
    }
    assert_eq!(ask_admin(&site, "/metrics", "").await, 401);
    robots(&site).revoke("prometheus").unwrap();
    assert_eq!(ask_admin(&site, "/metrics", &bearer).await, 401, "revoked");
}

#[tokio::test]
async fn the_head_of_the_metrics_comes_without_them_by_http_2_as_well() {
    let site = site("metrics_to = [\"anonymous\"]\n", &[]).await;
    let asked = |path: &str| {
        let uri = format!("http://{}{path}", admin(&site));
        Request::builder().method(Method::HEAD).uri(uri).body(Full::<Bytes>::default()).unwrap()
    };
    let io = TokioIo::new(connect(admin(&site)).await.unwrap());
    let (mut two, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let io = TokioIo::new(connect(admin(&site)).await.unwrap());
    let (mut one, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for (path, expected) in [("/metrics", 200), ("/status", 401)] {
        for response in [two.send_request(asked(path)).await, one.send_request(asked(path)).await] {
            let response = response.unwrap();
            assert_eq!(response.status(), expected);
            assert!(response.headers()["content-length"].to_str().unwrap().parse::<u64>().unwrap() > 0);
            assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        }
    }
}

#[tokio::test]
async fn metrics_are_for_everybody_only_where_that_is_written() {
    let everybody = site("metrics_to = [\"anonymous\"]\n", &[]).await;
    assert_eq!(ask_admin(&everybody, "/metrics", "").await, 200);
    assert_eq!(ask_admin(&everybody, "/status", "").await, 401);
    let posted = order(&everybody, Method::POST, "/metrics", "", "{}").await;
    assert_eq!(posted.status, 401);
    add_users(&everybody, &["alice"]);
    assert_eq!(ask_admin(&everybody, "/metrics", "").await, 200);
    assert_eq!(ask_admin(&everybody, "/metrics", &basic("alice", "wrong-word")).await, 401);
}

#[tokio::test]
async fn a_robot_has_the_orders_of_its_scope_until_it_ends() {
    // Invariant 14
    let site = site("", &["alice"]).await;
    push(&site, "team/app", "layer", &of("alice")).await;
    let all = basic("all", add_robot(&site, "all", "**", &[Verb::Admin], 1).expose());
    let one = basic("one", add_robot(&site, "one", "team/**", &[Verb::Admin], 90).expose());
    let pusher = basic("pusher", add_robot(&site, "pusher", "**", &[Verb::Pull, Verb::Push], 90).expose());
    for (shown, gate, tagged) in [(&all, 200, 200), (&one, 403, 200), (&pusher, 403, 403)] {
        assert_eq!(ask_admin(&site, "/gate", shown).await, gate, "{shown}");
        assert_eq!(tag(&site, "/tag", "team/app", shown).await.status, tagged, "{shown}");
    }
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &all).await, 403);
    robots(&site).revoke("one").unwrap();
    assert_eq!(tag(&site, "/tag", "team/app", &one).await.status, 401, "revoked");
    site.advance(Duration::from_secs(86_400));
    assert_eq!(ask_admin(&site, "/gate", &all).await, 401, "expired");
    users(&site).remove("alice").unwrap();
    assert_eq!(ask_admin(&site, "/gate", &of("alice")).await, 401, "removed");
}

#[tokio::test]
async fn a_token_for_clients_gives_no_orders() {
    // Invariant 12
    let rules = format!("metrics_to = [\"user:root\"]\n{}", rule("**", &["pull", "admin"], &["user:root"]));
    let site = site(&rules, &["root"]).await;
    let scopes = ["repository:team/app:pull,admin", "repository:team/app:*", "registry:catalog:*"];
    let bearer = token(&site, &of("root"), &scopes).await;
    assert_eq!(status(&site, "/v2/team/app/manifests/1", &bearer).await, 404, "it is good for a pull");
    for (method, path, body) in ORDERS {
        let reply = order(&site, method, path, &bearer, body).await;
        assert_eq!(reply.status, 403, "{path}: {reply:?}");
        assert!(json(&reply)["hint"].as_str().unwrap().contains("token endpoint"), "{reply:?}");
    }
    let anonymous = token(&site, "", &[]).await;
    assert_eq!(ask_admin(&site, "/metrics", &anonymous).await, 401);
    assert_eq!(ask_admin(&site, "/status", &of("root")).await, 200);
}

#[tokio::test]
async fn a_web_page_cannot_have_a_browser_give_an_order() {
    // Invariant 16
    let site = site(&rule("**", &["admin"], &["user:root"]), &["root"]).await;
    let login = of("root");
    for kind in ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let headers = [("authorization", login.as_str()), ("content-type", kind), ("origin", "http://evil.test")];
        let reply = talk(connect(admin(&site)).await.unwrap(), Method::POST, "/gate/open", &headers, "{}").await;
        assert_eq!(reply.status, 415, "{kind}");
        // It asks before it sends anything else across origins; it must get no leave.
        let preflight = [("origin", "http://evil.test"), ("access-control-request-method", "POST")];
        let reply = talk(connect(admin(&site)).await.unwrap(), Method::OPTIONS, "/gate/open", &preflight, "").await;
        assert!(reply.status == 401 && reply.header("access-control-allow-origin").is_none(), "{reply:?}");
    }
    assert!(!site.app.gate().status().open);
    assert_eq!(order(&site, Method::POST, "/gate/open", &login, "{}").await.status, 200);
}

#[tokio::test]
async fn orders_have_a_bound() {
    // Invariants 16 and 17
    let site =
        Sealock::setup().settings("[server]\nheader_timeout = \"300ms\"\nidle_timeout = \"300ms\"").settings(LISTEN);
    let site = site.settings(&rule("**", &["admin"], &["user:root"])).start().await;
    add_users(&site, &["root"]);
    let long = format!("{{\"why\":\"{}\"}}", "x".repeat(70_000));
    assert_eq!(order(&site, Method::POST, "/gate/open", &of("root"), &long).await.status, 400);
    assert_eq!(order(&site, Method::POST, "/gate/open", &of("root"), "[").await.status, 400);
    // Who says nothing, or half a word, is sent away, and holds no place meanwhile that others need.
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_PER_ADDRESS_MAX {
        let mut stream = connect(admin(&site)).await.unwrap();
        stream.write_all(b"GET /status HTTP/1.1\r\nHost:").await.unwrap();
        silent.push(stream);
    }
    let mut turned_away = Vec::new();
    let mut late = connect(admin(&site)).await.unwrap();
    late.write_all(b"GET /status HTTP/1.1\r\n\r\n").await.unwrap();
    tokio::time::timeout(GIVE_UP, late.read_to_end(&mut turned_away)).await.unwrap().unwrap();
    assert!(turned_away.starts_with(b"HTTP/1.1 429 "), "{}", String::from_utf8_lossy(&turned_away));
    AdminClient::new(site.data()).status().await.expect("the socket has places of its own");
    for mut stream in silent {
        let read = tokio::time::timeout(GIVE_UP, stream.read_to_end(&mut Vec::new())).await;
        assert!(read.is_ok(), "it is still held");
    }
    assert_eq!(ask_admin(&site, "/status", &of("root")).await, 200);
}

/// From another of this machine's addresses.
#[expect(clippy::disallowed_methods, reason = "a client of the test's own, on loopback")]
async fn connect_from(from: &str, to: SocketAddr) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(from.parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn who_may_not_or_is_slow_holds_no_place() {
    // Invariant 17
    let site = site(&rule("**", &["admin"], &["user:root"]), &["root", "eve"]).await;
    let login = of("root");
    assert_eq!(ask_admin(&site, "/status", &login).await, 200);
    let begun = async |login: &str| {
        let mut stream = connect(admin(&site)).await.unwrap();
        let head = "POST /gate/open HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n";
        stream.write_all(format!("{head}Authorization: {login}\r\n\r\n").as_bytes()).await.unwrap();
        stream
    };
    let from_elsewhere = async || {
        let stream = connect_from("127.0.0.2:0", admin(&site)).await;
        talk(stream, Method::GET, "/status", &[("authorization", &login)], "").await
    };
    let mut strangers = Vec::new();
    for _ in 0..CONNECTIONS_PER_ADDRESS_MAX {
        strangers.push(begun("Basic Og==").await);
    }
    for mut stranger in strangers {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stranger.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 401 "), "{}", String::from_utf8_lossy(&answer));
        assert_eq!(from_elsewhere().await.status, 200);
    }
    // Who has no right is refused before a word of the order has come; who has one holds no place before all of it has.
    let eve = begun(&of("eve")).await;
    assert!(first_line(eve).await.starts_with("HTTP/1.1 403 "));
    let mut orders = Vec::new();
    for _ in 0..CONNECTIONS_PER_ADDRESS_MAX {
        orders.push(begun(&login).await);
        assert_eq!(from_elsewhere().await.status, 200);
    }
    AdminClient::new(site.data()).status().await.expect("the socket has places of its own");
}

async fn first_line(mut stream: tokio::net::TcpStream) -> String {
    let mut line = String::new();
    let reading =
        async { tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(&mut stream), &mut line).await };
    tokio::time::timeout(GIVE_UP, reading).await.expect("it is answered").unwrap();
    line
}

/// With a certificate for [`HOST`], and one besides that ends in a few days; by the site's clock, not by the clients'.
fn with_tls(folder: &std::path::Path, more: &str) -> (Setup, Authority) {
    let authority = Authority::new("the authority");
    authority.issue(&[HOST, "127.0.0.1"]).write(folder, "server");
    let soon = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2026, 10, 1);
    authority.issue_with(&["old.site"], soon).write(folder, "old");
    let settings =
        "[tls]\ncertificate = 'DIR/server.crt'\nalso = [{ certificate = 'DIR/old.crt' }]\nreload_every = '10ms'\n";
    let settings = format!("{settings}{more}").replace("DIR", folder.to_str().unwrap());
    (Sealock::setup().settings(&settings).settings(LISTEN), authority)
}

async fn order_by_tls(site: &Sealock, client: &Client, path: &str, headers: &[(&str, &str)]) -> Reply {
    talk(client.connect(admin(site), HOST).await.unwrap(), Method::GET, path, headers, "").await
}

#[tokio::test]
async fn over_tls_a_clients_certificate_is_a_login() {
    let folder = tempfile::tempdir().unwrap();
    let clients = Authority::new("the clients' authority");
    std::fs::write(folder.path().join("clients.crt"), &clients.pem).unwrap();
    let (setup, authority) = with_tls(folder.path(), "client_ca = 'DIR/clients.crt'\nclient_auth = 'optional'");
    let site = setup.settings(&rule("**", &["admin"], &["certificate:ops"])).start().await;
    assert!(site.app.admin_origins()[0].starts_with("https://127.0.0.1:"));
    let certificate = |name: &str| {
        clients.issue_with(&[name], |params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        })
    };
    let nobody = Client::trusting(&authority.pem);
    for (client, expected) in [
        (nobody.clone(), 401),
        (nobody.clone().showing(&certificate("ops")), 200),
        (nobody.clone().showing(&certificate("dev")), 403),
    ] {
        assert_eq!(order_by_tls(&site, &client, "/status", &[]).await.status, expected);
    }
    // Plain HTTP is told so, and a client that stalls in its handshake is nobody's loss.
    let mut plain = connect(admin(&site)).await.unwrap();
    plain.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("HTTPS server"), "{answer}");
}

#[tokio::test]
async fn a_stalled_handshake_is_ended() {
    // Invariant 17
    let folder = tempfile::tempdir().unwrap();
    let (setup, _) = with_tls(folder.path(), "[server]\nheader_timeout = \"300ms\"\n");
    let site = setup.start().await;
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut stream = connect(admin(&site)).await.unwrap();
        stream.write_all(begun).await.unwrap();
        let read = tokio::time::timeout(GIVE_UP, stream.read_to_end(&mut Vec::new())).await;
        assert!(read.is_ok(), "it is still held after {begun:?}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_by_the_ports_for_orders() {
    let folder = tempfile::tempdir().unwrap();
    let (setup, authority) = with_tls(folder.path(), "");
    let site = setup.start().await;
    let client = Client::trusting(&authority.pem);
    let next = authority.issue(&[HOST]);
    next.write(folder.path(), "server");
    let waiting = async {
        while shown(&client.connect(admin(&site), HOST).await.unwrap()) != next.der() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(GIVE_UP, waiting).await.expect("it is taken in time");
}

/// The samples of a page in Prometheus' text format (version 0.0.4), by name and labels; it must be well-formed.
fn samples(page: &str) -> std::collections::BTreeMap<String, f64> {
    let (mut types, mut helps, mut found) = (Vec::new(), Vec::new(), std::collections::BTreeMap::new());
    let is_name =
        |name: &str| name.starts_with("sealock_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && help.len() > 10, "{line}");
            helps.push(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kind == "gauge" && !name.ends_with("_total"), "{line}");
            types.push(name.to_owned());
        } else if line != "# EOF" {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            assert!(labels.ends_with('}') && types.last().map(String::as_str) == Some(name), "{line}");
            assert!(found.insert(series.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
        }
    }
    assert_eq!(types, helps, "each has its help");
    assert!(page.ends_with("# EOF\n"));
    found
}

#[tokio::test]
async fn the_metrics_say_what_the_status_says_and_when_a_certificate_ends() {
    // Invariants 12 and 18
    let folder = tempfile::tempdir().unwrap();
    let (setup, authority) = with_tls(folder.path(), "");
    let upstream = "[upstream.far]\nhost = \"far.test\"\n[upstream.hub]\nhost = \"hub.test\"\n";
    let rules = rule("**", &["pull", "push", "admin"], &["user:root"]);
    let site = setup.settings(&format!("{upstream}{rules}")).start().await;
    add_users(&site, &["root"]);
    let order = sealock::gate::Order { who: "test".to_owned(), why: None };
    site.app.gate().open(order, None, Some("far")).await.unwrap();
    let client = Client::trusting(&authority.pem);
    let login = of("root");
    let reply = order_by_tls(&site, &client, "/metrics", &[("authorization", &login)]).await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let page = String::from_utf8(reply.body.to_vec()).unwrap();
    let found = samples(&page);
    let warnings = AdminClient::new(site.data()).status().await.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("old.crt` expires on 2026-10-01")), "{warnings:?}");
    let file = folder.path().join("old.crt").display().to_string();
    let ends = found[&format!("sealock_certificate_expiry_timestamp_seconds{{file=\"{file}\",role=\"server\"}}")];
    assert_eq!(ends, 1_790_812_800.0, "2026-10-01");
    // The expression of docs/tls.md.
    assert!(ends - (site.clock.now().as_second() as f64) < 14.0 * 86_400.0);
    for (name, value) in [
        (format!("sealock_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0),
        ("sealock_start_timestamp_seconds".to_owned(), 1_790_000_000.0),
        ("sealock_gate_open".to_owned(), 0.0),
        ("sealock_upstream_gate_open{upstream=\"far\"}".to_owned(), 1.0),
        ("sealock_upstream_gate_open{upstream=\"hub\"}".to_owned(), 0.0),
        ("sealock_upstream_up{upstream=\"hub\"}".to_owned(), 1.0),
        ("sealock_read_only".to_owned(), 0.0),
        ("sealock_kept_tags".to_owned(), 0.0),
        ("sealock_warnings".to_owned(), warnings.len() as f64),
    ] {
        assert_eq!(found.get(&name), Some(&value), "{name} in\n{page}");
    }
    assert!(!page.contains("root") && !page.contains("test"), "{page}");
}

#[tokio::test]
async fn what_is_kept_is_in_the_metrics_and_what_clients_do_adds_no_line() {
    // Invariant 17
    let site = site(&rule("**", &["pull", "push", "admin"], &["user:root"]), &["root"]).await;
    let page = async || {
        let reply = order(&site, Method::GET, "/metrics", &of("root"), "").await;
        samples(std::str::from_utf8(&reply.body).unwrap())
    };
    let before = page().await;
    push(&site, "team/app", "layer", &of("root")).await;
    for number in 0..20 {
        get(&site, &format!("/v2/team/absent-{number}/manifests/1"), &of("root")).await;
    }
    let after = page().await;
    assert!(before.keys().eq(after.keys()));
    for (name, more) in [("kept_blobs", 2.0), ("kept_manifests", 1.0), ("kept_tags", 1.0), ("wanted", 0.0)] {
        let name = format!("sealock_{name}");
        assert_eq!((before[&name], after[&name]), (0.0, more), "{name}");
    }
    assert!(after["sealock_kept_bytes"] > 100.0 && after["sealock_free_bytes"] > 0.0);
}

/// Runs a command that is to fail in a line: its exit code and that line.
fn refused(folder: &std::path::Path, settings: &str, arguments: &[&str]) -> (Option<i32>, String) {
    std::fs::write(folder.join("site.toml"), settings).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
    command.current_dir(folder).env_clear().args(["-c", "site.toml"]).args(arguments);
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn settings_that_would_take_logins_in_the_clear_are_refused() {
    // Invariants 12 and 20
    let folder = tempfile::tempdir().unwrap();
    let settings =
        "presets = []\n[admin]\nlisten = [\"127.0.0.1:0\", \"0.0.0.0:0\"]\n[server]\nlisten = [\"127.0.0.1:0\"]\n";
    for arguments in [&["config", "check"][..], &["serve"]] {
        let (code, told) = refused(folder.path(), settings, arguments);
        let expected =
            "site.toml:3: admin.listen: `0.0.0.0:0` would take logins without encryption; name a certificate";
        assert!(code == Some(2) && told.contains(expected), "{arguments:?}: {code:?} {told}");
    }
    // A certificate of the command line is as good; here it is none.
    let (code, told) = refused(folder.path(), settings, &["serve", "--certificate", "none.crt"]);
    assert!(told.contains("none.crt") && !told.contains("admin.listen"), "{code:?} {told}");
    for (line, expected) in [
        ("metrics_to = [\"group:none\"]", "admin.metrics_to: there is no group `none`"),
        ("metrics_to = [\"prometheus\"]", "admin.metrics_to: `prometheus` is nobody"),
        ("listen = [\"localhost:1\"]", "admin.listen"),
    ] {
        let (code, told) = refused(folder.path(), &format!("[admin]\n{line}\n"), &["config", "check"]);
        assert!(code == Some(2) && told.contains("site.toml:2: ") && told.contains(expected), "{line}: {told}");
    }
    let anonymous = rule("**", &["pull", "admin"], &["anonymous"]);
    let (code, told) = refused(folder.path(), &anonymous, &["config", "check"]);
    assert!(code == Some(2) && told.contains("access.rule.0.to: orders are taken from those who have"), "{told}");
}

#[tokio::test]
async fn the_start_refuses_them_too_however_the_settings_came_about() {
    // Invariant 12
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::load(&[], []).unwrap();
    settings.server.data = folder.path().join("data");
    settings.server.listen = vec!["127.0.0.1:0".parse().unwrap()];
    settings.admin.listen = vec!["[::]:0".parse().unwrap()];
    let why = App::start(settings, None, Clock::system()).await.map(|_| ()).expect_err("it starts");
    assert_eq!(why.to_string(), "[admin] listen: `[::]:0` would take logins without encryption");
    assert!(why.hint().unwrap().contains("tls.certificate"), "{why:?}");
}

#[test]
fn an_address_that_is_taken_stops_the_start_in_a_line() {
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let settings = format!("[admin]\nlisten = [\"{address}\"]\n[server]\nlisten = [\"127.0.0.1:0\"]\n");
    let (code, told) = refused(folder.path(), &settings, &["serve"]);
    let expected = format!("[admin] listen: cannot listen on `{address}`");
    assert!(code == Some(1) && told.contains(&expected) && told.contains("hint: another program"), "{told}");
    assert!(!folder.path().join("data/sealock.sock").exists(), "nothing is left of it");
}
