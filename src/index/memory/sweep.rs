//! Retirement: a slot dies in one step, its entries are swept in small ones; so are the names of a
//! vocabulary that nobody speaks any more.
//!
//! Invariants: readers attribute a dead slot's bits to nobody; the writer strips a run of the dead,
//! and what only they kept below it, before it looks at what the run's blocks are or mean
//! (`refresh`). So no answer depends on how far a sweep has come.

use super::run::{EXTRAS, FRESH, KIDS, LAST_KID, OFFSET, RunId};
use super::sync::guard;
use super::write::Pen;

/// Runs that a sweep visits after each change.
pub(super) const STEP: usize = 32;

impl Pen<'_> {
    pub(super) fn retire(&mut self, slot: u32) {
        self.w.entries -= self.w.slots.retire(&self.shared.slots, slot);
    }

    /// Strips a run of dead holders, and of children that only those kept, as far as they decide
    /// where the run ends.
    #[inline]
    pub(super) fn refresh(&mut self, id: RunId) {
        if self.w.slots.has_dead() && self.run(id).get(FRESH) != self.w.slots.deaths {
            self.refresh_below(id);
        }
    }

    #[cold]
    fn refresh_below(&mut self, id: RunId) {
        let deaths = self.w.slots.deaths;
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let run = self.run(id);
            if run.get(FRESH) == deaths {
                continue;
            }
            run.set(FRESH, deaths);
            self.strip(id);
            let len = run.len();
            let extent = self.w.cuts.extent(len);
            if extent < len || run.is_root() {
                let beyond = self.kids(run).filter(|k| k.get(OFFSET) > extent);
                if run.get(KIDS) > 0 && run.get(LAST_KID) > extent {
                    stack.extend(beyond.map(|k| k.id));
                }
                // Nothing above is on the stack any more, so it may go.
                self.trim(id, None);
            }
        }
    }

    /// Takes the dead out of a run's holders, which are in `cuts` afterwards.
    fn strip(&mut self, id: RunId) {
        let run = self.run(id);
        let Pen { w, .. } = self;
        w.cuts.load(run);
        let (slots, extras) = (&w.slots, &mut w.extras);
        let changed = w.cuts.strip(
            run.len(),
            |page| slots.dead_bits(page),
            |slot, lo, hi| {
                if run.get(EXTRAS) > 0 {
                    for at in lo..hi {
                        if extras.remove(&(id, at, slot)).is_some() {
                            run.set(EXTRAS, run.get(EXTRAS) - 1);
                        }
                    }
                }
            },
        );
        if changed {
            guard::open(run.guard());
            w.cuts.save(run, &mut w.book);
            guard::close(run.guard());
        }
    }

    /// Whether there is anything to sweep.
    #[inline]
    pub(super) fn is_dirty(&self) -> bool {
        self.w.slots.has_dead() || !self.w.leaving.is_empty()
    }

    /// Visits so many runs, or blocks with names that nobody speaks; whether anything is left to
    /// sweep.
    pub(super) fn sweep(&mut self, steps: usize) -> bool {
        for _ in 0..steps {
            if !self.w.slots.is_sweeping() {
                if !self.w.slots.has_dead() {
                    return self.forget_names(steps);
                }
                self.w.slots.begin();
                self.w.cursor = self.w.runs.len();
            }
            self.w.cursor = self.w.cursor.min(self.w.runs.len());
            if self.w.cursor == 0 {
                self.w.slots.end(&self.shared.slots);
                continue;
            }
            // From the end to the front: where a run goes, one that was visited takes its place.
            self.w.cursor -= 1;
            let id = self.w.runs[self.w.cursor];
            self.refresh(id);
        }
        true
    }
}
