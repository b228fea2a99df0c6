//! Whatever lies in a store is read as what it should be, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| kvscout::index::redis::damage::read(bytes));
