//! Each program of `isolates/`, run by the built command: what it prints, its exit code, and that
//! nothing is left of it. For threads and for processes from one source.

mod bench;
mod command;

use command::{Command, eventually};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const BOTH: [&str; 2] = ["thread", "process"];

/// The standard output up to the figures, which differ from run to run.
fn result(stdout: &str) -> String {
    let (result, figures) = stdout.rsplit_once("; ").expect("a line of figures");
    let times = figures.matches(" ms").count();
    assert!(figures.ends_with(" ms\n") && times >= 1, "{figures}");
    result.to_owned()
}

/// Text of about `size` bytes with the words `number0` to `number96`, and how often each is in there.
fn text(size: usize) -> (String, HashMap<String, u64>) {
    let (mut text, mut counts) = (String::new(), HashMap::new());
    let mut n: u64 = 1;
    while text.len() < size {
        n = n
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = format!("number{}", (n >> 33) % 97);
        text += &word;
        text.push(if n >> 60 == 0 { '\n' } else { ' ' });
        *counts.entry(word).or_default() += 1;
    }
    (text, counts)
}

#[test]
fn words_are_counted_the_same_by_any_number_of_threads_and_processes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Large enough to be cut into pieces in the middle of words.
    let (large, mut counts) = text(5 << 20);
    let cut = (1..5).filter(|mib| !large[(mib << 20) - 1..].starts_with([' ', '\n']));
    let cut = cut.filter(|mib| !large[mib << 20..].starts_with([' ', '\n']));
    assert!(cut.count() >= 2, "pieces begin in the middle of words");
    fs::write(at("large.txt"), &large).unwrap();
    fs::create_dir_all(at("deep/er")).unwrap();
    fs::write(at("deep/er/small.txt"), "W1 don't, W1's “W2”").unwrap();
    for (word, n) in [("w1", 1), ("don't", 1), ("w1's", 1), ("w2", 1)] {
        *counts.entry(word.to_owned()).or_default() += n;
    }
    fs::write(at("empty.txt"), "").unwrap();
    // All of these are left out.
    fs::write(at("binary"), b"w1 w1 \0").unwrap();
    fs::write(at(".hidden"), "w1").unwrap();
    fs::create_dir(at("cache")).unwrap();
    fs::write(at("cache/CACHEDIR.TAG"), "w1").unwrap();
    fs::create_dir(at("target")).unwrap();
    fs::write(at("target/w.txt"), "w1").unwrap();
    fs::write(at("Cargo.toml"), "").unwrap();
    symlink(at("large.txt"), at("link.txt")).unwrap();

    let mut ranked: Vec<_> = counts.iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let grouped = |n: u64| match n {
        0..1_000 => n.to_string(),
        n => format!("{},{:03}", n / 1_000, n % 1_000),
    };
    let mut wanted: String = ranked[..4]
        .iter()
        .map(|(word, n)| format!("{}  {word}\n", grouped(**n)))
        .collect();
    let bytes = large.len() as u64 + 23;
    wanted += &format!(
        "4 files, {},{:03},{:03} bytes, {} words ({} different)",
        bytes / 1_000_000,
        bytes / 1_000 % 1_000,
        bytes % 1_000,
        grouped(counts.values().sum()),
        counts.len()
    );
    for isolation in ["thread", "process", "serde"] {
        for workers in ["1", "2", "7"] {
            let args = [
                "run",
                "words",
                "--top",
                "4",
                "--isolation",
                isolation,
                "--workers",
                workers,
            ];
            let done = Command::new(&args).arg(dir.path()).run();
            assert_eq!(result(&done.stdout), wanted, "{isolation} {workers}");
            assert_eq!(done.code, Some(0));
            assert_eq!(done.stderr, "note: 1 binary file passed over\n");
        }
    }
    let plain = Command::new(&["run", "words", "--top", "4", "--baseline"])
        .arg(dir.path())
        .run();
    assert_eq!(result(&plain.stdout), wanted);
}

/// By `-`, by the name of a pipe, and by that of the standard input; large enough to be cut into pieces.
#[test]
fn words_of_a_pipe_are_counted() {
    let (text, counts) = text(3 << 20);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file.txt");
    fs::write(&file, &text).unwrap();
    for isolation in BOTH {
        let args = ["run", "words", "--isolation", isolation];
        let wanted = result(&Command::new(&args).arg(&file).run().stdout);
        for path in ["-", "/dev/stdin"] {
            let (output, mut input) = std::io::pipe().unwrap();
            let bytes = text.clone();
            let writer =
                std::thread::spawn(move || std::io::Write::write_all(&mut input, bytes.as_bytes()));
            let mut command = Command::new(&args);
            command.arg(Path::new(path)).stdin(output.into());
            let done = command.run();
            assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
            assert_eq!(result(&done.stdout), wanted, "{path}");
            drop(command);
            writer.join().unwrap().unwrap();
        }
        assert!(
            wanted.contains(&format!("({} different)", counts.len())),
            "{wanted}"
        );
    }
}

