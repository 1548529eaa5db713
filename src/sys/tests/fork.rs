//! The child of a fork: what it is, what it is not, and that it does not outlive its parent. Has its own `main` because a process that forks must
//! have one thread.
//!
//! With a name as argument only the cases that contain it are run.

use offshoot_sys::fork::{self, Limit, Outfit, Prelude, fork_child};
use offshoot_sys::pidfd::{Pidfd, Status};
use offshoot_sys::{clock, limits, process, signal, socket, thread};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

macro_rules! cases {
    ($($case:ident),* $(,)?) => { [$((stringify!($case), $case as fn())),*] };
}

fn main() {
    // Lists nothing: the cases need each other's absence, and one process to run them all.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    process::become_subreaper().unwrap();
    let cases = cases![
        the_child_is_what_the_prelude_says,
        the_default_prelude_changes_little,
        only_listed_descriptors_survive,
        only_listed_descriptors_survive_without_close_range,
        signals_are_reset,
        the_parents_mask_comes_back,
        stdio_is_replaced_in_any_order,
        stdio_is_replaced_where_there_was_none,
        output_is_neither_lost_nor_doubled,
        a_panic_ends_the_child,
        a_strangers_child_ends,
        a_failed_step_ends_the_child,
        a_failed_step_is_told,
        impossible_preludes_are_refused,
        a_process_with_threads_is_refused,
        a_killed_parent_takes_its_children_along,
        a_parent_killed_during_the_prelude_takes_its_children_along,
        children_are_reaped_with_what_they_used,
        the_child_is_a_whole_program,
        f32_send_never_raises_sigpipe,
        the_environment_can_be_changed_alone,
    ];
    let mut run = 0;
    for (name, case) in cases.into_iter().filter(|(name, _)| name.contains(&filter)) {
        let open = open_fds("self");
        println!("{name}");
        case();
        assert_eq!(
            process::children_of(process::id()),
            [],
            "{name} leaves no child"
        );
        assert_eq!(open_fds("self"), open, "{name} leaves no descriptor");
        assert_eq!(thread::count(), 1, "{name} leaves no thread");
        run += 1;
    }
    println!("ok: {run} cases");
}

fn the_child_is_what_the_prelude_says() {
    let directory = tempfile::tempdir().unwrap();
    let cwd = directory.path().canonicalize().unwrap();
    let open = limits::open_files();
    let files = (open.0.min(77), open.1.min(99));
    let outfit = || Outfit {
        name: "a name of more than fifteen bytes".to_string(),
        umask: Some(0o051),
        limits: vec![
            (Limit::OpenFiles, files.0, files.1),
            (Limit::Cpu, 1000, 2000),
        ],
        cwd: Some(File::open(directory.path()).unwrap().into()),
        stdio: [Some(null()), None, None],
        ..Outfit::default()
    };
    let is_so = || {
        assert_eq!(std::env::current_dir().unwrap(), cwd);
        assert_eq!(process::umask_now().unwrap(), 0o051);
        assert_eq!(limits::open_files(), files);
        let all = fs::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(limit(&all, "Max cpu time"), ["1000", "2000"]);
        assert_eq!(limit(&all, "Max core file size"), ["0", "0"]);
        assert_eq!(status("Name"), "a name of more ");
        let input = fs::read_link("/proc/self/fd/0").unwrap();
        assert_eq!(input.to_str(), Some("/dev/null"));
        assert_eq!(stat(5), process::id().to_string(), "its own process group");
        assert!(process::is_single_threaded().unwrap());
    };
    let prelude = |outfit| Prelude {
        outfit,
        new_session_group: true,
        ..Prelude::default()
    };
    in_child(prelude(outfit()), is_so);
    // The same later, by descriptors that the child has got since.
    let parent = process::id();
    in_child(prelude(Outfit::default()), || {
        assert_ne!(process::umask_now().unwrap(), 0o051);
        let outfit = outfit();
        outfit.check().unwrap();
        outfit.put_on(parent).unwrap();
        is_so();
    });
    // By one whose parent has gone meanwhile, it is not put on.
    in_child(prelude(Outfit::default()), || {
        assert!(Outfit::default().put_on(1).is_err());
    });
    assert_ne!(
        process::umask_now().unwrap(),
        0o051,
        "the parent keeps its own"
    );
    assert_eq!(limits::open_files(), open);
}

