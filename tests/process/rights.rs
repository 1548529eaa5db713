//! What a program has given up, its later processes do not have, whatever the forkserver was started with.

use crate::oracle;
use crate::program::{PATIENCE, Running, double, say};
use offshoot::prelude::*;
use offshoot_sys::pidfd::Status;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// Names what the program gives up.
const WHAT: &str = "OFFSHOOT_TEST_RIGHTS";

const NOBODY: u32 = 65534;

/// What is given up, whether that needs root, and what a later spawn is to be: `None` if it works, else what its error says.
const GIVEN_UP: &[(&str, bool, Option<&str>)] = &[
    ("no-new-privs", false, None),
    ("seccomp", false, None),
    ("user", true, None),
    ("groups", true, None),
    ("capability", true, None),
    ("bounding-set", true, None),
    ("user-but-a-capability", true, None),
    ("securebits", true, None),
    ("namespaces", true, None),
    ("file-user", true, Some("user ids")),
    ("root-directory", true, Some("root directory")),
    ("effective-user", true, Some("effective ids")),
];

fn prctl(option: i32, argument: u64) {
    // SAFETY: the options of this file take numbers.
    let result = unsafe { libc::prctl(option, argument, 0_u64, 0_u64, 0_u64) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn ok(result: i32) {
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Inheritable, permitted and effective capabilities of this thread, all of which are among the first 32.
fn set_capabilities(set: u32) {
    let mut header = [0x2008_0522_u32, 0];
    let data = [set, set, 0, 0, 0, 0];
    // SAFETY: the header and the two structures of three numbers that its version says.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn give_up(what: &str) {
    const NET_BIND_SERVICE: u64 = 10;
    // SAFETY: no pointers but to what lives over the call.
    unsafe {
        match what {
            "no-new-privs" => prctl(libc::PR_SET_NO_NEW_PRIVS, 1),
            "seccomp" => {
                prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
                let mut filter = [libc::sock_filter {
                    code: (libc::BPF_RET | libc::BPF_K) as u16,
                    jt: 0,
                    jf: 0,
                    k: libc::SECCOMP_RET_ALLOW,
                }];
                let program = libc::sock_fprog {
                    len: 1,
                    filter: filter.as_mut_ptr(),
                };
                let mode = libc::SECCOMP_MODE_FILTER;
                ok(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program));
            }
            "user" => {
                ok(libc::setgroups(0, std::ptr::null()));
                ok(libc::setresgid(NOBODY, NOBODY, NOBODY));
                ok(libc::setresuid(NOBODY, NOBODY, NOBODY));
            }
            "groups" => ok(libc::setgroups(2, [7, 8].as_ptr())),
            "capability" => set_capabilities(1 << NET_BIND_SERVICE),
            "bounding-set" => prctl(libc::PR_CAPBSET_DROP, NET_BIND_SERVICE),
            "user-but-a-capability" => {
                prctl(libc::PR_SET_KEEPCAPS, 1);
                ok(libc::setresgid(NOBODY, NOBODY, NOBODY));
                // Of this thread alone: the others of this process do not keep theirs.
                let result = libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY);
                assert_eq!(result, 0);
                let mut header = [0x2008_0522_u32, 0];
                let set = 1 << NET_BIND_SERVICE;
                let data = [set, set, 0, 0, 0, 0];
                let result = libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr());
                assert_eq!(result, 0);
            }
            "securebits" => prctl(libc::PR_SET_SECUREBITS, 1),
            "namespaces" => ok(libc::unshare(libc::CLONE_NEWUTS | libc::CLONE_NEWNET)),
            "file-user" => {
                libc::setfsuid(NOBODY);
            }
            "root-directory" => {
                let directory = std::env::var("TMPDIR").expect("the case sets it");
                let directory = std::ffi::CString::new(directory).expect("a path");
                ok(libc::chroot(directory.as_ptr()));
            }
            "effective-user" => ok(libc::seteuid(NOBODY)),
            other => panic!("what is {other}?"),
        }
    }
}

/// What the calling thread may do, as the kernel tells it.
async fn mine() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let told = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"];
    let lines = status
        .lines()
        .filter(|line| told.iter().any(|name| line.starts_with(name)))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut lines: Vec<String> = lines.collect();
    for name in ["net", "uts", "mnt", "user"] {
        let link = fs::read_link(format!("/proc/thread-self/ns/{name}"));
        lines.push(format!("{:?}", link.ok()));
    }
    // SAFETY: takes no pointer.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) } & !16;
    lines.push(format!("securebits {bits}"));
    lines.join("; ")
}

