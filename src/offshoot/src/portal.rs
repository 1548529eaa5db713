//! A handle to a running isolate: call its process's functions, ask its state, end it.

use crate::answer::{Answer, Asker, Holding, LocalAnswer};
use crate::carry::{self, Carried};
use crate::chain::{self, Chain, Waits};
use crate::credit::{Awaited, Kind, Lane, Permit, Place, Taken};
use crate::descriptor::{CallEntry, Descriptor, MethodEntry, captures_nothing};
use crate::endpoint::MayFail;
use crate::isolate::job::{self, CallJob, Mail, MethodJob, RunJob, Sent, TellJob, Told, WithJob};
use crate::isolate::local::Local;
use crate::isolate::shared::{Message, Route, Shared, Target};
use crate::janitor::GrantedDir;
use crate::life::Watch;
use crate::narrow::Allowed;
use crate::process::link::{Link, Parcel, Pending};
use crate::scope::{Scope, ScopeWatch, cancelled_error, poll_refusal};
use crate::testing::cut::{After, Cut, Direction};
use crate::{
    Cancel, Canceller, Descendants, Endpoint, Error, ErrorKind, Exit, IsolateId, Isolation, Method,
    Origin, Payload, Result, unblock,
};
use offshoot_mailbox::oneshot::{self, Holds, Slot};
use offshoot_mailbox::{Contents, Envelope, Letter};
use offshoot_wire::frame::{self, Entry};
use offshoot_wire::{Rope, codec};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

/// A handle to a running isolate with the state `S`, thread or process.
///
/// Cheap to clone, `Send` and `Sync` for any `S`. It does not keep the isolate alive: its nursery
/// does, and a call to an isolate that has ended fails at once.
///
/// It can be given to others: as part of an argument, a result, an item of a dialogue or a state, to
/// threads and processes. An isolate in another process then gets a socket of its own to this one.
/// Whoever is given a portal may call what it lets through, see [`Portal::narrow`];
/// [`Current::portal`](crate::Current::portal) is an isolate's own. Anywhere else, as in a file, it
/// cannot be serialized, and says so.
///
/// # What dropping means
///
/// | dropped | before it is accepted | accepted, not begun | begun |
/// |---|---|---|---|
/// | [`call`](Portal::call) | never sent | never runs | its future is dropped at its next poll |
/// | [`ask`](Portal::ask) | never sent | withdrawn | runs to its end, the answer is discarded |
/// | [`ask_cancellable`](Portal::ask_cancellable) | never sent | withdrawn | its future is dropped at its next poll |
/// | [`tell`](Portal::tell) | never sent | runs | runs |
///
/// A message is accepted when the receiver has room for it; until then the sender waits. An `ask`
/// that has begun is not cut off by a time-out, so that no state is left half-changed.
pub struct Portal<S = ()> {
    target: Arc<Target>,
    allowed: Allowed,
    marker: PhantomData<fn(S)>,
}

impl<S> Portal<S> {
    /// See [`crate::testing::break_link`].
    pub(crate) fn break_link(&self) -> bool {
        match self.target.route().link() {
            Some(link) => {
                link.shut();
                true
            }
            None => false,
        }
    }
}

impl<S> Portal<S> {
    /// See [`crate::testing::break_link_after`].
    pub(crate) fn break_link_after(&self, direction: Direction, after: After) -> bool {
        let route = self.target.route();
        let link = route.link();
        link.is_some_and(|link| link.cut_after(Cut::new(direction, after)))
    }
}

impl<S> Clone for Portal<S> {
    fn clone(&self) -> Portal<S> {
        Portal {
            target: self.target.clone(),
            allowed: self.allowed.clone(),
            marker: PhantomData,
        }
    }
}

impl<S> std::fmt::Debug for Portal<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Portal")
            .field(&self.target.life.origin())
            .finish()
    }
}