fn the_default_prelude_changes_little() {
    let (cwd, umask, group) = (
        std::env::current_dir().unwrap(),
        process::umask_now().unwrap(),
        stat(5),
    );
    let (parent, name, open) = (process::id(), status("Name"), limits::open_files());
    in_child(Prelude::default(), move || {
        assert_eq!(process::parent(), parent);
        assert_eq!(std::env::current_dir().unwrap(), cwd);
        assert_eq!(process::umask_now().unwrap(), umask);
        assert_eq!(stat(5), group);
        assert_eq!(status("Name"), name);
        assert_eq!(limits::open_files(), open);
        assert_eq!(
            limit(
                &fs::read_to_string("/proc/self/limits").unwrap(),
                "Max core file size"
            ),
            ["0", "0"]
        );
    });
}

fn only_listed_descriptors_survive() {
    descriptors_in_child();
}

/// As a kernel before 5.9, or a sandbox that has not heard of it, would answer.
fn only_listed_descriptors_survive_without_close_range() {
    in_child(Prelude::default(), || {
        refuse_close_range();
        // SAFETY: takes no pointer; closes nothing, since the range is that of one number that cannot be open.
        let refused = unsafe { libc::syscall(libc::SYS_close_range, i32::MAX, i32::MAX, 0) };
        assert_eq!(refused, -1);
        descriptors_in_child();
    });
}

fn descriptors_in_child() {
    let (kept, _far) = socket::packet_pair().unwrap();
    let (_dropped, gone) = UnixStream::pair().unwrap();
    // Inheritable ones must go, too, and those with a hole below them.
    let high = high_fd(&gone, 500);
    let prelude = Prelude {
        keep: vec![kept.as_raw_fd(), high],
        ..Prelude::default()
    };
    let mut expected = vec![0, 1, 2, kept.as_raw_fd(), high];
    expected.sort_unstable();
    let (release, wait) = UnixStream::pair().unwrap();
    let mut prelude = prelude;
    prelude.outfit.stdio[0] = Some(wait.into());
    let (pid, child) = fork_child(prelude, || {
        // Until the parent has looked.
        let _ = std::io::stdin().read(&mut [0]);
        fork::exit_now(0)
    })
    .unwrap();
    // Looked at from outside, once the prelude is over: it has a descriptor for its working directory or listing only before.
    let seen = until(|| Some(open_fds(&pid.to_string())).filter(|open| *open == expected));
    assert_eq!(
        seen,
        Some(expected),
        "instead of {:?}",
        open_fds(&pid.to_string())
    );
    drop(release);
    assert_eq!(end_of(&child), Status::Exited(0));
    // SAFETY: `high_fd` has made this number, and nothing else closes it.
    assert_eq!(unsafe { libc::close(high) }, 0);
}

fn signals_are_reset() {
    let signals = signal::Signals::install(&[signal::SIGUSR1]).unwrap();
    // SAFETY: the handlers are constants of the system.
    let before = unsafe {
        (
            libc::signal(libc::SIGUSR2, libc::SIG_IGN),
            libc::signal(libc::SIGPIPE, libc::SIG_DFL),
        )
    };
    let blocked = [libc::SIGTERM, libc::SIGRTMIN() + 5];
    in_child(Prelude::default(), move || {
        process::block_signals(&blocked).unwrap()
    });
    // As of a terminal's background; and what this program was started with, by `nohup` for instance.
    let bits = |signals: &[i32]| -> u64 { signals.iter().map(|signal| 1 << (signal - 1)).sum() };
    let ignored = bits(&[libc::SIGPIPE, libc::SIGTTIN, libc::SIGTTOU])
        | (mask("SigIgn") & bits(&offshoot_sys::fork::STAY_IGNORED));
    let middle = Prelude::default();
    // One process between, so that this one's own mask is not changed for the cases after.
    in_child(middle, move || {
        process::block_signals(&blocked).unwrap();
        // SAFETY: as above.
        unsafe {
            libc::signal(libc::SIGUSR2, libc::SIG_IGN);
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
        }
        in_child(Prelude::default(), || {
            assert_eq!(mask("SigBlk"), 0);
            assert_eq!(mask("SigIgn"), ignored);
            assert_eq!(mask("SigCgt"), 0);
        });
    });
    in_child(Prelude::default(), || {
        assert_eq!(mask("SigBlk"), 0);
        assert_eq!(mask("SigCgt"), 0, "the parent's handler is gone");
        assert_eq!(mask("SigIgn"), ignored);
    });
    drop(signals);
    // SAFETY: as above.
    unsafe {
        libc::signal(libc::SIGUSR2, before.0);
        libc::signal(libc::SIGPIPE, before.1);
    }
}

