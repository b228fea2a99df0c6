//! Several clients on one store.
#![cfg(feature = "redis")]

mod redis_support;
mod store_support;

use kvscout::ErrorKind;
use kvscout::block::{Group, Name, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::index::redis::{Once, RedisIndex, RedisOptions, Turn};
use kvscout::index::{Applied, Change, Home, Index as _, Matches, Parent, Query};
use redis_support::{Server, eventually};
use store_support::*;

#[test]
fn each_client_sees_what_the_others_applied() {
    let server = Server::start();
    let (one, two) = (client(&server, options()), client(&server, options()));
    let stranger = connected(&server, options());
    stranger.name_space(SpaceId(1), "tenant/model");
    assign(&server, &one, A);
    assign(&server, &two, B);
    store(&server, &one, A, 0..200);
    store(&server, &two, B, 0..100);
    store(&server, &two, B, 100..150);
    for index in [&one, &two] {
        assert_eq!(held(&server, index, 300), [(1, 200), (2, 150)]);
    }
    // Who never registered a worker learns what it is called.
    let found = held(&server, &stranger, 300);
    let names: Vec<_> =
        found.iter().map(|&(w, n)| (stranger.worker_name(WorkerId(w)).unwrap(), n)).collect();
    let mut names: Vec<(&str, u32)> = names.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    names.sort();
    assert_eq!(names, [("tenant/pod-a/0", 200), ("tenant/pod-b/0", 150)]);

    assert_eq!(remove(&server, &one, A, 190..200).removed, 10);
    assert_eq!(held(&server, &two, 300), [(1, 190), (2, 150)]);
    server.block_on(two.remove(B)).unwrap();
    assert_eq!(held(&server, &one, 300), [(1, 190)]);
}

#[test]
fn a_worker_that_was_met_before_it_was_named_here_has_its_name_from_then_on() {
    let server = Server::start();
    let one = client(&server, options());
    assign(&server, &one, A);
    store(&server, &one, A, 0..10);
    let late = connected(&server, options());
    late.name_space(SpaceId(1), "tenant/model");
    assert_ne!(held(&server, &late, 10), [(5, 10)]);
    for id in [5, 6] {
        late.name_worker(WorkerId(id), "tenant/pod-a/0");
        assert_eq!(held(&server, &late, 10), [(id, 10)]);
    }
}

#[test]
fn a_parent_that_one_client_stores_places_what_another_could_not() {
    let server = Server::start();
    let (one, two) = (client(&server, options()), client(&server, options()));
    assign(&server, &one, A);
    assign(&server, &two, B);
    let orphans = blocks(10..20);
    let applied = server.block_on(one.apply(A, &[stored(&orphans, parent(&(10..20)))])).unwrap();
    assert_eq!((applied.stored, applied.unplaced), (10, 10));
    store(&server, &two, B, 0..10);
    assert_eq!(held(&server, &one, 20), [(2, 10)]);
    store(&server, &one, A, 0..10);
    assert_eq!(held(&server, &two, 20), [(1, 20), (2, 10)]);
    // A client's sizes are in the store once it has asked for them.
    server.block_on(two.stats()).unwrap();
    let stats = server.block_on(one.stats()).unwrap();
    assert_eq!((stats.unplaced, stats.blocks, stats.entries), (0, 20, 30));
}

#[test]
fn chains_that_part_in_mid_segment_are_told_apart_and_found() {
    let server = Server::start();
    let index = client(&server, options());
    assign(&server, &index, A);
    assign(&server, &index, B);
    store(&server, &index, A, 0..100);
    // B leaves the path at 20, A's chain at 30 is B's, too, with other contents before.
    let mut other = blocks(0..20);
    other.extend(blocks(1020..1100));
    server.block_on(index.apply(B, &[stored(&other, Parent::Root)])).unwrap();
    assert_eq!(held(&server, &index, 100), [(1, 100), (2, 20)]);
    let query = Query { space: SpaceId(1), shape: SHAPE, candidates: None, spans: false };
    let mut matches = Matches::default();
    server.block_on(index.lookup(&query, &mut Prompt(other), &mut matches)).unwrap();
    let found: Vec<_> = matches.sorted().0.iter().map(|m| (m.worker.0, m.leading[0])).collect();
    assert_eq!(found, [(1, 20), (2, 100)]);
}

#[test]
fn what_is_removed_or_forgotten_leaves_no_key_behind() {
    let server = Server::start();
    let index = client(&server, options());
    assign(&server, &index, A);
    assign(&server, &index, B);
    store(&server, &index, A, 0..300);
    store(&server, &index, B, 0..200);
    let other = [blocks(0..20), blocks(1020..1200)].concat();
    server.block_on(index.apply(B, &[stored(&other, Parent::Root)])).unwrap();
    remove(&server, &index, B, 1100..1200);
    server.block_on(index.remove(A)).unwrap();
    assert_eq!(held(&server, &index, 300), [(2, 200)]);
    let applied = server.block_on(index.apply(B, &[Change::Clear { tier: None }])).unwrap();
    assert_eq!(applied, Applied::default());
    assert_eq!(server.block_on(index.stats()).unwrap(), Default::default());
    let left: Vec<String> = keys(&server, "*")
        .into_iter()
        .map(|key| key.trim_start_matches("kvscout:1:default:").chars().take(1).collect())
        .collect();
    assert_eq!(left, ["i", "m", "s", "t"]);
}

#[test]
fn names_that_outlived_their_blocks_go_with_the_last_worker_of_their_vocabulary() {
    let server = Server::start();
    let mut raw = server.raw();
    let index = client(&server, options());
    assign(&server, &index, A);
    assign(&server, &index, B);
    store(&server, &index, A, 0..10);
    let names = keys(&server, "*:v:*");
    assert_eq!(names.len(), 1, "{names:?}");
    let kept: Vec<u8> = redis::cmd("DUMP").arg(&names[0]).query(&mut raw).unwrap();
    server.block_on(index.apply(A, &[Change::Clear { tier: None }])).unwrap();
    server.block_on(index.stats()).unwrap();
    let _: () = redis::cmd("RESTORE").arg(&names[0]).arg(0).arg(kept).query(&mut raw).unwrap();
    let other = Home { vocabulary: VocabularyId(2), ..HOME };
    server.block_on(index.assign(A, other)).unwrap();
    assert_eq!(keys(&server, "*:v:*"), names, "B has that vocabulary");
    server.block_on(index.assign(B, other)).unwrap();
    assert_eq!(keys(&server, "*:v:*"), [""; 0]);
}

#[test]
fn a_batch_is_applied_once_whoever_applies_it_and_whoever_died_over_it() {
    let server = Server::start();
    let with = |owner: &str| {
        let lease = std::time::Duration::from_millis(1);
        RedisOptions { owner: Some(owner.to_owned()), lease, ..options() }
    };
    let (one, two) = (client(&server, with("one")), client(&server, with("two")));
    assign(&server, &one, A);
    assign(&server, &two, A);
    let (first, second) = (blocks(0..100), blocks(100..200));
    let removed: Vec<Name> = first[90..].iter().map(|block| block.name).collect();
    let remove = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &removed };
    let whole = [stored(&first, Parent::Root), stored(&second, parent(&(100..200))), remove];
    let again = |index: &RedisIndex, seq, changes: &[Change<'_>]| loop {
        let turn = Turn { life: 1, seq };
        match server.block_on(index.apply_once(A, turn, changes)).unwrap() {
            Once::Elsewhere(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
            other => return other,
        }
    };
    assert!(matches!(again(&one, 6, &[]), Once::Applied(_)));
    // One dies over batch 7: only the first of its changes has arrived, and not that it is done.
    assert!(matches!(again(&one, 7, &whole[..1]), Once::Applied(_)));
    let record = keys(&server, "*:w:*").remove(0);
    let _: () = redis::cmd("HSET").arg(&record).arg("seq").arg(6).query(&mut server.raw()).unwrap();
    assert!(matches!(again(&two, 7, &whole), Once::Applied(_)));
    assert_eq!(again(&one, 7, &whole), Once::Repeated);
    assert_eq!(held(&server, &two, 200), [(1, 90)]);
    // One copy of each, so one removal of each leaves nothing.
    let rest: Vec<Name> = first[..90].iter().chain(&second).map(|block| block.name).collect();
    let rest = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &rest };
    let Once::Applied(applied) = again(&two, 8, &[rest]) else { panic!("batch 8 is new") };
    assert_eq!((applied.removed, applied.unknown_removals), (190, 0));
    assert_eq!(keys(&server, "*:r:*"), [""; 0]);
}

