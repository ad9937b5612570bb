//! Processes that a bench starts, looks into, and stops.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Outcome;

/// How long a process may take to answer after its start, and to end after it was asked to.
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(10);
const BACKLOG_MAX: usize = 64;

/// A child process. Dropping it stops it.
pub struct Running {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

/// `program`, asked to end if this process ends without having stopped it.
pub fn leashed(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// Waits until what earlier rounds wrote is on the disk, so that it does not burden the next.
pub fn settle() {
    rustix::fs::sync();
}

/// A loopback address that nobody listened on just now.
pub fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Listens where somebody else just stopped listening; connections are made, but nobody will accept them.
pub fn listen(address: SocketAddr) -> Outcome<TcpListener> {
    Ok(TcpListener::bind(address)?)
}

/// Connects until the listener's backlog is full and the kernel drops what comes.
pub fn fill_backlog(address: SocketAddr) -> Outcome<Vec<TcpStream>> {
    let mut waiting = Vec::new();
    while waiting.len() < BACKLOG_MAX {
        match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            Ok(stream) => waiting.push(stream),
            Err(why) if why.kind() == std::io::ErrorKind::TimedOut => return Ok(waiting),
            Err(why) => return Err(why.into()),
        }
    }
    Err(format!("the backlog of {address} does not fill up").into())
}

impl Running {
    /// Starts `command`; its errors, and its output unless `command` sends that elsewhere, go to `<folder>/<name>.log`.
    pub fn start(name: &'static str, command: &mut Command, folder: &Path) -> Outcome<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = fs::File::options().create(true).append(true).open(&log)?;
        command.stdout(file);
        Self::start_heard(name, command, folder)
    }

    /// As [`Running::start`], with its output left as `command` sets it.
    pub fn start_heard(name: &'static str, command: &mut Command, folder: &Path) -> Outcome<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let child = command.stdin(Stdio::null()).stderr(file).spawn();
        let child = child.map_err(|why| format!("cannot start {name}: {why}"))?;
        Ok(Self { child, name, log })
    }

    /// What it wrote last, for an error's text.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `GET /v2/` at `address` is answered, with 200 or, where a login is asked for, 401.
    pub fn ready(&mut self, address: SocketAddr) -> Outcome {
        let until = Instant::now() + START_MAX;
        while !answers(address) {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} ended at its start: {status}\n{}", self.name, self.last_words()).into());
            }
            if Instant::now() > until {
                return Err(format!("{} did not answer at {address}\n{}", self.name, self.last_words()).into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Seconds of CPU that it and its children have used.
    pub fn cpu_s(&self) -> f64 {
        family(self.id()).into_iter().filter_map(|(_, ticks)| ticks).sum::<u64>() as f64 / 100.0
    }

    /// One line of `/proc/<pid>/status` in KiB, such as `VmRSS` or `RssAnon`, children included.
    pub fn memory_kib(&self, line: &str) -> u64 {
        family(self.id()).into_iter().filter_map(|(id, _)| memory_kib(id, line)).sum()
    }

    /// Stops it where it stands, children included: its connections stay, and nothing answers. [`Running::stop`] thaws it.
    pub fn freeze(&self) -> Outcome {
        self.signal_all(Signal::STOP)
    }

    fn signal_all(&self, what: Signal) -> Outcome {
        family(self.id()).into_iter().try_for_each(|(id, _)| signal(id, what))
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> Outcome {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal_all(Signal::CONT)?;
        signal(self.id(), Signal::TERM)?;
        let until = Instant::now() + STOP_MAX;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > until {
                eprintln!("{} does not end by itself; killed", self.name);
                self.child.kill()?;
                self.child.wait()?;
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(why) = self.stop() {
            eprintln!("cannot stop {} ({}): {why}", self.name, self.child.id());
        }
    }
}

/// The highest anonymous memory seen while it lived, looked at every 5 ms.
pub struct Watch {
    highest_kib: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn over(running: &Running) -> Self {
        let (highest_kib, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (id, highest, ended) = (running.id(), highest_kib.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                highest.fetch_max(memory_kib(id, "RssAnon").unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { highest_kib, done, thread: Some(thread) }
    }

    pub fn highest_mib(&self) -> f64 {
        self.highest_kib.load(Ordering::Relaxed) as f64 / 1024.0
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the memory watch ended badly");
        }
    }
}

fn signal(id: u32, what: Signal) -> Outcome {
    match Pid::from_raw(i32::try_from(id)?).map(|id| kill_process(id, what)) {
        // A child may have ended meanwhile.
        None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
        Some(Err(why)) => Err(why.into()),
    }
}

fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        Ok([b"HTTP/1.1 200", b"HTTP/1.1 401"].contains(&&start))
    };
    ask().unwrap_or(false)
}

/// The process and its children, each with the clock ticks that it has used.
fn family(id: u32) -> Vec<(u32, Option<u64>)> {
    let mut found = vec![(id, stat(id).map(|(_, ticks)| ticks))];
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    let others = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    found.extend(others.filter_map(|other| {
        let (parent, ticks) = stat(other)?;
        (parent == id).then_some((other, Some(ticks)))
    }));
    found
}

/// Parent and clock ticks (user and system) out of `/proc/<pid>/stat`.
fn stat(id: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some((fields.get(1)?.parse().ok()?, ticks))
}

fn memory_kib(id: u32, line: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}
