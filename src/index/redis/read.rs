//! Lookups.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use redis::Value;

use super::chain::{Key, Link, SEGMENT, first, shape_bytes};
use super::link::Fault;
use super::local::Table;
use super::meaning::{Runs, by_group, name_bytes, spot};
use super::place::Place;
use super::reply::{bytes, list, value};
use super::run::Run;
use super::table::Space;
use super::tally::{self, Piece};
use super::unplaced::Waiter;
use super::{Batch, RedisIndex, command, next};
use crate::block::{Name, SpaceId, VocabularyId, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::index::{BlockSource, Matches, Query};

/// How many segments of a prompt are asked for at once.
const CHUNK: usize = 64 * SEGMENT;

/// A reply about a run, unless the server that has it is away: then the path ends there, as far as
/// anybody can say, and what the other servers of the cluster have still counts.
pub(super) fn present(reply: Result<Value, Fault>) -> Option<Result<Value, Fault>> {
    match reply {
        Err(fault) if Error::from(fault.clone()).kind() == ErrorKind::Unavailable => None,
        reply => Some(reply),
    }
}

/// Gives each stretch of a path's segments that a slot holds in their first runs and in those that the path
/// goes on in; whether it is there to its end.
pub(super) fn walk(
    segments: &[&[Link]],
    runs: &[Option<Run>],
    parted: &Runs,
    mut add: impl FnMut(u32, usize, usize),
) -> bool {
    for (path, main) in segments.iter().zip(runs) {
        let Some(main) = main else { return false };
        let base = path[0].depth - 1;
        let (mut run, mut from) = (main, 0);
        let reached = loop {
            let to = run.equal(from, path[from..].iter().map(|link| link.key));
            for (slot, start, end) in run.holdings() {
                let (start, end) = (start.max(from), end.min(to));
                add(slot, base + start, base + end);
            }
            match path.get(to).and_then(|next| parted.get(&(next.tag, next.key))) {
                Some(below) if to > from && below.start == to && below.rest == main.rest => {
                    (run, from) = (below, to);
                }
                _ => break to,
            }
        };
        if reached < path.len() {
            return false;
        }
    }
    !segments.is_empty()
}

/// What a lookup gathers.
struct Gathering<'a> {
    query: &'a Query<'a>,
    pieces: Vec<Piece>,
    /// Owners whose workers do not count.
    gone: HashSet<String>,
    /// The path ended where a server is away, and not because nobody holds more.
    is_torn: bool,
    /// By vocabulary: the blocks that the path of names has come to, and how many it has passed.
    named: HashMap<u32, (BTreeSet<Place>, usize)>,
}

impl Gathering<'_> {
    /// A stretch of the prompt that a slot holds.
    fn add(&mut self, table: &Table, slot: u32, from: usize, to: usize) {
        let Some(&(worker, group, tier)) = table.slots.get(&slot) else { return };
        let Some(record) = table.workers.get(&worker) else { return };
        if self.gone.contains(&record.owner) {
            return;
        }
        let asked = self.query.candidates.is_none_or(|ids| ids.binary_search(&record.id).is_ok());
        if asked && from < to {
            let (from, to) = (from as u32, to as u32);
            self.pieces.push(Piece { worker: record.id, group, tier, from, to });
        }
    }
}

impl RedisIndex {
    /// A lookup; whether the answer is whole: `false` where the path ended because a server of the cluster is away,
    /// and not because nobody holds more.
    ///
    /// # Errors
    ///
    /// As [`Index::lookup`](crate::index::Index::lookup).
    pub async fn lookup_present(
        &self,
        query: &Query<'_>,
        blocks: &mut (impl BlockSource + Send),
        matches: &mut Matches,
    ) -> Result<bool, Error> {
        let lives = self.local.lock().lives;
        let found = self.read(query, blocks, matches).await;
        if self.local.lock().lives == lives {
            return found;
        }
        // The store was emptied, and perhaps filled again, since it was looked at last.
        self.read(query, blocks, matches).await
    }

    async fn read(
        &self,
        query: &Query<'_>,
        blocks: &mut (impl BlockSource + Send),
        matches: &mut Matches,
    ) -> Result<bool, Error> {
        matches.clear();
        let Some(space) = self.known_space(query.space).await? else { return Ok(true) };
        if blocks.is_empty() {
            return Ok(true);
        }
        let opened = self.opened().await?;
        let text = self.local.lock().texts.space(query.space);
        let mut above = opened.chain.root(text.as_bytes(), query.shape);
        let mut gathering = Gathering {
            query,
            pieces: Vec::new(),
            gone: HashSet::new(),
            is_torn: false,
            named: HashMap::new(),
        };
        let mut done = 0;
        while done < blocks.len() {
            let to = blocks.len().min(done + CHUNK);
            let mut links: Vec<Link> = Vec::with_capacity(to - done);
            while done + links.len() < to {
                let from = done + links.len();
                let digests = blocks.digests(from, to - from);
                if digests.is_empty() {
                    break;
                }
                for &digest in digests.iter().take(to - from) {
                    above = opened.chain.next(&above, digest);
                    links.push(above);
                }
            }
            let by_content = !links.is_empty();
            let (about, whole) = self.content(space, &links, &mut gathering).await?;
            let Some((table, unplaced)) = about else { return Ok(true) };
            if unplaced || !by_content {
                self.names(&table, space, done..to, blocks, by_content, &mut gathering).await?;
            }
            done = to;
            let most = tally::answer(&gathering.pieces, query.spans, matches);
            let goes_on = whole || unplaced || !by_content;
            let alive = query.spans && goes_on || most as usize == done;
            if !alive {
                break;
            }
        }
        Ok(!gathering.is_torn)
    }
}

