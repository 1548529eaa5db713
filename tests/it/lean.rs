//! Trees of lean threads do what others do, with half of the mappings.

use offshoot::prelude::*;
use offshoot_sys::limits;
use offshoot_tests::threads;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

async fn fails() -> u32 {
    panic!("as it should");
}

async fn stays() -> Result<()> {
    offshoot::sleep(Duration::from_secs(60)).await
}

/// The name for `std` and the one for the kernel.
fn names() -> (Option<String>, String) {
    let kernel = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    let std = std::thread::current().name().map(ToOwned::to_owned);
    (std, kernel.trim_end().to_owned())
}

struct Counts(Arc<AtomicU32>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

thread_local! {
    static KEPT: Cell<Option<Counts>> = const { Cell::new(None) };
}

threads! {
    fn lean_threads_live_fail_and_end_as_others(t: T) {
        for reserve in [0, 2] {
            let dropped = Arc::new(AtomicU32::new(0));
            let count = dropped.clone();
            let builder = t.builder().lean_threads(true).reserve_threads(reserve);
            let error = builder
                .run(async move || {
                    offshoot::nursery(async |nursery| {
                        let one = nursery.spawn_local("one").await?;
                        let kept = Counts(count);
                        one.run(async move || KEPT.set(Some(kept))).await?;
                        let (std, kernel) = one.call(names, ()).await?;
                        assert_eq!((std, kernel.as_str()), (None, "one"));
                        let waits = nursery.spawn("waits").await?;
                        let waiting = nursery.task(async move { waits.call(stays, ()).await });
                        let fails_soon = nursery.spawn(Isolate::named("fails").stack_size(256 << 10)).await?;
                        let panic = fails_soon.call(fails, ()).await.unwrap_err();
                        assert!(panic.is_panic() && panic.to_string().contains("as it should"));
                        waiting.await???;
                        Ok(())
                    })
                    .await
                })
                .unwrap_err();
            assert!(error.is_panic(), "{}", error.report());
            assert_eq!(dropped.load(Ordering::SeqCst), 1, "thread-locals are destroyed");
        }
    }

    fn a_lean_thread_takes_two_mappings(t: T) {
        const MANY: u64 = 200;
        let builder = t.builder().lean_threads(true).reserve_threads(0);
        builder
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let first = nursery.spawn("first").await?;
                    first.call(names, ()).await?;
                    let before = limits::mappings_now().unwrap();
                    for n in 0..MANY {
                        nursery.spawn(format!("p{n}")).await?.call(names, ()).await?;
                    }
                    let more = limits::mappings_now().unwrap() - before;
                    // The allocator's arenas, of which there is a bounded number, take some, too.
                    assert!(more <= 2 * MANY + 100, "{more} for {MANY}");
                    Ok(())
                })
                .await
            })
            .unwrap();
    }
}
