//! The hook before `main`, in a program that has one: this test starts itself as a forkserver. Has its own `main` because the entry below
//! takes the place of it.

use offshoot_sys::fork::{self, Outfit, Prelude, fork_child};
use offshoot_sys::pidfd::{Pidfd, Status};
use offshoot_sys::{image, mark, premain, process, signal, socket, spawn};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

offshoot_sys::forkserver_entry!(entry);

const LONG: Duration = Duration::from_secs(20);

/// What is promoted to another process: a constant with an address in it.
struct Descriptor {
    magic: u64,
    function: fn(u64) -> u64,
}

static DESCRIPTOR: Descriptor = Descriptor {
    magic: 0x0ff5_4007,
    function: add_one,
};

fn add_one(value: u64) -> u64 {
    value + 1
}

/// Answers each packet: `facts` with what this process is, `panic` not at all, `fork` with a child's title, `mark` with a child's marks, an offset with the result of the function
/// there. Ends with its socket.
fn entry(socket: OwnedFd) -> ! {
    let mut buf = Vec::new();
    loop {
        if !socket::wait_readable(&socket, Some(LONG)).unwrap() {
            fork::exit_now(2);
        }
        let Ok(Some(packet)) = socket::recv_packet(&socket, &mut buf) else {
            fork::exit_now(0)
        };
        drop(packet);
        let answer = match std::str::from_utf8(&buf).unwrap() {
            "facts" => facts(&socket),
            "panic" => panic!("on purpose"),
            "fork" => forked(),
            "mark" => marked(),
            offset => called(offset.parse().unwrap()).to_string(),
        };
        socket::send_packet(&socket, answer.as_bytes(), &[]).unwrap();
    }
}

fn facts(socket: &OwnedFd) -> String {
    // SAFETY: takes no pointer.
    let cloexec = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFD) } & libc::FD_CLOEXEC != 0;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap().to_string()
    };
    [
        ("parent", process::parent().to_string()),
        ("alone", process::is_single_threaded().unwrap().to_string()),
        ("variable", std::env::var(premain::ENV).is_ok().to_string()),
        (
            "inherited",
            std::env::var("OFFSHOOT_SYS_INHERITED").unwrap_or_default(),
        ),
        ("fds", format!("{:?}", open_fds())),
        ("cloexec", cloexec.to_string()),
        ("blocked", field("SigBlk")),
        ("ignored", field("SigIgn")),
        (
            "arguments",
            format!("{:?}", std::env::args().collect::<Vec<_>>()),
        ),
        ("title", title("self")),
        ("offset", offset().to_string()),
        ("build", format!("{:02x?}", image::build_id())),
        ("address", format!("{:p}", &raw const DESCRIPTOR)),
    ]
    .map(|(name, value)| format!("{name}={value}"))
    .join("\n")
}

fn forked() -> String {
    let (ours, theirs) = socket::packet_pair().unwrap();
    let prelude = Prelude {
        outfit: Outfit {
            name: "child of the test".to_string(),
            ..Outfit::default()
        },
        keep: vec![theirs.as_raw_fd()],
        ..Prelude::default()
    };
    let (_, child) = fork_child(prelude, || {
        socket::send_packet(&theirs, title("self").as_bytes(), &[]).unwrap();
        fork::exit_now(0)
    })
    .unwrap();
    assert_eq!(end_of(&child), Status::Exited(0));
    let mut buf = Vec::new();
    socket::recv_packet(&ours, &mut buf).unwrap().unwrap();
    String::from_utf8(buf).unwrap()
}