impl<S: 'static> Portal<S> {
    pub(crate) fn new(target: Arc<Target>) -> Portal<S> {
        Portal {
            target,
            allowed: Allowed::default(),
            marker: PhantomData,
        }
    }

    /// As it travels beside a value.
    pub(crate) fn carried(&self) -> Carried {
        Carried {
            target: self.target.clone(),
            allowed: self.allowed.clone(),
        }
    }

    /// One that has travelled beside a value.
    pub(crate) fn of(carried: Carried) -> Portal<S> {
        Portal {
            target: carried.target,
            allowed: carried.allowed,
            marker: PhantomData,
        }
    }

    /// One that lets no more through than this, too.
    pub(crate) fn allowing(mut self, only: &Allowed) -> Portal<S> {
        self.allowed = self.allowed.and(only);
        self
    }

    /// The wait for the credit of a message that asks for this.
    pub(crate) fn sending(&self, descriptor: &Descriptor) -> Sending {
        let mut sending = Sending::new(&self.target);
        sending.refused = self.allowed.check(descriptor).err();
        sending
    }

    /// Runs `function` on the isolate, as a new task beside the others, and answers with its result.
    ///
    /// Any function of 0 to 6 owned arguments, async or not; one argument is given as it is, more
    /// as a tuple, none as `()`. To a thread the values are moved, to a process they are encoded.
    ///
    /// # Blocking
    /// Never. The future waits for credit while `calls_max` calls of this isolate to that one run.
    ///
    /// # Cancellation
    /// A checkpoint. Dropping the reply cancels the far task.
    ///
    /// # Errors
    /// The isolate has ended or ends before it answers ([`Error::is_ended`]), the function panics
    /// ([`Error::is_panic`], and the isolate ends by it), a value cannot be encoded. What the
    /// function itself returns as `Result` arrives as a value, inside `Ok`.
    ///
    /// # Examples
    /// ```
    /// use offshoot::prelude::*;
    ///
    /// async fn square(n: u64) -> u64 {
    ///     n * n
    /// }
    ///
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let farm = nursery.spawn("farm").await?;
    ///     assert_eq!(farm.call(square, 7).await?, 49);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn call<M: 'static, F: Endpoint<M>>(&self, function: F, args: F::Args) -> Reply<F::Out>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        Reply::new(
            self.sending(CallEntry::<F, M>::DESCRIPTOR),
            Envelope::with_reply(CallJob {
                function,
                args,
                reply: job::Reply::NONE,
                marker: PhantomData,
            }),
        )
    }

    /// Runs `method` on the isolate's state, after those that were accepted before it.
    ///
    /// # Cancellation
    /// A checkpoint. Dropping the reply withdraws it while it is queued; once begun it runs to its
    /// end, so that a timeout never leaves the state half-changed.
    ///
    /// # Errors
    /// As of [`call`](Portal::call). A method that panics ends the isolate: its state is never
    /// served again.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// #[derive(Serialize, Deserialize)]
    /// struct Counter {
    ///     total: u64,
    /// }
    /// impl Counter {
    ///     fn add(&mut self, by: u64) -> u64 {
    ///         self.total += by;
    ///         self.total
    ///     }
    /// }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let counter = nursery.start("counter", Counter { total: 1 }).await?;
    ///     assert_eq!(counter.ask(Counter::add, 2).await?, 3);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn ask<M: 'static, F: Method<S, M>>(&self, method: F, args: F::Args) -> Reply<F::Out>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        Reply::new(
            self.sending(MethodEntry::<S, F, M, false>::DESCRIPTOR),
            Envelope::with_reply(MethodJob::<S, F, M, _, false> {
                method,
                args,
                reply: job::Reply::NONE,
                marker: PhantomData,
            }),
        )
    }

    /// As [`ask`](Portal::ask), but dropping the reply also drops a method that has begun, at its
    /// next await. For methods that keep the state whole at each of theirs.
    ///
    /// # Errors
    /// As of [`ask`](Portal::ask).
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use std::time::Duration;
    ///
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Counter {
    /// #     total: u64,
    /// # }
    /// # impl Counter {
    /// #     fn add(&mut self, by: u64) -> u64 {
    /// #         self.total += by;
    /// #         self.total
    /// #     }
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let counter = nursery.start("counter", Counter { total: 1 }).await?;
    ///     let bounded = offshoot::timeout(
    ///         Duration::from_secs(5),
    ///         counter.ask_cancellable(Counter::add, 2),
    ///     );
    ///     assert_eq!(bounded.await??, 3);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn ask_cancellable<M: 'static, F: Method<S, M>>(
        &self,
        method: F,
        args: F::Args,
    ) -> Reply<F::Out>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        Reply::new(
            self.sending(MethodEntry::<S, F, M, true>::DESCRIPTOR),
            Envelope::with_reply(MethodJob::<S, F, M, _, true> {
                method,
                args,
                reply: job::Reply::NONE,
                marker: PhantomData,
            }),
        )
    }

    /// Has `method` run on the isolate's state and does not wait for it.
    ///
    /// Ready when the isolate has accepted it. A method that panics ends the isolate, which its
    /// nursery reports; so does one that returns an `Err`, since nobody can receive it. See
    /// [`tell_lossy`](Portal::tell_lossy) for one that may fail.
    ///
    /// # Cancellation
    /// A checkpoint. Dropped while it waits, it is not sent; once accepted it is.
    ///
    /// # Errors
    /// The isolate has ended, or a value cannot be encoded.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Counter {
    /// #     total: u64,
    /// # }
    /// # impl Counter {
    /// #     fn add(&mut self, by: u64) -> u64 {
    /// #         self.total += by;
    /// #         self.total
    /// #     }
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let counter = nursery.start("counter", Counter { total: 1 }).await?;
    ///     counter.tell(Counter::add, 2).await?;
    ///     // What one isolate sends to another begins in the order in which it was accepted.
    ///     assert_eq!(counter.ask(Counter::add, 0).await?, 3);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn tell<M: 'static, F: Method<S, M>>(&self, method: F, args: F::Args) -> Tell
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        Tell {
            sending: self.sending(MethodEntry::<S, F, M, false>::DESCRIPTOR),
            out: Some(told::<S, F, M>(method, args)),
        }
    }

    /// As [`tell`](Portal::tell), of a method that may fail: an error that it returns is logged, as a warning, instead of ending
    /// the isolate as a failure.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # #[derive(Default, Serialize, Deserialize)]
    /// struct Cache {
    ///     misses: u64,
    /// }
    ///
    /// impl Cache {
    ///     fn refresh(&mut self, key: String) -> Result<()> {
    ///         self.misses += 1;
    ///         Err(Error::other(format!("{key} is not there")))
    ///     }
    ///     fn misses(&mut self) -> u64 {
    ///         self.misses
    ///     }
    /// }
    ///
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let cache = nursery.start("cache", Cache { misses: 0 }).await?;
    ///     cache.tell_lossy(Cache::refresh, "key".to_owned()).await?;
    ///     assert_eq!(cache.ask(Cache::misses, ()).await?, 1);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn tell_lossy<M: 'static, F: Method<S, M>>(&self, method: F, args: F::Args) -> Tell
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        self.tell(MayFail(method), args)
    }

    /// As [`tell`](Portal::tell), but never waits.
    ///
    /// # Errors
    /// [`Rejected`], with the arguments, when the isolate has no room ([`Error::is_full`]) or has
    /// ended.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Counter {
    /// #     total: u64,
    /// # }
    /// # impl Counter {
    /// #     fn add(&mut self, by: u64) -> u64 {
    /// #         self.total += by;
    /// #         self.total
    /// #     }
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let counter = nursery.start("counter", Counter { total: 1 }).await?;
    ///     if let Err(rejected) = counter.try_tell(Counter::add, 2) {
    ///         println!("{} was not sent: {}", rejected.args, rejected.error);
    ///     }
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn try_tell<M: 'static, F: Method<S, M>>(
        &self,
        method: F,
        args: F::Args,
    ) -> Result<(), Rejected<F::Args>>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        let allowed = self
            .allowed
            .check(MethodEntry::<S, F, M, false>::DESCRIPTOR);
        if let Err(error) = allowed {
            return Err(Rejected { error, args });
        }
        if self.target.is_closed() {
            return Err(Rejected {
                error: self.target.gone(),
                args,
            });
        }
        let lane = current_lane(&self.target);
        let room = self
            .target
            .route()
            .link()
            .is_none_or(|link| link.has_room());
        if !room || !lane.messages.try_take() {
            let message = format!(
                "isolate `{}` has no room for another message of this sender",
                self.target.life.identity()
            );
            return Err(Rejected {
                error: Error::new(ErrorKind::Full, message),
                args,
            });
        }
        let taken = Taken::of(lane, Kind::Message);
        send_tell(&self.target, told::<S, F, M>(method, args), taken)
            .map_err(|(error, args)| Rejected { error, args })
    }

    /// [`call`](Portal::call) for code that is not async.
    ///
    /// # Blocking
    /// Until the answer is there. In a task of an isolate it blocks the whole isolate.
    ///
    /// # Errors
    /// As of [`call`](Portal::call). Misuse, at once, on the isolate itself, which would wait for ever.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # async fn square(n: u64) -> u64 {
    /// #     n * n
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let farm = nursery.spawn("farm").await?;
    ///     // From a thread that is no isolate.
    ///     let answer = std::thread::spawn(move || farm.call_blocking(square, 7));
    ///     let answer = offshoot::unblock(move || answer.join().expect("it does not panic"));
    ///     assert_eq!(answer.await??, 49);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn call_blocking<M: 'static, F: Endpoint<M>>(
        &self,
        function: F,
        args: F::Args,
    ) -> Result<F::Out>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        self.check_other("call_blocking")?;
        block_on(self.call(function, args))
    }

    /// Fails on the very isolate that this reaches: it serves nothing while code of it blocks.
    pub(crate) fn check_other(&self, what: &str) -> Result<()> {
        let own = Local::try_current();
        if own.is_none_or(|own| !Arc::ptr_eq(&own.shared.life, &self.target.life)) {
            return Ok(());
        }
        let message = format!(
            "`{what}` of isolate `{}` on itself would wait for ever: await the call instead, or call the function directly",
            self.target.life.identity()
        );
        Err(Error::new(ErrorKind::Misuse, message))
    }

    /// [`ask`](Portal::ask) for code that is not async.
    ///
    /// # Blocking
    /// Until the answer is there. In a task of an isolate it blocks the whole isolate.
    ///
    /// # Errors
    /// As of [`ask`](Portal::ask).
    pub fn ask_blocking<M: 'static, F: Method<S, M>>(
        &self,
        method: F,
        args: F::Args,
    ) -> Result<F::Out>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        block_on(self.ask(method, args))
    }

    /// [`tell`](Portal::tell) for code that is not async.
    ///
    /// # Blocking
    /// Until there is room. In a task of an isolate it blocks the whole isolate.
    ///
    /// # Errors
    /// As of [`tell`](Portal::tell).
    pub fn tell_blocking<M: 'static, F: Method<S, M>>(&self, method: F, args: F::Args) -> Result<()>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        block_on(self.tell(method, args))
    }

    /// Cancels the isolate. Ready when it has seen it, or has ended.
    ///
    /// The request is made at once, also if the future is dropped; from then on its owner takes it
    /// down within its bounds. Idempotent: the first author counts. Through a portal that was
    /// [narrowed](Portal::narrow) and does not let it, nothing happens but a warning in the log.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let farm = nursery.spawn("farm").await?;
    ///     farm.cancel().await;
    ///     assert!(matches!(farm.ended().await, Exit::Cancelled(_)));
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn cancel(&self) -> Cancelling {
        let by = match Local::try_current() {
            Some(local) => Canceller::Isolate(local.shared.life.origin()),
            None => Canceller::Runtime,
        };
        let refused = !self.allowed.permits_cancel();
        if refused {
            crate::log::warn!(isolate = %self.target.life.origin(), %by, "a portal does not let its isolate be cancelled");
        } else {
            self.target.cancel(&Cancel { by });
        }
        Cancelling {
            watch: Watch::new(self.target.life.clone()),
            refused,
        }
    }

    /// Waits until the isolate has ended and says how. Not a cancellation of anything.
    ///
    /// None of its tasks runs any more then; what it has handed to [`unblock`](crate::unblock) may. Its thread may still have to be joined, its process to be reaped
    /// and what it had bound to be swept: for that its nursery waits.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let farm = nursery.spawn("farm").await?;
    ///     farm.cancel().await;
    ///     println!("{}: {}", farm.name(), farm.ended().await);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn ended(&self) -> Ended {
        Ended {
            watch: Watch::new(self.target.life.clone()),
        }
    }

    /// How it ended, if it has.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let farm = nursery.spawn("farm").await?;
    ///     assert!(farm.exit().is_none());
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn exit(&self) -> Option<Exit> {
        self.target.life.exit().cloned()
    }

    /// Its name, as its giver says; see [`id`](Portal::id).
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let farm = nursery.spawn("farm").await?;
    ///     assert_eq!(farm.name(), "farm");
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        self.target.life.identity().name()
    }

    /// Its id: that of the isolate which this process owns, hosts or was told of.
    ///
    /// Of a portal that came from another process it is a label that its giver wrote. Two portals with one id reach one
    /// isolate if both came from givers that are trusted; the runtime itself decides nothing by it.
    pub fn id(&self) -> IsolateId {
        self.target.life.identity().id
    }

    /// Its path, id and process, as its giver says; see [`id`](Portal::id).
    pub fn origin(&self) -> Origin {
        self.target.life.origin()
    }

    /// The last 16 KiB that it printed, if it is a process whose output is
    /// [`Stdio::Piped`](crate::Stdio::Piped).
    pub fn output_tail(&self) -> Option<String> {
        match self.target.route() {
            Route::Process(process) => Some(process.output_tail()),
            Route::Thread(_) | Route::Introduced(_) | Route::Gone => None,
        }
    }

    /// How surely what it has started itself ends with it, if it is a process isolate of this process; see
    /// [`Builder::descendants`](crate::Builder::descendants).
    pub fn descendants(&self) -> Option<Descendants> {
        match self.target.route() {
            Route::Process(process) => process.descendants(),
            Route::Thread(_) | Route::Introduced(_) | Route::Gone => None,
        }
    }

    /// Lets it have addresses in this directory and those below it, too, if it was limited to others; see
    /// [`Isolate::grant`](crate::Isolate::grant). For the process that has spawned it, of what that has itself. Nothing changes for a thread,
    /// which has what its process has.
    ///
    /// # Errors
    /// If there is no such directory; if this process does not have it itself; if the isolate has ended or is somebody else's.
    ///
    /// # Cancellation
    /// If the future is dropped, the directory may have been granted.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let vault = nursery.spawn(Isolate::named("vault").process().confined()).await?;
    ///     vault.grant(std::env::temp_dir()).await?;
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub async fn grant(&self, directory: impl AsRef<Path>) -> Result<()> {
        let path = directory.as_ref().to_owned();
        let target = self.target.clone();
        let granted = unblock(move || {
            let directory = GrantedDir::open(&path).map_err(|error| {
                let message = format!("cannot open the directory {}: {error}", path.display());
                Error::io(message, error)
            })?;
            match target.route() {
                Route::Process(process) => {
                    let fd = Some(directory.as_fd());
                    target.runtime.warden()?.grant(process, fd)
                }
                Route::Thread(_) => Ok(()),
                Route::Introduced(_) | Route::Gone => Err(Error::new(
                    ErrorKind::Misuse,
                    "a directory is granted by the process that has spawned the isolate",
                )),
            }
        });
        granted.await?
    }

    /// What separates it from the others.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let vault = nursery.spawn(Isolate::named("vault").process()).await?;
    ///     assert_eq!(vault.isolation(), Isolation::Process);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn isolation(&self) -> Isolation {
        match (self.target.route(), self.target.through_serde) {
            (Route::Process(_) | Route::Introduced(_) | Route::Gone, _) => Isolation::Process,
            (Route::Thread(_), true) => Isolation::Serde,
            (Route::Thread(_), false) => Isolation::Thread,
        }
    }
}

