//! What the janitor promises, with real files and, for kills, real processes.

use super::dir::{bases, first_base, open_base};
use super::sweep::withdraw;
use super::table::layout::*;
use super::*;
use offshoot_sys::acting::Credentials;
use offshoot_sys::fsx::{Access, FileKind, Identity};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// A tree in a base of its own, one process in it, and a directory outside that is granted to it.
struct Scene {
    tree: TreeDir,
    table: BindTable,
    outside: GrantedDir,
    temporary: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self::within(TempDir::new().unwrap())
    }

    fn within(temporary: TempDir) -> Self {
        std::fs::create_dir(temporary.path().join("outside")).unwrap();
        let outside = GrantedDir::open(&temporary.path().join("outside")).unwrap();
        let tree = TreeDir::create(Some(&temporary.path().join("base"))).unwrap();
        let table =
            BindTable::create(&tree, ProcessKey::random().unwrap(), vec![outside.clone()]).unwrap();
        Self {
            tree,
            table,
            outside,
            temporary,
        }
    }

    fn base(&self) -> PathBuf {
        self.temporary.path().join("base")
    }

    fn bind(&self, name: &str) -> Result<(UnixListener, Claim), ClaimError> {
        self.table
            .bind_socket(&self.outside, name.as_ref(), |path| {
                UnixListener::bind(path)
            })
    }

    /// Binds and dies, as far as the file system can tell.
    fn leak(&self, name: &str) -> PathBuf {
        let (listener, claim) = self.bind(name).unwrap();
        let path = claim.path().to_owned();
        std::mem::forget(claim);
        drop(listener);
        assert!(exists(&path));
        path
    }

    fn table_file(&self) -> PathBuf {
        self.tree.path().join(format!("table-{}", self.table.key()))
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(self.table_file())
            .unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    }

    fn sweep(&self) -> Swept {
        self.tree.sweep(self.table.key())
    }
}

/// A directory that only this user can look into, as a base has to be.
fn private() -> TempDir {
    tempfile::Builder::new()
        .permissions(PermissionsExt::from_mode(0o700))
        .tempdir()
        .unwrap()
}

/// Sweeps until no tree is taken for living. A test that runs at the same time may be between the fork and the exec of a command, and its child then holds
/// every lock of this process for a moment.
fn sweep_the_dead(base: &Path) -> Report {
    let start = std::time::Instant::now();
    loop {
        let report = sweep_dead_trees(Some(base)).unwrap();
        if report.alive.is_empty() {
            return report;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "still alive: {report:?}"
        );
        std::thread::yield_now();
    }
}

fn own() -> Credentials {
    Credentials::own().unwrap()
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn inode(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

/// A generator of the xorshift kind: the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit as u64) as usize
    }
}

// The directory.

#[test]
fn a_tree_is_private_locked_and_gone_after_its_end() {
    let temporary = TempDir::new().unwrap();
    let base = temporary.path().join("base");
    let tree = TreeDir::create(Some(&base)).unwrap();
    assert_eq!(tree.path().parent().unwrap(), base);
    assert_eq!(names(&base).len(), 1);
    for dir in [&base, tree.path()] {
        assert_eq!(dir.symlink_metadata().unwrap().mode() & 0o7777, 0o700);
    }
    assert_eq!(names(tree.path()), ["lock"]);
    assert!(tree.lock_fd().is_some());
    let report = sweep_dead_trees(Some(&base)).unwrap();
    assert_eq!(report.alive, [tree.path()]);
    assert!(report.removed.is_empty() && tree.path().exists());
    assert!(tree.remove().left.is_empty());
    assert!(names(&base).is_empty());
    assert!(tree.remove().left.is_empty(), "a second time is no error");
}

#[test]
fn a_tree_lives_as_long_as_any_copy_of_its_lock() {
    let temporary = private();
    let root = TreeDir::create(Some(temporary.path())).unwrap();
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let forkserver = TreeDir::from_fds(copy(root.dir_fd()), root.lock_fd().map(copy)).unwrap();
    let child = TreeDir::from_fds(copy(root.dir_fd()), None).unwrap();
    let path = root.path().to_owned();
    assert_eq!(forkserver.path().file_name(), path.file_name());
    drop(root);
    assert_eq!(
        sweep_dead_trees(Some(temporary.path())).unwrap().alive,
        std::slice::from_ref(&path)
    );
    drop(forkserver);
    let report = sweep_the_dead(temporary.path());
    assert_eq!(report.removed, [path]);
    assert!(names(temporary.path()).is_empty());
    assert!(
        child.remove().left.is_empty(),
        "somebody else was faster, which is no error"
    );
}

#[test]
fn f47_a_base_that_is_not_ours_alone_is_refused_with_a_remedy() {
    let temporary = TempDir::new().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let refused = |name: &str| {
        let create = TreeDir::create(Some(&at(name))).unwrap_err();
        let sweep = sweep_dead_trees(Some(&at(name))).unwrap_err();
        assert_eq!(create.to_string(), sweep.to_string());
        assert!(
            create.to_string().contains(at(name).to_str().unwrap()),
            "{create}"
        );
        create
    };
    std::fs::create_dir(at("real")).unwrap();
    std::fs::set_permissions(at("real"), PermissionsExt::from_mode(0o700)).unwrap();
    symlink(at("real"), at("link")).unwrap();
    assert!(matches!(refused("link"), DirError::Symlink { .. }));
    symlink(at("absent"), at("dangling")).unwrap();
    assert!(matches!(refused("dangling"), DirError::Symlink { .. }));
    assert!(!exists(&at("absent")));
    std::fs::write(at("file"), "").unwrap();
    assert!(matches!(refused("file"), DirError::NotADirectory { .. }));
    for mode in [0o701, 0o710, 0o770, 0o750, 0o707, 0o1777] {
        std::fs::create_dir_all(at("wide")).unwrap();
        std::fs::set_permissions(at("wide"), PermissionsExt::from_mode(mode)).unwrap();
        let error = refused("wide");
        assert!(matches!(error, DirError::TooWide { mode: found, .. } if found == mode));
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }
    assert!(names(&at("real")).is_empty() && names(&at("wide")).is_empty());
    std::fs::set_permissions(at("wide"), PermissionsExt::from_mode(0o700)).unwrap();
    TreeDir::create(Some(&at("wide"))).unwrap().remove();
}

