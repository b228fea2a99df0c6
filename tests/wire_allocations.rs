//! Decoding allocates nothing, whatever the payload.

mod wire_support;

use kvscout::event::{Batch, Event, ExtraKeys, Limits};
use wire_support::{all, walk};

#[test]
fn decoding_and_reading_everything_allocates_nothing() {
    let recorded = all();
    // Room for the tokens of any event is the caller's.
    let mut tokens = Vec::with_capacity(1 << 16);
    let mut seen = 0;
    let allocations = allocation_counter::measure(|| {
        for recorded in &recorded {
            let batch = Batch::parse(&recorded.payload, &Limits::default()).unwrap();
            for event in batch.events() {
                seen += walk(&event.unwrap(), &mut tokens);
            }
        }
    });
    assert!(seen > 50_000, "{seen}");
    assert_eq!(allocations.count_total, 0);
}

#[test]
fn refusing_allocates_nothing() {
    let recorded = all();
    let mut errors = 0;
    let allocations = allocation_counter::measure(|| {
        for recorded in &recorded {
            let half = &recorded.payload[..recorded.payload.len() / 2];
            let Ok(batch) = Batch::parse(half, &Limits::default()) else { continue };
            errors += batch.events().filter(Result::is_err).count();
        }
    });
    assert!(errors > 400, "{errors}");
    assert_eq!(allocations.count_total, 0);
}

#[test]
fn an_event_of_a_million_hashes_is_read_in_place() {
    let mut payload = b"\x92\0\x91\x95\xabBlockStored\xdd\0\x10\0\0".to_vec();
    payload.resize(payload.len() + (1 << 20), 7);
    payload.extend(*b"\xc0\x90\x01");
    let allocations = allocation_counter::measure(|| {
        let batch = Batch::parse(&payload, &Limits::default()).unwrap();
        let Some(Ok(Event::Stored(stored))) = batch.events().next() else { panic!("no store") };
        assert_eq!(stored.names.names().len(), 1 << 20);
        assert!(matches!(stored.extra_keys, ExtraKeys::Hidden));
    });
    assert_eq!(allocations.count_total, 0);
}
