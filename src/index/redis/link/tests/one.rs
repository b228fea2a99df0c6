//! One server: order, scripts, limits, being away and coming back.

use std::time::Duration;

use redis::Value;

use super::redis_support::{Server, eventually};
use super::*;
use crate::ErrorKind;
use crate::index::redis::link::{BreakerState, Condition, WarningKind};

#[test]
fn replies_come_in_the_order_of_the_commands_and_an_error_is_that_of_its_command_only() {
    let server = Server::start();
    runtime().block_on(async {
        let link = ready(&server.address(), options()).await;
        let mut batch = Batch::new();
        set(&mut batch, "a", "1");
        let mut wrong = redis::cmd("LPUSH");
        wrong.arg("a").arg("x");
        batch.push(b"a", wrong);
        batch.script(&DOUBLE, &[b"a"], &[b"4"]);
        get(&mut batch, "a");
        assert_eq!(batch.len(), 4);
        let replies = link.send(batch).await.unwrap();
        assert_eq!(replies.len(), 4);
        assert_eq!(*replies[0].as_ref().unwrap(), Value::Okay);
        let Err(Fault::Server(answer)) = &replies[1] else { panic!("{:?}", replies[1]) };
        assert_eq!((answer.code(), answer.condition()), ("WRONGTYPE", Condition::Other));
        assert_eq!(*replies[2].as_ref().unwrap(), Value::Int(9));
        assert_eq!(*replies[3].as_ref().unwrap(), bytes("9"));
        assert!(link.send(Batch::new()).await.unwrap().is_empty());
        let counters = link.counters();
        assert_eq!((counters.calls, counters.server, counters.scripts_reloaded), (2, 1, 0));
        assert_eq!((counters.servers, counters.servers_ready, counters.in_flight), (1, 1, 0));
        assert_eq!(counters.breaker, BreakerState::Closed);
        assert!(counters.last_call > Duration::ZERO && counters.last_ping > Duration::ZERO);
    });
}

