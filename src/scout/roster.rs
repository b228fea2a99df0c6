//! Who answers for a model, written down once for many queries.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Adapter;
use super::directory::{Directory, Groups};
use super::standing::{Cell, Reading, Slab, are};
use crate::block::{Group, Shape, SpaceId, WorkerId};
use crate::score::{GroupFacts, GroupRule};

/// The number of what rosters are made from; another one after each registration, removal, adapter
/// and change of a worker's groups.
///
/// No number comes twice, not even in another scout: a roster of this number is this scout's, and
/// the newest.
#[derive(Debug)]
pub(super) struct Generation(AtomicU64);

impl Generation {
    fn fresh() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// After the change.
    pub(super) fn turn(&self) {
        self.0.store(Generation::fresh(), Ordering::Release);
    }
}

impl Default for Generation {
    fn default() -> Generation {
        Generation(AtomicU64::new(Generation::fresh()))
    }
}

/// The row of a worker that is not in the roster.
const NOBODY: u32 = u32::MAX;

/// Who answers for what a request asks for, one row each, by worker. Never changed.
#[derive(Debug)]
pub(super) struct Roster {
    generation: u64,
    tenant: String,
    asked: Option<String>,
    /// The adapter that the asked name stands for.
    pub(super) adapter: Option<Adapter>,
    /// The tenant's adapters by name, for prompts that name theirs.
    pub(super) adapters: Arc<HashMap<String, Adapter>>,
    pub(super) spaces: Vec<SpaceId>,
    /// Distinct ones of all groups, ascending.
    pub(super) shapes: Vec<Shape>,
    /// Whether some group has a window.
    pub(super) spans: bool,
    pub(super) plain: Option<Plain>,
    ids: Vec<WorkerId>,
    rows: Vec<Row>,
    /// Where the standings of consecutive rows lie side by side.
    stretches: Vec<Stretch>,
    /// Rows by worker, from the first worker's on.
    by_id: ById,
}

/// All workers that have announced a group have this one, and it is a full-attention group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) space: SpaceId,
    pub(super) group: Group,
    pub(super) shape: Shape,
    /// Whether every worker has announced it.
    pub(super) is_announced: bool,
}

/// What does not change from one batch to the next.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) pod: Arc<str>,
    pub(super) rank: u32,
    pub(super) groups: Arc<Groups>,
    slab: Arc<Slab>,
}

#[derive(Debug)]
struct Stretch {
    slab: Arc<Slab>,
    cells: Range<usize>,
    first_row: usize,
}

#[derive(Debug)]
enum ById {
    /// By the difference to the first worker's id.
    Dense(Vec<u32>),
    /// Workers are far between: they are searched.
    Sparse,
}

impl Roster {
    /// Whom a directory names for this tenant and model; `None` when that is nobody. The generation
    /// was read before.
    pub(super) fn new(
        directory: &Directory,
        generation: u64,
        tenant: &str,
        asked: Option<&str>,
    ) -> Option<Roster> {
        let (model, adapter) = directory.resolve(tenant, asked);
        let (mut ids, mut rows) = (Vec::new(), Vec::new());
        let mut stretches: Vec<Stretch> = Vec::new();
        for worker in directory.serving(tenant, model) {
            let (slab, at) = (worker.post.slab.clone(), Slab::at(worker.id));
            match stretches.last_mut() {
                Some(last) if Arc::ptr_eq(&last.slab, &slab) && last.cells.end == at => {
                    last.cells.end += 1;
                }
                _ => stretches.push(Stretch {
                    slab: slab.clone(),
                    cells: at..at + 1,
                    first_row: rows.len(),
                }),
            }
            ids.push(worker.id);
            rows.push(Row {
                pod: worker.pod.clone(),
                rank: worker.registration.rank,
                groups: worker.groups.read().clone(),
                slab,
            });
        }
        let groups = || rows.iter().flat_map(|row| &row.groups.facts);
        let mut shapes: Vec<Shape> = groups().map(|facts| facts.shape).collect();
        shapes.sort_unstable();
        shapes.dedup();
        let spaces: Vec<SpaceId> = directory.spaces(tenant, model).collect();
        let spans = groups().any(|facts| matches!(facts.rule, GroupRule::Window { .. }));
        Some(Roster {
            generation,
            tenant: tenant.to_owned(),
            asked: asked.map(str::to_owned),
            adapter: adapter.cloned(),
            adapters: directory.adapters(tenant),
            plain: plain(&spaces, &rows),
            spaces,
            shapes,
            spans,
            by_id: ById::new(&ids, *ids.first()?),
            ids,
            rows,
            stretches,
        })
    }

