//! Many small requests over keep-alive connections: one thread, epoll, nothing allocated per request.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::Outcome;
use super::body::{find_head_end, request_showing};

/// Longest silence of a server before the bench gives up.
const SILENCE_MAX: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
const BUFFER: usize = 16 << 10;

/// A request and the answer that is right: 200, with this `Content-Length`.
pub struct Request {
    bytes: Vec<u8>,
    length: usize,
    has_body: bool,
}

/// When to stop.
#[derive(Clone, Copy)]
pub enum Until {
    /// Each request was answered once.
    Once,
    /// This much time has passed; the requests are repeated.
    Elapsed(Duration),
}

/// What came of it.
pub struct Tally {
    pub answers: usize,
    pub took: Duration,
    /// Of each answer, shortest first.
    latencies: Vec<Duration>,
}

impl Request {
    pub fn new(method: &str, path: &str, address: SocketAddr, length: u64) -> Outcome<Self> {
        Self::showing(method, path, address, length, "")
    }

    /// As [`Request::new`], with a line such as `Authorization: …` in its head.
    pub fn showing(method: &str, path: &str, address: SocketAddr, length: u64, line: &str) -> Outcome<Self> {
        let bytes = request_showing(method, path, address, line).into_bytes();
        Ok(Self { bytes, length: usize::try_from(length)?, has_body: method != "HEAD" })
    }
}

impl Tally {
    pub fn of(mut latencies: Vec<Duration>, took: Duration) -> Self {
        latencies.sort_unstable();
        Self { answers: latencies.len(), took, latencies }
    }

    pub fn per_second(&self) -> f64 {
        self.answers as f64 / self.took.as_secs_f64()
    }

    /// What came of a volley after this one is part of it.
    pub fn add(&mut self, next: Self) {
        self.answers += next.answers;
        self.took += next.took;
        self.latencies.extend(next.latencies);
        self.latencies.sort_unstable();
    }

    /// The latency that the share `part` (0.99) of the answers did not exceed.
    pub fn percentile(&self, part: f64) -> Duration {
        let place = (self.latencies.len() as f64 * part).ceil() as usize;
        self.latencies.get(place.saturating_sub(1)).copied().unwrap_or_default()
    }

    pub fn slowest(&self) -> Duration {
        self.latencies.last().copied().unwrap_or_default()
    }
}

/// Sends `requests` in turn over `connections`, one at a time on each.
pub fn fire(address: SocketAddr, requests: &[Request], connections: usize, until: Until) -> Outcome<Tally> {
    let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut links = Vec::new();
    for number in 0..connections {
        let link = Link::new(address)?;
        epoll::add(&queue, &link.stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
        links.push(link);
    }
    let mut order = Order { requests: requests.len(), next: 0, until, began: Instant::now() };
    let mut latencies = Vec::with_capacity(1 << 20);
    let mut waiting = 0;
    for link in &mut links {
        if let Some(next) = order.next() {
            link.send(requests, next)?;
            waiting += 1;
        }
    }
    let mut events = Vec::with_capacity(connections);
    while waiting > 0 {
        epoll::wait(&queue, spare_capacity(&mut events), Some(&SILENCE_MAX))?;
        if events.is_empty() {
            return Err(format!("{waiting} requests were not answered in {} s", SILENCE_MAX.tv_sec).into());
        }
        for event in events.drain(..) {
            let data = event.data;
            let number = data.u64();
            let link = &mut links[usize::try_from(number)?];
            match link.receive(requests)? {
                Received::Part => {}
                Received::Closed => {
                    let again = link.asked;
                    *link = Link::new(address)?;
                    let data = epoll::EventData::new_u64(number);
                    epoll::add(&queue, &link.stream, data, epoll::EventFlags::IN)?;
                    match again {
                        Some(again) => link.send(requests, again)?,
                        None => continue,
                    }
                }
                Received::Whole(latency) => {
                    latencies.push(latency);
                    match order.next() {
                        Some(next) => link.send(requests, next)?,
                        None => waiting -= 1,
                    }
                }
            }
        }
    }
    Ok(Tally::of(latencies, order.began.elapsed()))
}

/// Whose turn it is.
struct Order {
    requests: usize,
    next: usize,
    until: Until,
    began: Instant,
}

impl Order {
    fn next(&mut self) -> Option<usize> {
        let more = match self.until {
            Until::Once => self.next < self.requests,
            Until::Elapsed(span) => self.began.elapsed() < span,
        };
        let number = self.next % self.requests;
        self.next += 1;
        more.then_some(number)
    }
}

enum Received {
    Part,
    Whole(Duration),
    /// The server closed an idle connection: the request goes out again on a new one.
    Closed,
}

/// One connection.
struct Link {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    /// Head and body together, once the head is there.
    whole: Option<usize>,
    asked: Option<usize>,
    sent_at: Instant,
    answered: usize,
}

impl Link {
    fn new(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (buffer, sent_at) = (vec![0; BUFFER], Instant::now());
        Ok(Self { stream, buffer, filled: 0, whole: None, asked: None, sent_at, answered: 0 })
    }

    fn send(&mut self, requests: &[Request], number: usize) -> Outcome {
        (self.filled, self.whole, self.asked) = (0, None, Some(number));
        self.sent_at = Instant::now();
        match self.stream.write_all(&requests[number].bytes) {
            // Closed under our hands: its end is read next, and the request repeated.
            Err(why) if matches!(why.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
            sent => Ok(sent?),
        }
    }

    fn receive(&mut self, requests: &[Request]) -> Outcome<Received> {
        let read = match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(read) => read,
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(Received::Part);
            }
            Err(why) if why.kind() == ErrorKind::ConnectionReset && self.filled == 0 => 0,
            Err(why) => return Err(why.into()),
        };
        if read == 0 && self.filled == 0 && self.answered > 0 {
            return Ok(Received::Closed);
        }
        if read == 0 {
            return Err(format!("a connection ended after {} bytes of an answer", self.filled).into());
        }
        self.filled += read;
        let Some(request) = self.asked.and_then(|number| requests.get(number)) else {
            return Err("bytes came that nobody asked for".into());
        };
        if self.whole.is_none() {
            self.whole = whole(&self.buffer[..self.filled], request)?;
        }
        match self.whole {
            Some(whole) if self.filled == whole => {
                (self.asked, self.filled) = (None, 0);
                self.answered += 1;
                Ok(Received::Whole(self.sent_at.elapsed()))
            }
            Some(whole) if self.filled > whole => Err("an answer is longer than it says".into()),
            Some(whole) if whole > self.buffer.len() => Err(format!("an answer of {whole} bytes is too long").into()),
            _ => Ok(Received::Part),
        }
    }
}

/// Length of the whole answer once its head is there; an error if it is not the right one.
fn whole(received: &[u8], request: &Request) -> Outcome<Option<usize>> {
    let Some(head_end) = find_head_end(received) else { return Ok(None) };
    let head = &received[..head_end];
    let length = stated_length(head);
    if !head.starts_with(b"HTTP/1.1 200 ") || length != Some(request.length) {
        let asked = String::from_utf8_lossy(&request.bytes);
        let answer = String::from_utf8_lossy(received);
        return Err(format!("wanted 200 and {} bytes for\n{asked}got\n{answer}", request.length).into());
    }
    Ok(Some(head_end + if request.has_body { request.length } else { 0 }))
}

/// `Content-Length`, without making a string of the head.
fn stated_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))?;
    std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()
}
