//! Misuse is a compile error that says what to do: each message as a user sees it, word by word.
//!
//! After a change that is meant, `TRYBUILD=overwrite cargo test -p offshoot-tests compile_fail` writes the new messages.

use std::process::Command;

/// The compiler whose messages are on record. Another one says the same in other words.
const RUSTC: &str = "rustc 1.95.";

#[test]
fn misuse_is_a_compile_error_that_says_what_to_do() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.expect("whoever runs this has a compiler").stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    if !version.starts_with(RUSTC) {
        println!(
            "skipped: the messages on record are those of {RUSTC}x, this is {version}"
        );
        return;
    }
    let cases = trybuild::TestCases::new();
    // Without one that passes, the others would be checked and not built, and captures not be found.
    cases.pass("ui/passes.rs");
    cases.compile_fail("ui/argument_*.rs");
    cases.compile_fail("ui/capture_*.rs");
    cases.compile_fail("ui/method_*.rs");
    cases.compile_fail("ui/nursery_*.rs");
    cases.compile_fail("ui/result_*.rs");
    cases.compile_fail("ui/state_*.rs");
    cases.compile_fail("ui/task_*.rs");
    cases.compile_fail("ui/too_*.rs");
}
