//! What a worker held as of some batch, kept for audits to begin from.
//!
//! Invariant: all anchors together take no more than their room; where it is used up, none is kept, and the
//! audits that would need it are unavailable.

use std::sync::Arc;

use super::room::{Room, Taken};
use super::{Shared, Stream};
use crate::block::{Group, VocabularyId};
use crate::index::Image;
use crate::ingest::verify::{Status, Verifier};
use crate::score::GroupFacts;

/// A worker's residency by itself, and what its stream knew of it.
#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) image: Image,
    vocabulary: VocabularyId,
    contract: Status,
    hides_extras: bool,
    groups: Vec<GroupFacts>,
    seen_on_gpu: Vec<Group>,
    _room: Taken,
}

impl Anchor {
    /// The last number that was given to a vocabulary in it.
    pub(super) fn given(&self) -> u32 {
        self.vocabulary.0
    }

    /// A stream that goes on from here, its worker's blocks being in an index of their own.
    pub(super) fn resume(&self, fresh: Stream) -> Stream {
        let mut shapes = self.groups.iter().map(|facts| facts.shape);
        let shape = shapes.next().filter(|first| shapes.all(|other| other == *first));
        Stream {
            vocabulary: self.vocabulary,
            verifier: Verifier::resume(self.contract.clone(), self.hides_extras, shape),
            groups: self.groups.clone(),
            seen_on_gpu: self.seen_on_gpu.clone(),
            ..fresh
        }
    }
}

impl Stream {
    /// Keeps an image of what this stream's worker holds, with what `of` knows of it if that is another stream.
    /// Whether there was room; what was kept before is gone in any case.
    pub(super) fn anchor_at(
        &mut self,
        room: &Arc<Room>,
        image: Image,
        of: Option<&Stream>,
    ) -> bool {
        self.anchor = None;
        // It is kept for long, and whoever wrote it made room for more; what is taken is what is counted.
        let mut image = image.into_bytes();
        image.shrink_to_fit();
        let image = Image::from_bytes(image);
        let stream = of.unwrap_or(self);
        let bytes = image.as_bytes().len() + size_of::<Anchor>();
        let anchor = room.take(bytes).map(|room| Anchor {
            image,
            vocabulary: stream.vocabulary,
            contract: stream.verifier.status().clone(),
            hides_extras: stream.verifier.hides_extras(),
            groups: stream.groups.clone(),
            seen_on_gpu: stream.seen_on_gpu.clone(),
            _room: room,
        });
        self.anchor = anchor.map(Box::new);
        self.anchor.is_some()
    }

    /// Keeps what is held now. Writers wait while that is written down.
    pub(super) fn anchor_here(&mut self, shared: &Shared) {
        self.anchor = None;
        if !shared.anchors.is_there() || !self.may_be_audited(shared) {
            return;
        }
        if let Some(image) = shared.index.export_of(self.seat.worker) {
            self.anchored(&shared.anchors, image);
        }
    }

    /// Keeps what a snapshot says is held, as of its watermark.
    pub(in crate::scout) fn anchored(&mut self, room: &Arc<Room>, image: Image) {
        if self.anchor_at(room, image, None) {
            self.lane.anchored();
        }
    }
}
