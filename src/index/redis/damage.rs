//! Any bytes as what a store answers: for tests that none of it does harm.

use redis::Value;

use super::bind::Bound;
use super::called::Called;
use super::chain::{Link, SEGMENT, TAG, Tag, first};
use super::lay::{Piece, Told};
use super::local::{Table, Texts};
use super::meaning::{Runs, spot};
use super::place::{Meaning, Place};
use super::read::walk;
use super::remove::Taken;
use super::run::{Run, holds};
use super::table::Space;
use super::unplaced::Waiter;
use crate::block::Name;
use crate::error::{Error, ErrorKind};

const KEY: &[u8] = b"key";

/// Reads the bytes as values of the store, each as what its first byte says, and walks a path along the
/// runs that are among them.
///
/// # Panics
///
/// If a value is neither refused with an error of kind [`Decode`](ErrorKind::Decode) nor taken for something
/// that lies within its bounds.
pub fn read(bytes: &[u8]) {
    let (mut input, mut runs, mut texts) = (Input(bytes), Vec::new(), Texts::default());
    while let Some(kind) = input.byte() {
        let value = input.value(0);
        match kind % 9 {
            0 => runs.extend(checked(Run::read(KEY, value)).flatten()),
            1 => drop(checked(Space::read(KEY, value))),
            2 => {
                if let Some(table) = checked(Table::read(KEY, value, &mut texts)) {
                    assert!(
                        table.workers.values().all(
                            |w| texts.known(w.id).is_some() || w.id.0 < super::local::STRANGERS
                        )
                    );
                }
            }
            3 => places(value),
            4 => waiter(value),
            5 => {
                let taken = checked(Taken::read(KEY, &[3; TAG], value));
                assert!(taken.is_none_or(|taken| taken.hits.len() <= bytes.len()));
            }
            6 => told(value),
            7 => bound(value),
            _ => called(value),
        }
    }
    along(runs);
}

fn checked<T>(read: Result<T, Error>) -> Option<T> {
    read.map_err(|error| assert_eq!(error.kind(), ErrorKind::Decode, "{error}")).ok()
}

fn string(value: Value) -> Option<Vec<u8>> {
    checked(super::reply::bytes(KEY, value))
}

/// A list that is one gives the same places again, and a holder's field can be asked for any offset.
fn places(value: Value) {
    let Some(bytes) = string(value) else { return };
    if let Some(meanings) = Meaning::list(&bytes) {
        let again: Vec<u8> = meanings.iter().flat_map(Meaning::bytes).collect();
        assert!(again.len() <= bytes.len());
        assert_eq!(Meaning::list(&again), Some(meanings));
    }
    if let Some(place) = Place::read(&bytes) {
        assert!(usize::from(place.offset) < SEGMENT);
    }
    let held = (0..=u8::MAX).filter(|&offset| holds(&bytes, offset)).count();
    assert!(held == 0 || bytes.len() > 12);
}

/// No block beyond the segment has a name.
fn called(value: Value) {
    let Some(called) = checked(Called::read(KEY, ([3; TAG], [3; 8]), 10, value)) else { return };
    for name in [0, 1, u64::MAX] {
        assert!(called.places(Name(name)).all(|at| (10..SEGMENT).contains(&at.offset.into())));
    }
}

fn waiter(value: Value) {
    let Some(bytes) = string(value) else { return };
    if let Some(waiter) = checked(Waiter::read(KEY, &bytes)) {
        let head = if waiter.hook.is_some() { 25 } else { 1 };
        assert_eq!(head + waiter.holders.len() * 20, bytes.len());
    }
}

/// Of a piece in the middle of a stretch and of its segment.
fn told(value: Value) {
    let Some(bytes) = string(value) else { return };
    let piece = Piece { tag: [3; TAG], begin: [3; 8], offset: 10, from: 7, to: 47 };
    let mut told = Told::default();
    if checked(told.read(KEY, &piece, &bytes)).is_some() {
        for (at, place) in told.unbound.iter().chain(&told.bound) {
            assert!((piece.from..piece.to).contains(at));
            assert_eq!(usize::from(place.offset), at - piece.from + piece.offset);
        }
        (0..64)
            .for_each(|at| assert!(told.place(at).is_none_or(|p| usize::from(p.offset) < SEGMENT)));
    }
}

