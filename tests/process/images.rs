//! Executables that are started in other ways than by their path: F67.

use crate::oracle::{self, Left};
use crate::program::{PATIENCE, Running};
use crate::rights::{is_root, open_directory};
use offshoot_sys::pidfd::Status;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const NOBODY: u32 = 65_534;

/// The loader of this program, as it is mapped.
fn loader() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc");
    let mut paths = maps.lines().filter_map(|line| line.split(' ').next_back());
    let is_loader = |path: &&str| {
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("ld-"))
    };
    paths.find(is_loader).map(PathBuf::from)
}

fn runs(image: &Path, environment: &[(&str, &str)], change: impl FnOnce(&mut Command)) {
    let mut running = Running::start_changed(image, "clean", environment, change);
    running.stop();
    let status = running.wait(PATIENCE);
    assert_eq!(status, Status::Exited(0), "{}", running.log());
    assert!(matches!(oracle::wait_childless(PATIENCE), Left::Nothing));
    assert_eq!(oracle::own_tree_files(), Vec::<PathBuf>::new());
}

/// `ld.so --inhibit-cache ./program`: the image of the process is the loader.
pub(crate) fn started_by_the_loader() {
    let Some(loader) = loader() else {
        println!("left out: this program has no loader");
        return;
    };
    let image = std::env::current_exe().expect("an executable");
    runs(&loader, &[], |command| {
        command.arg("--inhibit-cache").arg(&image);
    });
    // Once its file is gone, a spawn says why there is none.
    let directory = open_directory();
    let copy = directory.path().join("a program");
    fs::copy(&image, &copy).expect("a copy");
    let running = Running::start_changed(&loader, "unlinked", &[], |command| {
        command.arg(&copy);
    });
    let told = running.line("@told", PATIENCE);
    assert!(
        told.contains("started by the loader") && told.contains("a program"),
        "{told}"
    );
    assert_eq!(running.wait(PATIENCE), Status::Exited(0));
}

/// Of mode 0711, or 0111 where it is our own: the process may not look into itself by /proc.
pub(crate) fn may_not_be_read() {
    let directory = open_directory();
    let image = directory.path().join("program");
    fs::copy("/proc/self/exe", &image).expect("a copy");
    let mode = if is_root() { 0o711 } else { 0o111 };
    fs::set_permissions(&image, fs::Permissions::from_mode(mode)).expect("our own");
    let runtime = directory.path().join("runtime");
    fs::create_dir(&runtime).expect("a directory");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).expect("our own");
    let place = runtime.to_str().expect("a plain path");
    runs(&image, &[("XDG_RUNTIME_DIR", place)], |command| {
        if is_root() {
            chown(&runtime, Some(NOBODY), Some(NOBODY)).expect("root");
            command.uid(NOBODY).gid(NOBODY);
        }
    });
    let left = fs::read_dir(runtime.join("offshoot"));
    let left = left.map_or(0, |left| {
        left.flatten().filter(|one| one.path().is_dir()).count()
    });
    assert_eq!(left, 0, "a tree is left in {}", runtime.display());
}