/// A portal to an isolate that is always a thread, so that closures which capture, and values
/// without serde, can be given to it. Derefs to [`Portal`].
pub struct LocalPortal<S = ()> {
    portal: Portal<S>,
}

impl<S> Clone for LocalPortal<S> {
    fn clone(&self) -> LocalPortal<S> {
        LocalPortal {
            portal: self.portal.clone(),
        }
    }
}

impl<S> std::fmt::Debug for LocalPortal<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.portal.fmt(f)
    }
}

impl<S> Deref for LocalPortal<S> {
    type Target = Portal<S>;

    fn deref(&self) -> &Portal<S> {
        &self.portal
    }
}

impl<S: 'static> LocalPortal<S> {
    pub(crate) fn new(target: Arc<Target>) -> LocalPortal<S> {
        LocalPortal {
            portal: Portal::new(target),
        }
    }

    /// Runs a closure on the isolate, as a new task. It may capture, and need not be serde.
    ///
    /// # Errors
    /// As of [`Portal::call`].
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let local = nursery.spawn_local("local").await?;
    ///     let text = String::from("captured");
    ///     assert_eq!(local.run(async move || text.len()).await?, 8);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn run<F, R>(&self, function: F) -> Reply<R>
    where
        F: AsyncFnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        Reply::new(
            Sending::new(&self.portal.target),
            Envelope::with_reply(RunJob {
                function,
                reply: job::Reply::NONE,
            }),
        )
    }

    /// Runs a closure on the isolate's state, in its turn. It may capture, and need not be serde.
    ///
    /// # Errors
    /// As of [`Portal::ask`].
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let list = nursery.start_local("list", Vec::<u64>::new()).await?;
    ///     list.with(async |list: &mut Vec<u64>| list.push(7)).await?;
    ///     assert_eq!(list.with(async |list: &mut Vec<u64>| list.len()).await?, 1);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn with<F, R>(&self, function: F) -> Reply<R>
    where
        F: AsyncFnOnce(&mut S) -> R + Send + 'static,
        R: Send + 'static,
    {
        Reply::new(
            Sending::new(&self.portal.target),
            Envelope::with_reply(WithJob::<S, F> {
                function,
                reply: job::Reply::NONE,
                marker: PhantomData,
            }),
        )
    }
}

