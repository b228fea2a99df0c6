//! From stretches that slots hold to the answer of a lookup.

use std::collections::BTreeMap;

use crate::block::{Group, Tier, WorkerId};
use crate::index::{Match, Matches, Span};

/// A stretch of a prompt's blocks that a worker holds in one group and tier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) worker: WorkerId,
    pub(super) group: Group,
    pub(super) tier: Tier,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// Stretches by tier: their first blocks, and one past their last.
type Held = [Vec<(u32, u32)>; 4];

/// Writes the answer; gives the most leading blocks that anybody holds.
pub(super) fn answer(pieces: &[Piece], spans: bool, matches: &mut Matches) -> u32 {
    matches.clear();
    let mut held: BTreeMap<(WorkerId, Group), Held> = BTreeMap::new();
    for piece in pieces {
        if let Some(rank) = piece.tier.rank() {
            let tiers = held.entry((piece.worker, piece.group)).or_default();
            tiers[rank].push((piece.from, piece.to));
        }
    }
    let mut found = Vec::with_capacity(held.len());
    for (&(worker, group), tiers) in &held {
        let unions = [0, 1, 2, 3].map(|rank| union(&tiers[..=rank]));
        let leading = unions.each_ref().map(|stretches| match stretches.first() {
            Some(&(0, to)) => to,
            _ => 0,
        });
        if leading[3] > 0 {
            let covered = unions.map(|stretches| {
                let within = stretches.iter().map(|&(from, to)| (from, to.min(leading[3])));
                within.map(|(from, to)| to.saturating_sub(from)).sum::<u32>()
            });
            let mut fastest = covered;
            (1..4).for_each(|rank| fastest[rank] -= covered[rank - 1]);
            found.push(Match { worker, group, leading, fastest });
        }
        if spans {
            let gpu = union(&tiers[..1]).into_iter();
            matches.spans.extend(gpu.map(|(start, end)| Span { worker, group, start, end }));
        }
    }
    let most = found.iter().map(|m| m.leading[3]).max().unwrap_or(0);
    found.sort_by_key(|m| (m.group, m.leading, m.fastest));
    found.into_iter().for_each(|m| matches.push(m));
    most
}

/// The stretches joined, ascending, with gaps between them.
fn union(tiers: &[Vec<(u32, u32)>]) -> Vec<(u32, u32)> {
    let mut all: Vec<(u32, u32)> = tiers.iter().flatten().copied().collect();
    all.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::with_capacity(all.len());
    for (from, to) in all {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_add_up_and_a_hole_ends_the_match_but_not_the_spans() {
        let piece = |tier, from, to| Piece { worker: WorkerId(1), group: Group(0), tier, from, to };
        let pieces = [
            piece(Tier::Gpu, 0, 64),
            piece(Tier::Gpu, 64, 70),
            piece(Tier::Cpu, 60, 80),
            piece(Tier::Unknown, 80, 90),
            piece(Tier::Gpu, 90, 95),
        ];
        let mut matches = Matches::default();
        assert_eq!(answer(&pieces, true, &mut matches), 80);
        let (found, spans) = matches.sorted();
        assert_eq!((found[0].leading, found[0].fastest), ([70, 80, 80, 80], [70, 10, 0, 0]));
        assert_eq!(spans.iter().map(|s| (s.start, s.end)).collect::<Vec<_>>(), [(0, 70), (90, 95)]);
    }
}
