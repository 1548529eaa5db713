//! An isolate that fails, hangs, is stopped or is killed while it runs.

use super::{SOON, double, pends, serves};
use offshoot::prelude::*;
use offshoot::{Error, Limit, Sigint, Stdio};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{held, lines, mark, processes};
use std::time::{Duration, Instant};

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("and in its destructor");
    }
}

fn panics_twice() {
    let _bomb = Bomb;
    panic!("in the call");
}

fn raises(signal: i32) {
    // SAFETY: takes no pointer.
    unsafe { libc::raise(signal) };
}

/// Asks for more memory than there can be, as safe code does that was given a wrong number.
fn allocates(bytes: u64) -> usize {
    let bytes = usize::try_from(bytes).expect("64 bits");
    std::hint::black_box(vec![1_u8; bytes]).len()
}

fn spins() {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// Blocks every signal that can be blocked, and then its thread.
fn is_deaf() {
    // SAFETY: an all-zero set is valid, and the pointers are to a live one or null.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
    mark("deaf");
    loop {
        std::thread::park();
    }
}

extern "C" fn hangs_at_exit() {
    mark("at exit");
    loop {
        std::thread::park();
    }
}

fn registers_at_exit() {
    // SAFETY: the function is one of C's and takes nothing.
    assert_eq!(unsafe { libc::atexit(hangs_at_exit) }, 0);
}

fn registers_at_exit_and_exits() {
    registers_at_exit();
    std::process::exit(0);
}

/// How a process isolate ends that is called this, and that a sibling is not touched by it.
async fn ended_by<M: 'static, F>(
    isolate: Isolate,
    function: F,
    args: F::Args,
) -> Result<(Error, Option<String>)>
where
    F: offshoot::Endpoint<M>,
    F::Args: offshoot::Payload,
    F::Out: offshoot::Payload,
{
    offshoot::nursery(async |outer| {
        let sibling = outer.spawn("sibling").await?;
        let mut portal = None;
        let error = offshoot::nursery(async |nursery| {
            let p = portal.insert(nursery.spawn(isolate).await?);
            p.call(function, args).await?;
            p.call(pends, ()).await
        })
        .await
        .expect_err("it is ended");
        assert_eq!(error.failures().len(), 1, "{}", error.report());
        serves(&sibling).await?;
        Ok((error, portal.and_then(|portal| portal.output_tail())))
    })
    .await
}

fn killed_by(error: &Error, name: &str) {
    match error.exit() {
        Some(Exit::Killed { name: by, .. }) => assert_eq!(by, name, "{}", error.report()),
        _ => panic!("{}", error.report()),
    }
}

