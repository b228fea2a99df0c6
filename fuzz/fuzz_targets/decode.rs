//! Any payload decodes or is refused: no panic, no overflow, no read beyond it.
#![no_main]

use kvscout::event::{Batch, BlockExtras, Event, ExtraKeys, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let Ok(batch) = Batch::parse(payload, &Limits::default()) else { return };
    let _ = batch.rank();
    let mut errors = 0;
    for event in batch.events() {
        match event {
            Ok(event) => walk(&event),
            Err(error) => {
                assert!(error.at <= payload.len());
                assert!(!error.to_string().contains('\n'));
                errors += 1;
            }
        }
    }
    assert!(errors <= batch.len() + 1);

    // Token ids read where they are checked are those read afterwards.
    let (mut events, mut ids) = (batch.events(), vec![1]);
    for event in batch.events() {
        let also = events.next_into(&mut ids).expect("as many events either way");
        assert_eq!(format!("{event:?}"), format!("{also:?}"));
        let mut later = Vec::new();
        if let Ok(Event::Stored(stored)) = event {
            let _ = stored.tokens.read_into(&mut later);
        }
        assert_eq!(ids, later);
    }
    assert!(events.next_into(&mut ids).is_none());
});

/// Everything that was checked in decoding has to be there again.
fn walk(event: &Event<'_>) {
    match event {
        Event::Stored(stored) => {
            assert_eq!(stored.names.iter().count(), stored.names.len());
            assert_eq!(stored.tokens.iter().count(), stored.tokens.len());
            let mut ids = Vec::new();
            if stored.tokens.read_into(&mut ids).is_ok() {
                assert!(stored.tokens.iter().eq(ids.iter().map(|id| u64::from(*id))));
            }
            if let Some(lookahead) = stored.lookahead {
                assert_eq!(lookahead.iter().count(), lookahead.len());
                for list in lookahead.iter() {
                    assert_eq!(list.iter().count(), list.len());
                }
                let _ = lookahead.depth();
            }
            if let ExtraKeys::Listed(listed) = stored.extra_keys {
                assert_eq!(listed.iter().count(), stored.names.len());
                for block in listed {
                    if let BlockExtras::Keys(keys) = block {
                        assert_eq!(keys.count(), keys.len());
                        assert!(keys.len() > 0);
                    }
                }
            }
            let _ = format!("{stored:?}");
        }
        Event::Removed(removed) => {
            assert_eq!(removed.names.names().count(), removed.names.len());
        }
        Event::Cleared(_) => {}
    }
}
