//! What a match means: blocks and spans of one worker in, a [`Score`] out. Pure arithmetic.

use crate::block::{Group, Shape, Tier};
use crate::index::{Match, Span};

/// What one leading block is worth, by its fastest tier.
///
/// # Defaults
///
/// 1.0, 0.8, 0.5, 0.3: a block in host memory still saves most of its prefill, one behind a network
/// the least. An unknown medium is worth nothing and has no weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// [`Tier::Gpu`].
    pub gpu: f64,
    /// [`Tier::Cpu`].
    pub cpu: f64,
    /// [`Tier::Disk`].
    pub disk: f64,
    /// [`Tier::Remote`].
    pub remote: f64,
}

impl Default for Weights {
    fn default() -> Weights {
        Weights { gpu: 1.0, cpu: 0.8, disk: 0.5, remote: 0.3 }
    }
}

impl Weights {
    fn by_rank(&self) -> [f64; 4] {
        [self.gpu, self.cpu, self.disk, self.remote]
    }
}

/// How an engine answers from one cache group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupRule {
    /// All leading blocks are needed (full attention, MLA, attention with sinks).
    Full,
    /// Only the last `ceil((tokens - 1) / block_size)` blocks before the end of the hit are needed.
    Window {
        /// The window in tokens.
        tokens: u32,
    },
    /// The engine did not say what kind of group it is (vLLM before 0.22). A worker's only group is
    /// taken for full attention.
    Unannounced,
    /// A kind for which no rule is known (Mamba, chunked local attention, cross attention, ...).
    NoRule,
}

/// One cache group of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupFacts {
    /// Its number in the engine's events.
    pub group: Group,
    /// How the engine answers from it.
    pub rule: GroupRule,
    /// How its blocks are cut.
    pub shape: Shape,
}

/// Why an engine's own answer cannot be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unpredictable {
    /// A group is of a kind without a rule.
    NoRule,
    /// There are several groups and the engine did not say of which kind (vLLM 0.20 and 0.21).
    Unannounced,
    /// The groups differ in block size.
    MixedShapes,
    /// The prompt was given by the names of its blocks, so that it is not known whether tokens
    /// follow them.
    LengthUnknown,
}

impl Unpredictable {
    /// Every one there is.
    pub const ALL: [Unpredictable; 4] = [
        Unpredictable::NoRule,
        Unpredictable::Unannounced,
        Unpredictable::MixedShapes,
        Unpredictable::LengthUnknown,
    ];

    /// A stable label, as it appears in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unpredictable::NoRule => "group_kind_without_rule",
            Unpredictable::Unannounced => "group_kinds_unannounced",
            Unpredictable::MixedShapes => "mixed_block_sizes",
            Unpredictable::LengthUnknown => "prompt_length_unknown",
        }
    }
}

/// Why no block of a prompt can match, whatever a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Miss {
    /// The prompt has fewer tokens than one of the worker's blocks; its look-ahead counts, too.
    ShorterThanBlock,
}

impl Miss {
    /// Every one there is.
    pub const ALL: [Miss; 1] = [Miss::ShorterThanBlock];

    /// A stable label, as it appears in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Miss::ShorterThanBlock => "shorter_than_block",
        }
    }

    /// Of a prompt of so many tokens, cut like this.
    pub(crate) fn of(tokens: usize, shape: Shape) -> Option<Miss> {
        (shape.blocks_in(tokens) == 0).then_some(Miss::ShorterThanBlock)
    }
}

/// What one worker holds of one prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Leading blocks of the full-attention group that are resident in any known tier.
    pub matched_blocks: u32,
    /// Tokens of the leading blocks that are resident in tier `Tier::KNOWN[t]` or a faster one;
    /// never decreasing in `t`.
    pub tier_tokens: [u32; 4],
    /// The prompt tokens that the engine itself would report as cached (vLLM's
    /// `usage.prompt_tokens_details.cached_tokens`) if the request arrived now.
    pub expected_cached_tokens: Result<u32, Unpredictable>,
    /// Sum over the leading blocks of the weight of their fastest tier.
    pub weighted: f64,
    /// `weighted` divided by the number of full blocks of the prompt; 0 where it has none.
    pub ratio: f64,
    /// Why nothing can match, where that is so from the start.
    pub miss: Option<Miss>,
}

