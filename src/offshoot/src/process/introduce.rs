//! Portals that cross to another process: each gets a socket of its own to the isolate, which nobody relays.
//!
//! The sender of a portal makes a socket pair. One end goes along with the message, the other to the process of the
//! isolate that the portal reaches: into this one's [`porter`](super::porter), or over the link by which the sender
//! reaches it itself. So anybody can introduce anybody whom it can reach, without a third who knows all.
//!
//! No socket is needed where the receiver has one, or is the process of the isolate. It is then named by the connection
//! itself, or by the [key](super::keys) by which it was given.

use super::keys::Known;
use super::link::Link;
use super::porter::{Came, Introduction, Named};
use crate::carry::{Arrived, Carried};
use crate::isolate::shared::{Route, Target};
use crate::life::Life;
use crate::narrow::Allowed;
use crate::runtime::Runtime;
use crate::{Error, ErrorKind, Exit, Origin, Result};
use offshoot_sys::{limits, socket};
use offshoot_wire::frame::{Introduce, Introduced, Key, Reached};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A portal that goes over this link: what is said of it, and the socket that goes along.
pub(super) fn send(link: &Link, carried: &Carried) -> Result<(Introduced, Option<OwnedFd>)> {
    let Carried { target, allowed } = carried;
    let Some(holder) = link.far() else {
        let what = "a portal cannot go over a link that nobody has said the ends of";
        return Err(Error::new(ErrorKind::Protocol, what));
    };
    let introduced = |reached| -> Result<Introduced> {
        Ok(Introduced {
            origin: target.life.origin(),
            limits: target.limits(),
            allowed: allowed.to_wire()?,
            reached,
        })
    };
    if let Some(exit) = target.life.exit() {
        return Ok((introduced(Reached::Ended(exit.clone()))?, None));
    }
    let route = target.route();
    if route.link().is_some_and(|to| std::ptr::eq(&**to, link)) {
        return Ok((introduced(Reached::Receiver)?, None));
    }
    let known = match route {
        Route::Thread(shared) if link.table().is_of(shared) => {
            return Ok((introduced(Reached::Sender)?, None));
        }
        Route::Gone => {
            let why = "its sender is a copy of the process that had a way to it".to_owned();
            return Ok((introduced(Reached::Ended(Exit::Lost { why }))?, None));
        }
        Route::Introduced(by) => by.hold.came.named_to(link, &holder, &target.life, allowed),
        Route::Thread(_) | Route::Process(_) => None,
    };
    let known = match known {
        Some(Named::Surely(key)) => return Ok((introduced(Reached::Key(key))?, None)),
        Some(Named::Perhaps(key)) => Some(key),
        None => None,
    };
    let (theirs, key) = introduce(link, target, allowed, holder)?;
    let home = matches!(route, Route::Thread(_));
    let reached = Reached::Socket { key, home, known };
    Ok((introduced(reached)?, Some(theirs)))
}

/// Makes a socket to this isolate for the other end of the link, and the key by which it is given over that.
fn introduce(
    link: &Link,
    target: &Arc<Target>,
    allowed: &Allowed,
    holder: Origin,
) -> Result<(OwnedFd, Key)> {
    let runtime = &target.runtime;
    let failed = |error: &dyn std::fmt::Display| {
        let origin = target.life.origin();
        format!("cannot introduce another process to isolate `{origin}`: {error}")
    };
    let (theirs, ours) = socket::stream_pair().map_err(|error| {
        let (soft, hard) = limits::open_files();
        let limit = format!("; RLIMIT_NOFILE is {soft}, its hard limit {hard} (`ulimit -n`)");
        Error::io(failed(&error) + &limit, error)
    })?;
    let table = link.table();
    let key = table
        .portals()
        .give(runtime.keys(), table.number, target, allowed)?;
    let introduce = Introduce {
        holder,
        allowed: allowed.to_wire()?,
        limits: target.limits(),
        key,
    };
    match target.route() {
        Route::Thread(shared) => {
            let porter = runtime.porter()?;
            porter
                .serve(ours, shared, introduce, allowed, table)
                .map_err(|error| Error::new(error.kind().clone(), failed(&error)))?;
        }
        Route::Process(process) => process.link.send_introduce(&introduce, ours)?,
        Route::Introduced(by) => by.link.send_introduce(&introduce, ours)?,
        Route::Gone => {}
    }
    Ok((theirs, key))
}

