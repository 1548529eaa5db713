//! Functions as checked offsets: how a function reaches another process of the same executable.
//!
//! A function is not sent; the offset of its [`Descriptor`] in the image is. The descriptor is a
//! promoted constant in read-only memory of the executable, made for one function and its types by
//! the compiler. Whoever receives an offset checks that it lies in such memory, is aligned, begins
//! with the magic number, is of the expected kind and carries the fingerprint of the same types,
//! and only then uses it. So there is nothing to register.
//!
//! Two things to know. Offsets are no identities: the linker folds identical code, so that two
//! functions may share a descriptor; calls are right all the same, names come from the type. And a
//! closure that captures a zero-sized value passes the check for captures: in another process that
//! value is made from nothing, so a zero-sized "witness" type proves nothing there.
//!
//! This is the one file of the crate, beside the nursery's lifetime erasure, that contains `unsafe`.
#![allow(unsafe_code)]

use crate::answer::RemoteAnswer;
use crate::credit::Permit;
use crate::dialogue::{OpenEntryDecode, OpenJob, RemoteOpen};
use crate::isolate::inbox::Inbox;
use crate::isolate::job::{CallJob, Job, MethodJob, Reply, StateJob};
use crate::{Dialogue, Endpoint, Error, ErrorKind, Method, Payload, Result};
use offshoot_sys::image;
use offshoot_wire::codec;
use offshoot_wire::frame::Entry;
use std::any::{Any, TypeId, type_name};
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;

/// The first eight bytes of every descriptor.
const MAGIC: u64 = 0x4f66_6653_686f_6f74;

/// One function, method, state type or hook, as a constant of the image.
#[repr(C)]
pub(crate) struct Descriptor {
    magic: u64,
    /// The types, hashed; a function, since a type's name is no constant.
    fingerprint: fn() -> u64,
    name: fn() -> &'static str,
    /// The type of the function, which no other one has.
    endpoint: fn() -> TypeId,
    run: Run,
}

/// Makes a job of encoded arguments, or answers with what is wrong with them.
type DecodeCall = fn(&[u8], RemoteAnswer) -> Option<Box<dyn Job>>;

/// As [`DecodeCall`]; a `tell` has no answer, but credit to give back.
pub(crate) type DecodeMethod =
    fn(&[u8], Option<RemoteAnswer>, Option<Permit>) -> Option<Box<dyn StateJob>>;

/// What a descriptor does, by kind.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// Decodes the arguments of a call and makes the job; answers with what is wrong with them.
    Call(DecodeCall),
    /// Decodes the arguments of a method and makes the job; without an answer for `tell`.
    Method(DecodeMethod),
    /// Decodes the arguments of a dialogue and makes the job.
    Open(OpenEntryDecode),
    /// Decodes a state.
    State(fn(&[u8]) -> Result<Box<dyn Any + Send>>),
    /// A function without arguments that runs when a process starts.
    Hook(fn()),
    /// The main function of a blocking isolate.
    Main(fn(&mut Inbox) -> Result<()>),
}

/// FNV-1a, which needs no state and no dependency; not a defence, only a check of types.
fn hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