#[test]
fn what_words_cannot_read_is_named_and_the_rest_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("good.txt"), "one two").unwrap();
    let (good, missing) = (dir.path().join("good.txt"), dir.path().join("miss\ning"));
    for isolation in BOTH {
        let done = Command::new(&["run", "words", "--isolation", isolation])
            // A regular file that can be opened, but whose first page cannot be read.
            .arg(Path::new("/proc/self/mem"))
            .arg(&missing)
            .arg(Path::new("/dev/null"))
            .arg(&good)
            .run();
        assert_eq!(done.code, Some(1), "{done:?}");
        // A control character in a name does not reach the terminal.
        let name = missing.to_str().unwrap().replace('\n', "\u{fffd}");
        let mut lines: Vec<&str> = done.stderr.lines().collect();
        lines.sort_unstable();
        let missing = format!("error: {name}: No such file or directory (os error 2)");
        let mut wanted = [
            "error: /dev/null: neither a file nor a directory",
            "error: /proc/self/mem: Input/output error (os error 5)",
            &missing,
        ];
        wanted.sort_unstable();
        assert_eq!(lines, wanted);
        assert!(done.stdout.contains("1 file, 7 bytes, 2 words"), "{done:?}");
    }
}

#[test]
fn nobody_who_reads_ends_words_quietly() {
    let dir = tempfile::tempdir().unwrap();
    for isolation in BOTH {
        let args = ["run", "words", "--isolation", isolation];
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let done = Command::new(&args)
            .arg(dir.path())
            .run_to(Stdio::from(writer));
        assert_eq!((done.code, done.stderr.as_str()), (Some(141), ""));
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let done = Command::new(&args)
            .arg(dir.path())
            .run_to(Stdio::from(full));
        let wanted =
            "error: cannot write to the standard output: No space left on device (os error 28)\n";
        assert_eq!((done.code, done.stderr.as_str()), (Some(1), wanted));
    }
}

#[test]
fn words_that_is_interrupted_takes_its_tree_down() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large.txt");
    fs::write(&file, text(8 << 20).0).unwrap();
    for (isolation, processes) in [("thread", 1), ("process", 6)] {
        for (signal, code, word) in [("INT", 130, "interrupted\n"), ("TERM", 143, "terminated\n")] {
            let mut command = Command::new(&["run", "words", "--isolation", isolation]);
            // Minutes of work.
            (0..2_000).for_each(|_| {
                command.arg(&file);
            });
            let running = command.start();
            // All of the tree: the root, the forkserver, the reader, the merger and two counters.
            eventually("the tree is there", || {
                running.threads() >= 5 || running.processes().len() >= processes.max(2)
            });
            if isolation == "process" {
                assert_eq!(
                    running.tree_dirs().len(),
                    1,
                    "the oracle sees what it looks for"
                );
            }
            running.signal(signal);
            let done = running.finish();
            assert_eq!(done.code, Some(code), "{done:?}");
            assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", word));
        }
    }
}

#[test]
fn primes_are_counted_the_same_by_any_number_of_threads_and_processes() {
    for isolation in ["thread", "process", "serde"] {
        for workers in ["1", "3"] {
            let args = [
                "run",
                "primes",
                "5000000",
                "--top",
                "2",
                "--isolation",
                isolation,
            ];
            let done = Command::new(&args)
                .arg(Path::new("--workers"))
                .arg(Path::new(workers))
                .run();
            assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
            assert_eq!(result(&done.stdout), "4999999\n4999963\n348,513 primes");
        }
    }
}

/// Runs a bad one that must not end well; its report.
fn fails(name: &str, isolation: &str) -> String {
    let done = Command::new(&["run", name, "--isolation", isolation]).run();
    assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""), "{done:?}");
    let (before, after) = done
        .stderr
        .split_once("note: all isolates were down after ")
        .unwrap();
    let millis: u64 = after.split(' ').next().unwrap().parse().unwrap();
    // The longest ladder among them is 0.6 s, after a patience of 0.1 s.
    assert!(millis < 3_000, "{millis} ms");
    let (_, report) = after.split_once("error: ").unwrap();
    assert!(!before.contains("error: "), "{before}");
    // What a panic says by itself has a name, also on the main thread of a process.
    assert!(!before.contains("<unnamed>"), "{before}");
    let named = before.contains("isolate 'root/panics' (");
    let wanted = (name, isolation) == ("bad_panics", "process");
    assert_eq!(named, wanted, "{before}");
    report.to_owned()
}

