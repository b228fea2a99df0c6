//! Stretches of blocks that become resident: laid into runs, segment by segment.

use super::chain::{Key, Link, SEGMENT, Tag, first, shape_bytes};
use super::local::Dead;
use super::meaning::name_bytes;
use super::place::{Place, Spot};
use super::reply::{bytes, damaged, list, value};
use super::run::holds;
use super::store::Stamps;
use super::{Batch, RedisIndex, command, next, script};
use crate::block::{Name, Shape};
use crate::error::{Error, ErrorKind};
use crate::index::{Block, MOST_NAMES};

/// A stretch of new copies, each block after its predecessor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch<'a> {
    pub(super) space: u32,
    pub(super) vocabulary: u32,
    /// What comes before, and where that is unless it is the root.
    pub(super) above: (Link, Option<Place>),
    pub(super) shape: Shape,
    /// Every one with its content.
    pub(super) blocks: &'a [Block],
    pub(super) slot: u32,
    pub(super) copies: u32,
    pub(super) stamps: Stamps,
    /// How many meanings a name may have; 0 for any number.
    pub(super) most: usize,
    /// The worker whose slot it must still be.
    pub(super) worker: Option<u32>,
    /// Slots of which it is asked whether one holds a copy of what comes before.
    pub(super) asks: &'a [u32],
}

/// What became of a [`Stretch`].
#[derive(Debug, Default)]
pub(super) struct Laid {
    /// How many blocks are stored; the others were refused.
    pub(super) stored: usize,
    /// The last of them.
    pub(super) last: Option<Spot>,
    /// Names that wait for a block of the stretch.
    pub(super) waiting: Vec<Name>,
    /// Whether one of the slots that it was asked of holds what comes before.
    pub(super) above_held: bool,
}

/// One segment's share of a stretch.
pub(super) struct Piece {
    pub(super) tag: Tag,
    pub(super) begin: Key,
    pub(super) offset: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Blocks of a piece in one run.
#[derive(Clone, Copy, Debug)]
struct Part {
    place: Place,
    from: usize,
    to: usize,
}

/// What the scripts of a stretch's pieces answered.
#[derive(Debug, Default)]
pub(super) struct Told {
    parts: Vec<Part>,
    /// Runs that were made at the beginning of a segment: the number of their first block, tag, run.
    created: Vec<(usize, Tag, Key)>,
    /// Numbers of the blocks whose names are new to their runs.
    pub(super) unbound: Vec<(usize, Place)>,
    /// Runs that the slot holds something of since now, but for those in which the pieces begin.
    joined: Vec<Vec<u8>>,
    made: i64,
    entries: i64,
    /// What the stretch hangs on is not there.
    gone: bool,
    /// The first block that has all the names it may have.
    full: Option<usize>,
    above_held: bool,
}

impl Told {
    /// From the answer of the script for one piece.
    pub(super) fn read(&mut self, key: &[u8], piece: &Piece, reply: &[u8]) -> Result<(), Error> {
        let bad = || damaged(key, "answer");
        let Some((&made, mut rest)) = reply.split_first() else {
            self.gone = true;
            return Ok(());
        };
        if made == 1 {
            self.created.push((piece.from, piece.tag, piece.begin));
        }
        while !rest.is_empty() {
            let (head, names) = rest.split_at_checked(14).ok_or_else(bad)?;
            let &[offset, blocks, made, gained, flags, count] = &head[8..] else {
                return Err(bad());
            };
            let run: Key = head[..8].try_into().map_err(|_| bad())?;
            let first = usize::from(offset).checked_sub(piece.offset).ok_or_else(bad)?;
            let (from, to) = (piece.from + first, piece.from + first + usize::from(blocks));
            if to > piece.to {
                return Err(bad());
            }
            let place = Place { tag: piece.tag, run, offset };
            self.parts.push(Part { place, from, to });
            self.made += i64::from(made);
            self.entries += i64::from(gained);
            let (names, after) = names.split_at_checked(count.into()).ok_or_else(bad)?;
            let named = |&n: &u8| piece.from + usize::from(n);
            if !names.iter().all(|n| (from..to).contains(&named(n))) {
                return Err(bad());
            }
            if let Some(last) = names.last().filter(|_| flags & 4 != 0) {
                self.full = Some(self.full.map_or(named(last), |full| full.min(named(last))));
            }
            let mut unbound = |at: usize| {
                self.unbound.push((at, Place { offset: offset + (at - from) as u8, ..place }))
            };
            match flags & 8 {
                0 => names.iter().map(named).for_each(&mut unbound),
                _ => (from..to).for_each(&mut unbound),
            }
            if flags & 2 != 0 && run != piece.begin {
                self.joined.push([&piece.tag[..], &run].concat());
            }
            rest = after;
        }
        Ok(())
    }

