//! What an isolate can make the root remove once it has given up its own rights: it writes into its bind table by hand.

use crate::oracle;
use crate::program::{PATIENCE, Running, hang, say};
use offshoot::prelude::*;
use offshoot_sys::pidfd::Status;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

/// Names the directory in which the isolate binds.
const PLACE: &str = "OFFSHOOT_TEST_PLACE";

/// Where the parts of a slot lie, as `janitor/table.rs` has them.
const SLOT: usize = 1024;
const STATE: usize = 0;
const KIND: usize = 4;
const PATH_LEN: usize = 12;
const HANDLE_LEN: usize = 24;
const DEV: usize = 32;
const INO: usize = 40;
const BORN: usize = 48;
const PATH: usize = 256;

fn place() -> PathBuf {
    std::env::var_os(PLACE).expect("a directory").into()
}

/// In the isolate: binds a socket in a directory of the superuser, becomes nobody, and says in its table that what it bound is the canary.
async fn bind_and_lie() -> Result<()> {
    let _listener = offshoot::net::UnixListener::bind(place().join("socket")).await?;
    let canary = std::fs::symlink_metadata(place().join("canary"))?;
    let table = own_table();
    // SAFETY: takes no pointers. All threads of this process are changed.
    let given_up = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(65_534, 65_534, 65_534) == 0
            && libc::setresuid(65_534, 65_534, 65_534) == 0
    };
    assert!(given_up, "{}", std::io::Error::last_os_error());
    std::fs::remove_file(place().join("canary")).expect_err("it may not do so itself");
    let slot = (1..=255)
        .map(|index| table + index * SLOT)
        // SAFETY: within the mapping of the table, which lives as long as the process.
        .find(|slot| unsafe { ((slot + STATE) as *const u32).read_volatile() } == 2)
        .expect("what was bound");
    let device =
        (u64::from(libc::major(canary.dev())) << 32) | u64::from(libc::minor(canary.dev()));
    // SAFETY: as above; the runtime writes there only when something is bound or released.
    unsafe {
        ((slot + KIND) as *mut u32).write_volatile(2);
        ((slot + PATH_LEN) as *mut u32).write_volatile(6);
        ((slot + PATH) as *mut [u8; 6]).write_volatile(*b"canary");
        ((slot + HANDLE_LEN) as *mut u32).write_volatile(u32::MAX);
        ((slot + DEV) as *mut u64).write_volatile(device);
        ((slot + INO) as *mut u64).write_volatile(canary.ino());
        ((slot + BORN) as *mut u64).write_volatile(0);
    }
    say("@lied");
    hang().await
}

/// Where the bind table of this process is mapped.
fn own_table() -> usize {
    let maps = std::fs::read("/proc/self/maps").expect("its maps");
    let maps = String::from_utf8_lossy(&maps);
    let line = maps.lines().find(|line| line.contains("/table-"));
    let start = line.and_then(|line| line.split_once('-')).expect("a table");
    usize::from_str_radix(start.0, 16).expect("an address")
}

pub(crate) async fn liar() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let liar = nursery.spawn(Isolate::named("liar").process()).await?;
        let result = liar.call(bind_and_lie, ()).await;
        say(&format!("@ended {}", result.is_err()));
        crate::program::stopped().await
    })
    .await
}

/// Killed alone, with the root, and with root and forkserver together: whoever sweeps, the canary stays.
pub(crate) fn nothing_is_removed_for_it() {
    if std::fs::metadata("/proc/self").expect("/proc").uid() != 0 {
        println!("only the superuser has rights to give up: not tried");
        return;
    }
    // The isolate can look into it as another user.
    let directory = crate::rights::open_directory();
    let place = directory.path().join("place");
    std::fs::create_dir(&place).expect("a directory");
    std::fs::set_permissions(&place, PermissionsExt::from_mode(0o711)).expect("our own");
    let value = std::str::from_utf8(place.as_os_str().as_bytes()).expect("a plain path");
    let temporary = directory.path().join("tmp");
    std::fs::create_dir(&temporary).expect("a directory");
    let environment = [
        (PLACE, value),
        ("TMPDIR", temporary.to_str().expect("a plain path")),
    ];
    for which in ["alone", "root"] {
        std::fs::write(place.join("canary"), "").expect("a file");
        let mut running = Running::start("liar", &environment);
        running.line("@lied", PATIENCE);
        let kill = |name: &str| {
            let tree = oracle::below(running.process.pid);
            let process = tree.into_iter().find(|process| process.name == name);
            let process = process.unwrap_or_else(|| panic!("no {name}: {}", oracle::table()));
            assert!(process.pidfd().expect("it lives").kill().expect("our own"));
        };
        match which {
            "alone" => {
                kill("liar");
                assert_eq!(running.line("@ended", PATIENCE), "true");
                running.stop();
                // The end of an isolate that was killed is a failure of its nursery.
                assert_eq!(running.wait(PATIENCE), Status::Exited(1));
            }
            _ => {
                running.signal(libc::SIGKILL);
                running.wait(PATIENCE);
            }
        }
        assert!(matches!(
            oracle::wait_childless(PATIENCE),
            oracle::Left::Nothing
        ));
        let log = running.log();
        assert!(place.join("canary").exists(), "{which}: {log}");
        assert!(
            log.contains("acted as user 65534"),
            "{which}: it is told: {log}"
        );
        std::fs::remove_file(place.join("socket")).expect("it could not have removed that either");
    }
}
