//! `kv_indexer.v1.KVIndexer`, SGLang's: blocks by hashes that mean nothing here.

use std::sync::Arc;
use std::time::Instant;

use kvscout::block::Tier;
use tonic::{Code, Request, Response, Status};

use super::App;
use super::generated::kv_indexer_v1::kv_indexer_server::KvIndexer;
use super::generated::kv_indexer_v1::{
    ApplyExternalKvBatchRequest, ApplyExternalKvBatchResponse, ExternalKvAction,
    ExternalKvActionType, ExternalKvNodeMatch, ExternalKvPrefixMatch,
    GetExternalKvHitCountsRequest, GetExternalKvHitCountsResponse, HitCountEntry,
    MatchExternalKvPrefixRequest, MatchExternalKvPrefixResponse, MatchExternalKvRequest,
    MatchExternalKvResponse, TierHashes, TierType, WorkerCacheSpec,
};
use super::refusal::Failure;
use crate::service::Service;
use crate::service::external::{CacheSpec, Change, Holding, Leading, Reported, Told, TooMuch};

/// SGLang's own limits. A question for a prefix has none but that of a message.
const MOST_HASHES: usize = 16_384;
const MOST_ACTIONS: usize = 256;

/// Bytes of a worker's name, address and epoch.
const LONGEST_TEXT: usize = 1024;

/// The service.
#[derive(Debug)]
pub(super) struct Bridges(pub(super) Arc<App>);

#[tonic::async_trait]
impl KvIndexer for Bridges {
    async fn apply_external_kv_batch(
        &self,
        request: Request<ApplyExternalKvBatchRequest>,
    ) -> Result<Response<ApplyExternalKvBatchResponse>, Status> {
        let start = Instant::now();
        let outcome = match told(request.into_inner()) {
            Ok(told) => {
                let apply = move |service: &Service| {
                    let applied = service.external().apply(told);
                    let (applied_seq, duplicate) = (applied.seq, applied.duplicate);
                    Ok(ApplyExternalKvBatchResponse { applied_seq, duplicate })
                };
                self.0.run(0, apply).await
            }
            Err(failure) => Err(failure),
        };
        self.0.answer("kv_indexer.v1.KVIndexer/ApplyExternalKvBatch", start, outcome)
    }

    async fn match_external_kv(
        &self,
        request: Request<MatchExternalKvRequest>,
    ) -> Result<Response<MatchExternalKvResponse>, Status> {
        let start = Instant::now();
        let MatchExternalKvRequest { hashes, count_as_hit } = request.into_inner();
        let outcome = match check("hashes", &hashes) {
            Ok(()) => {
                let found = self.0.service.external().holdings(&hashes, count_as_hit);
                found.map(matches).map_err(|TooMuch| {
                    Failure::exhausted(
                        "field 'hashes': too many are held by too many; ask for fewer",
                    )
                })
            }
            Err(failure) => Err(failure),
        };
        self.0.answer("kv_indexer.v1.KVIndexer/MatchExternalKv", start, outcome)
    }

    async fn match_external_kv_prefix(
        &self,
        request: Request<MatchExternalKvPrefixRequest>,
    ) -> Result<Response<MatchExternalKvPrefixResponse>, Status> {
        let start = Instant::now();
        let MatchExternalKvPrefixRequest { mut hashes, max_blocks } = request.into_inner();
        if max_blocks > 0 {
            hashes.truncate(max_blocks as usize);
        }
        let size = hashes.len();
        let find = move |service: &Service| {
            let (found, blocks_read) = service.external().leading(&hashes);
            Ok(MatchExternalKvPrefixResponse {
                best_prefix_blocks: found.first().map_or(0, |best| best.blocks),
                matches: found.into_iter().map(prefix).collect(),
                blocks_read,
            })
        };
        let outcome = match size {
            0 => Err(none("hashes")),
            _ => self.0.run(size, find).await,
        };
        self.0.answer("kv_indexer.v1.KVIndexer/MatchExternalKvPrefix", start, outcome)
    }

    async fn get_external_kv_hit_counts(
        &self,
        request: Request<GetExternalKvHitCountsRequest>,
    ) -> Result<Response<GetExternalKvHitCountsResponse>, Status> {
        let start = Instant::now();
        let GetExternalKvHitCountsRequest { hashes } = request.into_inner();
        let outcome = check("hashes", &hashes).map(|()| {
            let hits = self.0.service.external().hits(&hashes);
            let entry = |(hash, hit_count_total)| HitCountEntry { hash, hit_count_total };
            GetExternalKvHitCountsResponse { entries: hits.into_iter().map(entry).collect() }
        });
        self.0.answer("kv_indexer.v1.KVIndexer/GetExternalKvHitCounts", start, outcome)
    }
}

fn none(field: &str) -> Failure {
    Failure::field(field, "expected one hash at least")
}

fn check(field: &str, hashes: &[i64]) -> Result<(), Failure> {
    match hashes.len() {
        0 => Err(none(field)),
        1..=MOST_HASHES => Ok(()),
        more => Err(Failure::exhausted(format!(
            "field '{field}': expected up to {MOST_HASHES} hashes, found {more}"
        ))),
    }
}