/// A message that was not accepted, with its arguments.
#[derive(Debug)]
pub struct Rejected<A> {
    /// Why.
    pub error: Error,
    /// What was to be sent.
    pub args: A,
}

impl<A> From<Rejected<A>> for Error {
    fn from(rejected: Rejected<A>) -> Error {
        rejected.error
    }
}

// ---- what is to be sent ----

/// A message before it is accepted and, between threads, until it is answered, its function's type erased.
///
/// It is the envelope in which it travels, so that it is allocated once and stays where it is.
trait Outgoing<T>: Holds<Result<T>> {
    /// Against which bound it counts.
    fn kind(&self) -> Kind;
    /// Sends it within the process; `serde` if its values are to go through their encoding. Its slot then has the answer.
    fn post(self: Arc<Self>, shared: &Shared, permit: Permit, serde: bool) -> Result<()>;
    /// As a frame: appends the arguments, says what to run.
    fn encode(&self, out: &mut Rope) -> Result<(frame::Kind, Entry)>;
    /// The result from its encoding.
    fn decode(&self) -> fn(&[u8]) -> Result<T>;
}

/// Puts a message into its mailbox. One that is refused is dropped, and its caller then knows.
fn post<J, T>(
    envelope: Arc<Sent<J, T>>,
    shared: &Shared,
    permit: Permit,
    reply: fn(&mut J) -> &mut job::Reply<Asker>,
) where
    J: Contents<Slot<Result<T>>, Face = dyn Mail>,
{
    let stamp = |job: &mut J| *reply(job) = job::Reply::new(Asker::here(), permit);
    drop(shared.post(Letter::seal(envelope, stamp)));
}