impl std::fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Descriptor {
    /// The name of the function's type.
    pub(crate) fn name(&self) -> &'static str {
        (self.name)()
    }

    /// What it does.
    pub(crate) fn run(&self) -> Run {
        self.run
    }

    /// True if both are of the same function, for the same use. Their addresses need not be equal.
    pub(crate) fn is_same(&self, other: &Descriptor) -> bool {
        let same_use = std::mem::discriminant(&self.run) == std::mem::discriminant(&other.run);
        same_use && (self.endpoint)() == (other.endpoint)()
    }

    /// The descriptor as it crosses.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`] if the code does not lie in the main executable.
    pub(crate) fn entry(&'static self) -> Result<Entry> {
        let Some(offset) = image::offset_of(std::ptr::from_ref(self).cast()) else {
            return Err(Error::new(
                ErrorKind::Misuse,
                format!(
                    "`{}` is not in this image: only functions that are linked into the main executable reach \
                     another process, not those of a dynamic library; keep this isolate a thread",
                    self.name()
                ),
            ));
        };
        Ok(Entry {
            offset,
            fingerprint: (self.fingerprint)(),
        })
    }

    /// The descriptor that crossed.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if there is none at this offset, or one of other types.
    pub(crate) fn find(entry: Entry) -> Result<&'static Descriptor> {
        let wrong = |what: &str| {
            Error::new(
                ErrorKind::Protocol,
                format!("no function at image offset {:#x}: {what}", entry.offset),
            )
        };
        let size = size_of::<Descriptor>();
        let address = image::address_of(entry.offset, size, align_of::<Descriptor>())
            .ok_or_else(|| wrong("it is outside of the image's read-only data, or not aligned"))?;
        // SAFETY: `address_of` promises that `size` bytes at `address` lie in a mapped read-only
        // segment of the main executable, which is never unmapped, and that it is aligned for a
        // `Descriptor`, hence for its first field; any eight bytes are a valid `u64`.
        let magic = unsafe { address.cast::<u64>().read() };
        // By its complement, which the compiler cannot fold: the number itself is then in no instruction and no other constant.
        if !magic != std::hint::black_box(!MAGIC) {
            return Err(wrong("there is no descriptor"));
        }
        // SAFETY: The range and the alignment are as above, and `repr(C)` puts the magic number
        // first. The range is of data, never of code, and eight bytes of this value occur in the
        // image's constants only at the start of the descriptors made below, which are valid for
        // ever: nothing else holds the number, not even the comparison above.
        let descriptor = unsafe { &*address.cast::<Descriptor>() };
        if (descriptor.fingerprint)() != entry.fingerprint {
            return Err(wrong("its types are not the ones that the sender used"));
        }
        Ok(descriptor)
    }
}

/// Makes a value of a function's type from nothing.
///
/// # Safety
/// `F` must be zero-sized and inhabited: a function item or a captureless closure of which the
/// caller's type parameters were inferred from an existing value.
unsafe fn conjure<F: Copy + Send + 'static>() -> F {
    // Not a constant assertion: the portal's methods have one, whose error is at the user's line, and
    // here it would be a second one. The compiler removes this.
    assert!(size_of::<F>() == 0);
    // SAFETY: A read of zero bytes at a non-null aligned address is valid, and a zero-sized value
    // has no bytes that could be invalid; that the type is inhabited is the caller's duty. `Copy`
    // allows the duplicate and rules out a destructor, `Send + 'static` any thread and time.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

/// The constants of one call endpoint.
pub(crate) struct CallEntry<F, M>(PhantomData<(F, M)>);

impl<F, M: 'static> CallEntry<F, M>
where
    F: Endpoint<M>,
    F::Args: Payload,
    F::Out: Payload,
{
    /// The descriptor of `F`.
    pub(crate) const DESCRIPTOR: &'static Descriptor = &Descriptor {
        magic: MAGIC,
        fingerprint: || hash(&["call", type_name::<F::Args>(), type_name::<F::Out>()]),
        name: || type_name::<F>(),
        endpoint: || TypeId::of::<F>(),
        run: Run::Call(Self::decode),
    };

    fn decode(bytes: &[u8], answer: RemoteAnswer) -> Option<Box<dyn Job>> {
        let args = match codec::decode::<F::Args>(bytes) {
            Ok(args) => args,
            Err(error) => {
                answer.fail(decode_failed::<F>(&error));
                return None;
            }
        };
        // SAFETY: This instance exists only because `Portal::call` was given a value of type `F`,
        // which it asserts to be zero-sized.
        let function = unsafe { conjure::<F>() };
        Some(Box::new(CallJob {
            function,
            args,
            reply: Reply {
                answer: Some(answer),
                permit: None,
            },
            marker: PhantomData::<fn(M)>,
        }))
    }
}

/// The constants of one function that is opened.
pub(crate) struct OpenEntry<F, M>(PhantomData<(F, M)>);