#[test]
fn f47_a_foreign_base_is_refused() {
    // Whoever runs this, one of the two is somebody else's: `/proc/1` belongs to the superuser, unless that is us, who may give away a directory.
    let temporary = TempDir::new().unwrap();
    let foreign = if fsx::effective_user() == 0 {
        std::os::unix::fs::chown(temporary.path(), Some(65_534), None).unwrap();
        temporary.path().to_owned()
    } else {
        PathBuf::from("/proc/1")
    };
    let error = open_base(&foreign, true).unwrap_err();
    assert!(matches!(error, DirError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("belongs to user"), "{error}");
}

#[test]
fn a_base_is_not_made_where_anybody_could_replace_it() {
    let temporary = TempDir::new().unwrap();
    std::fs::set_permissions(temporary.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let error = TreeDir::create(Some(&temporary.path().join("base"))).unwrap_err();
    assert!(matches!(error, DirError::TooWide { .. }), "{error}");
    assert!(error.to_string().contains("chmod +t"), "{error}");
    std::fs::set_permissions(temporary.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    TreeDir::create(Some(&temporary.path().join("base")))
        .unwrap()
        .remove();
}

#[test]
fn a_runtime_directory_is_used_only_if_it_is_private() {
    let temporary = TempDir::new().unwrap();
    let runtime = temporary.path().join("runtime");
    let user = fsx::effective_user();
    let bases = |runtime: &Path, user| bases(Some(runtime.into()), "/t".into(), user);
    let fallback = vec![PathBuf::from(format!("/t/offshoot-{user}"))];
    assert_eq!(bases(&runtime, user), fallback, "it does not exist");
    std::fs::create_dir(&runtime).unwrap();
    std::fs::set_permissions(&runtime, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(bases(&runtime, user), fallback, "others may look in");
    std::fs::set_permissions(&runtime, PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(
        bases(&runtime, user),
        [runtime.join("offshoot"), fallback[0].clone()]
    );
    assert_eq!(
        bases(&runtime, user + 1),
        [PathBuf::from(format!("/t/offshoot-{}", user + 1))],
        "it is another user's"
    );
    assert_eq!(
        super::dir::bases(Some("".into()), "/t".into(), user),
        fallback
    );
    assert_eq!(super::dir::bases(None, "/t".into(), user), fallback);
}

#[test]
fn f43_a_place_without_room_gives_way_and_a_tampered_one_does_not() {
    let temporary = TempDir::new().unwrap();
    let at = |name: &str| temporary.path().join(name);
    // No user can make anything in /proc.
    let (path, _) = first_base(vec!["/proc/offshoot".into(), at("base")]).unwrap();
    assert_eq!(path, at("base"));
    let error = first_base(vec!["/proc/offshoot".into()]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("make the directory /proc/offshoot: "),
        "{error}"
    );
    assert!(
        text.contains("os error") && text.contains("(set XDG_RUNTIME_DIR"),
        "{error}"
    );
    symlink(at("base"), at("link")).unwrap();
    assert!(matches!(
        first_base(vec![at("link"), at("base")]),
        Err(DirError::Symlink { .. })
    ));
}

#[test]
fn trees_are_born_while_others_sweep() {
    let temporary = private();
    let base = temporary.path();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sweeper = || {
            while !done.load(Ordering::Relaxed) {
                let report = sweep_dead_trees(Some(base)).unwrap();
                assert!(report.swept.left.is_empty(), "{report:?}");
            }
        };
        scope.spawn(sweeper);
        let born = scope.spawn(|| {
            for _ in 0..300 {
                let tree = TreeDir::create(Some(base)).unwrap();
                let table = BindTable::create(&tree, ProcessKey::new(1), Vec::new()).unwrap();
                let (_, claim) = table
                    .bind_socket(&table.private_dir(), "s".as_ref(), |path| {
                        UnixListener::bind(path)
                    })
                    .unwrap();
                assert!(exists(claim.path()), "the tree was alive");
                assert_eq!(claim.release().unwrap(), Released::Removed);
                assert!(tree.remove().left.is_empty());
            }
        });
        let result = born.join();
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    sweep_the_dead(base);
    assert!(names(base).is_empty());
}

#[test]
fn what_died_in_its_birth_or_in_its_removal_is_cleared() {
    let temporary = private();
    let at = |name: &str| temporary.path().join(name);
    std::fs::create_dir(at(".new-0123456789abcdef")).unwrap();
    std::fs::create_dir(at(".new-0123456789abcde0")).unwrap();
    std::fs::write(at(".new-0123456789abcde0/lock"), "").unwrap();
    std::fs::create_dir(at("0123456789abcdef")).unwrap();
    // What does not look like a tree of ours is none of our business.
    std::fs::create_dir(at("0123456789abcdex")).unwrap();
    std::fs::create_dir(at("other")).unwrap();
    std::fs::write(at("0123456789abcde1"), "").unwrap();
    std::fs::create_dir(at("0123456789abcde2")).unwrap();
    std::fs::write(at("0123456789abcde2/precious"), "").unwrap();
    let report = sweep_dead_trees(Some(temporary.path())).unwrap();
    assert!(report.swept.left.is_empty(), "{report:?}");
    assert_eq!(
        names(temporary.path()),
        [
            "0123456789abcde1",
            "0123456789abcde2",
            "0123456789abcdex",
            "other"
        ]
    );
    assert!(at("0123456789abcde2/precious").exists());
}

#[test]
fn a_base_that_does_not_exist_has_no_trees() {
    let temporary = TempDir::new().unwrap();
    let report = sweep_dead_trees(Some(&temporary.path().join("absent"))).unwrap();
    assert!(report.removed.is_empty() && report.alive.is_empty());
    assert!(!temporary.path().join("absent").exists());
}

#[test]
fn an_end_takes_everything_along_but_follows_no_link() {
    let scene = Scene::new();
    let victim = scene.temporary.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), "").unwrap();
    let private = scene.table.private_dir().path().to_owned();
    std::fs::create_dir_all(private.join("a/b/c")).unwrap();
    std::fs::write(private.join("a/b/c/file"), "").unwrap();
    symlink(&victim, private.join("a/link")).unwrap();
    symlink(&victim, scene.tree.path().join("link")).unwrap();
    symlink(&victim, scene.tree.path().join("0000000000000001")).unwrap();
    symlink(
        victim.join("file"),
        scene.tree.path().join("table-0000000000000002"),
    )
    .unwrap();
    let swept = scene.tree.remove();
    assert!(swept.is_settled(), "{swept:?}");
    assert!(names(&scene.base()).is_empty());
    assert!(victim.join("file").exists());
}

#[test]
fn directories_are_removed_however_deep_they_are() {
    let scene = Scene::new();
    let top = scene.table.private_dir();
    // Deeper than a path can say, and than there are descriptors; with something beside each on the way.
    let mut at = top.as_fd().try_clone_to_owned().unwrap();
    for depth in 0..5_000 {
        at = fsx::make_dir(at.as_fd(), "d".as_ref()).unwrap();
        if depth % 500 == 0 {
            fsx::create(at.as_fd(), "file".as_ref()).unwrap();
            fsx::make_dir(at.as_fd(), "e".as_ref()).unwrap();
        }
    }
    drop(at);
    let swept = scene.tree.remove();
    assert!(swept.left.is_empty(), "{swept:?}");
    assert!(names(&scene.base()).is_empty());
}

#[test]
fn a_walk_goes_up_only_to_where_it_came_from() {
    let temporary = private();
    let at = |path: &str| temporary.path().join(path);
    std::fs::create_dir_all(at("ours/inner")).unwrap();
    std::fs::create_dir(at("victim")).unwrap();
    let open = |path: &str| fsx::open_no_follow(&at(path), Access::List).unwrap();
    let expected = fsx::metadata(open("ours").as_fd()).unwrap();
    let inner = open("ours/inner");
    super::clear::back(inner.as_fd(), &expected).unwrap();
    std::fs::rename(at("ours/inner"), at("victim/inner")).unwrap();
    let error = super::clear::back(inner.as_fd(), &expected).unwrap_err();
    assert!(error.to_string().contains("moved"), "{error}");
}

/// Nothing that is mounted anywhere in a tree's directory is emptied, by whatever removes; what is mounted is told, and what is not, goes.
#[test]
fn what_is_mounted_is_never_removed() {
    apart::run("janitor::tests::what_is_mounted_is_never_removed", || {
        for place in [
            "PRIVATE/on",
            "PRIVATE/deep/er/on",
            "PRIVATE/file",
            "PRIVATE/deep/file",
            "PRIVATE",
            "KEY/",
            "TABLE",
            "GRANTS",
            "LOCK",
            "TREE",
        ] {
            for dead in [false, true] {
                mounted_at(place, dead);
            }
        }
    });
}

fn mounted_at(place: &str, dead: bool) {
    let context = format!("{place}, dead: {dead}");
    let scene = Scene::new();
    let precious = scene.temporary.path().join("precious");
    std::fs::create_dir_all(precious.join("deep/empty")).unwrap();
    let canaries = ["file", "deep/file", "lock"].map(|name| precious.join(name));
    for canary in &canaries {
        std::fs::write(canary, "precious").unwrap();
        std::fs::set_permissions(canary, PermissionsExt::from_mode(0o600)).unwrap();
    }
    // It would be opened to its owner, if it were ours.
    std::fs::set_permissions(precious.join("deep"), PermissionsExt::from_mode(0o500)).unwrap();
    let Scene { tree, table, .. } = &scene;
    let (private, tree_path) = (
        table.private_dir().path().to_owned(),
        tree.path().to_owned(),
    );
    std::fs::create_dir_all(private.join("deep/er/on/side")).unwrap();
    std::fs::write(private.join("ours"), "").unwrap();
    let outside = scene.leak("s");
    let key = table.key();
    let target = match place {
        "TABLE" => scene.table_file(),
        "GRANTS" => tree_path.join(format!("grants-{key}")),
        "LOCK" => tree_path.join("lock"),
        "TREE" => tree_path.clone(),
        // Of a process that has no table.
        "KEY/" => tree_path.join("00000000000000aa"),
        place => PathBuf::from(place.replacen("PRIVATE", private.to_str().unwrap(), 1)),
    };
    if place.ends_with("file") {
        std::fs::write(&target, "").unwrap();
    } else if !exists(&target) {
        std::fs::create_dir_all(&target).unwrap();
    }
    let is_file = target.is_file();
    apart::bind(if is_file { &canaries[0] } else { &precious }, &target);
    let base = scene.base();
    let left = if dead {
        let Scene { tree, table, .. } = scene;
        drop((tree, table));
        let report = sweep_the_dead(&base);
        assert!(report.removed.is_empty(), "{context}: {report:?}");
        report.swept.left
    } else {
        let left = scene.tree.remove().left;
        assert!(!scene.tree.remove().left.is_empty(), "{context}");
        drop((scene.tree, scene.table));
        left
    };
    for canary in &canaries {
        assert_eq!(
            std::fs::read(canary).unwrap(),
            b"precious",
            "{context}: {left:?}"
        );
    }
    assert_eq!(
        precious.join("deep").metadata().unwrap().mode() & 0o7777,
        0o500
    );
    let told = |left: &Left| left.path == target && left.why.to_string().contains("unmount it");
    let told_of_tree =
        |left: &Left| left.path == tree_path && left.why.to_string().contains("unmount it");
    assert!(
        left.iter()
            .any(|left| told(left) || (place == "LOCK" && told_of_tree(left))),
        "{context}: {left:?}"
    );
    // Once it is unmounted, the rest goes.
    let unmounted = Command::new("umount").arg(&target).status().unwrap();
    assert!(unmounted.success(), "{context}");
    let report = sweep_the_dead(&base);
    assert!(report.swept.left.is_empty(), "{context}: {report:?}");
    assert!(names(&base).is_empty() && !exists(&outside), "{context}");
}

#[test]
fn keys_are_sixteen_digits() {
    let key = ProcessKey::new(0xab);
    assert_eq!(key.to_string(), "00000000000000ab");
    assert_eq!(key.to_string().parse(), Ok(key));
    for bad in [
        "",
        "ab",
        "00000000000000AB",
        "00000000000000ag",
        "000000000000000ab",
        "+0000000000000ab",
    ] {
        assert_eq!(bad.parse::<ProcessKey>(), Err(InvalidKey), "{bad:?}");
    }
}

// Claims.

#[test]
fn a_socket_is_reachable_until_it_is_released() {
    let scene = Scene::new();
    let (listener, claim) = scene.bind("s").unwrap();
    assert_eq!(claim.path(), scene.outside.path().join("s"));
    assert_eq!(claim.kind(), Kind::Socket);
    assert_eq!(names(scene.outside.path()), ["s"]);
    assert!(names(scene.table.private_dir().path()).is_empty());
    UnixStream::connect(claim.path()).unwrap();
    listener.accept().unwrap();
    assert_eq!(scene.table.len(), 1);
    assert_eq!(claim.release().unwrap(), Released::Removed);
    assert!(names(scene.outside.path()).is_empty() && scene.table.is_empty());
    let (_, claim) = scene.bind("s").unwrap();
    drop(claim);
    assert!(names(scene.outside.path()).is_empty() && scene.table.is_empty());
    assert!(scene.sweep().removed.is_empty(), "the slots are free");
}

#[test]
fn a_socket_lies_as_deep_as_it_likes() {
    let scene = Scene::new();
    let name = PathBuf::from("d".repeat(200))
        .join("e".repeat(200))
        .join("socket");
    std::fs::create_dir_all(scene.outside.path().join(&name).parent().unwrap()).unwrap();
    let (_listener, claim) = scene
        .table
        .bind_socket(&scene.outside, &name, |path| UnixListener::bind(path))
        .unwrap();
    assert!(exists(claim.path()));
    let (granted, rest) = scene.table.granted(claim.path()).unwrap();
    assert!(granted.is_same(&scene.outside) && rest == name);
    std::mem::forget(claim);
    assert_eq!(scene.sweep().removed, [scene.outside.path().join(&name)]);
    let long = PathBuf::from("x/".repeat(384)).join("yy");
    let error = scene
        .table
        .bind_socket(&scene.outside, &long, |_| Ok(()))
        .unwrap_err();
    assert!(
        matches!(
            error,
            ClaimError::PathTooLong {
                limit: PATH_BYTES_MAX,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn files_and_shared_memory_are_published_too() {
    let scene = Scene::new();
    let make = |path: &Path| std::fs::File::create_new(path);
    let (_, file) = scene
        .table
        .publish(Kind::File, &scene.outside, "pid".as_ref(), make)
        .unwrap();
    assert!(file.path().is_file());
    // Another file system than the tree's, where the private name has to lie beside the public one.
    let memory = GrantedDir::open("/dev/shm".as_ref()).unwrap();
    scene.table.grant(&scene.tree, memory.clone()).unwrap();
    let name = format!("janitor-test-{:x}", fsx::random().unwrap());
    let (_, shared) = scene
        .table
        .publish(Kind::SharedMemory, &memory, name.as_ref(), make)
        .unwrap();
    assert!(shared.path().is_file());
    std::mem::forget((file, shared));
    let swept = scene.sweep();
    assert!(swept.left.is_empty(), "{swept:?}");
    assert_eq!(
        swept.removed,
        [scene.outside.path().join("pid"), memory.path().join(&name)]
    );
    assert!(!memory.path().join(name).exists());
}

#[test]
fn a_taken_name_stays_with_its_owner() {
    let scene = Scene::new();
    let (listener, claim) = scene.bind("s").unwrap();
    let before = inode(claim.path());
    let error = scene.bind("s").unwrap_err();
    assert!(
        matches!(&error, ClaimError::AddrInUse { path } if path == claim.path()),
        "{error}"
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrInUse);
    std::fs::write(scene.outside.path().join("f"), "").unwrap();
    symlink("nowhere", scene.outside.path().join("l")).unwrap();
    for name in ["f", "l"] {
        assert!(matches!(
            scene.bind(name),
            Err(ClaimError::AddrInUse { .. })
        ));
    }
    assert_eq!(inode(claim.path()), before);
    assert_eq!(
        names(scene.outside.path()),
        ["f", "l", "s"],
        "nothing is left of the attempts"
    );
    assert!(names(scene.table.private_dir().path()).is_empty());
    assert_eq!(scene.table.len(), 1);
    drop(listener);
}

#[test]
fn f49_of_many_at_one_name_one_wins() {
    let temporary = TempDir::new().unwrap();
    let outside = GrantedDir::open(temporary.path()).unwrap();
    let base = private();
    let tree = TreeDir::create(Some(base.path())).unwrap();
    let (holders, wins) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for number in 0..4 {
            let table =
                BindTable::create(&tree, ProcessKey::new(number), vec![outside.clone()]).unwrap();
            let (outside, holders, wins) = (&outside, &holders, &wins);
            scope.spawn(move || {
                for _ in 0..400 {
                    match table
                        .bind_socket(outside, "name".as_ref(), |path| UnixListener::bind(path))
                    {
                        Ok((listener, claim)) => {
                            assert_eq!(
                                holders.fetch_add(1, Ordering::SeqCst),
                                0,
                                "two hold one name"
                            );
                            wins.fetch_add(1, Ordering::Relaxed);
                            listener.set_nonblocking(true).unwrap();
                            let _client = UnixStream::connect(claim.path()).unwrap();
                            listener.accept().expect("the name leads to its holder");
                            holders.fetch_sub(1, Ordering::SeqCst);
                            assert_eq!(claim.release().unwrap(), Released::Removed);
                        }
                        Err(ClaimError::AddrInUse { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert!(wins.into_inner() >= 4);
    assert!(names(temporary.path()).is_empty());
    assert!(tree.remove().left.is_empty());
}

#[test]
fn a_full_table_is_an_error_with_the_limit() {
    let scene = Scene::new();
    let claims: Vec<_> = (0..SLOTS)
        .map(|number| scene.bind(&number.to_string()).unwrap())
        .collect();
    let error = scene.bind("one-more").unwrap_err();
    assert!(
        matches!(error, ClaimError::Full { limit: SLOTS }),
        "{error}"
    );
    assert!(error.to_string().contains("255"), "{error}");
    let (_, claim) = claims.into_iter().next_back().unwrap();
    drop(claim);
    assert!(scene.table.len() < SLOTS);
    scene.bind("one-more").unwrap();
    assert!(!exists(&scene.outside.path().join("one-more")));
}

#[test]
fn a_full_table_is_swept_to_the_last_slot() {
    let scene = Scene::new();
    for number in 0..SLOTS {
        scene.leak(&number.to_string());
    }
    assert_eq!(scene.sweep().removed.len(), SLOTS);
    assert!(names(scene.outside.path()).is_empty());
}

#[test]
fn a_failed_or_panicked_maker_leaves_nothing() {
    let scene = Scene::new();
    let leave = |path: &Path| drop(UnixListener::bind(path).unwrap());
    let failed = scene
        .table
        .bind_socket(&scene.outside, "s".as_ref(), |path| {
            leave(path);
            Err::<(), _>(io::ErrorKind::AddrNotAvailable.into())
        });
    assert!(matches!(failed, Err(ClaimError::Make { .. })));
    let wrong = scene
        .table
        .bind_socket(&scene.outside, "s".as_ref(), |path| {
            std::fs::write(path, "")
        });
    assert!(matches!(wrong, Err(ClaimError::WrongKind { .. })));
    let nothing = scene
        .table
        .bind_socket(&scene.outside, "s".as_ref(), |_| Ok(()));
    assert!(matches!(nothing, Err(ClaimError::WrongKind { .. })));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        scene
            .table
            .bind_socket(&scene.outside, "s".as_ref(), |path| -> io::Result<()> {
                leave(path);
                panic!("in the maker");
            })
    }));
    assert!(panicked.is_err());
    assert!(names(scene.outside.path()).is_empty());
    assert!(names(scene.table.private_dir().path()).is_empty());
    assert!(scene.table.is_empty());
}

#[test]
fn only_plain_names_in_granted_directories_are_claimed() {
    let scene = Scene::new();
    for name in [
        "",
        ".",
        "..",
        "/abs",
        "a/../b",
        "./a",
        "a//b",
        "a/",
        "a\0b",
        ".offshoot-x",
        "d/.offshoot-x",
        &"n".repeat(256),
    ] {
        let result = scene.bind(name);
        assert!(
            matches!(result, Err(ClaimError::InvalidName { .. })),
            "{name:?}"
        );
    }
    let other = GrantedDir::open(scene.temporary.path()).unwrap();
    let result = scene
        .table
        .bind_socket(&other, "s".as_ref(), |path| UnixListener::bind(path));
    assert!(matches!(result, Err(ClaimError::NotGranted { .. })));
    let result = scene.table.granted("/etc/passwd".as_ref());
    assert!(matches!(result, Err(ClaimError::NotGranted { .. })));
    symlink(scene.temporary.path(), scene.outside.path().join("up")).unwrap();
    let result = scene.bind("up/s");
    assert!(matches!(result, Err(ClaimError::Io { .. })));
    assert!(!scene.temporary.path().join("s").exists());
    scene.table.grant(&scene.tree, other.clone()).unwrap();
    scene.table.grant(&scene.tree, other.clone()).unwrap();
    let (granted, rest) = scene
        .table
        .granted(&scene.outside.path().join("up/s"))
        .unwrap();
    assert!(granted.is_same(&scene.outside), "{rest:?}");
    let (granted, rest) = scene
        .table
        .granted(&scene.temporary.path().join("outside/../s"))
        .unwrap();
    assert!(granted.is_same(&other) || rest.components().count() > 1);
}

#[test]
fn a_table_has_one_writer() {
    let scene = Scene::new();
    let again = Enrolment {
        key: scene.table.key(),
        table: std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(scene.table_file())
            .unwrap()
            .into(),
        private: std::fs::File::open(scene.table.private_dir().path())
            .unwrap()
            .into(),
    };
    assert_eq!(
        BindTable::open(again, Vec::new()).unwrap_err().kind(),
        io::ErrorKind::ResourceBusy
    );
    let (one, two) = (ProcessKey::new(1), ProcessKey::new(2));
    let mixed_up = Enrolment {
        key: two,
        ..scene.tree.enroll(one, &own(), &[]).unwrap()
    };
    assert_eq!(
        BindTable::open(mixed_up, Vec::new()).unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    let twice = scene.tree.enroll(one, &own(), &[]).unwrap_err();
    assert!(
        matches!(twice, DirError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    );
}

#[test]
fn f54_a_fork_releases_nothing() {
    let scene = Scene::new();
    let (_listener, claim) = scene.bind("s").unwrap();
    let path = claim.path().to_owned();
    // In a fork the process has another id than the one that the table was opened with.
    scene.write(HEAD_PID, &(std::process::id() + 1).to_ne_bytes());
    assert!(matches!(scene.bind("t"), Err(ClaimError::Forked)));
    drop(claim);
    assert!(exists(&path));
    assert_eq!(scene.sweep().removed, [path]);
}

#[test]
fn what_exists_can_be_adopted() {
    let scene = Scene::new();
    let path = scene.outside.path().join("theirs");
    assert!(
        scene
            .table
            .adopt(Kind::Socket, &scene.outside, "theirs".as_ref())
            .is_err()
    );
    let _listener = UnixListener::bind(&path).unwrap();
    let wrong = scene
        .table
        .adopt(Kind::File, &scene.outside, "theirs".as_ref());
    assert!(matches!(wrong, Err(ClaimError::WrongKind { .. })));
    std::mem::forget(
        scene
            .table
            .adopt(Kind::Socket, &scene.outside, "theirs".as_ref())
            .unwrap(),
    );
    assert_eq!(scene.sweep().removed, [path]);
}

#[test]
fn a_successor_is_never_removed() {
    let replace: [fn(&Path); 3] = [
        |path| {
            std::fs::remove_file(path).unwrap();
            std::mem::forget(UnixListener::bind(path).unwrap());
        },
        |path| {
            let beside = path.with_file_name("beside");
            std::mem::forget(UnixListener::bind(&beside).unwrap());
            std::fs::rename(beside, path).unwrap();
        },
        |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::write(path, "a file").unwrap();
        },
    ];
    for replace in replace {
        let scene = Scene::new();
        let (_listener, claim) = scene.bind("released").unwrap();
        let swept_path = scene.leak("swept");
        let gone = scene.leak("gone");
        std::fs::remove_file(gone).unwrap();
        replace(claim.path());
        replace(&swept_path);
        let before = [inode(claim.path()), inode(&swept_path)];
        let path = claim.path().to_owned();
        assert_eq!(claim.release().unwrap(), Released::Successor);
        let swept = scene.sweep();
        assert!(swept.removed.is_empty());
        assert!(
            matches!(&swept.left[..], [Left { path, why: Why::Successor }] if *path == swept_path),
            "{swept:?}"
        );
        assert_eq!(before, [inode(&path), inode(&swept_path)]);
        assert_eq!(names(scene.outside.path()), ["released", "swept"]);
        assert!(swept.is_settled() && scene.tree.remove().is_settled());
    }
}

#[test]
fn a_successor_that_comes_at_the_worst_moment_survives() {
    let temporary = TempDir::new().unwrap();
    let dir = fsx::open_no_follow(temporary.path(), Access::Hold).unwrap();
    let at = |name: &str| temporary.path().join(name);
    let look = |name: &str| {
        super::sweep::look(dir.as_fd(), name.as_ref())
            .unwrap()
            .unwrap()
    };
    let comings: [(&dyn Fn(), super::sweep::Outcome); 3] = [
        (
            &|| std::fs::rename(at("theirs"), at("name")).unwrap(),
            super::sweep::Outcome::Successor,
        ),
        (
            &|| std::fs::remove_file(at("name")).unwrap(),
            super::sweep::Outcome::Gone,
        ),
        (&|| (), super::sweep::Outcome::Removed),
    ];
    for (coming, expected) in comings {
        let _ours = UnixListener::bind(at("name")).unwrap();
        let _theirs = UnixListener::bind(at("theirs")).unwrap();
        let ((kind, ours), (_, theirs)) = (look("name"), look("theirs"));
        let (name, aside) = ("name".as_ref(), "aside".as_ref());
        let outcome =
            super::sweep::withdraw_with(dir.as_fd(), name, aside, kind, &ours, coming).unwrap();
        assert_eq!(outcome, expected);
        let left = if expected == super::sweep::Outcome::Successor {
            "name"
        } else {
            "theirs"
        };
        assert_eq!(names(temporary.path()), [left]);
        assert!(look(left).1.is_same(&theirs));
        std::fs::remove_file(at(left)).unwrap();
    }
}

#[test]
fn a_successor_that_comes_at_any_moment_survives() {
    // It replaces by rename, as careful programs do: nothing but the second look keeps it from being removed in the place of its predecessor.
    const ROUNDS: usize = 2_000;
    let scene = Scene::new();
    let path = scene.outside.path().join("s");
    let beside = scene.outside.path().join("beside");
    let (begun, replaced) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wait_for = |counter: &AtomicUsize, round| {
        let start = std::time::Instant::now();
        while counter.load(Ordering::Acquire) < round {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the other thread has ended"
            );
            if start.elapsed() > Duration::from_micros(50) {
                std::thread::yield_now();
            }
        }
    };
    let delay = |dice: &mut Dice| {
        let delay = Duration::from_nanos(dice.roll() % 30_000);
        let start = std::time::Instant::now();
        while start.elapsed() < delay {
            std::hint::spin_loop();
        }
    };
    let mut lost = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice(0x5ca1_ab1e);
            for round in 1..=ROUNDS {
                wait_for(&begun, round);
                delay(&mut dice);
                std::fs::rename(&beside, &path).unwrap();
                replaced.store(round, Ordering::Release);
            }
        });
        let mut dice = Dice(0xdead_1eaf);
        for round in 1..=ROUNDS {
            let (_listener, claim) = scene.bind("s").unwrap();
            let _successor = UnixListener::bind(&beside).unwrap();
            begun.store(round, Ordering::Release);
            delay(&mut dice);
            claim.release().unwrap();
            wait_for(&replaced, round);
            lost += usize::from(!exists(&path));
            std::fs::remove_file(&path)
                .or_else(|error| if lost > 0 { Ok(()) } else { Err(error) })
                .unwrap();
        }
    });
    assert_eq!(lost, 0, "of {ROUNDS}");
    assert!(names(scene.outside.path()).is_empty());
}

#[test]
fn a_successor_does_not_vanish_for_a_moment() {
    let temporary = TempDir::new().unwrap();
    let dir = fsx::open_no_follow(temporary.path(), Access::Hold).unwrap();
    let path = temporary.path().join("s");
    let _first = UnixListener::bind(&path).unwrap();
    let (kind, gone) = super::sweep::look(dir.as_fd(), "s".as_ref())
        .unwrap()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut absent = 0;
            while !done.load(Ordering::Relaxed) {
                absent += usize::from(!exists(&path));
            }
            absent
        });
        let (_, here) = super::sweep::look(dir.as_fd(), "s".as_ref())
            .unwrap()
            .unwrap();
        for _ in 0..5_000 {
            for (kind, identity) in [(kind, &gone), (FileKind::File, &here)] {
                let outcome =
                    withdraw(dir.as_fd(), "s".as_ref(), "aside".as_ref(), kind, identity).unwrap();
                assert_eq!(outcome, super::sweep::Outcome::Successor);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(looking.join().unwrap(), 0);
    });
}

#[test]
fn room_for_a_slot_is_set_aside_before_it_is_written() {
    let scene = Scene::new();
    let room = || scene.table_file().metadata().unwrap().blocks() * 512;
    let before = room();
    assert!(before < slot(8) as u64, "an empty table is cheap: {before}");
    let claims: Vec<_> = (0..16)
        .map(|number| {
            let claim = scene.bind(&number.to_string()).unwrap();
            assert!(
                room() >= slot(if number < 15 { 15 } else { 30 }) as u64,
                "{number}: {}",
                room()
            );
            claim
        })
        .collect();
    assert_eq!(claims.len(), 16);
}

#[test]
fn what_cannot_be_removed_now_is_kept_for_later() {
    // Nobody, whatever his rights, can remove a file of the kernel's.
    let scene = Scene::new();
    let kernel = GrantedDir::open("/sys/kernel".as_ref()).unwrap();
    let file = std::fs::read_dir(kernel.path())
        .unwrap()
        .map(Result::unwrap)
        .find(|entry| entry.file_type().unwrap().is_file())
        .unwrap();
    scene.table.grant(&scene.tree, kernel.clone()).unwrap();
    let claim = scene
        .table
        .adopt(Kind::File, &kernel, file.file_name().as_ref())
        .unwrap();
    assert!(matches!(claim.release(), Err(ClaimError::Io { .. })));
    let path = scene.leak("s");
    let swept = scene.sweep();
    assert!(
        matches!(&swept.left[..], [Left { path, why: Why::Failed(_) }] if *path == file.path()),
        "{swept:?}"
    );
    assert_eq!(swept.removed, [path]);
    assert!(scene.table_file().exists());
    assert!(!scene.tree.remove().is_settled() && scene.table_file().exists());
    let Scene {
        tree,
        table,
        temporary,
        ..
    } = scene;
    let tree_path = tree.path().to_owned();
    drop((tree, table));
    let report = sweep_the_dead(&temporary.path().join("base"));
    assert!(
        report.removed.is_empty() && tree_path.exists(),
        "{report:?}"
    );
    assert!(file.path().exists());
}

// Sweeps.

#[test]
fn f44_a_dead_tree_is_swept_outside_too() {
    let scene = Scene::new();
    let path = scene.leak("s");
    let (_, inside) = scene
        .table
        .bind_socket(&scene.table.private_dir(), "in".as_ref(), |path| {
            UnixListener::bind(path)
        })
        .unwrap();
    let inside_path = inside.path().to_owned();
    std::mem::forget(inside);
    let Scene {
        tree,
        table,
        temporary,
        ..
    } = scene;
    drop(table);
    let tree_path = tree.path().to_owned();
    let base = temporary.path().join("base");
    drop(tree);
    let report = sweep_the_dead(&base);
    assert_eq!(report.removed, [tree_path]);
    assert!(report.swept.left.is_empty());
    assert_eq!(
        report
            .swept
            .removed
            .iter()
            .cloned()
            .collect::<BTreeSet<_>>(),
        BTreeSet::from([path.clone(), inside_path])
    );
    assert!(!exists(&path) && names(&base).is_empty());
}

#[test]
fn every_process_but_some_is_swept() {
    let scene = Scene::new();
    let path = scene.leak("root");
    let other =
        BindTable::create(&scene.tree, ProcessKey::new(7), vec![scene.outside.clone()]).unwrap();
    let (_, claim) = other
        .bind_socket(&scene.outside, "other".as_ref(), |path| {
            UnixListener::bind(path)
        })
        .unwrap();
    let other_path = claim.path().to_owned();
    std::mem::forget(claim);
    assert_eq!(
        scene.tree.sweep_except(&[scene.table.key()]).removed,
        [other_path]
    );
    assert!(exists(&path) && scene.table_file().exists());
    assert!(
        scene
            .tree
            .sweep_except(&[scene.table.key()])
            .removed
            .is_empty()
    );
    // The descriptors of whoever granted count, not the record.
    std::fs::remove_file(
        scene
            .tree
            .path()
            .join(format!("grants-{}", scene.table.key())),
    )
    .unwrap();
    assert_eq!(
        scene
            .tree
            .sweep_with(
                scene.table.key(),
                &own(),
                std::slice::from_ref(&scene.outside)
            )
            .removed,
        [path]
    );
}

/// Takes a socket to where it lies after a step: the public path, and the private name in the private directory and beside the public path.
type Step = fn(&Path, &Path, &Path);

/// Each state that a kill can leave between two steps.
#[test]
fn every_step_of_a_claim_can_be_the_last() {
    let steps: [(u32, Step); 8] = [
        // Announced; made, in either place.
        (INTENT, |public, _, _| std::fs::remove_file(public).unwrap()),
        (INTENT, |public, private, _| {
            std::fs::rename(public, private).unwrap()
        }),
        (INTENT, |public, _, beside| {
            std::fs::rename(public, beside).unwrap()
        }),
        // Named and not yet public; public; both, where the file system cannot rename without replacing.
        (NAMED, |public, private, _| {
            std::fs::rename(public, private).unwrap()
        }),
        (NAMED, |public, _, beside| {
            std::fs::rename(public, beside).unwrap()
        }),
        (NAMED, |_, _, _| ()),
        (NAMED, |public, private, _| {
            std::fs::hard_link(public, private).unwrap()
        }),
        (NAMED, |public, _, beside| {
            std::fs::hard_link(public, beside).unwrap()
        }),
    ];
    for (index, (state, step)) in steps.into_iter().enumerate() {
        let scene = Scene::new();
        let path = scene.leak("s");
        let private = scene.table.private_dir().path().to_owned();
        let mut name = [0; PRIVATE_BYTES_MAX];
        let file = std::fs::File::open(scene.table_file()).unwrap();
        file.read_exact_at(&mut name, (slot(0) + PRIVATE) as u64)
            .unwrap();
        let name = std::str::from_utf8(&name).unwrap().trim_end_matches('\0');
        step(&path, &private.join(name), &scene.outside.path().join(name));
        scene.write(slot(0) + STATE, &state.to_ne_bytes());
        let swept = scene.sweep();
        assert!(swept.left.is_empty(), "step {index}: {swept:?}");
        assert!(names(scene.outside.path()).is_empty(), "step {index}");
        assert_eq!(names(scene.tree.path()), ["lock"], "step {index}");
    }
}

#[test]
fn an_intent_covers_only_what_was_intended() {
    let scene = Scene::new();
    let path = scene.leak("s");
    let mut name = [0; PRIVATE_BYTES_MAX];
    let file = std::fs::File::open(scene.table_file()).unwrap();
    file.read_exact_at(&mut name, (slot(0) + PRIVATE) as u64)
        .unwrap();
    let beside = scene
        .outside
        .path()
        .join(std::str::from_utf8(&name).unwrap().trim_end_matches('\0'));
    std::fs::write(&beside, "not a socket").unwrap();
    scene.write(slot(0) + STATE, &INTENT.to_ne_bytes());
    let swept = scene.sweep();
    assert!(
        swept.removed.is_empty()
            && matches!(
                swept.left[..],
                [Left {
                    why: Why::WrongKind,
                    ..
                }]
            ),
        "{swept:?}"
    );
    assert!(exists(&path) && exists(&beside));
}

#[test]
fn an_interrupted_withdrawal_is_taken_up() {
    let temporary = TempDir::new().unwrap();
    let dir = fsx::open_no_follow(temporary.path(), Access::Hold).unwrap();
    let at = |name: &str| temporary.path().join(name);
    let bind = |name: &str| {
        drop(UnixListener::bind(at(name)).unwrap());
        super::sweep::look(dir.as_fd(), name.as_ref())
            .unwrap()
            .unwrap()
            .1
    };
    let withdraw = |identity: &Identity| {
        withdraw(
            dir.as_fd(),
            "name".as_ref(),
            "aside".as_ref(),
            FileKind::Socket,
            identity,
        )
        .unwrap()
    };
    // Moved aside and not removed.
    let ours = bind("aside");
    assert_eq!(withdraw(&ours), super::sweep::Outcome::Removed);
    assert!(names(temporary.path()).is_empty());
    // Linked and not unlinked.
    let ours = bind("name");
    std::fs::hard_link(at("name"), at("aside")).unwrap();
    assert_eq!(withdraw(&ours), super::sweep::Outcome::Removed);
    assert!(names(temporary.path()).is_empty());
    // A successor moved aside and not put back.
    let theirs = bind("aside");
    assert_eq!(withdraw(&ours), super::sweep::Outcome::Successor);
    assert_eq!(names(temporary.path()), ["name"]);
    assert!(
        super::sweep::look(dir.as_fd(), "name".as_ref())
            .unwrap()
            .unwrap()
            .1
            .is_same(&theirs)
    );
    // The same, and a third came.
    bind("aside");
    assert_eq!(withdraw(&ours), super::sweep::Outcome::Displaced);
    assert_eq!(names(temporary.path()), ["aside", "name"]);
}

#[test]
fn hostile_tables_do_no_harm() {
    let victims = TempDir::new().unwrap();
    let mut dice = Dice(0x5eed_0ff5_4007_1234);
    let scene = Scene::new();
    let (outside, private) = (scene.outside.clone(), scene.table.private_dir());
    let mut safe = Vec::new();
    for dir in [
        victims.path(),
        scene.temporary.path(),
        outside.path(),
        private.path(),
    ] {
        for name in [
            "victim",
            ".offshoot-victim",
            ".offshoot-0000000000000001-00000000000000000000000000000000",
        ] {
            let path = dir.join(name);
            let held = GrantedDir::open(dir).unwrap();
            safe.push((
                fsx::bind_listener(held.as_fd(), name.as_ref()).unwrap(),
                inode(&path),
                path,
            ));
        }
    }
    scene.leak("ours");
    let template = std::fs::read(scene.table_file()).unwrap();
    let file = victims.path().join("table");
    let sweep_bytes = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let table = std::fs::File::open(&file).unwrap();
        let mut swept = Swept::default();
        sweep(
            table.as_fd(),
            scene.table.key(),
            &own(),
            Some(&private),
            &[Some(outside.clone()), None],
            &Manner::default(),
            &mut swept,
        );
        swept
    };
    for round in 0..600 {
        let mut bytes = template.clone();
        match round % 4 {
            // Garbage, with and without a true head.
            0 => bytes
                .iter_mut()
                .skip(if round % 8 == 0 { 0 } else { SLOT_BYTES })
                .for_each(|byte| *byte = dice.roll() as u8),
            // Cut short.
            1 => bytes.truncate(dice.below(TABLE_BYTES)),
            // True entries with some wrong bytes.
            2 => {
                for _ in 0..dice.below(20) {
                    let at = slot(0) + dice.below(SLOT_BYTES);
                    bytes[at] = dice.roll() as u8;
                }
            }
            // Well-formed entries that name the victims.
            _ => {
                for index in 0..20 {
                    let at = slot(index);
                    let (_, _, victim) = &safe[dice.below(safe.len())];
                    let ways = [
                        victim.to_str().unwrap().to_owned(),
                        format!("../{}", victim.file_name().unwrap().to_str().unwrap()),
                        format!("../../{}", victim.display()),
                        victim.file_name().unwrap().to_str().unwrap().to_owned(),
                        String::new(),
                        ".".to_owned(),
                    ];
                    let path = &ways[dice.below(ways.len())];
                    let mut put = |place: usize, value: &[u8]| {
                        bytes[at + place..][..value.len()].copy_from_slice(value)
                    };
                    put(STATE, &(dice.below(4) as u32).to_ne_bytes());
                    put(KIND, &(dice.below(5) as u32).to_ne_bytes());
                    put(GRANT, &(dice.below(5) as u32).to_ne_bytes());
                    put(PATH_LEN, &(path.len() as u32).to_ne_bytes());
                    put(PATH, path.as_bytes());
                    let aside = [
                        ".offshoot-victim",
                        ".offshoot-0000000000000001-00000000000000000000000000000000",
                        "victim",
                        "../victim",
                    ];
                    let aside = aside[dice.below(aside.len())];
                    put(PRIVATE_LEN, &(aside.len() as u32).to_ne_bytes());
                    put(PRIVATE, aside.as_bytes());
                    put(DEV, &dice.roll().to_ne_bytes());
                    put(HANDLE_LEN, &(dice.roll() as u32).to_ne_bytes());
                }
            }
        }
        sweep_bytes(&bytes);
    }
    for (_, before, path) in &safe {
        assert_eq!(inode(path), *before, "{}", path.display());
    }
    // The same harness does remove what is truly named.
    if exists(&outside.path().join("ours")) {
        assert_eq!(
            sweep_bytes(&template).removed,
            [outside.path().join("ours")]
        );
    }
    assert!(!exists(&outside.path().join("ours")));
}

#[test]
fn each_false_entry_is_refused_by_itself() {
    let scene = Scene::new();
    let at = slot(0);
    let path = scene.leak("s");
    let template = std::fs::read(scene.table_file()).unwrap();
    let key_at = PRIVATE + ".offshoot-".len();
    let cases: [(&str, usize, Vec<u8>); 9] = [
        ("magic", HEAD_MAGIC, vec![0]),
        ("version", HEAD_VERSION, vec![9]),
        ("slots", HEAD_SLOTS, vec![1]),
        ("state", at + STATE, vec![3]),
        ("kind", at + KIND, vec![4]),
        ("grant", at + GRANT, vec![2]),
        ("length", at + PATH_LEN, 2_000_u32.to_ne_bytes().to_vec()),
        ("private name of another process", at + key_at, vec![b'g']),
        ("handle", at + HANDLE_LEN, 129_u32.to_ne_bytes().to_vec()),
    ];
    let file = scene.temporary.path().join("copy");
    let sweep_copy = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let table = std::fs::File::open(&file).unwrap();
        let mut swept = Swept::default();
        let private = scene.table.private_dir();
        sweep(
            table.as_fd(),
            scene.table.key(),
            &own(),
            Some(&private),
            &[Some(scene.outside.clone())],
            &Manner::default(),
            &mut swept,
        );
        swept
    };
    for (what, place, value) in cases {
        let mut bytes = template.clone();
        bytes[place..place + value.len()].copy_from_slice(&value);
        let swept = sweep_copy(&bytes);
        assert!(exists(&path), "{what}");
        let refused = swept
            .left
            .iter()
            .all(|left| matches!(left.why, Why::Malformed(_) | Why::NotGranted));
        assert!(
            swept.removed.is_empty() && swept.left.len() == 1 && refused,
            "{what}: {swept:?}"
        );
        assert!(swept.is_settled());
    }
    for (what, place) in [
        ("device", DEV),
        ("inode", INO),
        ("birth", BORN),
        ("handle", HANDLE),
        ("handle's kind", HANDLE_KIND),
        ("kind", KIND),
    ] {
        let mut bytes = template.clone();
        bytes[at + place] ^= if place == KIND { 3 } else { 1 };
        let swept = sweep_copy(&bytes);
        assert!(
            matches!(
                swept.left[..],
                [Left {
                    why: Why::Successor,
                    ..
                }]
            ),
            "{what}: {swept:?}"
        );
        assert!(exists(&path), "{what}");
    }
    assert_eq!(sweep_copy(&template).removed, [path]);
}

#[test]
fn a_table_that_changes_while_it_is_read_does_no_harm() {
    let scene = Scene::new();
    let victim = scene.temporary.path().join("victim");
    std::fs::write(&victim, "").unwrap();
    scene.leak("s");
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(scene.table_file())
        .unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice(42);
            while !done.load(Ordering::Relaxed) {
                file.set_len(dice.below(TABLE_BYTES) as u64).unwrap();
                file.set_len(TABLE_BYTES as u64).unwrap();
                let path = *b"../victim";
                file.write_all_at(&path, (slot(0) + PATH) as u64).unwrap();
                file.write_all_at(
                    &(path.len() as u32).to_ne_bytes(),
                    (slot(0) + PATH_LEN) as u64,
                )
                .unwrap();
                file.write_all_at(&[1; 8], (slot(dice.below(SLOTS)) + STATE) as u64)
                    .unwrap();
            }
        });
        let private = scene.table.private_dir();
        for _ in 0..300 {
            sweep(
                file.as_fd(),
                scene.table.key(),
                &own(),
                Some(&private),
                &[Some(scene.outside.clone())],
                &Manner::default(),
                &mut Swept::default(),
            );
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(victim.exists());
}

#[test]
fn f46_a_link_or_another_directory_in_the_place_of_a_granted_one_is_refused() {
    let dirs = ["sub", "moved"];
    for by_link in [true, false] {
        let scene = Scene::new();
        let victim = scene.temporary.path().join("victims");
        std::fs::create_dir(&victim).unwrap();
        let outside = scene.outside.path().to_owned();
        std::fs::create_dir(outside.join(dirs[0])).unwrap();
        let path = scene.leak("sub/s");
        // The true identity and a true name, by a way that leads elsewhere.
        if by_link {
            std::fs::rename(outside.join(dirs[0]), victim.join(dirs[0])).unwrap();
            symlink(victim.join(dirs[0]), outside.join(dirs[0])).unwrap();
        } else {
            std::fs::rename(&outside, scene.temporary.path().join(dirs[1])).unwrap();
            std::fs::create_dir(&outside).unwrap();
            std::fs::create_dir(outside.join(dirs[0])).unwrap();
            std::fs::rename(scene.temporary.path().join("moved/sub/s"), &path).unwrap();
        }
        let swept = scene.sweep();
        assert!(swept.removed.is_empty() && exists(&path), "{swept:?}");
        let why = &swept.left[0].why;
        assert!(
            if by_link {
                matches!(why, Why::NotGranted)
            } else {
                matches!(why, Why::Replaced)
            },
            "{swept:?}"
        );
        assert!(swept.is_settled() && scene.tree.remove().is_settled());
    }
}

/// What a process can write into its table after it has given up its rights, field by field, on a file system full of canaries: what it could not
/// have removed itself is left, and what it could is removed.
#[test]
fn a_sweep_for_another_user_removes_only_what_that_one_could() {
    if fsx::effective_user() != 0 {
        eprintln!("only the superuser sweeps for others: not tried");
        return;
    }
    let nobody = Credentials::nobody();
    let scene = Scene::new();
    let outside = scene.outside.path().to_owned();
    std::fs::set_permissions(scene.temporary.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Of the superuser, in a directory of the superuser; the same in one where everybody may write, which is sticky; and what is another user's.
    let sub = outside.join("sticky");
    let foreign = outside.join("foreign");
    for (dir, mode) in [(&outside, 0o755), (&sub, 0o1777), (&foreign, 0o755)] {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)).unwrap();
    }
    let mut canaries = Vec::new();
    let mut bait = Vec::new();
    for dir in ["", "sticky/", "foreign/"] {
        for (name, kind) in [("file", Kind::File), ("socket", Kind::Socket)] {
            let relative = format!("{dir}{name}");
            let path = outside.join(&relative);
            match kind {
                Kind::Socket => drop(UnixListener::bind(&path).unwrap()),
                _ => std::fs::write(&path, "canary").unwrap(),
            }
            canaries.push((path.clone(), inode(&path)));
            let open = fsx::open_no_follow(&path, Access::Look).unwrap();
            bait.push((relative, kind, fsx::identity(open.as_fd()).unwrap()));
        }
    }
    std::os::unix::fs::chown(&foreign, Some(1_000), None).unwrap();
    scene.tree.write_owner(scene.table.key(), &nobody).unwrap();
    let private = private_name(scene.table.key()).unwrap();
    let all_there = |context: &dyn std::fmt::Debug| {
        for (path, before) in &canaries {
            assert!(
                exists(path) && inode(path) == *before,
                "{path:?}: {context:?}"
            );
        }
    };
    // First all that is true of each canary, which is the worst that can be written.
    for (path, kind, identity) in &bait {
        for slot_number in [0, SLOTS - 1] {
            scribble(&scene, slot_number, path, *kind, identity, &private);
            let swept = scene.sweep();
            all_there(&swept);
            let refused = matches!(
                swept.left[..],
                [Left {
                    why: Why::NotAllowed(65_534),
                    ..
                }]
            );
            assert!(refused && swept.is_settled(), "{path}: {swept:?}");
            restore(&scene);
        }
    }
    // Then each field by itself, with what is at the bounds, what is true of others, and chance.
    let mut dice = Dice(0x5eed_0fca_0a21_e500);
    let fields = [
        (slot(0) + STATE, 4),
        (slot(0) + KIND, 4),
        (slot(0) + GRANT, 4),
        (slot(0) + PATH_LEN, 4),
        (slot(0) + PRIVATE_LEN, 4),
        (slot(0) + HANDLE_KIND, 4),
        (slot(0) + HANDLE_LEN, 4),
        (slot(0) + DEV, 8),
        (slot(0) + INO, 8),
        (slot(0) + BORN, 8),
        (slot(0) + HANDLE, 16),
        (slot(0) + PRIVATE, PRIVATE_BYTES_MAX),
        (slot(0) + PATH, PATH_BYTES_MAX),
        (HEAD_PID, 4),
        (HEAD_STARTED, 8),
        (HEAD_KEY, 8),
    ];
    for round in 0..400 {
        for (field, length) in fields {
            let (path, kind, identity) = &bait[dice.below(bait.len())];
            scribble(&scene, 0, path, *kind, identity, &private);
            let other = &bait[dice.below(bait.len())];
            let bytes: Vec<u8> = match round % 4 {
                0 => vec![0; length],
                1 => vec![0xff; length],
                2 => {
                    let values = [
                        0_u64,
                        1,
                        2,
                        3,
                        other.2.ino,
                        other.2.dev,
                        other.2.born,
                        255,
                        768,
                        769,
                    ];
                    let value = values[dice.below(values.len())].to_ne_bytes();
                    value.into_iter().cycle().take(length).collect()
                }
                _ => (0..length).map(|_| dice.roll() as u8).collect(),
            };
            scene.write(field, &bytes);
            let swept = scene.sweep();
            all_there(&(field, round, &swept));
            restore(&scene);
        }
    }
    // And what it could have removed itself goes.
    let theirs = outside.join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65_534), None).unwrap();
    std::fs::write(theirs.join("own"), "").unwrap();
    let open = fsx::open_no_follow(&theirs.join("own"), Access::Look).unwrap();
    let identity = fsx::identity(open.as_fd()).unwrap();
    scribble(&scene, 0, "theirs/own", Kind::File, &identity, &private);
    assert_eq!(scene.sweep().removed, [theirs.join("own")]);
    // Without a record of who it was, nothing is believed; as the superuser, all is as before.
    restore(&scene);
    std::fs::remove_file(
        scene
            .tree
            .path()
            .join(format!("owner-{}", scene.table.key())),
    )
    .ok();
    scribble(&scene, 0, &bait[0].0, bait[0].1, &bait[0].2, &private);
    scene.sweep();
    all_there(&"no record");
    restore(&scene);
    scene.tree.write_owner(scene.table.key(), &own()).unwrap();
    scribble(&scene, 0, &bait[0].0, bait[0].1, &bait[0].2, &private);
    assert_eq!(scene.sweep().removed, [outside.join(&bait[0].0)]);
}

