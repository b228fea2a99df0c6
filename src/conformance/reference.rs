//! The model of [`crate::index`], written down as literally as it is stated there.
//!
//! A placed block is its path from the root: a number for (the path before it, its content). What is
//! placed and what names mean is worked out anew from who holds copies whenever some go. Slow on
//! purpose: this is what every backend is compared with.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::block::{Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::index::{
    Applied, Block, BlockSource, Change, Home, MOST_GROUPS, MOST_MEANINGS, MOST_NAMES, Match,
    Matches, MemoryOptions, Parent, Query, Span, Stats, Store,
};

/// The literal reference index.
#[derive(Debug, Default)]
pub struct Reference {
    options: MemoryOptions,
    homes: BTreeMap<WorkerId, Home>,
    copies: BTreeMap<Spot, Copies>,
    /// In the order in which the bindings were made.
    meanings: BTreeMap<Meaning, Vec<Path>>,
    links: BTreeMap<Meaning, Link>,
    /// Every path that was ever spoken of, by its number; the roots are among them.
    paths: Vec<Step>,
    numbers: HashMap<Step, Path>,
    /// How often a path got a name so far, so that few are searched for those that they have.
    named: HashMap<Path, usize>,
    /// Workers that lost copies.
    losers: BTreeSet<WorkerId>,
}

type Copies = BTreeMap<(WorkerId, Group, Tier), u32>;
type Meaning = (SpaceId, VocabularyId, Name);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    Placed(Path),
    Unplaced(Meaning),
}

/// A path from the root; equal paths have equal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Path(usize);

/// The last step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Root(SpaceId, Shape),
    Block(usize, Digest),
}

#[derive(Clone, Copy, Debug)]
struct Link {
    shape: Shape,
    parent: Name,
    digest: Digest,
}

impl Reference {
    /// An empty reference with these limits.
    pub fn new(options: MemoryOptions) -> Reference {
        Reference { options, ..Reference::default() }
    }

    fn path(&mut self, step: Step) -> Path {
        let Reference { paths, numbers, .. } = self;
        *numbers.entry(step).or_insert_with(|| {
            paths.push(step);
            Path(paths.len() - 1)
        })
    }

    /// The path without its last block; `None` for a root.
    fn before(&self, path: Path) -> Option<Path> {
        match self.paths[path.0] {
            Step::Root(..) => None,
            Step::Block(before, _) => Some(Path(before)),
        }
    }

    fn shape(&self, mut path: Path) -> Shape {
        loop {
            match self.paths[path.0] {
                Step::Root(_, shape) => return shape,
                Step::Block(before, _) => path = Path(before),
            }
        }
    }

    fn fits(&self, path: Path, link: Option<Link>) -> bool {
        let last = |digest| matches!(self.paths[path.0], Step::Block(_, d) if d == digest);
        link.is_none_or(|l| last(l.digest) && self.shape(path) == l.shape)
    }

    /// See [`crate::index::Index::assign`]; `false` where that is an error.
    pub fn assign(&mut self, worker: WorkerId, home: Home) -> bool {
        if let Some(&old) = self.homes.get(&worker)
            && old != home
            && self.copies.values().any(|c| c.keys().any(|k| k.0 == worker))
        {
            let shared = self.homes.iter().any(|(&w, &h)| w != worker && h == old);
            if old.space != home.space || shared {
                return false;
            }
            let mut left = Vec::new();
            let moved = |m: &Meaning| (home.space, home.vocabulary, m.2);
            let is_old = |m: &Meaning| (m.0, m.1) == (old.space, old.vocabulary);
            for (meaning, paths) in self.meanings.clone().into_iter().filter(|(m, _)| is_old(m)) {
                self.meanings.remove(&meaning);
                for path in paths {
                    match self.is_full(moved(&meaning), path) {
                        true => left.push(path),
                        false => self.bind(moved(&meaning), path),
                    }
                }
            }
            for (spot, copies) in self.copies.clone() {
                if let Spot::Unplaced(meaning) = &spot
                    && is_old(meaning)
                {
                    self.copies.remove(&spot);
                    if let Some(link) = self.links.remove(meaning) {
                        self.links.entry(moved(meaning)).or_insert(link);
                    }
                    for (key, n) in copies {
                        self.add(Spot::Unplaced(moved(meaning)), key, n);
                    }
                }
            }
            self.settle();
            for path in left {
                if let Some(copies) = self.copies.get_mut(&Spot::Placed(path))
                    && copies.extract_if(.., |k, _| k.0 == worker).count() > 0
                {
                    self.losers.insert(worker);
                }
            }
        }
        self.homes.insert(worker, home);
        self.forget_names();
        self.settle();
        true
    }

