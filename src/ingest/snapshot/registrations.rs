//! Who is registered, and which numbers were given.

use super::WorkerState;
use super::plain::{ended, number, option, read_option, read_text, text, word};
use super::worker::KeptContract;
use crate::block::{SpaceId, VocabularyId};
use crate::error::Error;
use crate::index::Home;
use crate::index::image::Reader;

/// What a snapshot keeps beside the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registrations {
    /// The numbers given so far.
    pub given: Given,
    /// The shared vocabularies, those that nobody speaks any more included: blocks may still have
    /// names in them.
    pub vocabularies: Vec<VocabularyState>,
    /// LoRA adapters.
    pub adapters: Vec<AdapterState>,
    /// Adapters that became something else under their old name.
    pub editions: Vec<EditionState>,
    /// Workers.
    pub workers: Vec<WorkerState>,
}

/// How far numbers were given: none is given twice, since what is left of an old one must not show
/// in a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// To workers.
    pub workers: u32,
    /// To spaces.
    pub spaces: u32,
    /// To vocabularies.
    pub vocabularies: u32,
}

/// A vocabulary, and the contract that everyone follows who speaks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VocabularyState {
    /// Its numbers in the index's image.
    pub home: Home,
    /// The contract.
    pub contract: KeptContract,
}

/// A LoRA adapter that requests may name instead of its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterState {
    /// Whose it is.
    pub tenant: String,
    /// What requests call it.
    pub name: String,
    /// The model it belongs to.
    pub model: String,
    /// The engine's integer id.
    pub id: Option<i64>,
    /// The path as the engine sees it.
    pub path: Option<String>,
}

/// How often an adapter's name came to mean other weights: part of the content of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EditionState {
    /// Whose it is.
    pub tenant: String,
    /// Its name.
    pub adapter: String,
    /// How often.
    pub number: u32,
}

impl Registrations {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let Given { workers, spaces, vocabularies } = self.given;
        [workers, spaces, vocabularies].into_iter().for_each(|n| number(&mut out, n));
        number(&mut out, self.vocabularies.len() as u32);
        for VocabularyState { home, contract } in &self.vocabularies {
            number(&mut out, home.space.0);
            number(&mut out, home.vocabulary.0);
            contract.encode(&mut out);
        }
        number(&mut out, self.adapters.len() as u32);
        for AdapterState { tenant, name, model, id, path } in &self.adapters {
            [tenant, name, model].into_iter().for_each(|part| text(&mut out, part));
            option(&mut out, *id, |out, id| word(out, id as u64));
            option(&mut out, path.as_ref(), |out, path| text(out, path));
        }
        number(&mut out, self.editions.len() as u32);
        for EditionState { tenant, adapter, number: n } in &self.editions {
            [tenant, adapter].into_iter().for_each(|part| text(&mut out, part));
            number(&mut out, *n);
        }
        number(&mut out, self.workers.len() as u32);
        self.workers.iter().for_each(|worker| worker.encode(&mut out));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Registrations, Error> {
        let mut from = Reader::new(bytes);
        let from = &mut from;
        let (workers, spaces, vocabularies) = (from.u32()?, from.u32()?, from.u32()?);
        let given = Given { workers, spaces, vocabularies };
        let mut registrations = Registrations { given, ..Registrations::default() };
        for _ in 0..from.count(9)? {
            let home = Home { space: SpaceId(from.u32()?), vocabulary: VocabularyId(from.u32()?) };
            let contract = KeptContract::decode(from)?;
            registrations.vocabularies.push(VocabularyState { home, contract });
        }
        for _ in 0..from.count(14)? {
            registrations.adapters.push(AdapterState {
                tenant: read_text(from)?,
                name: read_text(from)?,
                model: read_text(from)?,
                id: read_option(from, |from| Ok(from.u64()? as i64))?,
                path: read_option(from, read_text)?,
            });
        }
        for _ in 0..from.count(12)? {
            let (tenant, adapter) = (read_text(from)?, read_text(from)?);
            registrations.editions.push(EditionState { tenant, adapter, number: from.u32()? });
        }
        for _ in 0..from.count(WorkerState::LEAST)? {
            registrations.workers.push(WorkerState::decode(from)?);
        }
        ended(from)?;
        Ok(registrations)
    }
}
