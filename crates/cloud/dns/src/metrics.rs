//! What is counted, in the names of CoreDNS with our prefix. Plain atomics: a question touches a few, without locks.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::answer::{Transport, View};
use crate::kind::{rcode_label, type_label};

const TYPES: [u16; 17] = [1, 28, 33, 12, 5, 15, 2, 6, 16, 43, 48, 252, 251, 255, 65, 64, 0];
const RCODES: [u16; 10] = [0, 1, 2, 3, 4, 5, 9, 16, 23, u16::MAX];
/// Upper bounds in seconds and how they are written.
const BOUNDS: [(f64, &str); 8] = [
    (0.00025, "0.00025"),
    (0.001, "0.001"),
    (0.004, "0.004"),
    (0.016, "0.016"),
    (0.064, "0.064"),
    (0.256, "0.256"),
    (1.024, "1.024"),
    (4.096, "4.096"),
];

#[derive(Default)]
pub struct Metrics {
    requests: [[AtomicU64; TYPES.len()]; 2],
    responses: [AtomicU64; RCODES.len()],
    durations: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
    pub dropped: AtomicU64,
    pub transfers: AtomicU64,
}

const PROTOCOLS: [(Transport, &str); 2] = [(Transport::Udp, "udp"), (Transport::Tcp, "tcp")];

impl Metrics {
    pub fn answered(&self, transport: Transport, kind: u16, rcode: u16, took: Duration) {
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let protocol = usize::from(transport == Transport::Tcp);
        add(&self.requests[protocol][TYPES.iter().position(|known| *known == kind).unwrap_or(TYPES.len() - 1)]);
        add(&self.responses[RCODES.iter().position(|known| *known == rcode).unwrap_or(RCODES.len() - 1)]);
        let seconds = took.as_secs_f64();
        add(&self.durations[BOUNDS.iter().position(|(bound, _)| seconds <= *bound).unwrap_or(BOUNDS.len())]);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The Prometheus text format.
    pub fn render(&self, view: &View) -> String {
        let mut out = String::new();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut out, "dhow_dns_requests_total", "counter", "Questions answered.");
        for (index, (_, protocol)) in PROTOCOLS.iter().enumerate() {
            for (kind, counter) in TYPES.iter().zip(&self.requests[index]).filter(|(_, counter)| read(counter) > 0) {
                let labels = format!("proto=\"{protocol}\",type=\"{}\"", type_label(*kind));
                let _ = writeln!(out, "dhow_dns_requests_total{{{labels}}} {}", read(counter));
            }
        }
        head(&mut out, "dhow_dns_responses_total", "counter", "Replies by response code.");
        for (code, counter) in RCODES.iter().zip(&self.responses).filter(|(_, counter)| read(counter) > 0) {
            let _ = writeln!(out, "dhow_dns_responses_total{{rcode=\"{}\"}} {}", rcode_label(*code), read(counter));
        }
        let name = "dhow_dns_request_duration_seconds";
        head(&mut out, name, "histogram", "From a question to its reply.");
        let mut sum = 0;
        for (index, counter) in self.durations.iter().enumerate() {
            sum += read(counter);
            let bound = BOUNDS.get(index).map_or("+Inf", |(_, text)| text);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        #[allow(clippy::cast_precision_loss)]
        let seconds = read(&self.nanoseconds) as f64 / 1e9;
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {sum}");
        let forwarder = view.forwarder.counters();
        let (entries, bytes) = view.forwarder.cache_usage();
        for (name, help, value) in [
            ("dhow_dns_cache_hits_total", "Answers of upstreams given again.", read(&forwarder.hits)),
            ("dhow_dns_cache_misses_total", "Questions that upstreams were needed for.", read(&forwarder.misses)),
            ("dhow_dns_cache_served_stale_total", "Ended answers given again.", read(&forwarder.stale)),
            ("dhow_dns_cache_prefetch_total", "Answers fetched before they ended.", read(&forwarder.prefetches)),
            ("dhow_dns_forward_coalesced_total", "Questions that joined one on its way.", read(&forwarder.coalesced)),
            ("dhow_dns_forward_failures_total", "Questions no upstream answered.", read(&forwarder.failures)),
            ("dhow_dns_dropped_total", "Messages without a reply.", read(&self.dropped)),
            ("dhow_dns_transfers_total", "Zones transferred.", read(&self.transfers)),
        ] {
            head(&mut out, name, "counter", help);
            let _ = writeln!(out, "{name} {value}");
        }
        for (name, help, value) in [
            ("dhow_dns_cache_entries", "Answers of upstreams kept.", entries),
            ("dhow_dns_cache_bytes", "Bytes of answers kept.", bytes),
        ] {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
        out
    }
}