/// Writes into a slot that this lies there.
fn scribble(
    scene: &Scene,
    index: usize,
    path: &str,
    kind: Kind,
    identity: &Identity,
    private: &OsStr,
) {
    let at = slot(index);
    let number = |field, value: u32| scene.write(at + field, &value.to_ne_bytes());
    let long = |field, value: u64| scene.write(at + field, &value.to_ne_bytes());
    number(KIND, kind.number());
    number(GRANT, 1);
    number(PATH_LEN, path.len() as u32);
    scene.write(at + PATH, path.as_bytes());
    number(PRIVATE_LEN, private.len() as u32);
    scene.write(at + PRIVATE, private.as_bytes());
    long(DEV, identity.dev);
    long(INO, identity.ino);
    long(BORN, identity.born);
    match &identity.handle {
        Some(handle) => {
            number(HANDLE_KIND, handle.kind() as u32);
            number(HANDLE_LEN, handle.bytes().len() as u32);
            scene.write(at + HANDLE, handle.bytes());
        }
        None => number(HANDLE_LEN, NO_HANDLE),
    }
    number(STATE, NAMED);
}

/// Lays out the scene's table anew, and its records with it: a sweep takes them along.
fn restore(scene: &Scene) {
    let key = scene.table.key();
    let _ = std::fs::remove_file(scene.table_file());
    let dir = scene.tree.dir_fd();
    let table = fsx::create(dir, format!("table-{key}").as_ref()).unwrap();
    super::table::lay_out(table, key).unwrap();
    let nobody = Credentials::nobody();
    scene.tree.write_owner(key, &nobody).unwrap();
    scene
        .tree
        .write_grants(key, std::slice::from_ref(&scene.outside))
        .unwrap();
}

