//! Blocks that become resident.

use super::chain::{Key, Link, SEGMENT, Tag, first, shape_bytes};
use super::local::{Dead, Member};
use super::meaning::{Fit, GROUPS, bucket, name_bytes};
use super::place::{Place, Spot};
use super::reply::{bytes, damaged, list, value};
use super::run::holds;
use super::{Batch, RedisIndex, command, next, script};
use crate::block::{Name, Shape};
use crate::error::{Error, ErrorKind};
use crate::index::{Applied, Block, Change, MOST_MEANINGS, MOST_NAMES, Parent, Store};

/// Marks what a change did, so that it does it once: the batch's number and the place in it, both
/// big-endian. Zeros mark nothing.
pub(super) type Stamp = [u8; 12];

/// Stamps of one batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamps {
    seq: Option<u64>,
    base: u32,
}

impl Stamps {
    pub(super) fn at(&self, step: usize) -> Stamp {
        let mut stamp = [0; 12];
        if let Some(seq) = self.seq {
            stamp[..8].copy_from_slice(&(seq + 1).to_be_bytes());
            stamp[8..].copy_from_slice(&self.base.saturating_add(step as u32).to_be_bytes());
        }
        stamp
    }
}

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
struct Piece {
    tag: Tag,
    begin: Key,
    offset: usize,
    from: usize,
    to: usize,
}

/// Blocks of a piece in one run.
#[derive(Clone, Copy)]
struct Part {
    place: Place,
    from: usize,
    to: usize,
}

