//! What travels beside an encoded value: the portals in it.
//!
//! A [`Portal`] has no encoding of its own. While a message is encoded, each that is met is put
//! beside it, and its place in that list is what is encoded; while one is decoded, the place is
//! looked up again. Anywhere else, as in a file, a portal cannot be encoded, and says so.

use crate::isolate::shared::Target;
use crate::narrow::Allowed;
use crate::{Error, Portal};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::any::type_name;
use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// One portal beside a value.
#[derive(Clone)]
pub(crate) struct Carried {
    pub(crate) target: Arc<Target>,
    pub(crate) allowed: Allowed,
}

/// One that has come, or why it could not.
pub(crate) type Arrived = Result<Carried, Error>;

/// The most portals in one message. Each may cost its receiver a descriptor.
pub(crate) const MOST: usize = 128;

thread_local! {
    /// Of the value that is being encoded on this thread.
    static PACKED: RefCell<Option<Vec<Carried>>> = const { RefCell::new(None) };
    /// Of the value that is being decoded.
    static UNPACKED: RefCell<Option<Vec<Arrived>>> = const { RefCell::new(None) };
}

/// Runs `f`, which encodes a value, and gives the portals that were in it.
pub(crate) fn pack<R>(f: impl FnOnce() -> R) -> (R, Vec<Carried>) {
    struct Restore(Option<Vec<Carried>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            PACKED.set(self.0.take());
        }
    }
    let _restore = Restore(PACKED.replace(Some(Vec::new())));
    let result = f();
    (result, PACKED.take().unwrap_or_default())
}

/// Runs `f`, which decodes a value beside which these came.
pub(crate) fn unpack<R>(carried: Vec<Arrived>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Vec<Arrived>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            UNPACKED.set(self.0.take());
        }
    }
    let _restore = Restore(UNPACKED.replace(Some(carried)));
    f()
}

/// What [`codec::encode_checked`](offshoot_wire::codec::encode_checked) asks for: the portals of the value come along with it,
/// and a panic of its decoder is an error of what is sent, not an end of the sender.
pub(crate) fn rehearse(
    write: &mut dyn FnMut(),
    read: &mut dyn FnMut(),
) -> std::result::Result<(), String> {
    let ((), carried) = pack(write);
    let carried = carried.into_iter().map(Ok).collect();
    // Within a list of its own, for it is also written again.
    let read = AssertUnwindSafe(|| pack(|| unpack(carried, read)));
    match std::panic::catch_unwind(read) {
        Ok(((), _)) => Ok(()),
        Err(payload) => Err(crate::isolate::panics::take(payload).to_string()),
    }
}

/// The name of a state's type as it crosses, so that a portal of one type is not taken for one of another. FNV-1a.
fn state_of<S>() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in type_name::<S>().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

const OUTSIDE: &str = "a `Portal` crosses inside of a message to an isolate only: as an argument, a result, an \
                       item of a dialogue or a state; it is nothing that could be kept in a file or sent by other means";

impl<S: 'static> Serialize for Portal<S> {
    /// # Errors
    /// Outside of a message to an isolate.
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        let place = PACKED.with_borrow_mut(|packed| {
            let packed = packed.as_mut().ok_or_else(|| OUTSIDE.to_owned())?;
            if packed.len() >= MOST {
                return Err(format!("more than {MOST} portals in one message"));
            }
            packed.push(self.carried());
            Ok(packed.len() - 1)
        });
        let place = place.map_err(ser::Error::custom)?;
        // In range, see `MOST`.
        (u32::try_from(place).unwrap_or(u32::MAX), state_of::<S>()).serialize(serializer)
    }
}

impl<'de, S: 'static> Deserialize<'de> for Portal<S> {
    /// # Errors
    /// Outside of a message to an isolate; it was sent as a portal to another type of state.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Portal<S>, D::Error> {
        if UNPACKED.with_borrow(Option::is_none) {
            return Err(de::Error::custom(OUTSIDE));
        }
        let (place, state) = <(u32, u64)>::deserialize(deserializer)?;
        if state != state_of::<S>() {
            let name = type_name::<S>();
            let message = format!("a portal that was sent is none to a state of type `{name}`");
            return Err(de::Error::custom(message));
        }
        // Cloned: whoever tries several types for one value decodes it more than once.
        let carried = UNPACKED.with_borrow(|unpacked| {
            let place = usize::try_from(place).ok()?;
            unpacked.as_ref()?.get(place).cloned()
        });
        match carried {
            Some(Ok(carried)) => Ok(Portal::of(carried)),
            Some(Err(error)) => Err(de::Error::custom(error)),
            None => Err(de::Error::custom(
                "a portal is named that did not come along",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portal::{decode, encode, through_serde};
    use offshoot_wire::Rope;

    fn with_portal<R: Send + 'static>(test: impl FnOnce(Portal) -> R + Send + 'static) -> R {
        let result = crate::run(async || Ok(test(crate::current().portal()?)));
        result.expect("no failure")
    }

    #[test]
    fn outside_of_a_message_a_portal_says_that_it_does_not_cross() {
        with_portal(|portal| {
            let error = encode(&portal, &mut Rope::default()).unwrap_err();
            assert!(error.message().contains("inside of a message"), "{error:?}");
            let (encoded, carried) = pack(|| {
                let mut rope = Rope::default();
                encode(&portal, &mut rope).map(|()| rope.into_vec())
            });
            let bytes = encoded.expect("inside of one");
            let error = decode::<Portal>(&bytes).unwrap_err();
            assert!(error.message().contains("inside of a message"), "{error:?}");
            // It is inside only as long as that lasts.
            assert!(encode(&portal, &mut Rope::default()).is_err());
            let arrived = carried.into_iter().map(Ok).collect();
            let back = unpack(arrived, || decode::<Portal>(&bytes)).expect("it came along");
            assert_eq!(back.id(), portal.id());
        });
    }

    #[test]
    fn forged_places_and_other_types_are_refused() {
        with_portal(|portal| {
            let mut rope = Rope::default();
            encode(&(0_u32, state_of::<()>()), &mut rope).expect("numbers");
            let bytes = rope.into_vec();
            let error = unpack(Vec::new(), || decode::<Portal>(&bytes)).unwrap_err();
            assert!(error.message().contains("did not come along"), "{error:?}");
            let come = || vec![Ok(portal.carried())];
            assert!(unpack(come(), || decode::<Portal>(&bytes)).is_ok());
            let error = unpack(come(), || decode::<Portal<u64>>(&bytes)).unwrap_err();
            assert!(error.message().contains("`u64`"), "{error:?}");
            let lost = vec![Err(Error::other("lost"))];
            let error = unpack(lost, || decode::<Portal>(&bytes)).unwrap_err();
            assert!(error.message().contains("lost"), "{error:?}");
            let twice = through_serde(vec![portal.clone(), portal.clone()], true);
            assert!(twice.is_ok_and(|both| both.iter().all(|one| one.id() == portal.id())));
        });
    }
}
