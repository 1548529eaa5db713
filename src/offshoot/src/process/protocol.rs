//! What a process and the forkserver say to each other: one packet, one value, some descriptors.

use crate::{Error, ErrorKind, Result};
use offshoot_sys::fork::{self, Limit};
use offshoot_sys::pidfd::Status;
use offshoot_sys::surroundings::{Attribute, Variable};
use offshoot_sys::{process, socket};
use offshoot_wire::codec;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The argument by which `ps` shows the forkserver.
pub(crate) const NAME: &str = "offshoot-forkserver";
/// The name of a child that waits in reserve.
pub(crate) const RESERVE: &str = "offshoot-reserve";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The root's first: the tree's directory and its lock follow as descriptors. So many children
    /// are to wait in reserve, and each process is to have a control group where there are any; and
    /// this is what they may do, as [`Rights`](offshoot_sys::rights::Rights) puts it.
    Hello {
        build_id: Vec<u8>,
        reserve: u32,
        cgroups: bool,
        rights: Vec<u64>,
        /// How the caller of `run` is scheduled, which is how all helpers are.
        caller: Vec<u64>,
        faults: String,
    },
    /// The root's: so many are to wait in reserve from now on.
    Reserve { processes: u32 },
    /// Fork. Descriptors: the link, then as the outfit says.
    Spawn { request: u64, outfit: Outfit },
    /// The root's: it has made a child that waited in its hand its own.
    Claim { blank: u64, request: u64 },
    /// Make a bind table for the asking process, or extend what its sweep may touch; the directory follows.
    Enroll { grant: bool },
    /// Let a process that the asking one has spawned have addresses in the directory that follows.
    Grant { request: u64 },
}

/// A request without what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Hello,
    Reserve,
    Spawn,
    Claim,
    Enroll,
    Grant,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// The root, of which nothing has come yet.
    NewRoot,
    Root,
    /// A process that is an isolate, or may be one of which the root has not said so yet.
    Isolate,
    /// One that waits in reserve here, and runs nothing of a user.
    Reserve,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Served,
    /// The connection ends, and its process with it.
    Ends,
}

impl Ask {
    /// Who may ask for what, in the order of [`Asker`]: the one place where that is decided. Its like for frames is `offshoot_wire::order`.
    fn verdicts(self) -> [Verdict; 4] {
        use Verdict::{Ends, Served};
        match self {
            // Says who is the root of what tree, once.
            Ask::Hello => [Served, Ends, Ends, Ends],
            Ask::Reserve => [Ends, Served, Ends, Ends],
            Ask::Spawn => [Ends, Served, Served, Ends],
            // The reserve that is claimed is in the root's hand alone.
            Ask::Claim => [Ends, Served, Ends, Ends],
            Ask::Enroll => [Ends, Served, Served, Ends],
            Ask::Grant => [Ends, Served, Served, Ends],
        }
    }

    /// What comes of it from this one.
    pub(crate) fn verdict(self, asker: Asker) -> Verdict {
        self.verdicts()[asker as usize]
    }
}

impl Request {
    pub(crate) fn ask(&self) -> Ask {
        match self {
            Request::Hello { .. } => Ask::Hello,
            Request::Reserve { .. } => Ask::Reserve,
            Request::Spawn { .. } => Ask::Spawn,
            Request::Claim { .. } => Ask::Claim,
            Request::Enroll { .. } => Ask::Enroll,
            Request::Grant { .. } => Ask::Grant,
        }
    }