impl Score {
    /// The score of a worker that holds nothing.
    pub const NOTHING: Score = Score {
        matched_blocks: 0,
        tier_tokens: [0; 4],
        expected_cached_tokens: Ok(0),
        weighted: 0.0,
        ratio: 0.0,
        miss: None,
    };
}

/// Scores one worker.
///
/// `groups` are the worker's groups by number; `matches` and `spans` are its part of an index's
/// answer for a prompt of `tokens` tokens, spans only needed where a group has a window.
///
/// The engine's own answer is predicted by vLLM's rule: at least one token is always computed, so
/// the hit is capped at `(tokens - 1) / block_size` blocks; then the hit walks left until every
/// group has the blocks that it needs (checked against `get_computed_blocks` of vLLM 0.9.2 to
/// 0.33.0, `tests/replay_vectors.rs`). Only [`Tier::Gpu`] counts.
pub fn score(
    tokens: usize,
    groups: &[GroupFacts],
    matches: &[Match],
    spans: &[Span],
    weights: &Weights,
) -> Score {
    let Some(first) = groups.first() else { return Score::NOTHING };
    let rule = |facts: &GroupFacts| match facts.rule {
        GroupRule::Unannounced if groups.len() == 1 => GroupRule::Full,
        rule => rule,
    };
    let full = || groups.iter().filter(|facts| rule(facts) == GroupRule::Full);
    let shape = full().next().unwrap_or(first).shape;

    // The group that holds the least speaks for all: a hit needs every full-attention group.
    let held = |facts: &GroupFacts| matches.iter().find(|m| m.group == facts.group);
    let least = match full().next() {
        Some(_) => full().map(held).min_by_key(|m| m.map_or(0, |m| m.leading[3])).flatten(),
        None => held(first),
    };
    let (leading, fastest) = match least {
        Some(m) => {
            let mut leading = m.leading;
            for other in full().filter_map(held) {
                for (least, other) in leading.iter_mut().zip(other.leading) {
                    *least = (*least).min(other);
                }
            }
            (leading, m.fastest)
        }
        None => ([0; 4], [0; 4]),
    };
    let expected = expected(tokens, groups, rule, leading[0], spans);
    of_blocks(tokens, shape, leading, fastest, expected, weights)
}

/// Scores whoever has a single group, of full attention, and holds so much of it: what [`score`]
/// gives for that, without looking at what there could be besides.
pub(crate) fn score_full(
    tokens: usize,
    shape: Shape,
    leading: [u32; 4],
    fastest: [u32; 4],
    weights: &Weights,
) -> Score {
    let hit = leading[0].min(longest_hit(tokens, shape)).saturating_mul(shape.size.get());
    of_blocks(tokens, shape, leading, fastest, Ok(hit), weights)
}

#[inline]
fn of_blocks(
    tokens: usize,
    shape: Shape,
    leading: [u32; 4],
    fastest: [u32; 4],
    expected_cached_tokens: Result<u32, Unpredictable>,
    weights: &Weights,
) -> Score {
    let weighted = fastest.iter().zip(weights.by_rank()).map(|(&n, w)| f64::from(n) * w).sum();
    let blocks = shape.blocks_in(tokens);
    Score {
        matched_blocks: leading[3],
        tier_tokens: leading.map(|n| n.saturating_mul(shape.size.get())),
        expected_cached_tokens,
        weighted,
        ratio: if blocks == 0 { 0.0 } else { weighted / blocks as f64 },
        miss: Miss::of(tokens, shape),
    }
}

/// The most blocks that an engine takes from its cache: it computes at least one token.
#[inline]
fn longest_hit(tokens: usize, shape: Shape) -> u32 {
    let cap = tokens.saturating_sub(1) / shape.size.tokens();
    u32::try_from(cap).unwrap_or(u32::MAX)
}