/// A portal that has come, with its socket; `None` if there was no room for that.
///
/// Only by the connection, its table, the keys of this process and the socket is decided where it leads. What is said of it
/// takes away from that, or names it in texts.
pub(super) fn receive(
    link: &Arc<Link>,
    introduced: Introduced,
    socket: Option<OwnedFd>,
) -> Arrived {
    let Some(runtime) = link.runtime() else {
        let what = "a portal came over a link that nobody has said the ends of";
        return Err(Error::new(ErrorKind::Protocol, what));
    };
    let Introduced {
        origin,
        limits: (messages, calls),
        allowed,
        reached,
    } = introduced;
    let allowed = Allowed::from_wire(allowed)?;
    // With none, a call would wait for ever.
    let limits = (messages.max(1), calls.max(1));
    let table = link.table();
    let with = |(target, given): (Arc<Target>, Allowed)| Carried {
        target,
        allowed: given.and(&allowed),
    };
    let gone = |life: Arc<Life>| {
        let target = Target::introduced(life, runtime.clone(), Route::Gone, limits);
        let allowed = allowed.clone();
        Carried { target, allowed }
    };
    let find = |key| {
        if let Some(given) = table.portals().given(key) {
            return Some(with(given));
        }
        match runtime.keys().find(key)? {
            Known::Isolate(target, given) => Some(with((target, given))),
            Known::Ended(life) => Some(gone(life)),
        }
    };
    let refused = || {
        let message = format!(
            "a portal came that was said to be to isolate `{origin}`, and this process has not given it: \
             the sender made it up, or the connection by which it was given has ended"
        );
        Error::new(ErrorKind::Protocol, message)
    };
    let (key, home) = match reached {
        Reached::Receiver => return table.served().map(with).ok_or_else(refused),
        Reached::Sender => {
            let target = table.owned().ok_or_else(refused)?;
            return Ok(Carried { target, allowed });
        }
        Reached::Key(key) => return find(key).ok_or_else(refused),
        Reached::Ended(exit) => {
            let life = Life::new(origin);
            life.announce(exit);
            return Ok(gone(Arc::new(life)));
        }
        Reached::Socket { key, home, known } => {
            if let Some(carried) = known.and_then(find).or_else(|| find(key)) {
                return Ok(carried);
            }
            (key, home)
        }
    };
    if let Some(target) = in_use(&runtime, link, key, limits) {
        return Ok(Carried { target, allowed });
    }
    let Some(socket) = socket else {
        let (soft, hard) = limits::open_files();
        let message = format!(
            "there was no descriptor left for a portal to isolate `{origin}`; RLIMIT_NOFILE is {soft}, its hard limit {hard} \
             (`ulimit -n`)"
        );
        return Err(Error::new(ErrorKind::Io(None), message));
    };
    let life = Arc::new(Life::new(origin));
    let came = Came::new(link, key, home, &allowed);
    let introduction = runtime.porter()?.hold(socket, &life, came)?;
    let target = target(&runtime, link, key, &introduction, limits);
    Ok(Carried { target, allowed })
}

/// What came by this key before, if its socket is in use: so nothing overtakes what was told over that.
fn in_use(
    runtime: &Arc<Runtime>,
    link: &Arc<Link>,
    key: Key,
    limits: (u32, u32),
) -> Option<Arc<Target>> {
    let (known, hold) = link.table().portals().got(key)?;
    // One that lives has a use of it, so that it cannot end before it is returned.
    if known.is_some() && !hold.is_over() {
        return known;
    }
    let introduction = hold.retain()?;
    Some(target(runtime, link, key, &introduction, limits))
}

/// What portals point to that came by this key.
fn target(
    runtime: &Arc<Runtime>,
    link: &Arc<Link>,
    key: Key,
    introduction: &Arc<Introduction>,
    limits: (u32, u32),
) -> Arc<Target> {
    let hold = introduction.hold.clone();
    let route = Route::Introduced(introduction.clone());
    let target = Target::introduced(hold.life.clone(), runtime.clone(), route, limits);
    link.table().portals().keep(key, &target, hold);
    target
}