    /// Where block `at` of the stretch is.
    pub(super) fn place(&self, at: usize) -> Option<Place> {
        let part = self.parts.iter().find(|part| (part.from..part.to).contains(&at))?;
        Some(Place { offset: part.place.offset + (at - part.from) as u8, ..part.place })
    }
}

impl RedisIndex {
    /// Stores a stretch; `None` if what it hangs on is not there.
    pub(super) async fn lay(&self, stretch: &Stretch<'_>) -> Result<Option<Laid>, Error> {
        let opened = self.opened().await?;
        let mut links = Vec::with_capacity(stretch.blocks.len());
        let mut link = stretch.above.0;
        for digest in stretch.blocks.iter().map_while(|block| block.digest) {
            link = opened.chain.next(&link, digest);
            links.push(link);
        }
        if links.is_empty() {
            return Ok(Some(Laid::default()));
        }
        let pieces = pieces(&stretch.above.0, stretch.above.1, &links);
        let mut told = self.store_pieces(stretch, &pieces, &links).await?;
        self.local.lock().changed(stretch.space, told.made, told.entries);
        if told.gone {
            self.untake(stretch, &told.parts, 0).await?;
            return Ok(None);
        }
        told.parts.sort_unstable_by_key(|part| part.from);
        told.unbound.sort_unstable_by_key(|(at, _)| *at);
        // A block that has all the names it may have is refused, and so is what comes after it.
        let beyond = told.unbound.partition_point(|(at, _)| told.full.is_none_or(|f| *at < f));
        let beyond = told.unbound.split_off(beyond);
        let names: Vec<(Name, Place)> =
            told.unbound.iter().map(|&(at, place)| (stretch.blocks[at].name, place)).collect();
        let batch = self.joints(stretch, &pieces, &told);
        let held = self.keys.held(stretch.space, stretch.slot);
        let check = |reply| value(&held, reply).map(drop);
        let bound = self.bind(batch, check, stretch.vocabulary, &names, stretch.most).await?;
        let refused = bound.status.iter().position(|&status| status == b'3');
        let refused = refused.map(|n| told.unbound[n].0).or(told.full);
        let stored = refused.unwrap_or(stretch.blocks.len());
        self.remember(stretch, &told, &links[..stored.min(links.len())], &bound.status);
        if refused.is_some() {
            let mut back: Vec<(Name, Place, bool)> = (0..names.len())
                .filter(|&n| told.unbound[n].0 >= stored && bound.status[n] != b'0')
                .map(|n| (names[n].0, names[n].1, bound.status[n] != b'3'))
                .collect();
            let after = beyond.iter().filter(|(at, _)| told.full.is_some_and(|full| *at > full));
            back.extend(after.map(|&(at, place)| (stretch.blocks[at].name, place, false)));
            self.unname(stretch.vocabulary, &back).await?;
            self.untake(stretch, &told.parts, stored).await?;
        }
        let last = told.place(stretch.blocks.len() - 1).filter(|_| refused.is_none());
        let waiting = bound.waiting.into_iter().filter(|(n, _)| told.unbound[*n].0 < stored);
        Ok(Some(Laid {
            stored,
            last: last.map(|place| Spot { place, link }),
            waiting: waiting.map(|(_, name)| name).collect(),
            above_held: told.above_held,
        }))
    }

