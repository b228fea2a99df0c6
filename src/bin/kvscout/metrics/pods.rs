//! Series with a pod in them, of so many pods at most; those of all others are added up.
//!
//! Invariants: a pod that has series of its own keeps them until it is gone; what is added up never
//! falls when pods come, go or start anew, so that a rate of it is right.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use kvscout::block::{Tier, WorkerId};
use parking_lot::Mutex;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::series::Kind;
use super::totals::{TRUSTS, trust_at};
use crate::service::WorkerView;

/// The pod of the series of all pods that have none of their own. One that is called so has none.
const OTHERS: &str = "_others";

/// Bytes of the longest tenant, pod or model of a label; a pod with a longer one is among the others.
const LONGEST: usize = 256;

/// How a worker says a value.
type Read = fn(&WorkerView) -> u64;

/// A metric of each pod: its name and what it means, the label that tells its series apart beside the
/// pod, and that label's values.
struct Metric {
    name: &'static str,
    help: &'static str,
    label: Option<&'static str>,
    series: &'static [(&'static str, Read)],
}

const fn single(name: &'static str, help: &'static str, series: &'static [(&str, Read)]) -> Metric {
    Metric { name, help, label: None, series }
}

/// What only grows while a worker is there, or begins anew.
const COUNTERS: &[Metric] = &[
    Metric {
        name: "pod_events",
        help: "Events by type; rejected ones were unreadable or senseless",
        label: Some("type"),
        series: &[
            ("stored", |view| view.status.events.stored_events),
            ("removed", |view| view.status.events.removed_events),
            ("cleared", |view| view.status.events.cleared),
            ("rejected", |view| view.status.events.rejected),
        ],
    },
    single("pod_batches", "Batches applied", &[("", |view| view.status.counters.batches)]),
    single("pod_gaps", "Gaps in the numbers of batches", &[("", |view| view.status.counters.gaps)]),
    single(
        "pod_missing_batches",
        "Batches that gaps and missed starts left out",
        &[("", |view| view.status.counters.missing)],
    ),
    single(
        "pod_replayed_batches",
        "Batches applied from replays",
        &[("", |view| view.status.counters.replayed)],
    ),
    Metric {
        name: "pod_contract_checks",
        help: "Announced block names by whether the contract gives them",
        label: Some("result"),
        series: &[
            ("equal", |view| {
                let checks = view.status.checks;
                checks.checked.saturating_sub(checks.failed)
            }),
            ("different", |view| view.status.checks.failed),
        ],
    },
    single("pod_picks", "Picks that routers told of", &[("", |view| view.picks)]),
    Metric {
        name: "pod_receipt_tokens",
        help: "Tokens of receipts: expected, delivered, and how far these were apart",
        label: Some("kind"),
        series: &[
            ("expected", |view| view.receipts.map_or(0, |record| record.expected_tokens)),
            ("delivered", |view| view.receipts.map_or(0, |record| record.delivered_tokens)),
            ("error", |view| view.receipts.map_or(0, |record| record.error_tokens)),
        ],
    },
];

/// What is so now.
const GAUGES: &[Metric] = &[
    single(
        "pod_sources_up",
        "Sources whose publisher is connected",
        &[("", |view| view.source.as_ref().map_or(0, |source| u64::from(source.up)))],
    ),
    single(
        "pod_held_back_batches",
        "Batches that wait for earlier ones",
        &[("", |view| view.status.held_back as u64)],
    ),
    Metric {
        name: "pod_workers",
        help: "Workers (ranks) by trust",
        label: Some("trust"),
        series: &[
            (TRUSTS[0], |view| is(view, 0)),
            (TRUSTS[1], |view| is(view, 1)),
            (TRUSTS[2], |view| is(view, 2)),
            (TRUSTS[3], |view| is(view, 3)),
        ],
    },
    Metric {
        name: "pod_blocks",
        help: "Blocks held by tier, one of several groups or ranks counted in each",
        label: Some("tier"),
        series: &[
            (Tier::Gpu.as_str(), |view| view.status.held[0]),
            (Tier::Cpu.as_str(), |view| view.status.held[1]),
            (Tier::Disk.as_str(), |view| view.status.held[2]),
            (Tier::Remote.as_str(), |view| view.status.held[3]),
            (Tier::Unknown.as_str(), |view| view.status.held[4]),
        ],
    },
];

