//! Two hundred engines with steady churn, for as long as one likes: memory stays flat, nobody falls behind
//! for good, and what `/v1/score` takes is printed.
//!
//! ```sh
//! KVSCOUT_SOAK_MINUTES=30 cargo test --release --features daemon --test soak -- --ignored --nocapture
//! ```
//!
//! It needs some 4000 descriptors (`ulimit -n`). The engines run on the same machine: latencies are those of
//! a router beside 200 busy neighbours.
#![cfg(feature = "daemon")]

mod chaos_support;
mod daemon_support;
mod zmq_support;

use std::fs;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use chaos_support::engine::{Engine, Fleet, Make};
use chaos_support::random::Random;
use chaos_support::router::Router;
use chaos_support::schedule::Fault;
use chaos_support::{from_environment, state_directory};

const ENGINES: usize = 200;

const QUESTIONS: usize = 30;

/// Between two looks at memory and at how far workers are.
const SAMPLE: Duration = Duration::from_secs(5);

/// A worker that has not reached by now what was published so long ago is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// What memory may grow by from the second quarter of the time to the last, in percent.
const GROWTH: f64 = 5.0;

/// Shorter runs say nothing of memory: the engines' caches have to be full first.
const FULL_AFTER: u64 = 10;

#[test]
#[ignore = "takes as long as it is told to"]
fn a_long_life_costs_no_memory_and_no_worker() {
    let seed = from_environment("KVSCOUT_SOAK_SEED", 1);
    let minutes = from_environment("KVSCOUT_SOAK_MINUTES", 30);
    let time = Duration::from_secs(60 * minutes);
    let mut random = Random::new(seed);
    let (fleet, engines) = Fleet::start(ENGINES, QUESTIONS, &mut random, make);
    let state = state_directory("soak");
    let mut router = Router::new(&fleet, &engines, &state, "");
    let mut watch = Watch::default();
    let mut trouble = Trouble { random: random.fork(), next: Duration::ZERO };
    let began = Instant::now();
    let mut samples = 0;
    while began.elapsed() < time {
        trouble.strike(&engines, began.elapsed());
        let (_, took) = router.ask();
        watch.latencies.push(took);
        // A few hundred questions a second; the rest of the machine is the engines'.
        thread::sleep(Duration::from_millis(2));
        if began.elapsed() >= SAMPLE * samples {
            samples += 1;
            watch.sample(&router, &fleet, &engines);
            if samples % 12 == 1 && samples > 1 {
                println!("soak: minute {}: {}", samples / 12, watch.minute(&router));
            }
        }
    }
    let agreed = router.agree(&engines, Duration::from_secs(240));
    println!("soak: seed {seed}, {minutes} minutes, {ENGINES} engines: {}", router.totals());
    println!("soak: {}", router.verdict());
    let growth = watch.growth();
    println!(
        "soak: memory {growth:+.1} % from the second quarter's to the last quarter's median, stuck {}, most \
         batches behind {}, /v1/score {}; all agreed in the end: {agreed}",
        watch.stuck.len(),
        watch.most_behind,
        percentiles(&mut watch.all),
    );
    assert!(router.checker.wrong.is_empty(), "{}", router.checker.wrong.join("\n"));
    assert!(watch.stuck.is_empty(), "{}", watch.stuck.join("\n"));
    assert!(minutes < FULL_AFTER || growth < GROWTH, "memory grew by {growth:.1} %");
    assert!(agreed, "{}", router.daemon().get("/workers").body);
    let _ = fs::remove_dir_all(&state);
}

fn make(random: &mut Random) -> Make {
    Make {
        blocks: random.within(500, 1500),
        step: Duration::from_millis(random.within(100, 300) as u64),
        // A few minutes; with vLLM's 10,000 the engines would be what fills the memory.
        buffer_steps: 1000,
    }
}

/// The faults of an ordinary day, a few each second, so that what repairs them runs all the time, too.
struct Trouble {
    random: Random,
    next: Duration,
}