#[test]
fn scripts_that_somebody_flushed_are_sent_again() {
    let server = Server::start();
    runtime().block_on(async {
        let link = ready(&server.address(), options()).await;
        let send = async |times: usize| {
            let mut batch = Batch::new();
            for _ in 0..times {
                batch.script(&DOUBLE, &[b"n"], &[b"1"]);
            }
            let replies = link.send(batch).await.unwrap();
            replies.into_iter().map(|reply| reply.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(send(2).await, [Value::Int(2), Value::Int(4)]);
        assert_eq!(link.counters().scripts_reloaded, 0, "the first use needs no second trip");
        assert_eq!(server.ask(&["SCRIPT", "FLUSH"]), "OK");
        assert_eq!(send(3).await, [Value::Int(6), Value::Int(8), Value::Int(10)]);
        assert_eq!(link.counters().scripts_reloaded, 3);
        assert_eq!(send(1).await, [Value::Int(12)]);
        assert_eq!(link.counters().scripts_reloaded, 3, "once sent, the hash is enough again");
    });
}

#[test]
fn a_link_opens_without_the_server_and_connects_when_it_comes() {
    let mut server = Server::prepare(&[]);
    runtime().block_on(async {
        let link = open(&server.address(), options());
        let fault = link.ready(Duration::from_millis(200)).await.unwrap_err();
        assert!(fault.to_string().contains("Connection refused"), "{fault}");
        let fault = try_get(&link, "a").await.unwrap_err();
        assert!(matches!(fault, Fault::Down(_)), "{fault}");
        assert!(fault.to_string().contains(&server.port().to_string()), "{fault}");
        assert!(crate::Error::from(fault).is_retryable());
        assert_ne!(link.counters().breaker, BreakerState::Closed);
        server.restart();
        until_ok("the server came", async || try_set(&link, "a", "1").await).await;
        assert_eq!(try_get(&link, "a").await.unwrap(), bytes("1"));
        let counters = link.counters();
        assert_eq!((counters.connects, counters.reconnects), (1, 0));
        assert!(counters.connect_failures > 0 && counters.down > 0);
    });
}

#[test]
fn a_killed_server_is_used_again_when_it_is_back_and_scripts_with_it() {
    let mut server = Server::start();
    runtime().block_on(async {
        let link = ready(&server.address(), options()).await;
        let double = async || {
            let mut batch = Batch::new();
            batch.script(&DOUBLE, &[b"n"], &[b"1"]);
            link.send(batch).await?.remove(0)
        };
        assert_eq!(double().await.unwrap(), Value::Int(2));
        server.kill();
        eventually("the loss is noticed", || link.counters().breaker != BreakerState::Closed);
        assert!(matches!(double().await, Err(Fault::Down(_))));
        server.restart();
        let value = until_ok("the server is back", double).await;
        assert_eq!(value, Value::Int(2), "nothing was kept");
        let counters = link.counters();
        assert_eq!((counters.reconnects, counters.opened), (1, 1));
        assert_eq!(counters.scripts_reloaded, 0, "a new connection sends the text first");
    });
}

#[test]
fn calls_beyond_the_limit_are_refused_at_once() {
    let server = Server::start();
    runtime().block_on(async {
        let slow = StoreOptions { in_flight: 2, write_deadline: PATIENCE, ..options() };
        let link = ready(&server.address(), slow).await;
        // Holds back every reply until it is over.
        server.ask(&["CLIENT", "PAUSE", "1000", "ALL"]);
        let calls = || async {
            let first = try_set(&link, "a", "1");
            let second = try_set(&link, "b", "1");
            let third = async {
                let fault = try_set(&link, "c", "1").await.unwrap_err();
                assert_eq!(link.counters().in_flight, 2);
                fault
            };
            futures_util::future::join3(first, second, third).await
        };
        let (first, second, refused) = calls().await;
        assert!(matches!(refused, Fault::Busy(2)), "{refused}");
        assert!(refused.to_string().contains("in_flight"), "{refused}");
        first.unwrap();
        second.unwrap();
        let counters = link.counters();
        assert_eq!((counters.in_flight, counters.busy), (0, 1));
        // A caller that goes away gives its place back.
        server.ask(&["CLIENT", "PAUSE", "1000", "ALL"]);
        for _ in 0..5 {
            let given_up =
                tokio::time::timeout(Duration::from_millis(20), try_set(&link, "a", "2"));
            assert!(given_up.await.is_err());
        }
        try_set(&link, "a", "3").await.unwrap();
    });
}

#[test]
fn a_server_that_loads_is_not_used_until_it_is_done() {
    // 4 seconds of loading, during which it looks at its sockets.
    let mut server = Server::with(&[
        "--enable-debug-command",
        "yes",
        "--key-load-delay",
        "20000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    assert_eq!(server.ask(&["DEBUG", "POPULATE", "200", "key", "1000"]), "OK");
    assert_eq!(server.ask(&["SAVE"]), "OK");
    server.kill();
    server.restart();
    runtime().block_on(async {
        let link = open(&server.address(), options());
        let fault = loop {
            match try_get(&link, "a").await.unwrap_err() {
                Fault::Down(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                fault => break fault,
            }
        };
        let Fault::Server(answer) = &fault else { panic!("{fault}") };
        assert_eq!(answer.condition(), Condition::Loading);
        assert!(fault.to_string().contains("still loading"), "{fault}");
        until_ok("it is loaded", async || try_get(&link, "a").await).await;
    });
}

#[test]
fn a_replica_that_is_written_to_and_a_full_memory_say_what_would_be_right() {
    let server = Server::start();
    runtime().block_on(async {
        let link = ready(&server.address(), options()).await;
        try_set(&link, "a", "1").await.unwrap();
        server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
        let fault = try_set(&link, "a", "2").await.unwrap_err();
        let Fault::Server(answer) = &fault else { panic!("{fault}") };
        assert_eq!(answer.condition(), Condition::ReadOnly);
        assert!(fault.to_string().contains("redis+sentinel"), "{fault}");
        assert_eq!(try_get(&link, "a").await.unwrap(), bytes("1"), "reading goes on");
        eventually("it looks whether the address leads elsewhere now", || {
            link.counters().connects > 1
        });
        server.ask(&["REPLICAOF", "NO", "ONE"]);
        until_ok("it is a master again", async || try_set(&link, "a", "2").await).await;

        server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
        let fault = try_set(&link, "a", "3").await.unwrap_err();
        let Fault::Server(answer) = &fault else { panic!("{fault}") };
        assert_eq!(answer.condition(), Condition::OutOfMemory);
        assert!(fault.to_string().contains("maxmemory"), "{fault}");
        assert_eq!(crate::Error::from(fault).kind(), ErrorKind::Unavailable);
    });
}

#[test]
fn an_unknown_command_is_named_without_its_arguments() {
    let server = Server::start();
    runtime().block_on(async {
        let link = ready(&server.address(), options()).await;
        let mut batch = Batch::new();
        let mut cmd = redis::cmd("NOSUCH");
        cmd.arg("hunter2");
        batch.push(b"k", cmd);
        let fault = link.send(batch).await.unwrap().remove(0).unwrap_err();
        let shown = format!("{fault} {fault:?}");
        assert!(shown.contains("NOSUCH") && !shown.contains("hunter2"), "{shown}");
    });
}

#[test]
fn a_script_may_answer_an_error_of_its_own() {
    static REFUSE: Script = Script::new("return redis.error_reply('STALE epoch 7')");
    let server = Server::start();
    runtime().block_on(async {
        let link = ready(&server.address(), options()).await;
        let mut batch = Batch::new();
        batch.script(&REFUSE, &[b"k"], &[]);
        let fault = link.send(batch).await.unwrap().remove(0).unwrap_err();
        let Fault::Server(answer) = fault else { panic!("{fault}") };
        assert_eq!((answer.code(), answer.text()), ("STALE", "epoch 7"));
    });
}

#[test]
fn an_eviction_policy_that_takes_any_key_is_warned_of() {
    let server = Server::with(&["--maxmemory", "100mb"]);
    runtime().block_on(async {
        let link = ready(&server.address(), options()).await;
        assert_eq!(link.check(Batch::new()).await, []);
        for policy in ["allkeys-lru", "volatile-ttl"] {
            server.ask(&["CONFIG", "SET", "maxmemory-policy", policy]);
            let warnings = link.check(Batch::new()).await;
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert_eq!(warnings[0].kind, WarningKind::Eviction);
            let text = warnings[0].to_string();
            assert!(text.contains(policy) && text.contains("noeviction"), "{text}");
            assert!(text.contains("when maxmemory is reached"), "{text}");
        }
        server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
        let text = link.check(Batch::new()).await[0].to_string();
        assert!(text.contains("as soon as maxmemory is set"), "{text}");
    });
}

#[test]
fn a_version_that_is_too_old_is_warned_of() {
    let judge = |version: &str| {
        let mut found = crate::index::redis::link::check::Found::default();
        found.read(&format!("# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n"));
        let mut warnings = Vec::new();
        found.judge("h:1", false, &mut warnings);
        warnings.iter().map(|w| (w.kind, w.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(judge("6.2.14"), []);
    assert_eq!(judge("7.0.15"), []);
    assert_eq!(judge("10.0.0"), []);
    let old = judge("6.0.16");
    assert_eq!(old.len(), 1);
    assert!(old[0].0 == WarningKind::Version && old[0].1.contains("6.0.16"), "{old:?}");
}

#[test]
fn calls_work_outside_of_the_runtime_that_the_link_lives_in() {
    let server = Server::start();
    let runtime = runtime();
    let link = runtime.block_on(async { ready(&server.address(), options()).await });
    let other = std::thread::spawn(move || {
        assert!(tokio::runtime::Handle::try_current().is_err());
        let mut call = std::pin::pin!(try_set(&link, "a", "1"));
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        loop {
            if let std::task::Poll::Ready(result) = call.as_mut().poll(&mut context) {
                return result;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    other.join().unwrap().unwrap();
}
