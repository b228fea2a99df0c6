//! Maps as another encoder may write them: fields in any order, unknown ones between them.

mod wire_support;

use kvscout::event::{Batch, Limits};
use proptest::prelude::*;
use serde::ser::{Serialize, SerializeMap, Serializer};
use wire_support::{STORED, render, render_event};

/// A msgpack value whose maps keep the order of their pairs.
#[derive(Clone, Debug)]
enum Wire {
    Nil,
    Int(i128),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Array(Vec<Wire>),
    Map(Vec<(Wire, Wire)>),
}

impl Serialize for Wire {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Wire::Nil => serializer.serialize_none(),
            Wire::Int(n) => match u64::try_from(*n) {
                Ok(n) => serializer.serialize_u64(n),
                Err(_) => serializer.serialize_i64(i64::try_from(*n).unwrap()),
            },
            Wire::Float(x) => serializer.serialize_f64(*x),
            Wire::Text(text) => serializer.serialize_str(text),
            Wire::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Wire::Array(values) => values.serialize(serializer),
            Wire::Map(pairs) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                for (key, value) in pairs {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

fn text(text: &str) -> Wire {
    Wire::Text(text.into())
}

fn batch(events: Vec<Wire>) -> Vec<u8> {
    let batch = Wire::Array(vec![Wire::Float(1.5), Wire::Array(events), Wire::Int(2)]);
    rmp_serde::to_vec(&batch).unwrap()
}

fn hash() -> impl Strategy<Value = Wire> {
    prop_oneof![
        any::<u64>().prop_map(|n| Wire::Int(n.into())),
        any::<i64>().prop_map(|n| Wire::Int(n.into())),
        prop::sample::select(vec![1, 7, 8, 16, 32, 64, 96])
            .prop_flat_map(|len| { prop::collection::vec(any::<u8>(), len).prop_map(Wire::Bytes) }),
    ]
}

fn or_nil(value: impl Strategy<Value = Wire> + 'static) -> BoxedStrategy<Wire> {
    prop_oneof![Just(Wire::Nil), value].boxed()
}

fn one_of(names: &'static [&'static str]) -> impl Strategy<Value = Wire> {
    prop::sample::select(names).prop_map(text)
}

/// A block's entry in `extra_keys`, with and without a reading.
fn entry() -> impl Strategy<Value = Wire> {
    let item = ("[a-f]{4}", -20..20_i64)
        .prop_map(|(id, at)| Wire::Array(vec![Wire::Text(id), Wire::Int(at.into())]));
    let key = prop_oneof![
        one_of(&["l", "salt"]),
        item,
        prop::collection::vec(any::<u8>(), 32).prop_map(Wire::Bytes),
    ];
    or_nil(prop::collection::vec(key, 0..4).prop_map(Wire::Array))
}

/// The values of a `BlockStored` in the order of the array form.
fn stored() -> impl Strategy<Value = Vec<Wire>> {
    let group = any::<u32>().prop_map(|n| Wire::Int(n.into()));
    let window = any::<u32>().prop_map(|n| Wire::Int(n.into()));
    let id = any::<i64>().prop_map(|n| Wire::Int(n.into()));
    (
        prop::collection::vec(hash(), 0..5).prop_map(Wire::Array),
        or_nil(hash()),
        prop::collection::vec(any::<u64>().prop_map(|n| Wire::Int(n.into())), 0..40)
            .prop_map(Wire::Array),
        (1..=1_i128 << 20).prop_map(Wire::Int),
        or_nil(id),
        or_nil(one_of(&["GPU", "cpu", "DISK", "STORAGE", "new"])),
        or_nil(one_of(&["l"])),
        or_nil(prop::collection::vec(entry(), 0..5).prop_map(Wire::Array)),
        or_nil(group),
        or_nil(one_of(&["full_attention", "sliding_window"])),
        or_nil(window),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i, j, k)| vec![a, b, c, d, e, f, g, h, i, j, k])
}

/// A value of a field that does not exist.
fn unknown() -> impl Strategy<Value = Wire> {
    let leaf = prop_oneof![
        Just(Wire::Nil),
        any::<i64>().prop_map(|n| Wire::Int(n.into())),
        any::<f64>().prop_map(Wire::Float),
        ".{0,40}".prop_map(Wire::Text),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Wire::Bytes),
    ];
    leaf.prop_recursive(4, 20, 4, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Wire::Array),
            prop::collection::vec(pair, 0..4).prop_map(Wire::Map),
        ]
    })
}

fn named(values: &[Wire]) -> Vec<(Wire, Wire)> {
    let mut pairs = vec![(text("type"), text("BlockStored"))];
    pairs.extend(STORED.iter().map(|name| text(name)).zip(values.iter().cloned()));
    pairs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_order_of_fields_and_unknown_ones_change_nothing(
        values in stored(),
        unknowns in prop::collection::vec(("x[a-z]{0,40}", unknown()), 0..6),
        odd_key in unknown().prop_filter("a string may be a field", |k| !matches!(k, Wire::Text(_))),
        order in any::<u64>(),
    ) {
        let plain = named(&values);
        let mut shuffled = plain.clone();
        shuffled.extend(unknowns.into_iter().map(|(name, value)| (Wire::Text(name), value)));
        shuffled.push((odd_key, Wire::Nil));
        // Any permutation will do: the pairs sorted by a hash of their place.
        let mut place = order;
        shuffled.sort_by_cached_key(|_| {
            place = place.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            place >> 20
        });
        prop_assert_eq!(
            render(&batch(vec![Wire::Map(shuffled)])),
            render(&batch(vec![Wire::Map(plain)]))
        );
    }

    #[test]
    fn arrays_and_maps_mix_in_a_batch_and_mean_the_same(values in stored()) {
        let mut array = vec![text("BlockStored")];
        array.extend(values.iter().cloned());
        array.push(Wire::Map(vec![(Wire::Nil, text("of a later version"))]));
        let wrapped = rmp_serde::to_vec(&Wire::Map(named(&values))).unwrap();
        let payload = batch(vec![
            Wire::Map(named(&values)),
            Wire::Array(array),
            Wire::Bytes(wrapped),
            Wire::Array(vec![text("AllBlocksCleared")]),
        ]);
        let batch = Batch::parse(&payload, &Limits::default()).unwrap();
        let mut events: Vec<_> =
            batch.events().map(|event| render_event(&event.unwrap())).collect();
        prop_assert_eq!(events.len(), 4);
        for event in &mut events {
            // How it was written is the one difference.
            event.as_object_mut().unwrap().remove("fields");
        }
        prop_assert_eq!(&events[0], &events[1]);
        prop_assert_eq!(&events[0], &events[2]);
    }
}