/// The mark of a child that has set its own, as the kernel shows it and as a program finds it that the child starts.
fn marked() -> String {
    let (ours, theirs) = socket::packet_pair().unwrap();
    let prelude = Prelude {
        keep: vec![theirs.as_raw_fd()],
        ..Prelude::default()
    };
    let (_, child) = fork_child(prelude, || {
        let set = mark::set(0xab);
        let environ = fs::read("/proc/self/environ").unwrap();
        let mut program = Command::new("sh");
        program.args(["-c", "echo $OFFSHOOT_TREE"]);
        let inherited = String::from_utf8(program.output().unwrap().stdout).unwrap();
        let shown: Vec<_> = environ
            .split(|byte| *byte == 0)
            .filter(|variable| variable.starts_with(mark::ENV.as_bytes()))
            .map(String::from_utf8_lossy)
            .collect();
        let answer = format!("{set} {} {}", shown.join(" "), inherited.trim());
        socket::send_packet(&theirs, answer.as_bytes(), &[]).unwrap();
        fork::exit_now(0)
    })
    .unwrap();
    assert_eq!(end_of(&child), Status::Exited(0));
    let mut buf = Vec::new();
    socket::recv_packet(&ours, &mut buf).unwrap().unwrap();
    String::from_utf8(buf).unwrap()
}

fn called(offset: u64) -> u64 {
    let address =
        image::address_of(offset, size_of::<Descriptor>(), align_of::<Descriptor>()).unwrap();
    // SAFETY: in range, aligned, never written, and this test sends the offset of such a descriptor only.
    let descriptor: &Descriptor = unsafe { &*address.cast() };
    assert_eq!(descriptor.magic, 0x0ff5_4007);
    (descriptor.function)(41)
}

macro_rules! cases {
    ($($case:ident),* $(,)?) => { [$((stringify!($case), $case as fn())),*] };
}

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    // This program as `inert` starts it: the hook has let it pass.
    if let Some(expected) =
        std::env::args().find_map(|argument| Some(argument.strip_prefix("inert=")?.to_string()))
    {
        assert_eq!(
            std::env::var(premain::ENV).unwrap_or_default(),
            expected,
            "the variable is left alone"
        );
        println!(
            "main was reached{}",
            if process::is_privileged_exec() {
                ", privileged"
            } else {
                ""
            }
        );
        return;
    }
    let open = open_fds();
    for (name, case) in cases![
        a_forkserver_is_started_clean,
        offsets_are_the_same_in_every_process,
        children_have_names,
        a_child_sets_its_own_part_of_the_mark,
        closed_standard_descriptors_are_filled,
        a_socket_may_have_any_number,
        a_panic_in_the_entry_ends_the_process,
        without_an_invitation_the_hook_is_inert,
        a_copy_that_cannot_be_one_ends,
        f48_a_strangers_invitation_is_not_taken,
        a_privileged_program_takes_no_invitation,
        a_name_that_cannot_be_is_refused,
    ] {
        println!("{name}");
        case();
        assert_eq!(
            process::children_of(process::id()),
            [],
            "{name} leaves no child"
        );
        assert_eq!(open_fds(), open, "{name} leaves no descriptor");
    }
    println!("ok");
}

fn a_forkserver_is_started_clean() {
    let stray = File::open("/dev/null").unwrap();
    // SAFETY: takes no pointer. Inheritable from here on, as a careless library's are.
    unsafe { libc::fcntl(stray.as_raw_fd(), libc::F_SETFD, 0) };
    process::set_env("OFFSHOOT_SYS_INHERITED", "yes").unwrap();
    // The forkserver has none of these: neither the mask nor the ignored signal.
    process::block_signals(&[libc::SIGUSR1]).unwrap();
    // SAFETY: the handler is a constant of the system.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    let server = Server::start("offshoot: test server");
    let facts = server.facts();
    let fact = |name: &str| facts[name].as_str();
    assert_eq!(fact("parent"), process::id().to_string());
    assert_eq!(fact("alone"), "true");
    assert_eq!(fact("variable"), "false");
    assert_eq!(fact("inherited"), "yes");
    assert_eq!(fact("fds"), "[0, 1, 2, 3]");
    assert_eq!(fact("cloexec"), "true");
    assert_eq!(fact("blocked"), "0000000000000000");
    // glibc starts programs with one of its own two signals ignored.
    let ignored = u64::from_str_radix(fact("ignored"), 16).unwrap() & !(0b11 << 31);
    // As `nohup` has ignored for all of this, which stays so.
    let kept = offshoot_sys::fork::STAY_IGNORED.map(|signal| 1 << (signal - 1));
    assert_eq!(
        ignored & !kept.iter().sum::<u64>(),
        1 << (libc::SIGPIPE - 1)
    );
    assert_eq!(fact("arguments"), "[\"offshoot: test server\"]");
    assert_eq!(fact("title"), "offshoot: test server");
    server.end();
}