pub(crate) fn encode<T: Payload>(value: &T, out: &mut Rope) -> Result<()> {
    codec::encode_checked(value, out, carry::rehearse).map_err(|error| {
        Error::new(
            ErrorKind::Codec,
            format!("a value of type `{}`: {error}", std::any::type_name::<T>()),
        )
    })
}

pub(crate) fn decode<T: Payload>(bytes: &[u8]) -> Result<T> {
    codec::decode(bytes).map_err(|error| {
        Error::new(
            ErrorKind::Codec,
            format!("a value of type `{}`: {error}", std::any::type_name::<T>()),
        )
    })
}

/// What a value is after it went through its encoding, where the tree asks for that.
pub(crate) fn through_serde<T: Payload>(value: T, wanted: bool) -> Result<T> {
    if !wanted {
        return Ok(value);
    }
    let mut rope = Rope::default();
    let (encoded, carried) = carry::pack(|| encode(&value, &mut rope));
    encoded?;
    let bytes = rope.into_vec();
    carry::unpack(carried.into_iter().map(Ok).collect(), || decode(&bytes))
}

/// An answer whose value goes through its encoding first, where the tree asks for that.
struct SerdeAnswer<T: Payload, H: Holding<T>>(LocalAnswer<T, H>);

impl<T: Payload, H: Holding<T>> Answer<T> for SerdeAnswer<T, H> {
    fn send(self, result: Result<T>) {
        self.0
            .send(result.and_then(|value| through_serde(value, true)));
    }

    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_unwanted(cx)
    }

    fn is_unwanted(&self) -> bool {
        self.0.is_unwanted()
    }

    fn chain(&self) -> Chain {
        self.0.chain()
    }
}

impl<F: Endpoint<M>, M: 'static> Outgoing<F::Out> for Sent<CallJob<F, M, Asker>, F::Out>
where
    F::Args: Payload,
    F::Out: Payload,
{
    fn kind(&self) -> Kind {
        Kind::Call
    }

    fn post(self: Arc<Self>, shared: &Shared, permit: Permit, serde: bool) -> Result<()> {
        if !serde {
            post(self, shared, permit, |job| &mut job.reply);
            return Ok(());
        }
        let (mut job, sender) = Envelope::open(self).ok_or_else(polled_again)?;
        job.args = through_serde(job.args, true)?;
        let answer = SerdeAnswer(LocalAnswer::new(sender, Asker::here()));
        let job = job.answering(|_| job::Reply::new(answer, permit));
        shared.deliver(Message::Job(Box::new(job)));
        Ok(())
    }

    fn encode(&self, out: &mut Rope) -> Result<(frame::Kind, Entry)> {
        let job = self.retract().ok_or_else(polled_again)?;
        encode(&job.args, out)?;
        Ok((frame::Kind::Call, CallEntry::<F, M>::DESCRIPTOR.entry()?))
    }

    fn decode(&self) -> fn(&[u8]) -> Result<F::Out> {
        decode::<F::Out>
    }
}

impl<S: 'static, F: Method<S, M>, M: 'static, const CANCELLABLE: bool> Outgoing<F::Out>
    for Sent<MethodJob<S, F, M, Asker, CANCELLABLE>, F::Out>
where
    F::Args: Payload,
    F::Out: Payload,
{
    fn kind(&self) -> Kind {
        Kind::Message
    }

    fn post(self: Arc<Self>, shared: &Shared, permit: Permit, serde: bool) -> Result<()> {
        if !serde {
            post(self, shared, permit, |job| &mut job.reply);
            return Ok(());
        }
        let (mut job, sender) = Envelope::open(self).ok_or_else(polled_again)?;
        job.args = through_serde(job.args, true)?;
        let answer = SerdeAnswer(LocalAnswer::new(sender, Asker::here()));
        let job = job.answering(|_| job::Reply::new(answer, permit));
        shared.deliver(Message::State(Box::new(job)));
        Ok(())
    }

    fn encode(&self, out: &mut Rope) -> Result<(frame::Kind, Entry)> {
        let job = self.retract().ok_or_else(polled_again)?;
        encode(&job.args, out)?;
        Ok((
            frame::Kind::Ask,
            MethodEntry::<S, F, M, CANCELLABLE>::DESCRIPTOR.entry()?,
        ))
    }

    fn decode(&self) -> fn(&[u8]) -> Result<F::Out> {
        decode::<F::Out>
    }
}

