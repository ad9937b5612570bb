//! The gate over real sockets: what leaves, what is cut, what is on record.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use jiff::{SignedDuration, Timestamp};
use rustix::net::{AddressFamily, SocketType};
use sealock::clock::Clock;
use sealock::gate::{
    AuditSettings, Body, Client, ClientSettings, Gate, GateError, GateSettings, Mode, Order, ProxySettings, Purpose,
    REQUESTS_PER_HOST_MAX, Refusal, SendError,
};
use sealock::size::Size;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const NOON: &str = "2026-03-01T12:00:00Z";
/// Longer than anything here takes, so that a broken gate fails a test and does not hang it.
const LONG: Duration = Duration::from_secs(20);

/// A gate in a folder of its own, with a clock to wind.
struct Site {
    data: tempfile::TempDir,
    clock: Clock,
    gate: Gate,
}

impl Site {
    fn closed() -> Self {
        Self::with(&GateSettings::default())
    }

    fn with(settings: &GateSettings) -> Self {
        let data = tempfile::tempdir().unwrap();
        let clock = Clock::wound(NOON.parse().unwrap());
        let gate = Gate::load(settings, data.path(), clock.clone()).unwrap();
        Self { data, clock, gate }
    }

    async fn open() -> Self {
        let site = Self::closed();
        site.gate.open(order(), None, None).await.unwrap();
        site
    }

    /// The server ends and starts again.
    fn restart(self, settings: &GateSettings) -> Self {
        let Self { data, clock, gate } = self;
        drop(gate);
        let gate = Gate::load(settings, data.path(), clock.clone()).unwrap();
        Self { data, clock, gate }
    }

    fn client(&self) -> Client {
        self.client_with(|_| {})
    }

    fn client_with(&self, change: impl FnOnce(&mut ClientSettings)) -> Client {
        let mut settings = ClientSettings {
            upstream: "hub".into(),
            tls: sealock::tls::client_config(None).unwrap(),
            proxy: None,
            connect_timeout: LONG,
            response_timeout: LONG,
            stall_timeout: LONG,
        };
        change(&mut settings);
        Client::new(self.gate.clone(), settings)
    }

    /// Winds the clock and lets the gate look at it.
    async fn advance(&self, by: SignedDuration) {
        self.clock.advance(by);
        self.gate.tick().await.unwrap();
    }

    /// What the audit file says, without the times.
    async fn audit(&self) -> Vec<Value> {
        self.gate.flush().await.unwrap();
        read_audit(self.data.path(), "audit.jsonl")
    }
}

