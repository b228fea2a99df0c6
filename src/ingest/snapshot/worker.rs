//! One worker in a snapshot: who it is, and how far its stream was followed.
//!
//! Invariant: decoding reads exactly what encoding wrote and refuses everything else; texts stand
//! for engines, algorithms, reasons and versions, so that their numbers here may change.

use super::plain::{number, option, read_flag, read_option, read_text, text, word};
use crate::block::{BlockSize, Group, Shape, SpaceId, VocabularyId, WorkerId};
use crate::error::Error;
use crate::hash::vllm::{self, Algorithm, Root, Version};
use crate::index::image::Reader;
use crate::ingest::Reason;
use crate::ingest::verify::{Contract, Status};
use crate::score::{GroupFacts, GroupRule};

/// What a snapshot keeps of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerState {
    /// Its number in the index's image.
    pub worker: WorkerId,
    /// Its (tenant, model) there.
    pub space: SpaceId,
    /// The contract of its names there.
    pub vocabulary: VocabularyId,
    /// The registration's tenant.
    pub tenant: String,
    /// The registration's pod.
    pub pod: String,
    /// The registration's data-parallel rank.
    pub rank: u32,
    /// The registration's model.
    pub model: Option<String>,
    /// The registration's vLLM version.
    pub vllm: Option<Version>,
    /// The block size that the operator expects.
    pub block_size: Option<BlockSize>,
    /// Whether, by the registration, a clear that names no tier is about the GPU alone.
    pub clears_gpu_only: bool,
    /// Whether, by the registration, a block that is stored again is the same copy.
    pub reports_presence: bool,
    /// The hash contract that the registration names; undecided where it names none.
    pub told: KeptContract,
    /// What whoever registered it wants to have back, untouched: where its events come from, say.
    pub attached: String,
    /// Which life of its publisher the rest is about.
    pub incarnation: u64,
    /// The last batch whose effect is in the image, if any.
    pub watermark: Option<Watermark>,
    /// Why the image may differ from the effect of all batches up to there.
    pub unsound: Option<Reason>,
    /// Whether an operator has cleared it since its engine last did: then the image is less than the effect
    /// of all batches.
    pub cleared_by_hand: bool,
    /// Whether its events leave extra keys out.
    pub hides_extras: bool,
    /// The hash contract that was detected.
    pub contract: KeptContract,
    /// What is known of its cache groups, ascending.
    pub groups: Vec<GroupState>,
}

/// A batch: enough to recognise it when it comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// Its number.
    pub seq: u64,
    /// XXH3-64 of its payload.
    pub digest: u64,
    /// The bits of its own timestamp.
    pub timestamp: u64,
}

/// A cache group, and whether its unit was seen on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// What scores use.
    pub facts: GroupFacts,
    /// Whether it is the unit of blocks on the GPU, which no other tier changes.
    pub on_gpu: bool,
}

/// The outcome of the contract check, in words that outlast a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptContract {
    /// Nothing was found out yet.
    Undecided,
    /// Names cannot be recomputed.
    Private,
    /// vLLM's hashes.
    Vllm {
        /// The version whose rules apply.
        version: Version,
        /// The algorithm.
        algorithm: Algorithm,
        /// The root hash as [`Root::Hash`] takes it.
        root: String,
    },
    /// SGLang's hashes.
    Sglang,
}

impl From<&Contract> for KeptContract {
    fn from(contract: &Contract) -> KeptContract {
        match contract {
            Contract::Vllm(contract) => KeptContract::Vllm {
                version: contract.version(),
                algorithm: contract.algorithm(),
                root: contract.root().to_string(),
            },
            Contract::Sglang => KeptContract::Sglang,
        }
    }
}

impl From<&Status> for KeptContract {
    fn from(status: &Status) -> KeptContract {
        match status {
            Status::Undecided => KeptContract::Undecided,
            Status::Private => KeptContract::Private,
            Status::Verified(contract) => contract.into(),
        }
    }
}

impl KeptContract {
    /// The contract again, `None` where names cannot be recomputed.
    ///
    /// Of `known`, the contracts that are tried anyway, the one that is meant is taken: it may know
    /// the seed, which is more than the root hash where `builtin` hashes texts.
    ///
    /// # Errors
    ///
    /// What [`vllm::Contract::new`] says of a root hash that fits no rule.
    pub fn restore<'a>(
        &self,
        known: impl IntoIterator<Item = &'a Contract>,
    ) -> Result<Option<Contract>, Error> {
        match self {
            KeptContract::Undecided | KeptContract::Private => Ok(None),
            KeptContract::Sglang => Ok(Some(Contract::Sglang)),
            KeptContract::Vllm { version, algorithm, root } => {
                if let Some(same) = known.into_iter().find(|c| KeptContract::from(*c) == *self) {
                    return Ok(Some(same.clone()));
                }
                let root = Root::Hash(root);
                let contract = vllm::Contract::new(*version, *algorithm, root)?;
                Ok(Some(Contract::Vllm(contract)))
            }
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            KeptContract::Undecided => out.push(0),
            KeptContract::Private => out.push(1),
            KeptContract::Vllm { version, algorithm, root } => {
                out.push(2);
                text(out, &version.to_string());
                text(out, algorithm.as_str());
                text(out, root);
            }
            KeptContract::Sglang => out.push(3),
        }
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<KeptContract, Error> {
        Ok(match from.u8()? {
            0 => KeptContract::Undecided,
            1 => KeptContract::Private,
            2 => {
                let version = read_text(from)?.parse()?;
                let algorithm = read_text(from)?.parse()?;
                KeptContract::Vllm { version, algorithm, root: read_text(from)? }
            }
            3 => KeptContract::Sglang,
            n => return Err(from.wrong(format_args!("{n} is no contract"))),
        })
    }
}