fn never_crosses<T>(_: &[u8]) -> Result<T> {
    Err(Error::new(
        ErrorKind::Misuse,
        "a closure that captures cannot cross to a process",
    ))
}

impl<F, R> Outgoing<R> for Sent<RunJob<F>, R>
where
    F: AsyncFnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    fn kind(&self) -> Kind {
        Kind::Call
    }

    fn post(self: Arc<Self>, shared: &Shared, permit: Permit, _: bool) -> Result<()> {
        post(self, shared, permit, |job| &mut job.reply);
        Ok(())
    }

    fn encode(&self, _: &mut Rope) -> Result<(frame::Kind, Entry)> {
        never_crosses(&[])
    }

    fn decode(&self) -> fn(&[u8]) -> Result<R> {
        never_crosses
    }
}

impl<S: 'static, F, R> Outgoing<R> for Sent<WithJob<S, F>, R>
where
    F: AsyncFnOnce(&mut S) -> R + Send + 'static,
    R: Send + 'static,
{
    fn kind(&self) -> Kind {
        Kind::Message
    }

    fn post(self: Arc<Self>, shared: &Shared, permit: Permit, _: bool) -> Result<()> {
        post(self, shared, permit, |job| &mut job.reply);
        Ok(())
    }

    fn encode(&self, _: &mut Rope) -> Result<(frame::Kind, Entry)> {
        never_crosses(&[])
    }

    fn decode(&self) -> fn(&[u8]) -> Result<R> {
        never_crosses
    }
}

// ---- sending ----

fn current_lane(target: &Target) -> Arc<Lane> {
    match Local::try_current() {
        Some(local) => local.lane(target),
        None => target.foreign_lane(),
    }
}

/// The wait for credit and for room on the link, and what all sends look at first.
pub(crate) struct Sending {
    target: Arc<Target>,
    /// In which lane it waits, once it does.
    queued: Option<(Arc<Lane>, Kind, Place)>,
    scope: ScopeWatch,
    life: Option<Watch>,
    /// Why it may not be sent, if so.
    refused: Option<Error>,
}

impl Sending {
    pub(crate) fn new(target: &Arc<Target>) -> Sending {
        Sending {
            target: target.clone(),
            queued: None,
            scope: ScopeWatch::default(),
            life: None,
            refused: None,
        }
    }

    pub(crate) fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Fails if the scope is cancelled.
    pub(crate) fn check_scope(&self) -> Result<()> {
        match self.scope.look() {
            Some(cancel) => Err(cancelled_error(cancel)),
            None => Ok(()),
        }
    }

    /// Credit and room for one message; most have it at once, and wait for nothing.
    pub(crate) fn poll_permit(&mut self, kind: Kind, cx: &mut Context<'_>) -> Poll<Result<Taken>> {
        if let Some(error) = &self.refused {
            return Poll::Ready(Err(error.clone()));
        }
        if self.target.is_closed() {
            return Poll::Ready(Err(self.target.gone()));
        }
        let queued = self.queued.take();
        let (lane, kind, mut place) =
            queued.unwrap_or_else(|| (current_lane(&self.target), kind, Place::default()));
        let link = self.target.route().link();
        if link.is_none_or(|link| link.poll_room(cx).is_ready()) {
            let credit = lane.credit(kind);
            if credit.poll_take(cx, &mut place, PARKED.get()).is_ready() {
                return Poll::Ready(Ok(Taken::of(lane, kind)));
            }
            if let Some(awaited) = Awaited::new(&lane, kind) {
                match Local::try_current() {
                    Some(local) => local.await_credit(awaited),
                    None => awaited.nobody(),
                }
            }
        }
        self.queued = Some((lane, kind, place));
        self.poll_in_vain(cx).map(Err)
    }

