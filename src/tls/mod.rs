//! TLS: PEM files -> rustls settings, for both directions, and the certificates that sealock makes itself.
//!
//! ```text
//! client                 whom we believe as a client of upstreams
//! server ── pair ── facts   what we show to clients, chosen by name; read again when the files change
//! issue ────────────┘       an authority and a server's certificate of our own: `sealock certs`
//! ```
//! A key that others may read is refused; a file that cannot be used never replaces one that is in use.

mod client;
mod facts;
mod issue;
mod pair;
mod server;
mod settings;

pub use client::{CA_FILE_SIZE_MAX, TlsError, client_config, read_certificates, to_pem};
pub use facts::Facts;
pub use issue::{Folder, InvalidName, IssueError, Name, init, renew};
pub use pair::PairError;
pub use server::{InvalidTls, Role, ServerTls, Shown, TlsReport, check_key, shown};
pub use settings::{ClientAuth, PairSettings, TlsSettings};

/// A certificate that ends within so many days is warned of.
pub const WARN_DAYS: i64 = 30;
