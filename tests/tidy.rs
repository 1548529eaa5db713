//! What the project promises about itself: documents name what exists, and decisions are complete.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// All files below `dir` whose names end in `.extension`.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the project") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all functions, modules and cases in the project's Rust files.
fn names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for dir in ["src", "tests", "isolates", "benches"] {
        for file in files(&root().join(dir), "rs") {
            if let Some(stem) = file.file_stem() {
                names.insert(stem.to_string_lossy().into_owned());
            }
            let text = read(&file);
            let mut words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            while let Some(word) = words.next() {
                if matches!(word, "fn" | "mod") {
                    names.extend(words.next().map(str::to_owned));
                }
            }
            // The cases of `tests/process` have names of their own: "module::name".
            let cases = text.split('"').filter_map(|text| text.split_once("::"));
            names.extend(cases.map(|(_, name)| name.to_owned()));
        }
    }
    names
}

/// What stands between backticks in `text`.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn each_test_that_a_table_names_exists() {
    let names = names();
    let mut missing = Vec::new();
    let mut seen = 0;
    for table in ["docs/faults.md", "docs/dialogues.md"] {
        for row in read(&root().join(table)).lines() {
            // The tests of a row stand in its last cell.
            let Some(cell) = row.trim_end().trim_end_matches('|').rsplit_once('|') else {
                continue;
            };
            for name in quoted(cell.1) {
                let last = name.rsplit("::").next().unwrap_or(name);
                let is_name = last.contains('_')
                    && last
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_*".contains(c));
                if !is_name {
                    continue;
                }
                seen += 1;
                let found = match last.strip_suffix('*') {
                    Some(stem) => names.iter().any(|name| name.starts_with(stem)),
                    None => names.contains(last),
                };
                if !found {
                    missing.push(format!("{table}: {name}"));
                }
            }
        }
    }
    assert!(seen > 100, "only {seen} names were found in the tables");
    assert!(missing.is_empty(), "no such test:\n{}", missing.join("\n"));
}

/// A file of `/proc` may hold the half of a letter, and then is no text: `procfs::text` and bytes are for it.
#[test]
fn no_file_of_proc_is_read_as_text() {
    let mut found = Vec::new();
    let sources = files(&root().join("src"), "rs");
    for path in &sources {
        let within = path.strip_prefix(root().join("src")).unwrap_or(path);
        let in_crate = within
            .components()
            .nth(1)
            .is_some_and(|part| part.as_os_str() == "src");
        // The asynchronous one of users is made of it.
        if !in_crate || path.ends_with("offshoot/src/fs.rs") {
            continue;
        }
        for (number, line) in read(path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if code.contains("fs::read_to_string(") && !code.contains("offshoot::fs::") {
                found.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(sources.len() > 100, "{}", sources.len());
    assert!(
        found.is_empty(),
        "use `procfs::text`:\n{}",
        found.join("\n")
    );
}

#[test]
fn each_decision_is_complete_and_in_the_index() {
    let dir = root().join("docs/decisions");
    let index = read(&dir.join("README.md"));
    let mut faults = Vec::new();
    for file in files(&dir, "md") {
        let name = file
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        if name == "README.md" {
            continue;
        }
        if !index.contains(&format!("({name})")) {
            faults.push(format!("{name} is not in the index"));
        }
        let text = read(&file);
        for heading in [
            "# ",
            "## Context",
            "## Decision",
            "## Instead of",
            "## Price",
        ] {
            if !text.lines().any(|line| line.starts_with(heading)) {
                faults.push(format!("{name} has no heading `{heading}`"));
            }
        }
    }
    for link in index
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        if !dir.join(link).is_file() {
            faults.push(format!("the index names {link}, which does not exist"));
        }
    }
    assert!(faults.is_empty(), "docs/decisions:\n{}", faults.join("\n"));
}

#[test]
fn each_file_that_the_map_names_exists() {
    let map = read(&root().join("ARCHITECTURE.md"));
    let sources: Vec<String> = files(&root().join("src"), "rs")
        .iter()
        .map(|path| path.to_string_lossy().replace('\\', "/"))
        .collect();
    let missing: Vec<&str> = quoted(&map)
        .filter(|name| name.ends_with(".rs"))
        .filter(|name| {
            !sources
                .iter()
                .any(|path| path.ends_with(&format!("/{name}")))
        })
        .filter(|name| !root().join(name).is_file())
        .collect();
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md names {missing:?}, which do not exist"
    );
}

/// Nothing of the library can panic for want of a reader: `clippy` refuses what prints, and this the events that are not guarded.
#[test]
fn every_event_of_the_log_is_guarded() {
    let own = root().join("src/offshoot/src");
    let events = ["error", "warn", "info", "debug", "trace", "event"];
    for file in files(&own, "rs") {
        if file.file_name().is_some_and(|name| name == "log.rs") {
            continue;
        }
        let text = read(&file);
        for event in events {
            let bare = format!("tracing::{event}!");
            assert!(
                !text.contains(&bare),
                "{}: {bare} instead of crate::log::{event}!",
                file.display()
            );
        }
    }
    for library in ["sys", "mailbox", "wire", "offshoot", "cli"] {
        let source = root().join("src").join(library).join("src");
        let top = ["lib.rs", "main.rs"].map(|name| source.join(name));
        let top = top.iter().find(|path| path.exists());
        let text = read(top.expect("a crate"));
        assert!(
            text.contains("deny(clippy::print_stdout, clippy::print_stderr)"),
            "{library}"
        );
    }
}
