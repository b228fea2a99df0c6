//! Code made from `proto/` by `scripts/grpc-code/run`; `SHA256SUMS` says of which text.
#![allow(
    clippy::all,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    reason = "nobody wrote it"
)]

#[path = "grpc.health.v1.rs"]
#[rustfmt::skip]
pub(super) mod grpc_health_v1;
#[path = "indexer.v1.rs"]
#[rustfmt::skip]
pub(super) mod indexer_v1;
#[path = "kv_indexer.v1.rs"]
#[rustfmt::skip]
pub(super) mod kv_indexer_v1;
#[path = "kvscout.v1.rs"]
#[rustfmt::skip]
pub(super) mod kvscout_v1;
