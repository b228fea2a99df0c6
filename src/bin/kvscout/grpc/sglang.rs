//! `kv_indexer.v1.KVIndexer`, SGLang's: blocks by hashes that mean nothing here.

use std::sync::Arc;
use std::time::Instant;

use kvscout::block::Tier;
use tonic::{Code, Request, Response, Status};

use super::App;
use super::generated::kv_indexer_v1::kv_indexer_server::KvIndexer;
use super::generated::kv_indexer_v1::{
    ApplyExternalKvBatchRequest, ApplyExternalKvBatchResponse, ConfigureExpectedWorkersRequest,
    ConfigureExpectedWorkersResponse, ExpectedWorker, ExternalKvAction, ExternalKvActionType,
    ExternalKvNodeMatch, ExternalKvPrefixMatch, GetExternalKvHitCountsRequest,
    GetExternalKvHitCountsResponse, HitCountEntry, MatchExternalKvPrefixRequest,
    MatchExternalKvPrefixResponse, MatchExternalKvRequest, MatchExternalKvResponse,
    ReplaceExternalKvSnapshotRequest, ReplaceExternalKvSnapshotResponse, TierHashes, TierType,
    WorkerCacheSpec,
};
use super::refusal::Failure;
use crate::service::Service;
use crate::service::external::{
    CacheSpec, Change, Coverage, Expected, Holding, Leading, Reported, Told, TooMuch, Unready,
    Whole,
};

/// SGLang's own limits. A question for a prefix has none but that of a message.
const MOST_HASHES: usize = 16_384;
const MOST_ACTIONS: usize = 256;

/// As many as are known at a time.
const MOST_EXPECTED: usize = 4096;

/// Bytes of a worker's name, address and epoch.
const LONGEST_TEXT: usize = 1024;

/// The service.
#[derive(Debug)]
pub(super) struct Bridges(pub(super) Arc<App>);

#[tonic::async_trait]
impl KvIndexer for Bridges {
    async fn configure_expected_workers(
        &self,
        request: Request<ConfigureExpectedWorkersRequest>,
    ) -> Result<Response<ConfigureExpectedWorkersResponse>, Status> {
        let start = Instant::now();
        let outcome = match expected(request.into_inner()) {
            Ok(workers) => {
                let expect = move |service: &Service| {
                    let Coverage { total, ready } = service.external().expect(workers);
                    Ok(ConfigureExpectedWorkersResponse {
                        total_workers: total,
                        ready_workers: ready,
                    })
                };
                self.0.run(0, expect).await
            }
            Err(failure) => Err(failure),
        };
        self.0.answer("kv_indexer.v1.KVIndexer/ConfigureExpectedWorkers", start, outcome)
    }

    async fn replace_external_kv_snapshot(
        &self,
        request: Request<ReplaceExternalKvSnapshotRequest>,
    ) -> Result<Response<ReplaceExternalKvSnapshotResponse>, Status> {
        let start = Instant::now();
        let outcome = match whole(request.into_inner()) {
            Ok(whole) => {
                let size = whole.blocks.iter().map(|(_, blocks)| blocks.len()).sum();
                let replace = move |service: &Service| {
                    let applied_seq = whole.seq;
                    service.external().replace(whole).map_err(unready)?;
                    Ok(ReplaceExternalKvSnapshotResponse { applied_seq })
                };
                self.0.run(size, replace).await
            }
            Err(failure) => Err(failure),
        };
        self.0.answer("kv_indexer.v1.KVIndexer/ReplaceExternalKvSnapshot", start, outcome)
    }

