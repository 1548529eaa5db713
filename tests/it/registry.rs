//! What isolates register: it is there as long as its guard, and gone with its process, however that ends.

use offshoot::prelude::*;
use offshoot::{
    RegisteredPath, create_file, create_shared_memory, pid_file, register_path,
    register_shared_memory,
};
use offshoot_tests::{both, dir, lines, processes};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A name that no other test has.
fn memory(name: &str) -> String {
    let dir = dir();
    let of_test = dir.file_name().expect("a name").to_string_lossy();
    format!("{of_test}-{name}")
}

fn in_memory(name: &str) -> PathBuf {
    Path::new("/dev/shm").join(memory(name))
}

/// One of each, in whatever isolate this runs.
async fn all() -> Result<Vec<RegisteredPath>> {
    let file = dir().join("file");
    fs::write(&file, "x")?;
    let socket = dir().join("socket");
    // Made by means that know nothing of tables; its descriptor goes at once, the path stays.
    drop(UnixListener::bind(&socket)?);
    fs::write(in_memory("found"), "x")?;
    let (made, memory_made) = create_shared_memory(&memory("made"), 4096).await?;
    assert_eq!(made.metadata()?.len(), 4096);
    Ok(vec![
        register_path(&file).await?,
        register_path(&socket).await?,
        pid_file(dir().join("pid")).await?,
        create_file(dir().join("whole"), |path| fs::write(path, "whole"))
            .await?
            .1,
        memory_made,
        register_shared_memory(&format!("/{}", memory("found"))).await?,
    ])
}

fn paths() -> [PathBuf; 6] {
    [
        dir().join("file"),
        dir().join("socket"),
        dir().join("pid"),
        dir().join("whole"),
        in_memory("made"),
        in_memory("found"),
    ]
}

fn exist() -> usize {
    paths()
        .iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .count()
}

async fn register_and_drop() -> Result<()> {
    let guards = all().await?;
    assert_eq!((guards.len(), exist()), (6, 6));
    let found: Vec<_> = guards.iter().map(|guard| guard.path().to_owned()).collect();
    assert_eq!(found, paths());
    drop(guards);
    assert_eq!(exist(), 0);
    Ok(())
}

/// Ends with its guards still held by a task that never ends.
async fn register_and_hold() -> Result<()> {
    let _guards = all().await?;
    offshoot_tests::append("held", &std::process::id().to_string());
    loop {
        offshoot::sleep(std::time::Duration::from_secs(3600)).await?;
    }
}

async fn unregister() -> Result<()> {
    for guard in all().await? {
        guard.unregister();
    }
    Ok(())
}

async fn pid_in_file() -> Result<(String, u32)> {
    let guard = pid_file(dir().join("pid")).await?;
    let taken = pid_file(dir().join("pid")).await.expect_err("it is there");
    assert!(
        taken.to_string().contains("something lies there already"),
        "{taken}"
    );
    Ok((fs::read_to_string(guard.path())?, std::process::id()))
}

async fn refusals() -> Result<Vec<String>> {
    let mut said = Vec::new();
    for name in ["", "/", "a/b", "a\0b"] {
        said.push(
            create_shared_memory(name, 1)
                .await
                .expect_err("no name")
                .to_string(),
        );
        said.push(
            register_shared_memory(name)
                .await
                .expect_err("no name")
                .to_string(),
        );
    }
    let missing = [dir().join("absent"), dir(), dir().join("absent/file")];
    for path in missing {
        said.push(register_path(&path).await.expect_err("no file").to_string());
    }
    said.push(
        register_shared_memory(&memory("absent"))
            .await
            .expect_err("absent")
            .to_string(),
    );
    let nothing = create_file(dir().join("nothing"), |_| Ok(())).await;
    said.push(nothing.expect_err("nothing was made").to_string());
    let refused = create_file(dir().join("nothing"), |_| -> std::io::Result<()> {
        Err(std::io::Error::other("not today"))
    });
    said.push(refused.await.expect_err("it refused").to_string());
    let (_file, _guard) = create_shared_memory(&memory("made"), 1).await?;
    said.push(
        create_shared_memory(&memory("made"), 1)
            .await
            .expect_err("taken")
            .to_string(),
    );
    Ok(said)
}

both! {
    async fn guards_remove_what_they_guard(_t: T) {
        offshoot::nursery(async |nursery| {
            nursery.spawn("one").await?.call(register_and_drop, ()).await?
        }).await?;
        assert_eq!(exist(), 0);
    }

    async fn an_isolate_that_is_cancelled_leaves_nothing(_t: T) {
        let _ = offshoot::nursery(async |nursery| {
            let one = nursery.spawn("one").await?;
            nursery.task(async move { one.call(register_and_hold, ()).await? }).detach();
            while lines("held").is_empty() {
                offshoot::sleep(std::time::Duration::from_millis(1)).await?;
            }
            assert_eq!(exist(), 6);
            Err::<(), _>(offshoot::Error::other("enough"))
        }).await;
        assert_eq!(exist(), 0);
    }

    async fn what_is_unregistered_stays(_t: T) {
        offshoot::nursery(async |nursery| {
            nursery.spawn("one").await?.call(unregister, ()).await?
        }).await?;
        assert_eq!(exist(), 6);
        for path in paths() {
            fs::remove_file(path)?;
        }
    }

    async fn a_pid_file_says_whose_it_is(_t: T) {
        offshoot::nursery(async |nursery| {
            let (text, pid) = nursery.spawn("one").await?.call(pid_in_file, ()).await??;
            assert_eq!(text, format!("{pid}\n"));
            Ok(())
        }).await?;
        assert!(!dir().join("pid").exists());
    }

    async fn what_cannot_be_registered_is_refused_by_name(_t: T) {
        offshoot::nursery(async |nursery| {
            let said = nursery.spawn("one").await?.call(refusals, ()).await??;
            assert_eq!(said.len(), 15);
            for text in &said[..8] {
                assert!(text.contains("no name of shared memory"), "{text}");
            }
            assert!(said[8].contains("absent") && said[9].contains("register"), "{said:#?}");
            assert!(said[12].contains("nothing") && said[13].contains("not today"), "{said:#?}");
            assert!(said[14].contains("something lies there already"), "{}", said[14]);
            assert!(!dir().join("nothing").exists());
            Ok(())
        }).await?;
        assert!(!in_memory("made").exists());
    }
}

processes! {
    async fn a_process_that_is_killed_leaves_nothing(_t: T) {
        let ended = offshoot::nursery(async |nursery| {
            let one = nursery.spawn("one").await?;
            let pid = one.origin().pid;
            nursery.task(async move { one.call(register_and_hold, ()).await? }).detach();
            while lines("held").is_empty() {
                offshoot::sleep(std::time::Duration::from_millis(1)).await?;
            }
            assert_eq!(exist(), 6);
            offshoot_sys::pidfd::Pidfd::open(pid)?.kill()?;
            offshoot::cancelled().await;
            Ok(())
        }).await;
        assert!(ended.is_err(), "it was killed");
        assert_eq!(exist(), 0, "the nursery has returned, and so it is swept");
    }
}
