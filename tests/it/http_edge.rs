//! The edge of the server over real sockets: protocols, limits, time-outs, broken bodies, the stop.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sealock::server::{Body, Listeners, Peer, Pool, ServerSettings};
use sealock::size::Span;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LONG: Span = Span(Duration::from_secs(3600));
const SHORT: Span = Span(Duration::from_millis(100));
const BIG: u64 = 1 << 30;
/// After this a test that waits for something that does not come fails instead of hanging.
const GIVE_UP: Duration = Duration::from_secs(60);

/// A running edge whose handler knows a few paths.
struct Edge {
    address: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<usize>,
    /// Lets `/held` go on.
    release: Arc<Notify>,
    /// Says that `/held` was reached.
    reached: Arc<Notify>,
}

/// Nothing times out unless a test says so.
fn patient() -> ServerSettings {
    ServerSettings {
        header_timeout: LONG,
        idle_timeout: LONG,
        stall_timeout: LONG,
        shutdown_timeout: LONG,
        ..ServerSettings::default()
    }
}

impl Edge {
    async fn start(settings: ServerSettings) -> Self {
        let listeners = Listeners::bind(&[SocketAddr::from(([127, 0, 0, 1], 0))]).await.unwrap();
        let address = listeners.addresses()[0];
        let (stop, release, reached) = (CancellationToken::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (pool, held) = (Pool::new(), (Arc::clone(&release), Arc::clone(&reached)));
        let handler = move |request: Request<Incoming>, _: Peer| answer(request, Arc::clone(&pool), held.clone());
        let until = stop.clone();
        let running = tokio::spawn(async move { listeners.serve(&settings, handler, until).await });
        Self { address, stop, running, release, reached }
    }

    #[expect(clippy::disallowed_methods, reason = "a client of the tests, on loopback")]
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut client = self.connect().await;
        client.write_all(bytes).await.unwrap();
        client
    }
}

async fn answer(request: Request<Incoming>, pool: Arc<Pool>, held: (Arc<Notify>, Arc<Notify>)) -> Response<Body> {
    let with_length = |body: Body, size: u64| {
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
        response
    };
    match request.uri().path() {
        "/hello" => Response::new(Body::full("hello")),
        "/head" => with_length(Body::empty(), 1234),
        "/file" => Response::new(Body::kept(file_of(1_000_000), 0..1_000_000, &pool)),
        "/big" => Response::new(Body::kept(file_of(BIG), 0..BIG, &pool)),
        "/truncated" => Response::new(Body::kept(file_of(4 << 20), 0..8 << 20, &pool)),
        "/held" => {
            held.1.notify_one();
            held.0.notified().await;
            Response::new(Body::kept(file_of(1_000_000), 0..1_000_000, &pool))
        }
        "/refused" => {
            let mut response = Response::new(Body::full("no"));
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
        "/panic" => panic!("a defect on purpose"),
        _ => Response::new(Body::empty()),
    }
}

/// A file of `size` zero bytes, sparse.
fn file_of(size: u64) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"").unwrap();
    file.set_len(size).unwrap();
    Arc::new(file)
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// The head of one response, and what came with it of the body.
async fn read_head(client: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return (String::from_utf8(bytes).unwrap(), rest);
        }
        assert!(in_time(client.read_buf(&mut bytes)).await.unwrap() > 0, "closed within a head: {bytes:?}");
    }
}

async fn read_hello(client: &mut TcpStream) {
    let (head, mut body) = read_head(client).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    while body.len() < 5 {
        assert!(client.read_buf(&mut body).await.unwrap() > 0);
    }
    assert_eq!(body, b"hello");
}

/// Waits until the server ends the connection; what it sent until then.
async fn read_to_end(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    in_time(async { while let Ok(1..) = client.read_buf(&mut bytes).await {} }).await;
    bytes
}

async fn in_time<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(GIVE_UP, waiting).await.expect("it comes in time")
}

#[tokio::test]
async fn a_tls_hello_is_answered_in_plain_words_and_closed_at_once() {
    let edge = Edge::start(patient()).await;
    let mut client = edge.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    let answer = String::from_utf8(read_to_end(&mut client).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("plain HTTP"), "{answer}");
}

#[tokio::test]
async fn rubbish_is_closed_at_once() {
    let edge = Edge::start(patient()).await;
    for rubbish in [&b"\0\0\0\0"[..], b"hello?\r\n", b"{}", &[0xff; 100]] {
        let mut client = edge.send(rubbish).await;
        assert!(read_to_end(&mut client).await.starts_with(b"HTTP/1.1 400 "));
    }
}

