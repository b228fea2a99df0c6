//! Each worker with everything that is known around it.

use std::time::Duration;

use kvscout::ingest::verify::{Contract, Status};
use kvscout::ingest::zmq::{Endpoint, Mode, SourceStatus};
use kvscout::scout::{Warning, WorkerStatus};

use super::answering::trust;
use super::{Labels, Record, Service};
use crate::intake::{Feed, Heard};

/// A worker with everything around it.
#[derive(Debug)]
pub(crate) struct WorkerView {
    /// What the index knows.
    pub(crate) status: WorkerStatus,
    /// How it is fed.
    pub(crate) feed: Option<Feed>,
    /// What its own source has counted.
    pub(crate) source: Option<SourceStatus>,
    /// What routers tell it apart by.
    pub(crate) labels: Labels,
    /// What it delivered of what was expected, as far as routers said.
    pub(crate) receipts: Option<Record>,
    /// How often routers picked it.
    pub(crate) picks: u64,
    /// What came last of it.
    pub(crate) heard: Option<Heard>,
}

impl WorkerView {
    /// Where its batches come from: the port in use, where any was asked for.
    pub(crate) fn endpoint(&self) -> Option<&Endpoint> {
        match (&self.source, &self.feed) {
            // By its name, if it has one.
            (_, Some(Feed::Source { endpoint, mode: Mode::Connect, .. })) => Some(endpoint),
            (Some(source), _) => Some(&source.endpoint),
            (None, Some(Feed::Source { endpoint, .. })) => Some(endpoint),
            _ => None,
        }
    }

    /// Where its past batches are asked for.
    pub(crate) fn replay(&self) -> Option<&Endpoint> {
        match &self.feed {
            Some(Feed::Source { replay, .. }) => replay.as_ref(),
            _ => None,
        }
    }

    /// Whether its publisher is connected, where it has a source of its own.
    pub(crate) fn link(&self) -> &'static str {
        match (&self.source, &self.feed) {
            (Some(source), _) if source.up => "up",
            (Some(_), _) => "down",
            (None, Some(_)) => "shared",
            (None, None) => "none",
        }
    }

    /// How long it has published nothing although it could: at most since it was registered here, or its
    /// link came up. None while that is down.
    pub(crate) fn quiet(&self) -> Option<Duration> {
        let source = self.source.as_ref();
        let since = self.heard.map(|heard| heard.at).max(source.and_then(|source| source.since));
        let is_down = source.is_some_and(|source| !source.up);
        since.filter(|_| !is_down).map(|since| since.elapsed())
    }

    /// What an operator should look into.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = &'static str> {
        let short = self.receipts.as_ref().filter(|record| record.is_off);
        let warnings = self.status.warnings().map(|warning| warning.as_str());
        warnings.chain(short.map(|_| "receipts_fall_short"))
    }
}

/// What is known of how a worker's blocks are hashed, and the contract if one is.
pub(crate) fn contract_state(worker: &WorkerStatus) -> (&'static str, Option<&Contract>) {
    let differs = worker.warnings().any(|warning| {
        matches!(warning, Warning::BlockSizeDiffers | Warning::ContractContradicted)
    });
    let (name, contract) = match (&worker.contract, &worker.registration.contract) {
        (Status::Undecided, None) => ("undecided", None),
        (Status::Undecided, told) => ("told", told.as_ref()),
        (Status::Private, None) => ("private", None),
        (Status::Private, Some(_)) => ("contradictory", None),
        (Status::Verified(contract), _) => ("verified", Some(contract)),
    };
    (if differs { "contradictory" } else { name }, contract)
}

impl Service {
    /// Every worker, by tenant, pod and rank.
    pub(crate) fn workers(&self) -> Vec<WorkerView> {
        let feeds = self.switchboard.feeds.lock().clone();
        let heard = self.switchboard.heard.lock().clone();
        let of_others = self.labels_of_others();
        let views = self.statuses().into_iter().map(|mut status| {
            let feed = feeds.get(&status.worker).cloned();
            let source = self.source_of(feed.as_ref());
            status.trust = trust(status.trust, status.as_of, feed.as_ref(), source.as_ref());
            let labels = match of_others.get(&status.worker) {
                Some(labels) => labels.clone(),
                None => self.labels.of(status.worker),
            };
            let receipts = self.receipts.of(status.worker);
            let picks = self.picks.of(status.worker);
            let heard = heard.get(&status.worker).copied();
            WorkerView { status, feed, source, labels, receipts, picks, heard }
        });
        views.collect()
    }

    /// What a worker's own source has counted.
    pub(super) fn source_of(&self, feed: Option<&Feed>) -> Option<SourceStatus> {
        match feed {
            Some(Feed::Source { source, .. }) => self.receiver.status_of(*source),
            _ => None,
        }
    }
}