    /// One of each, as whoever wants to try them would make it.
    #[cfg(any(test, feature = "fault-points"))]
    pub(crate) fn samples() -> [Request; 6] {
        let all = [
            Ask::Hello,
            Ask::Reserve,
            Ask::Spawn,
            Ask::Claim,
            Ask::Enroll,
            Ask::Grant,
        ];
        all.map(|ask| match ask {
            Ask::Hello => Request::Hello {
                build_id: offshoot_sys::image::build_id().to_vec(),
                reserve: 0,
                cgroups: false,
                rights: Vec::new(),
                caller: Vec::new(),
                faults: String::new(),
            },
            Ask::Reserve => Request::Reserve { processes: 0 },
            Ask::Spawn => Request::Spawn {
                request: 1 << 40,
                outfit: Outfit {
                    name: "sample".to_owned(),
                    umask: None,
                    limits: Vec::new(),
                    directory: false,
                    stdio: [false; 3],
                    grants: None,
                    attributes: Vec::new(),
                    variables: Vec::new(),
                },
            },
            Ask::Claim => Request::Claim {
                blank: 3,
                request: 1,
            },
            Ask::Enroll => Request::Enroll { grant: false },
            Ask::Grant => Request::Grant { request: 1 },
        })
    }
}

/// What a process is given at its start, as it crosses; its descriptors follow beside it. By itself
/// it is what a child that waits in reserve is told first, by the forkserver with its link or by its owner on the link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outfit {
    pub(crate) name: String,
    pub(crate) umask: Option<u32>,
    pub(crate) limits: Vec<(u8, u64, u64)>,
    /// Whether its working directory follows.
    pub(crate) directory: bool,
    /// Which of its standard descriptors follow.
    pub(crate) stdio: [bool; 3],
    /// The only directories in which it may have addresses: so many follow, last. With none here, wherever the asking process may.
    pub(crate) grants: Option<u8>,
    /// What the spawning thread has otherwise than the forkserver's children, see [`Surroundings`](offshoot_sys::surroundings::Surroundings).
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) variables: Vec<Variable>,
}

impl Outfit {
    /// What of it is no descriptor.
    ///
    /// # Errors
    /// When a limit is none that is known here.
    pub(crate) fn plain(&self) -> io::Result<fork::Outfit> {
        let limits = self.limits.iter().map(|&(number, soft, hard)| {
            let limit = LIMITS.get(usize::from(number)).copied();
            limit.map(|limit| (limit, soft, hard)).ok_or(number)
        });
        let limits = limits
            .collect::<Result<Vec<_>, u8>>()
            .map_err(|number| io::Error::other(format!("unknown resource limit {number}")))?;
        Ok(fork::Outfit {
            name: self.name.clone(),
            umask: self.umask,
            limits,
            attributes: self.attributes.clone(),
            variables: self.variables.clone(),
            ..fork::Outfit::default()
        })
    }

    /// The link and the outfit, with the descriptors that came beside it.
    ///
    /// # Errors
    /// As of [`plain`](Outfit::plain), and when descriptors are missing.
    pub(crate) fn unpack(&self, fds: Vec<OwnedFd>) -> io::Result<(OwnedFd, fork::Outfit)> {
        let mut fds = fds.into_iter();
        let link = fds.next().ok_or_else(missing)?;
        Ok((link, self.with(fds)?))
    }

    /// How many descriptors follow it, but for a link.
    pub(crate) fn fds(&self) -> usize {
        usize::from(self.directory) + self.stdio.iter().filter(|wanted| **wanted).count()
    }

    /// The outfit with its descriptors, none of which is a link.
    ///
    /// # Errors
    /// As of [`unpack`](Outfit::unpack).
    pub(crate) fn with(&self, fds: impl IntoIterator<Item = OwnedFd>) -> io::Result<fork::Outfit> {
        let mut outfit = self.plain()?;
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(missing);
        if self.directory {
            outfit.cwd = Some(next()?);
        }
        for (slot, wanted) in outfit.stdio.iter_mut().zip(self.stdio) {
            if wanted {
                *slot = Some(next()?);
            }
        }
        Ok(outfit)
    }
}