/// What of it can be had: what is not in its bounding set, a program keeps only until it executes another one.
fn kept(what: &str, rights: &str) -> String {
    let lost = |line: &&str| line.starts_with("CapPrm") || line.starts_with("CapEff");
    let lost = |line: &&str| what == "bounding-set" && lost(line);
    let lines: Vec<&str> = rights.split("; ").filter(|line| !lost(line)).collect();
    lines.join("; ")
}

fn forkservers() -> usize {
    let own = oracle::own_pid();
    let all = oracle::below(own);
    let is_one = |process: &&oracle::Process| {
        process.parent == own && process.name.starts_with("offshoot-forks")
    };
    all.iter().filter(is_one).count()
}

/// The program: a process, a change, more processes.
pub(crate) async fn program() -> Result<()> {
    let what = std::env::var(WHAT).expect("the case sets it");
    let (_, _, fails) = GIVEN_UP
        .iter()
        .find(|(name, ..)| *name == what)
        .expect("one of the table");
    // As a service that was started in the home directory of the superuser: it may not enter that again later.
    let closed =
        std::path::Path::new(&std::env::var_os("TMPDIR").expect("the case sets it")).join("closed");
    fs::create_dir(&closed)?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700))?;
    std::env::set_current_dir(&closed)?;
    offshoot::nursery(async |nursery| {
        let before = mine().await;
        let first: Result<()> = offshoot::nursery(async |inner| {
            let first = inner.spawn(Isolate::named("first").process()).await?;
            assert_eq!(first.call(mine, ()).await?, before);
            // There is a reserve from before, too.
            let own = oracle::own_pid();
            while oracle::below(own).len() == oracle::isolates_below(own).len() {
                offshoot::sleep(Duration::from_millis(1)).await?;
            }
            give_up(&what);
            for n in 0..4 {
                let later = inner
                    .spawn(Isolate::named(format!("later-{n}")).process())
                    .await;
                match (later, fails) {
                    (Ok(later), None) => {
                        let has = later.call(mine, ()).await?;
                        assert_eq!(kept(&what, &has), kept(&what, &mine().await));
                    }
                    (Err(error), Some(fails)) => {
                        let told = error.report();
                        assert!(told.contains(fails), "{told}");
                    }
                    (later, _) => panic!("it is {later:?}"),
                }
            }
            if fails.is_none() {
                assert_ne!(before, mine().await);
                assert_eq!(forkservers(), 2);
            }
            assert_eq!(first.call(mine, ()).await?, before);
            Ok(())
        })
        .await;
        first?;
        if fails.is_none() {
            // The old one has nothing to serve any more.
            let deadline = std::time::Instant::now() + PATIENCE;
            while forkservers() != 1 {
                assert!(std::time::Instant::now() < deadline, "{}", oracle::table());
                offshoot::sleep(Duration::from_millis(5)).await?;
            }
            let last = nursery.spawn(Isolate::named("last").process()).await?;
            assert_eq!(last.call(double, 4).await?, 8);
            let has = last.call(mine, ()).await?;
            assert_eq!(kept(&what, &has), kept(&what, &mine().await));
        }
        say("@right");
        Ok(())
    })
    .await
}

pub(crate) fn is_root() -> bool {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() == 0 }
}

/// A directory in which any user can have a temporary one. The test's own may be closed to others.
pub(crate) fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir_in("/tmp").expect("a directory");
    let open = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(directory.path(), open).expect("our own");
    directory
}

/// Whatever it is, a later process has it as the program has it; or its spawn is an error that says so.
pub(crate) fn given_up() {
    for (what, needs_root, _) in GIVEN_UP {
        if *needs_root && !is_root() {
            println!("{what} is left out: only root can give it up");
            continue;
        }
        let directory = open_directory();
        let tmp = directory.path().to_str().expect("a plain path");
        let environment = [
            (WHAT, *what),
            ("TMPDIR", tmp),
            ("OFFSHOOT_RESERVE_PROCESSES", "2"),
        ];
        let running = Running::start("rights", &environment);
        let status = running.wait(PATIENCE);
        assert_eq!(status, Status::Exited(0), "{what}: {}", running.log());
        assert!(
            running.log().contains("@right"),
            "{what}: {}",
            running.log()
        );
        assert!(matches!(
            oracle::wait_childless(PATIENCE),
            oracle::Left::Nothing
        ));
        let left = oracle::own_tree_files();
        assert!(left.is_empty(), "{what}: {left:?}\n{}", running.log());
        let other = directory.path().join(format!("offshoot-{NOBODY}"));
        let other = fs::read_dir(other).into_iter().flatten().count();
        assert_eq!(other, 0, "{what}: {}", running.log());
    }
}