    async fn apply_external_kv_batch(
        &self,
        request: Request<ApplyExternalKvBatchRequest>,
    ) -> Result<Response<ApplyExternalKvBatchResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        let in_order = request.enforce_sequence;
        let outcome = match told(request) {
            Ok(told) => {
                let apply = move |service: &Service| {
                    let applied = match in_order {
                        true => service.external().apply_next(told).map_err(unready)?,
                        false => service.external().apply(told),
                    };
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
        let size = hashes.len();
        let outcome = match check("hashes", &hashes) {
            Ok(()) => {
                let find = move |service: &Service| {
                    let found = service.external().holdings(&hashes, count_as_hit);
                    found.map(matches).map_err(|TooMuch| {
                        Failure::exhausted(
                            "field 'hashes': too many are held by too many; ask for fewer",
                        )
                    })
                };
                self.0.run(size, find).await
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
        let size = hashes.len();
        let outcome = match check("hashes", &hashes) {
            Ok(()) => {
                let count = move |service: &Service| {
                    let hits = service.external().hits(&hashes);
                    let entry = |(hash, hit_count_total)| HitCountEntry { hash, hit_count_total };
                    let entries = hits.into_iter().map(entry).collect();
                    Ok(GetExternalKvHitCountsResponse { entries })
                };
                self.0.run(size, count).await
            }
            Err(failure) => Err(failure),
        };
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
        enforce_sequence: _,
    } = request;
    check_texts("", &worker_id, &worker_address, &worker_epoch)?;
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

/// Refuses a worker without a name, and texts that are too long; `within` is where they are.
fn check_texts(within: &str, id: &str, address: &str, epoch: &str) -> Result<(), Failure> {
    let field = |name: &str| format!("{within}{name}");
    if id.is_empty() {
        return Err(Failure::field(field("worker_id"), "expected a text that is not empty"));
    }
    let texts = [("worker_id", id), ("worker_address", address), ("worker_epoch", epoch)];
    match texts.into_iter().find(|(_, text)| text.len() > LONGEST_TEXT) {
        Some((name, _)) => {
            Err(Failure::field(field(name), format!("expected up to {LONGEST_TEXT} bytes")))
        }
        None => Ok(()),
    }
}

fn expected(request: ConfigureExpectedWorkersRequest) -> Result<Vec<Expected>, Failure> {
    let ConfigureExpectedWorkersRequest { workers } = request;
    if workers.len() > MOST_EXPECTED {
        return Err(Failure::exhausted(format!(
            "field 'workers': expected up to {MOST_EXPECTED}, found {}",
            workers.len()
        )));
    }
    let expected = workers.into_iter().enumerate().map(|(n, worker)| {
        let ExpectedWorker { worker_id, worker_address, cache_spec } = worker;
        check_texts(&format!("workers[{n}]."), &worker_id, &worker_address, "")?;
        Ok(Expected { worker: worker_id, address: worker_address, spec: cache_spec.map(spec) })
    });
    expected.collect()
}

fn whole(request: ReplaceExternalKvSnapshotRequest) -> Result<Whole, Failure> {
    let ReplaceExternalKvSnapshotRequest {
        worker_id,
        worker_address,
        worker_epoch,
        applied_seq,
        hashes_by_tier,
        cache_spec,
    } = request;
    check_texts("", &worker_id, &worker_address, &worker_epoch)?;
    let blocks = hashes_by_tier.into_iter().enumerate().map(|(n, held)| {
        let within = format!("hashes_by_tier[{n}]");
        let tier = tier(&within, held.tier)?;
        Ok((tier, reported(&within, &held.hashes, &held.component_masks, &held.block_sizes)?))
    });
    let blocks = blocks.collect::<Result<_, Failure>>()?;
    let spec = cache_spec.map(spec);
    let expected = Expected { worker: worker_id, address: worker_address, spec };
    Ok(Whole { expected, epoch: worker_epoch, seq: applied_seq, blocks })
}

fn unready(unready: Unready) -> Failure {
    let (reason, message) = match unready {
        Unready::Unexpected => (
            "unexpected_worker",
            "the worker is not among those of ConfigureExpectedWorkers".to_owned(),
        ),
        Unready::NoSnapshot => (
            "no_snapshot",
            "the worker has no snapshot of this worker_epoch: ReplaceExternalKvSnapshot".to_owned(),
        ),
        Unready::Gap { next } => (
            "gap",
            format!("expected seq {next}: the worker holds nothing until its next snapshot"),
        ),
    };
    Failure::new(Code::FailedPrecondition, reason, message)
}

fn tier(within: &str, tier: i32) -> Result<Tier, Failure> {
    match TierType::try_from(tier) {
        Ok(TierType::TierHbm) => Ok(Tier::Gpu),
        Ok(TierType::TierDram) => Ok(Tier::Cpu),
        Ok(TierType::TierSsd) => Ok(Tier::Disk),
        Ok(TierType::TierUnknown) | Err(_) => {
            let wrong = format!("expected 1 (HBM), 2 (DRAM) or 3 (SSD), found {tier}");
            Err(Failure::field(format!("{within}.tier"), wrong))
        }
    }
}

/// Blocks with what is said of each; nothing, or of all.
fn reported(
    within: &str,
    hashes: &[i64],
    component_masks: &[u32],
    block_sizes: &[u32],
) -> Result<Vec<Reported>, Failure> {
    for (name, list) in [("component_masks", component_masks), ("block_sizes", block_sizes)] {
        if !list.is_empty() && list.len() != hashes.len() {
            let wrong = format!(
                "expected none or one for each of {} hashes, found {}",
                hashes.len(),
                list.len()
            );
            return Err(Failure::field(format!("{within}.{name}"), wrong));
        }
    }
    let at = |list: &[u32], n: usize| list.get(n).copied().unwrap_or(0);
    let block = |(n, &hash): (usize, &i64)| Reported {
        hash,
        components: at(component_masks, n),
        tokens: at(block_sizes, n),
    };
    Ok(hashes.iter().enumerate().map(block).collect())
}

fn change(n: usize, action: ExternalKvAction) -> Result<Change, Failure> {
    let within = format!("actions[{n}]");
    let field = |name: &str| format!("{within}.{name}");
    let tier = tier(&within, action.tier)?;
    let ExternalKvAction { r#type, hashes, component_masks, block_sizes, .. } = action;
    match ExternalKvActionType::try_from(r#type) {
        Ok(ExternalKvActionType::ActionClearAllAtTier) => Ok(Change::Clear(tier)),
        Ok(ExternalKvActionType::ActionReport | ExternalKvActionType::ActionRevoke)
            if hashes.is_empty() =>
        {
            Err(none(&field("hashes")))
        }
        Ok(ExternalKvActionType::ActionRevoke) => Ok(Change::Revoke(tier, hashes)),
        Ok(ExternalKvActionType::ActionReport) => {
            Ok(Change::Report(tier, reported(&within, &hashes, &component_masks, &block_sizes)?))
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
