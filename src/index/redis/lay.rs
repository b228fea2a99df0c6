//! Stretches of blocks that become resident: laid into runs, segment by segment.

use std::ops::Range;
use std::time::Instant;

use super::called::{Called, resolved};
use super::chain::{ChainKey, Key, Link, SEGMENT, Tag, first, shape_bytes};
use super::join::{Way, proof};
use super::local::{Dead, Opened};
use super::meaning::{group, name_bytes};
use super::place::{Meaning, Place, Spot};
use super::read::present;
use super::reply::{bytes, damaged, int, list, value};
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
    /// Whether its name means nothing else, as far as it was asked.
    pub(super) alone: bool,
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
    /// Runs that were made at the beginning of a segment, and which what they hang on does not know of: the
    /// number of their first block, tag, run.
    created: Vec<(usize, Tag, Key)>,
    /// Numbers of the blocks whose names are new to their runs.
    pub(super) unbound: Vec<(usize, Place)>,
    /// Blocks that this very change had stored before: their names may be bound.
    repeated: Vec<Range<usize>>,
    /// Numbers of the blocks whose names got their first meaning with that.
    pub(super) bound: Vec<(usize, Place)>,
    /// Runs that the slot holds something of since now, but for those in which the pieces begin.
    joined: Vec<Vec<u8>>,
    made: i64,
    entries: i64,
    /// What the stretch hangs on is not there.
    gone: bool,
    /// The first block that has all the names it may have.
    full: Option<usize>,
    above_held: bool,
    /// What the last block's name meant, where that was asked and was nothing of another run.
    meant: Option<Vec<Place>>,
    /// The server took no script that touches several slots.
    apart: bool,
}