/// Gives something up that anybody can, and spawns a process.
async fn gives_up_and_spawns() -> Result<String> {
    give_up("no-new-privs");
    spawns().await
}

/// Spawns a process; the error of that.
async fn spawns() -> Result<String> {
    offshoot::nursery(async |nursery| {
        Ok(
            match nursery.spawn(Isolate::named("below").process()).await {
                Ok(below) => format!("it is there: {}", below.call(mine, ()).await?),
                Err(error) => error.report(),
            },
        )
    })
    .await
}

/// The same by a thread isolate that keeps what the process's first thread gives up: only the forkserver sees that.
async fn gives_up_and_has_another_spawn() -> Result<String> {
    offshoot::nursery(async |nursery| {
        let thread = nursery.spawn(Isolate::named("thread").thread()).await?;
        let before = thread.call(spawns, ()).await??;
        assert!(before.starts_with("it is there"), "{before}");
        give_up("no-new-privs");
        thread.call(spawns, ()).await?
    })
    .await
}

/// Children of processes: a process that has given something up gets none that has it.
pub(crate) fn given_up_below() {
    let run = offshoot::run(async || {
        offshoot::nursery(async |nursery| {
            let one = nursery.spawn(Isolate::named("one").process()).await?;
            let told = one.call(gives_up_and_spawns, ()).await??;
            assert!(told.contains("no_new_privs false, now true"), "{told}");
            let other = nursery.spawn(Isolate::named("other").process()).await?;
            let told = other.call(gives_up_and_has_another_spawn, ()).await??;
            assert!(
                told.contains("the asking process may not do any more")
                    && told.contains("no_new_privs false, now true"),
                "{told}"
            );
            // Nobody else is concerned.
            let last = nursery.spawn(Isolate::named("last").process()).await?;
            assert!(last.call(spawns, ()).await??.starts_with("it is there"));
            Ok(())
        })
        .await
    });
    run.unwrap_or_else(|error| panic!("{}", error.report()));
}

/// Removes its own file, which was the loader's first argument, and says what a spawn comes to.
pub(crate) async fn unlinked() -> Result<()> {
    let line = fs::read("/proc/self/cmdline")?;
    let path = line.split(|&byte| byte == 0).nth(1);
    let path = path.ok_or_else(|| Error::other("no path"))?;
    fs::remove_file(std::ffi::OsStr::from_bytes(path))?;
    let told = spawns().await?;
    say(&format!("@told {}", told.replace('\n', " ")));
    Ok(())
}

/// Says that it runs, whether the kernel calls it secure, and what a spawn comes to.
pub(crate) async fn secure() -> Result<()> {
    // SAFETY: takes no pointer.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) };
    say(&format!("@main {secure}"));
    let told = spawns().await?;
    say(&format!("@told {}", told.replace('\n', " ")));
    Ok(())
}

/// A program with set-group-id cannot be executed again as a forkserver, and is not: its `main` runs once, and the spawn says why not.
pub(crate) fn secure_exec() {
    if !is_root() {
        println!("left out: only root can give a file to another group");
        return;
    }
    let directory = open_directory();
    let image = directory.path().join("program");
    fs::copy("/proc/self/exe", &image).expect("a copy");
    std::os::unix::fs::chown(&image, Some(0), Some(12)).expect("our own");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o2755)).expect("our own");
    let running = Running::start_image(&image, "secure", &[]);
    if running.line("@main", PATIENCE) == "0" {
        println!("left out: the file system does not honour set-group-id");
        return;
    }
    let told = running.line("@told", PATIENCE);
    assert!(told.contains("AT_SECURE"), "{told}");
    assert_eq!(running.wait(PATIENCE), Status::Exited(0));
    let log = running.log();
    assert_eq!(log.matches("@main").count(), 1, "{log}");
}
