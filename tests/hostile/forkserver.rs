//! Each request to the forkserver, sent by an isolate that speaks to it by hand: docs/hostile.md has the answers.

use crate::wire::pair;
use offshoot::prelude::*;
use offshoot::testing::hostile;
use offshoot::{Error, Result};
use offshoot_sys::socket;
use offshoot_tests::processes;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What may be sent instead of a request.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Kind {
    Fitting,
    /// The request with as many descriptors as a packet takes.
    Descriptors,
    Cut,
    Rubbish,
}

const KINDS: [Kind; 4] = [Kind::Fitting, Kind::Descriptors, Kind::Cut, Kind::Rubbish];

/// Binds a file, and then says this to the forkserver.
async fn say(path: PathBuf, number: usize, kind: Kind) -> Result<()> {
    // It stays until the process ends.
    std::mem::forget(offshoot::pid_file(path).await?);
    let control = hostile::forkserver()?;
    let (_, mut packet) = hostile::requests()?.swap_remove(number);
    // Of a connection that nobody serves.
    let (_ours, theirs) = pair()?;
    let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
    match kind {
        Kind::Fitting => {}
        Kind::Descriptors => fds = vec![theirs.as_fd(); 16],
        Kind::Cut => packet.truncate(packet.len() - 1),
        Kind::Rubbish => packet = vec![0xff; 3],
    }
    socket::send_packet(&control, &packet, &fds)?;
    Ok(())
}

/// Has the forkserver serve this process.
async fn spawn_below() -> Result<u64> {
    offshoot::nursery(async |nursery| {
        let below = nursery.spawn(Isolate::named("below").process()).await?;
        below.call(double, 21).await
    })
    .await
}

async fn double(n: u64) -> u64 {
    2 * n
}

/// The rows of the table, by request: what comes of a fitting one, and of anything else.
fn table() -> BTreeMap<String, [String; 2]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hostile.md");
    let text = std::fs::read_to_string(path).expect("docs/hostile.md");
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| request `"));
    rows.map(|row| {
        let (name, rest) = row.split_once('`').expect("a name");
        let cell = rest.split('|').nth(1).unwrap_or_default().trim();
        let (fitting, other) = cell.split_once(" / ").unwrap_or((cell, cell));
        (name.to_owned(), [fitting, other].map(str::to_owned))
    })
    .collect()
}

/// What comes of it for the isolate that says it.
async fn of_isolate(path: &Path, number: usize, kind: Kind) -> String {
    let mut outcome = String::new();
    let ended: Result<()> = offshoot::nursery(async |nursery| {
        let evil = nursery.spawn("evil").await?;
        let said = evil.call(say, (path.to_owned(), number, kind)).await;
        let served = match said {
            Ok(said) => {
                said?;
                evil.call(spawn_below, ()).await
            }
            Err(error) => Err(error),
        };
        outcome = match served {
            Ok(Ok(served)) => {
                assert_eq!(served, 42);
                "lives".to_owned()
            }
            Ok(Err(error)) | Err(error) => error.report(),
        };
        evil.call(double, 1).await?;
        Ok(())
    })
    .await;
    match ended {
        Ok(()) => outcome,
        Err(error) if error.report().contains("broke the protocol") => "ends".to_owned(),
        Err(error) => format!("{outcome}, {}", error.report()),
    }
}

processes! {
    async fn each_request_to_the_forkserver_has_its_answer(t: T) {
        t.within(Duration::from_secs(150));
        let mut table = table();
        let mut wrong = Vec::new();
        let dir = tempfile::tempdir().map_err(Error::from)?;
        let path = dir.path().join("held");
        offshoot::nursery(async |nursery| {
            let honest = nursery.spawn("honest").await?;
            let names = hostile::requests()?.into_iter().map(|(name, _)| name);
            for (number, name) in names.enumerate() {
                let row = table.remove(&name).unwrap_or_default();
                for kind in KINDS {
                    let came = of_isolate(&path, number, kind).await;
                    let fits = matches!(kind, Kind::Fitting | Kind::Descriptors);
                    let said = &row[usize::from(!fits)];
                    if *said != came {
                        wrong.push(format!("{name}, {kind:?}: {came}, not {said}"));
                    }
                    // Whatever came of it, it is not forgotten.
                    assert!(!path.exists(), "{name}, {kind:?}: its file is left");
                    assert_eq!(honest.call(spawn_below, ()).await??, 42);
                }
            }
            Ok(())
        })
        .await?;
        assert!(wrong.is_empty() && table.is_empty(), "{wrong:#?}\nno requests: {:?}", table.keys());
    }
}
