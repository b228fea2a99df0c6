//! From an engine's event stream to the index.

#[cfg(feature = "zmq")]
pub mod zmq;
