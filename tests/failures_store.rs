//! Failures of the shared store, R1 to R9 of `docs/failures.md`, with real servers.
#![cfg(all(feature = "redis", feature = "conformance"))]

mod redis_support;
mod store_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use kvscout::block::{Digest, Group, Name, SpaceId, Tier};
use kvscout::index::redis::{
    BreakerState, Once, RedisIndex, RedisOptions, StoreOptions, Turn, WarningKind,
};
use kvscout::index::{Block, Change, Index as _, Matches, Parent, Query};
use kvscout::{ErrorKind, conformance};
use redis_support::{ClusterServers, Proxy, SentinelServers, Server, eventually};
use store_support::*;

fn settled(host: &Server, index: &RedisIndex) {
    eventually("the worker has a home", || host.block_on(index.assign(A, HOME)).is_ok());
}

fn runs(server: &Server) -> Vec<String> {
    let keys = server.ask(&["KEYS", "*:r:*"]);
    keys.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn r1_an_index_that_starts_without_its_store_says_so_and_connects_by_itself() {
    let mut server = Server::prepare(&[]);
    let index = Arc::new(open(&server, &server.address(), in_time(), options()));
    let refused = [
        try_held(&server, &index, 10).unwrap_err(),
        server.block_on(index.assign(A, HOME)).unwrap_err(),
    ];
    assert!(refused.iter().all(|e| e.kind() == ErrorKind::Unavailable), "{refused:?}");
    let looks = Looks::begin(&server, &index);
    assert_eq!(server.block_on(index.check()), []);
    assert_eq!(index.counters().servers_ready, 0);

    server.restart();
    settled(&server, &index);
    store(&server, &index, A, 0..100);
    assert_eq!(held(&server, &index, 100), [(1, 100)]);
    assert_eq!(index.counters().breaker, BreakerState::Closed);
    assert!(looks.end(&server).iter().all(|&failed| failed > 0));
}

#[test]
fn r2_a_store_that_is_killed_amid_lookups_costs_no_deadline_and_comes_back_empty_or_whole() {
    let persistent: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];
    for arguments in [&[], persistent] {
        let mut server = Server::with(arguments);
        let index = Arc::new(open(&server, &server.address(), in_time(), options()));
        settled(&server, &index);
        store(&server, &index, A, 0..100);
        assert_eq!(held(&server, &index, 100), [(1, 100)]);
        let looks = Looks::begin(&server, &index);
        server.kill();
        eventually("it is noticed", || index.counters().breaker != BreakerState::Closed);
        eventually("calls fail at once", || index.counters().down > 100);
        server.restart();
        eventually("it is back", || index.counters().breaker == BreakerState::Closed);
        let answers = || try_held(&server, &index, 100);
        eventually("it answers", || answers().is_ok());
        assert!(looks.end(&server).iter().all(|failed| *failed > 0));
        assert_eq!(index.counters().in_flight, 0);
        if arguments.is_empty() {
            assert_eq!(answers().unwrap(), []);
            let (more, above) = (blocks(100..110), parent(&(100..110)));
            let refused = server.block_on(index.apply(A, &[stored(&more, above)])).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::UnknownWorker, "{refused}");
            assign(&server, &index, A);
            store(&server, &index, A, 0..100);
        }
        assert_eq!(answers().unwrap(), [(1, 100)]);
        store(&server, &index, A, 100..110);
        assert_eq!(held(&server, &index, 110), [(1, 110)]);
    }
}