impl RedisIndex {
    /// What the store says of these blocks of a path: the space's table and whether it has unplaced
    /// blocks, unless nobody is there; and whether the store has the whole path.
    async fn content(
        &self,
        space: u32,
        links: &[Link],
        gathering: &mut Gathering<'_>,
    ) -> Result<(Option<(Arc<Table>, bool)>, bool), Error> {
        let about = self.keys.space(space);
        let table_key = self.keys.table(space);
        let cached = self.local.lock().tables.get(&space).cloned();
        let segments: Vec<&[Link]> = links.chunks(SEGMENT).collect();
        let keys: Vec<Vec<u8>> =
            segments.iter().map(|s| self.keys.run(&s[0].tag, &first(&s[0].tag))).collect();
        let mut batch = Batch::reading();
        batch.push(&about, command("HGETALL", &[&about]));
        if cached.is_none() {
            batch.push(&table_key, command("HGETALL", &[&table_key]));
        }
        keys.iter().for_each(|key| batch.push(key, command("HGETALL", &[key])));
        let due = cached.as_deref().map(|table| self.due(table)).unwrap_or_default();
        self.ask_owners(&mut batch, &due);
        let recall = self.recall(&mut batch);
        let mut replies = self.send(batch).await?;
        let record = Space::read(&about, value(&about, next(&mut replies))?)?;
        if record.birth != self.opened().await?.birth {
            self.unless_reborn(&record.birth).await?;
            return Ok((None, false));
        }
        let table = match cached {
            None => {
                let reply = value(&table_key, next(&mut replies))?;
                self.keep_table(space, record.generation, reply)?
            }
            Some(table) if table.generation == record.generation => table,
            Some(_) => self.load_table(space).await?,
        };
        let (mut runs, mut away) = (Vec::with_capacity(segments.len()), None);
        for (at, key) in keys.iter().enumerate() {
            runs.push(match present(next(&mut replies)) {
                Some(reply) => {
                    let run = Run::read(key, value(key, reply)?)?;
                    run.filter(|run| run.rest == segments[at][0].rest)
                }
                None => {
                    away = away.or(Some(at));
                    None
                }
            });
        }
        self.heard(due, &mut replies)?;
        if !self.recalled(recall, &mut replies)? {
            return Ok((None, false));
        }
        // A table that was just read may speak of owners that this client has not heard of.
        let strange = self.due(&table);
        if !strange.is_empty() {
            let mut batch = Batch::reading();
            self.ask_owners(&mut batch, &strange);
            let mut replies = self.send(batch).await?;
            self.heard(strange, &mut replies)?;
        }
        gathering.gone = self.gone();
        let (parted, all_there) = self.parted(&segments, &runs).await?;
        // Behind where the path ends anyway it makes no difference who is away.
        let comes_to = |at| at == 0 || walk(&segments[..at], &runs[..at], &parted, |_, _, _| {});
        gathering.is_torn |= !all_there || away.is_some_and(comes_to);
        let whole = walk(&segments, &runs, &parted, |slot, from, to| {
            gathering.add(&table, slot, from, to);
        });
        Ok((Some((table, record.unplaced > 0)), whole))
    }

    /// The workers of a space whose part of the store somebody keeps and that is whole, as of the last lookup there.
    pub fn kept_in(&self, space: SpaceId) -> HashSet<WorkerId> {
        let gone = self.gone();
        let local = self.local.lock();
        let table = local.spaces.get(&space).and_then(|number| local.tables.get(number));
        let records = table.into_iter().flat_map(|table| table.workers.values());
        records.filter(|record| !gone.contains(&record.owner)).map(|record| record.id).collect()
    }

    /// A space without a birth is one that nobody has a home in, or somebody emptied the store, and
    /// maybe it was filled anew: then this forgets what it remembers.
    pub(super) async fn unless_reborn(&self, birth: &[u8]) -> Result<(), Error> {
        let meta = self.keys.meta();
        let found = bytes(&meta, self.ask(&meta, command("HGET", &[&meta, b"birth"])).await?)?;
        if !birth.is_empty() || found != self.opened().await?.birth {
            self.local.lock().reopen();
        }
        Ok(())
    }

