//! An isolate that waits, and says what becomes of it.

use crate::signs::{Guard, append, held, mark};
use offshoot::{Isolate, Nursery, Portal, Result};
use serde::{Deserialize, Serialize};

/// A state whose methods take their time. They are told rather than called, so that nothing but
/// their own isolate's end ends them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Waiter;

impl Waiter {
    /// Makes the sign `<name> begun`, waits to be cancelled, notes the author in `<name>
    /// cancelled`, and makes `<name> dropped` when it goes.
    pub async fn until_cancelled(&mut self, name: String) {
        let _guard = Guard(format!("{name} dropped"));
        mark(&format!("{name} begun"));
        let cancel = offshoot::cancelled().await;
        append(&format!("{name} cancelled"), &cancel.to_string());
    }
}

/// Starts an isolate of that name that waits to be cancelled.
///
/// # Errors
/// If it cannot be started, or this scope is cancelled.
pub async fn waits<'scope>(
    nursery: &'scope Nursery<'scope, '_>,
    name: &str,
) -> Result<Portal<Waiter>> {
    let portal = nursery.start(Isolate::named(name), Waiter).await?;
    portal
        .tell(Waiter::until_cancelled, name.to_owned())
        .await?;
    held(&format!("{name} begun")).await?;
    Ok(portal)
}
