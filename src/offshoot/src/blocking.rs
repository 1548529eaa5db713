//! The blocking pool (being written).
#[derive(Default)]
pub(crate) struct Pool;
impl Pool {
    pub(crate) fn stop(&self) {}
}