fn expected(
    tokens: usize,
    groups: &[GroupFacts],
    rule: impl Fn(&GroupFacts) -> GroupRule,
    full_hit: u32,
    spans: &[Span],
) -> Result<u32, Unpredictable> {
    let Some(shape) = groups.first().map(|facts| facts.shape) else { return Ok(0) };
    let size = shape.size.get();
    let (mut has_full, mut window_count) = (false, 0);
    for facts in groups {
        match rule(facts) {
            GroupRule::Full => has_full = true,
            GroupRule::Window { .. } => window_count += 1,
            GroupRule::Unannounced => return Err(Unpredictable::Unannounced),
            GroupRule::NoRule => return Err(Unpredictable::NoRule),
        }
    }
    if groups.iter().any(|facts| facts.shape != shape) {
        return Err(Unpredictable::MixedShapes);
    }
    let cap = longest_hit(tokens, shape);
    let mut hit = if has_full { full_hit.min(cap) } else { cap };
    // Each window allows the hit or says where, to the left, it may be allowed next; when all allow
    // it, none moved it. A hit only ever moves to the edge of a span, so this ends after as many
    // steps as there are spans.
    let windows = || {
        groups.iter().filter_map(|facts| match rule(facts) {
            GroupRule::Window { tokens } => {
                Some((facts.group, tokens.saturating_sub(1).div_ceil(size)))
            }
            _ => None,
        })
    };
    let mut settled = 0;
    while hit > 0 && settled < window_count {
        for (group, need) in windows() {
            let allowed = allowed_hit(spans_of(spans, group), hit, need);
            settled = if allowed == hit { settled + 1 } else { 0 };
            hit = allowed;
        }
    }
    Ok(hit.saturating_mul(size))
}

/// The spans of one group; they come by group and start.
fn spans_of(spans: &[Span], group: Group) -> &[Span] {
    let from = spans.partition_point(|span| span.group < group);
    let len = spans[from..].partition_point(|span| span.group == group);
    &spans[from..from + len]
}

/// `hit` if the `need` blocks before it are in one span (or all blocks before it, if those are
/// fewer), else the largest smaller hit that this may hold for.
fn allowed_hit(spans: &[Span], hit: u32, need: u32) -> u32 {
    if need == 0 || hit == 0 {
        return hit;
    }
    // The last span that begins before the hit.
    let Some(span) = spans[..spans.partition_point(|span| span.start < hit)].last() else {
        return 0;
    };
    if span.end < hit {
        span.end
    } else if span.start <= hit.saturating_sub(need) {
        hit
    } else {
        span.start
    }
}

/// A router's easy way to weigh cache against load: the part of the prompt that is held, less
/// `load_weight` for each unit of load.
///
/// With `load` as a worker's requests in flight divided by what it serves well at once, and a weight
/// of 0.5, a full hit outweighs two full queues. Routers with a model of their own use
/// [`Score::ratio`] and [`Score::expected_cached_tokens`] instead.
pub fn combine(ratio: f64, load: f64, load_weight: f64) -> f64 {
    ratio - load_weight * load
}

