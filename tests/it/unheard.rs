//! An error that nobody can receive is a failure: of the isolate that was told, of the nursery whose task it was. Where it may be one, and where its
//! receiver has gone, it is a warning.

use offshoot::prelude::*;
use offshoot_tests::{T, append, both, held, lines, mark};
use std::fmt;

#[derive(Default, Serialize, Deserialize)]
struct Clerk {
    done: u32,
}

impl Clerk {
    fn refuse(&mut self, what: String) -> Result<u32> {
        self.done += 1;
        Err(Error::other(format!("{what} is refused")))
    }
    async fn refuse_later(&mut self, what: String) -> std::result::Result<(), String> {
        offshoot::checkpoint()
            .await
            .map_err(|error| error.to_string())?;
        self.done += 1;
        Err(format!("{what} is refused"))
    }
    async fn refuse_when(&mut self, sign: String) -> Result<()> {
        mark(&format!("{sign} begun"));
        held(&sign).await?;
        self.done += 1;
        Err(Error::other(format!("{sign} is refused")))
    }
    async fn until_cancelled(&mut self) -> Result<()> {
        mark("begun");
        offshoot::cancelled().await;
        offshoot::checkpoint().await
    }
    fn done(&self) -> u32 {
        self.done
    }
}

/// Writes down each warning.
struct Warnings;

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        append("warnings", &text.0.replace('\n', " "));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn write_down_warnings() {
    // In the first process it is there already.
    let _ = tracing::subscriber::set_global_default(Warnings);
}

/// Runs a tree whose warnings are written down.
fn watched<R>(t: &T, root: R)
where
    R: AsyncFnOnce() -> Result<()> + Send + 'static,
{
    write_down_warnings();
    let ran = t.builder().on_process_start(write_down_warnings).run(root);
    if let Err(error) = ran {
        panic!("{}", error.report());
    }
}

both! {
    async fn what_was_told_and_fails_fails_its_isolate(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            let clerk = nursery.start("clerk", Clerk::default()).await?;
            clerk.tell(Clerk::refuse, "the form".to_owned()).await?;
            Ok(())
        })
        .await
        .unwrap_err();
        assert!(error.report().contains("the form is refused"), "{}", error.report());
        assert!(error.report().contains("clerk"), "{}", error.report());
        assert_eq!(error.failures().len(), 1, "{}", error.report());
        // An error of a type of the program's own, by a method that is async.
        let error = offshoot::nursery(async |nursery| {
            let clerk = nursery.start("clerk", Clerk::default()).await?;
            clerk.tell(Clerk::refuse_later, "the form".to_owned()).await?;
            match clerk.ended().await {
                Exit::Failed(error) => assert!(error.to_string().contains("refuse_later"), "{error}"),
                other => panic!("{other}"),
            }
            Ok(())
        })
        .await
        .unwrap_err();
        assert!(error.report().contains("String"), "{}", error.report());
    }

    async fn a_task_that_fails_fails_its_nursery_when_nobody_has_its_handle(_t: T) {
        let failing = async || Err::<u32, _>(Error::other("the task is refused"));
        let before = offshoot::nursery(async |nursery| {
            drop(nursery.task(failing()));
            Ok(())
        });
        let error = before.await.unwrap_err();
        assert!(error.report().contains("as a `core::result::Result<u32"), "{}", error.report());
        let after = offshoot::nursery(async |nursery| {
            let handle = nursery.task(async { failing().await.map(drop) });
            offshoot::checkpoint().await?;
            drop(handle);
            offshoot::sleep(std::time::Duration::from_secs(20)).await
        });
        let error = after.await.unwrap_err();
        assert!(error.report().contains("the task is refused"), "{}", error.report());
        // Whoever awaits it has it, and decides.
        offshoot::nursery(async |nursery| {
            let handle = nursery.task(failing());
            assert!(handle.await?.is_err());
            Ok(())
        })
        .await?;
    }

    async fn what_is_cancelled_has_not_failed(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            let clerk = nursery.start("clerk", Clerk::default()).await?;
            clerk.tell(Clerk::until_cancelled, ()).await?;
            drop(nursery.task(async {
                offshoot::cancelled().await;
                offshoot::checkpoint().await
            }));
            held("begun").await?;
            nursery.cancel();
            Ok(())
        })
        .await;
        let failures = error.as_ref().err().map_or(0, |error| error.failures().len());
        assert!(failures <= 1 && error.is_ok_or_cancelled(), "{error:?}");
    }

    fn what_may_fail_is_a_warning(t: T) {
        watched(&t, async || {
            offshoot::nursery(async |nursery| {
                let clerk = nursery.start("clerk", Clerk::default()).await?;
                clerk.tell_lossy(Clerk::refuse, "a".to_owned()).await?;
                clerk.tell_lossy(Clerk::refuse_later, "b".to_owned()).await?;
                assert_eq!(clerk.ask(Clerk::done, ()).await?, 2);
                let narrowed = clerk.narrow().ask(Clerk::refuse).portal();
                narrowed.tell_lossy(Clerk::refuse, "c".to_owned()).await?;
                assert_eq!(clerk.ask(Clerk::done, ()).await?, 3);
                nursery.task(async { Err::<(), _>(Error::other("d is refused")) }).detach();
                Ok(())
            })
            .await
        });
        let warnings = lines("warnings");
        assert_eq!(warnings.len(), 4, "{warnings:#?}");
        for (warning, word) in warnings.iter().zip(["a is refused", "refuse_later", "c is refused", "d is refused"]) {
            assert!(warning.contains(word) && warning.contains("isolate="), "{warning}");
        }
    }

    fn the_error_of_an_ask_that_was_given_up_is_a_warning(t: T) {
        watched(&t, async || {
            offshoot::nursery(async |nursery| {
                let clerk = nursery.start("clerk", Clerk::default()).await?;
                let asked = clerk.ask(Clerk::refuse_when, "it".to_owned());
                let given_up = offshoot::nursery(async |inner| {
                    let asked = inner.task(asked);
                    held("it begun").await?;
                    inner.cancel();
                    drop(asked);
                    Ok(())
                });
                let _ = given_up.await;
                mark("it");
                assert_eq!(clerk.ask(Clerk::done, ()).await?, 1);
                Ok(())
            })
            .await
        });
        let warnings = lines("warnings");
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert!(warnings[0].contains("it is refused"), "{warnings:#?}");
    }
}

trait IsOkOrCancelled {
    fn is_ok_or_cancelled(&self) -> bool;
}

impl IsOkOrCancelled for Result<()> {
    fn is_ok_or_cancelled(&self) -> bool {
        self.as_ref().err().is_none_or(Error::is_cancelled)
    }
}
