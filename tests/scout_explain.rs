//! Why a worker scored what it did, block by block.

mod failures_support;

use failures_support::*;
use kvscout::block::{Name, Prompt, Tier, WorkerId};
use kvscout::hash::vllm::Algorithm;
use kvscout::ingest::Trust;
use kvscout::scout::{
    Blocks, Divergence, Explained, ExplainedGroup, KnownBy, Missing, Registration, Request,
    Scratch, Stretch,
};
use serde_json::json;

/// Five blocks and one token more.
fn tokens() -> Vec<u32> {
    (0..21).collect()
}

fn explain(site: &Site, request: &Request<'_>, worker: WorkerId) -> Explained {
    let explained = site.scout.explain(request).unwrap();
    explained.into_iter().find(|explained| explained.worker == worker).unwrap()
}

fn group(site: &Site, tokens: &[u32], worker: WorkerId) -> ExplainedGroup {
    let mut explained = explain(site, &Request::new("m", Prompt::new(tokens)), worker);
    assert_eq!(explained.groups.len(), 1);
    explained.groups.remove(0)
}

fn stretch(from: u32, to: u32, tier: Tier, known_by: KnownBy) -> Stretch {
    Stretch { from, to, tier, known_by }
}

#[test]
fn blocks_are_told_apart_by_tier_and_by_how_they_are_known() {
    let site = Site::new();
    let worker = site.worker("a");
    let tokens = tokens();
    let prompt = Prompt::new(&tokens);
    let names = names("0.33.0", Algorithm::Sha256Cbor, "0", SIZE, &prompt);
    site.apply(
        worker,
        &[
            stored(&names[..3], None, &tokens[..12]),
            with(stored(&names[1..2], Some(names[0]), &tokens[4..8]), &[("medium", json!("CPU"))]),
            removed(&names[1..2], "GPU"),
            stored_by_name(&names[3..], "DISK"),
        ],
    );
    let group = group(&site, &tokens, worker);
    assert_eq!((group.blocks, group.leading), (5, [1, 3, 5, 5]));
    let expected = [
        stretch(0, 1, Tier::Gpu, KnownBy::Content),
        stretch(1, 2, Tier::Cpu, KnownBy::Content),
        stretch(2, 3, Tier::Gpu, KnownBy::Content),
        stretch(3, 5, Tier::Disk, KnownBy::Name),
    ];
    assert_eq!((&group.stretches[..], group.is_cut), (&expected[..], false));
    assert_eq!(group.divergence, None, "the whole prompt is held");
    let explained = explain(&site, &Request::new("m", prompt), worker);
    assert_eq!((explained.pod.as_str(), explained.as_of), ("a", Some(0)));
    assert_eq!((explained.trust, explained.computes_names), (Trust::Exact, true));
}

#[test]
fn a_missing_block_is_a_hole_or_held_elsewhere_or_unknown() {
    let site = Site::new();
    let (hole, short, far) = (site.worker("hole"), site.worker("short"), site.worker("far"));
    let tokens = tokens();
    site.apply(hole, &[stored(&[1, 2, 3, 4], None, &tokens[..16]), removed(&[2, 3], "GPU")]);
    site.apply(short, &[stored(&[1, 2], None, &tokens[..8])]);
    site.apply(far, &[stored(&[1, 2, 3, 4], None, &tokens[..16])]);
    let why = |worker| group(&site, &tokens, worker).divergence;
    let at = |block, why| Some(Divergence { block, why });
    assert_eq!(why(hole), at(1, Missing::Hole { next: 3 }));
    assert_eq!(why(short), at(2, Missing::Elsewhere));
    assert_eq!(why(far), at(4, Missing::Unknown));
    let salted = Prompt { cache_salt: Some("s"), ..Prompt::new(&tokens) };
    let explained = explain(&site, &Request::new("m", salted), far);
    assert_eq!(explained.groups[0].divergence, at(0, Missing::Unknown));
    // The same when only this one is asked about.
    let request = Request { candidates: Some(&[short]), ..Request::new("m", Prompt::new(&tokens)) };
    let explained = site.scout.explain(&request).unwrap();
    assert_eq!(explained.len(), 1);
    assert_eq!(explained[0].groups[0].divergence, at(2, Missing::Elsewhere));
}

