//! What Prometheus' own client libraries say of a process, under their names.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Ticks of a second in `/proc`: Linux' USER_HZ, the same on every architecture that Rust has.
const TICKS: f64 = 100.0;

/// This process.
#[derive(Debug)]
pub(super) struct Process {
    began: f64,
}

impl Process {
    /// A process that begins now.
    pub(super) fn new() -> Process {
        // A clock before 1970 says nothing.
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Process { began: began.as_secs_f64() }
    }
}

impl Collector for Process {
    /// What the system does not say is left out.
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let (seconds, bytes) = (Some(&Unit::Seconds), Some(&Unit::Bytes));
        let help = "When the process began, since 1970";
        let metric = to.encode_descriptor("start_time", help, seconds, MetricType::Gauge)?;
        ConstGauge::new(self.began).encode(metric)?;
        if let Some(ticks) = fs::read_to_string("/proc/self/stat").ok().and_then(|s| ticks(&s)) {
            let help = "Time on processors, user and system";
            let metric = to.encode_descriptor("cpu", help, seconds, MetricType::Counter)?;
            ConstCounter::new(ticks as f64 / TICKS).encode(metric)?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (name, help, field) in [
            ("resident_memory", "Memory in use", "VmRSS:"),
            ("virtual_memory", "Address space in use", "VmSize:"),
        ] {
            if let Some(kibibytes) = number(&status, field) {
                let metric = to.encode_descriptor(name, help, bytes, MetricType::Gauge)?;
                ConstGauge::new(kibibytes * 1024).encode(metric)?;
            }
        }
        let open = fs::read_dir("/proc/self/fd").map(|files| files.count() as i64).ok();
        for (name, help, value) in [
            ("threads", "Threads", number(&status, "Threads:")),
            // One of them is that of the listing itself.
            ("open_fds", "Open file descriptors", open.map(|open| open - 1)),
        ] {
            if let Some(value) = value {
                let metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(metric)?;
            }
        }
        Ok(())
    }
}

/// A number of `/proc/self/status`.
fn number(status: &str, field: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time of `/proc/self/stat`: fields 14 and 15, the second being a name in parentheses
/// that may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_is_read() {
        let status = "Name:\tkvscout\nVmSize:\t  204800 kB\nVmRSS:\t    1024 kB\nThreads:\t7\n";
        assert_eq!(number(status, "VmRSS:"), Some(1024));
        assert_eq!(number(status, "Threads:"), Some(7));
        assert_eq!(number(status, "VmSwap:"), None);
        let stat = "42 (a) b) S 1 42 42 0 -1 4194304 500 0 0 0 17 25 0 0 20 0 7 0 1000 2 3";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("42 (a"), None);
    }
}