fn missing() -> io::Error {
    io::Error::other("a spawn request lacks descriptors")
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// It serves, and its children have these surroundings.
    Welcome { surroundings: Vec<u64> },
    /// Its last word: why it does not serve, or not any more.
    Refused { why: String },
    /// It is forked; its pidfd follows.
    Spawned {
        request: u64,
        pid: i32,
        cgroup: bool,
    },
    /// To the root: a child waits for it. The owner's end of its link and its pidfd follow.
    Blank { blank: u64, pid: i32, cgroup: bool },
    /// To the root: one that it had in its hand has died there.
    Gone { blank: u64 },
    /// It is not forked.
    Failed {
        request: u64,
        error: String,
        errno: Option<i32>,
    },
    /// It is dead and reaped, but for a tracer: whoever waits for it waits no more.
    Died { request: u64, end: End },
    /// It is swept, too, what it had started has ended, and so has all that it owned.
    Exited { request: u64, end: End },
    /// The bind table and the private directory follow, if this was the first time.
    /// The answer to a `Grant`, too.
    Enrolled { key: u64, error: Option<Refusal> },
}

/// How a process has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) signal: bool,
    pub(crate) code: i32,
    pub(crate) core: bool,
    /// Why it was killed, if the forkserver has done that.
    pub(crate) why: Option<String>,
    /// The thread that traces it and has not waited for it, so that it cannot be reaped; else 0.
    pub(crate) tracer: i32,
}

impl End {
    pub(crate) fn new(status: Status, why: Option<String>, tracer: i32) -> End {
        let (signal, code, core) = match status {
            Status::Exited(code) => (false, code, false),
            Status::Signaled { signal, core } => (true, signal, core),
        };
        End {
            signal,
            code,
            core,
            why,
            tracer,
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self.signal {
            true => Status::Signaled {
                signal: self.code,
                core: self.core,
            },
            false => Status::Exited(self.code),
        }
    }
}

/// Why there is no bind table, or not for that directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) why: String,
    pub(crate) errno: Option<i32>,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        Refusal {
            why: error.to_string(),
            errno: error
                .raw_os_error()
                .or(denied.then_some(process::NOT_PERMITTED)),
        }
    }
}

/// The limits by the numbers that cross.
const LIMITS: [Limit; 9] = [
    Limit::AddressSpace,
    Limit::Core,
    Limit::Cpu,
    Limit::Data,
    Limit::FileSize,
    Limit::LockedMemory,
    Limit::OpenFiles,
    Limit::Processes,
    Limit::Stack,
];

pub(crate) fn limit_number(limit: Limit) -> u8 {
    // `Limit` may grow in a later version of `sys`; an unknown one is refused by the other side.
    LIMITS
        .iter()
        .position(|known| *known == limit)
        .and_then(|at| u8::try_from(at).ok())
        .unwrap_or(u8::MAX)
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    codec::encode_into(value, &mut bytes)
        .map_err(|error| Error::new(ErrorKind::Codec, error.to_string()))?;
    Ok(bytes)
}

pub(crate) fn send<T: Serialize>(
    fd: &impl AsFd,
    value: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = encode(value).map_err(io::Error::other)?;
    socket::send_packet(fd, &bytes, fds)
}

/// The next value and its descriptors; `None` at the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(
    fd: &impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let Some(packet) = socket::recv_packet(fd, buffer)? else {
        return Ok(None);
    };
    let value = codec::decode(&buffer[..packet.len])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    // Where some were lost for want of room there are none: whoever the message is for misses them.
    Ok(Some((value, packet.fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_says_hello_and_only_first() {
        for (at, request) in Request::samples().iter().enumerate() {
            let ask = request.ask();
            assert_eq!(ask as usize, at, "a sample of each");
            let is_served = |asker| ask.verdict(asker) == Verdict::Served;
            assert_eq!(is_served(Asker::NewRoot), ask == Ask::Hello);
            assert_eq!(is_served(Asker::Root), ask != Ask::Hello);
            let of_roots = matches!(ask, Ask::Hello | Ask::Reserve | Ask::Claim);
            assert_eq!(is_served(Asker::Isolate), !of_roots);
            assert!(!is_served(Asker::Reserve));
        }
    }
}
