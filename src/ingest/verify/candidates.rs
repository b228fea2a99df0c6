//! Which contracts a worker's events may follow: by their form, and by what was said when it was registered.

use super::Contract;
use crate::event::Form;
use crate::hash::vllm::{self, Algorithm, Root, Version};

/// Seeds that are always tried: what guides and charts of vLLM deployments set.
pub const COMMON_SEEDS: [&str; 2] = ["0", "42"];

/// Every contract that is tried, by the form of the events that it can come with.
#[derive(Clone, Debug)]
pub struct Candidates {
    seeds: Vec<String>,
    by_form: Vec<(Form, Vec<Contract>)>,
}

impl Candidates {
    /// The unset default, the seeds that deployments commonly set, and these.
    pub fn new(seeds: &[String]) -> Candidates {
        let mut all: Vec<String> = COMMON_SEEDS.map(str::to_owned).to_vec();
        for seed in seeds {
            if !all.contains(seed) {
                all.push(seed.clone());
            }
        }
        let forms = [6, 7, 8, 9, 10, 12].map(Form::Array).into_iter().chain([Form::Map]);
        let by_form = forms
            .map(|form| {
                let mut contracts = Vec::new();
                for &version in versions(form) {
                    contracts.extend(of_version(version, &all));
                }
                if matches!(form, Form::Array(..=7) | Form::Map) {
                    contracts.push(Contract::Sglang);
                }
                (form, contracts)
            })
            .collect();
        Candidates { seeds: all, by_form }
    }

    /// Every contract that is tried, some more than once.
    pub fn contracts(&self) -> impl Iterator<Item = &Contract> {
        self.by_form.iter().flat_map(|(_, contracts)| contracts)
    }

    /// What an engine with this form of events can follow: the rules of its version if that is known, what it is said to follow
    /// under the rules that this form can come with, and last, as what is said may be wrong, all that can come with the form.
    pub(super) fn of(&self, form: Form, told: Told<'_>) -> Vec<Contract> {
        let mut contracts = Vec::new();
        if let Some(version) = told.version {
            contracts = of_version(version, &self.seeds);
        }
        match told.contract {
            Some(Contract::Vllm(contract)) => {
                let root = contract.root().to_string();
                let versions = told.version.as_slice().iter().chain(versions(form));
                contracts.extend(versions.filter_map(|&version| {
                    let root = Root::Hash(&root);
                    vllm::Contract::new(version, contract.algorithm(), root)
                        .ok()
                        .map(Contract::Vllm)
                }));
            }
            Some(Contract::Sglang) | None => contracts.extend(told.contract.cloned()),
        }
        for contract in self.of_form(form) {
            if !contracts.contains(&contract) {
                contracts.push(contract);
            }
        }
        contracts
    }

    fn of_form(&self, form: Form) -> Vec<Contract> {
        let known = self.by_form.iter().rev().find(|(f, _)| match (f, form) {
            (Form::Array(least), Form::Array(fields)) => *least <= fields,
            (f, form) => *f == form,
        });
        known.map_or_else(Vec::new, |(_, contracts)| contracts.clone())
    }
}

/// The versions whose rules stand for all that write this form. Plain blocks are hashed alike within each and prove the
/// newest, so that names which older ones give are asked for as well ([`Contract::elder`]). Maps list extra keys that can be
/// read, and so tell the two generations that write them apart where a first block has some.
fn versions(form: Form) -> &'static [Version] {
    const SIX: [Version; 2] = [Version::new(0, 9, 2), Version::new(0, 10, 1)];
    const SEVEN: [Version; 1] = [Version::new(0, 13, 0)];
    const EIGHT: [Version; 1] = [Version::new(0, 16, 0)];
    const NINE: [Version; 1] = [Version::new(0, 19, 0)];
    const TEN: [Version; 1] = [Version::new(0, 21, 0)];
    const TWELVE: [Version; 1] = [Version::new(0, 23, 0)];
    const MAP: [Version; 2] = [Version::new(0, 33, 0), Version::new(0, 30, 0)];
    match form {
        Form::Array(..=6) => &SIX,
        Form::Array(7) => &SEVEN,
        Form::Array(8) => &EIGHT,
        Form::Array(9) => &NINE,
        Form::Array(10 | 11) => &TEN,
        Form::Array(12..) => &TWELVE,
        Form::Map => &MAP,
    }
}

fn of_version(version: Version, seeds: &[String]) -> Vec<Contract> {
    let roots = || [Root::Unset].into_iter().chain(seeds.iter().map(|seed| Root::Seed(seed)));
    let mut contracts = Vec::new();
    for algorithm in Algorithm::ALL {
        for root in roots() {
            // An algorithm that the version lacks, or a default root that is random, is no
            // candidate.
            if let Ok(contract) = vllm::Contract::new(version, algorithm, root) {
                let contract = Contract::Vllm(contract);
                if !contracts.contains(&contract) {
                    contracts.push(contract);
                }
            }
        }
    }
    contracts
}

/// What was said of a worker's contract when it was registered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told<'a> {
    /// The engine's version.
    pub version: Option<Version>,
    /// The contract.
    pub contract: Option<&'a Contract>,
}

impl Told<'_> {
    /// Whether a contract that was found is not what was said: another algorithm or root hash, or not by the rules of the version.
    pub fn contradicts(&self, found: &Contract) -> bool {
        let rules = |version| match found {
            Contract::Vllm(found) => found.has_rules_of(version),
            Contract::Sglang => false,
        };
        // Who says no more than an algorithm and a seed means the root that its engine makes of that.
        let hashes = |told: &Contract| match (told, found) {
            (Contract::Vllm(told), Contract::Vllm(found)) => {
                told.algorithm() == found.algorithm() && !told.differs_in_root(found)
            }
            (told, found) => told == found,
        };
        !self.version.is_none_or(rules) || !self.contract.is_none_or(hashes)
    }
}
