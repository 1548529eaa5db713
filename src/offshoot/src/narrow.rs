//! What may be called through a portal: everything, unless it was narrowed.
//!
//! Giving a portal away is what exposes an isolate, since nobody has one who was not given it. [`Portal::narrow`]
//! gives away less. The process of the isolate looks at each message that comes from a holder elsewhere, so that it
//! does not matter what runs there; a holder of the same process is only told what it may not.

use crate::descriptor::{CallEntry, Descriptor, MethodEntry, OpenEntry, Run, captures_nothing};
use crate::endpoint::{Lossy, MayFail};
use crate::{Dialogue, Endpoint, Error, ErrorKind, Method, Payload, Portal, Result};
use offshoot_wire::frame;
use std::sync::Arc;

/// What a portal, or a connection, lets through.
#[derive(Clone, Default)]
pub(crate) struct Allowed(Option<Arc<Only>>);

#[derive(Clone, Default)]
struct Only {
    methods: bool,
    cancel: bool,
    endpoints: Vec<&'static Descriptor>,
}

impl Allowed {
    /// True if it lets everything through.
    pub(crate) fn is_all(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn permits(&self, descriptor: &Descriptor) -> bool {
        let Some(only) = &self.0 else { return true };
        let method = matches!(descriptor.run(), Run::Method(_));
        (only.methods && method) || only.endpoints.iter().any(|one| one.is_same(descriptor))
    }

    pub(crate) fn permits_cancel(&self) -> bool {
        self.0.as_ref().is_none_or(|only| only.cancel)
    }

    /// Fails if this may not be called.
    pub(crate) fn check(&self, descriptor: &Descriptor) -> Result<()> {
        if self.permits(descriptor) {
            return Ok(());
        }
        let message = format!(
            "`{}` may not be called through this portal, which was narrowed: whoever gave it can allow it, see \
             `Portal::narrow`",
            descriptor.name()
        );
        Err(Error::new(ErrorKind::Misuse, message))
    }

    /// What both let through.
    pub(crate) fn and(&self, other: &Allowed) -> Allowed {
        let (Some(one), Some(two)) = (&self.0, &other.0) else {
            return if self.is_all() { other } else { self }.clone();
        };
        let both = one.endpoints.iter().filter(|one| other.permits(one));
        let others = two.endpoints.iter().filter(|two| self.permits(two));
        let mut endpoints: Vec<&'static Descriptor> = both.copied().collect();
        for two in others {
            if !endpoints.iter().any(|one| one.is_same(two)) {
                endpoints.push(two);
            }
        }
        Allowed(Some(Arc::new(Only {
            methods: one.methods && two.methods,
            cancel: one.cancel && two.cancel,
            endpoints,
        })))
    }

    /// True if both let the same through.
    pub(crate) fn is_same(&self, other: &Allowed) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(two)) => {
                let within = |one: &Only, two: &Only| {
                    let has = |a: &Descriptor| two.endpoints.iter().any(|b| b.is_same(a));
                    one.endpoints.iter().all(|a| has(a))
                };
                let flags = (one.methods, one.cancel) == (two.methods, two.cancel);
                flags && within(one, two) && within(two, one)
            }
            _ => false,
        }
    }

    /// It as it crosses.
    pub(crate) fn to_wire(&self) -> Result<frame::Allowed> {
        Ok(match &self.0 {
            None => frame::Allowed::All,
            Some(only) => frame::Allowed::Only {
                methods: only.methods,
                cancel: only.cancel,
                entries: only
                    .endpoints
                    .iter()
                    .map(|endpoint| endpoint.entry())
                    .collect::<Result<_>>()?,
            },
        })
    }

    /// It as it has crossed.
    pub(crate) fn from_wire(allowed: frame::Allowed) -> Result<Allowed> {
        Ok(Allowed(match allowed {
            frame::Allowed::All => None,
            frame::Allowed::Only {
                methods,
                cancel,
                entries,
            } => Some(Arc::new(Only {
                methods,
                cancel,
                endpoints: entries
                    .into_iter()
                    .map(Descriptor::find)
                    .collect::<Result<_>>()?,
            })),
        }))
    }
}

impl<S: 'static> Portal<S> {
    /// A portal to the same isolate through which no more may be called than is now said, whoever holds it: for an
    /// isolate that is not to be trusted with everything. Not more than this one lets through.
    ///
    /// Without it, whoever is given a portal can call every function on that isolate, as a process also such as
    /// nobody in it would think of.
    ///
    /// # Examples
    /// ```
    /// use offshoot::prelude::*;
    ///
    /// async fn guess(counter: Portal<u64>) -> Result<bool> {
    ///     counter.ask(|n: &mut u64| *n += 1, ()).await?;
    ///     Ok(counter.call(|| (), ()).await.is_err())
    /// }
    ///
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let counter = nursery.start("counter", 0_u64).await?;
    ///     let risky = nursery.spawn(Isolate::named("risky").process()).await?;
    ///     assert!(risky.call(guess, counter.narrow().methods().portal()).await??);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn narrow(&self) -> Narrow<S> {
        Narrow {
            of: self.clone(),
            only: Only::default(),
        }
    }
}

/// What a narrowed portal is to let through; made by [`Portal::narrow`]. At first nothing but to see its end.
#[must_use = "it is no portal before `portal`"]
pub struct Narrow<S> {
    of: Portal<S>,
    only: Only,
}

impl<S: 'static> Narrow<S> {
    /// Lets `function` be called.
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
    ///     let narrowed = farm.narrow().call(square).portal();
    ///     assert_eq!(narrowed.call(square, 3).await?, 9);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn call<M: 'static, F: Endpoint<M>>(mut self, function: F) -> Narrow<S>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        let _ = function;
        self.only.endpoints.push(CallEntry::<F, M>::DESCRIPTOR);
        self
    }

    /// Lets `method` be asked and told.
    pub fn ask<M: 'static, F: Method<S, M>>(mut self, method: F) -> Narrow<S>
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        captures_nothing!(F);
        let _ = method;
        let lossy = MethodEntry::<S, MayFail<F>, Lossy<M>, false>::DESCRIPTOR;
        self.only.endpoints.push(lossy);
        let descriptor = MethodEntry::<S, F, M, false>::DESCRIPTOR;
        self.only.endpoints.push(descriptor);
        self
    }

    /// Lets `function` be opened.
    pub fn open<M: 'static, F: Dialogue<M>>(mut self, function: F) -> Narrow<S>
    where
        F::Args: Payload,
        F::R: Payload,
    {
        captures_nothing!(F);
        let _ = function;
        self.only.endpoints.push(OpenEntry::<F, M>::DESCRIPTOR);
        self
    }

    /// Lets every method of the state be asked and told.
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
    ///     let counter = nursery.start("counter", Counter { total: 0 }).await?;
    ///     let narrowed = counter.narrow().methods().portal();
    ///     assert_eq!(narrowed.ask(Counter::add, 3).await?, 3);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn methods(mut self) -> Narrow<S> {
        self.only.methods = true;
        self
    }

    /// Lets the isolate be cancelled.
    pub fn cancel(mut self) -> Narrow<S> {
        self.only.cancel = true;
        self
    }

    /// The portal.
    pub fn portal(self) -> Portal<S> {
        let only = Allowed(Some(Arc::new(self.only)));
        self.of.allowing(&only)
    }
}

impl<S> std::fmt::Debug for Narrow<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Narrow")
            .field("of", &self.of)
            .field("endpoints", &self.only.endpoints)
            .field("methods", &self.only.methods)
            .field("cancel", &self.only.cancel)
            .finish()
    }
}