impl Trouble {
    fn strike(&mut self, engines: &[Engine], now: Duration) {
        if now < self.next {
            return;
        }
        let random = &mut self.random;
        self.next = now + Duration::from_millis(random.within(100, 700) as u64);
        let fault = match random.below(50) {
            0 => Fault::Restart(Duration::from_millis(500)),
            1..=4 => Fault::Outage(Duration::from_millis(300)),
            5 => Fault::Clear,
            6..=9 => Fault::Twice(2),
            _ => Fault::Drop(random.within(1, 3)),
        };
        random.pick(engines).strike(fault);
    }
}

/// How far an engine was at some time: its life, and the number of its next batch.
type Reached = Vec<(usize, u64)>;

#[derive(Default)]
struct Watch {
    /// Of the present minute.
    latencies: Vec<Duration>,
    all: Vec<Duration>,
    memory: Vec<u64>,
    reached: Vec<(Instant, Reached)>,
    behind: u64,
    most_behind: u64,
    stuck: Vec<String>,
}

impl Watch {
    fn sample(&mut self, router: &Router, fleet: &Fleet, engines: &[Engine]) {
        self.memory.push(resident(router.daemon().id()));
        let now = Instant::now();
        let reached = |(number, engine): (usize, &Engine)| {
            (fleet.oracle.life(number), engine.facts.next.load(SeqCst))
        };
        let reached: Reached = engines.iter().enumerate().map(reached).collect();
        let seen = router.checker.seen.iter();
        let as_of: Vec<_> = seen.map(|seen| seen.as_ref().and_then(|seen| seen.as_of)).collect();
        let behind = |(as_of, reached): (&Option<u64>, &(usize, u64))| {
            reached.1.saturating_sub(as_of.map_or(0, |as_of| as_of + 1))
        };
        self.behind = as_of.iter().zip(&reached).map(behind).max().unwrap_or(0);
        self.most_behind = self.most_behind.max(self.behind);
        let old = self.reached.iter().rposition(|(at, _)| now - *at >= STUCK);
        if let Some(old) = old {
            self.reached.drain(..old);
            let old = &self.reached[0].1;
            for (number, (was, is)) in old.iter().zip(&reached).enumerate() {
                if was.0 == is.0 && as_of[number].map_or(0, |as_of| as_of + 1) < was.1 {
                    let (as_of, was) = (as_of[number], was.1);
                    let stuck = format!("e{number} is at {as_of:?}, {was} were out a minute ago");
                    self.stuck.push(stuck);
                }
            }
        }
        self.reached.push((now, reached));
    }

    /// What there is to say of the last minute.
    fn minute(&mut self, router: &Router) -> String {
        let count = |trust: &str| {
            let seen = router.checker.seen.iter().flatten();
            seen.filter(|seen| seen.trust == trust).count()
        };
        let daemon = router.daemon();
        let of_index = |what: &str| {
            let bytes = daemon.metric(&format!("kvscout_index_{what}"));
            bytes.unwrap() / f64::from(1 << 20)
        };
        let text = format!(
            "memory {:.1} MiB, of the index {:.1} and {:.1} in use; exact {}, syncing {}, degraded {}, most batches behind {}, stuck {}; \
             /v1/score {}",
            self.memory.last().map_or(0.0, |&kib| kib as f64 / 1024.0),
            of_index("reserved_bytes"),
            of_index("bytes"),
            count("exact"),
            count("syncing"),
            count("degraded"),
            self.behind,
            self.stuck.len(),
            percentiles(&mut self.latencies),
        );
        self.all.append(&mut self.latencies);
        text
    }

    /// By how many percent the memory of the last quarter of the time is above that of the second.
    fn growth(&self) -> f64 {
        let quarter = self.memory.len() / 4;
        let median = |from: usize| {
            let mut of = self.memory[from..from + quarter].to_vec();
            of.sort_unstable();
            of[quarter / 2] as f64
        };
        let (before, after) = (median(quarter), median(self.memory.len() - quarter));
        (after / before - 1.0) * 100.0
    }
}

fn percentiles(latencies: &mut [Duration]) -> String {
    latencies.sort_unstable();
    let at = |share: f64| {
        let at = (latencies.len() as f64 * share) as usize;
        latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    };
    format!("p50 {:.2} ms, p99 {:.2} ms of {}", at(0.5), at(0.99), latencies.len())
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
