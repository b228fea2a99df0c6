//! What `/metrics` exposes, and what `docs/metrics.md` says of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use crate::daemon_support::Daemon;

/// Metrics by name: their type, and the labels of their series.
pub(crate) type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// Whether there is a curl, which calls over gRPC are made with; it has to be there where clients are required.
pub(crate) fn has_curl() -> bool {
    let is_there = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(is_there || std::env::var_os("KVSCOUT_TEST_CLIENTS").is_none(), "there is no curl");
    if !is_there {
        eprintln!("skipped: there is no curl");
    }
    is_there
}

/// Calls a method over gRPC with an empty message; the number of its status.
pub(crate) fn call(daemon: &Daemon, method: &str) -> String {
    call_with(daemon, method, &[])
}

/// The same with this message.
pub(crate) fn call_with(daemon: &Daemon, method: &str, message: &[u8]) -> String {
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "-D",
        "-",
        "-o",
        "/dev/null",
        "--http2-prior-knowledge",
        "--data-binary",
        "@-",
    ]);
    curl.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    curl.arg(format!("http://{}/{method}", daemon.grpc()));
    let mut child = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Not compressed, and of so many bytes.
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0], &length[..], message].concat();
    child.stdin.take().unwrap().write_all(&framed).unwrap();
    let said = child.wait_with_output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let status = said.lines().find_map(|line| line.strip_prefix("grpc-status: "));
    status.unwrap_or_else(|| panic!("{method}: {said:?}")).trim().to_owned()
}

/// What a daemon exposes.
pub(crate) fn exposed(daemon: &Daemon) -> Metrics {
    let text = daemon.get("/metrics").body;
    let mut metrics = Metrics::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some((of, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            name = of.to_owned() + if kind == "counter" { "_total" } else { "" };
            metrics.insert(name.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
            let names = labels.into_iter().flat_map(|(labels, _)| labels.split(','));
            let names = names.filter_map(|label| label.split_once('=')).map(|(name, _)| name);
            let known = &mut metrics.get_mut(&name).unwrap().1;
            known.extend(names.filter(|name| *name != "le").map(str::to_owned));
        }
    }
    metrics
}

/// The tables of the document.
pub(crate) fn documented() -> Metrics {
    let document = include_str!("../../docs/metrics.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |row: &str| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let labels = cells.get(2)?.split(['`', ',', ' ', '|']).filter(|name| !name.is_empty());
        let kind = ["counter", "gauge", "histogram"].contains(&cells[1]).then_some(cells[1])?;
        let labels: BTreeSet<String> = match cells[2].starts_with('`') {
            true => labels.map(str::to_owned).collect(),
            false => BTreeSet::new(),
        };
        Some((cells[0].trim_end_matches('`').to_owned(), (kind.to_owned(), labels)))
    };
    rows.filter_map(row).collect()
}

/// Those of the document whose names begin like this.
pub(crate) fn documented_of(prefix: &str) -> Metrics {
    documented().into_iter().filter(|(name, _)| name.starts_with(prefix)).collect()
}

/// What a daemon exposes of them.
pub(crate) fn exposed_of(daemon: &Daemon, prefix: &str) -> Metrics {
    exposed(daemon).into_iter().filter(|(name, _)| name.starts_with(prefix)).collect()
}