#[test]
fn a_granted_directory_that_is_gone_took_everything_along() {
    let scene = Scene::new();
    scene.leak("s");
    std::fs::remove_dir_all(scene.outside.path()).unwrap();
    let swept = scene.sweep();
    assert!(swept.is_settled(), "{swept:?}");
}

#[test]
fn a_record_of_grants_is_believed_only_if_it_is_one() {
    let scene = Scene::new();
    let path = scene.leak("s");
    let record = scene
        .tree
        .path()
        .join(format!("grants-{}", scene.table.key()));
    let good = std::fs::read(&record).unwrap();
    let table = std::fs::read(scene.table_file()).unwrap();
    let mut dice = Dice(77);
    for round in 0..200 {
        let mut bytes = good.clone();
        match round % 3 {
            0 => bytes.truncate(dice.below(good.len())),
            1 => bytes
                .iter_mut()
                .skip(18)
                .for_each(|byte| *byte = dice.roll() as u8),
            _ => bytes[0] = b'x',
        }
        std::fs::write(&record, bytes).unwrap();
        std::fs::write(scene.table_file(), &table).unwrap();
        scene.tree.write_owner(scene.table.key(), &own()).unwrap();
        let swept = scene.sweep();
        assert!(swept.removed.is_empty() && exists(&path), "{swept:?}");
    }
    std::fs::write(&record, good).unwrap();
    std::fs::write(scene.table_file(), table).unwrap();
    scene.tree.write_owner(scene.table.key(), &own()).unwrap();
    assert_eq!(scene.sweep().removed, [path]);
}

