//! The commands' end of the admin socket.

use std::path::PathBuf;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::report::{CheckOrder, WatchEnd, WatchOrder};
use super::report::{CloseOrder, CollectOrder, Complaint, OpenOrder, StatusReport, TagOrder, TagReport, VerifyOrder};
use super::{AdminError, socket};
use crate::gate::GateStatus;
use crate::keep::{CollectReport, VerifyReport};
use crate::server::Seen;
use crate::store::{Restored, TagLine, Wanted};
use crate::upstream::UpstreamCheck;

/// Commands for the server that serves a data folder. Each takes a connection of its own.
#[derive(Clone, Debug)]
pub struct AdminClient {
    data: PathBuf,
}

impl AdminClient {
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into() }
    }

    pub async fn status(&self) -> Result<StatusReport, AdminError> {
        self.ask(Method::GET, "/status", None).await
    }

    pub async fn wanted(&self) -> Result<Vec<Wanted>, AdminError> {
        self.ask(Method::GET, "/status/wanted", None).await
    }

    /// Tags in repositories whose name begins with `name`, as clients write it; all without one.
    pub async fn list(&self, name: Option<&str>) -> Result<Vec<TagLine>, AdminError> {
        let query = name.map(|name| format!("?name={}", utf8_percent_encode(name, NON_ALPHANUMERIC)));
        self.ask(Method::GET, &format!("/ls{}", query.unwrap_or_default()), None).await
    }

    pub async fn gate(&self) -> Result<GateStatus, AdminError> {
        self.ask(Method::GET, "/gate", None).await
    }

    pub async fn open_gate(&self, order: &OpenOrder) -> Result<GateStatus, AdminError> {
        self.ask(Method::POST, "/gate/open", Some(serde_json::json!(order))).await
    }

    /// Returns when every upstream socket has been reset: after `drain_ms` at most.
    pub async fn close_gate(&self, order: &CloseOrder) -> Result<GateStatus, AdminError> {
        self.ask(Method::POST, "/gate/close", Some(serde_json::json!(order))).await
    }

    /// What the tag names and named.
    pub async fn tag(&self, order: &TagOrder) -> Result<TagReport, AdminError> {
        self.ask(Method::POST, "/tag", Some(serde_json::json!(order))).await
    }

    /// `how`: rollback, pin, unpin or release.
    pub async fn move_tag(&self, how: &str, order: &TagOrder) -> Result<TagReport, AdminError> {
        self.ask(Method::POST, &format!("/tag/{how}"), Some(serde_json::json!(order))).await
    }

    /// Throws away what nothing refers to; as a dry run, only tells what would go. Returns when it has ended.
    pub async fn collect(&self, dry_run: bool) -> Result<CollectReport, AdminError> {
        self.ask(Method::POST, "/gc", Some(serde_json::json!(CollectOrder { dry_run }))).await
    }

    /// Reads all that is kept, or all that can be read in the repository `name`. Returns when it has ended.
    pub async fn verify(&self, name: Option<&str>) -> Result<VerifyReport, AdminError> {
        let order = VerifyOrder { name: name.map(str::to_owned) };
        self.ask(Method::POST, "/verify", Some(serde_json::json!(order))).await
    }

    /// How far that is; lists nothing.
    pub async fn verified_so_far(&self) -> Result<VerifyReport, AdminError> {
        self.ask(Method::GET, "/verify", None).await
    }

    /// Puts back what was collected and is still in the trash.
    pub async fn undo_collection(&self) -> Result<Restored, AdminError> {
        self.ask(Method::POST, "/gc/undo", None).await
    }

    /// Asks upstreams step by step, through the gate.
    pub async fn check_upstreams(&self, order: &CheckOrder) -> Result<Vec<UpstreamCheck>, AdminError> {
        self.ask(Method::POST, "/upstream/check", Some(serde_json::json!(order))).await
    }

    /// From now on, requests whose path holds `name` are kept; the number is for [`AdminClient::seen`].
    pub async fn watch(&self, name: &str) -> Result<WatchEnd, AdminError> {
        let order = WatchOrder { name: name.to_owned() };
        self.ask(Method::POST, "/watch", Some(serde_json::json!(order))).await
    }

    /// Ends a watch: what it saw, the oldest first.
    pub async fn seen(&self, watch: &WatchEnd) -> Result<Vec<Seen>, AdminError> {
        self.ask(Method::POST, "/watch/end", Some(serde_json::json!(watch))).await
    }

    /// Whether the store answers.
    pub async fn ready(&self) -> Result<(), AdminError> {
        self.ask::<Value>(Method::GET, "/ready", None).await.map(|_| ())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        order: Option<Value>,
    ) -> Result<T, AdminError> {
        let stream = socket::connect(&self.data).await?;
        let broken = |source| AdminError::Broken { data: self.data.clone(), source };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|why| broken(why.into()))?;
        let body = order.map(|order| order.to_string()).unwrap_or_default();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|why: http::uri::InvalidUri| broken(why.into()))?;
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("sealock"));
        let asking = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, bytes))
        };
        // Both ends of the exchange run here: a command leaves no task behind.
        let (answer, _) = tokio::join!(asking, connection);
        let (status, bytes) = answer.map_err(|why| broken(why.into()))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|why| broken(why.into()));
        }
        let complaint: Complaint = serde_json::from_slice(&bytes).map_err(|why| broken(why.into()))?;
        Err(AdminError::Refused { message: complaint.error, hint: complaint.hint })
    }
}
