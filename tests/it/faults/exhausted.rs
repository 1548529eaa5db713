//! What there is no more of: descriptors, threads, mappings, address space, room on a disk. Each is an
//! error with a name, that says what the limit is and how to raise it, and passes when there is room
//! again. None is a hang, a busy loop or an abort.

use super::{SOON, double, serves};
use offshoot::Error;
use offshoot::net::{UnixListener, UnixStream};
use offshoot::prelude::*;
use offshoot_sys::{limits, process};
use offshoot_tests::{both, processes, threads};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Sets a soft limit of this process, or of another, until it is dropped.
struct Limited {
    pid: i32,
    resource: libc::__rlimit_resource_t,
    before: libc::rlimit,
}

impl Limited {
    fn new(pid: i32, resource: libc::__rlimit_resource_t, soft: u64) -> Limited {
        let mut before = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the pointers are to live structures, or null.
        unsafe {
            assert_eq!(
                libc::prlimit(pid, resource, std::ptr::null(), &raw mut before),
                0
            );
            let after = libc::rlimit {
                rlim_cur: soft,
                ..before
            };
            assert_eq!(
                libc::prlimit(pid, resource, &raw const after, std::ptr::null_mut()),
                0
            );
        }
        Limited {
            pid,
            resource,
            before,
        }
    }

    /// Lets this process open so many descriptors more.
    fn descriptors(more: u64) -> Limited {
        Limited::new(0, libc::RLIMIT_NOFILE, used() + more)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // SAFETY: as in `new`. The process may have ended.
        unsafe {
            libc::prlimit(
                self.pid,
                self.resource,
                &raw const self.before,
                std::ptr::null_mut(),
            )
        };
    }
}

/// The highest descriptor of this process plus one, below which all are in use once gaps are filled.
fn used() -> u64 {
    let listed = std::fs::read_dir("/proc/self/fd").expect("/proc");
    let numbers = listed
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    // The highest is that of the listing itself, which is closed again.
    numbers.max().unwrap_or(0)
}

/// Takes every number below the highest, so that a limit means what it says.
fn fill() -> Vec<OwnedFd> {
    let highest = used();
    let mut taken = Vec::new();
    loop {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 0) };
        assert!(fd >= 0);
        // SAFETY: the call has just made it.
        taken.push(unsafe { OwnedFd::from_raw_fd(fd) });
        if fd.unsigned_abs() as u64 >= highest {
            return taken;
        }
    }
}

/// A line of the status of this process, as a number.
fn status(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let found = status.lines().find_map(|found| found.strip_prefix(line));
    let number = found.and_then(|found| found.split_whitespace().next());
    number.expect("a line").parse().expect("a number")
}

fn open_now() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

fn threads_now() -> u64 {
    status("Threads:")
}

/// In KiB, without what is of files.
fn resident() -> u64 {
    status("RssAnon:")
}

fn spawn_error(error: &Error, texts: &[&str]) {
    assert!(error.is_spawn(), "{}", error.report());
    for text in texts {
        assert!(error.message().contains(text), "no `{text}` in: {error}");
    }
}

processes! {
    async fn f11_no_descriptors_for_a_process(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let taken = fill();
            let limited = Limited::descriptors(6);
            let began = Instant::now();
            let error = nursery.spawn("q").await.unwrap_err();
            spawn_error(&error, &["RLIMIT_NOFILE", "ulimit -n"]);
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
            // Whoever is there works on, and a thread needs none.
            serves(&p).await?;
            serves(&nursery.spawn(Isolate::named("thread").thread()).await?).await?;
            drop((limited, taken));
            serves(&nursery.spawn("q").await?).await
        })
        .await?;
    }

    /// The answer of the forkserver comes when this process has no room for the pidfd in it.
    fn f12_no_descriptor_for_a_pidfd(t: T) {
        t.faults("forked@late:delay=300");
        t.builder().reserve_processes(0).run(async || {
            offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                let late = nursery.task(async {
                    let began = Instant::now();
                    (nursery.spawn("late").await, began.elapsed())
                });
                offshoot::sleep(Duration::from_millis(100)).await?;
                let taken = fill();
                let limited = Limited::descriptors(0);
                let (spawned, took) = late.await?;
                spawn_error(&spawned.unwrap_err(), &["pidfd", "RLIMIT_NOFILE"]);
                assert!(took < Duration::from_secs(3), "not by the bound of the start: {took:?}");
                serves(&p).await?;
                drop((limited, taken));
                serves(&nursery.spawn("next").await?).await
            })
            .await
        })
        .unwrap();
    }

    /// The forkserver has no room for what a request brings, or for the process itself.
    ///
    /// Without a reserve, whose children have descriptors there, too, and come and go by themselves.
    fn f12_no_descriptors_in_the_forkserver(t: T) {
        t.builder().reserve_processes(0).run(async || {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let forkserver = process::children_of(process::id())[0];
            let open = std::fs::read_dir(format!("/proc/{forkserver}/fd"))?.count() as u64;
            // From one that has no room for the link to one that lacks it only at the end.
            for more in 0..6 {
                let limited = Limited::new(forkserver, libc::RLIMIT_NOFILE, open + more);
                let began = Instant::now();
                let error = nursery.spawn("q").await.map(drop);
                assert!(began.elapsed() < SOON, "{more}: {:?}", began.elapsed());
                if let Err(error) = error {
                    spawn_error(&error, &["RLIMIT_NOFILE", "os error 24"]);
                } else {
                    assert!(more > 2, "{more} were enough");
                }
                serves(&p).await?;
                drop(limited);
            }
            assert_eq!(process::children_of(process::id())[0], forkserver, "it is the same");
            serves(&nursery.spawn("r").await?).await
        })
        .await
        }).unwrap();
    }

    fn f43_no_room_for_the_directory(t: T) {
        for (errno, text) in [(28, "space"), (30, "Read-only"), (122, "quota"), (13, "denied")] {
            t.faults(&format!("tree:fail={errno}"));
            t.run(async move || {
                offshoot::nursery(async |nursery| {
                    let error = nursery.spawn("p").await.unwrap_err();
                    spawn_error(&error, &["directory", text, "XDG_RUNTIME_DIR"]);
                    // Threads need none.
                    serves(&nursery.spawn(Isolate::named("thread").thread()).await?).await
                })
                .await
            })
            .unwrap();
        }
    }
}