#[test]
fn what_is_no_table_is_not_read() {
    let scene = Scene::new();
    let sweep_fd = |fd: OwnedFd| {
        let mut swept = Swept::default();
        sweep(
            fd.as_fd(),
            scene.table.key(),
            &own(),
            None,
            &[],
            &Manner::default(),
            &mut swept,
        );
        assert!(
            matches!(
                swept.left[..],
                [Left {
                    why: Why::Malformed(_),
                    ..
                }]
            ),
            "{swept:?}"
        );
    };
    sweep_fd(std::fs::File::open(scene.temporary.path()).unwrap().into());
    sweep_fd(std::fs::File::open("/dev/zero").unwrap().into());
    sweep_fd(UnixStream::pair().unwrap().0.into());
}

#[test]
fn two_may_sweep_at_once() {
    for _ in 0..50 {
        let scene = Scene::new();
        for number in 0..20 {
            scene.leak(&number.to_string());
        }
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let swept = scene.tree.remove();
                    assert!(swept.left.is_empty(), "{swept:?}");
                });
            }
        });
        assert!(names(scene.outside.path()).is_empty());
        assert!(names(&scene.base()).is_empty());
    }
}

#[test]
fn a_dying_process_is_waited_for() {
    let temporary = private();
    let tree = TreeDir::create(Some(temporary.path())).unwrap();
    let key = ProcessKey::new(5);
    let enrolment = tree.enroll(key, &own(), &[]).unwrap();
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read line"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let file = std::fs::File::from(enrolment.table);
    file.write_all_at(&child.id().to_ne_bytes(), HEAD_PID as u64)
        .unwrap();
    let start = super::table::started(child.id()).unwrap();
    file.write_all_at(&start.to_ne_bytes(), HEAD_STARTED as u64)
        .unwrap();
    drop(tree);
    // It ends only after the sweep has begun to wait; without the wait the tree would be gone before.
    let waiting = std::time::Instant::now();
    let stdin = child.stdin.take();
    let ended = std::thread::spawn(move || {
        let listening = Duration::from_millis(100);
        while waiting.elapsed() < listening {
            std::thread::yield_now();
        }
        drop(stdin);
        let status = child.wait().unwrap();
        (status, std::time::Instant::now())
    });
    let report = sweep_the_dead(temporary.path());
    let took = waiting.elapsed();
    ended.join().unwrap();
    assert_eq!(report.removed.len(), 1);
    assert!(took >= Duration::from_millis(100), "{took:?}");
}