#[test]
fn bad_panics_is_reported_once_with_its_place() {
    for isolation in BOTH {
        let report = fails("bad_panics", isolation);
        let first = "isolate `root/panics` panicked: asked to divide 21 by zero (at isolates/bad_panics/src/lib.rs:";
        assert!(report.starts_with(first), "{report}");
        assert_eq!(report.matches("asked to divide").count(), 1, "{report}");
    }
}

#[test]
fn bad_hangs_is_abandoned_as_a_thread_and_killed_as_a_process() {
    for (isolation, end) in [
        ("thread", "was abandoned: "),
        ("process", "was killed by SIGKILL: "),
    ] {
        let report = fails("bad_hangs", isolation);
        assert!(
            report.contains("1. it did not end within 100ms\n"),
            "{report}"
        );
        assert!(
            report.contains(&format!("2. isolate `root/hangs` {end}")),
            "{report}"
        );
    }
}

#[test]
fn a_crash_ends_a_process_only_but_with_a_thread_the_program() {
    for (name, signal, number) in [
        ("bad_segfaults", "SIGSEGV", 11),
        ("bad_aborts", "SIGABRT", 6),
    ] {
        let isolate = name.strip_prefix("bad_").unwrap();
        let report = fails(name, "process");
        let wanted = format!("isolate `root/{isolate}` was killed by {signal}");
        assert!(report.starts_with(&wanted), "{report}");
        let done = Command::new(&["run", name, "--isolation", "thread"]).run();
        assert_eq!((done.code, done.signal), (None, Some(number)), "{done:?}");
        let wanted = format!(
            "note: as a thread, this ends the whole program with {signal}; `--isolation process` contains it\n"
        );
        assert_eq!((done.stdout.as_str(), done.stderr), ("", wanted));
    }
}

#[test]
fn bad_exits_ends_a_process_only_but_with_a_thread_the_program() {
    let report = fails("bad_exits", "process");
    let wanted = "isolate `root/exits` ended: its process exited by itself with code 3";
    assert!(report.starts_with(wanted), "{report}");
    let done = Command::new(&["run", "bad_exits", "--isolation", "thread"]).run();
    assert_eq!(done.code, Some(3), "{done:?}");
    assert!(done.stderr.starts_with("note: as a thread, "), "{done:?}");
}

#[test]
fn bad_ignores_cancel_ends_when_its_grace_is_over() {
    for isolation in BOTH {
        let done = Command::new(&["run", "bad_ignores_cancel", "--isolation", isolation]).run();
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
        let rest = done
            .stdout
            .strip_prefix("ignores_cancel: cancelled by root\nits end came ")
            .unwrap();
        let millis: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        // Not before its grace, and not by force. A busy machine may be late.
        assert!((199..600).contains(&millis), "{millis} ms");
    }
}

#[test]
fn bad_leaks_fd_leaves_its_files_to_a_program_but_not_beyond_its_process() {
    for (isolation, left) in [("thread", 100), ("process", 0)] {
        let done = Command::new(&["run", "bad_leaks_fd", "--isolation", isolation]).run();
        let wanted =
            format!("leaked 100 descriptors, {left} are still open after the isolate's end\n");
        assert_eq!((done.code, done.stdout), (Some(0), wanted));
        assert_eq!(done.stderr, "");
    }
}

#[test]
fn bad_floods_is_held_back_and_nobody_else_is() {
    for isolation in BOTH {
        let done = Command::new(&["run", "bad_floods", "--isolation", isolation]).run();
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
        let numbers: Vec<u64> = done
            .stdout
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect();
        let [offered, accepted, refused, waited, sent, finished, ..] = numbers[..] else {
            panic!("{}", done.stdout)
        };
        // Sixteen, and what the receiver began meanwhile.
        assert!((16..32).contains(&accepted), "{}", done.stdout);
        assert_eq!((offered, refused), (1_000, 1_000 - accepted));
        // Two milliseconds for each that had to make room.
        assert!(waited >= 2 * (sent - 1), "{}", done.stdout);
        assert_eq!(finished, accepted + sent);
    }
}