both! {
    /// Nothing of an isolate stays with those that come after it.
    fn many_lives_with_few_descriptors(t: T) {
        t.within(Duration::from_secs(150));
        let many = match std::env::var_os("OFFSHOOT_LONG") {
            Some(_) => 2_000,
            None => 200,
        };
        let is_process = t.is_process();
        let _limited = Limited::new(0, libc::RLIMIT_NOFILE, 256);
        t.run(async move || {
            let mut after_some = None;
            for n in 0..many {
                let killed = n % 2 == 0 && is_process;
                let result = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    serves(&p).await?;
                    if killed {
                        offshoot_sys::pidfd::Pidfd::open(p.origin().pid)?.kill()?;
                        p.ended().await;
                    }
                    Ok(())
                })
                .await;
                assert_eq!(result.is_err(), killed, "{result:?}");
                if n == 50 {
                    after_some = Some((open_now(), limits::mappings_now(), threads_now(), resident()));
                }
            }
            let (descriptors, mappings, threads, memory) = after_some.expect("there are more than 50");
            let now = (open_now(), limits::mappings_now(), threads_now(), resident());
            println!(
                "{many} lives: descriptors {descriptors} to {}, mappings {mappings:?} to {:?}, threads {threads} to {}, {memory} KiB to {} KiB",
                now.0, now.1, now.2, now.3
            );
            // The pool's and the reserve's come and go.
            assert!(threads_now() <= threads + 4, "{threads} {}", threads_now());
            // One KiB each would be two MiB.
            assert!(now.3 <= memory + 1_024, "{memory} {}", now.3);
            assert!(now.0 <= descriptors + 2, "{descriptors} {}", now.0);
            // Stacks of threads that ended are kept by the C library, some of them.
            let more = limits::mappings_now().zip(mappings);
            let more = more.map_or(0, |(now, then)| now.saturating_sub(then));
            assert!(more < 64, "{more}");
            Ok(())
        })
        .unwrap();
    }

    fn f43_no_room_for_a_socket(t: T) {
        t.faults("bind:fail=28");
        t.run(async || {
            offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                let error = p
                    .call(async || {
                        let path = offshoot_tests::dir().join("socket");
                        UnixListener::bind(&path).await.map(drop).unwrap_err().to_string()
                    }, ())
                    .await?;
                assert!(error.contains("socket") && error.contains("space"), "{error}");
                serves(&p).await
            })
            .await
        })
        .unwrap();
        assert!(!offshoot_tests::dir().join("socket").exists());
    }
}

