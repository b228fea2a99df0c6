//! Stretches that another worker has stored before: nearly always they are still there.

use super::chain::{ChainKey, Link, first};
use super::lay::{Piece, Stretch, Told, head, names};
use super::run::once;
use super::{Batch, RedisIndex, script};
use crate::block::Name;

/// What stands beside a run's names: what the blocks from the segment's first on are called, up to one that is named.
pub(super) type Proof = [u8; 20];

/// How a piece gets its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It was stored before, and only the slot is new: beside its names is the proof that all is the same.
    JoinProven,
    /// It was stored before, and only the slot is new.
    Join,
    /// Whatever of it is there.
    Store,
    /// It has them.
    Done,
}

impl RedisIndex {
    /// Joins pieces that this client has stored lately, as far as it knows in whole in the first runs of their
    /// segments.
    pub(super) fn ways(&self, stretch: &Stretch<'_>, pieces: &[Piece], links: &[Link]) -> Vec<Way> {
        let mut local = self.local.lock();
        let mut way = |piece: &Piece| {
            // Zeros stand for a name that a block does not have; of such a block only `store` knows more.
            let named = || stretch.blocks[piece.from..piece.to].iter().all(|b| b.name != Name(0));
            if stretch.copies != 1 || piece.begin != first(&piece.tag) || !named() {
                return Way::Store;
            }
            match local.ends.way(stretch.vocabulary, piece.tag, links[piece.to - 1].key) {
                Way::JoinProven if piece.offset > 0 => Way::Join,
                way => way,
            }
        };
        pieces.iter().map(&mut way).collect()
    }

    /// The script that adds copies of a piece to what is there.
    pub(super) fn join_script(
        &self,
        batch: &mut Batch,
        stretch: &Stretch<'_>,
        piece: &Piece,
        links: &[Link],
    ) {
        let about = [
            &stretch.vocabulary.to_le_bytes()[..],
            &stretch.slot.to_le_bytes(),
            &stretch.stamps.at(piece.from),
            &head(stretch, piece, links),
            &links[piece.to - 1].key,
            &[piece.offset as u8],
        ];
        let key = self.keys.run(&piece.tag, &piece.begin);
        let named = self.keys.names(&piece.tag, &piece.begin);
        let args: [&[u8]; 2] = [&about.concat(), &names(stretch, piece)];
        batch.script(&script::JOIN, &[&key, &named], &args);
    }

    /// The same by the run's proof.
    pub(super) fn join_proven_script(
        &self,
        batch: &mut Batch,
        chain: &ChainKey,
        stretch: &Stretch<'_>,
        piece: &Piece,
        links: &[Link],
    ) {
        let args: [&[u8]; 4] = [
            &head(stretch, piece, links),
            &proof(chain, stretch, piece, links),
            &stretch.slot.to_le_bytes(),
            &once(&stretch.stamps.at(piece.from), (piece.to - piece.from) as u8),
        ];
        let key = self.keys.run(&piece.tag, &piece.begin);
        let named = self.keys.names(&piece.tag, &piece.begin);
        batch.script(&script::JOIN_PROVEN, &[&key, &named], &args);
    }

    /// The last block's name where nobody here knows what it means though all is probably stored: who
    /// stored it first has not bound it yet, or this client has forgotten it. What comes next hangs on it.
    pub(super) fn unsure(&self, stretch: &Stretch<'_>, ways: &[Way]) -> Option<Name> {
        let name = stretch.blocks.last()?.name;
        let asks = stretch.worker.is_some() && ways.iter().all(|way| way.joins());
        let local = self.local.lock();
        (asks && local.names.get(stretch.vocabulary, name).is_none()).then_some(name)
    }

    /// Notes which pieces lie elsewhere than the next one would look for them, or could not be joined as they were to be:
    /// why not may last.
    pub(super) fn note_ends(
        &self,
        stretch: &Stretch<'_>,
        pieces: &[Piece],
        links: &[Link],
        ways: &[Way],
        told: &Told,
    ) {
        // Of a piece that was to be stored and is not, nothing is known.
        let apart = pieces.iter().zip(ways).filter(|(piece, way)| {
            !told.has(piece) && (way.joins() || told.place(piece.from).is_some())
        });
        let mut local = self.local.lock();
        for (piece, way) in apart {
            let next = if *way == Way::JoinProven { Way::Join } else { Way::Store };
            local.ends.part(stretch.vocabulary, piece.tag, links[piece.to - 1].key, next);
        }
    }
}

impl Way {
    pub(super) fn joins(self) -> bool {
        matches!(self, Way::JoinProven | Way::Join)
    }
}

/// The proof of a piece that begins its segment. Engines choose their names, so it is a keyed hash.
pub(super) fn proof(
    chain: &ChainKey,
    stretch: &Stretch<'_>,
    piece: &Piece,
    links: &[Link],
) -> Proof {
    let mut proof = [0; 20];
    proof[..4].copy_from_slice(&stretch.vocabulary.to_le_bytes());
    proof[4..12].copy_from_slice(&links[piece.to - 1].key);
    proof[12..].copy_from_slice(&chain.names(&names(stretch, piece)));
    proof
}
