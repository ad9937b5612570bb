//! Clients that stall on purpose, many of each kind, and how many of them a server still holds.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::Outcome;
use super::body::request;
use super::far::Blob;
use super::process::Running;
use super::tls;

/// One way to stall.
pub struct Kind {
    pub name: &'static str,
    /// The server's own limit on it, in its defaults.
    pub limit: &'static str,
    /// Each kind has an address of its own, by which the server's side of its connections is known.
    source: Ipv4Addr,
    to: SocketAddr,
    /// Said at once.
    opening: Vec<u8>,
    /// Said after that, a byte a second, over and over.
    drips: Vec<u8>,
    answers_pings: bool,
}

/// Connections of some kinds, kept up until they are dropped.
pub struct Stalled {
    pub began: Instant,
    end: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Both servers' ports and what the kinds are made of.
pub struct Target<'a> {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    pub ca: &'a Path,
    /// More than the sockets of both sides take.
    pub blob: &'a Blob,
}

/// The kind whose limit is longer by design: whoever reads slowly, but reads, is to get it all.
pub const UNREAD: &str = "an answer not read";

const TICK: Duration = Duration::from_secs(1);
const ACCEPT_MAX: Duration = Duration::from_secs(5);
/// So small that an answer soon stands still.
const RECEIVE_BUFFER: usize = 4096;

/// How a client that knows the server begins HTTP/2: the preface and an empty SETTINGS frame (RFC 9113 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The head of a HEADERS frame of 16 KiB that ends stream 1 (RFC 9113 6.2).
const HTTP2_HEADERS: &[u8] = b"\0\x40\0\x01\x05\0\0\0\x01";
const HTTP2_HEAD: usize = 9;
const HTTP2_PING: u8 = 6;
const HTTP2_ACK: u8 = 1;

/// All of them.
pub fn kinds(target: &Target<'_>) -> Outcome<Vec<Kind>> {
    let Target { plain, tls, .. } = *target;
    let hello = tls::hello(tls, target.ca)?;
    let (begun, rest) = hello.split_at(hello.len() / 8);
    let form = format!(
        "POST /token HTTP/1.1\r\nHost: {plain}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: 4000\r\n\r\ngrant_type="
    );
    let headers = format!("GET /v2/ HTTP/1.1\r\nHost: {plain}\r\nX-Drip: ");
    let stall = |name, limit, to, opening: &[u8], drips: &[u8]| Kind {
        name,
        limit,
        source: Ipv4Addr::LOCALHOST,
        to,
        opening: opening.to_vec(),
        drips: drips.to_vec(),
        answers_pings: false,
    };
    let mut all = vec![
        stall("nothing said", "10 s", plain, b"", b""),
        stall("half a request line", "10 s", plain, b"GET /v2/be", b""),
        stall("headers, a byte a second", "10 s", plain, headers.as_bytes(), b"x"),
        stall("a handshake half done", "10 s", tls, &hello, b""),
        stall("a handshake, a byte a second", "10 s", tls, begun, rest),
        stall("a form, a byte a second", "10 s", plain, form.as_bytes(), b"x"),
        stall("idle HTTP/1.1", "40 s", plain, request("GET", "/v2/", plain).as_bytes(), b""),
        stall("idle HTTP/2", "40 s", plain, HTTP2, b""),
        Kind { answers_pings: true, ..stall("idle HTTP/2 that answers pings", "40 s", plain, HTTP2, b"") },
        stall("an HTTP/2 head, a byte a second", "40 s", plain, &[HTTP2, HTTP2_HEADERS].concat(), b"\0"),
        stall(UNREAD, "60 s by design", plain, request("GET", &target.blob.path(), plain).as_bytes(), b""),
    ];
    for (number, kind) in (1..).zip(&mut all) {
        kind.source = Ipv4Addr::new(127, 0, 1, number);
    }
    Ok(all)
}

impl Stalled {
    /// Opens `count` connections of each of `kinds`, each kind when `server` holds all of the one before.
    pub fn open(kinds: &[&Kind], count: usize, server: &Running) -> Outcome<Self> {
        let began = Instant::now();
        let mut links = Vec::new();
        for kind in kinds {
            for _ in 0..count {
                links.push(Link::open(kind)?);
            }
            let until = Instant::now() + ACCEPT_MAX;
            loop {
                let held = held(server, kind)?;
                if held == count {
                    break;
                }
                if Instant::now() > until {
                    return Err(format!("{held} of {count} connections of the kind `{}` were taken", kind.name).into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let (end, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                links.iter_mut().for_each(Link::tick);
            }
        });
        Ok(Self { began, end: Some((end, thread)) })
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let Some((end, thread)) = self.end.take() else { return };
        drop(end);
        if thread.join().is_err() {
            eprintln!("the stalling clients ended badly");
        }
    }
}

/// How many connections of this kind `server` has in its hands: not what waits in the kernel, or lingers there.
pub fn held(server: &Running, kind: &Kind) -> Outcome<usize> {
    let links = fs::read_dir(format!("/proc/{}/fd", server.id()))?;
    let sockets = links.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inodes: HashSet<String> =
        sockets.filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    // Addresses stand there as the machine has them in memory.
    let from = format!("{:08X}:", u32::from_ne_bytes(kind.source.octets()));
    let table = fs::read_to_string("/proc/net/tcp")?;
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = |row: &Vec<&str>| {
        row.get(2).is_some_and(|remote| remote.starts_with(&from))
            && row.get(9).is_some_and(|inode| inodes.contains(*inode))
    };
    Ok(rows.filter(ours).count())
}

/// One connection.
struct Link {
    stream: TcpStream,
    drips: Vec<u8>,
    dripped: usize,
    /// What came and is not yet looked at; of those that answer pings.
    heard: Option<Vec<u8>>,
}

impl Link {
    fn open(kind: &Kind) -> Outcome<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&SocketAddr::from((kind.source, 0)).into())?;
        socket.connect(&kind.to.into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.write_all(&kind.opening)?;
        stream.set_nonblocking(true)?;
        let heard = kind.answers_pings.then(Vec::new);
        Ok(Self { stream, drips: kind.drips.clone(), dripped: 0, heard })
    }

    /// Once a second. That the server has closed is what it is meant to do; it is seen at the server.
    fn tick(&mut self) {
        if !self.drips.is_empty() {
            let byte = self.drips[self.dripped % self.drips.len()];
            self.dripped += 1;
            let _closed = self.stream.write(&[byte]);
        }
        let Some(heard) = &mut self.heard else { return };
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => heard.extend_from_slice(&buffer[..count]),
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let answers = answers(heard);
        if !answers.is_empty() {
            let _closed = self.stream.write(&answers);
        }
    }
}

/// Takes the whole frames out of `heard`, and gives the acknowledgements of its pings.
fn answers(heard: &mut Vec<u8>) -> Vec<u8> {
    let mut answers = Vec::new();
    while let [high, middle, low, kind, flags, ..] = heard[..] {
        let end = HTTP2_HEAD + u32::from_be_bytes([0, high, middle, low]) as usize;
        if heard.len() < end {
            break;
        }
        let mut frame: Vec<u8> = heard.drain(..end).collect();
        if kind == HTTP2_PING && flags & HTTP2_ACK == 0 {
            frame[4] |= HTTP2_ACK;
            answers.extend(frame);
        }
    }
    answers
}