fn the_parents_mask_comes_back() {
    in_child(Prelude::default(), || {
        process::block_signals(&[libc::SIGTERM]).unwrap();
        in_child(Prelude::default(), || {});
        assert_eq!(mask("SigBlk"), 1 << (libc::SIGTERM - 1));
    });
}

fn stdio_is_replaced_in_any_order() {
    let (input, mut feed) = UnixStream::pair().unwrap();
    let (mut output, out) = UnixStream::pair().unwrap();
    let (mut errors, err) = UnixStream::pair().unwrap();
    feed.write_all(b"in").unwrap();
    drop(feed);
    let prelude = Prelude {
        outfit: Outfit {
            stdio: [Some(input.into()), Some(out.into()), Some(err.into())],
            ..Outfit::default()
        },
        ..Prelude::default()
    };
    // Crossed over once more below, with sources that are themselves standard descriptors.
    let (_, child) = fork_child(prelude, || {
        // SAFETY: the standard descriptors are open and given away here for good; this process uses them through no other object.
        let (one, two) = unsafe { (owned(1), owned(2)) };
        let crossed = Prelude {
            outfit: Outfit {
                stdio: [None, Some(two), Some(one)],
                ..Outfit::default()
            },
            ..Prelude::default()
        };
        let (_, child) = fork_child(crossed, || {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).unwrap();
            print!("{text} to errors");
            eprint!("{text} to output");
            fork::exit_now(0)
        })
        .unwrap();
        exit_as(end_of(&child))
    })
    .unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    output.read_to_string(&mut out).unwrap();
    errors.read_to_string(&mut err).unwrap();
    assert_eq!(
        (out.as_str(), err.as_str()),
        ("in to output", "in to errors")
    );
    assert_eq!(end_of(&child), Status::Exited(0));
}

/// The lowest free number is then the very one that is to be filled.
fn stdio_is_replaced_where_there_was_none() {
    in_child(Prelude::default(), || {
        let source = null();
        // SAFETY: takes no pointer; this process reads nothing from it.
        assert_eq!(unsafe { libc::close(0) }, 0);
        in_child(
            Prelude {
                outfit: Outfit {
                    stdio: [Some(source), None, None],
                    ..Outfit::default()
                },
                ..Prelude::default()
            },
            || {
                assert_eq!(
                    fs::read_link("/proc/self/fd/0").unwrap().to_str(),
                    Some("/dev/null")
                );
                // SAFETY: takes no pointer.
                let flags = unsafe { libc::fcntl(0, libc::F_GETFD) };
                assert_eq!(flags, 0, "and is inherited by exec");
            },
        );
        // A standard descriptor as the source of another stays what it is.
        // SAFETY: given away for good; this process uses it through no other object.
        let output = unsafe { owned(1) };
        in_child(
            Prelude {
                outfit: Outfit {
                    stdio: [Some(output), None, None],
                    ..Outfit::default()
                },
                ..Prelude::default()
            },
            || {
                let standard = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
                assert_eq!(standard(0), standard(1));
            },
        );
        // The parent has given it away.
        fork::exit_at_once(0);
    });
}

fn output_is_neither_lost_nor_doubled() {
    let (mut output, out) = UnixStream::pair().unwrap();
    let prelude = Prelude {
        outfit: Outfit {
            stdio: [None, Some(out.into()), None],
            ..Outfit::default()
        },
        ..Prelude::default()
    };
    let (_, child) = fork_child(prelude, || {
        print!("before, ");
        let (_, child) = fork_child(Prelude::default(), || {
            print!("child, ");
            fork::exit_now(0)
        })
        .unwrap();
        let status = end_of(&child);
        print!("after");
        let _ = std::io::stdout().flush();
        print!(" and what is not flushed");
        match status {
            Status::Exited(0) => fork::exit_at_once(0),
            _ => fork::exit_at_once(1),
        }
    })
    .unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before, child, after");
    assert_eq!(end_of(&child), Status::Exited(0));
}