#[tokio::test]
async fn malformed_requests_are_400() {
    // Invariant 16
    let edge = Edge::start(patient()).await;
    for bytes in [&b"GET\r\n\r\n"[..], b"GET /hello HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"] {
        let mut client = edge.send(bytes).await;
        let answer = read_to_end(&mut client).await;
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn heads_that_never_end_are_cut_and_idle_connections_are_not() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { header_timeout: SHORT, ..patient() }).await;
    let mut idle = edge.send(&get("/hello")).await;
    read_hello(&mut idle).await;
    let mut slow = Vec::new();
    for beginning in [&b""[..], b"P", b"PR", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n"] {
        for _ in 0..20 {
            slow.push(edge.send(beginning).await);
        }
    }
    for client in &mut slow {
        read_to_end(client).await;
    }
    // The header timeout has passed more than once by now for the idle one, too.
    idle.write_all(&get("/hello")).await.unwrap();
    read_hello(&mut idle).await;
}

#[tokio::test]
async fn a_second_head_that_never_ends_is_cut_as_well() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { header_timeout: SHORT, ..patient() }).await;
    let mut client = edge.send(&get("/hello")).await;
    read_hello(&mut client).await;
    client.write_all(b"GET /hello HTTP/1.1\r\n").await.unwrap();
    assert_eq!(read_to_end(&mut client).await, b"");
}

#[tokio::test]
async fn a_head_that_drips_is_cut_although_bytes_keep_coming() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { header_timeout: SHORT, ..patient() }).await;
    let (mut reading, mut writing) = edge.send(b"GET / HTTP/1.1\r\nX-A: ").await.into_split();
    let dripping = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            // Within one header: their number is limited apart from this.
            if writing.write_all(b"a").await.is_err() {
                return;
            }
        }
    });
    in_time(async { while let Ok(1..) = reading.read(&mut [0; 64]).await {} }).await;
    dripping.await.unwrap();
}

#[tokio::test]
async fn idle_connections_end_after_the_idle_timeout() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { idle_timeout: SHORT, ..patient() }).await;
    let mut client = edge.send(&get("/hello")).await;
    read_hello(&mut client).await;
    assert_eq!(read_to_end(&mut client).await, b"");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { stall_timeout: SHORT, connections_max: 1, ..patient() }).await;
    let mut deaf = edge.send(&get("/big")).await;
    // There is one seat: this is answered once the first client has lost it.
    let mut next = edge.send(&get("/hello")).await;
    read_hello(&mut next).await;
    assert!((read_to_end(&mut deaf).await.len() as u64) < BIG);
}

