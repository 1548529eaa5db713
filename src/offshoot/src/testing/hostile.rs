//! For the project's own tests against hostile processes: what such a process has, without the runtime in between.
//!
//! It grants nothing that a process could not take by itself: all of it lies in its own memory.

use crate::descriptor::{CallEntry, MethodEntry, OpenEntry};
use crate::isolate::local::Local;
use crate::isolate::shared::Route;
use crate::process::protocol::{self, Request};
use crate::{Dialogue, Endpoint, Error, Method, Payload, Portal, Result};
use offshoot_sys::socket;
use offshoot_wire::frame::{Allowed, Entry, Introduce, Key};
use std::os::fd::OwnedFd;

/// How a function is named in a Call.
///
/// # Errors
/// It lies in a dynamic library.
pub fn function<M: 'static, F: Endpoint<M>>(_: F) -> Result<Entry>
where
    F::Args: Payload,
    F::Out: Payload,
{
    CallEntry::<F, M>::DESCRIPTOR.entry()
}

/// How a method is named in an Ask or Tell.
///
/// # Errors
/// It lies in a dynamic library.
pub fn method<S: 'static, M: 'static, F: Method<S, M>>(_: F) -> Result<Entry>
where
    F::Args: Payload,
    F::Out: Payload,
{
    MethodEntry::<S, F, M, false>::DESCRIPTOR.entry()
}

/// The holder's end of a new connection to the isolate, as introduced under this key and with all rights by this process.
///
/// # Errors
/// The isolate is not of another process that has introduced it; there is no descriptor left.
pub fn introduce<S: 'static>(portal: &Portal<S>, key: Key) -> Result<OwnedFd> {
    let target = portal.carried().target;
    let Route::Introduced(by) = target.route() else {
        return Err(Error::other("it was not introduced"));
    };
    let (ours, theirs) = socket::stream_pair()?;
    let introduce = Introduce {
        holder: crate::current().origin(),
        allowed: Allowed::All,
        limits: target.limits(),
        key,
    };
    by.link.send_introduce(&introduce, theirs)?;
    Ok(ours)
}

/// The key by which a portal came.
pub fn key<S: 'static>(portal: &Portal<S>) -> Option<Key> {
    match portal.carried().target.route() {
        Route::Introduced(by) => Some(by.hold.key()),
        _ => None,
    }
}

/// The connection of this process to its owner. Nobody else reads it while the isolate that calls this does not return to its loop.
///
/// # Errors
/// This process has no owner; there is no descriptor left.
pub fn uplink() -> Result<OwnedFd> {
    let local = Local::try_current();
    let link = local.and_then(|local| local.shared.runtime.uplink.get()?.upgrade());
    let link = link.ok_or_else(|| Error::other("this process has no owner"))?;
    Ok(link.fd().try_clone_to_owned()?)
}

/// The connection of this process to the forkserver. Its answers are read by nobody else while none of the runtime's is under way.
///
/// # Errors
/// There is none, or no descriptor left.
pub fn forkserver() -> Result<OwnedFd> {
    let local = Local::try_current().ok_or_else(|| Error::other("no isolate"))?;
    Ok(local.shared.runtime.warden()?.control()?)
}

/// Each request of the forkserver by its name, as a packet.
///
/// # Errors
/// It cannot be encoded.
pub fn requests() -> Result<Vec<(String, Vec<u8>)>> {
    let samples = Request::samples().into_iter();
    samples
        .map(|request| Ok((format!("{:?}", request.ask()), protocol::encode(&request)?)))
        .collect()
}

/// How a function is named in an Open.
///
/// # Errors
/// It lies in a dynamic library.
pub fn dialogue<M: 'static, F: Dialogue<M>>(_: F) -> Result<Entry>
where
    F::Args: Payload,
    F::R: Payload,
{
    OpenEntry::<F, M>::DESCRIPTOR.entry()
}