#[test]
fn topics_lose_nothing_without_saying_so() {
    for isolation in BOTH {
        let args = [
            "run",
            "topics",
            "3000",
            "--subscribers",
            "2",
            "--isolation",
            isolation,
        ];
        let done = Command::new(&args).run();
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(lines.len(), 3, "{}", done.stdout);
        for (n, line) in lines[..2].iter().enumerate() {
            let counts = line
                .strip_prefix(&format!("subscriber {n}: received "))
                .and_then(|counts| counts.split_once(", missed "))
                .map(|(a, b)| [a, b].map(|count| count.replace(',', "").parse::<u64>().unwrap()));
            assert_eq!(
                counts.map(|[received, missed]| received + missed),
                Some(3_000),
                "{}",
                done.stdout
            );
        }
        assert!(lines[2].starts_with("3,000 published; "), "{}", lines[2]);
    }
}

#[test]
fn without_a_name_run_lists_every_program() {
    let done = Command::new(&["run"]).run();
    assert_eq!(done.code, Some(0));
    let isolates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../isolates");
    let mut names: Vec<String> = fs::read_dir(isolates)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut listed: Vec<&str> = done
        .stdout
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once("  "))
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, names);
}

#[test]
fn without_arguments_words_runs_here_and_says_how_to_go_on() {
    for isolation in BOTH {
        let mut command = Command::new(&[]);
        command.env("OFFSHOOT_ISOLATION", isolation);
        fs::write(command.directory().join("here.txt"), "here, here").unwrap();
        let done = command.run();
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
        assert!(
            done.stdout
                .starts_with("2  here\n1 file, 10 bytes, 2 words"),
            "{}",
            done.stdout
        );
        let commands = done
            .stdout
            .lines()
            .filter(|line| line.starts_with("  offshoot run"));
        assert_eq!(commands.count(), 3);
    }
}

#[test]
fn wrong_arguments_are_told_apart_from_failures() {
    for args in [
        &["run", "nothing"][..],
        &["run", "words", "--isolation", "fiber"],
        &["run", "words", "--workers", "0"],
        &["run", "primes", "many"],
        &["--nonsense"],
    ] {
        let done = Command::new(args).run();
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(
            done.stderr.starts_with("error: "),
            "{args:?}: {}",
            done.stderr
        );
    }
    let mut command = Command::new(&[]);
    command.env("OFFSHOOT_ISOLATION", "fiber");
    let done = command.run();
    assert_eq!(done.code, Some(2));
    assert!(
        done.stderr.contains("OFFSHOOT_ISOLATION is `fiber`")
            && !done.stderr.contains("--isolation"),
        "{}",
        done.stderr
    );
    // One that is named counts, whatever the environment says, and is what is blamed.
    let mut command = Command::new(&["run", "primes", "10", "--isolation", "fiber"]);
    command.env("OFFSHOOT_ISOLATION", "banana");
    let done = command.run();
    assert!(
        done.stderr.contains("--isolation") && done.stderr.contains("fiber"),
        "{}",
        done.stderr
    );
    for level in ["banana", "debug,banana", "offshoot=banana"] {
        let mut command = Command::new(&["run", "primes", "10"]);
        command.env("OFFSHOOT_LOG", level);
        let done = command.run();
        assert_eq!(done.code, Some(2), "{level}");
        let told = format!("OFFSHOOT_LOG is `{level}`");
        assert!(done.stderr.contains(&told), "{}", done.stderr);
    }
    let help = Command::new(&["run", "words", "--help"]).run();
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    assert!(help.stdout.contains("--workers") && help.stdout.contains("--baseline"));
}

#[test]
fn the_log_speaks_when_it_is_asked_to() {
    for (level, speaks) in [("off", false), ("trace", true)] {
        let mut command = Command::new(&["run", "primes", "100", "--isolation", "process"]);
        command.env("OFFSHOOT_LOG", level);
        let done = command.run();
        assert_eq!(done.code, Some(0));
        assert_eq!(!done.stderr.is_empty(), speaks, "{}", done.stderr);
    }
}

#[test]
fn a_hurry_of_runs_leaves_nothing() {
    // Short trees, one after the other: what one leaves, the next would sweep and hide.
    let begun = std::time::Instant::now();
    for n in 0.. {
        let isolation = BOTH[n % 2];
        let done = Command::new(&["run", "primes", "10", "--isolation", isolation]).run();
        assert_eq!(result(&done.stdout), "7\n5\n3\n4 primes");
        if begun.elapsed() > Duration::from_secs(1) {
            break;
        }
    }
}
