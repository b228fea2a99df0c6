//! The catalogue of failures lists every row, and the tests that it names exist.

use std::collections::BTreeMap;
use std::path::PathBuf;

fn read(path: &str) -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The cells of a table's row.
fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// Rows of the table by id: what is in the last column.
fn rows() -> BTreeMap<String, String> {
    let document = read("docs/failures.md");
    let lines = document.lines().filter(|line| line.starts_with("| ") && line.len() > 20);
    let rows = lines.map(cells).filter(|cells| cells[0].chars().any(|c| c.is_ascii_digit()));
    rows.map(|cells| (cells[0].clone(), cells[3].clone())).collect()
}

#[test]
fn every_row_is_listed() {
    let rows = rows();
    let expected = [("S", 12), ("L", 16), ("H", 15), ("C", 14), ("R", 14), ("M", 6), ("X", 7)];
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

/// The ids in a text, such as `S5, S6` or `R11 to R14`.
fn ids(text: &str) -> Vec<String> {
    let id = |word: &str| {
        let (kind, number) = word.split_at_checked(1)?;
        let number = number.trim_end_matches(['.', ',']).parse::<u32>().ok()?;
        "SLHCRMX".contains(kind).then(|| (kind.to_owned(), number))
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut out = Vec::new();
    for (at, (kind, number)) in words.iter().enumerate().filter_map(|(at, w)| Some((at, id(w)?))) {
        let first = match at.checked_sub(2).map(|at| id(words[at])) {
            Some(Some((_, first))) if words[at - 1] == "to" => first + 1,
            _ => number,
        };
        out.extend((first..=number).map(|number| format!("{kind}{number}")));
    }
    out
}

/// Each row either leads to a score of 0 without an error, and the doctor has a line for it or says where it shows, or
/// it does not.
#[test]
fn every_row_that_ends_in_a_silent_zero_has_a_line_of_the_doctor_and_a_test_of_it() {
    let document = read("docs/doctor.md");
    let (_, causes) = document.split_once("## Causes of a score that is always 0").unwrap();
    let (lines, elsewhere) = causes.split_once("No engine's doing").unwrap();
    let rows: Vec<Vec<String>> =
        lines.lines().filter(|line| line.starts_with("| ")).skip(1).map(cells).collect();
    assert!(rows.len() >= 29, "{}", rows.len());
    let source: String = ["diagnosis", "announced", "tokenizer"]
        .map(|file| read(&format!("src/bin/kvscout/doctor/{file}.rs")))
        .concat();
    for row in &rows {
        let [cause, _, checks, tests] = &row[..] else { panic!("{row:?}") };
        let named = |cell: &str| -> Vec<String> {
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        for check in named(checks) {
            assert!(source.contains(&format!("\"{check}\"")), "{cause}: nobody says {check}");
            assert!(
                document.contains(&format!("| `{check}`"))
                    || document.contains(&format!(", `{check}`")),
                "{check}"
            );
        }
        assert!(!named(tests).is_empty(), "{cause} has no test");
        let mut bodies = String::new();
        for test in named(tests) {
            let (file, name) = test.split_once("::").unwrap();
            let test = read(&format!("tests/{file}.rs"));
            let (_, body) = test
                .split_once(&format!("fn {name}() {{"))
                .unwrap_or_else(|| panic!("there is no {name} in {file}"));
            bodies += body.split("\n}\n").next().unwrap();
        }
        for check in named(checks) {
            let looked_at = bodies.contains(&format!("\"{check}\""));
            assert!(looked_at, "{cause}: no test looks at {check}");
        }
    }
    let mut told: Vec<String> = rows.iter().flat_map(|row| ids(&row[1])).collect();
    told.extend(ids(&elsewhere.replace('|', " ")));
    for id in self::rows().keys() {
        assert!(told.contains(id), "{id} is neither a cause of a silent zero nor said to be none");
    }
}
