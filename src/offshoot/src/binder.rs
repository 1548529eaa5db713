//! Addresses that this process binds (being written).
use crate::janitor::ProcessKey;
#[derive(Default)]
pub(crate) struct Binder;
impl Binder {
    pub(crate) fn key(&self) -> Option<ProcessKey> {
        None
    }
    pub(crate) fn clear(&self) {}
}