    /// Whether this is what a request needs.
    #[inline]
    pub(super) fn is_for(&self, generation: u64, tenant: &str, asked: Option<&str>) -> bool {
        self.generation == generation && self.tenant == tenant && self.asked.as_deref() == asked
    }

    pub(super) fn is_of(&self, generation: u64) -> bool {
        self.generation == generation
    }

    #[inline]
    pub(super) fn ids(&self) -> &[WorkerId] {
        &self.ids
    }

    #[inline]
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The row of a worker.
    #[inline]
    pub(super) fn row(&self, worker: WorkerId) -> Option<usize> {
        match &self.by_id {
            ById::Dense(rows) => {
                let at = worker.0.checked_sub(self.ids[0].0)?;
                let row = *rows.get(at as usize)?;
                (row != NOBODY).then_some(row as usize)
            }
            ById::Sparse => self.ids.binary_search(&worker).ok(),
        }
    }

    #[inline]
    pub(super) fn cell(&self, row: usize) -> &Cell {
        &self.rows[row].slab.cells()[Slab::at(self.ids[row])]
    }

    /// Reads where all rows stand.
    #[inline]
    pub(super) fn read(&self, readings: &mut [Reading]) {
        for stretch in &self.stretches {
            let (cells, first) = (&stretch.slab.cells()[stretch.cells.clone()], stretch.first_row);
            for (reading, cell) in readings[first..].iter_mut().zip(cells) {
                *reading = cell.read();
            }
        }
    }

    /// Whether no row has moved since.
    #[inline]
    pub(super) fn are(&self, readings: &[Reading]) -> bool {
        self.stretches.iter().all(|stretch| {
            are(&stretch.slab.cells()[stretch.cells.clone()], &readings[stretch.first_row..])
        })
    }
}

impl Row {
    /// Whether the worker has the group that all have.
    #[inline]
    pub(super) fn has_group(&self) -> bool {
        !self.groups.facts.is_empty()
    }
}

impl ById {
    fn new(ids: &[WorkerId], first: WorkerId) -> ById {
        let span = ids.last().map_or(0, |last| (last.0 - first.0) as usize + 1);
        // At most 64 bytes for each worker.
        if span > 16 * ids.len() {
            return ById::Sparse;
        }
        let mut rows = vec![NOBODY; span];
        for (row, id) in (0..).zip(ids) {
            rows[(id.0 - first.0) as usize] = row;
        }
        ById::Dense(rows)
    }
}

fn plain(spaces: &[SpaceId], rows: &[Row]) -> Option<Plain> {
    let &[space] = spaces else { return None };
    let mut common: Option<(Group, Shape)> = None;
    for row in rows {
        match row.groups.facts[..] {
            [] => {}
            // A worker's only group is taken for full attention if it did not say.
            [GroupFacts { group, rule: GroupRule::Full | GroupRule::Unannounced, shape }]
                if common.is_none_or(|common| common == (group, shape)) =>
            {
                common = Some((group, shape));
            }
            _ => return None,
        }
    }
    let (group, shape) = common?;
    let is_announced = rows.iter().all(Row::has_group);
    Some(Plain { space, group, shape, is_announced })
}
