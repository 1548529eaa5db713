//! Misuse is a compile error that says what to do: each message as a user sees it, word by word.
//!
//! After a change that is meant, `TRYBUILD=overwrite cargo test -p offshoot-tests --test compile_fail` writes the new messages.

use std::process::Command;

/// The compiler whose messages are on record. Another one says the same in other words.
const RUSTC: &str = "rustc 1.95.";

#[test]
fn misuse_is_a_compile_error_that_says_what_to_do() {
    let version = rustc("--version");
    if !version.starts_with(RUSTC) {
        println!("skipped: the messages on record are those of {RUSTC}x, this is {version}");
        return;
    }
    let cases = trybuild::TestCases::new();
    // Without one that passes, the others would be checked and not built, and captures not be found.
    cases.pass("ui/passes.rs");
    let mut files: Vec<_> = std::fs::read_dir("ui")
        .expect("Cargo runs tests in their package")
        .map(|entry| entry.expect("a directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| !path.ends_with("passes.rs"))
        .collect();
    files.sort();
    for file in files {
        let on_record = std::fs::read_to_string(file.with_extension("stderr")).unwrap_or_default();
        if on_record.contains("$RUST") && has_library_source() {
            println!(
                "skipped: {}: with rust-src, the compiler quotes std in it",
                file.display()
            );
            continue;
        }
        cases.compile_fail(file);
    }
}

/// Whether the component rust-src is installed.
fn has_library_source() -> bool {
    let output = rustc("--print=sysroot");
    std::path::Path::new(output.trim())
        .join("lib/rustlib/src/rust/library")
        .exists()
}

fn rustc(argument: &str) -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg(argument).output();
    let output = output.expect("whoever runs this has a compiler");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
