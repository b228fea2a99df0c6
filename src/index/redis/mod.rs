//! The index on a Redis or Valkey server, shared by several processes.

// The store is the caller of what is unused here.
#[allow(dead_code, unused_imports)]
mod link;

pub use link::{
    BreakerState, Secret, StoreAddress, StoreCounters, StoreOptions, StoreWarning, WarningKind,
};
