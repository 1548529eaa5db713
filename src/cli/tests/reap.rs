//! `offshoot reap` against trees that were killed in every way. The trees are this test binary again, as the environment says.

use offshoot::prelude::*;
use offshoot::reap::Reaper;
use offshoot::{Builder, Descendants};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the program that this process is to be.
const PROGRAM: &str = "OFFSHOOT_TEST_PROGRAM";
/// Names the directory of the test, for the program.
const DIR: &str = "OFFSHOOT_TEST_DIR";

const BOUND: Duration = Duration::from_secs(20);

// ---- the program ----

/// Does nothing as a test; as a program it is a tree that binds, registers and starts things, until it is killed.
#[test]
fn program() {
    let Ok(program) = std::env::var(PROGRAM) else {
        return;
    };
    let builder = match program.as_str() {
        "hider" => Builder::new().descendants(Descendants::Cgroup),
        _ => Builder::new(),
    };
    let result = builder.run(async move || {
        offshoot::nursery(async |nursery| {
            let left = nursery.spawn(Isolate::named("left").process()).await?;
            match program.as_str() {
                "busy" => left.call(be_busy, ()).await??,
                "memory" => left.call(share, ()).await??,
                "stayer" => left.call(stay, ()).await?,
                "hider" => {
                    let grouped = left.descendants() == Some(Descendants::Cgroup);
                    left.call(hide, grouped).await??
                }
                other => panic!("no program is named {other}"),
            }
            Ok(())
        })
        .await
    });
    panic!("it is to be killed, and ended with {result:?}");
}

fn dir() -> PathBuf {
    std::env::var_os(DIR).expect("the directory").into()
}

/// Of the shared memory of the program in this directory: one that no other has.
fn memory_name(files: &Path) -> String {
    files.display().to_string().replace('/', "-")
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("\n@{line}\n").as_bytes());
    let _ = out.flush();
}

/// In the process isolate.
async fn be_busy() -> Result<()> {
    let _listener = offshoot::net::UnixListener::bind(dir().join("sock")).await?;
    offshoot::fs::write(dir().join("pid"), "1").await?;
    let _file = offshoot::register_path(dir().join("pid")).await?;
    // A child that heeds SIGINT, one that does not, since it was started by a shell in the background, and a daemon of another session in
    // another directory.
    let child = Command::new("sleep").arg("1000").spawn()?;
    say(&format!("stray {}", child.id()));
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(
        "sleep 1001 & printf '\\n@stray %s\\n' $!; \
         cd /; setsid sh -c 'sleep 1002 & printf \"\\n@stray %s\\n\" $!'",
    );
    assert!(shell.stdin(Stdio::null()).status()?.success());
    say("ready");
    loop {
        offshoot::sleep(Duration::from_secs(3600)).await?;
    }
}

/// In the process isolate.
async fn share() -> Result<()> {
    let name = memory_name(&dir());
    let (_memory, _name) = offshoot::create_shared_memory(&name, 4096).await?;
    say("ready");
    loop {
        offshoot::sleep(Duration::from_secs(3600)).await?;
    }
}

/// In the process isolate: clears what ties it to its parent, and is deaf from then on.
async fn stay() {
    // SAFETY: PR_SET_PDEATHSIG takes an integer and changes a flag of this thread only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) }, 0);
    for fd in 3..256 {
        // SAFETY: these take integers, and no descriptor is closed.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFL);
            if flags >= 0 && flags & libc::O_ASYNC != 0 {
                libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_ASYNC);
            }
        }
    }
    say(&format!("stray {}", std::process::id()));
    say("ready");
    loop {
        std::thread::park();
    }
}

/// In the process isolate: starts what bears no mark, if it is in a control group.
async fn hide(grouped: bool) -> Result<()> {
    if grouped {
        let mut shell = Command::new("sh");
        shell
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .args(["-c", "setsid sh -c 'sleep 1003 > /dev/null 2>&1 & echo $!'"]);
        let pid = shell.stdin(Stdio::null()).output()?.stdout;
        say(&format!("stray {}", String::from_utf8_lossy(&pid).trim()));
    }
    say("ready");
    loop {
        offshoot::sleep(Duration::from_secs(3600)).await?;
    }
}

// ---- the scene ----

/// A place for trees, and the command in it.
struct Scene(tempfile::TempDir);

/// A tree that runs.
struct Tree {
    root: Child,
    forkserver: i32,
    strays: BTreeSet<i32>,
}

struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Scene {
    fn new() -> Scene {
        Scene::within(tempfile::tempdir().unwrap())
    }

    /// In a directory that each user can reach, which that of the tests need not be.
    fn open() -> Scene {
        let scene = Scene::within(tempfile::tempdir_in("/tmp").unwrap());
        fs::set_permissions(scene.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        scene
    }

    fn within(dir: tempfile::TempDir) -> Scene {
        // Ignored by a program that `nohup`, or a shell in the background, has started, and by what that starts.
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: sets no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        for sub in ["run", "tmp", "files"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
            fs::set_permissions(dir.path().join(sub), fs::Permissions::from_mode(0o700)).unwrap();
        }
        Scene(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn here<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .env("TMPDIR", self.at("tmp"))
            .env(DIR, self.at("files"))
            .env_remove("OFFSHOOT_ISOLATION")
            .stdin(Stdio::null())
    }

    fn start(&self, program: &str, strays: usize) -> Tree {
        let tree = self.start_any(program);
        assert_eq!(tree.strays.len(), strays, "it has ended or said too little");
        tree
    }

    fn start_any(&self, program: &str) -> Tree {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["program", "--exact", "--nocapture", "--test-threads=1"])
            .env(PROGRAM, program)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let mut root = self.here(&mut command).spawn().unwrap();
        let mut found = BTreeSet::new();
        let lines = BufReader::new(root.stdout.take().unwrap()).lines();
        for line in lines.map(|line| line.unwrap()) {
            if let Some(pid) = line.strip_prefix("@stray ") {
                found.insert(pid.trim().parse().unwrap());
            }
            if line == "@ready" {
                break;
            }
        }
        let root_pid = i32::try_from(root.id()).unwrap();
        let forkserver = children(root_pid);
        assert_eq!(forkserver.len(), 1);
        Tree {
            root,
            forkserver: forkserver[0],
            strays: found,
        }
    }

    fn reap(&self, args: &[&str]) -> Done {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("offshoot"));
        let output = self.here(command.arg("reap").args(args)).output().unwrap();
        Done {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Everything below, to be compared.
    fn files(&self) -> BTreeSet<PathBuf> {
        fn add(directory: &Path, into: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    add(&entry.path(), into);
                }
                into.insert(entry.path());
            }
        }
        let mut found = BTreeSet::new();
        add(self.0.path(), &mut found);
        found
    }

    fn memory(&self) -> PathBuf {
        Path::new("/dev/shm").join(memory_name(&self.at("files")))
    }

    fn is_empty(&self) -> bool {
        let bare = ["run", "tmp", "files", "run/offshoot"].map(|path| self.at(path));
        self.files().iter().all(|path| bare.contains(path))
    }

    fn tree_ids(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at("run/offshoot")).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Tree {
    fn kill(&mut self, which: &[i32]) {
        for &pid in which {
            kill(pid, libc::SIGKILL);
        }
        self.root.wait().unwrap();
    }

    /// Kills root and forkserver, such that neither can do anything about it.
    fn kill_whole(&mut self) {
        // The forkserver cannot be the one that is stopped: the kernel continues whoever is, when the root's end leaves its group alone.
        let root = self.root_pid();
        kill(root, libc::SIGSTOP);
        // Each thread stops by itself, and the one that watches the forkserver must have.
        let stopped = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        };
        eventually("all threads of the root are stopped", || {
            let tasks = fs::read_dir(format!("/proc/{root}/task")).unwrap();
            tasks.flatten().all(stopped)
        });
        kill(self.forkserver, libc::SIGKILL);
        // Else a process may see the end of its owner before its own, and clean up.
        eventually("the forkserver is dead", || !lives(self.forkserver));
        self.kill(&[root]);
    }

    fn root_pid(&self) -> i32 {
        i32::try_from(self.root.id()).unwrap()
    }

    fn living(&self) -> Vec<i32> {
        self.strays
            .iter()
            .copied()
            .filter(|&pid| lives(pid))
            .collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Kept by the command where somebody may have it.
        let _ = fs::remove_file(self.memory());
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = self.root.kill();
        let _ = self.root.wait();
        self.living()
            .into_iter()
            .for_each(|pid| kill(pid, libc::SIGKILL));
    }
}

fn kill(pid: i32, signal: i32) {
    assert!(pid > 1);
    // SAFETY: takes no pointer.
    unsafe { libc::kill(pid, signal) };
}