/// Sends a batch until it is applied.
async fn insist(index: &RedisIndex, seq: u64, changes: &[Change<'_>]) -> Once {
    loop {
        match index.apply_once(A, Turn { life: 1, seq }, changes).await {
            // Another owner has the lease, which is short.
            Ok(Once::Elsewhere(_)) => {}
            Ok(done) => return done,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn r2_batches_that_a_kill_cut_off_count_once_when_they_are_sent_again() {
    const BATCHES: u64 = 120;
    let mut server = Server::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let index = Arc::new(open(&server, &server.address(), patient(), options()));
    settled(&server, &index);
    let done = Arc::new(AtomicU32::new(0));
    let writer = {
        let (index, done) = (Arc::clone(&index), Arc::clone(&done));
        let _entered = server.enter();
        tokio::spawn(async move {
            for seq in 0..BATCHES {
                let range = seq * 100..(seq + 1) * 100;
                let blocks = blocks(range.clone());
                insist(&index, seq, &[stored(&blocks, parent(&range))]).await;
                done.fetch_add(1, SeqCst);
            }
        })
    };
    for kill in 1..=4 {
        eventually("some more batches", || done.load(SeqCst) >= kill * 20);
        server.kill();
        server.restart();
    }
    server.block_on(writer).unwrap();
    let all = BATCHES * 100;
    assert_eq!(held(&server, &index, all), [(1, all as u32)]);
    // One copy each, and every name is known.
    let removed = remove(&server, &index, A, 0..all);
    assert_eq!((removed.removed, removed.unknown_removals), (all, 0));
    assert_eq!(runs(&server), [""; 0]);
}

#[test]
fn r2_a_black_hole_costs_a_few_deadlines_and_heals_by_itself() {
    let server = Server::start();
    let other = client(&server, options());
    assign(&server, &other, A);
    store(&server, &other, A, 0..100);
    let proxy = Proxy::to(server.port());
    let short = StoreOptions {
        read_deadline: Duration::from_millis(200),
        health_interval: Duration::from_secs(600),
        ..patient()
    };
    let index = open(&server, &proxy.address(), short, options());
    let whole = || try_held(&server, &index, 100).is_ok_and(|held| held == [(1, 100)]);
    eventually("it is read", whole);

    proxy.swallow();
    let before = index.counters();
    for _ in 0..300 {
        let started = Instant::now();
        let error = try_held(&server, &index, 100).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(started.elapsed() < Duration::from_secs(2), "10 times the deadline");
    }
    let after = index.counters();
    assert!(after.late - before.late <= 3, "the breaker opens after late_limit replies");
    assert_eq!(after.opened - before.opened, 1);
    assert_eq!(after.in_flight, 0);

    proxy.recover();
    eventually("it heals", whole);
    assert_eq!(index.counters().breaker, BreakerState::Closed);
}

#[test]
fn r3_writes_that_a_failover_lost_are_made_up_for_when_the_worker_is_built_anew() {
    let mut servers = SentinelServers::start();
    let host = Server::prepare(&[]);
    let index = open(&host, &servers.address(), patient(), options());
    settled(&host, &index);
    store(&host, &index, A, 0..100);
    let looks = looks(&host, &servers.address());
    let offset = |server: &Server| -> u64 {
        let info = server.ask(&["INFO", "replication"]);
        let line = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
        line.unwrap().trim().parse().unwrap()
    };
    let written = offset(&servers.master);
    eventually("the replica has it", || offset(&servers.replica) >= written);

    // What follows never reaches the replica.
    servers.replica.signal("STOP");
    servers.master.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
    store(&host, &index, A, 100..150);
    remove(&host, &index, A, 140..150);
    assert_eq!(held(&host, &index, 150), [(1, 140)]);
    servers.master.kill();
    servers.replica.signal("CONT");
    eventually("the replica is the master", || {
        servers.replica.try_ask(&["ROLE"]).is_ok_and(|role| role.starts_with("master"))
    });
    eventually("it is found", || try_held(&host, &index, 150).is_ok());
    assert!(looks.end(&host).iter().all(|failed| *failed > 0), "there was no master for a while");
    assert_eq!(held(&host, &index, 150), [(1, 100)]);

    // What is stored behind lost blocks scores nothing.
    let (more, above) = (blocks(150..160), parent(&(150..160)));
    host.block_on(index.apply(A, &[stored(&more, above)])).unwrap();
    assert_eq!(held(&host, &index, 160), [(1, 100)]);

    // A repair says all that the worker holds; nothing of before counts beside it.
    host.block_on(index.apply(A, &[Change::Clear { tier: None }])).unwrap();
    assert_eq!(held(&host, &index, 160), []);
    store(&host, &index, A, 0..140);
    let fresh = open(&host, &servers.address(), patient(), options());
    eventually("another client is connected", || try_held(&host, &fresh, 160).is_ok());
    for index in [&index, &fresh] {
        assert_eq!(held(&host, index, 160), [(1, 140)]);
    }
    let removed = remove(&host, &index, A, 0..140);
    assert_eq!((removed.removed, removed.unknown_removals), (140, 0));
    assert_eq!(runs(&servers.replica), [""; 0]);
}

#[test]
fn r4_a_chain_with_a_hole_scores_to_the_hole_until_it_is_stored_again() {
    let server = Server::start();
    let index = client(&server, options());
    assign(&server, &index, A);
    let mut segments: Vec<String> = Vec::new();
    for n in 0..10 {
        store(&server, &index, A, n * 64..(n + 1) * 64);
        segments.extend(runs(&server).into_iter().find(|run| !segments.contains(run)));
    }
    assert_eq!(segments.len(), 10);
    let evict = |key: &str| assert_eq!(server.ask(&["DEL", key]), "1");
    evict(&segments[6]);
    assert_eq!(held(&server, &index, 640), [(1, 6 * 64)]);
    evict(&segments[3]);
    assert_eq!(held(&server, &index, 640), [(1, 3 * 64)]);
    // More behind the hole does not close it, and blocks of the hole are not there to be removed.
    store(&server, &index, A, 640..650);
    remove(&server, &index, A, 400..410);
    assert_eq!(held(&server, &index, 650), [(1, 3 * 64)]);
    // Another worker stores the path, then the first one again.
    assign(&server, &index, B);
    store(&server, &index, B, 0..640);
    assert_eq!(held(&server, &index, 650), [(1, 3 * 64), (2, 640)]);
    store(&server, &index, A, 0..640);
    assert_eq!(held(&server, &index, 650), [(1, 650), (2, 640)]);

    // Names and lists of what is held are no part of an answer.
    for key in server.ask(&["KEYS", "*"]).split_whitespace() {
        if ["n", "v", "h"].contains(&key.split(':').nth(3).unwrap()) {
            evict(key);
        }
    }
    assert_eq!(held(&server, &index, 650), [(1, 650), (2, 640)]);
    // Without its name a block is not found to be removed; a clear does not need names.
    let fresh = client(&server, options());
    assign(&server, &fresh, A);
    assert_eq!(remove(&server, &fresh, A, 600..650).unknown_removals, 50);
    server.block_on(fresh.apply(A, &[Change::Clear { tier: None }])).unwrap();
    store(&server, &fresh, A, 0..100);
    assert_eq!(held(&server, &index, 650), [(1, 100), (2, 640)]);
}

#[test]
fn r4_eviction_under_pressure_is_warned_of_survived_and_made_up_for() {
    let server =
        Server::with(&["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru", "--save", ""]);
    let index = client(&server, options());
    let looks = looks(&server, &server.socket_address());
    let warnings = server.block_on(index.check());
    assert!(warnings.iter().any(|w| w.kind == WarningKind::Eviction), "{warnings:?}");
    assert!(warnings.iter().all(|w| w.text.contains("noeviction")), "{warnings:?}");
    let path = |chain: u64| -> Vec<Block> {
        let name = |n| Name((chain << 32 | n) + 1);
        let block = |n| Block { name: name(n), digest: Some(Digest(chain << 32 | n)) };
        (0..300).map(block).collect()
    };
    let leading = |index: &RedisIndex, chain| -> Result<u32, kvscout::Error> {
        let query = Query { space: SpaceId(1), shape: SHAPE, candidates: None, spans: false };
        let mut matches = Matches::default();
        server.block_on(index.lookup(&query, &mut Prompt(path(chain)), &mut matches))?;
        Ok(matches.sorted().0.first().map_or(0, |m| m.leading[3]))
    };
    let evicted = || -> u64 {
        let info = server.ask(&["INFO", "stats"]);
        let line = info.lines().find_map(|line| line.strip_prefix("evicted_keys:"));
        line.unwrap().trim().parse().unwrap()
    };
    let fits = |error: &kvscout::Error| {
        let kinds = [ErrorKind::Unavailable, ErrorKind::UnknownWorker];
        assert!(kinds.contains(&error.kind()), "{error}");
    };
    let mut cut = 0;
    for chain in 0..400 {
        if let Err(error) = server.block_on(index.assign(A, HOME)) {
            fits(&error);
        }
        let blocks = path(chain);
        if let Err(error) = server.block_on(index.apply(A, &[stored(&blocks, Parent::Root)])) {
            fits(&error);
        }
        match leading(&index, chain / 2) {
            Ok(n) => cut += u32::from(n < 300),
            Err(error) => fits(&error),
        }
        let names: Vec<Name> = blocks[200..].iter().map(|block| block.name).collect();
        let gone = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &names };
        if chain % 3 == 0
            && let Err(error) = server.block_on(index.apply(A, &[gone]))
        {
            fits(&error);
        }
    }
    assert!(evicted() > 100 && cut > 10, "{} keys went, {cut} chains were cut", evicted());
    looks.end(&server);

    server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    server.block_on(index.assign(A, HOME)).unwrap();
    for chain in 0..20 {
        let blocks = path(chain);
        server.block_on(index.apply(A, &[stored(&blocks, Parent::Root)])).unwrap();
        assert_eq!(leading(&index, chain).unwrap(), 300, "{chain}");
    }
}

#[test]
fn r5_the_contract_holds_on_a_cluster_and_no_command_crosses_its_slots() {
    // Long enough for a busy machine not to take a master for lost.
    let servers = ClusterServers::with(3, &["--cluster-node-timeout", "15000"]);
    let host = &servers.nodes[0];
    let _entered = host.enter();
    let namespaces = AtomicU32::new(0);
    conformance::check(|| {
        let namespace = format!("n{}", namespaces.fetch_add(1, SeqCst));
        let options = RedisOptions { namespace, ..RedisOptions::default() };
        let index = open(host, &servers.address(), patient(), options);
        eventually("the cluster is found", || index.counters().servers_ready == 3);
        index
    });
    for node in &servers.nodes {
        assert!(node.ask(&["DBSIZE"]).parse::<u32>().unwrap() > 100, "every master has a part");
    }
}

/// Where the only key of a pattern is.
fn node_of(servers: &ClusterServers, pattern: &str) -> usize {
    let has = |node: &Server| !node.ask(&["KEYS", pattern]).is_empty();
    servers.nodes.iter().position(has).unwrap()
}

#[test]
fn r5_without_one_master_the_others_parts_of_prompts_are_answered() {
    let mut servers = ClusterServers::start(3);
    let host = Server::prepare(&[]);
    let index = open(&host, &servers.address(), patient(), options());
    settled(&host, &index);
    let looks = looks(&host, &servers.address());
    let path = |chain: u64| -> Vec<Block> {
        let block = |n| chain << 32 | n;
        let of = |n| Block { name: Name(n + 1), digest: Some(Digest(n)) };
        (0..64).map(block).map(of).collect()
    };
    let leading = |chain: u64| -> Result<u32, kvscout::Error> {
        let query = Query { space: SpaceId(1), shape: SHAPE, candidates: None, spans: false };
        let mut matches = Matches::default();
        host.block_on(index.lookup(&query, &mut Prompt(path(chain)), &mut matches))?;
        Ok(matches.sorted().0.first().map_or(0, |m| m.leading[3]))
    };
    let counts = || -> Vec<usize> { servers.nodes.iter().map(|node| runs(node).len()).collect() };
    let (mut at, mut before) = (Vec::new(), counts());
    for chain in 0..60 {
        host.block_on(index.apply(A, &[stored(&path(chain), Parent::Root)])).unwrap();
        let now = counts();
        at.push((0..3).find(|&n| now[n] > before[n]).unwrap());
        before = now;
    }
    assert!((0..3).all(|n| at.iter().filter(|&&node| node == n).count() > 5), "{at:?}");

    // Not the one with the space's record: without that nothing can be said of who holds what.
    let (record, table) = (node_of(&servers, "*:s:*"), node_of(&servers, "*:t:*"));
    assert_eq!(record, table);
    let lost = (record + 1) % 3;
    servers.nodes[lost].kill();
    let check = |chain: u64| {
        let full = if at[chain as usize] == lost { 0 } else { 64 };
        // A call that is under way when the connection breaks may fail.
        let mut found = leading(chain);
        for _ in 0..100 {
            found = found.or_else(|_| leading(chain));
        }
        assert_eq!(found.unwrap(), full, "chain {chain} at {}, lost is {lost}", at[chain as usize]);
    };
    (0..60).for_each(check);
    // After the others have agreed that it is gone, too.
    let agreed = |node: &Server| node.ask(&["CLUSTER", "NODES"]).contains("fail ");
    eventually("the others know", || agreed(&servers.nodes[record]));
    (0..60).for_each(check);
    assert!(index.counters().servers_ready < 3, "that a part is missing can be seen");
    // Changes that touch it fail and say so.
    let again = |chain| host.block_on(index.apply(A, &[stored(&path(chain), Parent::Root)]));
    let refused = (0..60).filter(|&chain| at[chain as usize] == lost).map(again);
    assert!(refused.map(Result::unwrap_err).all(|e| e.kind() == ErrorKind::Unavailable));

    servers.nodes[lost].restart();
    eventually("it is back", || (0..60).all(|chain| again(chain).is_ok()));
    assert!((0..60).all(|chain| leading(chain).unwrap() == 64), "stored again, it is whole");
    servers.nodes[record].kill();
    let error = loop {
        match leading(0) {
            Ok(n) => assert_eq!(n, 64),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    looks.end(&host);
}

#[test]
fn r6_a_store_and_the_last_removal_at_once_leave_names_and_blocks_in_step() {
    let server = Server::start();
    // The first block's name is 0, which stands in the list of further names.
    let (one, two) = (client(&server, options()), client(&server, options()));
    assign(&server, &one, A);
    assign(&server, &two, B);
    let looks = looks(&server, &server.socket_address());
    for round in 0..150_u64 {
        let n = 1 + round % 130;
        store(&server, &two, B, 0..n);
        server.block_on(async {
            let (path, names) = (blocks(0..n), blocks(0..n));
            let names: Vec<Name> = names.iter().map(|block| block.name).collect();
            let store = [stored(&path, Parent::Root)];
            let take = [Change::Remove { group: Group(0), tier: Tier::Gpu, names: &names }];
            let (stored, taken) = tokio::join!(one.apply(A, &store), two.apply(B, &take));
            assert_eq!(stored.unwrap().stored, n, "round {round}");
            assert_eq!(taken.unwrap().removed, n, "round {round}");
        });
        for index in [&one, &two] {
            assert_eq!(held(&server, index, n), [(1, n as u32)], "round {round}");
        }
        // By a client that has to ask what the names mean.
        let fresh = client(&server, options());
        assign(&server, &fresh, A);
        let removed = remove(&server, &fresh, A, 0..n);
        assert_eq!((removed.removed, removed.unknown_removals), (n, 0), "round {round}");
        for kind in ["r", "n", "v"] {
            let left = server.ask(&["KEYS", &format!("*:{kind}:*")]);
            assert_eq!(left, "", "round {round}");
        }
    }
    all_answered(&server, looks);
}

/// Nothing that happened was a reason to fail.
fn all_answered(host: &Server, looks: Looks) {
    assert!(looks.end(host).iter().all(|&failed| failed == 0));
}

#[test]
fn r7_two_writers_of_one_stream_count_it_once_and_a_restart_of_one_takes_nothing_away() {
    let server = Server::start();
    let writer = |owner: &str| {
        let owner = Some(owner.to_owned());
        let lease = Duration::from_millis(2);
        client(&server, RedisOptions { owner, lease, ..options() })
    };
    let (one, mut two) = (writer("one"), writer("two"));
    assign(&server, &one, A);
    assign(&server, &two, A);
    assign(&server, &two, B);
    let looks = looks(&server, &server.socket_address());
    store(&server, &two, B, 0..30);
    let all: Vec<Block> = blocks(0..4000);
    // Each batch stores 100 blocks and the last 50 of the batch before once more, of which it takes
    // one copy first.
    let batch = |index: &RedisIndex, seq: u64| {
        let (from, to) = (seq * 100, (seq + 1) * 100);
        let again = if seq == 0 { 0 } else { from - 50 };
        let names: Vec<Name> =
            all[again as usize..from as usize].iter().map(|block| block.name).collect();
        let take = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &names };
        let put = stored(&all[again as usize..to as usize], parent(&(again..to)));
        server.block_on(insist(index, seq, &[take, put]))
    };
    let mut applied = 0;
    for seq in 0..30 {
        if seq == 10 {
            // Comes back with nothing remembered, and begins where its engine's buffer does.
            drop(two);
            two = writer("two");
            assign(&server, &two, A);
            assign(&server, &two, B);
            assert_eq!(held(&server, &one, 4000), [(1, 1000), (2, 30)]);
            for old in 0..10 {
                let once = batch(&two, old);
                assert!(!matches!(once, Once::Applied(_)), "{old}: {once:?}");
            }
        }
        let (first, second) = if seq % 3 == 0 { (&two, &one) } else { (&one, &two) };
        for index in [first, second] {
            let once = batch(index, seq);
            applied += u32::from(matches!(once, Once::Applied(_)));
            // Or the other one never has its turn.
            std::thread::sleep(Duration::from_millis(3));
        }
    }
    assert_eq!(applied, 30);
    for index in [&one, &two] {
        assert_eq!(held(&server, index, 4000), [(1, 3000), (2, 30)]);
    }
    let removed = remove(&server, &one, A, 0..3000);
    assert_eq!((removed.removed, removed.unknown_removals), (3000, 0), "one copy of each");
    assert_eq!(held(&server, &two, 4000), [(2, 30)]);
    all_answered(&server, looks);
}

#[test]
fn r8_nothing_walks_through_the_database_or_touches_keys_of_others() {
    let server = Server::start();
    for n in 0..100 {
        server.ask(&["SET", &format!("app:{n}"), "theirs"]);
    }
    let index = client(&server, options());
    assign(&server, &index, A);
    store(&server, &index, A, 0..300);
    let orphans = blocks(1010..1020);
    server.block_on(index.apply(A, &[stored(&orphans, parent(&(1010..1020)))])).unwrap();
    assert_eq!(held(&server, &index, 300), [(1, 300)]);
    server.block_on(index.refresh(A)).unwrap();
    server.block_on(index.check());
    remove(&server, &index, A, 250..300);
    server.block_on(index.apply(A, &[Change::Clear { tier: None }])).unwrap();
    server.block_on(index.remove(A)).unwrap();
    server.block_on(index.stats()).unwrap();
    let stats = server.ask(&["INFO", "commandstats"]);
    for command in ["scan", "keys", "flushall", "flushdb", "randomkey", "sort", "dbsize"] {
        assert!(!stats.contains(&format!("cmdstat_{command}:")), "{stats}");
    }
    assert!((0..100).all(|n| server.ask(&["GET", &format!("app:{n}")]) == "theirs"));
}

#[test]
fn r9_replicas_of_one_store_answer_alike_although_one_lost_a_batch() {
    let server = Server::start();
    let writer = |owner: &str| {
        let owner = Some(owner.to_owned());
        let lease = Duration::from_millis(2);
        client(&server, RedisOptions { owner, lease, ..options() })
    };
    let (one, two) = (writer("one"), writer("two"));
    assign(&server, &one, A);
    assign(&server, &two, A);
    let looks = looks(&server, &server.socket_address());
    for seq in 0..10 {
        let range = seq * 100..(seq + 1) * 100;
        let path = blocks(range.clone());
        let batch = [stored(&path, parent(&range))];
        for (index, lost) in [(&one, 3), (&two, 7)] {
            if seq != lost {
                server.block_on(insist(index, seq, &batch));
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        let so_far = [(1, 100 * (seq as u32 + 1))];
        assert_eq!([held(&server, &one, 1000), held(&server, &two, 1000)], [so_far, so_far]);
    }
    all_answered(&server, looks);
}