/// Tokens per tier as the answers name them, fastest first.
pub fn named_tiers(score: &Score) -> impl Iterator<Item = (Tier, u32)> {
    Tier::KNOWN.into_iter().zip(score.tier_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockSize, WorkerId};

    const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);
    const W: WorkerId = WorkerId(0);

    fn facts(group: u32, rule: GroupRule) -> GroupFacts {
        GroupFacts { group: Group(group), rule, shape: SHAPE }
    }

    fn held(group: u32, leading: [u32; 4], fastest: [u32; 4]) -> Match {
        Match { worker: W, group: Group(group), leading, fastest }
    }

    fn span(group: u32, start: u32, end: u32) -> Span {
        Span { worker: W, group: Group(group), start, end }
    }

    fn hit(tokens: usize, groups: &[GroupFacts], full: u32, spans: &[Span]) -> u32 {
        let matches = [held(0, [full; 4], [full, 0, 0, 0])];
        score(tokens, groups, &matches, spans, &Weights::default()).expected_cached_tokens.unwrap()
    }

    #[test]
    fn the_last_token_is_always_computed() {
        let groups = [facts(0, GroupRule::Full)];
        assert_eq!(hit(48, &groups, 3, &[]), 32);
        assert_eq!(hit(49, &groups, 3, &[]), 48);
        assert_eq!(hit(1, &groups, 0, &[]), 0);
        assert_eq!(hit(0, &groups, 0, &[]), 0);
    }

    #[test]
    fn a_window_walks_the_hit_left_until_its_blocks_are_there() {
        let groups = [facts(0, GroupRule::Full), facts(1, GroupRule::Window { tokens: 33 })];
        assert_eq!(hit(200, &groups, 8, &[span(1, 6, 8)]), 128);
        assert_eq!(hit(200, &groups, 8, &[span(1, 7, 8)]), 0);
        assert_eq!(hit(200, &groups, 8, &[span(1, 2, 5), span(1, 7, 8)]), 80);
        assert_eq!(hit(200, &groups, 8, &[span(1, 0, 1)]), 16, "shorter than the window");
    }

    #[test]
    fn two_windows_walk_left_together() {
        let groups = [
            facts(0, GroupRule::Full),
            facts(1, GroupRule::Window { tokens: 33 }),
            facts(2, GroupRule::Window { tokens: 17 }),
        ];
        let spans = [span(1, 0, 3), span(1, 4, 6), span(2, 0, 1), span(2, 4, 5), span(2, 7, 8)];
        assert_eq!(hit(200, &groups, 8, &spans), 16, "5 suits the second only, 6 the first only");
    }

    #[test]
    fn many_holes_in_a_long_prompt_cost_no_more_than_there_are_holes() {
        let groups = [facts(0, GroupRule::Full), facts(1, GroupRule::Window { tokens: 1 << 20 })];
        let spans: Vec<Span> = (0..200_000).map(|n| span(1, 2 * n + 1, 2 * n + 2)).collect();
        assert_eq!(hit(16 << 20, &groups, 400_000, &spans), 0);
    }

    #[test]
    fn a_window_of_one_token_needs_no_block() {
        let groups = [facts(0, GroupRule::Full), facts(1, GroupRule::Window { tokens: 1 })];
        assert_eq!(hit(200, &groups, 8, &[]), 128);
    }

    #[test]
    fn a_model_of_windows_only_needs_no_leading_block() {
        let groups = [facts(0, GroupRule::Window { tokens: 33 })];
        let s = score(200, &groups, &[], &[span(0, 5, 9)], &Weights::default());
        assert_eq!((s.matched_blocks, s.expected_cached_tokens), (0, Ok(144)));
    }

    #[test]
    fn groups_without_a_rule_give_a_reason_instead_of_a_guess() {
        let unannounced = [facts(0, GroupRule::Unannounced), facts(1, GroupRule::Unannounced)];
        let no_rule = [facts(0, GroupRule::Full), facts(1, GroupRule::NoRule)];
        let mut mixed = [facts(0, GroupRule::Full), facts(1, GroupRule::Full)];
        mixed[1].shape.lookahead = 1;
        for (groups, reason) in [
            (unannounced, Unpredictable::Unannounced),
            (no_rule, Unpredictable::NoRule),
            (mixed, Unpredictable::MixedShapes),
        ] {
            let s = score(64, &groups, &[], &[], &Weights::default());
            assert_eq!(s.expected_cached_tokens, Err(reason));
        }
    }

    #[test]
    fn a_block_counts_with_the_weight_of_its_fastest_tier() {
        let groups = [facts(0, GroupRule::Full)];
        let matches = [held(0, [2, 4, 4, 4], [3, 1, 0, 0])];
        let s = score(80, &groups, &matches, &[], &Weights::default());
        assert!((s.weighted - 3.8).abs() < 1e-12);
        assert!((s.ratio - 3.8 / 5.0).abs() < 1e-12);
        assert_eq!(s.tier_tokens, [32, 64, 64, 64]);
        assert_eq!(s.expected_cached_tokens, Ok(32));
    }

    #[test]
    fn the_short_way_for_one_full_group_gives_the_same() {
        let weights = Weights::default();
        for rule in [GroupRule::Full, GroupRule::Unannounced] {
            for tokens in [0, 1, 15, 16, 17, 64, 65, 200] {
                for (leading, fastest) in
                    [([0; 4], [0; 4]), ([4; 4], [4, 0, 0, 0]), ([1, 2, 2, 4], [2, 1, 0, 1])]
                {
                    let m = [held(0, leading, fastest)];
                    let long = score(tokens, &[facts(0, rule)], &m, &[], &weights);
                    assert_eq!(score_full(tokens, SHAPE, leading, fastest, &weights), long);
                }
            }
        }
        assert_eq!(score(99, &[facts(0, GroupRule::Full)], &[], &[], &weights), Score::NOTHING);
    }

    #[test]
    fn several_full_attention_groups_hit_as_far_as_the_shortest() {
        let groups = [facts(0, GroupRule::Full), facts(1, GroupRule::Full)];
        let matches = [held(0, [4; 4], [4, 0, 0, 0]), held(1, [2; 4], [2, 0, 0, 0])];
        let s = score(80, &groups, &matches, &[], &Weights::default());
        assert_eq!((s.matched_blocks, s.expected_cached_tokens), (2, Ok(32)));
        let s = score(80, &groups, &matches[..1], &[], &Weights::default());
        assert_eq!((s.matched_blocks, s.expected_cached_tokens), (0, Ok(0)));
    }
}