fn offsets_are_the_same_in_every_process() {
    let (first, second) = (Server::start("first"), Server::start("second"));
    let (one, two) = (first.facts(), second.facts());
    assert_eq!(one["offset"], offset().to_string());
    assert_eq!(one["offset"], two["offset"]);
    assert_eq!(one["build"], two["build"]);
    assert_eq!(one["build"], format!("{:02x?}", image::build_id()));
    // Where addresses are random they differ, which is why offsets are sent. Two of three could be equal by chance only.
    let random = fs::read_to_string("/proc/sys/kernel/randomize_va_space")
        .unwrap()
        .trim()
        != "0";
    let here = format!("{:p}", &raw const DESCRIPTOR);
    if random && cfg!(not(target_feature = "crt-static")) {
        assert!(one["address"] != here || two["address"] != here);
    }
    assert_eq!(first.ask(&offset().to_string()), "42");
    first.end();
    second.end();
}

fn children_have_names() {
    let server = Server::start("a server with a name longer than its child's");
    assert_eq!(server.ask("fork"), "child of the test");
    assert_eq!(
        server.facts()["title"],
        "a server with a name longer than its child's"
    );
    server.end();
}

/// Also where the starting process has a mark of its own, as one in another tree does.
fn a_child_sets_its_own_part_of_the_mark() {
    let zeros = "0".repeat(mark::DIGITS);
    let server = Server::start_marked("marked", Some(&format!("/a tree@{zeros}")));
    let whole = format!("/a tree@{}ab", "0".repeat(mark::DIGITS - 2));
    assert_eq!(
        server.ask("mark"),
        format!("true OFFSHOOT_TREE={whole} {whole}")
    );
    let own = fs::read(format!("/proc/{}/environ", server.pid)).unwrap();
    let own = String::from_utf8_lossy(&own).into_owned();
    assert!(
        own.contains(&format!("OFFSHOOT_TREE=/a tree@{zeros}\0")),
        "{own}"
    );
    server.end();
    // Without a mark, and with one that is too short, there is nothing to write to.
    for mark in [None, Some("short")] {
        let server = Server::start_marked("not marked", mark);
        let shown = mark.map_or(String::new(), |mark| format!("OFFSHOOT_TREE={mark}"));
        assert_eq!(
            server.ask("mark"),
            format!("false {shown} {}", mark.unwrap_or_default())
        );
        server.end();
    }
    assert!(!mark::set(1), "this program was started by other means");
}

fn closed_standard_descriptors_are_filled() {
    // Of a process between, which has no standard input: what it starts would get the next descriptor there.
    let (_, child) = fork_child(Prelude::default(), || {
        // SAFETY: takes no pointer; nothing of this process reads from it.
        unsafe { libc::close(0) };
        let server = Server::start("no input");
        let ok = server.facts()["fds"] == "[0, 1, 2, 3]"
            && fs::read_link(format!("/proc/{}/fd/0", server.pid))
                .unwrap()
                .to_str()
                == Some("/dev/null");
        server.end();
        fork::exit_now(i32::from(!ok))
    })
    .unwrap();
    assert_eq!(end_of(&child), Status::Exited(0));
}

fn a_socket_may_have_any_number() {
    let (ours, theirs) = socket::packet_pair().unwrap();
    // 3 is where it has to be in the new process, and may be where it is in this one.
    let mut held = Vec::new();
    for least in [3, 4, 200] {
        // SAFETY: takes no pointer; the copy is owned at once.
        let copy = unsafe {
            use std::os::fd::FromRawFd;
            OwnedFd::from_raw_fd(libc::fcntl(
                theirs.as_raw_fd(),
                libc::F_DUPFD_CLOEXEC,
                least,
            ))
        };
        let (pid, pidfd) =
            spawn::exec_self("any number", copy.as_fd(), premain::ENV, None).unwrap();
        let server = Server {
            pid,
            pidfd,
            socket: ours.try_clone().unwrap(),
        };
        assert_eq!(server.facts()["fds"], "[0, 1, 2, 3]");
        server.pidfd.kill().unwrap();
        assert_eq!(
            end_of(&server.pidfd),
            Status::Signaled {
                signal: signal::SIGKILL,
                core: false
            }
        );
        held.push(copy);
    }
}