fn read_audit(data: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(data.join("audit").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn order() -> Order {
    Order::new("alice", Some("weekly update"))
}

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

fn settings(text: &str) -> GateSettings {
    toml::from_str(text).unwrap()
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn get(url: impl AsRef<str>) -> Request<Full<Bytes>> {
    Request::get(url.as_ref()).body(Full::default()).unwrap()
}

/// Reads one request's head.
async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn answer(stream: &mut (impl AsyncWriteExt + Unpin), length: usize, body: &str) {
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Sends a request to `listener`'s far side, which answers `body` of `length` bytes.
async fn exchange(
    client: &Client,
    listener: &TcpListener,
    length: usize,
    body: &str,
) -> (http::Response<Body>, TcpStream) {
    let url = format!("http://{}/v2/a/blobs/b", listener.local_addr().unwrap());
    let far = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        answer(&mut stream, length, body).await;
        stream
    };
    let (response, stream) = tokio::join!(client.send(Purpose::Blob, get(url)), far);
    (response.unwrap(), stream)
}

/// The far side's view of an end: `Err` for a reset, `Ok(n)` for that many bytes and a FIN.
async fn end_of(stream: &mut TcpStream) -> Result<usize, ErrorKind> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.map_err(|error| error.kind())
}

fn nothing_to_read(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

async fn nobody_came(listener: TcpListener) -> bool {
    let listener = listener.into_std().unwrap();
    matches!(listener.accept(), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn is_refused(outcome: Result<http::Response<Body>, SendError>) -> bool {
    matches!(outcome, Err(SendError::Refused(Refusal::Closed { .. })))
}

#[tokio::test]
async fn a_closed_gate_makes_no_connection() {
    // Invariant 1
    // Invariant 15
    let site = Site::closed();
    let (listener, address) = listen().await;
    let client = site.client();
    assert!(is_refused(client.send(Purpose::Blob, get(format!("http://{address}/"))).await));
    assert!(is_refused(client.send(Purpose::Blob, get("https://name.invalid/")).await));
    site.gate.open(order(), None, None).await.unwrap();
    site.gate.close(order(), None).await.unwrap();
    assert!(is_refused(client.send(Purpose::Token, get(format!("http://{address}/"))).await));
    assert_eq!(site.gate.refusal("hub"), Some(Refusal::Closed { opens_at: None }));
    assert!(nobody_came(listener).await);
}

#[tokio::test]
async fn closing_resets_idle_and_streaming_connections_and_nothing_follows() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let client = site.client();
    let (streaming, mut streaming_far) = exchange(&client, &listener, 1_000, "the first").await;
    let (idle, mut idle_far) = exchange(&client, &listener, 3, "abc").await;
    assert_eq!(idle.into_body().collect().await.unwrap().to_bytes(), "abc");
    let mut streaming = streaming.into_body();
    assert_eq!(streaming.frame().await.unwrap().unwrap().into_data().unwrap(), "the first");
    assert_eq!(site.gate.status().sockets, 2);
    assert!(nothing_to_read(&streaming_far) && nothing_to_read(&idle_far));

    let status = site.gate.close(order(), None).await.unwrap();

    assert_eq!((status.open, status.sockets), (false, 0));
    assert_eq!(end_of(&mut streaming_far).await, Err(ErrorKind::ConnectionReset));
    assert_eq!(end_of(&mut idle_far).await, Err(ErrorKind::ConnectionReset));
    assert!(matches!(streaming.frame().await, Some(Err(SendError::Refused(_)))));
    assert!(streaming.frame().await.is_none());
}

#[tokio::test]
async fn what_has_arrived_is_not_handed_on_once_the_gate_has_closed() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let (response, _far) = exchange(&site.client(), &listener, 1_000, "all that came").await;
    site.gate.close(order(), None).await.unwrap();
    assert!(matches!(response.into_body().frame().await, Some(Err(SendError::Refused(_)))));
}

#[tokio::test]
async fn closing_cuts_a_tls_connection_without_a_farewell() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let client = site.client();
    let url = format!("https://{address}/");
    let far = async {
        // A client hello comes, and no answer goes back.
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.unwrap();
        let length = u16::from_be_bytes([hello[3], hello[4]]) as usize;
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        assert!(nothing_to_read(&stream));
        site.gate.close(order(), None).await.unwrap();
        end_of(&mut stream).await
    };
    let (outcome, end) = tokio::join!(client.send(Purpose::Manifest, get(url)), far);
    assert!(is_refused(outcome));
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn closing_stops_a_connection_that_is_being_made() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, port) = deaf_listener();
    let client = site.client();
    let send = client.send(Purpose::Blob, get(format!("http://127.0.0.1:{port}/")));
    let close = async {
        while syns_sent(port) == 0 {
            tokio::task::yield_now().await;
        }
        site.gate.close(order(), None).await.unwrap();
        syns_sent(port)
    };
    let (outcome, left) = tokio::join!(send, close);
    assert!(is_refused(outcome));
    assert_eq!(left, 0, "the kernel would send the SYN again");
    drop(listener);
}

/// A listener whose queue is full: the kernel drops further SYNs, and the connection hangs.
fn deaf_listener() -> ((std::os::fd::OwnedFd, Vec<std::os::fd::OwnedFd>), u16) {
    let new = || rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let listener = new();
    rustix::net::bind(&listener, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let bound = std::net::SocketAddr::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap();
    let first = new();
    rustix::net::connect(&first, &bound).unwrap();
    ((listener, vec![first]), bound.port())
}

/// Sockets of this machine that wait for an answer from `port`.
fn syns_sent(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let wanted = format!("0100007F:{port:04X} 02");
    table.lines().filter(|line| line.contains(&wanted)).count()
}

#[tokio::test]
async fn a_connection_ends_with_a_reset_also_while_the_gate_is_open() {
    // Invariant 1
    // A FIN would leave the kernel something to repeat after the gate has closed.
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let (response, mut far) = exchange(&site.client(), &listener, 1_000, "").await;
    drop(response);
    assert_eq!(end_of(&mut far).await, Err(ErrorKind::ConnectionReset));
    while site.gate.status().sockets > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_opening_ends_by_the_clock() {
    // Invariant 1
    let site = Site::closed();
    let status = site.gate.open(order(), Some(Duration::from_secs(7200)), None).await.unwrap();
    assert_eq!(status.closes_at, Some("2026-03-01T14:00:00Z".parse().unwrap()));
    let (listener, _) = listen().await;
    let (response, mut far) = exchange(&site.client(), &listener, 1_000, "").await;
    site.advance(hours(2) - SignedDuration::from_millis(1)).await;
    assert_eq!(site.gate.refusal("hub"), None);
    site.clock.advance(SignedDuration::from_millis(1));
    assert!(site.gate.refusal("hub").is_some() && !site.gate.status().open, "also before anybody has acted on it");
    site.gate.tick().await.unwrap();
    assert_eq!(end_of(&mut far).await, Err(ErrorKind::ConnectionReset));
    assert!(matches!(response.into_body().frame().await, Some(Err(SendError::Refused(_)))));
}

#[tokio::test]
async fn run_follows_the_clock_until_it_is_stopped() {
    let site = Site::with(&settings("windows = [{ when = '0 13 * * *', for = '1h' }]"));
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn({
        let (gate, stop) = (site.gate.clone(), stop.clone());
        async move { gate.run(stop).await }
    });
    site.clock.advance(hours(1));
    // An order wakes it; it then sees that the window has come as well.
    site.gate.open(order(), None, Some("quay")).await.unwrap();
    let mut changes = site.gate.changes();
    while !site.gate.status().open {
        changes.changed().await.unwrap();
    }
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn the_state_survives_a_restart() {
    let none = GateSettings::default();
    let site = Site::open().await.restart(&none);
    assert!(site.gate.status().open);
    assert_eq!(site.gate.status().who.as_deref(), Some("alice"));
    site.gate.open(order(), Some(Duration::from_secs(3600)), Some("quay")).await.unwrap();
    site.gate.close(order(), None).await.unwrap();
    let site = site.restart(&settings("mode = 'open'"));
    assert!(!site.gate.status().open && site.gate.refusal("quay").is_some(), "the mode is for a new folder only");
    site.gate.open(order(), Some(Duration::from_secs(3600)), None).await.unwrap();
    let site = site.restart(&none);
    assert_eq!(site.gate.status().closes_at, Some("2026-03-01T13:00:00Z".parse().unwrap()));
    site.clock.advance(hours(1));
    let site = site.restart(&none);
    assert!(!site.gate.status().open && site.gate.refusal("hub").is_some());
}

#[tokio::test]
async fn a_new_folder_is_closed_unless_the_settings_or_the_command_line_say_otherwise() {
    assert!(!Site::closed().gate.status().open);
    assert!(Site::with(&settings("mode = 'open'")).gate.status().open);
    let site = Site::with(&settings("mode = 'open'"));
    let status = site.gate.set_initial(Mode::Closed).await.unwrap();
    assert_eq!((status.open, status.who.as_deref()), (false, Some("command line")));
    assert!(site.gate.set_initial(Mode::Open).await.unwrap().open);
}

#[tokio::test]
async fn others_who_may_enter_the_data_folder_cannot_read_the_state() {
    let site = Site::open().await;
    let found = std::fs::metadata(site.data.path().join("gate.json")).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn an_unreadable_state_means_closed() {
    // Invariant 1
    let good = |site: &Site| std::fs::read_to_string(site.data.path().join("gate.json")).unwrap();
    let broken: [fn(String) -> String; 5] = [
        |_| String::new(),
        |_| "open".to_owned(),
        |good| good[..good.len() / 2].to_owned(),
        |good| good.replace("\"version\": 1", "\"version\": 2"),
        |good| good.replace("\"told\"", "\"tolt\""),
    ];
    for (number, breaks) in broken.into_iter().enumerate() {
        let site = Site::open().await;
        let file = site.data.path().join("gate.json");
        std::fs::write(&file, breaks(good(&site))).unwrap();
        let site = site.restart(&settings("mode = 'open'"));
        assert!(!site.gate.status().open && site.gate.refusal("hub").is_some(), "case {number}");
        assert!(site.gate.status().why.unwrap().starts_with("gate.json is unreadable"), "case {number}");
        assert!(site.data.path().join("gate.json.broken").exists(), "case {number}");
        let site = site.restart(&GateSettings::default());
        assert!(!site.gate.status().open, "case {number}");
    }
}

#[tokio::test]
async fn a_clock_that_goes_back_closes_the_gate() {
    // Invariant 1
    for restarts in [false, true] {
        let site = Site::with(&settings("windows = [{ when = '0 10 * * *', for = '1h' }]"));
        site.gate.open(order(), None, None).await.unwrap();
        site.clock.advance(-SignedDuration::from_secs(30));
        site.gate.tick().await.unwrap();
        assert!(site.gate.status().open, "a small correction is no jump");
        site.clock.advance(-SignedDuration::from_mins(100));
        let site = if restarts {
            site.restart(&GateSettings::default())
        } else {
            site.gate.tick().await.unwrap();
            site
        };
        assert!(!site.gate.status().open, "restarts: {restarts}; and the window at 10:00 does not open it either");
        assert_eq!(site.audit().await.last().unwrap()["who"], "clock");
        site.gate.open(order(), None, None).await.unwrap();
        assert!(site.gate.status().open);
    }
}

const NIGHTLY: &str = "windows = [{ when = '0 2 * * *', for = '2h', why = 'nightly' }]";

#[tokio::test]
async fn a_window_opens_the_gate_and_closes_it() {
    let site = Site::with(&settings(NIGHTLY));
    let two: Timestamp = "2026-03-02T02:00:00Z".parse().unwrap();
    assert_eq!(site.gate.refusal("hub"), Some(Refusal::Closed { opens_at: Some(two) }));
    assert_eq!(site.gate.refusal("hub").unwrap().to_string(), "the gate is closed until 2026-03-02 02:00 UTC");
    site.advance(hours(14)).await;
    let status = site.gate.status();
    assert_eq!((status.open, status.who.as_deref(), status.why.as_deref()), (true, Some("window"), Some("nightly")));
    assert_eq!(status.closes_at, Some("2026-03-02T04:00:00Z".parse().unwrap()));
    site.advance(hours(2)).await;
    assert!(!site.gate.status().open);
    let changes: Vec<_> =
        site.audit().await.iter().skip(1).map(|r| json!([r["who"], r["why"], r["from"], r["to"]])).collect();
    assert_eq!(
        changes,
        [json!(["window", "nightly", "closed", "open"]), json!(["window", "its time is over", "open", "closed"])]
    );
}

#[tokio::test]
async fn closing_within_a_window_holds_until_the_next_one_also_after_a_restart() {
    // Invariant 1
    let site = Site::with(&settings(NIGHTLY));
    site.advance(hours(14)).await;
    site.gate.close(order(), None).await.unwrap();
    site.advance(SignedDuration::from_mins(10)).await;
    let site = site.restart(&settings(NIGHTLY));
    site.gate.tick().await.unwrap();
    assert!(!site.gate.status().open);
    site.advance(hours(24)).await;
    assert!(site.gate.status().open);
}

#[tokio::test]
async fn an_explicit_opening_outlasts_the_window_and_a_longer_window_outlasts_it() {
    let site = Site::with(&settings(NIGHTLY));
    site.advance(hours(14)).await;
    site.gate.open(order(), Some(Duration::from_secs(3 * 3600)), None).await.unwrap();
    site.advance(hours(2)).await;
    assert!(site.gate.status().open, "the window is over, the order is not");
    site.advance(hours(1)).await;
    assert!(!site.gate.status().open);
    site.advance(hours(21)).await;
    site.gate.open(order(), Some(Duration::from_secs(3600)), None).await.unwrap();
    site.advance(hours(1)).await;
    assert!(site.gate.status().open, "the order is over, the window is not");
    site.advance(hours(1)).await;
    assert!(!site.gate.status().open);
}

#[tokio::test]
async fn one_upstream_can_be_open_by_itself() {
    // Invariant 1
    let site = Site::closed();
    site.gate.open(order(), Some(Duration::from_secs(3600)), Some("hub")).await.unwrap();
    let refused = |name| site.gate.refusal(name).is_some();
    assert_eq!((refused("hub"), refused("quay")), (false, true));
    assert!(!site.gate.status().open && site.gate.status().upstreams.contains_key("hub"));
    let (listener, _) = listen().await;
    let (_response, mut far) = exchange(&site.client(), &listener, 1_000, "").await;
    site.gate.open(order(), None, None).await.unwrap();
    assert!(!refused("quay"));
    site.advance(hours(1)).await;
    assert!(!refused("hub") && nothing_to_read(&far), "the general opening holds it");
    site.gate.close(order(), None).await.unwrap();
    assert!(refused("hub") && refused("quay"));
    assert_eq!(end_of(&mut far).await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn draining_lets_what_is_under_way_finish_and_nothing_new_begin() {
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let client = site.client();
    let (response, mut far) = exchange(&client, &listener, 10, "12345").await;
    let mut changes = site.gate.changes();
    let finish = async {
        changes.changed().await.unwrap();
        assert!(site.gate.status().draining);
        assert!(is_refused(client.send(Purpose::Blob, get(format!("http://{address}/"))).await));
        far.write_all(b"67890").await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (body, end_of(&mut far).await)
    };
    let (status, (body, end)) = tokio::join!(site.gate.close(order(), Some(LONG)), finish);
    let status = status.unwrap();
    assert_eq!((status.open, status.draining, status.sockets), (false, false, 0));
    assert_eq!(body, "1234567890");
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    let states: Vec<_> = site.audit().await.iter().map(|r| r["to"].clone()).filter(|to| !to.is_null()).collect();
    assert_eq!(states, ["closed", "open", "draining", "closed"]);
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_in_a_cut() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let (response, mut far) = exchange(&site.client(), &listener, 10, "12345").await;
    site.gate.close(order(), Some(Duration::from_millis(1))).await.unwrap();
    assert_eq!(end_of(&mut far).await, Err(ErrorKind::ConnectionReset));
    drop(response);
}

#[tokio::test]
async fn opening_ends_a_drain_and_closing_cuts_it_short() {
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let (response, mut far) = exchange(&site.client(), &listener, 10, "12345").await;
    let mut changes = site.gate.changes();
    let reopen = async {
        changes.changed().await.unwrap();
        site.gate.open(order(), None, None).await.unwrap();
        assert!(nothing_to_read(&far));
        drop(response);
    };
    let (drained, ()) = tokio::join!(site.gate.close(order(), Some(LONG)), reopen);
    assert!(matches!(drained, Err(GateError::Reopened)));
    assert_eq!(end_of(&mut far).await, Err(ErrorKind::ConnectionReset));

    let (response, mut far) = exchange(&site.client(), &listener, 10, "12345").await;
    let mut changes = site.gate.changes();
    let cut = async {
        changes.changed().await.unwrap();
        site.gate.close(order(), None).await.unwrap();
        let end = end_of(&mut far).await;
        drop(response);
        end
    };
    let (drained, end) = tokio::join!(site.gate.close(order(), Some(LONG)), cut);
    assert!(!drained.unwrap().open);
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_drain_that_another_takes_over_is_over_when_that_one_is() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let (response, mut far) = exchange(&site.client(), &listener, 10, "12345").await;
    let close = |drain| {
        let gate = site.gate.clone();
        tokio::spawn(async move { gate.close(order(), Some(drain)).await.unwrap() })
    };
    let (mut first, second) = (close(Duration::ZERO), close(LONG));
    while site.audit().await.iter().filter(|record| record["to"] == "draining").count() < 2 {}
    // Time enough for one that does not wait to say that it is done.
    let early = tokio::time::timeout(Duration::from_millis(100), &mut first).await;
    assert!(early.is_err() && nothing_to_read(&far), "it is said to be done while a socket lives");
    drop(response);
    for drained in [first, second] {
        assert_eq!(drained.await.unwrap().sockets, 0);
    }
    assert_eq!(end_of(&mut far).await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn opening_one_upstream_ends_a_drain_too() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let (response, far) = exchange(&site.client(), &listener, 10, "12345").await;
    let mut changes = site.gate.changes();
    let reopen = async {
        changes.changed().await.unwrap();
        site.gate.open(order(), None, Some("hub")).await.unwrap();
    };
    let (drained, ()) = tokio::join!(site.gate.close(order(), Some(LONG)), reopen);
    assert!(matches!(drained, Err(GateError::Reopened)));
    assert!(nothing_to_read(&far), "it is open for this one");
    drop(response);
}

#[tokio::test]
async fn an_order_is_carried_out_although_who_gave_it_left() {
    // Invariant 1
    let site = Site::open().await;
    let mut changes = site.gate.changes();
    tokio::select! {
        biased;
        _ = site.gate.close(order(), Some(LONG)) => unreachable!("it has not been polled to its end"),
        () = std::future::ready(()) => {}
    }
    while site.gate.status().open || site.gate.status().draining {
        changes.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_gate_that_cannot_be_kept_on_disk_does_not_open_but_closes() {
    // Invariant 1
    // Invariant 19
    let site = Site::closed();
    let in_the_way = site.data.path().join("gate.json");
    let _ = std::fs::remove_file(&in_the_way);
    std::fs::create_dir(&in_the_way).unwrap();
    let error = site.gate.open(order(), None, None).await.unwrap_err();
    assert!(matches!(error, GateError::State { .. }) && error.hint().is_some());
    assert!(site.gate.refusal("hub").is_some());
    std::fs::remove_dir(&in_the_way).unwrap();
    site.gate.open(order(), None, None).await.unwrap();
    std::fs::remove_file(&in_the_way).unwrap();
    std::fs::create_dir(&in_the_way).unwrap();
    assert!(site.gate.close(order(), None).await.is_err());
    assert!(site.gate.refusal("hub").is_some());
}

#[tokio::test]
async fn every_request_is_on_record_without_its_query_and_secrets() {
    // Invariant 12
    // Invariant 19
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let client = site.client();
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("http://{address}/v2/a/manifests/1?signature=s3cret"))
        .header("authorization", "Bearer s3cret")
        .body(Full::default())
        .unwrap();
    let far = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = head(&mut stream).await;
        answer(&mut stream, 4, "four").await;
        head
    };
    let (response, head) = tokio::join!(client.send(Purpose::Manifest, request), far);
    let agent = format!("\r\nuser-agent: sealock/{}\r\n", env!("CARGO_PKG_VERSION"));
    assert!(head.starts_with("GET /v2/a/manifests/1?signature=s3cret HTTP/1.1\r\n") && head.contains(&agent), "{head}");
    assert!(!head.contains("accept-encoding"));
    response.unwrap().into_body().collect().await.unwrap();
    let (response, _far) = exchange(&client, &listener, 100, "seven b").await;
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    let (_response, _far) = exchange(&client, &listener, 100, "seven b").await;
    site.gate.close(order(), None).await.unwrap();
    drop(_response);
    let records = site.audit().await;
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains("s3cret") && !text.contains("signature"), "{text}");
    let requests: Vec<_> = records.iter().filter(|record| record["event"] == "request").collect();
    assert_eq!(
        *requests[0],
        json!({"event": "request", "at": NOON, "purpose": "manifest", "upstream": "hub", "host": address,
               "method": "GET", "path": "/v2/a/manifests/1", "status": 200, "bytes": 4, "ms": requests[0]["ms"],
               "outcome": "done"})
    );
    let ends: Vec<_> = requests.iter().skip(1).map(|r| (r["outcome"].clone(), r["bytes"].clone())).collect();
    assert_eq!(ends, [(json!("dropped"), json!(7)), (json!("dropped"), json!(0))]);
    assert_eq!(
        records[1],
        json!({"event": "gate", "at": NOON, "who": "alice", "why": "weekly update", "upstream": null,
               "from": "closed", "to": "open", "until": null})
    );
}

#[tokio::test]
async fn failures_are_on_record_with_their_cause() {
    // Invariant 19
    let site = Site::open().await;
    let (listener, address) = listen().await;
    drop(listener);
    let client = site.client();
    let error = client.send(Purpose::Token, get(format!("http://{address}/"))).await.unwrap_err();
    assert!(matches!(error, SendError::Connect { .. }), "{error:?}");

    let (listener, _) = listen().await;
    let (response, far) = exchange(&client, &listener, 100, "some").await;
    drop(far);
    assert!(matches!(response.into_body().collect().await, Err(SendError::Broken { .. })));

    let silent = site.client_with(|settings| settings.stall_timeout = Duration::from_millis(20));
    let (response, _far) = exchange(&silent, &listener, 100, "some").await;
    assert!(matches!(response.into_body().collect().await, Err(SendError::TimedOut { .. })));

    let mute = site.client_with(|settings| {
        settings.connect_timeout = Duration::from_millis(10);
        settings.response_timeout = Duration::from_millis(10);
    });
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (silence, _far) = tokio::join!(mute.send(Purpose::Blob, get(&url)), listener.accept());
    assert!(matches!(silence, Err(SendError::TimedOut { .. })));

    let (response, _far) = exchange(&client, &listener, 100, "some").await;
    site.gate.close(order(), None).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    let records = site.audit().await;
    let ends: Vec<_> = records.iter().filter_map(|record| record["outcome"].as_str()).collect();
    assert_eq!(ends, ["unreachable", "broken", "timed_out", "timed_out", "cut_by_the_gate"]);
    let causes: Vec<_> = records.iter().filter_map(|record| record["cause"].as_str()).collect();
    assert!(causes[0].starts_with(&format!("cannot connect to {address}: ")), "{causes:?}");
}

#[tokio::test]
async fn a_head_answer_is_done_without_being_read() {
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let client = site.client();
    let request = Request::head(format!("http://{address}/")).body(Full::default()).unwrap();
    let far = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        answer(&mut stream, 4_000, "").await;
        stream
    };
    let (response, _far) = tokio::join!(client.send(Purpose::Manifest, request), far);
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-length"], "4000");
    assert_eq!(site.gate.status().under_way, 0);
    assert_eq!(site.audit().await.last().unwrap()["outcome"], "done");
}

#[tokio::test]
async fn control_characters_stay_on_their_line() {
    // Invariant 19
    let site = Site::closed();
    let nasty = "a\nb\u{1b}[2Jc\u{9b}d\u{7f}\u{2028}\"";
    site.gate.open(Order::new("mallory\r\n{}", Some(nasty)), None, None).await.unwrap();
    let records = site.audit().await;
    assert_eq!((records.len(), &records[1]["why"]), (2, &json!(nasty)));
    let text = std::fs::read_to_string(site.data.path().join("audit/audit.jsonl")).unwrap();
    assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{2028}'));
}

#[tokio::test]
async fn the_audit_file_rotates_by_size_and_loses_nothing_until_then() {
    // Invariant 17
    // Invariant 19
    let data = tempfile::tempdir().unwrap();
    let clock = Clock::wound(NOON.parse().unwrap());
    let audit = AuditSettings { rotate_size: Size(4096), keep: 3 };
    let gate = Gate::load_with(&GateSettings::default(), &audit, data.path(), clock).unwrap();
    let mut given = 1;
    while !data.path().join("audit/audit.3.jsonl").exists() {
        gate.open(order(), None, None).await.unwrap();
        given += 1;
    }
    let files = ["audit.3.jsonl", "audit.2.jsonl", "audit.1.jsonl", "audit.jsonl"];
    let kept: usize = files.iter().map(|name| read_audit(data.path(), name).len()).sum();
    assert_eq!(kept, given);
    for _ in 0..given {
        gate.open(order(), None, None).await.unwrap();
    }
    let found: Vec<_> = std::fs::read_dir(data.path().join("audit")).unwrap().collect();
    assert_eq!(found.len(), 4);
    for file in found {
        assert!(file.unwrap().metadata().unwrap().len() <= 4096);
    }
}

#[tokio::test]
async fn half_a_line_left_by_a_crash_does_not_spoil_the_next_record() {
    // Invariant 19
    let site = Site::closed();
    let file = site.data.path().join("audit/audit.jsonl");
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str("{\"event\":\"requ");
    std::fs::write(&file, text).unwrap();
    let site = site.restart(&GateSettings::default());
    site.gate.flush().await.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((text.lines().count(), &last["why"]), (3, &json!("started")));
}

#[tokio::test]
async fn requests_to_one_host_wait_their_turn() {
    // Invariant 17
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let client = site.client();
    let mut held = Vec::new();
    for _ in 0..REQUESTS_PER_HOST_MAX {
        held.push(exchange(&client, &listener, 10, "1").await);
    }
    let one_more = tokio::spawn({
        let (client, url) = (client.clone(), format!("http://{}/", listener.local_addr().unwrap()));
        async move { client.send(Purpose::Blob, get(url)).await }
    });
    while site.gate.status().under_way <= REQUESTS_PER_HOST_MAX {
        tokio::task::yield_now().await;
    }
    assert_eq!(site.gate.status().sockets, REQUESTS_PER_HOST_MAX);
    drop(held.pop());
    let (mut stream, _) = listener.accept().await.unwrap();
    head(&mut stream).await;
    answer(&mut stream, 0, "").await;
    assert!(one_more.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_reopened_gate_uses_fresh_connections() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, _) = listen().await;
    let client = site.client();
    let (first, _far) = exchange(&client, &listener, 3, "abc").await;
    first.into_body().collect().await.unwrap();
    site.gate.close(order(), None).await.unwrap();
    site.gate.open(order(), None, None).await.unwrap();
    let (second, _far) = exchange(&client, &listener, 3, "abc").await;
    assert_eq!(second.into_body().collect().await.unwrap().to_bytes(), "abc");
}

#[tokio::test]
async fn connections_are_used_again() {
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let client = site.client();
    let far = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..3 {
            head(&mut stream).await;
            answer(&mut stream, 3, "abc").await;
        }
        stream
    };
    let near = async {
        for _ in 0..3 {
            let response = client.send(Purpose::Blob, get(format!("http://{address}/"))).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
    };
    let (_far, ()) = tokio::join!(far, near);
}

/// An authority of the test's own, and a server's settings with a certificate for `name`.
struct Authority {
    pem: String,
    server: Arc<rustls::ServerConfig>,
}

fn authority(name: &str, protocols: &[&str]) -> Authority {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = parameters.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(parameters, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    server.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    Authority { pem: ca.pem(), server: Arc::new(server) }
}

impl Authority {
    fn trusted(&self) -> Arc<rustls::ClientConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &self.pem).unwrap();
        sealock::tls::client_config(Some(file.path())).unwrap()
    }

    async fn accept<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> std::io::Result<tokio_rustls::server::TlsStream<S>> {
        tokio_rustls::TlsAcceptor::from(self.server.clone()).accept(stream).await
    }
}

#[tokio::test]
async fn a_site_authority_is_trusted_only_with_its_file() {
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let authority = authority("127.0.0.1", &["http/1.1"]);
    let url = format!("https://{address}/v2/");
    let far = async {
        let (stream, _) = listener.accept().await.unwrap();
        authority.accept(stream).await.map(drop)
    };
    let stranger = site.client();
    let (refused, far) = tokio::join!(stranger.send(Purpose::Manifest, get(&url)), far);
    let Err(SendError::Connect { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(source.source().unwrap().to_string().contains("UnknownIssuer"), "{source:?}");
    assert!(far.is_err());

    let friend = site.client_with(|settings| settings.tls = authority.trusted());
    let far = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = authority.accept(stream).await.unwrap();
        head(&mut stream).await;
        answer(&mut stream, 3, "abc").await;
        stream
    };
    let (response, _far) = tokio::join!(friend.send(Purpose::Manifest, get(&url)), far);
    assert_eq!(response.unwrap().into_body().collect().await.unwrap().to_bytes(), "abc");
}

#[tokio::test]
async fn http_2_is_spoken_where_the_far_side_offers_it_and_closing_resets_it() {
    // Invariant 1
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let authority = authority("127.0.0.1", &["h2", "http/1.1"]);
    let client = site.client_with(|settings| settings.tls = authority.trusted());
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        let endless = http_body_util::StreamBody::new(futures_util::stream::unfold((), |()| async {
            tokio::task::yield_now().await;
            Some((Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(&[7; 4096]))), ()))
        }));
        Ok::<_, std::convert::Infallible>(http::Response::new(endless))
    });
    let far = async {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = hyper_util::rt::TokioIo::new(authority.accept(stream).await.unwrap());
        let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        server.serve_connection(stream, service).await
    };
    let near = async {
        let response = client.send(Purpose::Blob, get(format!("https://{address}/"))).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        let mut body = response.into_body();
        let mut seen = 0;
        while seen < 1 << 20 {
            seen += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        site.gate.close(order(), None).await.unwrap();
        assert!(matches!(body.frame().await, Some(Err(SendError::Refused(_)))));
    };
    let (end, ()) = tokio::join!(far, near);
    let cause = std::error::Error::source(&end.unwrap_err()).unwrap().to_string();
    assert!(cause.contains("reset"), "{cause}");
}

fn proxy(address: &str) -> Option<Arc<ProxySettings>> {
    let url = format!("http://me:pr0xy@{address}");
    let read = |name: &str| matches!(name, "https_proxy" | "http_proxy").then(|| url.clone());
    ProxySettings::from_variables(read).unwrap().map(Arc::new)
}

#[tokio::test]
async fn https_goes_through_a_proxys_tunnel_and_the_proxy_sees_no_request() {
    // Invariant 12
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let authority = authority("registry.example", &["http/1.1"]);
    let client = site.client_with(|settings| {
        settings.tls = authority.trusted();
        settings.proxy = proxy(&address);
    });
    let request = Request::get("https://registry.example/v2/?q=1").header("authorization", "Bearer t0ken");
    let far = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let connect = head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        let mut stream = authority.accept(stream).await.unwrap();
        let inside = head(&mut stream).await;
        answer(&mut stream, 3, "abc").await;
        (connect, inside, stream)
    };
    let sent = client.send(Purpose::Manifest, request.body(Full::default()).unwrap());
    let (response, (connect, inside, _far)) = tokio::join!(sent, far);
    assert_eq!(response.unwrap().into_body().collect().await.unwrap().to_bytes(), "abc");
    assert_eq!(
        connect,
        "CONNECT registry.example:443 HTTP/1.1\r\nHost: registry.example:443\r\n\
         Proxy-Authorization: Basic bWU6cHIweHk=\r\n\r\n"
    );
    assert!(inside.starts_with("GET /v2/?q=1 HTTP/1.1\r\n") && !inside.contains("proxy-authorization"), "{inside}");
    let text = serde_json::to_string(&site.audit().await).unwrap();
    assert!(!text.contains("pr0xy") && !text.contains("bWU6cHIweHk") && !text.contains("t0ken"), "{text}");
}

#[tokio::test]
async fn plain_http_goes_through_a_proxy_in_absolute_form_and_loopback_goes_past_it() {
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let client = site.client_with(|settings| settings.proxy = proxy(&address));
    for (url, line, credentials) in [
        ("http://registry.example/v2/".to_owned(), "GET http://registry.example/v2/ HTTP/1.1\r\n", true),
        (format!("http://{address}/v2/"), "GET /v2/ HTTP/1.1\r\n", false),
    ] {
        let far = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let seen = head(&mut stream).await;
            answer(&mut stream, 0, "").await;
            seen
        };
        let (response, seen) = tokio::join!(client.send(Purpose::Manifest, get(url)), far);
        response.unwrap();
        assert!(seen.starts_with(line), "{seen}");
        assert_eq!(seen.contains("\r\nproxy-authorization: Basic bWU6cHIweHk=\r\n"), credentials, "{seen}");
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let site = Site::open().await;
    let (listener, address) = listen().await;
    let client = site.client_with(|settings| settings.proxy = proxy(&address));
    for (said, wanted) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".to_owned(), "407 Proxy Authentication Required"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), "broke off"),
        (format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(20_000)), "broke off"),
    ] {
        let far = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            head(&mut stream).await;
            stream.write_all(said.as_bytes()).await.unwrap();
            stream
        };
        let (refused, _far) = tokio::join!(client.send(Purpose::Manifest, get("https://registry.example/")), far);
        let Err(SendError::Connect { source, .. }) = refused else { panic!("{refused:?}") };
        assert!(source.to_string().contains(wanted) && source.to_string().contains(&address), "{source}");
    }
}

