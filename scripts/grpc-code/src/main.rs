//! Writes `src/bin/kvscout/grpc/generated/` anew from `proto/`. Run it from the repository's root:
//! `scripts/grpc-code/run`.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

const FILES: [&str; 4] = ["health.proto", "indexer.proto", "kv_indexer.proto", "kvscout.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let into = Path::new("src/bin/kvscout/grpc/generated");
    fs::create_dir_all(into)?;
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .out_dir(into)
        .compile_fds(descriptors)?;
    // What the code was made from: a test compares.
    let mut sums = String::new();
    for file in FILES {
        let sum = Sha256::digest(fs::read(Path::new("proto").join(file))?);
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(sums, "{hex}  {file}")?;
    }
    fs::write(into.join("SHA256SUMS"), sums)?;
    Ok(())
}