    /// Ready if there is nothing left to wait for: the target has ended, or the scope is cancelled.
    pub(crate) fn poll_in_vain(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Poll::Ready(cancel) = self.scope.poll(cx) {
            return Poll::Ready(cancelled_error(cancel));
        }
        let life = self
            .life
            .get_or_insert_with(|| Watch::new(self.target.life.clone()));
        match life.poll(cx, |life| life.exit().is_some()) {
            Poll::Ready(()) => Poll::Ready(self.target.gone()),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some((lane, kind, place)) = &mut self.queued {
            lane.credit(*kind).leave(place);
        }
    }
}

/// A tell whose function's type is known.
type TellOut<S, F, M> = Arc<Told<TellJob<S, F, M>>>;

fn told<S: 'static, F: Method<S, M>, M: 'static>(method: F, args: F::Args) -> TellOut<S, F, M>
where
    F::Args: Payload,
    F::Out: Payload,
{
    Envelope::without_reply(MethodJob {
        method,
        args,
        reply: job::Reply::NONE,
        marker: PhantomData,
    })
}

/// Sends it; what is not accepted comes back.
fn send_tell<S: 'static, F: Method<S, M>, M: 'static>(
    target: &Target,
    out: TellOut<S, F, M>,
    taken: Taken,
) -> Result<(), (Error, F::Args)>
where
    F::Args: Payload,
    F::Out: Payload,
{
    let shared = match target.route() {
        Route::Thread(shared) => shared,
        route => return send_tell_over::<S, F, M>(route.link(), target, &out, taken),
    };
    taken.lane().next_sequence();
    let out = match target.through_serde {
        true => again_through_serde(out)?,
        false => out,
    };
    let letter = Letter::seal(out, |job| job.reply.permit = Some(taken));
    let Err(letter) = shared.post(letter) else {
        return Ok(());
    };
    let envelope = letter.open().any().downcast::<Told<TellJob<S, F, M>>>();
    match envelope.ok().and_then(|envelope| envelope.take()) {
        Some(job) => Err((target.gone(), job.args)),
        None => unreachable!("a mailbox gives back the message that it was given"),
    }
}

fn send_tell_over<S: 'static, F: Method<S, M>, M: 'static>(
    link: Option<&Arc<Link>>,
    target: &Target,
    out: &Told<TellJob<S, F, M>>,
    taken: Taken,
) -> Result<(), (Error, F::Args)>
where
    F::Args: Payload,
    F::Out: Payload,
{
    let Some(MethodJob { args, .. }) = out.take() else {
        unreachable!("nobody else has it");
    };
    let Some(link) = link else {
        return Err((target.gone(), args));
    };
    let encode = |rope: &mut Rope| {
        encode(&args, rope)?;
        MethodEntry::<S, F, M, false>::DESCRIPTOR.entry()
    };
    match link.send_invoke(frame::Kind::Tell, 0, taken.lane(), encode) {
        Ok(()) => {
            // Given back by the other side, when the method has begun.
            taken.hand_over();
            Ok(())
        }
        Err(error) => Err((error, args)),
    }
}

/// The same, its arguments encoded and decoded.
fn again_through_serde<S: 'static, F: Method<S, M>, M: 'static>(
    out: TellOut<S, F, M>,
) -> Result<TellOut<S, F, M>, (Error, F::Args)>
where
    F::Args: Payload,
    F::Out: Payload,
{
    let Some(job) = out.take() else {
        unreachable!("nobody else has it");
    };
    let mut rope = Rope::default();
    let (encoded, carried) = carry::pack(|| encode(&job.args, &mut rope));
    let carried = carried.into_iter().map(Ok).collect();
    let bytes = rope.into_vec();
    match encoded.and_then(|()| carry::unpack(carried, || decode(&bytes))) {
        Ok(args) => Ok(told::<S, F, M>(job.method, args)),
        Err(error) => Err((error, job.args)),
    }
}

/// The erased form of a tell, for [`Tell`].
trait OutgoingTell {
    fn send(self: Arc<Self>, target: &Target, taken: Taken) -> Result<()>;
}

impl<S: 'static, F: Method<S, M>, M: 'static> OutgoingTell for Told<TellJob<S, F, M>>
where
    F::Args: Payload,
    F::Out: Payload,
{
    fn send(self: Arc<Self>, target: &Target, taken: Taken) -> Result<()> {
        send_tell(target, self, taken).map_err(|(error, _)| error)
    }
}

/// The future of [`Portal::tell`]: ready when the message was accepted.
#[must_use = "nothing is sent unless it is awaited"]
pub struct Tell {
    sending: Sending,
    out: Option<Arc<dyn OutgoingTell>>,
}

impl Future for Tell {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if let Err(error) = this.sending.check_scope() {
            std::task::ready!(poll_refusal(cx));
            return Poll::Ready(Err(error));
        }
        let taken = match this.sending.poll_permit(Kind::Message, cx) {
            // Room comes when its target has begun what is there, and never if that waits for this.
            Poll::Pending => match chain::check_current(&this.sending.target) {
                Ok(()) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            },
            Poll::Ready(taken) => taken?,
        };
        let Some(out) = this.out.take() else {
            return Poll::Ready(Err(polled_again()));
        };
        Poll::Ready(out.send(&this.sending.target, taken))
    }
}

impl Unpin for Tell {}

impl std::fmt::Debug for Tell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tell")
            .field("to", self.sending.target.life.identity())
            .finish_non_exhaustive()
    }
}

pub(crate) fn polled_again() -> Error {
    Error::new(
        ErrorKind::Misuse,
        "a reply was polled again after it was ready",
    )
}

enum State<T> {
    Unsent(Arc<dyn Outgoing<T>>),
    Local(oneshot::Receiver<Result<T>, dyn Outgoing<T>>),
    Remote(Remote<T>),
    Over,
}

/// An answer that is awaited over a link.
struct Remote<T> {
    link: Arc<Link>,
    correlation: u64,
    receiver: oneshot::Receiver<Result<Parcel>>,
    decode: fn(&[u8]) -> Result<T>,
    answered: bool,
}

impl<T> Drop for Remote<T> {
    fn drop(&mut self) {
        if !self.answered {
            self.link.send_drop(self.correlation);
        }
    }
}

/// The future of a call, an ask, a `run` or a `with`: its result.
///
/// Nothing is sent before it is first polled. What dropping it means stands in the
/// module's table: see [`Portal::call`] and [`Portal::ask`].
#[must_use = "nothing is sent unless it is awaited"]
pub struct Reply<T> {
    sending: Sending,
    state: State<T>,
}

impl<T> Unpin for Reply<T> {}

impl<T> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply")
            .field("from", self.sending.target.life.identity())
            .finish_non_exhaustive()
    }
}

impl<T> Reply<T> {
    fn new(sending: Sending, out: Arc<dyn Outgoing<T>>) -> Reply<T> {
        Reply {
            sending,
            state: State::Unsent(out),
        }
    }

