//! nginx: as the far registry, as a file server of the same bytes, and as a caching proxy.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Outcome;
use super::far::{Far, MANIFEST_TYPE};
use super::process::{Running, free_address, leashed};

/// A running nginx with two workers.
pub struct Nginx {
    pub address: SocketAddr,
    pub running: Running,
    log: PathBuf,
}

/// What the far registry was asked.
pub struct Asked {
    pub method: String,
    pub path: String,
    pub status: u16,
    pub bytes: u64,
}

impl Nginx {
    /// Serves `far` by `sendfile`, without a log.
    pub fn files(folder: &Path, far: &Far) -> Outcome<Self> {
        Self::start(folder, free_address()?, &registry(folder, far, "access_log off;")?)
    }

    /// As [`Nginx::files`], with TLS and HTTP/2 at `tls` as well; `certs` has `server.crt` and `server.key`.
    pub fn files_tls(folder: &Path, far: &Far, tls: SocketAddr, certs: &Path) -> Outcome<Self> {
        let extra = format!(
            "access_log off;
             listen {tls} ssl http2;
             ssl_certificate {0}/server.crt;
             ssl_certificate_key {0}/server.key;
             ssl_protocols TLSv1.2 TLSv1.3;
             ssl_session_cache shared:bench:10m;",
            certs.display()
        );
        Self::start(folder, free_address()?, &registry(folder, far, &extra)?)
    }

    /// The far registry: serves `far` and logs what it was asked; `limit_rate` per connection, as nginx writes it (`100m`).
    pub fn upstream(folder: &Path, far: &Far, limit_rate: Option<&str>) -> Outcome<Self> {
        Self::upstream_at(folder, free_address()?, far, limit_rate)
    }

    pub fn upstream_at(folder: &Path, address: SocketAddr, far: &Far, limit_rate: Option<&str>) -> Outcome<Self> {
        let limit = limit_rate.map_or(String::new(), |rate| format!("limit_rate {rate};"));
        let extra = format!("access_log {}/access.log asked; {limit}", folder.display());
        Self::start(folder, address, &registry(folder, far, &extra)?)
    }

    /// A caching proxy that lets one request of many fetch a thing.
    pub fn cache(folder: &Path, upstream: SocketAddr) -> Outcome<Self> {
        let cache = folder.join("cache");
        let http = format!(
            "proxy_cache_path {cache} levels=1:2 keys_zone=bench:16m max_size=64g inactive=1d use_temp_path=off;
             upstream far {{ server {upstream}; keepalive 64; }}
             server {{
                 listen ADDRESS;
                 location = /v2/ {{ default_type application/json; return 200 '{{}}'; }}
                 location / {{
                     proxy_pass http://far;
                     proxy_http_version 1.1;
                     proxy_set_header Connection '';
                     proxy_buffers 16 64k;
                     proxy_busy_buffers_size 128k;
                     proxy_cache bench;
                     proxy_cache_key $uri;
                     proxy_cache_valid 200 1d;
                     proxy_cache_lock on;
                     proxy_cache_lock_timeout 10m;
                     proxy_cache_lock_age 10m;
                 }}
             }}",
            cache = cache.display(),
        );
        Self::start(folder, free_address()?, &http)
    }

    /// What was asked so far. Only after [`Running::stop`] nothing is missing.
    pub fn asked(&self) -> Outcome<Vec<Asked>> {
        let line = |line: &str| {
            let mut parts = line.split(' ').map(str::to_owned);
            Some(Asked {
                method: parts.next()?,
                path: parts.next()?,
                status: parts.next()?.parse().ok()?,
                bytes: parts.next()?.parse().ok()?,
            })
        };
        let text = fs::read_to_string(&self.log)?;
        text.lines().map(|found| line(found).ok_or_else(|| format!("strange log line `{found}`").into())).collect()
    }

    fn start(folder: &Path, address: SocketAddr, http: &str) -> Outcome<Self> {
        let here = folder.display();
        // Scratch folders are their owner's alone, so root's workers must stay root.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {here}/{kind};\n"))
            .collect();
        let settings = format!(
            "daemon off; worker_processes 2; pid {here}/nginx.pid; error_log stderr warn; {user}
             events {{ worker_connections 2048; }}
             http {{
                 log_format asked '$request_method $uri $status $body_bytes_sent';
                 access_log off;
                 {temporary}
                 sendfile on; tcp_nopush on; tcp_nodelay on;
                 keepalive_timeout 10m; keepalive_requests 1000000000; keepalive_time 1d;
                 default_type application/octet-stream;
                 {http}
             }}",
            http = http.replace("ADDRESS", &address.to_string()),
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, settings)?;
        let mut command = leashed("nginx");
        command.arg("-p").arg(folder).arg("-c").arg(&file).args(["-e", "stderr"]);
        let mut running = Running::start("nginx", &mut command, folder)?;
        running.ready(address)?;
        Ok(Self { address, running, log: folder.join("access.log") })
    }
}

/// A server that answers as a registry does; `Docker-Content-Digest` included, also for tags.
fn registry(folder: &Path, far: &Far, extra: &str) -> Outcome<String> {
    let tags: String = far
        .tags()
        .iter()
        .map(|(tag, digest)| format!("/v2/{}/manifests/{tag} {digest};\n", super::far::REPOSITORY))
        .collect();
    let map = folder.join("digests");
    fs::write(&map, tags)?;
    Ok(format!(
        "map_hash_bucket_size 256;
         map_hash_max_size 65536;
         map $uri $digest {{
             default '';
             ~^/v2/.+/(?:blobs|manifests)/(?<named>sha256:[0-9a-f]+)$ $named;
             include {map};
         }}
         server {{
             listen ADDRESS;
             root {root};
             {extra}
             add_header Docker-Distribution-Api-Version registry/2.0;
             add_header Docker-Content-Digest $digest;
             location = /v2/ {{ access_log off; default_type application/json; return 200 '{{}}'; }}
             location ~ ^/v2/.+/manifests/ {{ default_type {MANIFEST_TYPE}; }}
         }}",
        map = map.display(),
        root = far.root().display(),
    ))
}