#[test]
fn one_owner_applies_while_it_has_the_lease_and_a_later_life_takes_the_place_of_an_earlier() {
    let server = Server::start();
    let with = |owner: &str| RedisOptions { owner: Some(owner.to_owned()), ..options() };
    let (one, two) = (client(&server, with("one")), client(&server, with("two")));
    assign(&server, &one, A);
    assign(&server, &two, A);
    let (old, new) = (blocks(0..100), blocks(0..10));
    let (old, new) = ([stored(&old, Parent::Root)], [stored(&new, Parent::Root)]);
    let once = |index: &RedisIndex, life, seq, changes: &[Change<'_>]| {
        server.block_on(index.apply_once(A, Turn { life, seq }, changes)).unwrap()
    };
    assert!(matches!(once(&one, 1, 0, &old), Once::Applied(_)));
    assert_eq!(once(&two, 1, 1, &old), Once::Elsewhere("one".to_owned()));
    assert_eq!(held(&server, &two, 100), [(1, 100)]);
    assert!(matches!(once(&one, 2, 0, &new), Once::Applied(_)));
    assert_eq!(held(&server, &two, 100), [(1, 10)]);
    assert_eq!(once(&one, 1, 5, &old), Once::Outlived);
    assert_eq!(held(&server, &two, 100), [(1, 10)]);
}