// Kills.

const VICTIM_BASE: &str = "OFFSHOOT_TEST_JANITOR_BASE";
const VICTIM_OUTSIDE: &str = "OFFSHOOT_TEST_JANITOR_OUTSIDE";

/// What the killed process does. In the test run itself it does nothing: it is for [`killed_at_any_moment`], which starts this test alone, with the
/// variable set, in a process of its own.
#[test]
fn victim() {
    let path = |variable| std::env::var_os(variable).map(PathBuf::from);
    let (Some(base), Some(outside)) = (path(VICTIM_BASE), path(VICTIM_OUTSIDE)) else {
        return;
    };
    let outside = GrantedDir::open(&outside).unwrap();
    let tree = TreeDir::create(Some(&base)).unwrap();
    let table =
        BindTable::create(&tree, ProcessKey::random().unwrap(), vec![outside.clone()]).unwrap();
    let mut dice = Dice(u64::from(std::process::id()) << 20 | 1);
    let mut held = Vec::new();
    for round in 0_u64.. {
        if round == 20 {
            println!("ready");
        }
        let grant = if dice.below(4) == 0 {
            table.private_dir()
        } else {
            outside.clone()
        };
        let name = PathBuf::from(dice.below(10).to_string());
        let made = match dice.below(4) {
            0 => table
                .publish(Kind::File, &grant, &name, |path| std::fs::write(path, "x"))
                .map(|made| made.1),
            _ => table
                .bind_socket(&grant, &name, |path| UnixListener::bind(path).map(drop))
                .map(|made| made.1),
        };
        match made {
            Ok(claim) => held.push(claim),
            Err(ClaimError::AddrInUse { .. }) => {}
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
        if held.len() > dice.below(6) {
            drop(held.swap_remove(dice.below(held.len())));
        }
    }
}

/// Kills at random moments; after each, strangers take some of the names before anybody sweeps, and others while somebody does.
fn kill_at_random_moments(base: &Path, outside: &Path, rounds: usize, seed: u64) {
    let test = module_path!()
        .split_once("::")
        .map_or("victim".into(), |(_, module)| format!("{module}::victim"));
    let mut dice = Dice(seed);
    let (mut found, mut taken) = (0, 0);
    for round in 0..rounds {
        let dirs = (
            TempDir::new_in(base).unwrap(),
            TempDir::new_in(outside).unwrap(),
        );
        let (base, outside) = (dirs.0.path().join("base"), dirs.1.path());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture", "--test-threads=1"])
            .env(VICTIM_BASE, &base)
            .env(VICTIM_OUTSIDE, outside)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(
                output.read_line(&mut line).unwrap(),
                0,
                "the victim ended by itself"
            );
        }
        let moment = Duration::from_nanos(dice.roll() % 3_000_000);
        let start = std::time::Instant::now();
        while start.elapsed() < moment {
            // On a busy machine the victim needs this core to get on.
            std::thread::yield_now();
        }
        child.kill().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()),
            Some(9)
        );
        drop(output.read_to_string(&mut line));

        // Strangers, who know nothing of tables.
        let mut strangers = Vec::new();
        found += names(outside).len();
        for name in 0..10 {
            let path = outside.join(name.to_string());
            if dice.below(3) == 0 {
                // A freed inode number goes to the next file, which is what makes a successor look like its predecessor.
                taken += usize::from(std::fs::remove_file(&path).is_ok());
                let listener = UnixListener::bind(&path).unwrap();
                strangers.push((inode(&path), path, listener));
            }
        }
        let later: Vec<_> = (0..10)
            .filter(|_| dice.below(3) == 0)
            .map(|name| {
                (
                    outside.join(name.to_string()),
                    outside.join(format!("beside-{name}")),
                )
            })
            .filter(|(path, _)| strangers.iter().all(|(_, taken, _)| taken != path))
            .map(|(path, beside)| (UnixListener::bind(&beside).unwrap(), path, beside))
            .collect();
        let report = std::thread::scope(|scope| {
            let replacing = scope.spawn(|| {
                later
                    .iter()
                    .for_each(|(_, path, beside)| std::fs::rename(beside, path).unwrap())
            });
            let report = sweep_dead_trees(Some(&base)).unwrap();
            replacing.join().unwrap();
            report
        });
        strangers.extend(
            later
                .into_iter()
                .map(|(listener, path, _)| (inode(&path), path, listener)),
        );
        assert_eq!(report.removed.len(), 1, "round {round}: {report:?}");
        assert!(
            report
                .swept
                .left
                .iter()
                .all(|left| matches!(left.why, Why::Successor)),
            "round {round}: {report:?}"
        );
        assert!(names(&base).is_empty(), "round {round}");
        let left: BTreeSet<_> = names(outside)
            .into_iter()
            .map(|name| outside.join(name))
            .collect();
        let expected: BTreeSet<_> = strangers.iter().map(|(_, path, _)| path.clone()).collect();
        assert_eq!(left, expected, "round {round}: a leak or a wrong removal");
        for (before, path, _listener) in &strangers {
            assert_eq!(inode(path), *before, "round {round}");
            UnixStream::connect(path).unwrap();
        }
    }
    assert!(
        found > rounds / 2 && taken > 0,
        "the kills found something to sweep: {found}, {taken}"
    );
}

