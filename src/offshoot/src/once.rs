//! A resource that is opened by the first of its users and closed after the last.

use crate::Result;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

/// A resource of one isolate: whoever needs it gets a [`Lease`], the first one opens it, and with the last lease it is
/// dropped. Whoever needs it after that opens it anew.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// use offshoot::Once;
///
/// # offshoot::run(async || {
/// let connection = Once::new();
/// let first = connection.get(async || Ok("opened".to_owned())).await?;
/// let second = connection.get(async || unreachable!("it is open")).await?;
/// assert_eq!(*first, *second);
/// drop((first, second));
/// assert!(!connection.is_open());
/// # Ok(())
/// # }).unwrap();
/// ```
pub struct Once<T> {
    value: RefCell<Weak<T>>,
    opening: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl<T> Once<T> {
    /// One that is not open.
    pub fn new() -> Once<T> {
        Once {
            value: RefCell::new(Weak::new()),
            opening: Cell::new(false),
            waiting: RefCell::default(),
        }
    }

    /// A lease of the resource, which `open` makes if nobody has one. While somebody opens it, others wait.
    ///
    /// # Errors
    /// Those of `open`. They are of this caller only: whoever waits then opens it itself.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use offshoot::Once;
    ///
    /// # offshoot::run(async || {
    /// let connection = Once::new();
    /// let lease = connection.get(async || Ok(String::from("open"))).await?;
    /// assert_eq!(*lease, "open");
    /// assert!(connection.is_open());
    /// drop(lease);
    /// assert!(!connection.is_open());
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub async fn get<F>(&self, open: F) -> Result<Lease<T>>
    where
        F: AsyncFnOnce() -> Result<T>,
    {
        poll_fn(|cx| {
            if self.opening.get() {
                self.waiting.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        let there = self.value.borrow().upgrade();
        if let Some(value) = there {
            return Ok(Lease(value));
        }
        self.opening.set(true);
        // Also if the opening fails or is dropped.
        let _opened = Opened(self);
        let value = Rc::new(open().await?);
        *self.value.borrow_mut() = Rc::downgrade(&value);
        Ok(Lease(value))
    }

    /// True while somebody has a lease.
    pub fn is_open(&self) -> bool {
        self.value.borrow().strong_count() > 0
    }
}

struct Opened<'a, T>(&'a Once<T>);

impl<T> Drop for Opened<'_, T> {
    fn drop(&mut self) {
        self.0.opening.set(false);
        let waiting = self.0.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl<T> Default for Once<T> {
    fn default() -> Once<T> {
        Once::new()
    }
}

impl<T> std::fmt::Debug for Once<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Once")
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

/// The use of what a [`Once`] has opened. The last one that is dropped closes it.
#[must_use = "the resource is open for as long as this is kept"]
pub struct Lease<T>(Rc<T>);

impl<T> Clone for Lease<T> {
    fn clone(&self) -> Lease<T> {
        Lease(self.0.clone())
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.0).finish()
    }
}