#[test]
fn what_another_client_cleared_is_begun_anew_by_one_that_did_not_know() {
    let server = Server::start();
    let (one, two) = (client(&server, options()), client(&server, options()));
    assign(&server, &one, A);
    assign(&server, &two, A);
    store(&server, &one, A, 0..100);
    store(&server, &two, A, 100..200);
    server.block_on(two.apply(A, &[Change::Clear { tier: None }])).unwrap();
    let again = blocks(0..100);
    let change = [stored(&again, Parent::Root)];
    let error = server.block_on(one.apply(A, &change)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(held(&server, &two, 200), []);
    store(&server, &one, A, 0..100);
    for index in [&one, &two] {
        assert_eq!(held(&server, index, 200), [(1, 100)]);
    }
    // What was stored for nobody is swept.
    remove(&server, &one, A, 0..100);
    assert_eq!(keys(&server, "*:[rnvh]:*"), [""; 0]);
}

#[test]
fn workers_of_an_owner_that_is_gone_are_left_out_until_it_is_back() {
    let server = Server::start();
    let with = RedisOptions { owner: Some("one".to_owned()), ..options() };
    let one = client(&server, with);
    assign(&server, &one, A);
    store(&server, &one, A, 0..10);
    assert_eq!(held(&server, &client(&server, options()), 10), [(1, 10)]);
    let _: i64 = redis::cmd("DEL").arg("kvscout:1:default:o:one").query(&mut server.raw()).unwrap();
    assert_eq!(held(&server, &client(&server, options()), 10), []);
    server.block_on(one.heartbeat()).unwrap();
    assert_eq!(held(&server, &client(&server, options()), 10), [(1, 10)]);
}

#[test]
fn a_successor_sweeps_what_a_dead_owner_retired() {
    let server = Server::start();
    let one = client(&server, options());
    assign(&server, &one, A);
    store(&server, &one, A, 0..1000);
    server.block_on(one.remove(A)).unwrap();
    drop(one);
    let two = client(&server, options());
    assign(&server, &two, A);
    store(&server, &two, A, 0..1);
    assert_eq!(server.block_on(two.stats()).unwrap().unplaced, 0);
    assert_eq!(keys(&server, "*:r:*").len(), 1);
    assert_eq!(keys(&server, "*:d:*"), [""; 0]);
}

#[test]
fn a_user_who_may_not_run_what_changes_need_is_warned_of() {
    let server = Server::start();
    let index = client(&server, options());
    let deny = ["SETUSER", "default", "-hscan", "-unlink"];
    let _: () = redis::cmd("ACL").arg(&deny).query(&mut server.raw()).unwrap();
    let warnings = server.block_on(index.check());
    for command in ["HSCAN", "UNLINK"] {
        let needs = format!("needs {command}");
        assert!(warnings.iter().any(|warning| warning.text.contains(&needs)), "{warnings:?}");
    }
}

#[test]
fn r8_keys_of_others_are_not_touched_and_ours_end() {
    let server = Server::start();
    let mut raw = server.raw();
    for (key, value) in [("app", "1"), ("kvscout:1:other:m", "2"), ("kvscout:r:{a}:b", "3")] {
        let _: () = redis::cmd("SET").arg(key).arg(value).query(&mut raw).unwrap();
    }
    let index = client(&server, options());
    assign(&server, &index, A);
    store(&server, &index, A, 0..100);
    server.block_on(index.refresh(A)).unwrap();
    for key in keys(&server, "kvscout:1:default:[rnvh]:*") {
        let ttl: i64 = redis::cmd("TTL").arg(&key).query(&mut raw).unwrap();
        assert!(ttl > 80_000, "{key} ends in {ttl} s");
    }
    server.block_on(index.remove(A)).unwrap();
    server.block_on(index.stats()).unwrap();
    for (key, value) in [("app", "1"), ("kvscout:1:other:m", "2"), ("kvscout:r:{a}:b", "3")] {
        let found: String = redis::cmd("GET").arg(key).query(&mut raw).unwrap();
        assert_eq!(found, value);
    }
}

/// Two segments have the same tag once in 2^96 pairs; here the rest of one's hash is changed by hand.
#[test]
fn a_run_of_another_segment_under_the_same_tag_matches_nothing_and_takes_nothing_in() {
    let server = Server::start();
    let (one, two) = (client(&server, options()), client(&server, options()));
    assign(&server, &one, A);
    assign(&server, &two, B);
    store(&server, &one, A, 0..100);
    let change = |key: &String| {
        let mut raw = server.raw();
        let mut head: Vec<u8> = redis::cmd("HGET").arg(key).arg("h").query(&mut raw).unwrap();
        assert_eq!(head.len(), 18);
        head[17] ^= 1;
        let _: () = redis::cmd("HSET").arg(key).arg("h").arg(head).query(&mut raw).unwrap();
    };
    let runs = keys(&server, "*:r:*");
    assert_eq!(runs.len(), 2);
    runs.iter().for_each(change);
    let (path, above) = (blocks(0..100), Parent::Root);
    for (index, worker) in [(&one, A), (&two, B)] {
        assert_eq!(held(&server, index, 100), []);
        let refused = server.block_on(index.apply(worker, &[stored(&path, above)])).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        assert_eq!(held(&server, index, 100), []);
    }
    runs.iter().for_each(change);
    assert_eq!(held(&server, &one, 100), [(1, 100)]);
    store(&server, &two, B, 0..100);
    assert_eq!(held(&server, &two, 100), [(1, 100), (2, 100)]);
}

#[test]
fn r8_a_store_that_somebody_emptied_answers_with_nothing_until_workers_have_homes_again() {
    let server = Server::start();
    let (index, reader) = (client(&server, options()), client(&server, options()));
    assign(&server, &index, A);
    store(&server, &index, A, 0..10);
    assign(&server, &reader, B);
    let looks = looks(&server, &server.socket_address());
    let _: () = redis::cmd("FLUSHALL").query(&mut server.raw()).unwrap();
    let more = blocks(10..20);
    let refused = server.block_on(index.apply(A, &[stored(&more, parent(&(10..20)))]));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::UnknownWorker);
    assert_eq!(held(&server, &index, 20), []);
    assign(&server, &index, A);
    store(&server, &index, A, 0..10);
    assert_eq!(held(&server, &index, 20), [(1, 10)]);
    eventually("another client sees it", || held(&server, &reader, 20) == [(1, 10)]);
    assert_eq!(looks.end(&server), [0; 4], "who asks an emptied store is answered");
}