fn a_panic_ends_the_child() {
    let prelude = Prelude {
        outfit: Outfit {
            stdio: [None, None, Some(null())],
            ..Outfit::default()
        },
        ..Prelude::default()
    };
    let (_, child) = fork_child(prelude, || panic!("on purpose")).unwrap();
    assert_eq!(end_of(&child), Status::Exited(fork::EXIT_PANIC));
}

fn a_strangers_child_ends() {
    let (_, child) = fork_child(
        Prelude {
            expected_parent: 1,
            ..Prelude::default()
        },
        || fork::exit_at_once(0),
    )
    .unwrap();
    assert_eq!(end_of(&child), Status::Exited(fork::EXIT_PRELUDE));
}

fn a_failed_step_ends_the_child() {
    // A file is no directory to change to.
    let (_, child) = fork_child(
        Prelude {
            outfit: Outfit {
                cwd: Some(null()),
                ..Outfit::default()
            },
            ..Prelude::default()
        },
        || fork::exit_at_once(0),
    )
    .unwrap();
    assert_eq!(end_of(&child), Status::Exited(fork::EXIT_PRELUDE));
}

fn a_failed_step_is_told() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let (_, child) = fork::fork_child_told(
        Prelude {
            outfit: fork::Outfit {
                cwd: Some(null()),
                ..fork::Outfit::default()
            },
            ..Prelude::default()
        },
        |prelude| {
            let failed = prelude.expect_err("a file is no directory");
            let errno = failed.error.raw_os_error();
            let told = format!("{} {}", failed.step, errno == Some(libc::ENOTDIR));
            let _ = writer.write_all(told.as_bytes());
            fork::exit_at_once(7)
        },
    )
    .unwrap();
    assert_eq!(end_of(&child), Status::Exited(7));
    let mut told = vec![0; 64];
    let n = reader.read(&mut told).unwrap();
    assert_eq!(&told[..n], b"working directory true");
}

fn impossible_preludes_are_refused() {
    let refused = |prelude: Prelude| {
        assert!(prelude.outfit.check().is_err());
        fork_child(prelude, || fork::exit_at_once(0))
            .map(|(pid, _)| pid)
            .expect_err("refused")
            .kind()
    };
    let limits = vec![(Limit::OpenFiles, 9, 8)];
    assert_eq!(
        refused(Prelude {
            outfit: Outfit {
                limits,
                ..Outfit::default()
            },
            ..Prelude::default()
        }),
        std::io::ErrorKind::InvalidInput
    );
    let name = "a\0b".to_string();
    assert_eq!(
        refused(Prelude {
            outfit: Outfit {
                name,
                ..Outfit::default()
            },
            ..Prelude::default()
        }),
        std::io::ErrorKind::InvalidInput
    );
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        let limits = vec![(Limit::OpenFiles, 8, limits::open_files().1 + 1)];
        assert_eq!(
            refused(Prelude {
                outfit: Outfit {
                    limits,
                    ..Outfit::default()
                },
                ..Prelude::default()
            }),
            std::io::ErrorKind::PermissionDenied
        );
    }
}

fn a_process_with_threads_is_refused() {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || ended.recv().is_err());
    assert_eq!(thread::count(), 2);
    assert!(!process::is_single_threaded().unwrap());
    assert!(fork_child(Prelude::default(), || fork::exit_at_once(0)).is_err());
    drop(end);
    let mut joiner =
        thread::Joiner::from(std::thread::spawn(move || assert!(other.join().unwrap())));
    assert!(joiner.join_until(clock::now() + LONG.as_nanos() as u64));
    // A joined thread may be in the kernel's list for a moment more.
    assert!(until(|| process::is_single_threaded().unwrap().then_some(())).is_some());
}

/// The middle process is killed; its child, which would sleep for ever, is then killed by the kernel, and comes to us, the subreaper.
fn a_killed_parent_takes_its_children_along() {
    for _ in 0..20 {
        let status = kill_the_middle(true);
        assert_eq!(
            status,
            Status::Signaled {
                signal: signal::SIGKILL,
                core: false
            }
        );
    }
}