    /// Stores each piece in its segment, and asks whether the store and the slot are still what they were.
    async fn store_pieces(
        &self,
        stretch: &Stretch<'_>,
        pieces: &[Piece],
        links: &[Link],
    ) -> Result<Told, Error> {
        let held = self.keys.held(stretch.space, stretch.slot);
        let (keys, mut batch) = self.store_scripts(stretch, pieces, links, &held);
        let about = self.keys.space(stretch.space);
        batch.push(&about, command("HGET", &[&about, b"b"]));
        let table = self.keys.table(stretch.space);
        if stretch.worker.is_some() {
            let field = [b"s", &stretch.slot.to_le_bytes()[..]].concat();
            batch.push(&table, command("HGET", &[&table, &field]));
        }
        let asked = stretch.above.1.filter(|_| !stretch.asks.is_empty());
        let asked = asked.map(|above| (self.keys.run(&above.tag, &above.run), above.offset));
        if let Some((key, _)) = &asked {
            let mut ask = command("HMGET", &[key]);
            for slot in stretch.asks {
                ask.arg(&slot.to_le_bytes()[..]);
            }
            batch.push(key, ask);
        }
        let (mut replies, mut told) = (self.send(batch).await?, Told::default());
        for (key, piece) in keys.iter().zip(pieces) {
            told.read(key, piece, &bytes(key, value(key, next(&mut replies))?)?)?;
            value(&held, next(&mut replies))?;
        }
        self.same_store(&about, value(&about, next(&mut replies))?).await?;
        if let Some(worker) = stretch.worker {
            let owner = bytes(&table, value(&table, next(&mut replies))?)?;
            self.same_slot(stretch, worker, &owner)?;
        }
        if let Some((key, offset)) = &asked {
            for holder in list(key, value(key, next(&mut replies))?)? {
                told.above_held |= holds(&bytes(key, holder)?, *offset);
            }
        }
        Ok(told)
    }

    /// What the pieces' scripts could not do in their slots: runs get to know what hangs below them, and
    /// the list of what the slot holds gets what it lacks.
    fn joints(&self, stretch: &Stretch<'_>, pieces: &[Piece], told: &Told) -> Batch {
        let (held, mut batch) = (self.keys.held(stretch.space, stretch.slot), Batch::new());
        let list_key = (stretch.space, stretch.slot);
        if self.local.lock().put_off(list_key, self.options.ttl / 4) {
            batch.push(&held, command("EXPIRE", &[&held, &self.ttl()]));
        }
        for member in &told.joined {
            batch.push(&held, command("SADD", &[&held, member]));
        }
        for &(at, tag, run) in &told.created {
            let place = stretch.above.1;
            let Some(above) = (if at == 0 { place } else { told.place(at - 1) }) else { continue };
            if Some(above) != hung(pieces, place, at) {
                let key = self.keys.run(&tag, &run);
                batch.script(&script::ADOPT, &[&key], &[&above.bytes()]);
            }
            let key = self.keys.run(&above.tag, &above.run);
            batch.script(&script::HANG, &[&key], &[&[above.offset]]);
        }
        batch
    }

    /// Notes what names mean now that only mean this, of the blocks that stay stored.
    fn remember(&self, stretch: &Stretch<'_>, told: &Told, stored: &[Link], status: &[u8]) {
        let mut local = self.local.lock();
        for (&(at, place), status) in told.unbound.iter().zip(status) {
            let Some(&link) = stored.get(at) else { break };
            let name = stretch.blocks[at].name;
            match status {
                b'1' => local.names.put(stretch.vocabulary, name, Spot { place, link }),
                b'2' => local.names.forget(stretch.vocabulary, name),
                _ => {}
            }
        }
    }

    /// Whether a space's birth is still that of the store that this client knows.
    pub(super) async fn same_store(&self, about: &[u8], birth: redis::Value) -> Result<(), Error> {
        if bytes(about, birth)? == self.opened().await?.birth {
            return Ok(());
        }
        self.local.lock().reopen();
        let text = "the store was emptied by somebody else: no worker has a home there any more";
        Err(Error::new(ErrorKind::UnknownWorker, text))
    }