impl<F, M: 'static> OpenEntry<F, M>
where
    F: Dialogue<M>,
    F::Args: Payload,
    F::R: Payload,
{
    /// The descriptor of `F`.
    pub(crate) const DESCRIPTOR: &'static Descriptor = &Descriptor {
        magic: MAGIC,
        fingerprint: || {
            hash(&[
                "open",
                type_name::<F::In>(),
                type_name::<F::Out>(),
                type_name::<F::First>(),
                type_name::<F::Args>(),
                type_name::<F::R>(),
            ])
        },
        name: || type_name::<F>(),
        endpoint: || TypeId::of::<F>(),
        run: Run::Open(Self::decode),
    };

    fn decode(bytes: &[u8], open: RemoteOpen) -> Option<Box<dyn Job>> {
        // Code of the program's. What it was to begin with is told that it never will.
        let decoded =
            std::panic::catch_unwind(AssertUnwindSafe(|| codec::decode::<F::Args>(bytes)));
        let args = match decoded {
            Ok(Ok(args)) => args,
            Ok(Err(error)) => {
                open.fail(decode_failed::<F>(&error));
                return None;
            }
            Err(payload) => {
                let panic = crate::isolate::panics::take(payload);
                let what = format!(
                    "decoding the arguments of `{}` panicked: {panic}",
                    type_name::<F>()
                );
                open.fail(Error::new(ErrorKind::Codec, what));
                return None;
            }
        };
        // SAFETY: This instance exists only because `Portal::open` was given a value of type `F`,
        // which it asserts to be zero-sized.
        let function = unsafe { conjure::<F>() };
        Some(Box::new(OpenJob::<F, M>::remote(function, args, open)))
    }
}

/// The constants of one method, dropped with its caller or not.
pub(crate) struct MethodEntry<S, F, M, const CANCELLABLE: bool>(PhantomData<fn(S, F, M)>);

impl<S: 'static, F, M: 'static, const CANCELLABLE: bool> MethodEntry<S, F, M, CANCELLABLE>
where
    F: Method<S, M>,
    F::Args: Payload,
    F::Out: Payload,
{
    /// The descriptor of `F`.
    pub(crate) const DESCRIPTOR: &'static Descriptor = &Descriptor {
        magic: MAGIC,
        fingerprint: || {
            hash(&[
                "method",
                type_name::<S>(),
                type_name::<F::Args>(),
                type_name::<F::Out>(),
            ])
        },
        name: || type_name::<F>(),
        endpoint: || TypeId::of::<F>(),
        run: Run::Method(Self::decode),
    };

    fn decode(
        bytes: &[u8],
        answer: Option<RemoteAnswer>,
        permit: Option<Permit>,
    ) -> Option<Box<dyn StateJob>> {
        let args = match codec::decode::<F::Args>(bytes) {
            Ok(args) => args,
            Err(error) => {
                let error = decode_failed::<F>(&error);
                match answer {
                    Some(answer) => answer.fail(error),
                    None => crate::log::error!(%error, "a message is lost"),
                }
                return None;
            }
        };
        // SAFETY: This instance exists only because `Portal::ask` or `tell` was given a value of
        // type `F`, which they assert to be zero-sized.
        let function = unsafe { conjure::<F>() };
        Some(Box::new(MethodJob::<S, F, M, _, CANCELLABLE> {
            method: function,
            args,
            reply: Reply { answer, permit },
            marker: PhantomData,
        }))
    }
}

/// The constants of one state type.
pub(crate) struct StateEntry<S>(PhantomData<fn(S)>);

impl<S: Payload> StateEntry<S> {
    /// The descriptor of `S`.
    pub(crate) const DESCRIPTOR: &'static Descriptor = &Descriptor {
        magic: MAGIC,
        fingerprint: || hash(&["state", type_name::<S>()]),
        name: || type_name::<S>(),
        endpoint: || TypeId::of::<S>(),
        run: Run::State(Self::decode),
    };

    fn decode(bytes: &[u8]) -> Result<Box<dyn Any + Send>> {
        let state = codec::decode::<S>(bytes).map_err(|error| decode_failed::<S>(&error))?;
        Ok(Box::new(state))
    }
}

/// The constants of one start hook.
pub(crate) struct HookEntry<F>(PhantomData<F>);