fn bound(value: Value) {
    let place = Place { tag: [3; TAG], run: [3; 8], offset: 0 };
    let names = [1, 2, 3].map(|n| (Name(n), place, false));
    let mut bound = Bound { status: vec![b'0'; 3], ..Bound::default() };
    if checked(bound.read(KEY, &[0, 2], &names, value)).is_some() {
        assert!(bound.waiting.iter().all(|(n, _)| [0, 2].contains(n)));
    }
}

/// Walks the path that goes through each run's blocks in turn: the first run of a segment, and the others
/// where it leaves that one.
fn along(runs: Vec<Run>) {
    let tag: Tag = [3; TAG];
    let mut links: Vec<Link> = Vec::new();
    for run in &runs {
        let keys = (0..2 * SEGMENT).filter_map(|offset| run.key(offset));
        for key in keys.take(SEGMENT - links.len().min(SEGMENT)) {
            links.push(Link { depth: links.len() + 1, tag, rest: run.rest, key });
        }
        let end = run.start + (0..2 * SEGMENT).filter(|&offset| run.key(offset).is_some()).count();
        assert!(end <= SEGMENT);
        for offset in 0..=u8::MAX {
            let place = Place { tag, run: first(&tag), offset };
            let has = spot(run, place).is_some();
            assert_eq!(has, (run.start..end).contains(&offset.into()));
        }
    }
    let Some(begin) = links.first().copied() else { return };
    let keyed = |run: Run| Some(((tag, run.key(run.start)?), run));
    let mut runs = runs.into_iter();
    let main = runs.next();
    let parted: Runs = runs.filter_map(keyed).collect();
    let length = links.len();
    let whole = walk(&[&links], std::slice::from_ref(&main), &parted, |_, from, to| {
        assert!(from >= to || to <= length);
    });
    assert!(!whole || main.is_some_and(|main| main.key(0) == Some(begin.key)));
}

/// Takes values out of bytes; where they end, so does everything.
struct Input<'a>(&'a [u8]);

/// As deep as an answer of a script is, and one more.
const DEEP: usize = 4;

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    fn string(&mut self) -> Value {
        let length = [self.byte(), self.byte()].map(|byte| usize::from(byte.unwrap_or(0)));
        Value::BulkString(self.take(length[0] + 256 * (length[1] % 4)))
    }

    fn value(&mut self, depth: usize) -> Value {
        let (Some(kind), true) = (self.byte(), depth < DEEP) else { return Value::Nil };
        match kind % 8 {
            0 => Value::Nil,
            1 => Value::Int(i64::from(self.byte().unwrap_or(0)) - 128),
            2 => {
                let count = self.byte().unwrap_or(0);
                Value::Array((0..count).map_while(|_| self.more(depth)).collect())
            }
            3 => {
                let count = self.byte().unwrap_or(0);
                let pair = |input: &mut Self| {
                    let field = input.more(depth)?;
                    Some((field, input.value(depth + 1)))
                };
                Value::Map((0..count).map_while(|_| pair(self)).collect())
            }
            4 => Value::SimpleString(String::from_utf8_lossy(&self.take(4)).into_owned()),
            _ => self.string(),
        }
    }

    fn more(&mut self, depth: usize) -> Option<Value> {
        (!self.0.is_empty()).then(|| self.value(depth + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of two blocks from offset `start`, as [`read`] takes it.
    fn run(start: u8) -> Vec<u8> {
        let mut bytes = vec![0, 3, 3];
        let mut field = |name: &[u8], value: &[u8]| {
            for part in [name, value] {
                bytes.extend([5, part.len() as u8, 0]);
                bytes.extend(part);
            }
        };
        field(b"h", &[1, start, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
        field(b"k", &[7; 16]);
        field(&[1, 0, 0, 0], &[&[0; 12][..], &[0, 2, 1, 0, 0, 0]].concat());
        bytes
    }

    #[test]
    fn a_run_as_it_should_be_and_one_that_begins_too_late_are_read() {
        read(&run(0));
        read(&run(5));
        read(&[run(0), run(2)].concat());
        read(&[]);
    }
}
