use super::*;

const FAR: u64 = 1000;

fn told(worker: &str, seq: u64, changes: Vec<Change>) -> Told {
    let (address, epoch) = (format!("http://{worker}"), String::new());
    Told { worker: worker.to_owned(), address, epoch, seq, spec: None, changes }
}

fn blocks(hashes: &[i64]) -> Vec<Reported> {
    hashes.iter().map(|&hash| Reported { hash, components: 0, tokens: 0 }).collect()
}

fn report(hashes: &[i64]) -> Vec<Change> {
    vec![Change::Report(Tier::Gpu, blocks(hashes))]
}

/// Workers and their leading blocks.
fn leading(external: &External, hashes: &[i64]) -> Vec<(String, u32)> {
    let found = external.leading(hashes).0;
    found.into_iter().map(|found| (found.worker.to_string(), found.blocks)).collect()
}

#[test]
fn a_batch_that_comes_again_changes_nothing_however_late_it_is() {
    let external = External::new(100);
    external.apply(told("a", 1, report(&[1, 2])));
    external.apply(told("a", 2, vec![Change::Revoke(Tier::Gpu, vec![2])]));
    let again = external.apply(told("a", 1, report(&[1, 2])));
    assert_eq!(again, Applied { seq: 2, duplicate: true });
    assert_eq!(leading(&external, &[1, 2]), [("a".to_owned(), 1)]);
}

#[test]
fn a_number_that_goes_back_with_other_blocks_is_a_worker_that_begins_with_nothing() {
    let external = External::new(100);
    for seq in 0..3 {
        external.apply(told("a", seq, report(&[seq as i64])));
    }
    external.apply(told("b", 0, report(&[0])));
    let anew = external.apply(told("a", 0, report(&[7])));
    assert_eq!(anew, Applied { seq: 0, duplicate: false });
    assert_eq!(leading(&external, &[0]), [("b".to_owned(), 1)]);
    assert_eq!(leading(&external, &[7]), [("a".to_owned(), 1)]);
    // A worker whose bridge names its lives may count on.
    external.apply(Told { epoch: "second".to_owned(), ..told("a", FAR, report(&[8])) });
    assert!(leading(&external, &[7]).is_empty());
}

#[test]
fn a_bridge_that_does_not_number_its_batches_is_believed() {
    let external = External::new(100);
    for changes in [report(&[1]), vec![Change::Revoke(Tier::Gpu, vec![1])], report(&[1])] {
        assert!(!external.apply(told("a", 0, changes)).duplicate);
    }
    assert_eq!(leading(&external, &[1]), [("a".to_owned(), 1)]);
}

#[test]
fn a_sign_of_life_brings_an_address_and_no_number() {
    let external = External::new(100);
    external.apply(told("a", 5, report(&[1])));
    external.apply(Told { address: String::new(), ..told("a", 0, vec![]) });
    assert!(leading(&external, &[1]).is_empty(), "nobody can be sent there");
    external.apply(told("a", 0, vec![]));
    assert_eq!(leading(&external, &[1]), [("a".to_owned(), 1)]);
}

#[test]
fn a_tier_is_cleared_for_its_worker_alone() {
    let external = External::new(100);
    external.apply(told("a", 1, report(&[1, 2])));
    external.apply(told("a", 2, vec![Change::Report(Tier::Cpu, blocks(&[1]))]));
    external.apply(told("b", 1, report(&[1, 2])));
    external.apply(told("a", 3, vec![Change::Clear(Tier::Gpu)]));
    assert_eq!(leading(&external, &[1, 2]), [("b".to_owned(), 2), ("a".to_owned(), 1)]);
    let holdings = external.holdings(&[1, 2], false).unwrap();
    let tiers: Vec<Vec<Tier>> =
        holdings.iter().map(|held| held.tiers.keys().copied().collect()).collect();
    assert_eq!(tiers, [vec![Tier::Cpu], vec![Tier::Gpu]]);
    // It can be filled anew.
    external.apply(told("a", 4, report(&[1, 2])));
    assert_eq!(leading(&external, &[1, 2]), [("a".to_owned(), 2), ("b".to_owned(), 2)]);
}

