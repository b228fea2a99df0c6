//! Hostile payloads cost an error: no panic, no memory, no good event lost.

mod wire_support;

use std::sync::LazyLock;

use kvscout::event::{Batch, DecodeErrorKind, Event, Field, Limits};
use proptest::prelude::*;
use wire_support::{Recorded, all, parse, walk};

fn kinds(payload: &[u8], limits: &Limits) -> Vec<Result<(), DecodeErrorKind>> {
    let batch = Batch::parse(payload, limits).unwrap();
    batch.events().map(|event| event.map(|_| ()).map_err(|e| e.kind)).collect()
}

/// Decodes and walks whatever there is.
fn survive(payload: &[u8]) {
    let Ok(batch) = Batch::parse(payload, &Limits::default()) else { return };
    let _ = batch.rank();
    let mut tokens = Vec::new();
    // Token ids that are read where they are checked are those that are read afterwards.
    let (mut events, mut ids) = (batch.events(), Vec::new());
    for event in batch.events() {
        let also = events.next_into(&mut ids).unwrap();
        assert_eq!(also.as_ref().err(), event.as_ref().err());
        match event {
            Ok(event) => {
                walk(&event, &mut tokens);
                tokens.clear();
                if let Event::Stored(stored) = event {
                    let _ = stored.tokens.read_into(&mut tokens);
                }
                assert_eq!(ids, tokens);
            }
            Err(error) => assert!(error.at <= payload.len() && ids.is_empty()),
        }
    }
    assert!(events.next_into(&mut ids).is_none());
}

static RECORDED: LazyLock<Vec<Recorded>> = LazyLock::new(all);

const REMOVE_NOTHING: &[u8] = b"\x92\xacBlockRemoved\x90";

#[test]
fn a_bad_event_among_good_ones_costs_only_itself() {
    // [0, [remove, {"type": "BlockStored"}, 5, remove], nil]
    let stored = b"\x81\xa4type\xabBlockStored";
    let payload =
        [b"\x93\0\x94", REMOVE_NOTHING, stored, b"\x05", REMOVE_NOTHING, b"\xc0"].concat();
    let events: Vec<_> = parse(&payload).events().collect();
    assert!(matches!(events[..], [Ok(_), Err(_), Err(_), Ok(Event::Removed(_))]));
    let missing = events[1].unwrap_err();
    assert_eq!(missing.at, 3 + REMOVE_NOTHING.len());
    assert_eq!(missing.kind, DecodeErrorKind::Missing { field: Field::BlockHashes });
    assert_eq!(events[2].unwrap_err().at, missing.at + stored.len());
}

#[test]
fn a_payload_beyond_the_limit_is_not_looked_at() {
    let limits = Limits { max_frame: 3, ..Limits::default() };
    let error = Batch::parse(b"\x92\0\x90\0", &limits).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::FrameTooLarge { size: 4, limit: 3 });
    assert!(Batch::parse(b"\x92\0\x90", &limits).is_ok());
}

#[test]
fn length_claims_of_four_billion_are_refused() {
    let claim = b"\xff\xff\xff\xff";
    let payload = [b"\x92\0\xdd", &claim[..]].concat();
    let error = Batch::parse(&payload, &Limits::default()).unwrap_err();
    assert!(matches!(error.kind, DecodeErrorKind::TooManyEvents { .. }));

    // As block_hashes, as an event, as an ignored value.
    for (before, marker) in [
        (&b"\x92\xacBlockRemoved"[..], 0xdd),
        (b"", 0xdf),
        (b"", 0xc6),
        (b"\x82\xa1x", 0xdb),
        (b"\x82\xa1x", 0xdd),
        (b"\x82\xa1x", 0xc9),
    ] {
        let payload = [b"\x92\0\x92", before, &[marker], claim, REMOVE_NOTHING].concat();
        let events = kinds(&payload, &Limits::default());
        assert!(
            matches!(events[..], [Err(DecodeErrorKind::LengthBeyondEnd { .. })]),
            "{marker:02x}: {events:?}"
        );
    }
}