    /// See [`crate::index::Index::apply`]; `None` where that is an error.
    pub fn apply(&mut self, worker: WorkerId, changes: &[Change<'_>]) -> Option<Applied> {
        let home = *self.homes.get(&worker)?;
        let mut applied = Applied::default();
        for change in changes {
            match change {
                Change::Store(store) => self.store(worker, home, store, &mut applied),
                Change::Remove { group, tier, names } => {
                    for &name in *names {
                        if self.take(home, name, (worker, *group, *tier)) {
                            applied.removed += 1;
                        } else {
                            applied.unknown_removals += 1;
                        }
                    }
                }
                Change::Clear { tier } => {
                    for copies in self.copies.values_mut() {
                        copies.retain(|k, _| k.0 != worker || tier.is_some_and(|t| k.2 != t));
                    }
                    if tier.is_none() {
                        self.losers.remove(&worker);
                    }
                    self.settle();
                }
            }
        }
        Some(applied)
    }

    /// See [`crate::index::Index::remove`].
    pub fn remove(&mut self, worker: WorkerId) {
        self.apply(worker, &[Change::Clear { tier: None }]);
        self.homes.remove(&worker);
        self.forget_names();
    }

    /// A vocabulary without workers has no names.
    fn forget_names(&mut self) {
        let spoken: BTreeSet<_> = self.homes.values().map(|h| (h.space, h.vocabulary)).collect();
        self.meanings.retain(|m, _| spoken.contains(&(m.0, m.1)));
    }

    fn store(&mut self, worker: WorkerId, home: Home, store: &Store<'_>, applied: &mut Applied) {
        let Home { space, vocabulary } = home;
        let key = (worker, store.group, store.tier);
        let groups = self.copies.values().flat_map(|c| c.keys()).filter(|k| k.0 == worker);
        let groups: BTreeSet<Group> = groups.map(|k| k.1).chain([store.group]).collect();
        if groups.len() > MOST_GROUPS {
            applied.refused += store.blocks.len() as u64;
            return;
        }
        let root = self.path(Step::Root(space, store.shape));
        let (mut above, mut above_name) = match store.parent {
            Parent::Root => (Some(root), None),
            Parent::Block(name) => {
                let of_shape = |p: Path| self.shape(p) == store.shape;
                (self.meaning(worker, (space, vocabulary, name), of_shape), Some(name))
            }
            Parent::Unknown => (None, None),
        };
        if let (Parent::Block(name), Some(Block { digest: Some(_), .. })) =
            (store.parent, store.blocks.first())
        {
            let spot = match above {
                Some(path) => Spot::Placed(path),
                None => Spot::Unplaced((space, vocabulary, name)),
            };
            let held = self.copies.get(&spot).is_some_and(|c| c.keys().any(|k| k.0 == worker));
            applied.unknown_parents += u64::from(!held);
        }
        for (at, block) in store.blocks.iter().enumerate() {
            let meaning = (space, vocabulary, block.name);
            let mut link = None;
            let path = match (block.digest, above) {
                (Some(digest), Some(parent)) => Some(self.path(Step::Block(parent.0, digest))),
                (Some(digest), None) => {
                    link = above_name.map(|parent| Link { shape: store.shape, parent, digest });
                    self.meaning(worker, meaning, |p| self.fits(p, link))
                }
                (None, _) => self.meaning(worker, meaning, |_| true),
            };
            let crowded = |path: Path| {
                let meant = self.meanings.get(&meaning);
                meant.is_some_and(|m| m.len() >= MOST_MEANINGS && !m.contains(&path))
            };
            let binds = block.digest.is_some() && above.is_some();
            if binds && path.is_some_and(|path| crowded(path) || self.is_full(meaning, path)) {
                applied.refused += (store.blocks.len() - at) as u64;
                return;
            }
            match path {
                Some(path) => {
                    self.add(Spot::Placed(path), key, 1);
                    if binds {
                        self.bind(meaning, path);
                    }
                    applied.stored += 1;
                }
                None => {
                    let spot = Spot::Unplaced(meaning);
                    let is_unplaced = |s: &Spot| matches!(s, Spot::Unplaced(_));
                    let unplaced = self.copies.iter().filter(|(s, _)| is_unplaced(s));
                    let mine = unplaced.flat_map(|(_, c)| c.keys()).filter(|k| k.0 == worker);
                    let full = mine.count() >= self.options.unplaced_per_worker;
                    let held = |c: &Copies| c.contains_key(&key);
                    let meant = self.meanings.get(&meaning).map_or(0, Vec::len);
                    let crowded = meant >= MOST_MEANINGS && !self.copies.contains_key(&spot);
                    if crowded || full && !self.copies.get(&spot).is_some_and(held) {
                        applied.refused += 1;
                    } else {
                        self.add(spot, key, 1);
                        if let Some(link) = link {
                            self.links.entry(meaning).or_insert(link);
                        }
                        applied.stored += 1;
                        applied.unplaced += 1;
                    }
                }
            }
            if self.has_unplaced() {
                self.settle();
            }
            above = path;
            above_name = Some(block.name);
        }
    }

    fn take(&mut self, home: Home, name: Name, key: (WorkerId, Group, Tier)) -> bool {
        let meaning = (home.space, home.vocabulary, name);
        let paths = self.meanings.get(&meaning).cloned().unwrap_or_default();
        let spots = paths.into_iter().map(Spot::Placed).chain([Spot::Unplaced(meaning)]);
        for spot in spots {
            if let Some(copies) = self.copies.get_mut(&spot)
                && let Some(n) = copies.get_mut(&key)
            {
                *n -= 1;
                if *n == 0 {
                    copies.remove(&key);
                }
                if copies.is_empty() {
                    self.settle();
                }
                return true;
            }
        }
        false
    }

    /// What a name means to a worker: the block that it holds, else the first one bound.
    fn meaning(
        &self,
        worker: WorkerId,
        meaning: Meaning,
        fits: impl Fn(Path) -> bool,
    ) -> Option<Path> {
        let paths = self.meanings.get(&meaning)?;
        let held = |p: &&Path| {
            let copies = self.copies.get(&Spot::Placed(**p));
            copies.is_some_and(|c| c.keys().any(|k| k.0 == worker))
        };
        let fitting = || paths.iter().filter(|p| fits(**p));
        fitting().find(held).or_else(|| fitting().next()).copied()
    }

    fn add(&mut self, spot: Spot, key: (WorkerId, Group, Tier), n: u32) {
        *self.copies.entry(spot).or_default().entry(key).or_default() += n;
    }

    fn bind(&mut self, meaning: Meaning, path: Path) {
        let paths = self.meanings.entry(meaning).or_default();
        if !paths.contains(&path) {
            paths.push(path);
            *self.named.entry(path).or_default() += 1;
        }
    }

    /// Forgets what nobody holds, then places what can be placed, until nothing changes.
    fn settle(&mut self) {
        loop {
            self.copies.retain(|_, copies| !copies.is_empty());
            let placed = self.placed();
            for paths in self.meanings.values_mut() {
                paths.retain(|p| placed[p.0]);
            }
            self.meanings.retain(|_, paths| !paths.is_empty());
            self.links.retain(|m, _| self.copies.contains_key(&Spot::Unplaced(*m)));
            let Some((meaning, path)) = self.placeable() else { return };
            let copies = self.copies.remove(&Spot::Unplaced(meaning)).unwrap_or_default();
            self.links.remove(&meaning);
            if self.is_full(meaning, path) {
                self.losers.extend(copies.keys().map(|k| k.0));
                continue;
            }
            for (key, n) in copies {
                self.add(Spot::Placed(path), key, n);
            }
            self.bind(meaning, path);
        }
    }

    /// Whether a block has so many other names that it gets no further one.
    fn is_full(&self, meaning: Meaning, path: Path) -> bool {
        if self.named.get(&path).is_none_or(|&named| named < MOST_NAMES) {
            return false;
        }
        let vocabulary = |m: &Meaning| (m.0, m.1) == (meaning.0, meaning.1);
        let all = self.meanings.iter().filter(|(m, paths)| vocabulary(m) && paths.contains(&path));
        let names: Vec<Name> = all.map(|(m, _)| m.2).collect();
        names.len() >= MOST_NAMES && !names.contains(&meaning.2)
    }

    /// An unplaced block whose name, or whose parent's name, means a placed block.
    fn placeable(&mut self) -> Option<(Meaning, Path)> {
        if !self.has_unplaced() {
            return None;
        }
        let (meaning, path, below) = self.copies.keys().find_map(|spot| {
            let Spot::Unplaced(meaning) = spot else { return None };
            let link = self.links.get(meaning).copied();
            let paths = self.meanings.get(meaning).map_or(&[][..], Vec::as_slice);
            if let Some(path) = paths.iter().find(|p| self.fits(**p, link)) {
                return Some((*meaning, *path, None));
            }
            let link = link?;
            let parents = self.meanings.get(&(meaning.0, meaning.1, link.parent))?;
            let parent = parents.iter().find(|p| self.shape(**p) == link.shape)?;
            Some((*meaning, *parent, Some(link.digest)))
        })?;
        let path = match below {
            Some(digest) => self.path(Step::Block(path.0, digest)),
            None => path,
        };
        Some((meaning, path))
    }

    fn has_unplaced(&self) -> bool {
        // They come behind all others.
        self.copies.last_key_value().is_some_and(|(spot, _)| matches!(spot, Spot::Unplaced(_)))
    }

    /// Of each path, whether somebody holds its last block or something below it; not of roots.
    fn placed(&self) -> Vec<bool> {
        let mut placed = vec![false; self.paths.len()];
        for spot in self.copies.keys() {
            let Spot::Placed(path) = *spot else { continue };
            let mut next = path;
            while let Some(before) = self.before(next)
                && !placed[next.0]
            {
                placed[next.0] = true;
                next = before;
            }
        }
        placed
    }

    /// See [`crate::index::Index::lookup`].
    pub fn lookup(&self, query: &Query<'_>, blocks: &mut impl BlockSource) -> Matches {
        let mut held: Vec<BTreeMap<(WorkerId, Group), BTreeSet<Tier>>> = Vec::new();
        let homes = self.homes.values().filter(|home| home.space == query.space);
        let vocabularies: BTreeSet<VocabularyId> = homes.map(|home| home.vocabulary).collect();
        let number = |step| self.numbers.get(&step).copied();
        let root = number(Step::Root(query.space, query.shape));
        let mut path = root;
        let mut named: BTreeSet<Path> = root.into_iter().collect();
        for at in 0..blocks.len() {
            let mut here: BTreeMap<(WorkerId, Group), BTreeSet<Tier>> = BTreeMap::new();
            let mut take = |spot: &Spot, vocabulary: Option<VocabularyId>| {
                for &(worker, group, tier) in
                    self.copies.get(spot).into_iter().flatten().map(|c| c.0)
                {
                    let asked = query.candidates.is_none_or(|ids| ids.contains(&worker));
                    let speaks = vocabulary.is_none_or(|v| self.homes[&worker].vocabulary == v);
                    if asked && speaks && tier != Tier::Unknown {
                        here.entry((worker, group)).or_default().insert(tier);
                    }
                }
            };
            let digest = blocks.digests(at, 1).first().copied();
            if let Some(digest) = digest {
                path = path.and_then(|path| number(Step::Block(path.0, digest)));
                path.iter().for_each(|&path| take(&Spot::Placed(path), None));
            }
            let mut next_named = BTreeSet::new();
            for &vocabulary in &vocabularies {
                let names = [blocks.name(vocabulary, at), blocks.second_name(vocabulary, at)];
                for name in names.into_iter().flatten() {
                    let meaning = (query.space, vocabulary, name);
                    take(&Spot::Unplaced(meaning), None);
                    for &path in self.meanings.get(&meaning).into_iter().flatten() {
                        let before = self.before(path);
                        if digest.is_none() && before.is_some_and(|before| named.contains(&before))
                        {
                            take(&Spot::Placed(path), Some(vocabulary));
                            next_named.insert(path);
                        }
                    }
                }
            }
            named = next_named;
            held.push(here);
        }
        let keys: BTreeSet<_> = held.iter().flat_map(|h| h.keys().copied()).collect();
        let mut matches = Matches::default();
        for (worker, group) in keys {
            let tiers = |at: usize| held[at].get(&(worker, group));
            let leading = [0, 1, 2, 3].map(|rank| {
                let within = |at: &usize| {
                    tiers(*at).is_some_and(|t| t.iter().any(|t| t.rank() <= Some(rank)))
                };
                (0..held.len()).take_while(within).count() as u32
            });
            let mut fastest = [0; 4];
            for at in 0..leading[3] as usize {
                if let Some(rank) = tiers(at).and_then(|t| t.first()?.rank()) {
                    fastest[rank] += 1;
                }
            }
            if leading[3] > 0 {
                matches.push(Match { worker, group, leading, fastest });
            }
            let mut at = 0;
            while query.spans && at < held.len() {
                let on_gpu = |at: &usize| tiers(*at).is_some_and(|t| t.contains(&Tier::Gpu));
                let end = at + (at..held.len()).take_while(on_gpu).count();
                if end > at {
                    let (start, stop) = (at as u32, end as u32);
                    matches.spans.push(Span { worker, group, start, end: stop });
                }
                at = end + 1;
            }
        }
        matches
    }

    /// See [`crate::index::Index::evicted`]: nobody's copies go for want of memory, which this has.
    pub fn evicted(&self, worker: WorkerId) -> bool {
        self.losers.contains(&worker)
    }

    /// See [`crate::index::Index::stats`].
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for (spot, copies) in &self.copies {
            stats.entries += copies.len() as u64;
            stats.unplaced += u64::from(matches!(spot, Spot::Unplaced(_)));
        }
        stats.blocks = self.placed().into_iter().filter(|&is| is).count() as u64;
        stats
    }
}