#[test]
fn memory_is_bounded_and_what_is_asked_for_stays_longest() {
    let external = External::new(100);
    external.apply(told("a", 1, report(&[-1, -2])));
    for seq in 2..FAR {
        let first = seq as i64 * 10;
        external.apply(told("a", seq, report(&(first..first + 10).collect::<Vec<_>>())));
        assert_eq!(leading(&external, &[-1, -2]), [("a".to_owned(), 2)], "{seq}");
        assert!(external.load().placements <= 100);
    }
    assert!(external.load().evicted > 9000, "{:?}", external.load());
    assert!(leading(&external, &[20]).is_empty());
}

#[test]
fn what_does_not_count_any_more_makes_way_first() {
    let external = External::new(100);
    external.apply(told("kept", 1, report(&[1, 2, 3])));
    external.apply(told("gone", 1, report(&(100..197).collect::<Vec<_>>())));
    external.apply(told("gone", 2, vec![Change::Clear(Tier::Gpu)]));
    external.apply(told("new", 1, report(&(300..397).collect::<Vec<_>>())));
    assert_eq!(external.load(), Load { placements: 100, evicted: 0 });
    assert_eq!(leading(&external, &[1, 2, 3]), [("kept".to_owned(), 3)]);
}

#[test]
fn blocks_that_come_and_go_leave_nothing_behind() {
    let external = External::new(100);
    for n in 0..FAR {
        external.apply(told("a", 2 * n, report(&(0..50).collect::<Vec<_>>())));
        let revoke = vec![Change::Revoke(Tier::Gpu, (0..50).collect())];
        external.apply(told("a", 2 * n + 1, revoke));
    }
    let inner = external.inner.read();
    assert_eq!((inner.placements, inner.blocks.len()), (0, 0));
    assert!(inner.queue.len() < 2048, "{}", inner.queue.len());
}

#[test]
fn one_worker_more_than_fit_takes_the_place_of_the_most_silent() {
    let external = External::new(1 << 20);
    for n in 0..MOST_WORKERS {
        external.apply(told(&format!("w{n}"), 1, report(&[n as i64])));
    }
    external.apply(told("w0", 2, vec![]));
    external.apply(told("new", 1, report(&[-1])));
    assert!(leading(&external, &[1]).is_empty(), "w1 was silent for longest");
    assert_eq!(leading(&external, &[0]), [("w0".to_owned(), 1)]);
    assert_eq!(leading(&external, &[-1]), [("new".to_owned(), 1)]);
}

#[test]
fn only_held_blocks_are_counted_once_a_question() {
    let external = External::new(100);
    external.apply(told("a", 1, report(&[1, 2])));
    external.holdings(&[1, 1, 9], true).unwrap();
    external.holdings(&[1, 2], true).unwrap();
    external.holdings(&[1, 2], false).unwrap();
    assert_eq!(external.hits(&[2, 9, 1, 1]), [(2, 1), (1, 2)]);
}

/// The prefix of a worker with this cache whose blocks have these components, 16 tokens each, in HBM.
fn prefix_of(spec: CacheSpec, components: &[u32]) -> u32 {
    let external = External::new(100);
    let hashes: Vec<i64> = (0..components.len() as i64).collect();
    let blocks = hashes
        .iter()
        .zip(components)
        .filter(|(_, components)| **components != 0)
        .map(|(&hash, &components)| Reported { hash, components, tokens: 16 });
    let changes = vec![Change::Report(Tier::Gpu, blocks.collect())];
    external.apply(Told { spec: Some(spec), ..told("a", 1, changes) });
    leading(&external, &hashes).first().map_or(0, |found| found.1)
}

