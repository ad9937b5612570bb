//! TLS to clients: names, protocols, clients' own certificates, files that change or are no good, and who stalls.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use rustls::{HandshakeKind, ProtocolVersion};
use sealock::clock::Clock;
use sealock::server::{Body, Listeners, Peer, Pool, ServerSettings};
use sealock::size::Span;
use sealock::tls::{Role, ServerTls, TlsSettings};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::support::site::connect;
use crate::support::tls::{Authority, Client, Issued, handshake, shown, write};

const LONG: Span = Span(Duration::from_secs(3600));
const SHORT: Span = Span(Duration::from_millis(300));
const BIG: u64 = 256 << 20;
const GIVE_UP: Duration = Duration::from_secs(60);
const SITE: &str = "registry.site";

/// A TLS port whose handler knows a few paths, and a plain one beside it.
struct Port {
    address: SocketAddr,
    plain: SocketAddr,
    authority: Authority,
    folder: TempDir,
    tls: Arc<ServerTls>,
    _stop: tokio_util::sync::DropGuard,
}

impl Port {
    async fn start() -> Self {
        Self::with(patient(), |_, _| String::new()).await
    }

    /// `write` puts further files into the folder, and gives further lines of `[tls]`; `DIR` is the folder.
    async fn with(settings: ServerSettings, write: impl FnOnce(&Path, &Authority) -> String) -> Self {
        let (authority, folder) = (Authority::new("the authority"), tempfile::tempdir().unwrap());
        authority.issue(&[SITE, "127.0.0.1"]).write(folder.path(), "server");
        let more = write(folder.path(), &authority);
        let tls = load(folder.path(), &more, &Clock::system()).unwrap();
        let here = [SocketAddr::from(([127, 0, 0, 1], 0))];
        let listeners = Listeners::default().and(&here, Some(&tls)).await.unwrap().and(&here, None).await.unwrap();
        let (address, plain, stop) = (listeners.addresses()[0], listeners.addresses()[1], CancellationToken::new());
        assert_eq!(listeners.origins(), [format!("https://{address}"), format!("http://{plain}")]);
        let pool = Pool::new();
        let handler = move |request: Request<Incoming>, peer: Peer| answer(request, peer, Arc::clone(&pool));
        let (until, watching) = (stop.clone(), Arc::clone(&tls).run(stop.clone()));
        tokio::spawn(async move { listeners.serve(&settings, handler, until).await });
        tokio::spawn(watching);
        Self { address, plain, authority, folder, tls, _stop: stop.drop_guard() }
    }

    fn client(&self) -> Client {
        Client::trusting(&self.authority.pem)
    }

    /// Waits until a new handshake is shown `expected`.
    async fn wait_for(&self, expected: &Issued) {
        let client = self.client();
        let waiting = async {
            while shown(&client.connect(self.address, SITE).await.unwrap()) != expected.der() {
                tokio::task::yield_now().await;
            }
        };
        in_time(waiting).await;
    }

