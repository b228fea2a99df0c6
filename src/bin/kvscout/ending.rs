//! The end of the daemon: said once, heard by everyone who serves or keeps something up.

use tokio::sync::watch;

/// Who says it; if it goes without a word, that is an end, too.
#[derive(Debug)]
pub(crate) struct End(watch::Sender<bool>);

/// Who hears it.
#[derive(Clone, Debug)]
pub(crate) struct Ending(watch::Receiver<bool>);

/// An end that has not begun.
pub(crate) fn ending() -> (End, Ending) {
    let (end, ending) = watch::channel(false);
    (End(end), Ending(ending))
}

impl End {
    /// Tells everyone.
    pub(crate) fn begin(self) {
        // Fails when nobody is left to hear it.
        let _ = self.0.send(true);
    }
}

impl Ending {
    /// Waits until it begins.
    pub(crate) async fn begins(&self) {
        // Fails when whoever says so is gone.
        let _ = self.0.clone().wait_for(|begun| *begun).await;
    }

    /// Whether it has begun.
    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_heard_by_everyone_however_late_and_also_when_nobody_says_it() {
        for says_so in [true, false] {
            let (end, ending) = ending();
            let early = tokio::spawn({
                let ending = ending.clone();
                async move { ending.begins().await }
            });
            assert!(!ending.has_begun());
            match says_so {
                true => end.begin(),
                false => drop(end),
            }
            early.await.unwrap();
            ending.begins().await;
            assert!(ending.has_begun());
        }
    }
}