/// Whether it runs; a zombie does not.
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks
        .flat_map(|task| {
            let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            list.split_whitespace()
                .map(|pid| pid.parse().unwrap())
                .collect::<Vec<i32>>()
        })
        .collect()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

// ---- the tests ----

/// Root and forkserver at once: what was started is left, and so is what was bound.
#[test]
fn what_a_tree_left_that_was_killed_whole_is_found_and_removed() {
    let scene = Scene::new();
    let mut tree = scene.start("busy", 3);
    // A tree that lives is not touched, whatever is asked.
    let id = scene.tree_ids().remove(0);
    for args in [&[][..], &["--processes"], &["--sockets", "--shm"]] {
        let done = scene.reap(args);
        assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
        assert!(done.out.contains("0 dead trees, 1 alive"), "{}", done.out);
    }
    let done = scene.reap(&["--tree", &id]);
    assert_eq!(done.code, Some(1), "{}", done.out);
    assert!(done.err.contains("is alive"), "{}", done.err);
    assert_eq!(tree.living().len(), 3);
    UnixStream::connect(scene.at("files/sock")).unwrap();

    tree.kill_whole();
    assert_eq!(tree.living().len(), 3, "nobody was left to end them");

    let before = scene.files();
    let done = scene.reap(&["-n"]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_eq!(done.out.matches("would end").count(), 3, "{}", done.out);
    for path in ["files/sock", "files/pid"] {
        let line = format!("would remove {}", scene.at(path).display());
        assert!(done.out.contains(&line), "{}", done.out);
    }
    assert_eq!(
        (scene.files(), tree.living().len()),
        (before, 3),
        "it only looks"
    );

    let begun = Instant::now();
    let done = scene.reap(&["--grace", "0.4"]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_eq!(tree.living(), Vec::<i32>::new());
    assert!(scene.is_empty(), "{:?}", scene.files());
    assert_eq!(
        done.out.matches("killed").count(),
        2,
        "the deaf ones: {}",
        done.out
    );
    assert_eq!(done.out.matches("interrupted").count(), 1, "{}", done.out);
    assert!(
        begun.elapsed() >= Duration::from_millis(400),
        "without its grace"
    );
    let done = scene.reap(&[]);
    assert_eq!(
        done.out,
        "0 dead trees, 0 alive: 0 processes ended, 0 paths removed, 0 left\n"
    );
}

/// A process isolate that has cleared its parent-death signal and reads nothing, of a tree that is dead.
#[test]
fn a_process_of_the_tree_that_stays_is_ended() {
    let scene = Scene::new();
    let mut tree = scene.start("stayer", 1);
    tree.kill_whole();
    assert_eq!(tree.living().len(), 1);
    let done = scene.reap(&["--json"]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    let report: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let tree_report = &report["trees"][0];
    assert_eq!(tree_report["alive"], false);
    assert_eq!(
        tree_report["processes"][0]["pid"],
        *tree.strays.first().unwrap()
    );
    assert_eq!(tree_report["processes"][0]["end"], "interrupted");
    assert_eq!(report["clean"], true);
    assert_eq!(tree.living(), Vec::<i32>::new());
    assert!(scene.is_empty(), "{:?}", scene.files());
}

/// What bears no mark, but is in a control group of the tree, where there are any.
#[test]
fn what_hides_in_a_control_group_is_listed_and_ended() {
    let scene = Scene::new();
    let mut tree = scene.start_any("hider");
    let hidden = tree.strays.first().copied();
    tree.kill_whole();
    for (args, end) in [
        (&["--json", "-n"][..], "found"),
        (&["--json", "--processes"], "killed"),
    ] {
        let done = scene.reap(args);
        let report: serde_json::Value = serde_json::from_str(&done.out).unwrap();
        let processes = &report["trees"][0]["processes"];
        match hidden {
            Some(pid) => {
                assert_eq!(
                    (&processes[0]["pid"], &processes[0]["end"]),
                    (&pid.into(), &end.into()),
                    "{report}"
                );
                assert_eq!(lives(pid), end == "found");
            }
            None => assert_eq!(processes[0], serde_json::Value::Null),
        }
    }
    let done = scene.reap(&[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert!(scene.is_empty(), "{:?}", scene.files());
}

/// Both at once and in the other order: the forkserver may have had the time to do it all, or none.
#[test]
fn nothing_is_left_after_it_whoever_came_how_far() {
    for _ in 0..4 {
        let scene = Scene::new();
        let mut tree = scene.start("busy", 3);
        tree.kill(&[tree.root_pid(), tree.forkserver]);
        eventually("the forkserver is dead", || !lives(tree.forkserver));
        let done = scene.reap(&["--grace", "0.1"]);
        assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
        assert_eq!(tree.living(), Vec::<i32>::new(), "{}", done.out);
        assert!(scene.is_empty(), "{:?} {}", scene.files(), done.out);
    }
}

/// The forkserver is in none of the root's groups, and has done it all.
#[test]
fn a_tree_whose_group_was_killed_leaves_nothing_to_do() {
    let scene = Scene::new();
    let mut tree = scene.start("busy", 3);
    // SAFETY: takes no pointer; the group is the root's own.
    unsafe { libc::kill(-tree.root_pid(), libc::SIGKILL) };
    tree.root.wait().unwrap();
    eventually("all is gone", || {
        tree.living().is_empty() && scene.is_empty() && !lives(tree.forkserver)
    });
}

/// The forkserver has done it all.
#[test]
fn a_tree_whose_root_alone_was_killed_leaves_nothing_to_do() {
    let scene = Scene::new();
    let mut tree = scene.start("busy", 3);
    tree.kill(&[tree.root_pid()]);
    eventually("all is gone", || {
        tree.living().is_empty() && scene.is_empty() && !lives(tree.forkserver)
    });
    let done = scene.reap(&[]);
    assert!(
        done.out.starts_with("0 dead trees, 0 alive"),
        "{}",
        done.out
    );
}

#[test]
fn a_tree_that_was_killed_whole_is_cleaned_up_kind_by_kind() {
    let scene = Scene::new();
    let elsewhere = Scene::new();
    let mut tree = scene.start("busy", 3);
    let id = scene.tree_ids().remove(0);
    tree.kill_whole();

    // Files only: the processes stay.
    let done = scene.reap(&["--sockets"]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_eq!(tree.living().len(), 3);
    assert!(scene.is_empty(), "{:?}", scene.files());
    // Another tree's id, and another place: not theirs.
    for (at, args) in [
        (&scene, &["--tree", "0123456789abcdef"][..]),
        (&elsewhere, &[]),
    ] {
        let done = at.reap(args);
        assert_eq!(
            (done.code, tree.living().len()),
            (Some(0), 3),
            "{}",
            done.out
        );
        assert!(done.out.starts_with("0 dead trees"), "{}", done.out);
        let told = "no tree of yours has the id 0123456789abcdef";
        assert_eq!(done.err.contains(told), !args.is_empty(), "{}", done.err);
    }
    // By the mark alone, without a directory and from another place.
    let done = elsewhere.reap(&["--all", "--dry-run"]);
    assert!(done.out.contains(&id), "{}", done.out);
    let done = elsewhere.reap(&["--tree", &id, "--processes", "--grace", "0.2"]);
    assert_eq!(
        (done.code, tree.living()),
        (Some(0), vec![]),
        "{}",
        done.out
    );
}

/// What is mapped or open stays, whatever is asked; what nobody has goes.
#[test]
fn shared_memory_goes_when_nobody_has_it() {
    let scene = Scene::new();
    let mut tree = scene.start("memory", 0);
    tree.kill_whole();
    let open = fs::File::open(scene.memory()).unwrap();
    let done = scene.reap(&["--grace", "0.1"]);
    assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
    let left = format!("left {}: mapped or open", scene.memory().display());
    assert!(
        done.out.contains(&left) && scene.memory().exists(),
        "{}",
        done.out
    );
    assert_eq!(scene.tree_ids().len(), 1, "for another time");
    drop(open);
    let done = scene.reap(&["--shm"]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert!(!scene.memory().exists(), "{}", done.out);
    let done = scene.reap(&[]);
    assert_eq!(
        (done.code, scene.is_empty()),
        (Some(0), true),
        "{}",
        done.out
    );
}

/// A process of the same user that may not be looked into, as one that guards keys, keeps nothing of a tree, and is told.
#[test]
fn what_may_not_be_looked_into_keeps_nothing() {
    // Of a program that may be run and not read, the process is nobody's to look into but the superuser's.
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("only the superuser can make such a process, and another to look: not tried");
        return;
    }
    let nobody = 65_534;
    let scene = Scene::open();
    let sleep = scene.at("sleep");
    fs::copy("/bin/sleep", &sleep).unwrap();
    fs::set_permissions(&sleep, fs::Permissions::from_mode(0o711)).unwrap();
    let tool = scene.at("offshoot");
    fs::copy(assert_cmd::cargo::cargo_bin!("offshoot"), &tool).unwrap();
    for path in [
        scene.at("run"),
        scene.at("tmp"),
        scene.at("files"),
        scene.at("run/offshoot"),
        scene.at("run/offshoot/00000000000000aa"),
        scene.at("run/offshoot/00000000000000aa/00000000000000bb"),
    ] {
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&path, Some(nobody), Some(nobody)).unwrap();
    }
    // A dead tree with one piece of shared memory in its table, as `janitor/table.rs` lays it out.
    let memory = Path::new("/dev/shm").join(format!("offshoot-hidden-{}", std::process::id()));
    fs::write(&memory, "x").unwrap();
    let tree = scene.at("run/offshoot/00000000000000aa");
    let found = fs::symlink_metadata(&memory).unwrap();
    let mut table = vec![0_u8; 256 << 10];
    let mut put = |at: usize, bytes: &[u8]| table[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &u64::from_be_bytes(*b"offshoot").to_ne_bytes());
    for (at, number) in [(8, 1_u32), (12, 255), (16, 1024)] {
        put(at, &number.to_ne_bytes());
    }
    let name = memory.file_name().unwrap().to_str().unwrap();
    let private = format!(".offshoot-00000000000000bb-{:032x}", 1);
    let device = u64::from(libc::major(found.dev())) << 32 | u64::from(libc::minor(found.dev()));
    for (at, number) in [
        (0, 2_u32),
        (4, 3),
        (8, 1),
        (12, name.len() as u32),
        (16, private.len() as u32),
        (24, u32::MAX),
    ] {
        put(1024 + at, &number.to_ne_bytes());
    }
    for (at, number) in [(32, device), (40, found.ino())] {
        put(1024 + at, &number.to_ne_bytes());
    }
    put(1024 + 192, private.as_bytes());
    put(1024 + 256, name.as_bytes());
    let shm = fs::metadata("/dev/shm").unwrap();
    let shm_device = u64::from(libc::major(shm.dev())) << 32 | u64::from(libc::minor(shm.dev()));
    let grants = format!(
        "offshoot-grants 1\0{shm_device} {} 0  /dev/shm\0",
        shm.ino()
    );
    let owner = format!("offshoot-owner 1 {nobody} {nobody} 0 \n");
    for (name, bytes) in [
        ("lock", Vec::new()),
        ("table-00000000000000bb", table.clone()),
        ("grants-00000000000000bb", grants.into_bytes()),
        ("owner-00000000000000bb", owner.into_bytes()),
    ] {
        fs::write(tree.join(name), bytes).unwrap();
        std::os::unix::fs::chown(tree.join(name), Some(nobody), Some(nobody)).unwrap();
    }
    std::os::unix::fs::chown(&memory, Some(nobody), Some(nobody)).unwrap();
    let mut hidden = Command::new(&sleep)
        .arg("1000")
        .uid(nobody)
        .gid(nobody)
        .current_dir("/")
        .spawn()
        .unwrap();
    let mut reap = Command::new(&tool);
    reap.arg("reap").uid(nobody).gid(nobody).current_dir("/");
    let output = scene.here(&mut reap).output().unwrap();
    hidden.kill().unwrap();
    hidden.wait().unwrap();
    let left = memory.exists();
    let _ = fs::remove_file(&memory);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(!left && !tree.exists(), "{text}");
    assert!(
        text.contains("may not be looked into") && text.contains(&hidden.id().to_string()),
        "{text}"
    );
}

/// A process of a tree of root that has become another user's: found by its mark, and ended before its directory goes.
#[test]
fn what_has_become_another_users_is_found() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("only the superuser's can become another's: not tried");
        return;
    }
    let scene = Scene::new();
    let tree = scene.at("run/offshoot/00000000000000ff");
    fs::create_dir_all(&tree).unwrap();
    for path in [&scene.at("run/offshoot"), &tree] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::write(tree.join("lock"), "").unwrap();
    let mark = format!("{}@0000000100000001", tree.display());
    let mut changed = Command::new("sleep")
        .arg("1000")
        .env("OFFSHOOT_TREE", mark)
        .uid(65_534)
        .gid(65_534)
        .current_dir("/")
        .spawn()
        .unwrap();
    let done = scene.reap(&["--all", "-n"]);
    assert!(
        done.out.contains(&format!("would end {}", changed.id())),
        "{}",
        done.out
    );
    let done = scene.reap(&["--all"]);
    let ended = changed.try_wait().unwrap();
    let _ = changed.kill();
    let _ = changed.wait();
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert!(
        ended.is_some() && !tree.exists(),
        "{}{}",
        done.out,
        done.err
    );
}

/// Only the process that has the mark of a dead tree; not whoever looks like it, nor another user's.
#[test]
fn only_what_bears_the_mark_is_ended() {
    let scene = Scene::new();
    let base = scene.at("run/offshoot");
    let mark = |id: &str| format!("{}/{id}@00000000000000aa", base.display());
    let sleep = |mark: Option<&str>, user: Option<u32>| {
        let mut command = Command::new("sleep");
        command.arg("1000").env("OFFSHOOT_TEST", "innocent");
        if let Some(mark) = mark {
            command.env("OFFSHOOT_TREE", mark);
        }
        if let Some(user) = user {
            command.uid(user);
        }
        command.current_dir("/").spawn().unwrap()
    };
    let dead = mark("00000000000000ff");
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut marked = sleep(Some(&dead), None);
    let mut spared = vec![
        sleep(None, None),
        sleep(Some("nonsense"), None),
        sleep(Some(&mark("00000000000000FF")), None),
    ];
    if root {
        spared.push(sleep(Some(&dead), Some(65_534)));
    }
    let done = scene.reap(&[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert!(marked.try_wait().unwrap().is_some(), "{}", done.out);
    for child in &mut spared {
        assert!(child.try_wait().unwrap().is_none(), "{}", done.out);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Whoever calls for it may be a child of the dead tree.
#[test]
fn whoever_asks_is_spared() {
    let scene = Scene::new();
    let mark = format!(
        "{}/00000000000000ff@00000000000000aa",
        scene.at("run/offshoot").display()
    );
    let mut shell = Command::new("sh");
    shell
        .env("OFFSHOOT_TREE", mark)
        .args(["-c", "sleep 1000 & \"$0\" reap; echo code $?"])
        .arg(assert_cmd::cargo::cargo_bin!("offshoot"));
    let output = scene.here(&mut shell).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("code 0"), "{text}");
    assert!(text.contains("1 process ended"), "{text}");
}

/// The directory of a tree that lives may have been removed by somebody.
#[test]
fn a_tree_that_lives_without_its_directory_is_spared() {
    let scene = Scene::new();
    let tree = scene.start("busy", 3);
    fs::remove_dir_all(scene.at("run/offshoot")).unwrap();
    let done = scene.reap(&[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert!(done.out.contains("1 alive"), "{}", done.out);
    assert_eq!(tree.living().len(), 3);
}

#[test]
fn wrong_arguments_are_refused() {
    let scene = Scene::new();
    for args in [
        &["--tree"][..],
        &["--tree", "12"],
        &["--tree", "0123456789ABCDEF"],
        &["--tree", "0123456789abcdef", "--all"],
        &["--grace", "-1"],
        &["--grace", "nan"],
        &["--grace", "soon"],
        &["--grace", "1e9"],
        &["--kind", "x"],
        &["extra"],
    ] {
        let done = scene.reap(args);
        assert_eq!(done.code, Some(2), "{args:?}: {}", done.out);
        assert!(
            done.out.is_empty() && done.err.contains("error:"),
            "{args:?}: {}",
            done.err
        );
    }
}

/// A base that is not ours alone is not worked in, and that is said.
#[test]
fn an_unsafe_base_is_an_error() {
    let scene = Scene::new();
    fs::create_dir(scene.at("run/offshoot")).unwrap();
    fs::set_permissions(scene.at("run/offshoot"), fs::Permissions::from_mode(0o777)).unwrap();
    let done = scene.reap(&[]);
    assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
    assert!(done.err.contains("chmod 700"), "{}", done.err);
}

/// As the library's users call it.
#[test]
fn the_library_does_the_same() {
    let report = Reaper::new().dry_run(true).run().unwrap();
    assert!(
        report
            .trees
            .iter()
            .all(|tree| tree.processes.iter().all(|stray| stray.pid > 1))
    );
}
