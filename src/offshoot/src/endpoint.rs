//! Any function is an endpoint, any method is a message: the traits that make it so.
//!
//! Nobody implements these by hand. [`Endpoint`] is what [`Portal::call`](crate::Portal::call)
//! takes, [`Method`] what [`Portal::ask`](crate::Portal::ask) and [`Portal::tell`](crate::Portal::tell)
//! take. Both are implemented for functions of 0 to 6 arguments beside the state, async or not,
//! for closures that capture nothing, trait methods and generics. The `M` parameter only keeps the
//! implementations apart and is always inferred.
//!
//! The two implementations for plain functions ask for a result that is a [`Payload`]: without
//! that bound an async closure would match them too and its result fall back to `!`.

use crate::isolate::local::Local;
use crate::sniff;
use serde::{Serialize, de::DeserializeOwned};
use std::marker::PhantomData;

/// A value that can be sent to another isolate: owned, `Send`, and with serde's two traits.
///
/// Implemented for all that qualify. Between threads a payload is moved and never serialized;
/// between processes it is encoded. What has no serde implementation can still be given to a
/// thread through [`LocalPortal::run`](crate::LocalPortal::run) and
/// [`LocalPortal::with`](crate::LocalPortal::with).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent to another isolate",
    label = "not a payload",
    note = "a payload is owned and `Send`, and it and each type inside of it has `#[derive(Serialize, Deserialize)]`",
    note = "in place of `Box<dyn Error>` return `offshoot::Error`, into which `?` and `Error::other` make any other",
    note = "a method, which takes `&mut` of the isolate's state, is given to `ask` or `tell` in place of `call`",
    note = "what must not or cannot be serialized stays in this process: give it to `run` or `with` of a `LocalPortal`, or as a state to `Nursery::start_local`"
)]
pub trait Payload: Serialize + DeserializeOwned + Send + 'static {}

// Without this, the compiler speaks of what serde lacks for a part of it, and of nothing else.
#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned + Send + 'static> Payload for T {}

/// A function that can be called on an isolate: `async fn(A, B) -> R` or `fn(A, B) -> R`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a function that an isolate can be called with",
    label = "not an endpoint",
    note = "an endpoint is a function or a closure that captures nothing, of 0 to 6 owned arguments, with an owned serde result",
    note = "a closure that captures can be given to `run` of a `LocalPortal`, see `Nursery::spawn_local`"
)]
pub trait Endpoint<M>: Copy + Send + 'static {
    /// The arguments: `()`, the argument itself, or a tuple of two to six.
    type Args;
    /// What the function returns.
    type Out;
    /// Runs it.
    fn invoke(self, args: Self::Args) -> impl Future<Output = Self::Out>;

    /// It is no async function.
    #[doc(hidden)]
    const PLAIN: bool = false;
    /// Runs it at once; gives the arguments back if it is async.
    #[doc(hidden)]
    fn invoke_plain(self, args: Self::Args) -> Result<Self::Out, Self::Args> {
        Err(args)
    }
}

/// A method of a state `S`: `async fn(&mut S, A) -> R`, also with `&S`, also not async.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a method of `{S}` that an isolate can be asked",
    label = "not a method of `{S}`",
    note = "a method takes `&mut {S}` or `&{S}` and 0 to 6 owned arguments, and returns an owned serde value",
    note = "what captures or returns something else can be given to `with` of a `LocalPortal`, see `Nursery::start_local`"
)]
pub trait Method<S, M>: Copy + Send + 'static {
    /// The arguments beside the state.
    type Args;
    /// What the method returns.
    type Out;
    /// Runs it on the state.
    fn apply<'a>(self, state: &'a mut S, args: Self::Args) -> impl Future<Output = Self::Out> + 'a;

    /// It is no async function.
    #[doc(hidden)]
    const PLAIN: bool = false;
    /// Runs it at once; gives the arguments back if it is async.
    #[doc(hidden)]
    fn apply_plain(self, state: &mut S, args: Self::Args) -> Result<Self::Out, Self::Args> {
        let _ = state;
        Err(args)
    }
}

/// Keeps the implementation for plain functions apart from the one for async ones.
#[doc(hidden)]
pub struct Plain<T>(PhantomData<T>);
/// `async fn(&mut S, ..)`.
#[doc(hidden)]
pub struct AsyncMut<T>(PhantomData<T>);
/// `async fn(&S, ..)`.
#[doc(hidden)]
pub struct AsyncRef<T>(PhantomData<T>);
/// `fn(&mut S, ..)`.
#[doc(hidden)]
pub struct SyncMut<T>(PhantomData<T>);
/// `fn(&S, ..)`.
#[doc(hidden)]
pub struct SyncRef<T>(PhantomData<T>);

/// A method whose error is logged where it is told, instead of failing the isolate.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct MayFail<F>(pub(crate) F);

/// Keeps its implementation apart from those for functions.
pub(crate) struct Lossy<M>(PhantomData<M>);