fn told(request: ApplyExternalKvBatchRequest) -> Result<Told, Failure> {
    let ApplyExternalKvBatchRequest {
        worker_id,
        seq,
        actions,
        worker_address,
        cache_spec,
        worker_epoch,
        enforce_sequence,
    } = request;
    if worker_id.is_empty() {
        return Err(Failure::field("worker_id", "expected a text that is not empty"));
    }
    let texts = [
        ("worker_id", &worker_id),
        ("worker_address", &worker_address),
        ("worker_epoch", &worker_epoch),
    ];
    if let Some((name, _)) = texts.into_iter().find(|(_, text)| text.len() > LONGEST_TEXT) {
        return Err(Failure::field(name, format!("expected up to {LONGEST_TEXT} bytes")));
    }
    if enforce_sequence {
        let message =
            "field 'enforce_sequence': needs snapshots of workers, which are not taken here";
        return Err(Failure::new(Code::Unimplemented, "not_implemented", message));
    }
    if actions.len() > MOST_ACTIONS {
        return Err(Failure::exhausted(format!(
            "field 'actions': expected up to {MOST_ACTIONS}, found {}",
            actions.len()
        )));
    }
    let hashes: usize = actions.iter().map(|action| action.hashes.len()).sum();
    if hashes > MOST_HASHES {
        return Err(Failure::exhausted(format!(
            "field 'actions': expected up to {MOST_HASHES} hashes in all, found {hashes}"
        )));
    }
    let changes = actions.into_iter().enumerate().map(|(n, action)| change(n, action));
    Ok(Told {
        changes: changes.collect::<Result<_, _>>()?,
        worker: worker_id,
        address: worker_address,
        epoch: worker_epoch,
        seq,
        spec: cache_spec.map(spec),
    })
}

fn change(n: usize, action: ExternalKvAction) -> Result<Change, Failure> {
    let field = |name: &str| format!("actions[{n}].{name}");
    let tier = match TierType::try_from(action.tier) {
        Ok(TierType::TierHbm) => Tier::Gpu,
        Ok(TierType::TierDram) => Tier::Cpu,
        Ok(TierType::TierSsd) => Tier::Disk,
        Ok(TierType::TierUnknown) | Err(_) => {
            let wrong = format!("expected 1 (HBM), 2 (DRAM) or 3 (SSD), found {}", action.tier);
            return Err(Failure::field(field("tier"), wrong));
        }
    };
    let ExternalKvAction { r#type, hashes, component_masks, block_sizes, .. } = action;
    let for_each = |name: &str, list: &[u32]| match list.len() {
        0 => Ok(()),
        len if len == hashes.len() => Ok(()),
        len => {
            let wrong =
                format!("expected none or one for each of {} hashes, found {len}", hashes.len());
            Err(Failure::field(field(name), wrong))
        }
    };
    match ExternalKvActionType::try_from(r#type) {
        Ok(ExternalKvActionType::ActionClearAllAtTier) => Ok(Change::Clear(tier)),
        Ok(ExternalKvActionType::ActionReport | ExternalKvActionType::ActionRevoke)
            if hashes.is_empty() =>
        {
            Err(none(&field("hashes")))
        }
        Ok(ExternalKvActionType::ActionRevoke) => Ok(Change::Revoke(tier, hashes)),
        Ok(ExternalKvActionType::ActionReport) => {
            for_each("component_masks", &component_masks)?;
            for_each("block_sizes", &block_sizes)?;
            let at = |list: &[u32], n: usize| list.get(n).copied().unwrap_or(0);
            let block = |(n, &hash): (usize, &i64)| Reported {
                hash,
                components: at(&component_masks, n),
                tokens: at(&block_sizes, n),
            };
            Ok(Change::Report(tier, hashes.iter().enumerate().map(block).collect()))
        }
        Ok(ExternalKvActionType::ActionUnknown) | Err(_) => {
            let wrong = format!("expected 1 (report), 2 (revoke) or 3 (clear), found {}", r#type);
            Err(Failure::field(field("type"), wrong))
        }
    }
}

fn spec(spec: WorkerCacheSpec) -> CacheSpec {
    CacheSpec {
        version: spec.version,
        components: spec.components,
        window: spec.swa_window_tokens,
        tiers: [spec.full_tier_mask, spec.swa_tier_mask, spec.mamba_tier_mask],
    }
}

fn matches(found: Vec<Holding>) -> MatchExternalKvResponse {
    let of_tier = |(tier, blocks): (Tier, Vec<Reported>)| {
        let tier = match tier {
            Tier::Gpu => TierType::TierHbm,
            Tier::Cpu => TierType::TierDram,
            _ => TierType::TierSsd,
        };
        TierHashes {
            tier: tier.into(),
            hashes: blocks.iter().map(|block| block.hash).collect(),
            component_masks: blocks.iter().map(|block| block.components).collect(),
            block_sizes: blocks.iter().map(|block| block.tokens).collect(),
        }
    };
    let of_worker = |Holding { worker, address, tiers }: Holding| ExternalKvNodeMatch {
        worker_id: worker.to_string(),
        address: address.to_string(),
        hashes_by_tier: tiers.into_iter().map(of_tier).collect(),
    };
    MatchExternalKvResponse { matches: found.into_iter().map(of_worker).collect() }
}

fn prefix(found: Leading) -> ExternalKvPrefixMatch {
    ExternalKvPrefixMatch {
        worker_address: found.address.to_string(),
        matched_prefix_blocks: found.blocks,
        worker_id: found.worker.to_string(),
    }
}