fn a_panic_in_the_entry_ends_the_process() {
    let server = Server::start("panics");
    // Its message would look like a failure of this test.
    server.send("panic");
    assert_eq!(end_of(&server.pidfd), Status::Exited(fork::EXIT_PANIC));
}

/// With the variable set, but without what has to go with it.
fn without_an_invitation_the_hook_is_inert() {
    let (stream, _peer) = socket::stream_pair().unwrap();
    let (packet, _peer) = socket::packet_pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    for (value, fd) in [
        ("", packet.as_fd()),
        ("three", packet.as_fd()),
        ("-1", packet.as_fd()),
        ("4", packet.as_fd()),
        ("0", packet.as_fd()),
        ("3", stream.as_fd()),
        ("3", file.as_fd()),
    ] {
        assert_eq!(
            inert(value, fd),
            (Some(0), "main was reached\n".to_string()),
            "{value:?}"
        );
    }
    // A standard stream is never the socket, though it may be one.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("inert=0")
        .env(premain::ENV, "0")
        .stdin(packet.try_clone().unwrap());
    assert_eq!(command.output().unwrap().stdout, b"main was reached\n");
    // The control: with the right socket `main` is not reached. The server ends, since the other end is closed with the command.
    let (packet, peer) = socket::packet_pair().unwrap();
    drop(peer);
    assert_eq!(inert("3", packet.as_fd()), (Some(0), String::new()));
}