    /// Waits until the report has a warning with these words.
    async fn wait_for_warning(&self, words: &str) {
        let waiting = async {
            while !self.tls.report().warnings.iter().any(|warning| warning.contains(words)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time(waiting).await;
    }
}

fn load(folder: &Path, more: &str, clock: &Clock) -> Result<Arc<ServerTls>, String> {
    let text = format!("certificate = 'DIR/server.crt'\nreload_every = '10ms'\n{more}");
    let settings: TlsSettings = toml::from_str(&text.replace("DIR", folder.to_str().unwrap())).unwrap();
    settings.check().unwrap();
    let loaded = ServerTls::load(&settings, clock).map(Option::unwrap);
    loaded.map_err(|why| format!("{}: {}", why.key().join("."), why.in_one_line()))
}

fn patient() -> ServerSettings {
    ServerSettings {
        header_timeout: LONG,
        idle_timeout: LONG,
        stall_timeout: LONG,
        shutdown_timeout: LONG,
        ..ServerSettings::default()
    }
}

async fn answer(request: Request<Incoming>, peer: Peer, pool: Arc<Pool>) -> Response<Body> {
    match request.uri().path() {
        "/big" => {
            let file = tempfile::tempfile().unwrap();
            file.set_len(BIG).unwrap();
            Response::new(Body::kept(Arc::new(file), 0..BIG, &pool))
        }
        _ => {
            let certificate = peer.certificate.map_or("nobody".to_owned(), |caller| caller.to_string());
            Response::new(Body::full(format!("tls {} certificate {certificate}", peer.is_tls)))
        }
    }
}

async fn in_time<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(GIVE_UP, waiting).await.expect("it comes in time")
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// One request by HTTP/1.1, and the text that answers it.
async fn ask<S: AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<String> {
    stream.write_all(&get("/who")).await?;
    let mut bytes = Vec::new();
    loop {
        if in_time(stream.read_buf(&mut bytes)).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && text.contains(&format!("content-length: {}\r\n", body.len()))
        {
            return Ok(body.to_owned());
        }
    }
}

/// Waits until the server ends it.
async fn ended<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut scratch = vec![0; 64 << 10];
    in_time(async { while let Ok(1..) = stream.read(&mut scratch).await {} }).await;
}

#[tokio::test]
async fn both_versions_speak_both_protocols_as_the_client_likes() {
    let port = Port::start().await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        for (alpn, taken) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&["http/1.1", "h2"], Some("h2")),
            (&[], None),
        ] {
            let client = Client { versions: vec![version], ..port.client() }.speaking(alpn);
            let mut stream = client.connect(port.address, SITE).await.unwrap();
            let session = stream.get_ref().1;
            assert_eq!(session.alpn_protocol(), taken.map(str::as_bytes), "{alpn:?}");
            assert_eq!(session.protocol_version(), Some(version.version));
            let body = if taken == Some("h2") { ask_h2(stream).await } else { ask(&mut stream).await.unwrap() };
            assert_eq!(body, "tls true certificate nobody", "{alpn:?}");
        }
    }
    let mut plain = connect(port.plain).await.unwrap();
    assert_eq!(ask(&mut plain).await.unwrap(), "tls false certificate nobody");
}

async fn ask_h2(stream: TlsStream<TcpStream>) -> String {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://registry.site/who").body(Empty::<Bytes>::new()).unwrap();
    let body = in_time(sender.send_request(request)).await.unwrap().into_body().collect().await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn no_older_version_is_spoken() {
    // A hello of TLS 1.1 that offers one of its ciphers (RFC 4346 7.4.1.2).
    let port = Port::start().await;
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let mut client = connect(port.address).await.unwrap();
    client.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    let _ = in_time(client.read_to_end(&mut answer)).await;
    // An alert: fatal, protocol_version or handshake_failure.
    assert!(answer.first() == Some(&0x15) && matches!(answer.last(), Some(70 | 40)), "{answer:?}");
}

#[tokio::test]
async fn the_certificate_is_chosen_by_the_name_asked_for() {
    let mut issued = Vec::new();
    let port = Port::with(patient(), |folder, authority| {
        for (file, names) in [("wild", &["*.apps.site", "apps.site"]), ("one", &["one.apps.site", "*.one.apps.site"])] {
            let one = authority.issue(names);
            one.write(folder, file);
            issued.push(one);
        }
        "also = [{ certificate = 'DIR/wild.crt' }, { certificate = 'DIR/one.crt', key = 'DIR/one.key' }]".to_owned()
    })
    .await;
    let first =
        Issued { certificate: fs::read_to_string(port.folder.path().join("server.crt")).unwrap(), key: String::new() };
    let (wild, one) = (&issued[0], &issued[1]);
    for (name, expected) in [
        (SITE, &first),
        // Asks for no name.
        ("127.0.0.1", &first),
        ("other.apps.site", wild),
        ("apps.site", wild),
        // Under the wildcard of the one before, too.
        ("One.apps.Site", one),
        ("a.one.apps.site", one),
    ] {
        let stream = port.client().connect(port.address, name).await.unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(shown(&stream), expected.der(), "{name}");
    }
    // Nobody's name: the first is shown, and the client judges.
    let why = port.client().connect(port.address, "elsewhere.example").await.unwrap_err();
    assert!(
        why.to_string().contains(
            "not valid for name \"elsewhere.example\"; certificate is only valid for DnsName(\"registry.site\")"
        ),
        "{why}"
    );
}

#[tokio::test]
async fn a_chain_is_shown_whole() {
    let port = Port::with(patient(), |folder, authority| {
        let between = authority.below("between");
        let leaf = between.issue(&[SITE]);
        let chain = Issued { certificate: format!("{}{}", leaf.certificate, between.pem), key: leaf.key };
        chain.write(folder, "server");
        String::new()
    })
    .await;
    // The client knows the root alone.
    assert!(port.client().connect(port.address, SITE).await.is_ok());
}

#[tokio::test]
async fn clients_are_judged_by_their_own_authority() {
    let (clients, strangers) = (Authority::new("clients"), Authority::new("strangers"));
    let (known, stranger) = (clients.issue(&["runner"]), strangers.issue(&["runner"]));
    for (client_auth, without) in [("optional", true), ("required", false)] {
        let port = Port::with(patient(), |folder, _| {
            write(&folder.join("clients.crt"), &clients.pem, 0o644);
            format!("client_ca = 'DIR/clients.crt'\nclient_auth = '{client_auth}'")
        })
        .await;
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let client = || Client { versions: vec![version], ..port.client() };
            // In TLS 1.3 the client learns of it with its first read.
            let served = async |client: Client| {
                let mut stream = client.connect(port.address, SITE).await?;
                ask(&mut stream).await
            };
            let answer = served(client().showing(&known)).await.unwrap();
            assert_eq!(answer, "tls true certificate certificate:a leaf");
            assert!(served(client().showing(&stranger)).await.is_err(), "{client_auth}");
            assert_eq!(served(client()).await.is_ok(), without, "{client_auth}");
        }
        let report = port.tls.report();
        assert!(report.certificates.iter().any(|one| one.role == Role::ClientAuthority), "{report:?}");
    }
}

