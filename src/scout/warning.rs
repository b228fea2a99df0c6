//! What an operator should look into.

use super::{Unexplained, WorkerStatus};
use crate::hash::vllm::Version;
use crate::ingest::verify::{Checks, Contract, Status, Told};

/// Blocks of fewer tokens are tiny. vLLM's smallest is 8; SGLang's pages have one token unless
/// `--page-size` says otherwise.
const TINY: u32 = 4;

/// In so many changes one unexplained event is nothing to look into: an engine announces what its steps
/// did, and a recording of a real one has none.
const USUAL: u64 = 1000;

/// The first version whose hashes contain an adapter's path, which no event tells.
const HASHES_PATHS: Version = Version::new(0, 31, 0);

/// Something about a worker that is not as it should be, although its answers may be exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// Its blocks have another size than it was registered with. The size in its events counts.
    BlockSizeDiffers,
    /// Its blocks have so few tokens that they cost more memory and time than they need to; they are
    /// indexed all the same, within the budget.
    TinyBlocks,
    /// No known contract gives the names that it announces: a random seed, or a version that is not known.
    /// What it stores with its tokens matches; what is known by name does not.
    ContractUnknown,
    /// Its contract was found, and yet it announced a block of plain text under a name that this does not give: two
    /// engines may share a registration. Where its events hide extra keys (vLLM before 0.17), no prompt has been plain text for
    /// a long time: it may also be that all are salted.
    ContractContradicted,
    /// Its contract was found, and is not by the version or the contract that it was registered with. What was found
    /// counts.
    ContractDiffers,
    /// It serves adapters whose path is not registered; since vLLM 0.31 the names of their blocks
    /// cannot be computed without. See [`WorkerStatus::unknown_adapters`].
    AdapterPathUnknown,
    /// It removes blocks, or stores below blocks, that it was never known to hold, more than once in a
    /// thousand changes, and no loss is known that explains it: its engine may drop events before it numbers
    /// them. See [`WorkerStatus::unexplained`].
    EventsUnexplained,
}

impl Warning {
    /// Every one there is.
    pub const ALL: [Warning; 7] = [
        Warning::BlockSizeDiffers,
        Warning::TinyBlocks,
        Warning::ContractUnknown,
        Warning::ContractContradicted,
        Warning::ContractDiffers,
        Warning::AdapterPathUnknown,
        Warning::EventsUnexplained,
    ];

    /// A stable label, as it appears in answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Warning::BlockSizeDiffers => "block_size_differs",
            Warning::TinyBlocks => "tiny_blocks",
            Warning::ContractUnknown => "contract_unknown",
            Warning::ContractContradicted => "contract_contradicted",
            Warning::ContractDiffers => "contract_differs",
            Warning::AdapterPathUnknown => "adapter_path_unknown",
            Warning::EventsUnexplained => "events_unexplained",
        }
    }

    fn applies(self, status: &WorkerStatus) -> bool {
        let sizes = || status.groups.iter().map(|facts| facts.shape.size);
        match self {
            Warning::BlockSizeDiffers => {
                let registered = status.registration.block_size;
                registered.is_some_and(|size| sizes().next().is_some_and(|first| first != size))
            }
            Warning::TinyBlocks => sizes().any(|size| size.get() < TINY),
            Warning::ContractUnknown => status.contract == Status::Private,
            Warning::ContractContradicted => {
                let Checks { failed, misled, .. } = status.checks;
                matches!(status.contract, Status::Verified(_)) && failed > misled
            }
            Warning::ContractDiffers => differs(status),
            Warning::AdapterPathUnknown => {
                hashes_paths(&status.contract) && !status.unknown_adapters.is_empty()
            }
            Warning::EventsUnexplained => {
                let Unexplained { unknown, changes } = status.unexplained;
                unknown.saturating_mul(USUAL) > changes
            }
        }
    }
}

impl WorkerStatus {
    /// What an operator should look into.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> + '_ {
        Warning::ALL.into_iter().filter(|warning| warning.applies(self))
    }
}

/// Whether the contract that was found is not the registered one.
fn differs(status: &WorkerStatus) -> bool {
    let registration = &status.registration;
    let told = Told { version: registration.vllm, contract: registration.contract.as_ref() };
    matches!(&status.contract, Status::Verified(found) if told.contradicts(found))
}

fn hashes_paths(contract: &Status) -> bool {
    match contract {
        Status::Verified(Contract::Vllm(contract)) => contract.version() >= HASHES_PATHS,
        _ => false,
    }
}