fn is(view: &WorkerView, at: usize) -> u64 {
    u64::from(trust_at(view.status.trust) == at)
}

fn read(metrics: &[Metric], view: &WorkerView) -> Vec<u64> {
    metrics.iter().flat_map(|metric| metric.series).map(|(_, read)| read(view)).collect()
}

fn add(sums: &mut Vec<u64>, values: impl IntoIterator<Item = u64>) {
    for (n, value) in values.into_iter().enumerate() {
        match sums.get_mut(n) {
            // One gap may be almost as wide as a number can be.
            Some(sum) => *sum = sum.saturating_add(value),
            None => sums.push(value),
        }
    }
}

/// Tenant and pod.
type Name = (String, String);

/// What the workers of a pod, or of all other pods, have counted.
#[derive(Debug, Default)]
struct Account {
    sums: Vec<u64>,
    /// What each had counted when it was last looked at.
    last: HashMap<WorkerId, Vec<u64>>,
}

impl Account {
    /// Adds what a worker has counted since it was last looked at; one that counts less began anew.
    fn count(&mut self, worker: WorkerId, values: Vec<u64>) {
        let last = self.last.get(&worker);
        let before = |n: usize| last.and_then(|last| last.get(n)).copied().unwrap_or(0);
        let more = |(n, &value): (usize, &u64)| value.checked_sub(before(n)).unwrap_or(value);
        add(&mut self.sums, values.iter().enumerate().map(more).collect::<Vec<_>>());
        self.last.insert(worker, values);
    }
}

/// What is so now of a pod, or of all other pods.
#[derive(Debug, Default)]
struct Present {
    model: Option<String>,
    gauges: Vec<u64>,
    quiet: Option<Duration>,
    lag: Option<Duration>,
}

/// The longest of each pod's workers, in seconds: names, what they say, and where they are.
type Longest = (&'static str, &'static str, fn(&Present) -> Option<Duration>);
const DURATIONS: [Longest; 2] = [
    (
        "pod_quiet_seconds",
        "Seconds without a batch from the quietest worker that is connected",
        |present| present.quiet,
    ),
    (
        "pod_lag_seconds",
        "How old the last live batch of the worker that is furthest behind was when it was taken in",
        |present| present.lag,
    ),
];

/// Which pods have series of their own, and what was counted of each and of the others.
#[derive(Debug)]
pub(super) struct Pods {
    most: usize,
    accounts: Mutex<BTreeMap<Name, Account>>,
}

impl Pods {
    /// At most so many pods will have series of their own.
    pub(super) fn new(most: usize) -> Pods {
        Pods { most, accounts: Mutex::default() }
    }

    /// Counts what `read` says of all workers that there are, beside which it may say something else. It reads under the
    /// lock: what was read before another's look and is counted after it would seem to have begun anew.
    pub(super) fn look<T>(&self, read: impl FnOnce() -> (T, Vec<WorkerView>)) -> (T, Seen) {
        let mut accounts = self.accounts.lock();
        let (beside, workers) = read();
        let present = look(&mut accounts, self.most, &workers);
        let sums = accounts.iter().map(|(name, account)| (name.clone(), account.sums.clone()));
        (beside, Seen { present, sums: sums.collect() })
    }
}

/// What a look has found.
#[derive(Debug)]
pub(super) struct Seen {
    present: BTreeMap<Name, Present>,
    sums: Vec<(Name, Vec<u64>)>,
}