#[tokio::test]
async fn a_clients_certificate_is_judged_by_the_servers_clock() {
    let clients = Authority::new("clients");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("the authority");
    authority.issue(&[SITE]).write(folder.path(), "server");
    write(&folder.path().join("clients.crt"), &clients.pem, 0o644);
    let known = clients.issue_with(&["runner"], |params| params.not_after = rcgen::date_time_ymd(2040, 1, 1));
    let clock = Clock::wound("2039-12-31T00:00:00Z".parse().unwrap());
    let tls = load(folder.path(), "client_ca = 'DIR/clients.crt'\nclient_auth = 'required'", &clock).unwrap();
    let here = [SocketAddr::from(([127, 0, 0, 1], 0))];
    let listeners = Listeners::default().and(&here, Some(&tls)).await.unwrap();
    let (address, stop) = (listeners.addresses()[0], CancellationToken::new());
    let _guard = stop.clone().drop_guard();
    let pool = Pool::new();
    let handler = move |request: Request<Incoming>, peer: Peer| answer(request, peer, Arc::clone(&pool));
    tokio::spawn(async move { listeners.serve(&patient(), handler, stop).await });
    let client = Client::trusting(&authority.pem).showing(&known).config();
    let mut stream = handshake(Arc::clone(&client), address, SITE).await.unwrap();
    assert!(ask(&mut stream).await.is_ok());
    clock.advance(SignedDuration::from_hours(48));
    // The same client, with what it remembers of the session: it is judged again.
    let again = async {
        let mut stream = handshake(client, address, SITE).await?;
        ask(&mut stream).await
    };
    assert!(again.await.is_err());
}

#[tokio::test]
async fn sessions_are_resumed() {
    let port = Port::start().await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = Client { versions: vec![version], ..port.client() }.config();
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut stream = handshake(Arc::clone(&config), port.address, SITE).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{:?}", version.version);
            ask(&mut stream).await.unwrap();
        }
    }
    assert_eq!(ProtocolVersion::TLSv1_3, rustls::version::TLS13.version);
}

#[tokio::test]
async fn new_files_are_taken_and_no_running_download_ends() {
    let port = Port::start().await;
    let mut running = port.client().connect(port.address, SITE).await.unwrap();
    running.write_all(&get("/big")).await.unwrap();
    let mut first = [0; 1000];
    running.read_exact(&mut first).await.unwrap();
    for _ in 0..3 {
        let next = port.authority.issue(&[SITE]);
        next.write(port.folder.path(), "server");
        port.wait_for(&next).await;
    }
    assert_eq!(port.tls.report().warnings, Vec::<String>::new());
    let mut left = BIG + String::from_utf8_lossy(&first).find("\r\n\r\n").unwrap() as u64 + 4 - first.len() as u64;
    let mut scratch = vec![0; 64 << 10];
    while left > 0 {
        let count = in_time(running.read(&mut scratch)).await.unwrap();
        assert!(count > 0, "{left} bytes short");
        left -= count as u64;
    }
    assert!(ask(&mut running).await.is_ok());
}