#[test]
fn wrong_settings_name_their_key() {
    // Invariant 20
    let wrong = |text: &str| settings(text).check().unwrap_err();
    assert_eq!(
        wrong("windows = [{ when = '0 2 * * *', for = '1h' }, { when = 'nightly', for = '1h' }]").0,
        "windows[1].when"
    );
    assert_eq!(wrong("windows = [{ when = '0 2 * * *', for = '0s' }]").0, "windows[0].for");
    assert_eq!(wrong("windows = [{ when = '0 2 * * *', for = '1h', time_zone = 'Mars' }]").0, "windows[0].time_zone");
    assert!(settings(NIGHTLY).check().is_ok());
    for unknown in
        ["windoes = []", "mode = 'ajar'", "windows = [{ when = '0 2 * * *' }]", "windows = [{ when = '', for = 2 }]"]
    {
        assert!(toml::from_str::<GateSettings>(unknown).is_err(), "{unknown}");
    }
    let audit = |text| toml::from_str::<AuditSettings>(text).unwrap().check();
    assert!(audit("").is_ok() && audit("rotate_size = '1MiB'\nkeep = 2").is_ok());
    assert_eq!(audit("rotate_size = '1B'").unwrap_err().0, "rotate_size");
    assert_eq!(audit("keep = 0").unwrap_err().0, "keep");
}

#[test]
fn a_wrong_authority_file_is_named() {
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.crt");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (text, wanted) in
        [("", "holds no certificate"), ("hello", "holds no certificate"), (broken, "certificate 1 in")]
    {
        std::fs::write(&path, text).unwrap();
        let error = sealock::tls::client_config(Some(&path)).unwrap_err();
        assert!(error.to_string().contains(wanted) && error.to_string().contains("ca.crt"), "{error}");
        assert!(error.hint().is_some());
    }
    let error = sealock::tls::client_config(Some(&folder.path().join("none.crt"))).unwrap_err();
    assert!(error.to_string().contains("none.crt"), "{error}");
}