impl Told {
    /// A piece that was to be joined, and whether it was.
    fn join(&mut self, piece: &Piece, is_so: bool) {
        if is_so {
            let place = Place { tag: piece.tag, run: piece.begin, offset: piece.offset as u8 };
            self.parts.push(Part { place, from: piece.from, to: piece.to });
            self.entries += (piece.to - piece.from) as i64;
        }
    }

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
            let at = |at: usize| (at, Place { offset: offset + (at - from) as u8, ..place });
            if flags & 1 != 0 {
                self.repeated.push(from..to);
            }
            if flags & 8 != 0 {
                self.unbound.extend((from..to).map(at));
            } else {
                self.unbound.extend(names.iter().map(named).map(at));
            }
            if flags & 16 != 0 {
                let unbound = |n: &usize| names.iter().any(|name| named(name) == *n);
                self.bound.extend((from..to).filter(|n| !unbound(n)).map(at));
            }
            if flags & 2 != 0 && run != piece.begin {
                self.joined.push([&piece.tag[..], &run].concat());
            }
            rest = after;
        }
        Ok(())
    }

    /// Whether the run in which a piece begins has all of it.
    pub(super) fn has(&self, piece: &Piece) -> bool {
        let whole = |part: &Part| {
            (part.from, part.to) == (piece.from, piece.to) && part.place.run == piece.begin
        };
        self.parts.iter().any(whole)
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
        if told.gone {
            self.untake(stretch, &told.parts, 0).await?;
            return Ok(None);
        }
        told.parts.sort_unstable_by_key(|part| part.from);
        told.unbound.sort_unstable_by_key(|(at, _)| *at);
        // A block that has all the names it may have is refused, and so is what comes after it.
        let beyond = told.unbound.partition_point(|(at, _)| told.full.is_none_or(|f| *at < f));
        let beyond = told.unbound.split_off(beyond);
        let again = |at: &usize| told.repeated.iter().any(|part| part.contains(at));
        let names: Vec<(Name, Place, bool)> = told
            .unbound
            .iter()
            .map(|(at, place)| (stretch.blocks[*at].name, *place, again(at)))
            .collect();
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
            // Some may be bound: those before one that means something else.
            back.extend(after.map(|&(at, place)| (stretch.blocks[at].name, place, true)));
            self.unname(stretch.vocabulary, &back).await?;
            self.untake(stretch, &told.parts, stored).await?;
        }
        let last = told.place(stretch.blocks.len() - 1).filter(|_| refused.is_none());
        let waiting = bound.waiting.into_iter().filter(|(n, _)| told.unbound[*n].0 < stored);
        // Until who stored the run first has bound its names, they mean nothing yet.
        let alone = told.meant.is_some_and(|meant| meant.iter().all(|place| last == Some(*place)));
        Ok(Some(Laid {
            stored,
            alone,
            last: last.map(|place| Spot { place, link }),
            waiting: waiting.map(|(_, name)| name).collect(),
            above_held: told.above_held,
        }))
    }

    /// Stores each piece in its segment.
    async fn store_pieces(
        &self,
        stretch: &Stretch<'_>,
        pieces: &[Piece],
        links: &[Link],
    ) -> Result<Told, Error> {
        let (mut told, mut ways) = (Told::default(), self.ways(stretch, pieces, links));
        self.store_by(stretch, pieces, links, &ways, &mut told).await?;
        self.note_ends(stretch, pieces, links, &ways, &told);
        loop {
            let apart = std::mem::take(&mut told.apart);
            // What was not there to be joined is stored, and so is what was refused for its keys.
            for (way, piece) in ways.iter_mut().zip(pieces) {
                *way = match way {
                    Way::JoinProven | Way::Join if !told.has(piece) => Way::Store,
                    Way::Store if apart && told.place(piece.from).is_none() => Way::Store,
                    _ => Way::Done,
                };
            }
            if !ways.contains(&Way::Store) {
                return Ok(told);
            }
            told.meant = None;
            self.store_by(stretch, pieces, links, &ways, &mut told).await?;
        }
    }

    /// Stores pieces, each in its way, and asks whether the store and the slot are still what they were.
    async fn store_by(
        &self,
        stretch: &Stretch<'_>,
        pieces: &[Piece],
        links: &[Link],
        ways: &[Way],
        told: &mut Told,
    ) -> Result<(), Error> {
        let opened = self.opened().await?;
        let held = self.keys.held(stretch.space, stretch.slot);
        let at_once = self.stores_at_once(&opened);
        let (mut batch, mut sent) = (Batch::new(), Vec::with_capacity(pieces.len()));
        for (piece, &way) in pieces.iter().zip(ways) {
            match way {
                Way::JoinProven => {
                    self.join_proven_script(&mut batch, &opened.chain, stretch, piece, links)
                }
                Way::Join => self.join_script(&mut batch, stretch, piece, links),
                Way::Store => {
                    let of = (pieces, piece);
                    self.store_script(&mut batch, &opened.chain, stretch, of, links, at_once)
                }
                Way::Done => continue,
            }
            let run = [&piece.tag[..], &piece.begin].concat();
            batch.push(&held, command("SADD", &[&held, &run]));
            sent.push((self.keys.run(&piece.tag, &piece.begin), piece, way));
        }
        let about = self.keys.space(stretch.space);
        // Without a slot to ask for, nothing else says whether the store was emptied.
        let compares = stretch.worker.is_none() || !self.local.lock().is_born(stretch.space);
        if compares {
            batch.push(&about, command("HGET", &[&about, b"b"]));
        }
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
        let meanings = self.unsure(stretch, ways).zip(pieces.last()).map(|(name, piece)| {
            let group = group(name, opened.groups);
            let key = self.keys.meanings(stretch.vocabulary, group);
            batch.push(&key, command("HGET", &[&key, &name_bytes(name)]));
            let run = (&piece.tag, &piece.begin);
            let named = Called::ask(&mut batch, &self.keys, stretch.vocabulary, run);
            (name, (piece.tag, piece.begin), key, named)
        });
        let mut replies = self.send(batch).await?;
        for (key, piece, way) in sent {
            let reply = next(&mut replies);
            let refused = at_once && matches!(&reply, Err(fault) if fault.is_of_several_slots());
            if refused && way == Way::Store {
                told.apart = true;
                self.local.lock().slots_apart = true;
            } else {
                let reply = value(&key, reply)?;
                match way.joins() {
                    true => told.join(piece, int(&key, reply)? == 1),
                    false => {
                        let from = told.bound.len();
                        told.read(&key, piece, &bytes(&key, reply)?)?;
                        // Now, as nobody else has found out what they mean and made it known here yet.
                        let mut local = self.local.lock();
                        for &(at, place) in &told.bound[from..] {
                            let spot = Spot { place, link: links[at] };
                            local.names.put(stretch.vocabulary, stretch.blocks[at].name, spot);
                        }
                    }
                }
            }
            value(&held, next(&mut replies))?;
        }
        if compares {
            self.same_store(&opened, &about, value(&about, next(&mut replies))?)?;
            self.local.lock().born.insert(stretch.space, Instant::now());
        }
        if let Some(worker) = stretch.worker {
            let owner = bytes(&table, value(&table, next(&mut replies))?)?;
            self.same_slot(&opened, stretch, worker, &owner).await?;
        }
        if let Some((key, offset)) = &asked {
            for holder in list(key, value(key, next(&mut replies))?)? {
                told.above_held |= holds(&bytes(key, holder)?, *offset);
            }
        }
        let (made, entries) = (std::mem::take(&mut told.made), std::mem::take(&mut told.entries));
        self.local.lock().changed(stretch.space, made, entries);
        // Where its server is away, whoever needs it asks again: the blocks are stored.
        if let Some((name, run, key, named)) = meanings {
            let (meant, called) = (present(next(&mut replies)), present(next(&mut replies)));
            if let (Some(reply), Some(called)) = (meant, called) {
                let meant = Meaning::list(&bytes(&key, value(&key, reply)?)?);
                let meant = meant.ok_or_else(|| damaged(&key, "list of meanings"))?;
                // It is joined, so its run is the segment's first.
                let called = Called::read(&named, run, 0, value(&named, called)?)?;
                let is_own = |meaning: &Meaning| meaning.run() == run;
                told.meant = meant
                    .iter()
                    .all(is_own)
                    .then(|| resolved(&meant, name, |of| (*of == run).then_some(&called)));
            }
        }
        Ok(())
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

    /// Whether one script may touch a run, the run above it, and what its names mean, which lie in different slots.
    fn stores_at_once(&self, opened: &Opened) -> bool {
        !self.link.is_cluster() && opened.groups == 1 && !self.local.lock().slots_apart
    }

    /// Notes what names mean now that only mean this, of the blocks that stay stored.
    fn remember(&self, stretch: &Stretch<'_>, told: &Told, stored: &[Link], status: &[u8]) {
        let mut local = self.local.lock();
        for (&(at, place), status) in told.unbound.iter().zip(status) {
            let Some(&link) = stored.get(at) else { break };
            let name = stretch.blocks[at].name;
            let remembered = local.names.get(stretch.vocabulary, name);
            match status {
                b'1' => local.names.put(stretch.vocabulary, name, Spot { place, link }),
                b'2' => local.names.forget(stretch.vocabulary, name),
                // It means this, and perhaps no longer what is remembered.
                b'0' if remembered.is_some_and(|spot| spot.place != place) => {
                    local.names.forget(stretch.vocabulary, name);
                }
                _ => {}
            }
        }
    }

    /// Whether a space's birth is that of the store that this client knew when it asked.
    pub(super) fn same_store(
        &self,
        opened: &Opened,
        about: &[u8],
        birth: redis::Value,
    ) -> Result<(), Error> {
        if bytes(about, birth)? == opened.birth {
            return Ok(());
        }
        let mut local = self.local.lock();
        // Unless another call has noticed: what is remembered since is of the store that is there now.
        if local.same_store(opened).is_ok() {
            local.reopen();
        }
        let text = "the store was emptied by somebody else: no worker has a home there any more";
        Err(Error::new(ErrorKind::UnknownWorker, text))
    }

    /// Whether a slot is still the worker's: another client may have retired it, and a store that lost its
    /// last changes may have given it to somebody else. What was just stored under it is nobody's then.
    async fn same_slot(
        &self,
        opened: &Opened,
        stretch: &Stretch<'_>,
        worker: u32,
        owner: &[u8],
    ) -> Result<(), Error> {
        if owner.get(..4) == Some(&worker.to_le_bytes()[..]) {
            return Ok(());
        }
        let about = self.keys.space(stretch.space);
        let birth = self.ask(&about, command("HGET", &[&about, b"b"])).await?;
        self.same_store(opened, &about, birth)?;
        let mut local = self.local.lock();
        local.took_from(worker);
        local.slots.retain(|_, slot| *slot != stretch.slot);
        if owner.is_empty() {
            let (space, slot) = (stretch.space, stretch.slot);
            local.dead.push(Dead { space, slot, worker });
        }
        let text = "what the worker held was cleared by another client, or the store has lost it: \
                    the same change again begins anew";
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// The script that stores a piece.
    fn store_script(
        &self,
        batch: &mut Batch,
        chain: &ChainKey,
        stretch: &Stretch<'_>,
        (pieces, piece): (&[Piece], &Piece),
        links: &[Link],
        at_once: bool,
    ) {
        let proven = match piece.offset {
            0 => proof(chain, stretch, piece, links).to_vec(),
            _ => Vec::new(),
        };
        let ttl = self.ttl();
        let copies = stretch.copies.to_string();
        let most = if stretch.most == 0 { 0 } else { MOST_NAMES }.to_string();
        let mut paths = Vec::with_capacity(8 * (piece.to - piece.from));
        links[piece.from..piece.to].iter().for_each(|link| paths.extend_from_slice(&link.key));
        let above = if piece.from == 0 { stretch.above.0.key } else { links[piece.from - 1].key };
        let hung = hung(pieces, stretch.above.1, piece.from);
        let above_run = hung.filter(|_| piece.offset == 0);
        let hung = above_run.map(|place| place.bytes()).unwrap_or_default();
        let args: [&[u8]; 15] = [
            &piece.begin,
            &[piece.offset as u8],
            &above,
            &paths,
            &names(stretch, piece),
            &stretch.vocabulary.to_le_bytes(),
            &stretch.slot.to_le_bytes(),
            &stretch.stamps.at(piece.from),
            copies.as_bytes(),
            &head(stretch, piece, links),
            &ttl,
            &hung,
            most.as_bytes(),
            &piece.tag,
            &proven,
        ];
        let key = self.keys.run(&piece.tag, &piece.begin);
        let named = self.keys.names(&piece.tag, &piece.begin);
        if !at_once {
            return batch.script(&script::STORE, &[&key, &named], &args);
        }
        let meanings = self.keys.meanings(stretch.vocabulary, 0);
        let unplaced = self.keys.unplaced(stretch.vocabulary, 0);
        let waiting = self.keys.waiting(stretch.vocabulary, 0);
        let mut keys: Vec<&[u8]> = vec![&key, &named, &meanings, &unplaced, &waiting];
        let above = above_run.map(|above| self.keys.run(&above.tag, &above.run));
        keys.extend(above.as_deref());
        batch.script_across(&script::STORE, &keys, &args);
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

/// The names of a piece's blocks, one after the other.
pub(super) fn names(stretch: &Stretch<'_>, piece: &Piece) -> Vec<u8> {
    let mut names = Vec::with_capacity(8 * (piece.to - piece.from));
    let blocks = &stretch.blocks[piece.from..piece.to];
    blocks.iter().for_each(|block| names.extend_from_slice(&name_bytes(block.name)));
    names
}

/// What the first run of a piece's segment has as its head.
pub(super) fn head(stretch: &Stretch<'_>, piece: &Piece, links: &[Link]) -> [u8; 18] {
    let first = &links[piece.from];
    let segment = (first.depth - 1) / SEGMENT;
    let mut head = [0; 18];
    head[0] = 1;
    head[2..6].copy_from_slice(&(segment as u32).to_le_bytes());
    head[6..14].copy_from_slice(&shape_bytes(stretch.shape));
    head[14..].copy_from_slice(&first.rest);
    head
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
