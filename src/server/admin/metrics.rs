//! `GET /metrics`, and HEAD: what `sealock status` says, as Prometheus reads it.
//!
//! Gauges alone, made at each scrape from the report. Labels are keys and files of the settings: what clients do adds none.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::report::StatusReport;
use crate::tls::Role;

pub(super) const PATH: &str = "/metrics";
/// Gauges read the same in this format and in OpenMetrics, and every scraper takes this one.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names and values of labels.
type Labels = Vec<(&'static str, String)>;
type Whole = Gauge<i64, AtomicI64>;
type Real = Gauge<f64, AtomicU64>;

/// (pure) The report as text.
pub(super) fn render(report: &StatusReport) -> Result<String, fmt::Error> {
    let mut page = Page(Registry::with_prefix("sealock"));
    page.labelled("build_info", "Always 1; its label is the version", [(vec![("version", report.version.clone())], 1)]);
    page.time("start_timestamp_seconds", "When the server was started", report.started_at);
    about_certificates(&mut page, report);
    about_gate(&mut page, report);
    about_kept(&mut page, report);
    page.number(
        "warnings",
        "What `sealock status` warns of, such as a certificate that ends soon",
        report.warnings.len(),
    );
    let mut text = String::new();
    encode(&mut text, &page.0)?;
    Ok(text)
}

fn about_certificates(page: &mut Page, report: &StatusReport) {
    let family = Family::<Labels, Real>::default();
    for one in &report.certificates {
        let role = match one.role {
            Role::Server => "server",
            Role::Authority => "authority",
            Role::ClientAuthority => "client_authority",
        };
        let labels = vec![("file", one.file.display().to_string()), ("role", role.to_owned())];
        let until = one.facts.not_after.as_second() as f64;
        // A file of several authorities is as good as the first that ends.
        let gauge = family.get_or_create(&labels);
        gauge.set(if gauge.get() == 0.0 { until } else { gauge.get().min(until) });
    }
    let help = "When the first certificate of the file ends";
    page.0.register("certificate_expiry_timestamp_seconds", help, family);
}

fn about_gate(page: &mut Page, report: &StatusReport) {
    let gate = &report.gate;
    page.number("gate_open", "Whether requests to upstreams may leave: 1 or 0", usize::from(gate.open));
    let upstreams = || report.upstreams.iter().map(|upstream| (vec![("upstream", upstream.name.clone())], upstream));
    let open = |name: &str| i64::from(gate.open || gate.upstreams.contains_key(name));
    page.labelled(
        "upstream_gate_open",
        "Whether requests to this upstream may leave, by the gate or by an order for it alone: 1 or 0",
        upstreams().map(|(labels, upstream)| (labels, open(&upstream.name))),
    );
    page.labelled(
        "upstream_up",
        "0 while the upstream is left alone because all of its endpoints failed, otherwise 1",
        upstreams().map(|(labels, upstream)| (labels, i64::from(upstream.resting_until.is_none()))),
    );
    page.number("fills_under_way", "Fills and fetches from upstreams under way or waiting", report.under_way);
    page.number("wanted", "Names that clients asked for and could not have", report.wanted);
}

fn about_kept(page: &mut Page, report: &StatusReport) {
    let totals = &report.totals;
    page.number(
        "read_only",
        "1 after a lost write: nothing is taken in until a restart",
        usize::from(report.read_only),
    );
    page.number("damaged", "Blobs and manifests that were found damaged and are not kept again", report.damaged);
    page.number("kept_bytes", "Size of all blobs and manifests that are kept", totals.size_bytes);
    page.number("kept_blobs", "Blobs that are kept", totals.blobs);
    page.number("kept_manifests", "Manifests that are kept", totals.manifests);
    page.number("kept_tags", "Tags that are kept", totals.tags);
    page.number("incomplete_tags", "Tags of which something is not kept", totals.incomplete_tags);
    page.number("staged_bytes", "Size of what is coming in and of what was broken off", totals.staged_bytes);
    page.number("trash_bytes", "Size of what was collected and can be put back", report.keep.trash_bytes);
    page.number("free_bytes", "What the file system of the data folder has left", report.keep.pressure.free_bytes);
}

/// The metrics of one answer.
struct Page(Registry);

impl Page {
    fn number(&mut self, name: &str, help: &str, value: impl TryInto<i64>) {
        let gauge = Whole::default();
        gauge.set(value.try_into().unwrap_or(i64::MAX));
        self.0.register(name, help, gauge);
    }

    fn time(&mut self, name: &str, help: &str, at: jiff::Timestamp) {
        let gauge = Real::default();
        gauge.set(at.as_millisecond() as f64 / 1000.0);
        self.0.register(name, help, gauge);
    }

    fn labelled(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, i64)>) {
        let family = Family::<Labels, Whole>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }
}