#[test]
fn a_store_of_another_secret_or_version_is_refused() {
    let server = Server::start();
    let given = |secret| RedisOptions { secret: Some([secret; 32]), ..options() };
    let index = client(&server, given(1));
    assign(&server, &index, A);
    let meta: Vec<Vec<u8>> =
        redis::cmd("HVALS").arg("kvscout:1:default:m").query(&mut server.raw()).unwrap();
    assert!(meta.iter().all(|value| !value.windows(4).any(|bytes| bytes == [1; 4])));
    let same = server.block_on(client(&server, given(1)).digest_key()).unwrap();
    assert_eq!(same, server.block_on(index.digest_key()).unwrap());
    for other in [given(2), options()] {
        let error = server.block_on(client(&server, other).assign(A, HOME)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let mut set = redis::cmd("HSET");
    let _: () =
        set.arg("kvscout:1:default:m").arg("version").arg("2").query(&mut server.raw()).unwrap();
    let error = server.block_on(client(&server, given(1)).assign(A, HOME)).unwrap_err();
    assert!(error.to_string().contains("version '2'"), "{error}");
}

/// Every key in turn is a string of another program, then each field of each hash is damaged.
#[test]
fn what_is_damaged_is_an_error_that_names_the_key_and_never_a_panic() {
    let server = Server::start();
    let mut raw = server.raw();
    let index = client(&server, options());
    assign(&server, &index, A);
    store(&server, &index, A, 0..100);
    let other = [blocks(0..20), blocks(1020..1100)].concat();
    server.block_on(index.apply(A, &[stored(&other, Parent::Root)])).unwrap();
    let orphans = blocks(3000..3010);
    server.block_on(index.apply(A, &[stored(&orphans, parent(&(3000..3010)))])).unwrap();
    server.block_on(index.stats()).unwrap();
    let all = keys(&server, "*");
    let (mut named, mut unnamed) = (0, std::collections::BTreeSet::new());
    let mut use_it = |key: &str| {
        let index = client(&server, options());
        let change = stored(&other, Parent::Root);
        let names = [other[50].name, orphans[3].name];
        let remove = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &names };
        let results = [
            try_held(&server, &index, 100).map(drop),
            server.block_on(index.assign(A, HOME)),
            server.block_on(index.apply(A, &[change])).map(drop),
            server.block_on(index.apply(A, &[remove])).map(drop),
            server
                .block_on(index.apply(A, &[stored(&blocks(3010..3011), parent(&(3010..3011)))]))
                .map(drop),
            server.block_on(index.refresh(A)),
            server.block_on(index.remove(A)),
            server.block_on(index.stats()).map(drop),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            // Without a home, or with another program's version or secret, there is no going on.
            let follows = [ErrorKind::UnknownWorker, ErrorKind::InvalidInput];
            match error.to_string().contains(key) {
                true => named += 1,
                false if follows.contains(&error.kind()) => {}
                false => drop(unnamed.insert(format!("{key}: {error}"))),
            }
        }
    };
    let dumps: Vec<Vec<u8>> =
        all.iter().map(|key| redis::cmd("DUMP").arg(key).query(&mut raw).unwrap()).collect();
    let restore = || {
        let mut pipe = redis::pipe();
        pipe.cmd("FLUSHALL").ignore();
        for (key, dump) in all.iter().zip(&dumps) {
            pipe.cmd("RESTORE").arg(key).arg(0).arg(dump).ignore();
        }
        pipe.query::<()>(&mut server.raw()).unwrap();
    };
    for key in &all {
        let _: () = redis::cmd("SET").arg(key).arg("theirs").query(&mut raw).unwrap();
        use_it(key);
        restore();
        let kind: String = redis::cmd("TYPE").arg(key).query(&mut raw).unwrap();
        if kind != "hash" {
            continue;
        }
        let fields: Vec<Vec<u8>> = redis::cmd("HKEYS").arg(key).query(&mut raw).unwrap();
        for field in fields.iter().take(6) {
            for value in [&b""[..], b"x", &[255; 37], &[0; 600]] {
                let mut set = redis::cmd("HSET");
                let _: i64 = set.arg(key).arg(field).arg(value).query(&mut raw).unwrap();
                use_it(key);
                restore();
            }
        }
    }
    assert!(
        named > 100 && unnamed.is_empty(),
        "{named} errors named the key; others: {unnamed:#?}"
    );
}

/// Batch 5 of A, the same whenever it is applied.
fn fifth(server: &Server, index: &RedisIndex) -> Result<Once, kvscout::Error> {
    let turn = Turn { life: 1, seq: 5 };
    server.block_on(index.apply_once(A, turn, &[stored(&blocks(0..100), Parent::Root)]))
}

/// Clients of a store that lost this key: one that kept A there before, one that keeps B there since. Without a secret
/// each store makes one of its own.
fn after_the_loss_of(server: &Server, key: &str, secret: Option<[u8; 32]>) -> [RedisIndex; 2] {
    let owner_ttl = std::time::Duration::from_millis(100);
    let quick = || RedisOptions { owner_ttl, secret, ..options() };
    let one = client(server, quick());
    assign(server, &one, A);
    assert!(matches!(fifth(server, &one).unwrap(), Once::Applied(_)), "{key}");
    assert_eq!(fifth(server, &one).unwrap(), Once::Repeated, "{key}");
    assert_eq!(held(server, &one, 200), [(1, 100)], "{key}");
    let key = format!("kvscout:1:default:{key}");
    let _: i32 = redis::cmd("DEL").arg(key).query(&mut server.raw()).unwrap();
    let two = client(server, quick());
    assign(server, &two, B);
    store(server, &two, B, 0..150);
    [one, two]
}

/// The keys that say what the store is and what numbers mean: who comes next makes them anew, and who was
/// there before has to notice.
#[test]
fn r8_clients_of_a_store_that_lost_one_of_its_first_keys_come_together_again() {
    for lost in ["m", "i"] {
        let server = Server::start();
        let [one, two] = after_the_loss_of(&server, lost, Some([7; 32]));
        eventually("the first client notices", || held(&server, &one, 200) == [(2, 150)]);
        let refused = fifth(&server, &one).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::UnknownWorker, "{lost}");
        assign(&server, &one, A);
        // What the lost store had counted is not repeated in this one.
        assert!(matches!(fifth(&server, &one).unwrap(), Once::Applied(_)), "{lost}");
        for index in [&one, &two] {
            assert_eq!(held(&server, index, 200), [(1, 100), (2, 150)], "{lost}");
        }
        assert_eq!(remove(&server, &two, B, 100..150).removed, 50, "{lost}");
        assert_eq!(held(&server, &one, 200), [(1, 100), (2, 100)], "{lost}");
    }
}

#[test]
fn r8_whoever_finds_a_store_made_anew_under_another_secret_says_so_and_matches_nothing_there() {
    let server = Server::start();
    let [one, two] = after_the_loss_of(&server, "m", None);
    eventually("the first client notices", || try_held(&server, &one, 200).is_err());
    assert_eq!(fifth(&server, &one).unwrap_err().kind(), ErrorKind::UnknownWorker);
    for refused in [
        try_held(&server, &one, 200).unwrap_err(),
        server.block_on(one.assign(A, HOME)).unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
        assert!(refused.to_string().contains("another secret"), "{refused}");
    }
    assert_eq!(held(&server, &two, 200), [(2, 150)]);
}