    /// The runs that the path may go on in where it leaves the first run of a segment, and whether none of their
    /// servers is away.
    async fn parted(
        &self,
        segments: &[&[Link]],
        runs: &[Option<Run>],
    ) -> Result<(Runs, bool), Error> {
        let mut wanted: Vec<(super::chain::Tag, Key)> = Vec::new();
        for (path, run) in segments.iter().zip(runs) {
            let Some(run) = run else { break };
            let to = run.equal(0, path.iter().map(|link| link.key));
            if to == path.len() {
                continue;
            }
            let hangs = to > 0 && run.kids >> (to - 1) & 1 == 1;
            if !hangs {
                break;
            }
            wanted.extend(path[to..].iter().map(|link| (link.tag, link.key)));
        }
        if wanted.is_empty() {
            return Ok((Runs::new(), true));
        }
        self.present_runs(wanted).await
    }

    /// What is matched by name: unplaced blocks, and placed ones where the prompt has no content.
    async fn names(
        &self,
        table: &Table,
        space: u32,
        range: std::ops::Range<usize>,
        blocks: &mut (impl BlockSource + Send),
        by_content: bool,
        gathering: &mut Gathering<'_>,
    ) -> Result<(), Error> {
        let count = self.opened().await?.groups;
        let spoken: BTreeSet<u32> = table.workers.values().map(|r| r.vocabulary).collect();
        let mine: Vec<(VocabularyId, u32)> = {
            let local = self.local.lock();
            let mine = local.vocabularies.iter();
            let mine = mine.filter(|((at, _), number)| *at == space && spoken.contains(number));
            mine.map(|((_, id), &number)| (*id, number)).collect()
        };
        for (id, vocabulary) in mine {
            let mut names: Vec<(usize, Name)> = Vec::new();
            for at in range.clone() {
                let both = [blocks.name(id, at), blocks.second_name(id, at)];
                names.extend(both.into_iter().flatten().map(|name| (at, name)));
            }
            let groups = by_group(names.iter().map(|(_, name)| *name), count);
            let mut batch = Batch::reading();
            let mut keys = Vec::new();
            for (group, of) in groups {
                let key = self.keys.unplaced(vocabulary, group);
                let mut ask = command("HMGET", &[&key]);
                for &n in &of {
                    ask.arg(&name_bytes(names[n].1)[..]);
                }
                batch.push(&key, ask);
                keys.push((key, of));
            }
            let mut replies = self.send(batch).await?;
            for (key, of) in keys {
                let found = list(&key, value(&key, next(&mut replies))?)?;
                for ((at, _), one) in of.into_iter().map(|n| names[n]).zip(found) {
                    let one = bytes(&key, one)?;
                    if one.is_empty() {
                        continue;
                    }
                    for (slot, ..) in Waiter::read(&key, &one)?.holders {
                        gathering.add(table, slot, at, at + 1);
                    }
                }
            }
            if !by_content {
                self.named(table, vocabulary, &names, gathering).await?;
            }
        }
        Ok(())
    }

    /// Placed blocks whose names are those of the prompt, each below one that is, too.
    async fn named(
        &self,
        table: &Table,
        vocabulary: u32,
        names: &[(usize, Name)],
        gathering: &mut Gathering<'_>,
    ) -> Result<(), Error> {
        let asked: Vec<Name> = names.iter().map(|(_, name)| *name).collect();
        let (places, runs) = self.placed(vocabulary, &asked).await?;
        let mut path = gathering.named.remove(&vocabulary).unwrap_or_default();
        let shape = shape_bytes(gathering.query.shape);
        let mut places = places.iter();
        for same_block in names.chunk_by(|(a, _), (b, _)| a == b) {
            let at = same_block[0].0;
            if at != path.1 {
                break;
            }
            let mut next = BTreeSet::new();
            for place in places.by_ref().take(same_block.len()).flatten() {
                let Some(run) = runs.get(&(place.tag, place.run)) else { continue };
                let Some(spot) = spot(run, *place) else { continue };
                let parent = match usize::from(place.offset) == run.start {
                    true => run.above,
                    false => Some(Place { offset: place.offset - 1, ..*place }),
                };
                let follows = match parent {
                    None => at == 0,
                    Some(parent) => path.0.contains(&parent),
                };
                if spot.link.depth != at + 1 || run.shape != shape || !follows {
                    continue;
                }
                next.insert(*place);
                let offset = usize::from(place.offset);
                for (slot, from, to) in run.holdings() {
                    let speaks = |(worker, ..): &super::local::Owner| {
                        table.workers.get(worker).is_some_and(|r| r.vocabulary == vocabulary)
                    };
                    if (from..to).contains(&offset) && table.slots.get(&slot).is_some_and(speaks) {
                        gathering.add(table, slot, at, at + 1);
                    }
                }
            }
            path = (next, at + 1);
        }
        gathering.named.insert(vocabulary, path);
        Ok(())
    }
}
