//! What ends the threads of a scope.

use std::sync::atomic::{AtomicBool, Ordering};

/// Raises a flag when it is dropped, thus also when the test panics: a scope waits for its threads first, and those that
/// go on until the flag is raised would keep it waiting for ever.
pub(crate) struct Raises<'a>(pub(crate) &'a AtomicBool);

impl Drop for Raises<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