    /// Whether a slot is still the worker's: another client may have retired it, and a store that lost its
    /// last changes may have given it to somebody else. What was just stored under it is nobody's then.
    fn same_slot(&self, stretch: &Stretch<'_>, worker: u32, owner: &[u8]) -> Result<(), Error> {
        if owner.get(..4) == Some(&worker.to_le_bytes()[..]) {
            return Ok(());
        }
        let mut local = self.local.lock();
        local.slots.retain(|_, slot| *slot != stretch.slot);
        if owner.is_empty() {
            let (space, slot) = (stretch.space, stretch.slot);
            local.dead.push(Dead { space, slot, worker });
        }
        let text = "what the worker held was cleared by another client, or the store has lost it: \
                    the same change again begins anew";
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// A script for each piece, and the piece's first run for the list of what the slot holds.
    fn store_scripts(
        &self,
        stretch: &Stretch<'_>,
        pieces: &[Piece],
        links: &[Link],
        held: &[u8],
    ) -> (Vec<Vec<u8>>, Batch) {
        let (mut batch, mut keys) = (Batch::new(), Vec::with_capacity(pieces.len()));
        let ttl = self.ttl();
        let copies = stretch.copies.to_string();
        let most = if stretch.most == 0 { 0 } else { MOST_NAMES }.to_string();
        for piece in pieces {
            let key = self.keys.run(&piece.tag, &piece.begin);
            let blocks = piece.from..piece.to;
            let (mut paths, mut names) = (Vec::new(), Vec::new());
            for (link, block) in links[blocks.clone()].iter().zip(&stretch.blocks[blocks]) {
                paths.extend_from_slice(&link.key);
                names.extend_from_slice(&name_bytes(block.name));
            }
            let segment = (links[piece.from].depth - 1) / SEGMENT;
            let above =
                if piece.from == 0 { stretch.above.0.key } else { links[piece.from - 1].key };
            let mut head = vec![1, 0];
            head.extend((segment as u32).to_le_bytes());
            head.extend(shape_bytes(stretch.shape));
            let hung = hung(pieces, stretch.above.1, piece.from);
            let hung = hung.filter(|_| piece.offset == 0).map(|p| p.bytes()).unwrap_or_default();
            let args: [&[u8]; 14] = [
                &piece.begin,
                &[piece.offset as u8],
                &above,
                &paths,
                &names,
                &stretch.vocabulary.to_le_bytes(),
                &stretch.slot.to_le_bytes(),
                &stretch.stamps.at(piece.from),
                copies.as_bytes(),
                &head,
                &ttl,
                &hung,
                most.as_bytes(),
                &piece.tag,
            ];
            let named = self.keys.names(&piece.tag, &piece.begin);
            batch.script(&script::STORE, &[&key, &named], &args);
            let run = [&piece.tag[..], &piece.begin].concat();
            batch.push(held, command("SADD", &[held, &run]));
            keys.push(key);
        }
        (keys, batch)
    }

    /// Takes back what was stored of a stretch from block `from` on.
    async fn untake(
        &self,
        stretch: &Stretch<'_>,
        parts: &[Part],
        from: usize,
    ) -> Result<(), Error> {
        for part in parts.iter().filter(|part| part.to > from) {
            let start = part.place.offset + from.saturating_sub(part.from) as u8;
            let offsets: Vec<u8> =
                (start..part.place.offset + (part.to - part.from) as u8).collect();
            for _ in 0..stretch.copies {
                self.take_from(stretch.space, stretch.slot, &part.place, &offsets, [0; 12]).await?;
            }
        }
        Ok(())
    }
}

fn pieces(above: &Link, place: Option<Place>, links: &[Link]) -> Vec<Piece> {
    let (mut pieces, mut from) = (Vec::new(), 0);
    while from < links.len() {
        let offset = (above.depth + from) % SEGMENT;
        let to = links.len().min(from + SEGMENT - offset);
        let tag = links[from].tag;
        let begin = match place {
            Some(place) if offset > 0 => place.run,
            _ => first(&tag),
        };
        pieces.push(Piece { tag, begin, offset, from, to });
        from = to;
    }
    pieces
}

/// Where the block before block `at` of a stretch is, as far as its client knows: in the run that its
/// piece begins in.
fn hung(pieces: &[Piece], above: Option<Place>, at: usize) -> Option<Place> {
    let Some(before) = pieces.iter().find(|piece| piece.to == at) else { return above };
    Some(Place { tag: before.tag, run: before.begin, offset: (SEGMENT - 1) as u8 })
}
