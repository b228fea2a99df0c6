//! The catalogue of failures lists every row, and the tests that it names exist.

use std::collections::BTreeMap;
use std::path::PathBuf;

fn read(path: &str) -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Rows of the table by id: what is in the last column.
fn rows() -> BTreeMap<String, String> {
    let document = read("docs/failures.md");
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let lines = document.lines().filter(|line| line.starts_with("| ") && line.len() > 20);
    let rows = lines.map(cells).filter(|cells| cells[0].chars().any(|c| c.is_ascii_digit()));
    rows.map(|cells| (cells[0].clone(), cells[3].clone())).collect()
}

#[test]
fn every_row_is_listed() {
    let rows = rows();
    let expected = [("S", 12), ("L", 15), ("H", 15), ("C", 14), ("R", 14), ("M", 6), ("X", 7)];
    let count = expected.iter().map(|(_, count)| count).sum::<u32>();
    for (kind, count) in expected {
        for n in 1..=count {
            assert!(rows.contains_key(&format!("{kind}{n}")), "{kind}{n} is missing");
        }
    }
    assert_eq!(rows.len(), count as usize);
}

#[test]
fn every_named_test_exists_and_bears_the_id_of_its_row() {
    for (id, tests) in rows() {
        let named: Vec<&str> = tests.split('`').filter(|part| part.contains("::")).collect();
        let waits = tests.contains("waits for");
        assert!(waits || !named.is_empty(), "{id} has no test and waits for nothing");
        for test in named {
            let (file, name) = test.split_once("::").unwrap();
            assert!(name.starts_with(&format!("{}_", id.to_lowercase())), "{id}: {test}");
            let source = read(&format!("tests/{file}.rs"));
            assert!(source.contains(&format!("fn {name}()")), "{id}: there is no {test}");
        }
    }
}
