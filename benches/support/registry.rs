//! Debian's docker-registry as a pull-through proxy, the peer in our own field.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Outcome;
use super::far::Blob;
use super::process::{Running, free_address, leashed};

/// A running docker-registry.
pub struct DockerRegistry {
    pub address: SocketAddr,
    pub running: Running,
    store: PathBuf,
}

const KEEP_MAX: Duration = Duration::from_secs(60);

impl DockerRegistry {
    /// Proxies `upstream`, with its store in `folder`.
    pub fn proxy(folder: &Path, upstream: SocketAddr) -> Outcome<Self> {
        Self::start(folder, &format!("proxy: {{ remoteurl: 'http://{upstream}' }}\n"))
    }

    /// Takes pushes, with its store in `folder`.
    pub fn plain(folder: &Path) -> Outcome<Self> {
        Self::start(folder, "")
    }

    fn start(folder: &Path, more: &str) -> Outcome<Self> {
        let address = free_address()?;
        let store = folder.join("store");
        let settings = format!(
            "version: 0.1\n\
             log: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {store} }}, cache: {{ blobdescriptor: inmemory }} }}\n\
             http: {{ addr: '{address}' }}\n\
             {more}",
            store = store.display(),
        );
        let file = folder.join("registry.yml");
        fs::write(&file, settings)?;
        let mut command = leashed("docker-registry");
        command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none");
        let mut running = Running::start("docker-registry", &mut command, folder)?;
        running.ready(address)?;
        Ok(Self { address, running, store })
    }

    /// Waits until it keeps `blob`, which is some time after its first client has it.
    pub fn wait_for(&self, blob: &Blob) -> Outcome {
        let hex = blob.hex();
        let file = self.store.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        let until = Instant::now() + KEEP_MAX;
        while std::fs::metadata(&file).map_or(0, |found| found.len()) != blob.size {
            if Instant::now() > until {
                return Err(format!("docker-registry does not keep {}", blob.digest).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}