impl<F> MayFail<F> {
    fn let_go<T: Payload>(value: &T) {
        let method = std::any::type_name::<F>();
        if let Some(error) = sniff::failure_in(value, method) {
            let isolate = Local::try_current().map(|local| local.shared.life.origin());
            let isolate = isolate.map_or_else(String::new, |origin| origin.to_string());
            crate::log::warn!(isolate, method, %error, "a method failed that may fail");
        }
    }
}

impl<S: 'static, M: 'static, F: Method<S, M>> Method<S, Lossy<M>> for MayFail<F>
where
    F::Args: 'static,
    F::Out: Payload,
{
    type Args = F::Args;
    type Out = ();

    async fn apply(self, state: &mut S, args: Self::Args) {
        Self::let_go(&self.0.apply(state, args).await);
    }

    const PLAIN: bool = F::PLAIN;

    fn apply_plain(self, state: &mut S, args: Self::Args) -> Result<(), Self::Args> {
        self.0
            .apply_plain(state, args)
            .map(|value| Self::let_go(&value))
    }
}

macro_rules! endpoints {
    ($args:ty, $pattern:pat, [$($T:ident $t:ident),*]) => {
        impl<F, R, $($T),*> Endpoint<fn($($T),*) -> R> for F
        where
            F: AsyncFn($($T),*) -> R + Copy + Send + 'static,
        {
            type Args = $args;
            type Out = R;
            fn invoke(self, $pattern: Self::Args) -> impl Future<Output = R> {
                async move { self($($t),*).await }
            }
        }

        impl<F, R: Payload, $($T),*> Endpoint<Plain<fn($($T),*) -> R>> for F
        where
            F: Fn($($T),*) -> R + Copy + Send + 'static,
        {
            type Args = $args;
            type Out = R;
            fn invoke(self, $pattern: Self::Args) -> impl Future<Output = R> {
                async move { self($($t),*) }
            }
            const PLAIN: bool = true;
            fn invoke_plain(self, $pattern: Self::Args) -> Result<R, Self::Args> {
                Ok(self($($t),*))
            }
        }

        impl<S: 'static, F, R: 'static, $($T: 'static),*> Method<S, AsyncMut<fn($($T),*) -> R>> for F
        where
            F: AsyncFn(&mut S, $($T),*) -> R + Copy + Send + 'static,
        {
            type Args = $args;
            type Out = R;
            fn apply<'a>(self, state: &'a mut S, $pattern: Self::Args) -> impl Future<Output = R> + 'a {
                async move { self(state, $($t),*).await }
            }
        }

        impl<S: 'static, F, R: 'static, $($T: 'static),*> Method<S, AsyncRef<fn($($T),*) -> R>> for F
        where
            F: AsyncFn(&S, $($T),*) -> R + Copy + Send + 'static,
        {
            type Args = $args;
            type Out = R;
            fn apply<'a>(self, state: &'a mut S, $pattern: Self::Args) -> impl Future<Output = R> + 'a {
                async move { self(&*state, $($t),*).await }
            }
        }

        impl<S: 'static, F, R: Payload, $($T: 'static),*> Method<S, SyncMut<fn($($T),*) -> R>> for F
        where
            F: Fn(&mut S, $($T),*) -> R + Copy + Send + 'static,
        {
            type Args = $args;
            type Out = R;
            fn apply<'a>(self, state: &'a mut S, $pattern: Self::Args) -> impl Future<Output = R> + 'a {
                async move { self(state, $($t),*) }
            }
            const PLAIN: bool = true;
            fn apply_plain(self, state: &mut S, $pattern: Self::Args) -> Result<R, Self::Args> {
                Ok(self(state, $($t),*))
            }
        }

        impl<S: 'static, F, R: Payload, $($T: 'static),*> Method<S, SyncRef<fn($($T),*) -> R>> for F
        where
            F: Fn(&S, $($T),*) -> R + Copy + Send + 'static,
        {
            type Args = $args;
            type Out = R;
            fn apply<'a>(self, state: &'a mut S, $pattern: Self::Args) -> impl Future<Output = R> + 'a {
                async move { self(&*state, $($t),*) }
            }
            const PLAIN: bool = true;
            fn apply_plain(self, state: &mut S, $pattern: Self::Args) -> Result<R, Self::Args> {
                Ok(self(&*state, $($t),*))
            }
        }
    };
}

endpoints!((), (), []);
endpoints!(A, a, [A a]);
endpoints!((A, B), (a, b), [A a, B b]);
endpoints!((A, B, C), (a, b, c), [A a, B b, C c]);
endpoints!((A, B, C, D), (a, b, c, d), [A a, B b, C c, D d]);
endpoints!((A, B, C, D, E), (a, b, c, d, e), [A a, B b, C c, D d, E e]);
endpoints!((A, B, C, D, E, G), (a, b, c, d, e, g), [A a, B b, C c, D d, E e, G g]);
