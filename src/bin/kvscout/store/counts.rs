//! What there is to count of a shared store, for `/metrics`.

use std::fmt;

use kvscout::scout::shared::WriterReport;
use prometheus_client::encoding::DescriptorEncoder;

use super::{BehindReport, SharedReport};
use crate::metrics::{Kind, numbers, numbers_by, seconds, seconds_in_all};

/// Writes everything that is counted.
pub(crate) fn encode(to: &mut DescriptorEncoder<'_>, report: &SharedReport) -> fmt::Result {
    let link = &report.link;
    numbers(
        to,
        Kind::Gauge,
        &[
            ("store_servers", "Servers of the store", link.servers),
            ("store_servers_ready", "Servers with a connection in use", link.servers_ready),
            ("store_in_flight", "Calls that wait for the store", link.in_flight),
        ],
    )?;
    numbers(
        to,
        Kind::Counter,
        &[
            ("store_calls", "Calls to the store", link.calls),
            ("store_answers", "Calls that were answered", link.answered),
            ("store_breaker_opened", "Times that a breaker opened", link.opened),
            ("store_reconnects", "Connections made again", link.reconnects),
        ],
    )?;
    let help = "How long answers of the store took, together";
    seconds_in_all(to, "store_answer_seconds", help, link.answer_time)?;
    let failures = [
        ("down", link.down),
        ("late", link.late),
        ("busy", link.busy),
        ("denied", link.denied),
        ("server", link.server),
    ];
    let named = ("store_failures", "Calls and commands that failed");
    numbers_by(to, Kind::Counter, named, "why", failures)?;
    if let Some(age) = report.workers_age {
        seconds(to, "store_read_age", "Time since it was read which workers there are", age)?;
    }
    match &report.behind {
        Some(behind) => kept(to, behind),
        None => Ok(()),
    }
}

/// What is kept behind memory.
fn kept(to: &mut DescriptorEncoder<'_>, behind: &BehindReport) -> fmt::Result {
    let WriterReport { following, behind: to_build, elsewhere, .. } = behind.writer;
    let states = [("following", following), ("behind", to_build), ("elsewhere", elsewhere)];
    let named = ("store_workers", "Workers by who keeps their part of the store");
    numbers_by(to, Kind::Gauge, named, "state", states)?;
    let (steps, bytes) = behind.queue;
    numbers(
        to,
        Kind::Gauge,
        &[
            ("store_queue_steps", "Steps that wait for the store", steps as u64),
            ("store_queue_bytes", "Bytes of them", bytes as u64),
            (
                "store_lag_steps",
                "The most steps of one worker that is kept here",
                behind.writer.lag,
            ),
            ("store_foreign", "Whether the store has another secret", behind.is_foreign.into()),
        ],
    )?;
    let (saved, failed) = behind.snapshots;
    numbers(
        to,
        Kind::Counter,
        &[
            ("store_applied", "Steps applied to the store", behind.writer.applied),
            ("store_rebuilt", "Parts of the store built anew", behind.writer.rebuilt),
            (
                "store_diverged",
                "Of these, because the store had lost something",
                behind.writer.diverged,
            ),
            ("store_left_out", "Copies and names that could not be kept", behind.writer.left_out),
            ("store_dropped", "Steps dropped because too much waited", behind.dropped),
            ("store_snapshots", "Snapshots left in the store", saved),
            ("store_snapshot_failures", "Snapshots that could not be", failed),
        ],
    )?;
    match behind.snapshot_age {
        Some(age) => {
            let help = "Time since the last snapshot was left in the store";
            seconds(to, "store_snapshot_age", help, age)
        }
        None => Ok(()),
    }
}