/// Of a copy, `main` is never reached, whatever has become of what it was left; it says that it is none, and why.
fn a_copy_that_cannot_be_one_ends() {
    use std::os::unix::process::CommandExt;
    let name = format!("{:64}", "offshoot-forkserver");
    let copy = |variable: Option<&str>| {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(&name).arg("inert=copy").stdin(Stdio::null());
        match variable {
            Some(value) => command.env(premain::ENV, value),
            None => command.env_clear(),
        };
        command.output().unwrap()
    };
    for variable in [None, Some(""), Some("0"), Some("77")] {
        let output = copy(variable);
        let code = output.status.code();
        assert_eq!(code, Some(premain::EXIT_NO_FORKSERVER), "{variable:?}");
        assert_eq!(output.stdout, b"", "{variable:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("cannot be one"), "{variable:?}: {told}");
    }
    // The control: by another name it is an ordinary start.
    let mut command = Command::new("/proc/self/exe");
    command.arg("inert=").stdin(Stdio::null());
    assert_eq!(command.output().unwrap().stdout, b"main was reached\n");
}

/// Only root can be two users, so that this is checked where the tests run as root.
fn f48_a_strangers_invitation_is_not_taken() {
    let Some(socket) = socket_of_nobody() else {
        return;
    };
    let reached = (Some(0), "main was reached\n".to_string());
    assert_eq!(inert("3", socket.as_fd()), reached);
}

/// With a socket that only the privilege makes unacceptable. Needs root, and a file system that honours the set-uid bit.
fn a_privileged_program_takes_no_invitation() {
    use std::os::unix::fs::PermissionsExt;
    let Some(socket) = socket_of_nobody() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("set-uid");
    fs::copy("/proc/self/exe", &program).unwrap();
    std::os::unix::fs::chown(&program, Some(NOBODY), None).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    // The control first: whether the bit counts here. With no variable `main` is reached in any case.
    if run(&program, "", socket.as_fd()) != (Some(0), "main was reached, privileged\n".to_string())
    {
        return;
    }
    let reached = (Some(0), "main was reached, privileged\n".to_string());
    assert_eq!(run(&program, "3", socket.as_fd()), reached);
}

fn a_name_that_cannot_be_is_refused() {
    let (_ours, theirs) = socket::packet_pair().unwrap();
    let refused = |name, key| {
        spawn::exec_self(name, theirs.as_fd(), key, None)
            .map(|(pid, _)| pid)
            .unwrap_err()
            .kind()
    };
    assert_eq!(
        refused("a\0b", premain::ENV),
        std::io::ErrorKind::InvalidInput
    );
    assert_eq!(refused("name", "a\0b"), std::io::ErrorKind::InvalidInput);
}

/// Runs this program with the variable set to `value` and `fd` as descriptor 3; its code and output.
fn inert(value: &str, fd: BorrowedFd<'_>) -> (Option<i32>, String) {
    run(Path::new("/proc/self/exe"), value, fd)
}

fn run(program: &Path, value: &str, fd: BorrowedFd<'_>) -> (Option<i32>, String) {
    use std::os::unix::process::CommandExt;
    let fd = fd.as_raw_fd();
    let mut command = Command::new(program);
    command
        .arg(format!("inert={value}"))
        .env(premain::ENV, value)
        .stdin(Stdio::null());
    // SAFETY: between fork and exec it calls dup2 and fcntl only, which are safe there.
    unsafe {
        command.pre_exec(move || {
            let done = if fd == 3 {
                libc::fcntl(fd, libc::F_SETFD, 0)
            } else {
                libc::dup2(fd, 3)
            };
            if done == -1 {
                Err(std::io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

const NOBODY: u32 = 65_534;

/// A packet socket whose other end another user has made, and closed; `None` if that cannot be done.
fn socket_of_nobody() -> Option<OwnedFd> {
    // SAFETY: take no pointer. The only thread changes its effective user and changes it back.
    unsafe {
        if libc::geteuid() != 0 || libc::seteuid(NOBODY) != 0 {
            return None;
        }
        let pair = socket::packet_pair();
        assert_eq!(libc::seteuid(0), 0);
        Some(pair.unwrap().0)
    }
}

struct Server {
    pid: i32,
    pidfd: Pidfd,
    socket: OwnedFd,
}

impl Server {
    fn start(name: &str) -> Self {
        Self::start_marked(name, None)
    }

    fn start_marked(name: &str, mark: Option<&str>) -> Self {
        let (ours, theirs) = socket::packet_pair().unwrap();
        let mark = mark.map(OsStr::new);
        let (pid, pidfd) = spawn::exec_self(name, theirs.as_fd(), premain::ENV, mark).unwrap();
        Self {
            pid,
            pidfd,
            socket: ours,
        }
    }

    fn send(&self, question: &str) {
        socket::send_packet(&self.socket, question.as_bytes(), &[]).unwrap();
    }

    fn ask(&self, question: &str) -> String {
        self.send(question);
        assert!(
            socket::wait_readable(&self.socket, Some(LONG)).unwrap(),
            "no answer to {question}"
        );
        let mut buf = Vec::new();
        socket::recv_packet(&self.socket, &mut buf)
            .unwrap()
            .expect("an answer, not the end");
        String::from_utf8(buf).unwrap()
    }

    fn facts(&self) -> BTreeMap<String, String> {
        let answer = self.ask("facts");
        let facts = answer.lines().map(|line| line.split_once('=').unwrap());
        facts
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    fn end(self) {
        drop(self.socket);
        assert_eq!(end_of(&self.pidfd), Status::Exited(0));
    }
}

fn end_of(child: &Pidfd) -> Status {
    if !child.wait_dead(LONG).unwrap() {
        child.kill().unwrap();
        assert!(child.wait_dead(LONG).unwrap());
        panic!("the process did not end: {:?}", child.reap());
    }
    child.reap().unwrap().expect("what is dead can be reaped")
}

fn offset() -> u64 {
    image::offset_of((&raw const DESCRIPTOR).cast()).expect("a constant of the main executable")
}

/// What `ps` shows as the command line.
fn title(pid: &str) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    String::from_utf8(line)
        .unwrap()
        .trim_end_matches('\0')
        .to_string()
}

fn open_fds() -> Vec<RawFd> {
    let listing = fs::read_dir("/proc/self/fd").unwrap();
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