#[test]
fn a_prompt_given_by_names_is_known_by_name() {
    let site = Site::new();
    let worker = site.worker("a");
    let tokens = tokens();
    site.apply(worker, &[stored(&[11, 12], None, &tokens[..8])]);
    let names = [Name(11), Name(12), Name(13)];
    let block_size = kvscout::block::BlockSize::new(SIZE).unwrap();
    let blocks = Blocks::Names { names: &names, block_size };
    let request = Request { blocks, ..Request::new("m", Prompt::new(&[])) };
    let group = explain(&site, &request, worker).groups.remove(0);
    assert_eq!(group.stretches, [stretch(0, 2, Tier::Gpu, KnownBy::Name)]);
    assert_eq!(group.divergence, Some(Divergence { block: 2, why: Missing::Unknown }));
}

#[test]
fn who_announced_nothing_has_no_group_and_an_unknown_model_is_an_error() {
    let site = Site::new();
    let worker = site.worker("a");
    let prompt = Prompt::new(&[1, 2, 3, 4]);
    assert!(explain(&site, &Request::new("m", prompt), worker).groups.is_empty());
    assert!(site.scout.explain(&Request::new("nobody", prompt)).is_err());
    site.scout.register(Registration::new("b", "other")).unwrap();
    assert_eq!(site.scout.explain(&Request::new("other", prompt)).unwrap().len(), 1);
}

/// SplitMix64's output function.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn what_is_explained_adds_up_to_the_score() {
    let site = Site::new();
    let tokens: Vec<u32> = (0..161).collect();
    let names: Vec<u64> = (1..=40).collect();
    let workers: Vec<WorkerId> = (0..8).map(|n| site.worker(&format!("w{n}"))).collect();
    for (n, &worker) in workers.iter().enumerate() {
        site.apply(worker, &[stored(&names, None, &tokens[..160])]);
        for at in 0..40_usize {
            let draw = mix((n * 40 + at) as u64);
            let name = &names[at..=at];
            let parent = at.checked_sub(1).map(|before| names[before]);
            for (tier, medium) in ["CPU", "DISK"].into_iter().enumerate() {
                if draw >> (8 * tier) & 3 == 0 {
                    let copy = stored(name, parent, &tokens[at * 4..at * 4 + 4]);
                    site.apply(worker, &[with(copy, &[("medium", json!(medium))])]);
                }
            }
            if draw >> 16 & 7 == 0 || at >= 5 * n {
                site.apply(worker, &[removed(name, "GPU")]);
            }
        }
    }
    let request = Request::new("m", Prompt::new(&tokens));
    let mut scratch = Scratch::default();
    let ranking = site.scout.score(&request, &mut scratch).unwrap();
    let mut held = 0;
    for &worker in &workers {
        let score = ranking.find(worker).unwrap().score;
        let group = group(&site, &tokens, worker);
        assert_eq!(group.leading.map(|n| n * SIZE), score.tier_tokens);
        let mut fastest = [0; 4];
        let mut next = 0;
        for stretch in &group.stretches {
            assert!(stretch.from == next && stretch.to > next, "{stretch:?}");
            fastest[stretch.tier.rank().unwrap()] += stretch.to - stretch.from;
            next = stretch.to;
        }
        assert_eq!(next, score.matched_blocks);
        let [gpu, cpu, disk, _] = fastest.map(f64::from);
        assert!((gpu + 0.8 * cpu + 0.5 * disk - score.weighted).abs() < 1e-9);
        held += next;
    }
    assert!(held > 40, "{held}");
}
