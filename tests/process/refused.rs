//! System calls that a seccomp filter refuses, as those of service managers and containers do.

use crate::oracle;
use crate::program::{Addresses, PATIENCE, Running};
use offshoot_sys::pidfd::Status;

/// Names the number of a call and the error that it is to have.
const REFUSE: &str = "OFFSHOOT_TEST_REFUSE";

/// Puts this process, and all that it starts, behind the filter that the environment names.
pub(crate) fn refuse_as_told() {
    let Ok(told) = std::env::var(REFUSE) else {
        return;
    };
    let (call, errno) = told.split_once(' ').expect("a number and an error");
    let (call, errno): (u32, u32) = (
        call.parse().expect("a call"),
        errno.parse().expect("an errno"),
    );
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("a short code"),
        jt,
        jf,
        k,
    };
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | errno,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).expect("a short filter"),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the filter lives over the calls, which take nothing else by pointer.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
    };
    assert!(set, "{}", std::io::Error::last_os_error());
}

/// What is to become of a tree whose call is refused.
enum Expected {
    Works,
    /// It cannot start, and says so with these words.
    Told(&'static str),
}

use Expected::{Told, Works};

pub(crate) fn calls_of_the_file_system() {
    let addresses = Addresses::of_case();
    for (call, number, expected) in [
        ("openat2", libc::SYS_openat2, Works),
        ("statx", libc::SYS_statx, Works),
        ("fchmodat2", 452, Works),
        ("renameat2", libc::SYS_renameat2, Works),
        ("name_to_handle_at", libc::SYS_name_to_handle_at, Works),
        ("fallocate", libc::SYS_fallocate, Works),
        (
            "flock",
            libc::SYS_flock,
            Told("tell living trees from dead ones"),
        ),
        ("getrandom", libc::SYS_getrandom, Told("name a tree")),
    ] {
        for (name, errno) in [("ENOSYS", libc::ENOSYS), ("EPERM", libc::EPERM)] {
            let running = Running::start("all", &[(REFUSE, &format!("{number} {errno}"))]);
            let status = running.wait(PATIENCE);
            let log = running.all_output(PATIENCE);
            match expected {
                Works => assert_eq!(status, Status::Exited(0), "{call} {name}: {log}"),
                Told(purpose) => {
                    assert_eq!(status, Status::Exited(1), "{call} {name}: {log}");
                    for word in [
                        &format!("`{call}` is refused here ({name})"),
                        purpose,
                        "filter",
                    ] {
                        assert!(log.contains(word), "{call} {name}, {word}: {log}");
                    }
                }
            }
            assert_eq!(
                addresses.left(),
                Vec::<std::path::PathBuf>::new(),
                "{call} {name}"
            );
            assert_eq!(
                oracle::own_tree_files(),
                Vec::<std::path::PathBuf>::new(),
                "{call} {name}"
            );
            assert!(matches!(
                oracle::wait_childless(PATIENCE),
                oracle::Left::Nothing
            ));
        }
    }
}