processes! {
    async fn f19_a_panic_in_a_destructor_during_a_panic(_t: T) {
        let (error, _) = ended_by(Isolate::named("p"), panics_twice, ()).await?;
        killed_by(&error, "SIGABRT");
    }

    async fn f22_any_crash_is_named(_t: T) {
        for (signal, name) in [
            (libc::SIGBUS, "SIGBUS"),
            (libc::SIGILL, "SIGILL"),
            (libc::SIGFPE, "SIGFPE"),
            (libc::SIGTRAP, "SIGTRAP"),
        ] {
            let (error, _) = ended_by(Isolate::named("p"), raises, signal).await?;
            killed_by(&error, name);
        }
    }

    async fn f23_out_of_its_memory(_t: T) {
        let limited = Isolate::named("p").limit(Limit::AddressSpace, 1 << 30, 1 << 30).stderr(Stdio::Piped);
        for (isolate, bytes) in [
            (Isolate::named("p").stderr(Stdio::Piped), 1 << 46),
            (limited, 2 << 30),
        ] {
            let (error, tail) = ended_by(isolate, allocates, bytes).await?;
            killed_by(&error, "SIGABRT");
            let tail = tail.unwrap_or_default();
            assert!(tail.contains("memory allocation of"), "{tail}");
        }
    }

    async fn f24_killed_by_the_kernel_or_by_anybody(_t: T) {
        // What it was killed for is known to the one who did; the runtime does not guess.
        let (error, _) = ended_by(Isolate::named("p"), raises, libc::SIGKILL).await?;
        killed_by(&error, "SIGKILL");
        assert!(matches!(error.exit(), Some(Exit::Killed { why: None, .. })), "{}", error.report());
    }

    async fn f25_out_of_its_processor_time(_t: T) {
        let isolate = Isolate::named("p").limit(Limit::Cpu, 1, 5);
        let (error, _) = ended_by(isolate, spins, ()).await?;
        killed_by(&error, "SIGXCPU");
        let (error, _) = ended_by(Isolate::named("p"), raises, libc::SIGSYS).await?;
        killed_by(&error, "SIGSYS");
    }

    async fn f27_stopped_and_gone_on(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let process = Pidfd::open(p.origin().pid)?;
            process.signal(libc::SIGSTOP)?;
            let late = offshoot::timeout(Duration::from_millis(100), p.call(double, 1));
            assert!(late.await.unwrap_err().is_timeout());
            process.signal(libc::SIGCONT)?;
            // The late answer is nobody's, and harms nobody.
            serves(&p).await
        })
        .await?;
    }

    fn f27_stopped_and_cancelled(t: T) {
        let hard = Duration::from_millis(400);
        let took = t
            .builder()
            .grace(Duration::from_millis(100))
            .hard_kill(hard)
            .run(async || {
                let mut began = Instant::now();
                let error = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    Pidfd::open(p.origin().pid)?.signal(libc::SIGSTOP)?;
                    began = Instant::now();
                    nursery.cancel();
                    Ok(())
                })
                .await
                .unwrap_err();
                killed_by(&error, "SIGKILL");
                Ok(began.elapsed())
            })
            .unwrap();
        assert!(took >= hard - Duration::from_millis(20) && took < hard + SOON, "{took:?}");
    }

    fn f28_deaf_to_everything(t: T) {
        let hard = Duration::from_millis(400);
        let took = t
            .builder()
            .grace(Duration::from_millis(100))
            .hard_kill(hard)
            .run(async || {
                let mut began = Instant::now();
                let error = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn(Isolate::named("p").sigint(Sigint::Own)).await?;
                    nursery.task(p.call(is_deaf, ())).detach();
                    held("deaf").await?;
                    let process = Pidfd::open(p.origin().pid)?;
                    process.signal(libc::SIGTERM)?;
                    process.signal(libc::SIGINT)?;
                    began = Instant::now();
                    nursery.cancel();
                    Ok(())
                })
                .await
                .unwrap_err();
                killed_by(&error, "SIGKILL");
                Ok(began.elapsed())
            })
            .unwrap();
        assert!(took < hard + SOON, "{took:?}");
    }

    /// The owner has SIGPIPE at its default, as a program has that its `main` made so.
    fn f32_a_pipe_breaks(t: T) {
        t.run(async || {
            // SAFETY: the default action is no handler.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            for _ in 0..10 {
                let error = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    Pidfd::open(p.origin().pid)?.kill()?;
                    loop {
                        // Into a socket whose other end is gone, until that is known.
                        p.call(double, 1).await?;
                    }
                    #[allow(unreachable_code)] // For the type.
                    Ok(())
                })
                .await
                .unwrap_err();
                killed_by(&error, "SIGKILL");
            }
            Ok(())
        })
        .unwrap();
    }

    /// An orderly end runs no `atexit` handler.
    async fn f65_a_handler_that_hangs_at_exit(_t: T) {
        let began = Instant::now();
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            p.call(registers_at_exit, ()).await
        })
        .await?;
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert!(lines("at exit").is_empty());
    }

    /// A library that calls `exit`, and hangs in it, is a hanging process like another.
    fn f65_an_exit_that_hangs(t: T) {
        t.builder()
            .grace(Duration::from_millis(100))
            .hard_kill(Duration::from_millis(400))
            .run(async || {
                let error = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    nursery.task(p.call(registers_at_exit_and_exits, ())).detach();
                    held("at exit").await?;
                    nursery.cancel();
                    Ok(())
                })
                .await
                .unwrap_err();
                killed_by(&error, "SIGKILL");
                Ok(())
            })
            .unwrap();
    }
}
