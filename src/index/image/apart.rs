//! Single workers of an image, each in an image of its own.

use std::collections::{BTreeMap, HashMap};

use super::Image;
use super::parts::{Further, Lane, Parts, Run, Tree, Unplaced};
use crate::block::WorkerId;
use crate::error::Error;

/// What of an image is one worker's, by the image's numbers.
#[derive(Default)]
struct Share<'p> {
    /// Of these runs the worker holds a block among the first so many, or something that hangs there.
    runs: BTreeMap<u32, u32>,
    copies: Vec<[u32; 4]>,
    unplaced: Vec<&'p Unplaced>,
}

/// A run, and the tree that it belongs to.
type Placed<'p, 'a> = (usize, &'p Run<'a>);

impl Image {
    /// Hands what each of these workers holds to `each`, one after the other, as the image of an index in which
    /// nobody else is: with the blocks that lead to its own, and what its vocabulary calls them. Who has no
    /// home in the image is left out.
    ///
    /// # Errors
    ///
    /// The image is no image.
    pub(crate) fn apart(
        &self,
        wanted: &[WorkerId],
        mut each: impl FnMut(WorkerId, Image),
    ) -> Result<(), Error> {
        let parts = Parts::read(self)?;
        let trees = parts.trees.iter().enumerate();
        let runs: Vec<Placed<'_, '_>> =
            trees.flat_map(|(n, tree)| tree.runs.iter().map(move |run| (n, run))).collect();
        let homes: HashMap<WorkerId, u32> =
            (0..).zip(&parts.workers).map(|(n, &(worker, _))| (worker, n)).collect();
        let mut shares: HashMap<u32, Share<'_>> = wanted
            .iter()
            .filter_map(|worker| Some((*homes.get(worker)?, Share::default())))
            .collect();
        let owner = |lane: u32| parts.lanes.get(lane as usize).map(|lane| lane.worker);
        for (number, (_, run)) in (1..).zip(&runs) {
            for &(lane, _, hi) in &run.holders {
                if let Some(share) = owner(lane).and_then(|worker| shares.get_mut(&worker)) {
                    share.need(&runs, number, hi);
                }
            }
        }
        for copies in &parts.copies {
            if let Some(share) = owner(copies[2]).and_then(|worker| shares.get_mut(&worker)) {
                share.copies.push(*copies);
            }
        }
        for block in &parts.unplaced {
            for &(lane, _) in &block.holders {
                if let Some(share) = owner(lane).and_then(|worker| shares.get_mut(&worker))
                    && share.unplaced.last().is_none_or(|last| !std::ptr::eq(*last, block))
                {
                    share.unplaced.push(block);
                }
            }
        }
        for worker in wanted {
            let share = homes.get(worker).and_then(|n| Some((shares.get(n)?, *n)));
            // One at a time: together they may be far more than the image.
            if let Some(image) = share.and_then(|(share, n)| share.image(&parts, &runs, n)) {
                each(*worker, image);
            }
        }
        Ok(())
    }
}

impl Share<'_> {
    /// Notes that the first `blocks` of a run are needed, and what leads to it.
    fn need(&mut self, runs: &[Placed<'_, '_>], number: u32, blocks: u32) {
        let (mut number, mut blocks) = (number, blocks);
        while number > 0 {
            let known = self.runs.insert(number, blocks);
            if let Some(before) = known {
                // What leads to it is there.
                self.runs.insert(number, before.max(blocks));
                return;
            }
            let (_, run) = runs[number as usize - 1];
            (number, blocks) = (run.parent, run.offset);
        }
    }

    /// `None` if the image does not say where the worker is at home.
    fn image(&self, parts: &Parts<'_>, runs: &[Placed<'_, '_>], worker: u32) -> Option<Image> {
        let (id, vocabulary) = *parts.workers.get(worker as usize)?;
        let home = *parts.vocabularies.get(vocabulary as usize)?;
        let mine = |(n, lane): (u32, &Lane)| (lane.worker == worker).then_some(n);
        let lanes: Vec<u32> = (0..).zip(&parts.lanes).filter_map(mine).collect();
        // Both ascend.
        let lane_of = |lane: u32| lanes.binary_search(&lane).ok().map(|n| n as u32);
        let numbers: Vec<u32> = self.runs.keys().copied().collect();
        let run_of = |run: u32| numbers.binary_search(&run).ok().map(|n| n as u32 + 1);
        let has = |run: u32, at: u32| self.runs.get(&run).is_some_and(|&blocks| at < blocks);

        let mut trees: Vec<(usize, Tree<'_>)> = Vec::new();
        for (&number, &blocks) in &self.runs {
            let (tree, run) = runs[number as usize - 1];
            if trees.last().is_none_or(|last| last.0 != tree) {
                let Tree { space, shape, .. } = parts.trees[tree];
                trees.push((tree, Tree { space, shape, runs: Vec::new() }));
            }
            let columns = run.columns.iter().filter(|column| column.0 == vocabulary);
            let holders = run.holders.iter();
            let run = Run {
                parent: run_of(run.parent).unwrap_or(0),
                offset: run.offset,
                contents: &run.contents[..blocks as usize],
                columns: columns.map(|(_, names)| (0, &names[..blocks as usize])).collect(),
                holders: holders.filter_map(|&(l, lo, hi)| Some((lane_of(l)?, lo, hi))).collect(),
            };
            trees.last_mut()?.1.runs.push(run);
        }
        let further = |further: &Further| {
            let places = further.places.iter().filter(|(run, at)| has(*run, *at));
            let places: Vec<_> = places.filter_map(|&(r, at)| Some((run_of(r)?, at))).collect();
            let is_mine = further.vocabulary == vocabulary && !places.is_empty();
            is_mine.then_some(Further { vocabulary: 0, name: further.name, places })
        };
        let unplaced = |block: &&Unplaced| {
            let holders = block.holders.iter();
            let holders = holders.filter_map(|&(lane, copies)| Some((lane_of(lane)?, copies)));
            Unplaced { vocabulary: 0, holders: holders.collect(), ..(**block).clone() }
        };
        let copies = self.copies.iter();
        let apart = Parts {
            vocabularies: vec![home],
            workers: vec![(id, 0)],
            lanes: lanes.iter().map(|&n| Lane { worker: 0, ..parts.lanes[n as usize] }).collect(),
            trees: trees.into_iter().map(|(_, tree)| tree).collect(),
            copies: copies
                .filter_map(|&[run, at, lane, more]| Some([run_of(run)?, at, lane_of(lane)?, more]))
                .collect(),
            names: parts.names.iter().filter_map(further).collect(),
            unplaced: self.unplaced.iter().map(unplaced).collect(),
            losers: Vec::new(),
        };
        Some(apart.write())
    }
}
