//! `offshoot bench`, run by the built command: what it prints, writes and refuses. Not how fast
//! anything is.

use crate::command::Command;
use std::fs;
use std::path::Path;

/// As short as it gets: three rounds of what is asked.
const SHORT: [&str; 3] = ["bench", "--seconds", "1"];

fn bench(args: &[&str]) -> Command {
    Command::new(&[&SHORT, args].concat())
}

/// Has a time in it, whatever the machine makes of it.
fn is_timed(line: &str) -> bool {
    [" ns ", " µs ", " ms ", " s "]
        .iter()
        .any(|unit| line.contains(unit))
}

#[test]
fn a_question_is_answered_for_threads_and_for_processes() {
    for (isolation, ours, floor, other) in [
        (
            "thread",
            "● thread isolate, cold",
            "– std thread + channel",
            "process isolate",
        ),
        (
            "process",
            "● process isolate, cold",
            "– bare forkserver",
            "thread isolate",
        ),
    ] {
        let done = bench(&["spawn", "--isolation", isolation]).run();
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
        let line = |start: &str| done.stdout.lines().find(|line| line.contains(start));
        let (ours, floor) = (line(ours).unwrap(), line(floor).unwrap());
        assert!(ours.contains(" × ") && is_timed(ours), "{ours}");
        assert!(is_timed(floor), "{floor}");
        assert_eq!(line(other), None, "{}", done.stdout);
    }
}

#[test]
fn others_are_picked_by_name_and_unknown_names_are_refused_before_measuring() {
    let done = bench(&["spawn", "--vs", "std", "--isolation", "thread"]).run();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("std thread"), "{}", done.stdout);
    assert!(!done.stdout.contains("parked"), "{}", done.stdout);
    let done = bench(&["spawn", "--vs", "std,pigeon"]).run();
    assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""));
    let known = "`--vs pigeon`: these questions compare with exec, fork, forkserver, parked, std";
    assert!(done.stderr.contains(known), "{}", done.stderr);
    let done = bench(&["goals", "spawn"]).run();
    assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""));
    assert!(done.stderr.contains("`goals` is asked by itself"));
}

#[test]
fn json_has_every_row_and_its_ratio() {
    let done = bench(&["teardown", "--isolation", "thread", "--json"]).run();
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let question = &json["questions"][0];
    assert_eq!(question["name"], "teardown");
    assert_eq!(
        json["command"],
        "offshoot bench teardown --isolation thread"
    );
    let rows = question["rows"].as_array().unwrap();
    let ours = rows.iter().find(|row| row["kind"] == "offshoot").unwrap();
    assert_eq!(ours["ratio"]["of"], "std thread, exit + join");
    for row in rows {
        let [min, p50, p99] = ["min", "p50", "p99"].map(|key| row[key].as_f64().unwrap());
        assert!(0.0 < min && min <= p50 && p50 <= p99, "{row}");
    }
}

#[test]
fn a_chart_is_drawn_into_the_file() {
    let place = tempfile::tempdir().unwrap();
    let chart = place.path().join("chart.svg");
    let done = bench(&["call", "--isolation", "thread", "--vs", "none", "--svg"])
        .arg(&chart)
        .run();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let text = fs::read_to_string(&chart).unwrap();
    assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
    assert!(text.contains("ask, thread isolate") && !text.contains("eventfd"));
}

#[test]
fn a_chart_that_cannot_be_written_is_refused_before_measuring() {
    let done = bench(&["call", "--svg"])
        .arg(Path::new("/no/such/place.svg"))
        .run();
    assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""));
    let wanted = "error: /no/such/place.svg: No such file or directory (os error 2)\n";
    assert_eq!(done.stderr, wanted);
}
