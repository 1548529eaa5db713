//! Tests in a mount namespace of their own, of which nothing is left: the test's executable runs the one test again in it.

use std::path::Path;
use std::process::Command;

const APART: &str = "OFFSHOOT_TEST_APART";

/// Runs `test` apart. Where no namespace can be had, it says so. `name` is that of the calling test in this executable.
pub(crate) fn run(name: &str, test: impl FnOnce()) {
    if std::env::var_os(APART).is_some() {
        println!("begun apart");
        return test();
    }
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    for way in ways {
        let out = Command::new("unshare")
            .args(way)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(APART, "")
            .output();
        let Ok(out) = out else { continue };
        let text = String::from_utf8_lossy(&out.stdout);
        if text.contains("begun apart") {
            let errors = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{text}{errors}");
            return;
        }
    }
    eprintln!("no mount namespace can be had here: not tried");
}

/// Mounts what lies at one path at another.
pub(crate) fn bind(what: &Path, on: &Path) {
    let mounted = Command::new("mount")
        .arg("--bind")
        .args([what, on])
        .status();
    assert!(mounted.unwrap().success());
}