impl WorkerState {
    /// No worker takes fewer bytes.
    pub(super) const LEAST: usize =
        12 + 4 + 4 + 4 + 1 + 1 + 4 + 2 + 1 + 4 + 8 + 1 + 1 + 1 + 1 + 1 + 4;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for n in [self.worker.0, self.space.0, self.vocabulary.0] {
            number(out, n);
        }
        text(out, &self.tenant);
        text(out, &self.pod);
        number(out, self.rank);
        option(out, self.model.as_ref(), |out, model| text(out, model));
        option(out, self.vllm, |out, version| text(out, &version.to_string()));
        number(out, self.block_size.map_or(0, BlockSize::get));
        out.push(u8::from(self.clears_gpu_only));
        out.push(u8::from(self.reports_presence));
        self.told.encode(out);
        text(out, &self.attached);
        word(out, self.incarnation);
        option(out, self.watermark, |out, mark| {
            [mark.seq, mark.digest, mark.timestamp].into_iter().for_each(|n| word(out, n));
        });
        option(out, self.unsound, |out, reason| text(out, reason.as_str()));
        out.push(u8::from(self.cleared_by_hand));
        out.push(u8::from(self.hides_extras));
        self.contract.encode(out);
        number(out, self.groups.len() as u32);
        for GroupState { facts, on_gpu } in &self.groups {
            number(out, facts.group.0);
            let (rule, tokens) = match facts.rule {
                GroupRule::Full => (0, 0),
                GroupRule::Window { tokens } => (1, tokens),
                GroupRule::Unannounced => (2, 0),
                GroupRule::NoRule => (3, 0),
            };
            out.push(rule);
            number(out, tokens);
            number(out, facts.shape.size.get());
            number(out, facts.shape.lookahead);
            out.push(u8::from(*on_gpu));
        }
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<WorkerState, Error> {
        Ok(WorkerState {
            worker: WorkerId(from.u32()?),
            space: SpaceId(from.u32()?),
            vocabulary: VocabularyId(from.u32()?),
            tenant: read_text(from)?,
            pod: read_text(from)?,
            rank: from.u32()?,
            model: read_option(from, read_text)?,
            vllm: read_option(from, |from| read_text(from)?.parse())?,
            block_size: BlockSize::new(from.u32()?),
            clears_gpu_only: read_flag(from)?,
            reports_presence: read_flag(from)?,
            told: KeptContract::decode(from)?,
            attached: read_text(from)?,
            incarnation: from.u64()?,
            watermark: read_option(from, |from| {
                let (seq, digest, timestamp) = (from.u64()?, from.u64()?, from.u64()?);
                Ok(Watermark { seq, digest, timestamp })
            })?,
            unsound: read_option(from, |from| {
                let label = read_text(from)?;
                Reason::from_label(&label)
                    .ok_or_else(|| from.wrong(format_args!("{label:?} is no reason")))
            })?,
            cleared_by_hand: read_flag(from)?,
            hides_extras: read_flag(from)?,
            contract: KeptContract::decode(from)?,
            groups: (0..from.count(18)?).map(|_| read_group(from)).collect::<Result<_, _>>()?,
        })
    }
}

fn read_group(from: &mut Reader<'_>) -> Result<GroupState, Error> {
    let group = Group(from.u32()?);
    let rule = match (from.u8()?, from.u32()?) {
        (0, 0) => GroupRule::Full,
        (1, tokens) => GroupRule::Window { tokens },
        (2, 0) => GroupRule::Unannounced,
        (3, 0) => GroupRule::NoRule,
        (n, _) => return Err(from.wrong(format_args!("{n} is no rule of a group"))),
    };
    let Some(size) = BlockSize::new(from.u32()?) else {
        return Err(from.wrong("a group's blocks have no tokens"));
    };
    let facts = GroupFacts { group, rule, shape: Shape { size, lookahead: from.u32()? } };
    Ok(GroupState { facts, on_gpu: read_flag(from)? })
}