impl RedisIndex {
    pub(super) async fn apply_stamped(
        &self,
        member: &Member,
        changes: &[Change<'_>],
        seq: Option<u64>,
    ) -> Result<Applied, Error> {
        self.sweep().await?;
        let (mut applied, mut stamps) = (Applied::default(), Stamps { seq, base: 0 });
        for change in changes {
            let steps = match change {
                Change::Store(store) => {
                    self.store(member, store, stamps, &mut applied).await?;
                    store.blocks.len()
                }
                Change::Remove { group, tier, names } => {
                    let slot = self.slot(member, *group, *tier).await?;
                    self.take(member, slot, names, stamps, &mut applied).await?;
                    names.len()
                }
                Change::Clear { tier } => {
                    self.retire(member, *tier, false).await?;
                    0
                }
            };
            stamps.base = stamps.base.saturating_add(steps as u32 + 2);
        }
        Ok(applied)
    }

    async fn store(
        &self,
        member: &Member,
        store: &Store<'_>,
        stamps: Stamps,
        applied: &mut Applied,
    ) -> Result<(), Error> {
        let Store { shape, blocks, .. } = *store;
        // A parent that the worker does not hold is counted, by the first block.
        let told = match store.parent {
            Parent::Block(name) if blocks.first().is_some_and(|b| b.digest.is_some()) => Some(name),
            _ => None,
        };
        let slot = self.slot(member, store.group, store.tier).await?;
        // A client that has remembered a parent which is gone finds out and asks again.
        let mut remembered = true;
        'again: loop {
            let mut above = match store.parent {
                Parent::Root => Some(self.root(member, shape).await?),
                Parent::Block(name) => {
                    let mut spot = self.parent(member, name, shape, remembered).await?;
                    if spot.is_none() && remembered {
                        let last = self.local.lock().last.get(&member.worker).copied();
                        let is_it = |last: &(u32, Name, Spot)| {
                            (last.0, last.1) == (member.vocabulary, name)
                        };
                        spot = last.filter(is_it).map(|last| last.2);
                    }
                    spot.map(|spot| (spot.link, Some(spot.place)))
                }
                Parent::Unknown => None,
            };
            let mut at = 0;
            while let Some(block) = blocks.get(at) {
                let stamps = Stamps { base: stamps.base.saturating_add(at as u32), ..stamps };
                let Some(placed) = above.filter(|_| block.digest.is_some()) else {
                    if let Some(name) = told.filter(|_| at == 0)
                        && !self.waits(member, name).await?
                    {
                        applied.unknown_parents += 1;
                    }
                    let above_name = match (at, store.parent) {
                        (0, Parent::Block(name)) => Some(name),
                        (0, _) => None,
                        (at, _) => Some(blocks[at - 1].name),
                    };
                    let link = block.digest.filter(|_| above.is_none()).zip(above_name);
                    let link = link.map(|(digest, parent)| (shape, parent, digest));
                    let fit = match block.digest {
                        Some(digest) if link.is_some() => Fit::Content(shape, digest),
                        _ => Fit::Any,
                    };
                    let own = self.own_slots(member);
                    let (spot, means) = self.meaning(member, &own, block.name, fit).await?;
                    match spot {
                        Some(spot) => {
                            self.hold(member.space, slot, stamps.at(0), 1, &spot.place).await?;
                            applied.stored += 1;
                        }
                        None => {
                            let held = self
                                .wait(member, slot, stamps.at(0), block.name, link, means)
                                .await?;
                            match held {
                                true => {
                                    applied.stored += 1;
                                    applied.unplaced += 1;
                                }
                                false => applied.refused += 1,
                            }
                        }
                    }
                    above = spot.map(|spot| (spot.link, Some(spot.place)));
                    at += 1;
                    continue;
                };
                let known = blocks[at..].iter().take_while(|b| b.digest.is_some()).count();
                // Who waits for the first of two blocks with one name comes before the second, so one by one.
                let n = if distinct(&blocks[at..at + known]) { known } else { 1 };
                let asks =
                    if at == 0 && told.is_some() { self.own_slots(member) } else { Vec::new() };
                let stretch = Stretch {
                    space: member.space,
                    vocabulary: member.vocabulary,
                    above: placed,
                    shape,
                    blocks: &blocks[at..at + n],
                    slot,
                    copies: 1,
                    stamps,
                    most: MOST_MEANINGS,
                    worker: Some(member.worker),
                    asks: &asks,
                };
                let Some(laid) = self.lay(&stretch).await? else {
                    if at == 0 && remembered {
                        remembered = false;
                        if let Parent::Block(name) = store.parent {
                            self.local.lock().names.forget(member.vocabulary, name);
                        }
                        continue 'again;
                    }
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the block that others were to be stored behind went away meanwhile",
                    ));
                };
                if at == 0 && told.is_some() && !laid.above_held {
                    applied.unknown_parents += 1;
                }
                self.settle(member, laid.waiting.into_iter().collect()).await?;
                applied.stored += laid.stored as u64;
                if laid.stored < n {
                    applied.refused += (blocks.len() - at - laid.stored) as u64;
                    return Ok(());
                }
                if let Some(last) = laid.last {
                    let last = (member.vocabulary, blocks[at + n - 1].name, last);
                    self.local.lock().last.insert(member.worker, last);
                }
                above = laid.last.map(|spot| (spot.link, Some(spot.place)));
                at += n;
            }
            return Ok(());
        }
    }

    async fn root(&self, member: &Member, shape: Shape) -> Result<(Link, Option<Place>), Error> {
        let opened = self.opened().await?;
        let space = self.local.lock().texts.space(member.home.space);
        Ok((opened.chain.root(space.as_bytes(), shape), None))
    }

    /// Stores a stretch; `None` if what it hangs on is not there.
    pub(super) async fn lay(&self, stretch: &Stretch<'_>) -> Result<Option<Laid>, Error> {
        let opened = self.opened().await?;
        let (above, place) = stretch.above;
        let mut links = Vec::with_capacity(stretch.blocks.len());
        let mut link = above;
        for block in stretch.blocks {
            let Some(digest) = block.digest else { break };
            link = opened.chain.next(&link, digest);
            links.push(link);
        }
        let Some(&last_link) = links.last() else { return Ok(Some(Laid::default())) };
        let pieces = pieces(&above, place, &links);
        let held = self.keys.held(stretch.space, stretch.slot);
        let (keys, mut batch) = self.store_scripts(stretch, &pieces, &links, &held);
        let about = self.keys.space(stretch.space);
        batch.push(&about, command("HGET", &[&about, b"b"]));
        let table = self.keys.table(stretch.space);
        if stretch.worker.is_some() {
            let field = [b"s", &stretch.slot.to_le_bytes()[..]].concat();
            batch.push(&table, command("HGET", &[&table, &field]));
        }
        let asked = place.filter(|_| !stretch.asks.is_empty());
        if let Some(above) = &asked {
            let key = self.keys.run(&above.tag, &above.run);
            let mut ask = command("HMGET", &[&key]);
            for slot in stretch.asks {
                ask.arg(&slot.to_le_bytes()[..]);
            }
            batch.push(&key, ask);
        }
        let mut replies = self.send(batch).await?;
        let mut parts: Vec<Part> = Vec::with_capacity(pieces.len());
        let (mut unbound, mut created) = (Vec::new(), Vec::new());
        let (mut blocks_made, mut entries, mut gone, mut full) = (0, 0, false, None);
        batch = Batch::new();
        let list_key = (u32::MAX, stretch.space, stretch.slot);
        if self.local.lock().put_off(list_key, self.options.ttl / 4) {
            batch.push(&held, command("EXPIRE", &[&held, &self.ttl()]));
        }
        for (key, piece) in keys.iter().zip(&pieces) {
            let reply = bytes(key, value(key, next(&mut replies))?)?;
            value(&held, next(&mut replies))?;
            let Some((&made, mut rest)) = reply.split_first() else {
                gone = true;
                continue;
            };
            if made == 1 {
                created.push((piece.from, piece.tag, piece.begin));
            }
            while !rest.is_empty() {
                let (head, names) =
                    rest.split_at_checked(14).ok_or_else(|| damaged(key, "part"))?;
                let &[offset, blocks, made, gained, flags, count] = &head[8..] else {
                    return Err(damaged(key, "part"));
                };
                let run: Key = head[..8].try_into().map_err(|_| damaged(key, "part"))?;
                let from = piece.from + usize::from(offset) - piece.offset;
                let part = Part {
                    place: Place { tag: piece.tag, run, offset },
                    from,
                    to: from + usize::from(blocks),
                };
                blocks_made += i64::from(made);
                entries += i64::from(gained);
                let (names, after) =
                    names.split_at_checked(count.into()).ok_or_else(|| damaged(key, "part"))?;
                if flags & 4 != 0
                    && let Some(&last) = names.last()
                {
                    let at = piece.from + usize::from(last);
                    full = Some(full.map_or(at, |full: usize| full.min(at)));
                }
                for &name in names {
                    let at = piece.from + usize::from(name);
                    let offset = part.place.offset + (at - from) as u8;
                    unbound.push((at, Place { offset, ..part.place }));
                }
                if flags & 2 != 0 && run != piece.begin {
                    let member = [&piece.tag[..], &run].concat();
                    batch.push(&held, command("SADD", &[&held, &member]));
                }
                parts.push(part);
                rest = after;
            }
        }
        self.same_store(&about, value(&about, next(&mut replies))?).await?;
        if let Some(worker) = stretch.worker {
            let owner = bytes(&table, value(&table, next(&mut replies))?)?;
            self.same_slot(stretch, worker, &owner)?;
        }
        let mut above_held = false;
        if let Some(above) = &asked {
            let key = self.keys.run(&above.tag, &above.run);
            for holder in list(&key, value(&key, next(&mut replies))?)? {
                above_held |= holds(&bytes(&key, holder)?, above.offset);
            }
        }
        self.local.lock().changed(stretch.space, blocks_made, entries);
        if gone {
            self.untake(stretch, &parts, 0).await?;
            return Ok(None);
        }
        parts.sort_unstable_by_key(|part| part.from);
        unbound.sort_unstable_by_key(|(at, _)| *at);
        // A block that has all the names it may have is refused, and so is what comes after it.
        let beyond = unbound.partition_point(|(at, _)| full.is_none_or(|full| *at < full));
        let beyond = unbound.split_off(beyond);
        let place_of = |at: usize| {
            let part = parts.iter().find(|part| (part.from..part.to).contains(&at))?;
            Some(Place { offset: part.place.offset + (at - part.from) as u8, ..part.place })
        };
        for (at, tag, run) in created {
            let above = if at == 0 { place } else { place_of(at - 1) };
            if let Some(above) = above {
                if Some(above) != hung(&pieces, place, at) {
                    let key = self.keys.run(&tag, &run);
                    batch.script(&script::ADOPT, &[&key], &[&above.bytes()]);
                }
                let key = self.keys.run(&above.tag, &above.run);
                batch.script(&script::HANG, &[&key], &[&[above.offset]]);
            }
        }
        let names: Vec<(Name, Place)> =
            unbound.iter().map(|&(at, place)| (stretch.blocks[at].name, place)).collect();
        let check = |reply| value(&held, reply).map(drop);
        let bound = self.bind(batch, check, stretch.vocabulary, &names, stretch.most).await?;
        let refused = bound.status.iter().position(|&s| s == b'3').map(|n| unbound[n].0).or(full);
        let stored = refused.unwrap_or(stretch.blocks.len());
        {
            let mut local = self.local.lock();
            for (n, &(at, place)) in unbound.iter().enumerate().filter(|(_, (at, _))| *at < stored)
            {
                match bound.status[n] {
                    b'1' => {
                        let spot = Spot { place, link: links[at] };
                        local.names.put(stretch.vocabulary, stretch.blocks[at].name, spot);
                    }
                    b'2' => local.names.forget(stretch.vocabulary, stretch.blocks[at].name),
                    _ => {}
                }
            }
        }
        if refused.is_some() {
            let mut back: Vec<(Name, Place, bool)> = (0..names.len())
                .filter(|&n| unbound[n].0 >= stored && bound.status[n] != b'0')
                .map(|n| (names[n].0, names[n].1, bound.status[n] != b'3'))
                .collect();
            let after = beyond.iter().filter(|(at, _)| full.is_some_and(|full| *at > full));
            back.extend(after.map(|&(at, place)| (stretch.blocks[at].name, place, false)));
            self.unname(stretch.vocabulary, &back).await?;
            self.untake(stretch, &parts, stored).await?;
        }
        let mut laid = Laid { stored, above_held, ..Laid::default() };
        laid.last = match place_of(stretch.blocks.len() - 1) {
            Some(place) if refused.is_none() => Some(Spot { place, link: last_link }),
            _ => None,
        };
        for (n, name) in bound.waiting {
            if unbound[n].0 < stored {
                laid.waiting.push(name);
            }
        }
        Ok(Some(laid))
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
            let paths: Vec<u8> = links[blocks.clone()].iter().flat_map(|link| link.key).collect();
            let names: Vec<u8> =
                stretch.blocks[blocks].iter().flat_map(|b| name_bytes(b.name)).collect();
            let segment = (links[piece.from].depth - 1) / SEGMENT;
            let above =
                if piece.from == 0 { stretch.above.0.key } else { links[piece.from - 1].key };
            let mut head = vec![1, 0];
            head.extend((segment as u32).to_le_bytes());
            head.extend(shape_bytes(stretch.shape));
            let offset = piece.offset.to_string();
            let hung = hung(pieces, stretch.above.1, piece.from);
            let hung = hung.filter(|_| piece.offset == 0).map(|p| p.bytes()).unwrap_or_default();
            let args: [&[u8]; 16] = [
                &self.keys.runs(&piece.tag),
                &self.keys.named(&piece.tag),
                &piece.tag,
                &piece.begin,
                offset.as_bytes(),
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
            ];
            let named = self.keys.names(&piece.tag, &piece.begin);
            batch.script(&script::STORE, &[&key, &named], &args);
            let run = [&piece.tag[..], &piece.begin].concat();
            batch.push(held, command("SADD", &[held, &run]));
            keys.push(key);
        }
        (keys, batch)
    }

    /// Binds names: the usual first meaning by a plain command, and a script for what is left of a group.
    /// `batch` is sent with it; `others` gets the replies to what was in it.
    async fn bind(
        &self,
        mut batch: Batch,
        mut others: impl FnMut(Result<redis::Value, super::link::Fault>) -> Result<(), Error>,
        vocabulary: u32,
        names: &[(Name, Place)],
        most: usize,
    ) -> Result<Bound, Error> {
        let buckets = self.opened().await?.buckets;
        let mut bound = Bound { status: vec![b'0'; names.len()], ..Bound::default() };
        let mut groups: Vec<Vec<(usize, u32)>> = vec![Vec::new(); GROUPS as usize];
        for (n, (name, _)) in names.iter().enumerate() {
            let (group, bucket) = bucket(*name, buckets);
            groups[group as usize].push((n, bucket));
        }
        let (first, ttl, mut keys) = (batch.len(), self.ttl(), Vec::with_capacity(names.len()));
        for (group, of) in (0..).zip(&groups).filter(|(_, of)| !of.is_empty()) {
            for &(n, bucket) in of {
                let key = self.keys.bucket(vocabulary, group, bucket);
                let (name, place) = names[n];
                let meaning = place.bytes();
                batch.push(&key, command("HSETNX", &[&key, &name_bytes(name), &meaning]));
                let mark = (vocabulary, group, bucket);
                let put_off = self.local.lock().put_off(mark, self.options.ttl / 4);
                if put_off {
                    batch.push(&key, command("EXPIRE", &[&key, &ttl]));
                }
                keys.push((n, key, put_off));
            }
            // After the names, in their slot: who waits and did not see them is seen here.
            let unplaced = self.keys.unplaced(vocabulary, group);
            let waiting = self.keys.waiting(vocabulary, group);
            batch.push(&unplaced, command("EXISTS", &[&unplaced, &waiting]));
        }
        let (mut replies, mut keys) = (self.send(batch).await?, keys.into_iter());
        for _ in 0..first {
            others(next(&mut replies))?;
        }
        let (mut batch, mut order) = (Batch::new(), Vec::new());
        for (group, of) in (0..).zip(groups).filter(|(_, of)| !of.is_empty()) {
            let mut left = Vec::new();
            for (&(n, bucket), (_, key, put_off)) in of.iter().zip(keys.by_ref()) {
                match super::reply::int(&key, value(&key, next(&mut replies))?)? {
                    1 => bound.status[n] = b'1',
                    _ => left.push((n, bucket)),
                }
                if put_off {
                    value(&key, next(&mut replies))?;
                }
            }
            let unplaced = self.keys.unplaced(vocabulary, group);
            if super::reply::int(&unplaced, value(&unplaced, next(&mut replies))?)? > 0 {
                left = of;
            }
            if left.is_empty() {
                continue;
            }
            let mut args =
                vec![self.keys.buckets(vocabulary, group), most.to_string().into_bytes()];
            for &(n, bucket) in &left {
                let (name, place) = names[n];
                args.push(bucket.to_string().into_bytes());
                args.extend([name_bytes(name).to_vec(), place.bytes()]);
            }
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            let waiting = self.keys.waiting(vocabulary, group);
            batch.script(&script::BIND, &[&unplaced, &waiting], &args);
            order.push((unplaced, left.into_iter().map(|(n, _)| n).collect::<Vec<usize>>()));
        }
        let mut replies = self.send(batch).await?;
        for (key, of) in &order {
            bound.read(key, of, names, value(key, next(&mut replies))?)?;
        }
        bound.waiting.sort_by_key(|(n, _)| *n);
        Ok(bound)
    }

    /// Binds one name without limit; gives the names that wait for it.
    pub(super) async fn bind_one(
        &self,
        vocabulary: u32,
        name: Name,
        place: &Place,
    ) -> Result<Vec<Name>, Error> {
        let none = |_| Ok(());
        let bound = self.bind(Batch::new(), none, vocabulary, &[(name, *place)], 0).await?;
        self.local.lock().names.forget(vocabulary, name);
        Ok(bound.waiting.into_iter().map(|(_, name)| name).collect())
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

    /// Names that were refused after all; the last of each says whether it was bound meanwhile.
    async fn unname(&self, vocabulary: u32, names: &[(Name, Place, bool)]) -> Result<(), Error> {
        let runs = self.runs(names.iter().map(|(_, p, _)| (p.tag, p.run))).await?;
        let mut batch = Batch::new();
        for (name, place, _) in names {
            let Some(run) = runs.get(&(place.tag, place.run)) else { continue };
            let key = self.keys.names(&place.tag, &place.run);
            let (start, offset) = (run.start.to_string(), place.offset.to_string());
            let args: [&[u8]; 4] = [
                &vocabulary.to_le_bytes(),
                start.as_bytes(),
                offset.as_bytes(),
                &name_bytes(*name),
            ];
            batch.script(&script::UNNAME, &[&key], &args);
        }
        let key = self.keys.meta();
        for reply in self.send(batch).await? {
            value(&key, reply)?;
        }
        let bound = names.iter().filter(|(.., bound)| *bound);
        self.unbind(bound.map(|(name, place, _)| (vocabulary, *name, *place)).collect()).await
    }

    /// More copies of a block that has a place.
    pub(super) async fn hold(
        &self,
        space: u32,
        slot: u32,
        stamp: Stamp,
        copies: u32,
        place: &Place,
    ) -> Result<bool, Error> {
        let key = self.keys.run(&place.tag, &place.run);
        let held = self.keys.held(space, slot);
        let copies = copies.to_string();
        let mut batch = Batch::new();
        let args: [&[u8]; 4] = [&slot.to_le_bytes(), &stamp, copies.as_bytes(), &[place.offset]];
        batch.script(&script::HOLD, &[&key], &args);
        batch.push(&held, command("SADD", &[&held, &[&place.tag[..], &place.run].concat()]));
        let mut replies = self.send(batch).await?;
        let reply = list(&key, value(&key, next(&mut replies))?)?;
        let [hits, gained, _]: [redis::Value; 3] =
            reply.try_into().map_err(|_| damaged(&key, "answer"))?;
        let gained = super::reply::int(&key, gained)?;
        self.local.lock().changed(space, 0, gained);
        Ok(bytes(&key, hits)? == b"1")
    }
}

