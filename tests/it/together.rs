//! What stands on calls and dialogues: many at once, one to many, one for all.

use futures_util::{StreamExt, stream};
use offshoot::prelude::*;
use offshoot::{Broadcast, Once, Pool};
use offshoot_tests::{Guard, both, held, lines, mark, marked, soon};
use std::cell::Cell;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(3_600);

/// The later the number, the sooner it is done.
async fn square(n: u64) -> u64 {
    let _ = offshoot::sleep(Duration::from_millis(20_u64.saturating_sub(n))).await;
    offshoot_tests::append("by", &offshoot::current().name());
    n * n
}

fn panics_on_b(n: u64) -> u64 {
    assert_ne!(offshoot::current().name(), "b", "on purpose");
    n
}

async fn waits(mut peer: Peer<(), ()>, name: String) -> Result<()> {
    let _guard = Guard(format!("{name} dropped"));
    if name == "fails" {
        held("waits begun").await?;
        "x".parse::<u8>()?;
    }
    peer.started(())?;
    mark(&format!("{name} begun"));
    offshoot::sleep(LONG).await
}

both! {
    async fn a_pool_maps_in_order_and_as_completed(_t: T) {
        offshoot::nursery(async |nursery| {
            let farm = offshoot::gather(["a", "b", "c"].map(|name| nursery.spawn(name))).await?;
            let pool = Pool::new(farm);
            let expected: Vec<u64> = (0..30).map(|n| n * n).collect();

            let results: Vec<_> = pool.map(square, stream::iter(0..30)).collect().await;
            let results: Result<Vec<_>> = results.into_iter().collect();
            assert_eq!(results?, expected);

            let mut mapped = pool.map(square, stream::iter(0..30)).as_completed();
            let mut results = Vec::new();
            while let Some(result) = mapped.next().await? {
                results.push(result);
            }
            results.sort_unstable();
            assert_eq!(results, expected);

            // All of them worked.
            let by = lines("by");
            for name in ["a", "b", "c"] {
                assert!(by.iter().filter(|worker| *worker == name).count() > 5, "{name}: {by:?}");
            }
            let none: Vec<_> = pool.map(square, stream::iter(0..0)).collect().await;
            assert!(none.is_empty());
            Ok(())
        })
        .await?;
    }

    async fn a_pool_goes_on_without_one_that_has_died(_t: T) {
        // In an outer place, which the failure does not cancel.
        offshoot::nursery(async |outer| {
            let a = outer.spawn("a").await?;
            let inner = offshoot::nursery(async |nursery| {
                let b = nursery.spawn("b").await?;
                let pool = Pool::new([a, b]).each(1);
                let mapping = outer.task(async move {
                    let mut mapped = pool.map(panics_on_b, stream::iter(0..20));
                    let (mut good, mut bad) = (0, 0);
                    loop {
                        match mapped.next().await {
                            Ok(Some(_)) => good += 1,
                            Ok(None) => return (good, bad),
                            Err(error) => {
assert!(error.is_panic(), "{error:?}");
                                bad += 1;
                            }
                        }
                    }
                });
                let (good, bad) = mapping.await?;
                assert_eq!(good + bad, 20);
                assert!(good >= 15 && bad >= 1, "{good} {bad}");
                Ok(())
            })
            .await;
            assert!(inner.unwrap_err().is_panic());
            Ok(())
        })
        .await?;
    }

    async fn what_is_gathered_fails_and_ends_together(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let error = offshoot::nursery(async |_| {
                let names = ["waits", "fails"].map(str::to_owned);
                offshoot::gather(names.map(|name| p.open(waits, name))).await
            })
            .await
            .unwrap_err();
            assert!(error.to_string().contains("invalid digit"), "{error:?}");
            assert!(marked("waits dropped") && marked("fails dropped"));
            let none: Vec<u8> = offshoot::gather(std::iter::empty::<std::future::Ready<Result<u8>>>()).await?;
            assert!(none.is_empty());
            Ok(())
        })
        .await?;
    }

    async fn a_broadcast_holds_up_nobody_and_tells_each_what_it_missed(_t: T) {
        async fn subscribers() -> Result<Vec<u64>> {
            let numbers = Broadcast::new(4);
            let mut slow = numbers.subscribe();
            let mut fast = numbers.subscribe();
            offshoot::nursery(async |nursery| {
                let taking = nursery.task(async {
                    let mut all = Vec::new();
                    while let Some(n) = fast.next().await? {
                        all.push(n);
                    }
                    Ok::<_, offshoot::Error>(all)
                });
                for n in 0..10_u64 {
                    assert_eq!(numbers.send(n), 2);
                    // The fast one gets its turn.
                    offshoot::checkpoint().await?;
                    offshoot::checkpoint().await?;
                }
                assert_eq!(slow.next().await.unwrap_err().lagged(), Some(6));
                let mut other = slow.clone();
                assert_eq!(slow.next().await?, Some(6));
                assert_eq!(other.next().await?, Some(6));
                drop(other);
                assert_eq!(numbers.subscribers(), 2);
                numbers.send(10);
                drop(numbers);
                for n in 7..=10 {
                    assert_eq!(slow.next().await?, Some(n));
                }
                assert_eq!(slow.next().await?, None);
                taking.await?
            })
            .await
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            assert_eq!(p.call(subscribers, ()).await??, (0..=10).collect::<Vec<_>>());
            Ok(())
        })
        .await?;
    }

    async fn what_is_shared_is_opened_by_the_first_and_closed_after_the_last(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let once = Once::new();
            let opened = Cell::new(0);
            offshoot::nursery(async |users| {
                let open = async || {
                    opened.set(opened.get() + 1);
                    offshoot::checkpoint().await?;
                    Ok(p.open(waits, "shared".to_owned()).await?.0)
                };
                let leases = users.task(offshoot::gather([once.get(open), once.get(open), once.get(open)]));
                let leases = leases.await??;
                assert_eq!((leases.len(), opened.get()), (3, 1));
                for lease in leases {
                    assert!(once.is_open() && !marked("shared dropped"));
                    drop(lease);
                }
                assert!(!once.is_open());
                soon("it is closed", || marked("shared dropped")).await?;
                // One that fails fails its own caller only.
                let failed = once.get(async || Err(offshoot::Error::other("no"))).await;
                assert!(failed.is_err());
                drop(once.get(open).await?);
                assert_eq!(opened.get(), 2);
                Ok(())
            })
            .await
        })
        .await?;
    }
}
