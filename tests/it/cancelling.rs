//! P4: whoever is cancelled learns by whom, and so does its parent; a cancel is acknowledged, and
//! idempotent.

use offshoot::prelude::*;
use offshoot::{Cancel, Canceller, current};
use offshoot_tests::{Guard, append, both, held, hold, lines, mark, marked, soon, waits};
use std::time::{Duration, Instant};

async fn until_cancelled(name: String) {
    let _guard = Guard(format!("{name} dropped"));
    mark(&format!("{name} begun"));
    let cancel = offshoot::cancelled().await;
    append(&format!("{name} cancelled"), &cancel.to_string());
}

async fn endless(name: String) {
    let _guard = Guard(format!("{name} dropped"));
    mark(&format!("{name} begun"));
    std::future::pending::<()>().await;
}

fn nothing() {}

fn author(exit: &Exit) -> Option<&Canceller> {
    match exit {
        Exit::Cancelled(Cancel { by }) => Some(by),
        _ => None,
    }
}

/// A child with a child of its own, which says what it saw.
async fn middle() -> Result<()> {
    offshoot::nursery(async |nursery| {
        waits(nursery, "leaf").await?;
        Ok(())
    })
    .await
}

both! {
    async fn a_cancel_is_acknowledged_and_names_its_author(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            // Does not end at once, so that the acknowledgement is not just the end.
            let slow = nursery.task(p.call(endless, "slow".to_owned()));
            let seen = nursery.task(p.call(until_cancelled, "p".to_owned()));
            held("p begun").await?;
            let began = Instant::now();
            p.cancel().await;
            assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
            assert!(p.exit().is_none() || t.is_process());
            let exit = p.ended().await;
            assert_eq!(author(&exit), Some(&Canceller::Isolate(current().origin())));
            assert!(marked("slow dropped") && marked("p dropped"));
            for reply in [slow.await?, seen.await?] {
                let late = match reply {
                    Ok(()) => continue,
                    Err(error) => error,
                };
                assert!(late.is_cancelled(), "{late:?}");
            }
            // A call that comes too late hears the same.
            let late = p.call(nothing, ()).await.unwrap_err();
            assert!(late.is_cancelled() && late.message().contains("by root"), "{late:?}");
            Ok(())
        })
        .await?;
        assert_eq!(lines("p cancelled"), ["cancelled by root"]);
    }

    async fn a_cancel_is_idempotent_and_its_first_author_counts(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            drop(nursery.task(p.call(until_cancelled, "p".to_owned())));
            held("p begun").await?;
            let other = nursery.spawn_local("other").await?;
            let first = p.cancel();
            other
                .run({
                    let p = p.clone();
                    async move || {
                        p.cancel().await;
                        p.cancel().await;
                    }
                })
                .await?;
            first.await;
            p.cancel().await;
            assert_eq!(
                author(&p.ended().await),
                Some(&Canceller::Isolate(current().origin()))
            );
            Ok(())
        })
        .await?;
        assert_eq!(lines("p cancelled"), ["cancelled by root"]);
    }

    async fn a_cancel_is_made_also_if_nobody_waits_for_it(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            drop(nursery.task(p.call(until_cancelled, "p".to_owned())));
            held("p begun").await?;
            drop(p.cancel());
            assert!(author(&p.ended().await).is_some());
            Ok(())
        })
        .await?;
        assert!(marked("p cancelled"));
    }

    async fn a_sibling_can_cancel_and_is_named(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            drop(nursery.task(p.call(until_cancelled, "p".to_owned())));
            held("p begun").await?;
            let sibling = nursery.spawn_local("sibling").await?;
            let target = p.clone();
            sibling.run(async move || target.cancel().await).await?;
            match author(&p.ended().await) {
                Some(Canceller::Isolate(by)) => assert_eq!(by.path, "root/sibling"),
                other => panic!("{other:?}"),
            }
            Ok(())
        })
        .await?;
        assert_eq!(lines("p cancelled"), ["cancelled by root/sibling"]);
    }

    async fn an_isolate_can_cancel_itself(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            drop(nursery.task(p.call(until_cancelled, "p".to_owned())));
            held("p begun").await?;
            let _ = p.call(|| current().cancel(), ()).await;
            let exit = offshoot::timeout(Duration::from_secs(5), p.ended()).await?;
            match author(&exit) {
                Some(Canceller::Isolate(by)) => assert_eq!(by.path, "root/p"),
                other => panic!("{other:?}"),
            }
            Ok(())
        })
        .await?;
        assert_eq!(lines("p cancelled"), ["cancelled by root/p"]);
    }

    async fn what_is_below_learns_the_first_author(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            drop(nursery.task(p.call(middle, ())));
            held("leaf begun").await?;
            p.cancel().await;
            p.ended().await;
            Ok(())
        })
        .await?;
        let seen = lines("leaf cancelled");
        assert_eq!(seen.len(), 1);
        assert!(seen[0].contains("root/p") && seen[0].ends_with("cancelled by root"), "{seen:?}");
    }

    async fn code_that_sees_no_checkpoint_is_dropped_after_the_grace(_t: T) {
        offshoot::nursery(async |nursery| {
            let grace = Duration::from_millis(100);
            let p = nursery.spawn(Isolate::named("p").grace(grace)).await?;
            drop(nursery.task(p.call(endless, "p".to_owned())));
            held("p begun").await?;
            let began = Instant::now();
            p.cancel().await;
            assert!(!marked("p dropped") || began.elapsed() >= grace);
            assert!(author(&p.ended().await).is_some());
            assert!(began.elapsed() >= grace, "{:?}", began.elapsed());
            assert!(marked("p dropped"));
            Ok(())
        })
        .await?;
    }

    async fn a_blocking_isolate_sees_it_where_it_receives(_t: T) {
        fn main(inbox: &mut Inbox) -> Result<()> {
            let served = loop {
                match inbox.serve() {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            append("main", &served.to_string());
            assert!(inbox.is_cancelled());
            Err(served)
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("p").blocking_main(main)).await?;
            p.call(nothing, ()).await?;
            p.cancel().await;
            assert!(author(&p.ended().await).is_some());
            Ok(())
        })
        .await?;
        assert_eq!(lines("main"), ["cancelled by root"]);
    }

    async fn what_waits_in_the_mailbox_of_the_cancelled_is_answered(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let first = nursery.task(p.call(
                || {
                    mark("blocked");
                    hold("release");
                },
                (),
            ));
            held("blocked").await?;
            let waiting: Vec<_> = (0..10).map(|_| nursery.task(p.call(nothing, ()))).collect();
            let sent = nursery.task(async { mark("sent") });
            sent.await?;
            let cancelling = p.cancel();
            mark("release");
            cancelling.await;
            let _ = first.await?;
            for one in waiting {
                // Begun before the cancellation was seen, or refused by it: never silent.
                if let Err(error) = one.await? {
                    assert!(error.is_cancelled(), "{error:?}");
                }
            }
            Ok(())
        })
        .await?;
    }

    async fn cancelling_a_nursery_cancels_all_in_it(_t: T) {
        let result = offshoot::nursery(async |nursery| {
            for name in ["a", "b"] {
                waits(nursery, name).await?;
            }
            nursery.cancel();
            offshoot::sleep(Duration::from_secs(3_600)).await
        })
        .await;
        let error = result.unwrap_err();
        assert!(error.is_cancelled() && error.failures().len() == 1, "{error:?}");
        for name in ["a", "b"] {
            assert_eq!(lines(&format!("{name} cancelled")), ["cancelled by root"]);
        }
    }

    fn the_caller_of_run_learns_who_cancelled_the_root(t: T) {
        let error = t
            .run(async || {
                current().cancel();
                soon("it never comes true", || false).await
            })
            .unwrap_err();
        assert!(error.is_cancelled() && error.message().contains("by root"), "{error:?}");
    }
}
