//! One connection: which protocol it speaks, within TLS or without, and its requests until it ends.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::body::Body;
use super::listen::Peer;
use super::pool::PIECE_LARGE;
use super::pulse::Pulse;
use super::settings::ServerSettings;
use super::wire::{Patience, Wire};
use crate::access::Caller;
use crate::tls::ServerTls;

/// hyper, set up once for all connections.
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    patience: Patience,
}

/// What the first bytes of a connection say.
#[derive(Debug, PartialEq, Eq)]
enum Sniffed {
    Http1,
    Http2,
    Tls,
    Undecided,
    Rubbish,
}

/// Largest frame of one HTTP/2 stream: many streams share a connection, and h2 queues a whole frame.
const PIECE_HTTP2: usize = 64 << 10;
/// How a client with prior knowledge of HTTP/2 begins (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How a TLS client begins: the type of its first record (RFC 8446 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
const HTTP2_PING_AFTER: Duration = Duration::from_secs(20);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams that a client opened and reset before we took them (CVE-2023-44487), and those that we had to reset.
const HTTP2_RESETS_MAX: usize = 32;
/// Bytes of response that h2 queues per stream.
const HTTP2_SEND_BUFFER: usize = 256 << 10;
const HEADERS_MAX: usize = 100;

/// Bytes of pieces that one write to a socket gathers; fewer writes wake fewer readers.
const GATHERED_MAX: usize = 16 * PIECE_LARGE;
/// Bytes that one connection's kernel buffer takes beyond what is on its way. More of them would leave the processor's
/// caches before the client reads. What is on its way, and so the speed over long distances, is not limited by it
/// (`tcp(7)`, `TCP_NOTSENT_LOWAT`).
const UNSENT_MAX: u32 = 256 << 10;

/// Go's TLS client recognises a plain answer to its hello by `HTTP/` and says so to its user; docker then goes on
/// without TLS where that is allowed.
const NOT_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 56\r\n\
    Connection: close\r\n\r\nThis port speaks plain HTTP/1.1 or HTTP/2, nothing else\n";

/// In Go's words, which people search for.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 111\r\n\
    Connection: close\r\n\r\n\
    {\"errors\":[{\"code\":\"UNSUPPORTED\",\"message\":\"Client sent an HTTP request to an HTTPS server; write https://\"}]}\n";

impl Protocols {
    pub(super) fn new(settings: &ServerSettings) -> Self {
        let header_size = settings.header_size_max.0 as usize;
        let mut http1 = http1::Builder::new();
        // hyper's own header timeout is off: `wire` keeps it, apart from the idle timeout.
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_headers(HEADERS_MAX)
            .max_header_size(header_size)
            .max_buf_size(header_size.max(GATHERED_MAX))
            .writev(true);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_PING_AFTER)
            .keep_alive_timeout(HTTP2_PING_TIMEOUT)
            .max_concurrent_streams(settings.streams_max)
            .max_header_list_size(settings.header_size_max.0 as u32)
            .max_pending_accept_reset_streams(HTTP2_RESETS_MAX)
            .max_local_error_reset_streams(HTTP2_RESETS_MAX)
            .max_send_buf_size(HTTP2_SEND_BUFFER);
        let patience = Patience {
            header: settings.header_timeout.0,
            idle: settings.idle_timeout.0,
            stall: settings.stall_timeout.0,
        };
        Self { http1, http2, patience }
    }
}

/// Serves one connection until it ends, or until its running requests end after `stop`. With `tls`, it speaks that.
pub(super) async fn serve<H, F>(
    mut socket: TcpStream,
    peer: Peer,
    tls: Option<&ServerTls>,
    protocols: &Protocols,
    handler: H,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let pulse = Pulse::new();
    let until = pulse.born() + protocols.patience.header;
    let sniffing = tokio::time::timeout_at(until, sniff(&mut socket));
    let (sniffed, bytes) = match stop.run_until_cancelled(sniffing).await {
        Some(Ok(Ok(told))) => told,
        // Stopped, too slow, or gone before a word.
        _ => return,
    };
    let is_h2 = sniffed == Sniffed::Http2;
    let wire = |socket| Wire::new(socket, bytes, is_h2, Arc::clone(&pulse), protocols.patience);
    match (sniffed, tls) {
        (Sniffed::Http1 | Sniffed::Http2, None) => {
            converse(wire(socket), is_h2, peer, pulse, protocols, handler, stop).await;
        }
        (Sniffed::Tls, Some(tls)) => {
            // On the heap: a handshake's state is large, and it is soon over.
            let shaking = Box::pin(shake_hands(wire(socket), tls, until));
            match stop.run_until_cancelled(shaking).await {
                Some(Ok((stream, is_h2, certificate))) => {
                    let peer = Peer { is_tls: true, certificate, ..peer };
                    converse(stream, is_h2, peer, pulse, protocols, handler, stop).await;
                }
                // Refused by one side, as certificates are; who just goes away is no news.
                Some(Err(why)) if why.kind() == io::ErrorKind::InvalidData => {
                    info!(client = %peer.address, error = %why, "no TLS with {}: {why}", peer.address);
                }
                Some(Err(why)) => debug!(client = %peer.address, error = %why, "no TLS with {}: {why}", peer.address),
                None => {}
            }
        }
        (Sniffed::Http1 | Sniffed::Http2, Some(_)) => {
            debug!(client = %peer.address, "{} speaks plain HTTP to a TLS port", peer.address);
            refuse(socket, NOT_TLS).await;
        }
        (Sniffed::Tls | Sniffed::Rubbish | Sniffed::Undecided, _) => {
            debug!(client = %peer.address, "{} does not speak what this port does", peer.address);
            refuse(socket, NOT_HTTP).await;
        }
    }
}

