//! As many processes as are promised, alive at once and answering.

use futures_util::future::try_join_all;
use offshoot_tests::processes;
use std::time::{Duration, Instant};

const MANY: u64 = 1_000;
/// How many are started at once: each start is watched by a timer and a descriptor of its own.
const AT_ONCE: u64 = 50;

async fn double(n: u64) -> u64 {
    n * 2
}

processes! {
    /// A thousand processes in one tree. What limits their number is the owner's descriptors, two for each, and
    /// the system's processes; their memory is what each has written to.
    fn a_thousand_processes_answer(t: T) {
        t.within(Duration::from_secs(150));
        let began = Instant::now();
        let after_end = t.builder().run(async move || {
            let mut all_at = began;
            offshoot::nursery(async |nursery| {
                let mut alive = Vec::new();
                for start in (0..MANY).step_by(AT_ONCE as usize) {
                    let spawns = (start..start + AT_ONCE).map(|n| nursery.spawn(format!("p-{n}")));
                    alive.extend(try_join_all(spawns).await?);
                }
                let up = began.elapsed();
                // All at once, twice: the second time all are awake.
                for round in 0..2 {
                    let calls = (0..).zip(&alive).map(|(n, p)| p.call(double, n + round));
                    let answers = try_join_all(calls).await?;
                    assert_eq!(answers.len() as u64, MANY);
                    assert!((0..).zip(answers).all(|(n, answer)| answer == 2 * (n + round)));
                }
                let pids = try_join_all(alive.iter().map(|p| p.call(std::process::id, ()))).await?;
                let different: std::collections::BTreeSet<u32> = pids.into_iter().collect();
                assert_eq!(different.len() as u64, MANY);
                let descriptors = std::fs::read_dir("/proc/self/fd")?.count();
                assert!(descriptors < 2 * MANY as usize + 100, "{descriptors} descriptors");
                let answered = began.elapsed();
                println!("all up after {up:?}, all have answered thrice after {answered:?}, {descriptors} descriptors");
                all_at = Instant::now();
                Ok(())
            })
            .await?;
            Ok(all_at.elapsed())
        });
        println!("all reaped and swept within {:?}", after_end.expect("all end"));
    }
}
