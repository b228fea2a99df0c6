//! Twenty engines that fail in every way that is known, a kvscout that is killed now and then, and an
//! oracle: whoever says `exact` is exact, and all are so in the end.
//!
//! `KVSCOUT_CHAOS_SEED` and `KVSCOUT_CHAOS_SECONDS` give another schedule than the usual one, and a
//! longer one. The schedule follows from the seed; how it meets threads and sockets does not.
#![cfg(feature = "daemon")]

mod chaos_support;
mod daemon_support;
mod zmq_support;

use std::fs;
use std::time::{Duration, Instant};

use chaos_support::engine::{Fleet, Make};
use chaos_support::random::Random;
use chaos_support::router::Router;
use chaos_support::schedule::{Act, schedule};
use chaos_support::{from_environment, state_directory};
use zmq_support::eventually;

const ENGINES: usize = 20;

const QUESTIONS: usize = 30;

/// How long kvscout and the engines may take to agree once nothing fails any more. Workers that were
/// given up are rebuilt after 10 s, then ever less often.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn whoever_says_exact_is_exact_whatever_fails() {
    let seed = from_environment("KVSCOUT_CHAOS_SEED", 1);
    let time = Duration::from_secs(from_environment("KVSCOUT_CHAOS_SECONDS", 60));
    let mut random = Random::new(seed);
    let (fleet, engines) = Fleet::start(ENGINES, QUESTIONS, &mut random, make);
    let state = state_directory("chaos");
    // So often that a kill finds a snapshot half written now and then, and that faults meet audits.
    let file = "state.interval = \"1s\"\naudit.every = \"2s\"";
    let mut router = Router::new(&fleet, &engines, &state, file);
    let began = Instant::now();
    let mut kills = 0;
    for (at, act) in schedule(random.next(), ENGINES, time) {
        while began.elapsed() < at {
            router.ask();
        }
        match act {
            Act::Strike { engine, fault } => engines[engine].strike(fault),
            Act::Kill { amnesia } => {
                router.kill();
                kills += 1;
                if amnesia {
                    let _ = fs::remove_dir_all(&state);
                }
                router.start();
            }
        }
    }
    while began.elapsed() < time {
        router.ask();
    }
    let agreed = router.agree(&engines, PATIENCE);
    let healed = (began.elapsed() - time).as_secs_f64();
    let seconds = time.as_secs();
    println!("chaos: seed {seed}, {seconds} s, {ENGINES} engines: {}", router.totals());
    println!(
        "chaos: {}; kvscout killed {kills} times; agreed {agreed}, {healed:.1} s after the last fault",
        router.verdict(),
    );
    let wrong = &router.checker.wrong;
    assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
    let daemon = router.daemon();
    assert!(agreed, "seed {seed}: {}\n{}", daemon.get("/workers").body, daemon.stderr());
    let workers = || (0..ENGINES).map(|number| daemon.worker(&format!("e{number}"), 0));
    let audits = || workers().map(|worker| worker["audits"]["ok"].as_u64().unwrap()).sum::<u64>();
    eventually("workers are audited", || audits() > 0);
    for worker in workers() {
        assert_eq!(worker["contract"]["status"], "verified", "{worker}");
        // What they lost, they lost with its number.
        assert_eq!(worker["audits"]["differed"], 0, "{worker}");
    }
    println!("chaos: {} audits since the last start of kvscout, all of them equal", audits());
    // The first one that is killed began with nothing.
    assert!(kills < 2 || router.restored > 0, "seed {seed}: no snapshot was ever used");
    let _ = fs::remove_dir_all(&state);
}

/// Engines with pools of different sizes, small enough that they evict all the time.
fn make(random: &mut Random) -> Make {
    Make {
        blocks: random.within(120, 300),
        step: Duration::from_millis(random.within(25, 60) as u64),
        buffer_steps: 10_000,
    }
}