#[tokio::test]
async fn a_client_that_waits_for_us_is_not_cut() {
    let edge =
        Edge::start(ServerSettings { stall_timeout: SHORT, idle_timeout: SHORT, header_timeout: SHORT, ..patient() })
            .await;
    let mut waiting = edge.send(&get("/held")).await;
    edge.reached.notified().await;
    // All three clocks run out on another connection meanwhile.
    let mut idle = edge.send(&get("/hello")).await;
    read_to_end(&mut idle).await;
    edge.release.notify_one();
    let (head, _) = read_head(&mut waiting).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn three_megabytes_of_headers_are_431() {
    // Invariant 17
    let edge = Edge::start(patient()).await;
    let (mut reading, mut writing) = edge.connect().await.into_split();
    let sending = tokio::spawn(async move {
        let mut bytes = b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec();
        bytes.extend(b"X-Filler: 0123456789abcdef0123456789abcdef\r\n".repeat(70_000));
        // The server closes before it has taken them all.
        let _ = writing.write_all(&bytes).await;
    });
    let mut answer = Vec::new();
    while let Ok(1..) = reading.read_buf(&mut answer).await {}
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    sending.await.unwrap();
}

#[tokio::test]
async fn more_than_a_hundred_headers_are_431() {
    // Invariant 17
    let edge = Edge::start(patient()).await;
    let head = format!("GET / HTTP/1.1\r\n{}\r\n", "X-A: b\r\n".repeat(101));
    let mut client = edge.send(head.as_bytes()).await;
    assert!(read_to_end(&mut client).await.starts_with(b"HTTP/1.1 431"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let edge = Edge::start(patient()).await;
    let last = b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec();
    let mut client = edge.send(&[get("/hello"), get("/nothing"), last].concat()).await;
    let answers = String::from_utf8(read_to_end(&mut client).await).unwrap();
    let lengths = answers.lines().filter_map(|line| line.strip_prefix("content-length: "));
    assert_eq!(lengths.collect::<Vec<_>>(), ["5", "0", "5"], "{answers}");
    assert!(answers.ends_with("hello"), "{answers}");
}

#[tokio::test]
async fn head_keeps_the_length_that_the_body_would_have() {
    // containerd refuses a HEAD reply that says 0.
    let edge = Edge::start(patient()).await;
    let mut client = edge.send(b"HEAD /head HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let answer = String::from_utf8(read_to_end(&mut client).await).unwrap();
    assert!(answer.contains("content-length: 1234\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_kept_file_comes_whole_with_its_length() {
    let edge = Edge::start(patient()).await;
    let mut client = edge.send(b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let (head, mut body) = read_head(&mut client).await;
    assert!(head.contains("content-length: 1000000\r\n"), "{head}");
    body.extend(read_to_end(&mut client).await);
    assert_eq!(body.len(), 1_000_000);
}

#[tokio::test]
async fn a_truncated_file_breaks_the_connection() {
    // Invariant 3
    let edge = Edge::start(patient()).await;
    let mut client = edge.send(b"GET /truncated HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let (head, mut body) = read_head(&mut client).await;
    assert!(head.contains("content-length: 8388608\r\n"), "{head}");
    body.extend(read_to_end(&mut client).await);
    assert!(body.len() <= 4 << 20, "{}", body.len());
}

#[tokio::test]
async fn a_refused_body_is_neither_read_to_its_end_nor_drowns_the_answer() {
    // Invariant 16
    let edge = Edge::start(patient()).await;
    let (mut reading, mut writing) = edge.connect().await.into_split();
    let sending = tokio::spawn(async move {
        let head = format!("POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: {BIG}\r\n\r\n");
        writing.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![0; 64 << 10];
        while writing.write_all(&piece).await.is_ok() {}
    });
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nno") {
        assert!(reading.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    // It ends long before a gigabyte was sent: the server closes on the rest.
    sending.await.unwrap();
}

#[tokio::test]
async fn who_still_sends_a_refused_body_is_not_reset() {
    // Go's client forgets the answer when its writes fail.
    let edge = Edge::start(patient()).await;
    let mut client = edge.send(b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n").await;
    let answer = read_to_end(&mut client).await;
    assert!(answer.ends_with(b"\r\n\r\nno"));
    for _ in 0..8 {
        client.write_all(&[0; 64 << 10]).await.unwrap();
    }
}

#[tokio::test]
async fn http2_without_tls_works_with_prior_knowledge() {
    let edge = Edge::start(patient()).await;
    let io = TokioIo::new(edge.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = |path: &str| format!("http://{}{path}", edge.address);
    let request = |method: &str, path: &str| {
        Request::builder().method(method).uri(uri(path)).body(Empty::<Bytes>::new()).unwrap()
    };
    let whole = sender.send_request(request("GET", "/file")).await.unwrap();
    assert_eq!(whole.headers()[header::CONTENT_LENGTH], "1000000");
    assert_eq!(whole.into_body().collect().await.unwrap().to_bytes().len(), 1_000_000);
    let head = sender.send_request(request("HEAD", "/head")).await.unwrap();
    assert_eq!(head.headers()[header::CONTENT_LENGTH], "1234");
    let truncated = sender.send_request(request("GET", "/truncated")).await.unwrap();
    assert!(truncated.into_body().collect().await.is_err(), "Invariant 3");
    let closing = sender.send_request(request("GET", "/refused")).await.unwrap();
    assert_eq!(closing.into_body().collect().await.unwrap().to_bytes(), "no");
    let hello = sender.send_request(request("GET", "/hello")).await.unwrap();
    assert_eq!(hello.into_body().collect().await.unwrap().to_bytes(), "hello");
}

#[tokio::test]
async fn an_http2_client_that_takes_nothing_is_cut() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { stall_timeout: SHORT, ..patient() }).await;
    let io = TokioIo::new(edge.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let ended = tokio::spawn(connection);
    let uri = format!("http://{}/big", edge.address);
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    // The connection is driven, its body is not taken: only the window of the stream fills.
    let _ = in_time(ended).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn an_idle_http2_connection_ends() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { idle_timeout: SHORT, ..patient() }).await;
    let io = TokioIo::new(edge.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let ended = tokio::spawn(connection);
    let request = Request::get(format!("http://{}/hello", edge.address)).body(Empty::<Bytes>::new()).unwrap();
    sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    let _ = in_time(ended).await.unwrap();
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_at_most() {
    let edge = Edge::start(patient()).await;
    let mut other = edge.send(&get("/hello")).await;
    read_hello(&mut other).await;
    let mut client = edge.send(&get("/panic")).await;
    read_to_end(&mut client).await;
    other.write_all(&get("/hello")).await.unwrap();
    read_hello(&mut other).await;
}

#[tokio::test]
async fn one_address_gets_its_share_and_no_more() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { connections_per_address_max: 2, ..patient() }).await;
    let mut first = edge.send(&get("/hello")).await;
    let mut second = edge.send(&get("/hello")).await;
    read_hello(&mut first).await;
    read_hello(&mut second).await;
    let mut third = edge.connect().await;
    let answer = String::from_utf8(read_to_end(&mut third).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(answer.contains("too many connections"), "{answer}");
    first.write_all(&get("/hello")).await.unwrap();
    read_hello(&mut first).await;
}

#[tokio::test]
async fn there_are_so_many_seats_and_the_next_client_waits_for_one() {
    // Invariant 17
    let edge = Edge::start(ServerSettings { connections_max: 1, ..patient() }).await;
    let mut first = edge.send(&get("/hello")).await;
    read_hello(&mut first).await;
    let mut second = edge.send(&get("/hello")).await;
    // More than it takes to answer the other, too.
    for _ in 0..50 {
        first.write_all(&get("/hello")).await.unwrap();
        read_hello(&mut first).await;
    }
    let early = second.try_read(&mut [0; 1]).map_err(|why| why.kind());
    assert_eq!(early, Err(std::io::ErrorKind::WouldBlock), "it is answered beside the first");
    drop(first);
    read_hello(&mut second).await;
}

#[tokio::test]
async fn an_http2_connection_has_so_many_requests_at_one_time() {
    // Invariant 17
    const STREAMS: usize = 3;
    let edge = Edge::start(ServerSettings { streams_max: STREAMS as u32, ..patient() }).await;
    // The preface, and settings that change nothing (RFC 9113, 3.4 and 6.5).
    let mut client = edge.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut head = [0; 9];
    in_time(client.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[3], 4, "the first frame is the settings");
    let mut settings = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    in_time(client.read_exact(&mut settings)).await.unwrap();
    // SETTINGS_MAX_CONCURRENT_STREAMS is number 3.
    let most = settings.chunks(6).find(|one| one[..2] == [0, 3]).expect("it has a bound");
    assert_eq!(most[2..], (STREAMS as u32).to_be_bytes());
    // Who opens one more all the same has it refused: headers of a GET for `/held`, each in a stream of its own.
    let held = [&[0x82, 0x86, 0x41, 0x01, b'x', 0x44, 0x05][..], b"/held"].concat();
    for number in 0..=STREAMS {
        let mut frame = vec![0, 0, held.len() as u8, 1, 0x05];
        frame.extend((2 * number as u32 + 1).to_be_bytes());
        frame.extend(&held);
        client.write_all(&frame).await.unwrap();
    }
    loop {
        in_time(client.read_exact(&mut head)).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        in_time(client.read_exact(&mut payload)).await.unwrap();
        // RST_STREAM with REFUSED_STREAM, of the last one.
        if head[3] == 3 {
            assert_eq!(u32::from_be_bytes([head[5], head[6], head[7], head[8]]), 2 * STREAMS as u32 + 1);
            assert_eq!(payload, 7_u32.to_be_bytes());
            break;
        }
    }
}

#[tokio::test]
async fn a_seat_is_free_again_when_its_client_leaves() {
    let edge = Edge::start(ServerSettings { connections_max: 1, ..patient() }).await;
    for _ in 0..5 {
        let mut client = edge.send(&get("/hello")).await;
        read_hello(&mut client).await;
    }
}

#[tokio::test]
async fn a_stop_lets_running_responses_end() {
    let edge = Edge::start(patient()).await;
    let mut idle = edge.send(&get("/hello")).await;
    read_hello(&mut idle).await;
    let mut silent = edge.connect().await;
    let mut client = edge.send(&get("/held")).await;
    edge.reached.notified().await;
    edge.stop.cancel();
    assert_eq!(read_to_end(&mut idle).await, b"");
    assert_eq!(read_to_end(&mut silent).await, b"");
    edge.release.notify_one();
    let (head, mut body) = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.extend(read_to_end(&mut client).await);
    assert_eq!(body.len(), 1_000_000);
    assert_eq!(in_time(edge.running).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stop_cuts_what_does_not_end_in_time() {
    let edge = Edge::start(ServerSettings { shutdown_timeout: SHORT, ..patient() }).await;
    let mut client = edge.send(&get("/held")).await;
    edge.reached.notified().await;
    edge.stop.cancel();
    assert_eq!(in_time(edge.running).await.unwrap(), 1);
    assert_eq!(read_to_end(&mut client).await, b"");
}
