//! How many leading blocks a worker can use, by what its cache is made of.

use kvscout::block::Tier;

use super::{CacheSpec, FULL, STATE, WINDOW, place};

/// The newest version of the rules.
const KNOWN: u32 = 1;

/// Tiers that count where the worker's cache is described, as SGLang numbers them: HBM is 1, DRAM 2. A disk is left
/// out, as SGLang does.
const USABLE: u32 = 1 << 1 | 1 << 2;

/// One worker's blocks from the first on, one after the other.
#[derive(Debug)]
pub(super) struct Scan {
    rules: Rules,
    /// Whether the prefix may become longer.
    goes_on: bool,
    blocks: u32,
    prefix: u32,
    /// Of the block at hand: components in usable tiers, and whether it is there at all.
    there: u32,
    is_there: bool,
    /// Tokens of the window's blocks without a gap, up to here; and whether there was a gap before them.
    run: u64,
    had_gap: bool,
}

#[derive(Clone, Copy, Debug)]
enum Rules {
    /// Nothing is said: whole blocks, in any tier.
    Whole,
    Of(CacheSpec),
    /// What is said cannot be followed: nothing counts.
    Unknown,
}

impl Scan {
    pub(super) fn new(spec: Option<CacheSpec>) -> Scan {
        let rules = match spec {
            None => Rules::Whole,
            Some(spec) if spec.version > KNOWN || spec.components == 0 => Rules::Unknown,
            Some(spec) if spec.components & WINDOW != 0 && spec.window == 0 => Rules::Unknown,
            Some(spec) => Rules::Of(spec),
        };
        Scan {
            rules,
            goes_on: !matches!(rules, Rules::Unknown),
            blocks: 0,
            prefix: 0,
            there: 0,
            is_there: false,
            run: 0,
            had_gap: false,
        }
    }

    /// The block at hand is in a tier, with these components.
    pub(super) fn see(&mut self, tier: Tier, components: u32) {
        self.is_there = true;
        match self.rules {
            // Components of a cache that is not described: no rule says what they are good for.
            Rules::Whole if components != 0 => self.rules = Rules::Unknown,
            Rules::Of(spec) => {
                // SGLang counts its tiers from 1.
                let tier = 1 << (place(tier) + 1) & USABLE;
                for (n, component) in [FULL, WINDOW, STATE].into_iter().enumerate() {
                    if spec.tiers[n] & tier != 0 {
                        self.there |= components & component;
                    }
                }
            }
            Rules::Whole | Rules::Unknown => {}
        }
    }

    /// Ends the block at hand, of so many tokens; whether further blocks matter.
    pub(super) fn end_block(&mut self, tokens: u32) -> bool {
        let (there, is_there) = (self.there, self.is_there);
        (self.there, self.is_there) = (0, false);
        if !self.goes_on {
            return false;
        }
        self.blocks += 1;
        match self.rules {
            Rules::Unknown => (self.goes_on, self.prefix) = (false, 0),
            Rules::Whole if is_there => self.prefix = self.blocks,
            Rules::Of(spec) if there & FULL != 0 => {
                if self.ends_here(&spec, there, tokens) {
                    self.prefix = self.blocks;
                }
            }
            Rules::Whole | Rules::Of(_) => self.goes_on = false,
        }
        self.goes_on
    }

    /// Whether a prefix may end with this block.
    fn ends_here(&mut self, spec: &CacheSpec, there: u32, tokens: u32) -> bool {
        let mut ends = true;
        if spec.components & WINDOW != 0 {
            if there & WINDOW != 0 {
                self.run += u64::from(tokens);
                // Without a gap it reaches back to the start, and no window is longer than that.
                ends &= !self.had_gap || self.run >= u64::from(spec.window);
            } else {
                (self.run, self.had_gap, ends) = (0, true, false);
            }
        }
        if spec.components & STATE != 0 {
            ends &= there & STATE != 0;
        }
        ends
    }

    /// Leading blocks that can be used.
    pub(super) fn prefix(&self) -> u32 {
        self.prefix
    }
}