impl<F: Fn() + Copy + Send + 'static> HookEntry<F> {
    /// The descriptor of `F`.
    pub(crate) const DESCRIPTOR: &'static Descriptor = &Descriptor {
        magic: MAGIC,
        fingerprint: || hash(&["hook"]),
        name: || type_name::<F>(),
        endpoint: || TypeId::of::<F>(),
        run: Run::Hook(Self::run),
    };

    fn run() {
        // SAFETY: This instance exists only because `Builder::on_process_start` was given a value
        // of type `F`, which it asserts to be zero-sized.
        let hook = unsafe { conjure::<F>() };
        hook();
    }
}

/// The constants of one main function of a blocking isolate.
pub(crate) struct MainEntry<F>(PhantomData<F>);

impl<F: Fn(&mut Inbox) -> Result<()> + Copy + Send + 'static> MainEntry<F> {
    /// The descriptor of `F`.
    pub(crate) const DESCRIPTOR: &'static Descriptor = &Descriptor {
        magic: MAGIC,
        fingerprint: || hash(&["main"]),
        name: || type_name::<F>(),
        endpoint: || TypeId::of::<F>(),
        run: Run::Main(Self::run),
    };

    fn run(inbox: &mut Inbox) -> Result<()> {
        // SAFETY: This instance exists only because `Isolate::blocking_main` was given a value of
        // type `F`, which it asserts to be zero-sized.
        let main = unsafe { conjure::<F>() };
        main(inbox)
    }
}

fn decode_failed<F>(error: &codec::DecodeError) -> Error {
    Error::new(
        ErrorKind::Codec,
        format!("the arguments of `{}`: {error}", type_name::<F>()),
    )
}

/// The text of the one assertion that keeps captures out. `cargo check` does not evaluate it.
macro_rules! captures_nothing {
    ($F:ty) => {
        const {
            assert!(
                size_of::<$F>() == 0,
                "only functions and closures that capture nothing can be sent to an isolate that may be a process: \
                 pass what it needs as an argument, or use `run` or `with` of a `LocalPortal` (Nursery::spawn_local)"
            )
        }
    };
}
pub(crate) use captures_nothing;

#[cfg(test)]
mod tests {
    use super::*;

    fn double(n: u64) -> u64 {
        n * 2
    }

    fn descriptor_of<F, M: 'static>(_: F) -> &'static Descriptor
    where
        F: Endpoint<M>,
        F::Args: Payload,
        F::Out: Payload,
    {
        CallEntry::<F, M>::DESCRIPTOR
    }

    #[test]
    fn an_entry_is_found_again() {
        let descriptor = descriptor_of(double);
        let entry = descriptor.entry().unwrap();
        let found = Descriptor::find(entry).unwrap();
        assert!(found.name().ends_with("double"));
        assert!(matches!(found.run(), Run::Call(_)));
    }

    /// The bytes of a descriptor's beginning where code lies, which may hold any bytes.
    #[unsafe(link_section = ".text.offshoot_not_a_descriptor")]
    static IN_CODE: [u64; size_of::<Descriptor>() / 8] = [MAGIC; size_of::<Descriptor>() / 8];

    #[test]
    fn f16_a_place_in_code_is_refused() {
        let constant = descriptor_of(double);
        let entry = constant.entry().unwrap();
        let base = std::ptr::from_ref(constant).addr() as u64 - entry.offset;
        let offset = IN_CODE.as_ptr().addr() as u64 - base;
        assert_eq!(offset % align_of::<Descriptor>() as u64, 0);
        let forged = Entry { offset, ..entry };
        let refused = Descriptor::find(forged).unwrap_err();
        assert!(refused.to_string().contains("read-only data"), "{refused}");
    }

    #[test]
    fn f16_forged_entries_are_refused() {
        let entry = descriptor_of(double).entry().unwrap();
        let forged = [
            Entry {
                fingerprint: entry.fingerprint ^ 1,
                ..entry
            },
            Entry {
                offset: entry.offset + 1,
                ..entry
            },
            Entry {
                offset: entry.offset + 8,
                ..entry
            },
            Entry {
                offset: u64::MAX,
                ..entry
            },
            Entry { offset: 0, ..entry },
            Entry {
                offset: (1 << 40) + entry.offset,
                ..entry
            },
        ];
        for entry in forged {
            let error = Descriptor::find(entry).map(|_| ()).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Protocol), "{error:?}");
        }
    }
}