#[test]
fn killed_at_any_moment() {
    let disk = std::env::temp_dir();
    kill_at_random_moments(&disk, &disk, 200, 0x1234_5678_9abc_def1);
}

#[test]
fn killed_at_any_moment_in_memory() {
    let memory = Path::new("/dev/shm");
    kill_at_random_moments(memory, memory, 100, 0x0fed_cba9_8765_4321);
}

#[test]
fn killed_at_any_moment_with_addresses_on_another_file_system() {
    kill_at_random_moments(
        &std::env::temp_dir(),
        Path::new("/dev/shm"),
        100,
        0x0bad_cafe_0bad_cafe,
    );
}

/// What a dead tree has left running in its control groups is ended by the next start, and they are removed; whatever else a tree's file names
/// is left alone.
#[test]
fn the_control_groups_of_a_dead_tree_are_emptied_and_removed() {
    use offshoot_sys::cgroup::Cgroup;
    if let Err(error) = Cgroup::own() {
        eprintln!("no control groups here: {error}");
        return;
    }
    let temporary = TempDir::new().unwrap();
    let base = temporary.path().join("base");
    let tree = TreeDir::create(Some(&base)).unwrap();
    let group = tree.make_cgroup(3).unwrap();
    let inner = group.make("1").unwrap();
    let script = format!(
        "echo 0 > {}/cgroup.procs && echo begun && exec sleep 1000",
        inner.path().display()
    );
    let mut stray = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(stray.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(
        (
            line.as_str(),
            tree.cgroups(None).len(),
            tree.cgroups(Some(1)).len()
        ),
        ("begun\n", 1, 0)
    );
    // A lie: the group of somebody else.
    let other = Cgroup::own()
        .unwrap()
        .make(&format!("offshoot-other-{}", std::process::id()))
        .unwrap();
    std::fs::write(
        tree.path().join("cgroup-4"),
        other.path().as_os_str().as_encoded_bytes(),
    )
    .unwrap();
    std::fs::write(tree.path().join("cgroup-5"), "/tmp").unwrap();
    assert_eq!(tree.cgroups(None).len(), 1);
    let path = tree.path().to_owned();
    // Not while it lives.
    sweep_dead_trees(Some(&base)).unwrap();
    assert!(inner.is_populated());
    drop(tree);
    let report = sweep_the_dead(&base);
    assert!(
        report.swept.removed.contains(&group.path().to_owned()),
        "{report:?}"
    );
    assert!(!group.path().exists() && !path.exists() && other.path().exists());
    assert!(!stray.wait().unwrap().success());
    other.remove().unwrap();
}
