//! Portals that cross to another process: each gets a socket of its own to the isolate, which nobody relays.
//!
//! Whoever sends a portal makes a socket pair. One end goes along with the message, the other to the process of the
//! isolate that the portal reaches: into this one's [`porter`](super::porter), or over the link by which the sender
//! reaches it itself. So anybody can introduce anybody whom it can reach, without a third who knows all. A portal to
//! an isolate of the very process that receives it needs no socket: it is known there by its id.

use super::link::Link;
use crate::carry::{Arrived, Carried};
use crate::isolate::shared::{Route, Target};
use crate::life::Life;
use crate::narrow::Allowed;
use crate::runtime::Runtime;
use crate::{Error, ErrorKind, Exit, Result};
use offshoot_sys::{limits, process, socket};
use offshoot_wire::frame::{Introduce, Introduced};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A portal that goes over this link: what is said of it, and the socket that goes along.
pub(super) fn send(link: &Link, carried: &Carried) -> Result<(Introduced, Option<OwnedFd>)> {
    let Carried { target, allowed } = carried;
    let origin = target.life.origin();
    let mut introduced = Introduced {
        limits: target.limits(),
        exit: target.life.exit().cloned(),
        allowed: allowed.to_wire()?,
        socket: false,
        origin,
    };
    let Some(holder) = link.far() else {
        let what = "a portal cannot go over a link that nobody has said the ends of";
        return Err(Error::new(ErrorKind::Protocol, what));
    };
    let route = target.route();
    let known_there = route.link().is_some_and(|to| std::ptr::eq(&**to, link))
        || (introduced.origin.pid != 0 && introduced.origin.pid == holder.pid);
    if introduced.exit.is_some() || known_there {
        return Ok((introduced, None));
    }
    let (theirs, ours) = socket::stream_pair().map_err(|error| {
        let (soft, hard) = limits::open_files();
        let message = format!(
            "cannot introduce another process to isolate `{}`: {error}; RLIMIT_NOFILE is {soft}, its hard limit {hard} \
             (`ulimit -n`)",
            introduced.origin
        );
        Error::io(message, error)
    })?;
    let introduce = Introduce {
        holder,
        allowed: introduced.allowed.clone(),
        limits: introduced.limits,
    };
    match &route {
        Route::Thread(shared) => {
            target.runtime.know(target);
            let porter = target.runtime.porter()?;
            porter.serve(ours, shared, introduce, allowed.clone());
        }
        Route::Process(process) => process.link.send_introduce(&introduce, ours)?,
        Route::Introduced(by) => by.link.send_introduce(&introduce, ours)?,
        Route::Gone => {}
    }
    introduced.socket = true;
    Ok((introduced, Some(theirs)))
}

/// A portal that has come, with its socket; `None` if there was no room for that.
pub(super) fn receive(
    runtime: Option<&Arc<Runtime>>,
    introduced: Introduced,
    socket: Option<Option<OwnedFd>>,
) -> Arrived {
    let Some(runtime) = runtime else {
        let what = "a portal came over a link that nobody has said the ends of";
        return Err(Error::new(ErrorKind::Protocol, what));
    };
    let allowed = Allowed::from_wire(introduced.allowed)?;
    let id = introduced.origin.id;
    if let Some(target) = runtime.find(id, &allowed, introduced.limits) {
        return Ok(Carried { target, allowed });
    }
    let Some(socket) = socket else {
        let (soft, hard) = limits::open_files();
        let message = format!(
            "there was no descriptor left for a portal to isolate `{}`; RLIMIT_NOFILE is {soft}, its hard limit {hard} \
             (`ulimit -n`)",
            introduced.origin
        );
        return Err(Error::new(ErrorKind::Io(None), message));
    };
    let life = Arc::new(Life::new(introduced.origin));
    let route = match (introduced.exit, socket) {
        (None, Some(socket)) => {
            let porter = runtime.porter()?;
            Route::Introduced(porter.hold(socket, &life)?)
        }
        (exit, _) => {
            // It is known here by its id, or was: of the latter nobody has kept how it ended.
            let here = life.pid() == process::id();
            life.announce(exit.unwrap_or_else(|| Exit::Lost {
                why: match here {
                    true => "it had ended before a portal to it came back".to_owned(),
                    false => "no way to it came along".to_owned(),
                },
            }));
            Route::Gone
        }
    };
    let target = Target::introduced(life, runtime.clone(), route, introduced.limits);
    if target.life.exit().is_none() {
        runtime.remember(&target, &allowed);
    }
    Ok(Carried { target, allowed })
}
