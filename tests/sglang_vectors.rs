//! Every page hash that SGLang itself computed (`tests/vectors/README.md`).

use kvscout::block::{BlockSize, Name};
use kvscout::hash::sglang::{Namespace, PageHash, pages};
use serde_json::Value;

fn document() -> Value {
    serde_json::from_str(include_str!("vectors/sglang.json")).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap().try_into().unwrap()).collect()
}

#[test]
fn every_page_hash_is_reproduced() {
    let document = document();
    let cases = document["pages"].as_array().unwrap();
    for case in cases {
        let size = BlockSize::new(case["page_size"].as_u64().unwrap() as u32).unwrap();
        let found: Vec<PageHash> = if case["bigram"] == true {
            let pairs: Vec<_> = case["tokens"].as_array().unwrap().iter().map(ids).collect();
            let mut tokens: Vec<u32> = pairs.iter().map(|pair| pair[0]).collect();
            tokens.push(pairs[pairs.len() - 1][1]);
            vec![PageHash::of_bigrams(None, &tokens)]
        } else if let Some(formula) = case["tokens"].as_str() {
            assert_eq!(formula, "t[i]=(i*7919+13)%151936");
            let tokens: Vec<u32> = (0..3 * size.get()).map(|i| (i * 7919 + 13) % 151936).collect();
            pages(&tokens, size, None).collect()
        } else {
            pages(&ids(&case["tokens"]), size, None).collect()
        };
        let hex: Vec<_> = found.iter().map(PageHash::to_string).collect();
        assert_eq!(hex, strings(&case["sha256_hex"]));
        let events: Vec<_> = found.iter().map(|page| page.event().to_string()).collect();
        assert_eq!(events, strings(&case["event_int64"]));
        assert!(found.iter().all(|page| page.name() == Name::from(page.event())));
    }
    assert_eq!(cases.len(), 5);
}

#[test]
fn every_namespaced_hash_is_reproduced() {
    let document = document();
    let cases = document["namespaced"].as_array().unwrap();
    for case in cases {
        let event: i64 = case["block_hash"].as_str().unwrap().parse().unwrap();
        let namespace = Namespace::new(case["extra_key"].as_str(), case["cache_salt"].as_str());
        let found = namespace.map_or(event, |namespace| namespace.event(event));
        assert_eq!(found.to_string(), case["result"].as_str().unwrap(), "{case}");
    }
    assert_eq!(cases.len(), 6);
}

#[test]
fn a_chain_can_be_continued_from_any_page_and_may_end_in_a_short_one() {
    let tokens: Vec<u32> = (0..10).collect();
    let size = BlockSize::new(4).unwrap();
    let all: Vec<_> = pages(&tokens, size, None).collect();
    assert_eq!(all.len(), 3);
    assert_eq!(pages(&tokens[8..], size, Some(all[1])).collect::<Vec<_>>(), all[2..]);
    assert_eq!(PageHash::from_bytes(all[0].to_bytes()), all[0]);
}

#[test]
fn a_salted_chain_begins_with_the_salt_in_place_of_a_page() {
    let root = PageHash::salted_root("tenant-1");
    let expected = "14a48111968169cc55fb94275376a6682e0aa1f4a27be6b60d450c592ecbce93";
    assert_eq!(PageHash::of(Some(&root), &[1, 2]).to_string(), expected);
}
