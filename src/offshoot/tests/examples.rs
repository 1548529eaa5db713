//! Runs the examples of dialogues, as threads, through serde and as processes: they end well and print the same.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;

/// Where cargo puts the examples.
fn example(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let mut profile = std::env::current_exe().expect("the path of this test");
    profile.pop();
    profile.pop();
    let path = profile.join("examples").join(name);
    // Cargo builds them with all tests of the package, but not for this one alone, nor anew.
    BUILT.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--examples", "--target-dir"]);
        cargo.arg(profile.parent().expect("a target directory"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo").success());
    });
    path
}

fn prints(name: &str, expected: &str) {
    for isolation in ["thread", "serde", "process"] {
        let output = Command::new(example(name))
            .env("OFFSHOOT_ISOLATION", isolation)
            .output()
            .expect("the example");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{name} as {isolation}: {out}{err}");
        assert_eq!(out, expected, "{name} as {isolation}: {err}");
    }
}

#[test]
fn request_response() {
    prints(
        "request_response",
        "hello anna\nNone\nSome(1)\nSome(2)\nNone\n1 value\n",
    );
}

#[test]
fn ticker() {
    let lines: String = (0..5)
        .map(|n| format!("subscriber {n}: [100, 101, 102]\n"))
        .collect();
    prints("ticker", &lines);
}

#[test]
fn chat() {
    prints(
        "chat",
        "anna: hello\nanna: hello\nbert: hi\nbert: hi\nanna: alone\n",
    );
}

#[test]
fn pool() {
    prints("pool", "5000\n137\n5001\n1429\n5002\n3335\n5003\n1\n");
}

#[test]
fn pipeline() {
    prints("pipeline", "1000 items, 500500000 in all\n");
}

#[test]
fn cancel_on_timeout() {
    prints(
        "cancel_on_timeout",
        "found 0\nfound 1\nfound 2\ncancelled by root, the other side of the dialogue\n",
    );
}

#[test]
fn typed_error() {
    prints(
        "typed_error",
        "too much, the limit is 100\nErr(Closed)\ncore::num::error::ParseIntError: invalid digit found in string\n",
    );
}