#[test]
fn more_events_than_the_limit_refuse_the_batch() {
    let limits = Limits { max_events: 1, ..Limits::default() };
    let payload = [b"\x92\0\x92", REMOVE_NOTHING, REMOVE_NOTHING].concat();
    let error = Batch::parse(&payload, &limits).unwrap_err();
    assert_eq!(error.at, 2);
    assert_eq!(error.kind, DecodeErrorKind::TooManyEvents { found: 2, limit: 1 });
}

#[test]
fn more_hashes_than_the_limit_refuse_the_event_only() {
    let limits = Limits { max_hashes: 2, ..Limits::default() };
    let remove = |n: u8| [b"\x92\xacBlockRemoved", &[0x90 | n][..], &vec![7; n.into()]].concat();
    let payload = [&b"\x92\0\x93"[..], &remove(2), &remove(3), &remove(1)].concat();
    let too_many = DecodeErrorKind::TooManyHashes { found: 3, limit: 2 };
    assert_eq!(kinds(&payload, &limits), [Ok(()), Err(too_many), Ok(())]);
}

#[test]
fn ten_thousand_levels_in_an_ignored_field_cost_one_event() {
    let deep = [&[0x91; 10_000][..], b"\xc0"].concat();
    let map = [b"\x82\xa1x", &deep[..], b"\xa4type\xb0AllBlocksCleared"].concat();
    let payload = [b"\x92\0\x92", &map[..], REMOVE_NOTHING].concat();
    let too_deep = DecodeErrorKind::TooDeep { limit: 16 };
    assert_eq!(kinds(&payload, &Limits::default()), [Err(too_deep), Ok(())]);
}

#[test]
fn what_stands_behind_the_events_is_looked_at_last() {
    let batch =
        |tail: &[u8], elements: u8| [&[0x90 | elements, 0, 0x91], REMOVE_NOTHING, tail].concat();
    let default = Limits::default();
    let ok = batch(b"\x07\x81\x01\x02", 4);
    assert_eq!(kinds(&ok, &default), [Ok(())]);
    assert_eq!(parse(&ok).rank(), Some(7));
    assert_eq!(kinds(&batch(b"", 2), &default), [Ok(())]);
    assert_eq!(parse(&batch(b"\xc0", 3)).rank(), None);

    let negative = batch(b"\xff", 3);
    assert!(matches!(kinds(&negative, &default)[..], [Ok(()), Err(_)]));
    assert_eq!(parse(&negative).rank(), None);
    let trailing = [Ok(()), Err(DecodeErrorKind::TrailingBytes)];
    assert_eq!(kinds(&batch(b"\x07\0", 3), &default), trailing);
}

#[test]
fn what_is_no_batch_is_refused() {
    for payload in [&b""[..], b"\xc0", b"\x80", b"\x90", b"\x91\0", b"\x92\xc0\x90", b"\x92\0\x80"]
    {
        assert!(Batch::parse(payload, &Limits::default()).is_err(), "{payload:02x?}");
    }
    // Mooncake's milliseconds are an integer.
    let payload = b"\x92\xcf\0\0\x01\x8b\xcf\xe5\x68\0\x90";
    assert_eq!(parse(payload).timestamp(), 1_700_000_000_000.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survive(&bytes);
        // Past the head of a batch and of a map, where random bytes seldom come.
        bytes.splice(0..0, *b"\x93\0\x94\x8f\xa4type\xabBlockStored");
        survive(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_payloads_never_panic(
        seed in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..8),
    ) {
        let mut payload = seed.get(&RECORDED).payload.clone();
        for (place, byte, edit) in edits {
            let place = place.index(payload.len().max(1));
            match edit {
                0 => payload.insert(place, byte),
                1 if !payload.is_empty() => { payload.remove(place); }
                2 => payload.truncate(place),
                _ if !payload.is_empty() => payload[place] = byte,
                _ => {}
            }
        }
        survive(&payload);
    }
}
