//! The vocabularies in use.

use std::collections::{HashMap, HashSet};

use crate::block::{SpaceId, VocabularyId};
use crate::index::Home;
use crate::ingest::snapshot::VocabularyState;
use crate::ingest::verify::Contract;

/// Numbers for vocabularies: one for each worker whose contract is not known, one for each space and
/// verified contract. What a registration says of a contract gives a worker names that can be computed, and
/// none that others share: nobody has shown that they are the same.
#[derive(Debug, Default)]
pub(super) struct Vocabularies {
    shared: HashMap<(SpaceId, Contract), VocabularyId>,
    contracts: HashMap<VocabularyId, Contract>,
    told: HashMap<VocabularyId, Contract>,
    next: u32,
}

impl Vocabularies {
    /// Vocabularies of which so many numbers were given.
    pub(super) fn resume(given: u32) -> Vocabularies {
        Vocabularies { next: given, ..Vocabularies::default() }
    }

    /// Puts a shared vocabulary back under its old number.
    pub(super) fn put_back(&mut self, home: Home, contract: Contract) {
        self.shared.insert((home.space, contract.clone()), home.vocabulary);
        self.contracts.insert(home.vocabulary, contract);
    }

    /// How many numbers were given.
    pub(super) fn given(&self) -> u32 {
        self.next
    }

    /// The shared ones, by number.
    pub(super) fn state(&self) -> Vec<VocabularyState> {
        let state = |(&(space, ref contract), &vocabulary): (&(SpaceId, Contract), &_)| {
            VocabularyState { home: Home { space, vocabulary }, contract: contract.into() }
        };
        let mut all: Vec<VocabularyState> = self.shared.iter().map(state).collect();
        all.sort_unstable_by_key(|state| state.home.vocabulary);
        all
    }

    /// A new vocabulary for one worker's names.
    pub(super) fn private(&mut self) -> VocabularyId {
        self.next += 1;
        VocabularyId(self.next)
    }

    /// A new vocabulary for one worker's names, which are said to follow a contract.
    pub(super) fn told(&mut self, contract: &Contract) -> VocabularyId {
        let id = self.private();
        self.tell(id, contract.clone());
        id
    }

    /// Says that a vocabulary follows a contract.
    pub(super) fn tell(&mut self, id: VocabularyId, contract: Contract) {
        self.told.insert(id, contract);
    }

    /// Forgets what was said of a vocabulary, if anything was.
    pub(super) fn doubt(&mut self, id: VocabularyId) {
        self.told.remove(&id);
    }

    /// The vocabulary of everyone in a space who follows a contract.
    pub(super) fn shared(&mut self, space: SpaceId, contract: &Contract) -> VocabularyId {
        if let Some(&id) = self.shared.get(&(space, contract.clone())) {
            return id;
        }
        let id = self.private();
        self.shared.insert((space, contract.clone()), id);
        self.contracts.insert(id, contract.clone());
        id
    }

    /// The contract of a vocabulary, unless it is private.
    pub(super) fn contract(&self, id: VocabularyId) -> Option<&Contract> {
        self.contracts.get(&id).or_else(|| self.told.get(&id))
    }

    /// Forgets what belongs to a space that is gone.
    pub(super) fn forget(&mut self, space: SpaceId) {
        self.shared.retain(|(of, _), _| *of != space);
        let used: HashSet<VocabularyId> = self.shared.values().copied().collect();
        self.contracts.retain(|id, _| used.contains(id));
    }
}
