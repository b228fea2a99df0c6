//! A server that is there and says nothing: bytes are swallowed, connections stay.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::redis_support::{Proxy, Server, eventually};
use super::*;
use crate::index::redis::link::BreakerState;

fn short() -> StoreOptions {
    StoreOptions {
        read_deadline: Duration::from_millis(100),
        write_deadline: Duration::from_millis(100),
        connect_deadline: Duration::from_millis(500),
        retry_max: Duration::from_millis(200),
        // Only calls find out.
        health_interval: Duration::from_secs(600),
        ..StoreOptions::default()
    }
}

#[test]
fn a_black_hole_costs_a_few_deadlines_then_nothing_and_heals_by_itself() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    runtime().block_on(async {
        let alive = || Handle::current().metrics().num_alive_tasks();
        let base = alive();
        let link = ready(&proxy.address(), short()).await;
        until_ok("it works", async || try_set(&link, "a", "1").await).await;
        let in_use = alive();
        assert!(in_use <= base + 2, "{in_use} tasks, {base} before: one of ours, one a connection");

        proxy.swallow();
        let mut late = 0;
        for _ in 0..1000 {
            let start = Instant::now();
            let fault = try_get(&link, "a").await.unwrap_err();
            assert!(start.elapsed() < Duration::from_secs(1), "10 times the deadline");
            match fault {
                Fault::Late(_) => late += 1,
                Fault::Down(_) => {}
                fault => panic!("{fault}"),
            }
        }
        assert_eq!(late, 3, "the breaker opens after late_limit replies");
        let counters = link.counters();
        assert_eq!((counters.late, counters.down, counters.opened), (3, 997, 1));
        assert_eq!((counters.in_flight, counters.servers_ready), (0, 0));
        eventually("it is tried again", || link.counters().connect_failures >= 2);
        assert!(alive() <= in_use, "{} tasks, {in_use} before 1,000 calls", alive());

        proxy.recover();
        let value = until_ok("it heals", async || try_get(&link, "a").await).await;
        assert_eq!(value, bytes("1"));
        assert_eq!(link.counters().breaker, BreakerState::Closed);
        eventually("old connections are gone", || alive() <= in_use);
        drop(link);
        eventually("nothing is left of a link", || alive() <= base);
    });
}

#[test]
fn many_calls_at_once_into_a_black_hole_end_by_their_deadline_and_leave_nothing() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    runtime().block_on(async {
        let link = ready(&proxy.address(), short()).await;
        let alive = Handle::current().metrics().num_alive_tasks();
        proxy.swallow();
        let start = Instant::now();
        let calls = (0..1000).map(|_| try_get(&link, "a"));
        let faults = futures_util::future::join_all(calls).await;
        assert!(start.elapsed() < Duration::from_secs(1), "10 times the deadline");
        let busy = faults.iter().filter(|f| matches!(f, Err(Fault::Busy(256)))).count();
        assert_eq!(busy, 1000 - 256, "those beyond the limit were refused");
        assert!(faults.iter().all(|fault| fault.is_err()));
        assert_eq!(link.counters().in_flight, 0);
        eventually("the connection is given up", || {
            Handle::current().metrics().num_alive_tasks() <= alive
        });
    });
}

#[test]
fn an_idle_connection_that_died_is_found_before_a_call_needs_it() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    runtime().block_on(async {
        let health_interval = Duration::from_millis(100);
        let link = ready(&proxy.address(), StoreOptions { health_interval, ..short() }).await;
        proxy.swallow();
        eventually("a ping finds out", || link.counters().opened == 1);
        assert!(matches!(try_get(&link, "a").await, Err(Fault::Down(_))));
        assert_eq!(link.counters().late, 0);
        proxy.recover();
        until_ok("it heals", async || try_get(&link, "a").await).await;
    });
}

#[test]
fn a_server_that_answers_late_once_is_kept() {
    let server = Server::start();
    runtime().block_on(async {
        let link = ready(&server.address(), short()).await;
        for _ in 0..3 {
            server.ask(&["CLIENT", "PAUSE", "250", "ALL"]);
            let late = try_get(&link, "a").await.unwrap_err();
            assert!(matches!(late, Fault::Late(_)), "{late}");
            assert!(late.to_string().contains("within 100ms"), "{late}");
            // Waits for the end of the pause.
            server.ask(&["PING"]);
            until_ok("it answers again", async || try_get(&link, "a").await).await;
        }
        let counters = link.counters();
        assert_eq!((counters.opened, counters.connects), (0, 1));
    });
}

#[test]
fn a_server_that_breaks_every_connection_is_not_asked_in_a_tight_loop() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    runtime().block_on(async {
        let options = StoreOptions { retry_max: Duration::from_secs(60), ..short() };
        let link = ready(&proxy.address(), options).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
            let _ = try_get(&link, "a").await;
        }
        // 50 ms doubling, at least half of each: 25 + 50 + 100 + 200 + 400 + 800 > 1,000.
        let attempts = proxy.accepted();
        assert!((2..=8).contains(&attempts), "{attempts} connections in a second");
        drop(link);
    });
}