impl Seen {
    /// Writes every series.
    pub(super) fn encode(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let named = || self.present.iter().map(|(name, present)| (labels(name), present));
        let help = "The model of each pod with series of its own";
        let mut family = to.encode_descriptor("pod_info", help, None, MetricType::Gauge)?;
        for ([tenant, pod], Present { model, .. }) in named().filter(|(l, _)| l[1].1 != OTHERS) {
            let model = ("model", model.as_deref().unwrap_or_default());
            Kind::Gauge.write(family.encode_family(&[tenant, pod, model])?, 1)?;
        }
        for (name, help, of) in DURATIONS {
            let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, present) in named() {
                let Some(duration) = of(present) else { continue };
                ConstGauge::new(duration.as_secs_f64()).encode(family.encode_family(&labels)?)?;
            }
        }
        let gauges = named().map(|(labels, present)| (labels, &present.gauges[..]));
        write(to, GAUGES, Kind::Gauge, &gauges.collect::<Vec<_>>())?;
        let counters = self.sums.iter().map(|(name, sums)| (labels(name), &sums[..]));
        write(to, COUNTERS, Kind::Counter, &counters.collect::<Vec<_>>())
    }
}

/// Counts what workers have counted since the last look, and says what is so now.
fn look(
    accounts: &mut BTreeMap<Name, Account>,
    most: usize,
    workers: &[WorkerView],
) -> BTreeMap<Name, Present> {
    let others = || (String::new(), OTHERS.to_owned());
    let there: HashSet<(&str, &str)> = workers.iter().map(identity).collect();
    accounts
        .retain(|name, _| *name == others() || there.contains(&(name.0.as_str(), name.1.as_str())));
    let mut present: BTreeMap<Name, Present> = BTreeMap::new();
    for view in workers {
        let (tenant, pod) = identity(view);
        let model = view.status.registration.model.as_deref().unwrap_or_default();
        let mut name = (tenant.to_owned(), pod.to_owned());
        let own = accounts.len() - usize::from(accounts.contains_key(&others()));
        let is_plain = pod != OTHERS && tenant.len().max(pod.len()).max(model.len()) <= LONGEST;
        if !is_plain || !accounts.contains_key(&name) && own >= most {
            name = others();
        }
        accounts.entry(name.clone()).or_default().count(view.status.worker, read(COUNTERS, view));
        let found = present.entry(name).or_default();
        add(&mut found.gauges, read(GAUGES, view));
        found.quiet = found.quiet.max(view.quiet());
        found.lag = found.lag.max(view.heard.and_then(|heard| heard.lag));
        found.model.get_or_insert_with(|| model.to_owned());
    }
    let alive: HashSet<WorkerId> = workers.iter().map(|view| view.status.worker).collect();
    for account in accounts.values_mut() {
        account.last.retain(|worker, _| alive.contains(worker));
    }
    present
}

fn identity(view: &WorkerView) -> (&str, &str) {
    let registration = &view.status.registration;
    (&registration.tenant, &registration.pod)
}

type Labels<'a> = [(&'static str, &'a str); 2];

fn labels((tenant, pod): &Name) -> Labels<'_> {
    [("tenant", tenant), ("pod", pod)]
}