/// Killed at once, the middle may be gone before its child has asked for the signal. The check after that has to see it.
fn a_parent_killed_during_the_prelude_takes_its_children_along() {
    for _ in 0..200 {
        let status = kill_the_middle(false);
        let by_signal = Status::Signaled {
            signal: signal::SIGKILL,
            core: false,
        };
        assert!(
            status == by_signal || status == Status::Exited(fork::EXIT_PRELUDE),
            "{status:?}"
        );
    }
}

/// Kills a process that has forked a child, once that runs its own code or at once. How the child ended.
fn kill_the_middle(ready: bool) -> Status {
    let (ours, theirs) = socket::packet_pair().unwrap();
    let prelude = Prelude {
        keep: vec![theirs.as_raw_fd()],
        ..Prelude::default()
    };
    let (_, middle) = fork_child(prelude, || {
        let prelude = Prelude {
            new_session_group: true,
            keep: vec![theirs.as_raw_fd()],
            ..Prelude::default()
        };
        let (pid, child) = fork_child(prelude, || {
            socket::send_packet(&theirs, b"ready", &[]).unwrap();
            sleep_for_ever()
        })
        .unwrap();
        socket::send_packet(&theirs, &pid.to_ne_bytes(), &[child.as_fd()]).unwrap();
        sleep_for_ever()
    })
    .unwrap();
    let mut buf = Vec::new();
    let (mut grandchild, mut is_ready) = (None, false);
    while grandchild.is_none() || (ready && !is_ready) {
        assert!(socket::wait_readable(&ours, Some(LONG)).unwrap());
        let packet = socket::recv_packet(&ours, &mut buf).unwrap().unwrap();
        match packet.fds.into_iter().next() {
            Some(pidfd) => {
                grandchild = Some((
                    i32::from_ne_bytes(buf[..].try_into().unwrap()),
                    Pidfd::from_fd(pidfd),
                ))
            }
            None => is_ready = true,
        }
    }
    let (pid, grandchild) = grandchild.unwrap();
    assert!(!ready || !grandchild.is_dead());
    assert!(middle.kill().unwrap());
    assert!(
        grandchild.wait_dead(LONG).unwrap(),
        "it outlived its parent"
    );
    assert_eq!(
        end_of(&middle),
        Status::Signaled {
            signal: signal::SIGKILL,
            core: false
        }
    );
    let (reaped, status, _) = until(process::reap_any).expect("the orphan comes to the subreaper");
    assert_eq!(reaped, pid);
    status
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

fn children_are_reaped_with_what_they_used() {
    assert_eq!(process::reap_any(), None);
    let (pid, _) = fork_child(Prelude::default(), || {
        let memory = std::hint::black_box(vec![1_u8; 8 << 20]);
        let start = clock::now();
        while clock::now() - start < 20_000_000 {
            std::hint::black_box(&memory);
        }
        fork::exit_now(3)
    })
    .unwrap();
    let (reaped, status, used) = until(process::reap_any).unwrap();
    assert_eq!((reaped, status), (pid, Status::Exited(3)));
    assert!(used.user_us + used.system_us > 1_000, "{used:?}");
    assert!(used.max_rss_kib >= 8 << 10, "{used:?}");
    assert_eq!(process::reap_any(), None);
    let (pid, child) = fork_child(Prelude::default(), || std::process::abort()).unwrap();
    let (reaped, status, _) = until(process::reap_any).unwrap();
    assert_eq!(reaped, pid);
    // No core, whatever the machine's pattern: the limit is 0, unless a collector takes it through a pipe.
    assert!(
        matches!(
            status,
            Status::Signaled {
                signal: signal::SIGABRT,
                ..
            }
        ),
        "{status:?}"
    );
    assert_eq!(child.reap().unwrap_err().raw_os_error(), Some(libc::ECHILD));
}

/// Everything that hangs in the child of a process with threads.
fn the_child_is_a_whole_program() {
    let prelude = Prelude {
        outfit: Outfit {
            stdio: [None, Some(null()), Some(null())],
            ..Outfit::default()
        },
        ..Prelude::default()
    };
    in_child(prelude, || {
        println!("printed");
        let caught = std::panic::catch_unwind(|| panic!("caught"));
        assert!(caught.is_err());
        let text = std::thread::spawn(|| std::env::var("PATH").unwrap_or_default())
            .join()
            .unwrap();
        assert_eq!(text, std::env::var("PATH").unwrap_or_default());
        // Its thread id is its own, which a fork by a bare system call gets wrong.
        assert_eq!(thread::id(), process::id());
        // Its robust list and the rest of the library's state are, too: a signal to itself by handle arrives.
        // SAFETY: the handle is this thread's.
        assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), 0) }, 0);
    });
}

