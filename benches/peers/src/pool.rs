//! vLLM's block pool: a free list in the order of last use, from which hits are taken and to which
//! finished requests give back.

use crate::workload::ByName;

/// Number of a block's memory in its pool.
pub type Slot = u32;

const NONE: Slot = Slot::MAX;

/// One engine's blocks.
#[derive(Debug)]
pub struct Pool {
    held: ByName<Slot>,
    name: Vec<u64>,
    before: Vec<Slot>,
    after: Vec<Slot>,
    head: Slot,
    tail: Slot,
    /// Slots from here on were never used.
    fresh: Slot,
}

impl Pool {
    /// An empty pool of so many blocks.
    pub fn new(blocks: usize) -> Pool {
        Pool {
            held: ByName::default(),
            name: vec![0; blocks],
            before: vec![NONE; blocks],
            after: vec![NONE; blocks],
            head: NONE,
            tail: NONE,
            fresh: 0,
        }
    }

    /// Takes a block that is held off the free list.
    pub fn hit(&mut self, name: u64) -> Option<Slot> {
        let slot = *self.held.get(&name)?;
        self.unlink(slot);
        Some(slot)
    }

    /// A slot for a new block, and the name of the block that had to go for it; `None` when
    /// requests use everything.
    pub fn take(&mut self) -> Option<(Slot, Option<u64>)> {
        if (self.fresh as usize) < self.name.len() {
            self.fresh += 1;
            return Some((self.fresh - 1, None));
        }
        let slot = self.head;
        if slot == NONE {
            return None;
        }
        self.unlink(slot);
        let name = self.name[slot as usize];
        self.held.remove(&name);
        Some((slot, Some(name)))
    }

    /// Puts a block into a slot that was taken.
    pub fn fill(&mut self, slot: Slot, name: u64) {
        self.name[slot as usize] = name;
        self.held.insert(name, slot);
    }

    /// Gives a slot back; it is the last to be evicted.
    pub fn free(&mut self, slot: Slot) {
        self.before[slot as usize] = self.tail;
        self.after[slot as usize] = NONE;
        match self.tail {
            NONE => self.head = slot,
            tail => self.after[tail as usize] = slot,
        }
        self.tail = slot;
    }

    /// The blocks it holds.
    pub fn into_held(self) -> ByName<Slot> {
        self.held
    }

    fn unlink(&mut self, slot: Slot) {
        let (before, after) = (self.before[slot as usize], self.after[slot as usize]);
        match before {
            NONE => self.head = after,
            before => self.after[before as usize] = after,
        }
        match after {
            NONE => self.tail = before,
            after => self.before[after as usize] = before,
        }
    }
}