#[test]
fn each_component_has_its_rule() {
    let hbm = [1 << 1; 3];
    let of = |components, window| CacheSpec { version: 1, components, window, tiers: hbm };
    let full = of(FULL, 0);
    assert_eq!(prefix_of(full, &[1, 1, 0, 1]), 2);
    assert_eq!(prefix_of(full, &[2, 3]), 0, "without full attention");
    assert_eq!(prefix_of(CacheSpec { tiers: [1 << 2; 3], ..full }, &[1]), 0, "not in HBM");
    assert_eq!(prefix_of(CacheSpec { version: 2, ..full }, &[1]), 0, "of the future");
    assert_eq!(prefix_of(CacheSpec { components: 0, ..full }, &[1]), 0);
    let state = of(FULL | STATE, 0);
    assert_eq!(prefix_of(state, &[1, 5, 1]), 2, "a state is needed on the last block alone");
    let window = of(FULL | WINDOW, 32);
    assert_eq!(prefix_of(window, &[3, 3, 1]), 2, "back to the start");
    assert_eq!(prefix_of(window, &[1, 1, 3, 3]), 4, "two blocks are the window");
    assert_eq!(prefix_of(window, &[1, 1, 3, 1]), 0);
    assert_eq!(prefix_of(of(FULL | WINDOW, 0), &[3]), 0, "a window without a length");
}

#[test]
fn components_of_a_cache_that_nobody_described_count_for_nothing() {
    let external = External::new(100);
    let block = Reported { hash: 1, components: FULL, tokens: 16 };
    external.apply(told("a", 1, vec![Change::Report(Tier::Gpu, vec![block])]));
    assert!(leading(&external, &[1]).is_empty());
}

#[test]
fn whole_blocks_count_in_any_tier_and_reading_ends_where_nobody_goes_on() {
    let external = External::new(100);
    external.apply(told("a", 1, vec![Change::Report(Tier::Disk, blocks(&[1, 2]))]));
    assert_eq!(leading(&external, &[1, 2, 3, 4]), [("a".to_owned(), 2)]);
    assert_eq!(external.leading(&[1, 2, 3, 4]).1, 3);
    assert_eq!(external.leading(&[9, 1, 2]), (vec![], 1));
}

fn expected(worker: &str) -> Expected {
    Expected { worker: worker.to_owned(), address: format!("http://{worker}"), spec: None }
}

fn whole(worker: &str, epoch: &str, seq: u64, hashes: &[i64]) -> Whole {
    let blocks = vec![(Tier::Gpu, blocks(hashes))];
    Whole { expected: expected(worker), epoch: epoch.to_owned(), seq, blocks }
}

#[test]
fn a_snapshot_takes_the_place_of_everything_that_was_reported_before() {
    let external = External::new(100);
    external.apply(told("a", 5, report(&[1, 2, 3])));
    assert_eq!(external.replace(whole("a", "e", 9, &[1])), Err(Unready::Unexpected));
    assert_eq!(external.expect(vec![expected("a")]), Coverage { total: 1, ready: 0 });
    assert_eq!(leading(&external, &[1, 2]), [("a".to_owned(), 2)], "that is known is kept");
    external.replace(whole("a", "e", 9, &[1])).unwrap();
    assert_eq!(leading(&external, &[1, 2]), [("a".to_owned(), 1)]);
    let next = |seq| Told { epoch: "e".to_owned(), ..told("a", seq, report(&[2])) };
    assert_eq!(external.apply_next(next(10)), Ok(Applied { seq: 10, duplicate: false }));
    assert_eq!(leading(&external, &[1, 2]), [("a".to_owned(), 2)]);
    assert_eq!(external.apply_next(next(12)), Err(Unready::Gap { next: 11 }));
    assert_eq!(external.apply_next(next(11)), Err(Unready::NoSnapshot));
    assert!(leading(&external, &[1]).is_empty());
    // The largest number is one like any other.
    external.replace(whole("a", "e", u64::MAX, &[1])).unwrap();
    assert_eq!(external.apply_next(next(0)), Ok(Applied { seq: u64::MAX, duplicate: true }));
}

#[test]
fn workers_that_come_and_go_take_no_more_room_than_those_that_are_there() {
    let external = External::new(1000);
    for n in 0..MOST_WORKERS as i64 + 100 {
        let name = format!("worker-{n}");
        external.expect(vec![expected(&name)]);
        external.replace(whole(&name, "e", 1, &[n])).unwrap();
        assert_eq!(leading(&external, &[n]), [(name, 1)]);
    }
    let inner = external.inner.read();
    assert!(inner.workers.len() <= MOST_WORKERS && inner.numbers.len() <= MOST_WORKERS);
    assert!(inner.placements <= 1000);
}