/// With SIGPIPE at its default, where a signal would end the process.
fn f32_send_never_raises_sigpipe() {
    in_child(Prelude::default(), || {
        // SAFETY: the handler is a constant of the system.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (stream, peer) = socket::stream_pair().unwrap();
        drop(peer);
        assert!(socket::send(&stream, b"x").is_err());
        assert!(socket::send_vectored(&stream, &[std::io::IoSlice::new(b"x")]).is_err());
        let (packet, peer) = socket::packet_pair().unwrap();
        drop(peer);
        assert!(socket::send_packet(&packet, b"x", &[]).is_err());
    });
}

fn the_environment_can_be_changed_alone() {
    in_child(Prelude::default(), || {
        process::set_env("OFFSHOOT_SYS_TEST", "value").unwrap();
        assert_eq!(std::env::var("OFFSHOOT_SYS_TEST").unwrap(), "value");
        process::remove_env("OFFSHOOT_SYS_TEST").unwrap();
        assert!(std::env::var_os("OFFSHOOT_SYS_TEST").is_none());
        for (key, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "x\0")] {
            assert_eq!(
                process::set_env(key, value).unwrap_err().kind(),
                std::io::ErrorKind::InvalidInput
            );
        }
        assert!(process::remove_env("").is_err());
    });
}

/// Runs `body` in a child, which must end well. A failed assertion in it prints there and fails here.
fn in_child(prelude: Prelude, body: impl FnOnce()) {
    let (_, child) = fork_child(prelude, || {
        body();
        fork::exit_now(0)
    })
    .unwrap();
    assert_eq!(end_of(&child), Status::Exited(0));
}

fn end_of(child: &Pidfd) -> Status {
    if !child.wait_dead(LONG).unwrap() {
        child.kill().unwrap();
        assert!(child.wait_dead(LONG).unwrap());
        panic!("the child did not end: {:?}", child.reap());
    }
    child.reap().unwrap().expect("what is dead can be reaped")
}

fn exit_as(status: Status) -> ! {
    match status {
        Status::Exited(code) => fork::exit_now(code),
        Status::Signaled { .. } => fork::exit_now(99),
    }
}

fn until<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = clock::now() + LONG.as_nanos() as u64;
    while clock::now() < deadline {
        if let Some(value) = condition() {
            return Some(value);
        }
        std::thread::yield_now();
    }
    None
}

fn null() -> OwnedFd {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap()
        .into()
}

/// # Safety
/// Nothing else owns or will use it.
unsafe fn owned(fd: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the caller's contract.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A copy of `fd` at or above `least`, inheritable.
fn high_fd(fd: &impl AsFd, least: RawFd) -> RawFd {
    // SAFETY: takes no pointer.
    let copy = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_DUPFD, least) };
    assert!(copy >= least);
    copy
}

/// The descriptors of a process, in order, without the one that this listing opens.
fn open_fds(pid: &str) -> Vec<RawFd> {
    let listing = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut open: Vec<RawFd> = listing
        .map(|entry| entry.unwrap())
        .filter(|entry| {
            !fs::read_link(entry.path())
                .is_ok_and(|to| to.starts_with("/proc") && to.ends_with("fd"))
        })
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .collect();
    open.sort_unstable();
    open
}

fn status(field: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    line.unwrap().to_string()
}

/// A mask of signals, without the two that glibc keeps for itself and nobody can change.
fn mask(field: &str) -> u64 {
    u64::from_str_radix(&status(field), 16).unwrap() & !(0b11 << 31)
}

fn stat(field: usize) -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let rest = &stat[stat.rfind(')').unwrap() + 2..];
    rest.split(' ').nth(field - 3).unwrap().to_string()
}

fn limit<'a>(limits: &'a str, name: &str) -> Vec<&'a str> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.split_ascii_whitespace().take(2).collect()
}

/// Makes close_range answer ENOSYS in this process and its children, by a seccomp filter.
fn refuse_close_range() {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD_NUMBER, 0, 0, 0),
        step(JUMP_EQUAL, 0, 1, libc::SYS_close_range as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the filter is live and its length right; the kernel copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter),
            0
        );
    }
}