/// Until `until`. Gives the stream, whether it speaks HTTP/2, and who the client's certificate says it is.
async fn shake_hands(
    wire: Wire,
    tls: &ServerTls,
    until: Instant,
) -> io::Result<(TlsStream<Wire>, bool, Option<Caller>)> {
    let accepting = TlsAcceptor::from(tls.config()).accept(wire);
    let mut stream = tokio::time::timeout_at(until, accepting).await??;
    let (wire, session) = stream.get_mut();
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.and_then(|certificate| Caller::of_certificate(certificate));
    wire.encrypted(is_h2);
    Ok((stream, is_h2, certificate))
}

/// Requests and responses, until there are no more.
async fn converse<S, H, F>(
    stream: S,
    is_h2: bool,
    peer: Peer,
    pulse: Arc<Pulse>,
    protocols: &Protocols,
    handler: H,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let address = peer.address;
    let service = service_fn(move |request| answer(&handler, request, peer.clone(), &pulse, is_h2));
    let outcome = if is_h2 {
        let connection = protocols.http2.serve_connection(TokioIo::new(stream), service);
        drive(connection, |running| running.graceful_shutdown(), stop).await
    } else {
        let connection = protocols.http1.serve_connection(TokioIo::new(stream), service);
        drive(connection, |running| running.graceful_shutdown(), stop).await
    };
    if let Err(error) = outcome {
        debug!(client = %address, error = &error as &dyn std::error::Error, "a connection broke");
    }
}

/// Says why, if the socket takes it at once, and closes.
async fn refuse(mut socket: TcpStream, answer: &[u8]) {
    let _ = socket.try_read(&mut [0; 16 << 10]);
    let _ = socket.try_write(answer);
    let _ = socket.shutdown().await;
}

/// Runs `connection`; once `stop` is set, `wind_down` it and let it end.
async fn drive<C>(
    connection: C,
    wind_down: impl Fn(std::pin::Pin<&mut C>),
    stop: CancellationToken,
) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        outcome = connection.as_mut() => return outcome,
        () = stop.cancelled() => wind_down(connection.as_mut()),
    }
    connection.await
}

/// Calls the handler, and ties what it answers to the connection's pulse.
fn answer<H, F>(
    handler: &H,
    request: Request<Incoming>,
    peer: Peer,
    pulse: &Arc<Pulse>,
    is_h2: bool,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<H, F>
where
    H: Fn(Request<Incoming>, Peer) -> F,
    F: Future<Output = Response<Body>> + Send,
{
    let exchange = pulse.begin();
    let unread = (!is_h2 && !request.body().is_end_stream()).then(|| Arc::clone(pulse));
    // No `async` block: it would hold the handler's future twice, and that is moved with every request.
    handler(request, peer).map(move |mut response| {
        let closes = response.headers().contains_key(header::CONNECTION);
        if is_h2 && closes {
            response.headers_mut().remove(header::CONNECTION);
        }
        if let Some(pulse) = unread.filter(|_| closes) {
            pulse.leave_unread();
        }
        response.body_mut().attach(exchange, if is_h2 { PIECE_HTTP2 } else { PIECE_LARGE });
        Ok(response)
    })
}

/// Reads until the protocol is clear.
async fn sniff(socket: &mut TcpStream) -> io::Result<(Sniffed, Bytes)> {
    socket.set_nodelay(true)?;
    SockRef::from(&*socket).set_tcp_notsent_lowat(UNSENT_MAX)?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        socket.readable().await?;
        match socket.try_read_buf(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        match tell(&bytes) {
            Sniffed::Undecided => {}
            told => return Ok((told, bytes.into())),
        }
    }
}

/// Every HTTP/1 method begins with a capital letter; an empty line may come first (RFC 9112 2.2).
fn tell(bytes: &[u8]) -> Sniffed {
    match bytes {
        [] => Sniffed::Undecided,
        [b'P', b'R', b'I', ..] => Sniffed::Http2,
        _ if PREFACE.starts_with(bytes) => Sniffed::Undecided,
        [b'A'..=b'Z' | b'\r' | b'\n', ..] => Sniffed::Http1,
        [TLS_HANDSHAKE, ..] => Sniffed::Tls,
        _ => Sniffed::Rubbish,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol() {
        let cases: [(&[u8], Sniffed); 10] = [
            (b"GET / HTTP/1.1\r\n", Sniffed::Http1),
            (b"G", Sniffed::Http1),
            (b"\r\nGET", Sniffed::Http1),
            (b"P", Sniffed::Undecided),
            (b"PR", Sniffed::Undecided),
            (b"PROPFIND", Sniffed::Http1),
            (b"PUT /", Sniffed::Http1),
            (PREFACE, Sniffed::Http2),
            (b"\x16\x03\x01\x02\x00\x01", Sniffed::Tls),
            (b"\0\0\0", Sniffed::Rubbish),
        ];
        for (bytes, told) in cases {
            assert_eq!(tell(bytes), told, "{bytes:?}");
        }
    }

    #[test]
    fn the_canned_answers_state_their_length() {
        for answer in [NOT_HTTP, NOT_TLS] {
            let (head, body) = std::str::from_utf8(answer).unwrap().split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
        }
    }
}