/// Whether no two of them have one name.
fn distinct(blocks: &[Block]) -> bool {
    let mut names: Vec<Name> = blocks.iter().map(|block| block.name).collect();
    names.sort_unstable();
    names.windows(2).all(|pair| pair[0] != pair[1])
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

/// What became of names that were to be bound.
#[derive(Default)]
struct Bound {
    /// As the script says it, for each name.
    status: Vec<u8>,
    /// By number of the name: what waits for it. In the order of the names.
    waiting: Vec<(usize, Name)>,
}

impl Bound {
    /// From the script's answer about some of the names.
    fn read(
        &mut self,
        key: &[u8],
        of: &[usize],
        names: &[(Name, Place)],
        reply: redis::Value,
    ) -> Result<(), Error> {
        let bad = || damaged(key, "answer");
        let parts = list(key, reply)?;
        let [status, waiting]: [redis::Value; 2] = parts.try_into().map_err(|_| bad())?;
        let status = bytes(key, status)?;
        if status.len() != of.len() {
            return Err(bad());
        }
        for (&n, &status) in of.iter().zip(&status) {
            // What the plain command bound is bound before to the script.
            if self.status[n] != b'1' {
                self.status[n] = status;
            }
        }
        for one in list(key, waiting)? {
            let parts = list(key, one)?;
            let [n, unplaced, waiters]: [redis::Value; 3] = parts.try_into().map_err(|_| bad())?;
            let n = usize::try_from(super::reply::int(key, n)?).ok();
            let n = *n.and_then(|n| of.get(n)).ok_or_else(bad)?;
            if !bytes(key, unplaced)?.is_empty() {
                self.waiting.push((n, names[n].0));
            }
            for name in bytes(key, waiters)?.chunks_exact(8) {
                let name: [u8; 8] = name.try_into().map_err(|_| bad())?;
                self.waiting.push((n, Name(u64::from_le_bytes(name))));
            }
        }
        Ok(())
    }
}