threads! {
    async fn f11_no_descriptor_to_accept(_t: T) {
        let path = offshoot_tests::dir().join("socket");
        let listener = UnixListener::bind(&path).await?;
        // One that was connected by then waits in the listener's queue.
        let _client = UnixStream::connect(&path).await?;
        let taken = fill();
        let limited = Limited::descriptors(0);
        let before = processor_time();
        for _ in 0..3 {
            let error = listener.accept().await.map(drop).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
        }
        assert!(processor_time() - before < Duration::from_millis(500));
        drop((limited, taken));
        // Nothing was lost by it.
        let accepted = offshoot::timeout(SOON, listener.accept()).await?;
        accepted?;
    }

    fn f09_no_thread_can_be_had(t: T) {
        t.faults("thread@x:fail=11");
        // Without a reserve, which may have one by the time that it is tried again.
        t.builder().reserve_threads(0).run(async || {
            offshoot::nursery(async |nursery| {
                let error = nursery.spawn("x").await.unwrap_err();
                spawn_error(&error, &["os error 11", "RLIMIT_NPROC", "threads-max"]);
                serves(&nursery.spawn("y").await?).await
            })
            .await
        })
        .unwrap();
    }

    /// A thread that cannot be had for a moment is tried again, with all that it was given, which has to be moved once.
    fn f09_a_thread_that_fails_for_a_moment(t: T) {
        t.faults("thread@called*2:fail=11,thread@asked*2:fail=11,thread@local*2:fail=12,thread@late:fail=11");
        t.builder().reserve_threads(0).run(async || {
            offshoot::nursery(async |nursery| {
                serves(&nursery.spawn("called").await?).await?;
                let asked = nursery.start("asked", vec![1, 2, 3]).await?;
                assert_eq!(asked.ask(Vec::len, ()).await?, 3);
                let local = nursery.start_local("local", std::sync::Mutex::new(4)).await?;
                assert_eq!(local.with(async |state| state.get_mut().map(|n| *n).unwrap_or(0)).await?, 4);
                // Not for longer than its start may take.
                let began = Instant::now();
                let late = Isolate::named("late").start_within(Duration::from_millis(5));
                spawn_error(&nursery.spawn(late).await.unwrap_err(), &["os error 11"]);
                assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
                // Nothing is left of the tries.
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    /// std ends the process when a thread cannot map its signal stack: the runtime stops before.
    fn threads_end_before_the_mappings_do(t: T) {
        t.within(Duration::from_secs(60));
        t.builder()
            .stack_size(64 << 10)
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let mappings = Mappings::all_but(900);
                    let mut portals = Vec::new();
                    let error = loop {
                        match nursery.spawn("p").await {
                            Ok(p) => portals.push(p),
                            Err(error) => break error,
                        }
                        assert!(portals.len() < 300, "there cannot be room for more");
                    };
                    spawn_error(&error, &["vm.max_map_count", "sysctl"]);
                    assert!(portals.len() > 20, "{} were started", portals.len());
                    for p in &portals {
                        assert_eq!(p.call(double, 1).await?, 2);
                    }
                    drop(mappings);
                    serves(&nursery.spawn("q").await?).await
                })
                .await
            })
            .unwrap();
    }

    fn threads_end_before_the_address_space_does(t: T) {
        for resource in [libc::RLIMIT_AS, libc::RLIMIT_DATA] {
            t.run(async move || {
                offshoot::nursery(async |nursery| {
                    let used = limits::memory_now().expect("/proc");
                    let used = if resource == libc::RLIMIT_AS { used[0] } else { used[1] };
                    let limited = Limited::new(0, resource, used + (96 << 20));
                    let mut portals = Vec::new();
                    let error = loop {
                        match nursery.spawn("p").await {
                            Ok(p) => portals.push(p),
                            Err(error) => break error,
                        }
                        assert!(portals.len() < 300, "there cannot be room for more");
                    };
                    spawn_error(&error, &["RLIMIT_", "ulimit"]);
                    for p in &portals {
                        assert_eq!(p.call(double, 1).await?, 2);
                    }
                    drop(limited);
                    serves(&nursery.spawn("q").await?).await
                })
                .await
            })
            .unwrap();
        }
    }
}

/// The processor time of this process.
fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live structure.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).expect("below a second"),
    )
}

/// Nearly all mappings that this process may have.
struct Mappings {
    address: usize,
    len: usize,
}

impl Mappings {
    fn all_but(left: u64) -> Mappings {
        let (used, max) = (
            limits::mappings_now().expect("/proc"),
            limits::mappings_max().expect("/proc"),
        );
        let many = usize::try_from(max - used - left).expect("64 bits");
        let len = many * 4096;
        // SAFETY: a new mapping, at an address of the system's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED);
        for page in (1..many).step_by(2) {
            // Every other page is another mapping then.
            // SAFETY: the page is of the mapping above.
            let result =
                unsafe { libc::mprotect(address.byte_add(page * 4096), 4096, libc::PROT_READ) };
            assert_eq!(result, 0);
        }
        Mappings {
            address: address.addr(),
            len,
        }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        // SAFETY: the mappings of `all_but`, which nobody has used.
        unsafe {
            libc::munmap(
                std::ptr::with_exposed_provenance_mut(self.address),
                self.len,
            )
        };
    }
}
