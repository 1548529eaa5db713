//! Faults, by their numbers in docs/faults.md: each is made to happen, and what it costs is what that
//! table says. What is asserted elsewhere (process deaths in tests/process, bytes in the crate of the
//! wire, paths in the janitor) bears its number there.
//!
//! The oracle of the harness runs after each, see `Oracle` in tests/src/oracle.rs, as after every other test.

mod exhausted;
mod links;
mod lives;
mod running;
mod spawning;
mod surroundings;

use offshoot::prelude::*;
use offshoot_tests::bystander;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The tables of docs/ name tests: they exist, and every fault has its row.
#[test]
fn the_tables_name_tests_that_exist() {
    fn sources(directory: &Path, into: &mut String) {
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                sources(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push_str(&fs::read_to_string(&path).expect("a source"));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = String::new();
    for directory in ["src", "tests", "isolates"] {
        sources(&root.join(directory), &mut all);
    }
    let words: BTreeSet<&str> = all
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .collect();
    for table in ["faults.md", "tractor-rows.md"] {
        let text = fs::read_to_string(root.join("docs").join(table)).expect("a table");
        let mut named = 0;
        for name in text.split('`').skip(1).step_by(2) {
            // Tests have names of several words, perhaps below their module; `f17_*` means all of them.
            let last = name.rsplit("::").next().unwrap_or(name);
            let is_test = last.matches('_').count() >= 2
                && last
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            let known = if let Some(start) = last.strip_suffix('*') {
                words.iter().any(|word| word.starts_with(start))
            } else {
                !is_test || words.contains(last)
            };
            named += u32::from(is_test);
            assert!(known, "{table} names `{name}`, which does not exist");
        }
        assert!(named > 20, "{table} names {named} tests");
        match table {
            "faults.md" => the_faults_have_their_tests(&text, &words),
            _ => the_rows_are_answered(&text),
        }
    }
    let guide = fs::read_to_string(root.join("docs/guide.md")).expect("the guide");
    assert!(guide.contains("`docs/faults.md`") && guide.contains("`docs/tractor-rows.md`"));
}

/// Each fault names a test that bears its number, or says why there is none; and each test that bears a number stands in that row.
fn the_faults_have_their_tests(table: &str, words: &BTreeSet<&str>) {
    for number in 1..=65 {
        let (fault, test) = (format!("F{number:02}"), format!("f{number:02}_"));
        let row = table
            .lines()
            .find(|line| line.starts_with(&format!("| {fault} | ")));
        let row = row.unwrap_or_else(|| panic!("no row {fault}"));
        let cells: Vec<&str> = row.split(" | ").collect();
        let [_, _, happens, tests] = cells[..] else {
            panic!("{fault} has not four cells: {row}");
        };
        let without = ["annot occur", "not yet", "not tested"];
        let is_excused = without.iter().any(|why| happens.contains(why));
        assert!(
            tests.contains(&test) || is_excused,
            "{fault} names no test {test}… and does not say why"
        );
        let all = tests.contains(&format!("`{test}*`"));
        for word in words.iter().filter(|word| word.starts_with(&test)) {
            let named = tests.contains(&format!("{word}`"));
            assert!(all || named, "{fault} does not name `{word}`");
        }
    }
}

fn the_rows_are_answered(table: &str) {
    for number in (1..=39).chain(49..=70).chain(80..=109) {
        let start = format!("| {number} | ");
        let row = table.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("no row {number}"));
        let answer = row.trim_end_matches(" |").rsplit(" | ").next();
        assert!(
            answer.is_some_and(|answer| answer.len() > 5),
            "{number} has no answer: {row}"
        );
    }
}

/// What a loaded machine may take for what should take a moment.
const SOON: Duration = Duration::from_millis(1_500);

fn double(n: u64) -> u64 {
    n * 2
}

/// Never answers.
async fn pends() {
    std::future::pending::<()>().await;
}

/// True for the bystander of a fault: it answers, and soon.
async fn serves<S: 'static>(portal: &Portal<S>) -> Result<()> {
    let began = Instant::now();
    assert_eq!(bystander(portal.call(double, 21)).await?, 42);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    Ok(())
}