/// Writes a table of metrics; each pod has the values of all their series.
fn write(
    to: &mut DescriptorEncoder<'_>,
    metrics: &[Metric],
    kind: Kind,
    pods: &[(Labels<'_>, &[u64])],
) -> fmt::Result {
    let mut from = 0;
    for Metric { name, help, label, series } in metrics {
        let mut family = to.encode_descriptor(name, help, None, kind.metric_type())?;
        for (of, values) in pods {
            for ((which, _), &value) in series.iter().zip(&values[from..]) {
                let mut labels = of.to_vec();
                labels.extend(label.map(|label| (label, *which)));
                let metric = family.encode_family(&labels)?;
                kind.write(metric, value)?;
            }
        }
        from += series.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use kvscout::scout::{Options, Registration, Scout};

    use super::*;

    /// Workers of these pods, each of which counts so many batches.
    fn views(pods: &[(&str, u64)]) -> Vec<WorkerView> {
        let scout = Scout::new(Options::default()).unwrap();
        let view = |&(pod, batches): &(&str, u64)| {
            // A worker keeps its number over several looks.
            let number = pod.bytes().fold(0, |n: u32, byte| n.wrapping_mul(31) + u32::from(byte));
            let worker = scout.register(Registration::new(pod, "m")).unwrap();
            let mut status = scout.worker(worker).unwrap();
            status.worker = WorkerId(number);
            status.counters.batches = batches;
            status.held = [10, 0, 0, 0, 0];
            let (feed, source, receipts) = (None, None, None);
            let (labels, picks, heard) = (Default::default(), 0, None);
            WorkerView { status, feed, source, labels, receipts, picks, heard }
        };
        pods.iter().map(view).collect()
    }

    struct Told {
        batches: BTreeMap<String, u64>,
        blocks: BTreeMap<String, u64>,
    }

    fn tell(accounts: &mut BTreeMap<Name, Account>, pods: &[(&str, u64)]) -> Told {
        let present = look(accounts, 2, &views(pods));
        let at = |metrics: &[Metric], name: &str| {
            let before = metrics.iter().take_while(|metric| metric.name != name);
            before.map(|metric| metric.series.len()).sum::<usize>()
        };
        let (batches, blocks) = (at(COUNTERS, "pod_batches"), at(GAUGES, "pod_blocks"));
        Told {
            batches: accounts.iter().map(|(name, a)| (name.1.clone(), a.sums[batches])).collect(),
            blocks: present.iter().map(|(name, p)| (name.1.clone(), p.gauges[blocks])).collect(),
        }
    }

    fn map(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|&(name, n)| (name.to_owned(), n)).collect()
    }

    #[test]
    fn pods_beyond_the_cap_are_added_up() {
        let mut accounts = BTreeMap::new();
        let told = tell(&mut accounts, &[("a", 1), ("b", 2), ("c", 3), ("d", 4)]);
        assert_eq!(told.batches, map(&[("a", 1), ("b", 2), (OTHERS, 7)]));
        assert_eq!(told.blocks, map(&[("a", 10), ("b", 10), (OTHERS, 20)]));
    }

    #[test]
    fn a_pod_keeps_its_series_and_the_others_never_fall() {
        let mut accounts = BTreeMap::new();
        tell(&mut accounts, &[("a", 1), ("b", 2), ("c", 3), ("d", 4)]);
        // One with series leaves, and the first of the others takes its place; what it had counted
        // among them stays there.
        let told = tell(&mut accounts, &[("b", 2), ("c", 4), ("d", 4), ("e", 9)]);
        assert_eq!(told.batches, map(&[("b", 2), ("c", 4), (OTHERS, 16)]));
    }

    #[test]
    fn what_gone_workers_counted_stays_and_one_that_begins_anew_counts_on() {
        let mut accounts = BTreeMap::new();
        tell(&mut accounts, &[("a", 5), ("b", 5), ("c", 5), ("d", 5)]);
        let told = tell(&mut accounts, &[("a", 2), ("b", 5), ("c", 6)]);
        assert_eq!(told.batches, map(&[("a", 7), ("b", 5), (OTHERS, 11)]));
        assert_eq!(told.blocks, map(&[("a", 10), ("b", 10), (OTHERS, 10)]));
        assert!(accounts.values().all(|account| account.last.len() == 1));
    }

    #[test]
    fn a_pod_with_the_name_of_the_others_has_no_series_of_its_own() {
        let told = tell(&mut BTreeMap::new(), &[(OTHERS, 1), ("a", 2)]);
        assert_eq!(told.batches, map(&[("a", 2), (OTHERS, 1)]));
    }

    #[test]
    fn looks_at_a_time_count_what_each_worker_counts_once() {
        const LOOKS: u64 = 100;
        let (pods, counted) = (Pods::new(2), AtomicU64::new(0));
        let read = || {
            let batches = counted.fetch_add(1, Ordering::Relaxed) + 1;
            ((), views(&[("a", batches)]))
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..LOOKS).for_each(|_| drop(pods.look(read))));
            }
        });
        let ((), seen) = pods.look(read);
        let before = COUNTERS.iter().take_while(|metric| metric.name != "pod_batches");
        let batches = before.map(|metric| metric.series.len()).sum::<usize>();
        assert_eq!(seen.sums[0].1[batches], 4 * LOOKS + 1);
    }
}