#[tokio::test]
async fn files_that_are_no_good_are_told_of_and_the_old_ones_stay() {
    let port = Port::start().await;
    let path = |name: &str| port.folder.path().join(name);
    let old = Issued { certificate: fs::read_to_string(path("server.crt")).unwrap(), key: String::new() };
    let (next, other) = (port.authority.issue(&[SITE]), port.authority.issue(&[SITE]));
    let late = port.authority.issue_with(&[SITE], |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    next.write(port.folder.path(), "server");
    port.wait_for(&next).await;

    write(&path("server.crt"), &other.certificate, 0o644);
    port.wait_for_warning("is not that of the certificate").await;
    write(&path("server.key"), &other.key, 0o644);
    port.wait_for_warning("can be used by others: its mode is 0644").await;
    write(&path("server.crt"), "", 0o644);
    port.wait_for_warning("holds no certificate").await;
    fs::remove_file(path("server.crt")).unwrap();
    port.wait_for_warning("cannot read the certificates").await;
    late.write(port.folder.path(), "server");
    port.wait_for_warning("has expired, and the certificate in use has not").await;
    assert_eq!(shown(&port.client().connect(port.address, SITE).await.unwrap()), next.der());
    assert_ne!(old.der(), next.der());

    // Once the mode alone is right, nothing else need change.
    write(&path("server.crt"), &other.certificate, 0o644);
    write(&path("server.key"), &other.key, 0o644);
    port.wait_for_warning("its mode is 0644").await;
    fs::set_permissions(path("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
    port.wait_for(&other).await;
    assert_eq!(port.tls.report().warnings, Vec::<String>::new());
}

#[test]
fn each_file_that_is_no_good_is_one_line_that_names_it() {
    // Invariant 20
    const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqG\n-----END ENCRYPTED PRIVATE KEY-----\n";
    const LEGACY: &str = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIGb\n-----END EC PRIVATE KEY-----\n";
    // As `openssl x509 -req` makes them when it is given no extensions.
    const VERSION_1: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBGTCBvwIUQjrvF7bDeHj2BS+5fcQWte/LFsUwCgYIKoZIzj0EAwIwDjEMMAoG\n\
        A1UEAwwDb2xkMCAXDTI2MTEyMTE5NTMzMVoYDzIxMjYxMDI4MTk1MzMxWjAOMQww\n\
        CgYDVQQDDANvbGQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARFyGU4AV2YnTUV\n\
        Vt2jz4hetSrmMStpKVRCGXhz8cbJMtDGcgd8WDE0i7txyrDGxCTqdp/nrWfIePl+\n\
        5uLlb5s9MAoGCCqGSM49BAMCA0kAMEYCIQD4V9MfLJuUAZLm7F5+h+yCGZF5hmM1\n\
        GwxolCoPspuxpQIhAImip9q78f8flJP0xxH6Arf1ILw7G5xMe+xY1foAwreB\n\
        -----END CERTIFICATE-----\n";
    let authority = Authority::new("the authority");
    let (between, own) = (authority.below("between"), Authority::new("a stranger"));
    let (leaf, other) = (between.issue(&[SITE]), between.issue(&[SITE]));
    let chain = |parts: &[&str]| parts.concat();
    let garbage = "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n";
    let cases = [
        (String::new(), leaf.key.clone(), "certificate: `DIR/server.crt` holds no certificate; it must hold"),
        ("words".to_owned(), leaf.key.clone(), "certificate: `DIR/server.crt` holds no certificate"),
        (
            garbage.to_owned(),
            leaf.key.clone(),
            "certificate: certificate 1 in `DIR/server.crt` is not an X.509 certificate",
        ),
        (leaf.certificate.clone(), other.key.clone(), "key: the key `DIR/server.key` is not that of the certificate"),
        (
            VERSION_1.to_owned(),
            leaf.key.clone(),
            "certificate: the certificate `DIR/server.crt` cannot be used: invalid peer certificate: ",
        ),
        (leaf.certificate.clone(), String::new(), "key: `DIR/server.key` holds no private key"),
        (
            leaf.certificate.clone(),
            ENCRYPTED.to_owned(),
            "key: the key `DIR/server.key` is encrypted; decrypt it once: `openssl",
        ),
        (leaf.certificate.clone(), LEGACY.to_owned(), "key: the key `DIR/server.key` is encrypted"),
        (
            chain(&[&between.pem, &leaf.certificate]),
            leaf.key.clone(),
            "certificate: `DIR/server.crt` begins with another certificate than that of the key `DIR/server.key`: it is \
             number 2; put the server's certificate first",
        ),
        (
            chain(&[&leaf.certificate, &own.pem]),
            leaf.key.clone(),
            "certificate: certificate 2 in `DIR/server.crt` did not issue the one before it; put",
        ),
    ];
    for (certificate, key, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_str().unwrap();
        Issued { certificate, key }.write(folder.path(), "server");
        let why = load(folder.path(), "", &Clock::system()).map(|_| ()).unwrap_err().replace(dir, "DIR");
        assert!(why.starts_with(expected), "\n  says      {why}\n  should be {expected}");
        assert!(!why.contains('\n'), "more than one line: {why}");
        assert!(!why.contains("MIGb") && !why.contains(&leaf.key[40..60]), "it tells the key: {why}");
    }
}

#[test]
fn a_key_that_others_may_use_is_refused() {
    // Invariant 12
    let authority = Authority::new("the authority");
    let is_root = rustix::process::geteuid().is_root();
    for (mode, refused) in
        [(0o600, false), (0o400, false), (0o640, !is_root), (0o644, true), (0o660, true), (0o604, true)]
    {
        let folder = tempfile::tempdir().unwrap();
        authority.issue(&[SITE]).write(folder.path(), "server");
        let key = folder.path().join("server.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let loaded = load(folder.path(), "", &Clock::system());
        assert_eq!(loaded.is_err(), refused, "{mode:o}");
        if let Err(why) = loaded {
            assert!(why.ends_with(&format!("its mode is {mode:04o}; run `chmod 600 {}`", key.display())), "{why}");
        }
    }
}

#[test]
fn a_certificate_that_ends_is_served_and_warned_of() {
    let (authority, folder) = (Authority::new("the authority"), tempfile::tempdir().unwrap());
    let ends = |params: &mut rcgen::CertificateParams| {
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2030, 1, 1), rcgen::date_time_ymd(2031, 1, 1));
    };
    authority.issue_with(&[SITE], ends).write(folder.path(), "server");
    let warnings = |at: &str| {
        let clock = Clock::wound(at.parse::<Timestamp>().unwrap());
        let report = load(folder.path(), "", &clock).unwrap().report();
        (report.certificates[0].days_left, report.warnings.join("; "))
    };
    for (at, days, words) in [
        ("2029-12-31T00:00:00Z", 366, "is valid from 2030-01-01 00:00 UTC on only: is this machine's clock right?"),
        ("2030-11-01T00:00:00Z", 61, ""),
        ("2030-12-22T00:00:00Z", 10, "expires on 2031-01-01 00:00 UTC, in 10 days; put a new one there"),
        ("2031-01-02T00:00:00Z", -1, "has expired on 2031-01-01 00:00 UTC: it is refused"),
    ] {
        let (left, told) = warnings(at);
        assert_eq!(left, days, "{at}");
        assert!(told.contains(words) && words.is_empty() == told.is_empty(), "{at}: {told}");
    }
    authority.issue(&[]).write(folder.path(), "server");
    assert!(warnings("2030-12-22T00:00:00Z").1.contains("names no host (subjectAltName)"));
}

#[tokio::test]
async fn plain_http_to_the_tls_port_is_told_what_it_speaks() {
    // Invariant 16
    let port = Port::start().await;
    for beginning in [get("/v2/"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()] {
        let mut client = connect(port.address).await.unwrap();
        client.write_all(&beginning).await.unwrap();
        let mut answer = String::new();
        in_time(client.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let message = body["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains("Client sent an HTTP request to an HTTPS server"), "{message}");
    }
}

#[tokio::test]
async fn who_stalls_is_let_go_with_tls_and_without() {
    // Invariant 17
    let settings = ServerSettings { header_timeout: SHORT, idle_timeout: SHORT, stall_timeout: SHORT, ..patient() };
    let port = Port::with(settings, |_, _| String::new()).await;
    let hello = hello_of(&port).await;
    let began = std::time::Instant::now();
    let (mut raw, mut encrypted) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        for beginning in [&b""[..], &hello[..1], &hello[..5], &hello[..hello.len() - 1], &hello[..]] {
            raw.push(begun(port.address, beginning).await);
        }
        for beginning in [&b""[..], b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", &get("/who")] {
            raw.push(begun(port.plain, beginning).await);
            let mut stream = port.client().connect(port.address, SITE).await.unwrap();
            stream.write_all(beginning).await.unwrap();
            encrypted.push(stream);
        }
        // Takes nothing of what it asked for.
        for client in [port.client(), port.client().speaking(&["h2"])] {
            encrypted.push(client.connect(port.address, SITE).await.unwrap());
        }
    }
    for stream in &mut raw {
        ended(stream).await;
    }
    for stream in &mut encrypted {
        ended(stream).await;
    }
    assert!(began.elapsed() >= SHORT.0);
}

/// A client's first bytes, as the server gets them.
async fn hello_of(port: &Port) -> Vec<u8> {
    let name = rustls::pki_types::ServerName::try_from(SITE).unwrap();
    let mut client = rustls::ClientConnection::new(port.client().config(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn begun(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

#[tokio::test]
async fn a_handshake_that_drips_is_cut_although_bytes_keep_coming() {
    // Invariant 17
    let port = Port::with(ServerSettings { header_timeout: SHORT, ..patient() }, |_, _| String::new()).await;
    let hello = hello_of(&port).await;
    let (mut from, mut to) = connect(port.address).await.unwrap().into_split();
    let dripping = tokio::spawn(async move {
        for byte in hello {
            if to.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(SHORT.0 / 50).await;
        }
        // Dropped, it would end the connection from our side.
        std::future::pending::<()>().await;
    });
    ended(&mut from).await;
    dripping.abort();
}

#[tokio::test]
async fn who_idles_between_requests_is_no_slow_head() {
    let port = Port::with(ServerSettings { header_timeout: SHORT, ..patient() }, |_, _| String::new()).await;
    let mut first = port.client().connect(port.address, SITE).await.unwrap();
    ask(&mut first).await.unwrap();
    let second = port.client().speaking(&["h2"]).connect(port.address, SITE).await.unwrap();
    // It pings: what comes is no request.
    let mut http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    http2.timer(TokioTimer::new()).keep_alive_interval(SHORT.0 / 10).keep_alive_while_idle(true);
    let (mut sender, connection) = http2.handshake(TokioIo::new(second)).await.unwrap();
    tokio::spawn(connection);
    let request = || Request::get("https://registry.site/who").body(Empty::<Bytes>::new()).unwrap();
    in_time(sender.send_request(request())).await.unwrap().into_body().collect().await.unwrap();
    // Who says nothing is cut twice in turn: so long have the others idled.
    for _ in 0..2 {
        ended(&mut port.client().connect(port.address, SITE).await.unwrap()).await;
    }
    ask(&mut first).await.unwrap();
    let answer = in_time(sender.send_request(request())).await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn who_takes_nothing_of_a_response_is_cut_and_who_takes_a_little_is_not() {
    // Invariant 17
    let port = Port::with(ServerSettings { stall_timeout: SHORT, ..patient() }, |_, _| String::new()).await;
    let mut client = port.client().connect(port.address, SITE).await.unwrap();
    client.write_all(&get("/big")).await.unwrap();
    let mut scratch = vec![0; 256 << 10];
    let mut taken = 0;
    // Slower than the time-out in all, but never silent for so long.
    for _ in 0..12 {
        tokio::time::sleep(SHORT.0 / 6).await;
        let count = in_time(client.read(&mut scratch)).await.unwrap();
        assert!(count > 0);
        taken += count as u64;
    }
    tokio::time::sleep(SHORT.0 * 4).await;
    let mut cut = false;
    while taken < BIG && !cut {
        match in_time(client.read(&mut scratch)).await {
            Ok(0) | Err(_) => cut = true,
            Ok(count) => taken += count as u64,
        }
    }
    assert!(cut, "all {taken} bytes came");
}

#[tokio::test]
async fn an_address_has_its_share_of_connections_before_any_handshake() {
    // Invariant 17
    let settings = ServerSettings { connections_per_address_max: 2, ..patient() };
    let port = Port::with(settings, |_, _| String::new()).await;
    // The plain port counts as well, and who has not said a word yet.
    let mut first = port.client().connect(port.address, SITE).await.unwrap();
    ask(&mut first).await.unwrap();
    let _second = connect(port.address).await.unwrap();
    let mut third = connect(port.address).await.unwrap();
    let mut answer = Vec::new();
    let _ = in_time(third.read_to_end(&mut answer)).await;
    assert!(answer.starts_with(b"HTTP/1.1 429 "), "{}", String::from_utf8_lossy(&answer));
}
