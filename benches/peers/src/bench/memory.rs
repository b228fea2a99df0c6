//! Bytes of a (block, worker) entry, each index in a process of its own.

use serde_json::{Value, json};

use super::{Options, feed, progress};
use crate::alloc;
use crate::chain_index::Chains;
use crate::ours::Ours;
use crate::peer::{Peer, Seeds};
use crate::row::Row;
use crate::workload::{Fleet, simulate};

/// The rows of this part.
pub const ROWS: [&str; 2] = ["memory-shared", "memory-unshared"];

/// Measures the rows that are wanted.
pub fn rows(options: &Options) -> Vec<Row> {
    let entries = if options.quick { 100_000 } else { 1_000_000 };
    let wanted = ROWS.into_iter().filter(|row| options.wants(row));
    wanted
        .map(|row| {
            progress(row);
            let share = row == "memory-shared";
            let measured = in_child(Ours::NAME, entries, share)
                .and_then(|ours| Ok((ours, in_child(Chains::NAME, entries, share)?)));
            let (ours, rival) = match measured {
                Ok(both) => both,
                Err(why) => return Row::failed(row, why),
            };
            let bytes = |of: &Value| of["bytes_per_entry"].as_f64().unwrap_or(f64::NAN);
            let whole = |of: &Value| of["entries"] == of["held"];
            let both = whole(&ours) && whole(&rival);
            let detail = json!({"ours": ours, "rival": rival});
            Row::new(row, bytes(&ours), bytes(&rival), Chains::NAME, detail)
                .fail_if(!both, "an index has not the entries that the engines hold")
        })
        .collect()
}

/// Runs this program again to measure one index.
fn in_child(index: &str, entries: usize, share: bool) -> Result<Value, String> {
    let program = std::env::current_exe().map_err(|e| format!("cannot find myself: {e}"))?;
    let output = std::process::Command::new(program)
        .args(["memory", index, &entries.to_string(), if share { "shared" } else { "unshared" }])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| format!("cannot run myself: {e}"))?;
    if !output.status.success() {
        return Err(format!("the process that measures {index} ended with {}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("{index} gave no figures: {e}"))
}

/// Measures one index, in the process that was started for it.
pub fn child(index: &str, entries: usize, share: bool) -> Option<Value> {
    match index {
        Ours::NAME => Some(measure::<Ours>(entries, share)),
        Chains::NAME => Some(measure::<Chains>(entries, share)),
        _ => None,
    }
}

fn measure<P: Peer>(entries: usize, share: bool) -> Value {
    alloc::start_counting();
    let workers = 64;
    let pool = entries / workers;
    let stream = simulate(&Fleet { workers, pool, system_prompts: 32, share, churn: 0, seed: 11 });
    let (live, resident) = (alloc::live(), alloc::resident());
    let peer = P::new(workers, Seeds::Shared);
    let mut writer = peer.writer();
    feed(&peer, &mut writer, &stream, 0..stream.events.len());
    let allocated = alloc::live() - live;
    let resident = alloc::resident() - resident;
    let bytes = |n: i64| n as f64 / stream.entries as f64;
    let result = json!({
        "entries": peer.entries(),
        "held": stream.entries,
        "distinct": distinct(&stream.held),
        // What lies in memory that no allocator gave counts as well.
        "bytes_per_entry": bytes(allocated.max(resident)),
        "allocated_per_entry": bytes(allocated),
        "resident_per_entry": bytes(resident),
    });
    // The process ends here; taking the index apart would be time for nothing.
    std::mem::forget((peer, writer));
    result
}

fn distinct(held: &[crate::workload::ByName<u32>]) -> usize {
    let mut names: Vec<u64> = held.iter().flat_map(|held| held.keys().copied()).collect();
    names.sort_unstable();
    names.dedup();
    names.len()
}