    /// Sends it, with this credit.
    fn send(&mut self, taken: Taken) -> Result<State<T>> {
        let State::Unsent(out) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(polled_again());
        };
        let target = &self.sending.target;
        match target.route() {
            Route::Thread(shared) => {
                taken.lane().next_sequence();
                let permit = Permit::Local(taken);
                out.clone().post(shared, permit, target.through_serde)?;
                Ok(State::Local(oneshot::Receiver::new(out)))
            }
            route => {
                let Some(link) = route.link() else {
                    return Err(target.gone());
                };
                let decode = out.decode();
                let (sender, receiver) = oneshot::channel();
                let lane = taken.lane().clone();
                let permit = taken;
                let correlation = link.pend(Pending { sender, permit });
                let sent = link.send_invoke_as(correlation, &lane, |rope| out.encode(rope));
                if let Err(error) = sent {
                    link.unpend(correlation);
                    return Err(error);
                }
                Ok(State::Remote(Remote {
                    link: link.clone(),
                    correlation,
                    receiver,
                    decode,
                    answered: false,
                }))
            }
        }
    }

    /// The answer, if it is there.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match &mut self.state {
            State::Local(receiver) => match Pin::new(receiver).poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(result)) => Poll::Ready(result),
                Poll::Ready(Err(oneshot::Dropped)) => Poll::Ready(Err(self.sending.target.gone())),
            },
            State::Remote(remote) => match Pin::new(&mut remote.receiver).poll(cx) {
                Poll::Pending => {
                    remote.link.await_here(remote.correlation);
                    Poll::Pending
                }
                Poll::Ready(result) => {
                    remote.answered = true;
                    let decode = remote.decode;
                    Poll::Ready(match result {
                        Ok(Ok(parcel)) => parcel.open(decode),
                        Ok(Err(error)) => Err(error),
                        Err(oneshot::Dropped) => Err(self.sending.target.gone()),
                    })
                }
            },
            State::Unsent(_) | State::Over => Poll::Ready(Err(polled_again())),
        }
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        if let Err(error) = this.sending.check_scope() {
            // An answer that is there already is not thrown away for a cancellation.
            if let State::Local(_) | State::Remote(_) = this.state
                && let Poll::Ready(result) = this.poll_answer(cx)
            {
                this.state = State::Over;
                return Poll::Ready(result);
            }
            std::task::ready!(poll_refusal(cx));
            this.state = State::Over;
            return Poll::Ready(Err(error));
        }
        if let State::Unsent(out) = &this.state {
            let kind = out.kind();
            // Before it waits for credit, of which a cycle may have taken all.
            if kind == Kind::Message {
                chain::check_current(&this.sending.target)?;
            }
            let taken = std::task::ready!(this.sending.poll_permit(kind, cx))?;
            this.state = this.send(taken)?;
        }
        if let Poll::Ready(result) = this.poll_answer(cx) {
            this.state = State::Over;
            return Poll::Ready(result);
        }
        // Whoever ends an isolate says so; an abandoned thread will never answer.
        let error = std::task::ready!(this.sending.poll_in_vain(cx));
        // What was answered before the end counts.
        let result = match this.poll_answer(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(error),
        };
        this.state = State::Over;
        Poll::Ready(result)
    }
}

/// The future of [`Portal::cancel`]: ready when the isolate has seen it or has ended.
#[must_use = "the cancellation is under way; await this to know that it was seen"]
pub struct Cancelling {
    watch: Watch,
    refused: bool,
}

impl Future for Cancelling {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.refused {
            return Poll::Ready(());
        }
        self.watch
            .poll(cx, |life| life.is_acknowledged() || life.exit().is_some())
    }
}

impl std::fmt::Debug for Cancelling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cancelling")
            .field(self.watch.life().identity())
            .finish()
    }
}

/// The future of [`Portal::ended`]: how the isolate ended.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Ended {
    watch: Watch,
}

impl Future for Ended {
    type Output = Exit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Exit> {
        match self.watch.poll(cx, |life| life.exit().is_some()) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let lost = || Exit::Lost {
                    why: "it left no word".to_owned(),
                };
                Poll::Ready(self.watch.life().exit().cloned().unwrap_or_else(lost))
            }
        }
    }
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ended")
            .field(self.watch.life().identity())
            .finish()
    }
}

/// Waits for a future on this thread: on the isolate's own loop where a blocking isolate runs,
/// otherwise by parking the thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = std::pin::pin!(future);
    if let Some(local) = Local::try_current().filter(|local| local.is_blocking()) {
        let waker = Waker::from(Arc::new(WakeIsolate(local.shared.clone())));
        let mut cx = Context::from_waker(&waker);
        return local.run_until(|| match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        });
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let _parked = Parked(PARKED.replace(true));
    let mut poll = || future.as_mut().poll(&mut cx);
    let Some((local, scope)) = Local::try_current().zip(Scope::current()) else {
        return park_until(poll);
    };
    // The isolate serves nobody until it is over, as if a method had it.
    let turn = local.begin_turn();
    let scope = scope.child();
    scope.set_waits(Waits::new(turn.number, chain::current()));
    park_until(|| scope.enter(&mut poll))
}

fn park_until<T>(mut poll: impl FnMut() -> Poll<T>) -> T {
    loop {
        match poll() {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

thread_local! {
    /// Nothing else runs on this thread until what it waits for is there.
    static PARKED: Cell<bool> = const { Cell::new(false) };
}

/// Says what was said before, when dropped.
struct Parked(bool);

impl Drop for Parked {
    fn drop(&mut self) {
        PARKED.set(self.0);
    }
}

struct WakeIsolate(Arc<Shared>);

impl Wake for WakeIsolate {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_told<S: 'static, F: Method<S, M>, M: 'static>(_: F) -> usize
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        // With the two counts of its `Arc`.
        size_of::<Told<TellJob<S, F, M>>>() + 2 * size_of::<usize>()
    }

    /// What is told is freed by whoever receives it, and glibc frees what another thread has allocated without a lock up to 120 bytes
    /// only (its fast bins): beyond, sender and receiver contend for it, and a tell takes twice as long.
    #[test]
    fn a_message_of_64_bytes_is_freed_without_a_lock() {
        fn take(_: &mut u64, _: [u64; 8]) {}
        let size = size_of_told(take);
        assert!(size <= 120, "{size}");
    }
}
