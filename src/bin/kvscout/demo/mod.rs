//! demo
mod engine;
mod wire;
