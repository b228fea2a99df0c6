//! What lookups came to: each is counted once, under one of a few labels that are all there from the start.

use kvscout::score::{Miss, Unpredictable};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What a lookup came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Somebody holds a block.
    Hit,
    /// Nobody does, and could.
    Miss,
    /// Nobody can, for this reason.
    Never(Miss),
    /// Nobody was asked about: no worker is among the candidates, or there is none.
    NoWorker,
}

impl Outcome {
    fn all() -> impl Iterator<Item = Outcome> {
        let never = Miss::ALL.into_iter().map(Outcome::Never);
        [Outcome::Hit, Outcome::Miss, Outcome::NoWorker].into_iter().chain(never)
    }

    fn as_str(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Miss => "miss",
            Outcome::Never(why) => why.as_str(),
            Outcome::NoWorker => "no_worker",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Came {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Unknown {
    why: &'static str,
}

/// Lookups by what they came to, and those of which that many tokens are cached is not known.
#[derive(Clone, Debug)]
pub(super) struct Outcomes {
    // A counter is found among these without a lock; the families have the same ones.
    came: Vec<(Outcome, Counter)>,
    unknown: Vec<(Unpredictable, Counter)>,
    by_outcome: Family<Came, Counter>,
    by_why: Family<Unknown, Counter>,
}

impl Default for Outcomes {
    fn default() -> Outcomes {
        let by_outcome = Family::<Came, Counter>::default();
        let by_why = Family::<Unknown, Counter>::default();
        let came = Outcome::all().map(|outcome| {
            let label = Came { outcome: outcome.as_str() };
            (outcome, by_outcome.get_or_create(&label).clone())
        });
        let unknown = Unpredictable::ALL
            .into_iter()
            .map(|why| (why, by_why.get_or_create(&Unknown { why: why.as_str() }).clone()));
        Outcomes { came: came.collect(), unknown: unknown.collect(), by_outcome, by_why }
    }
}

impl Outcomes {
    /// Counts a lookup: what it came to, and why the cached tokens of its first worker are not known, if they are not.
    pub(super) fn count(&self, outcome: Outcome, unknown: Option<Unpredictable>) {
        if let Some((_, counter)) = self.came.iter().find(|(other, _)| *other == outcome) {
            counter.inc();
        }
        if let Some((_, counter)) = self.unknown.iter().find(|(other, _)| Some(*other) == unknown) {
            counter.inc();
        }
    }

    pub(super) fn register(&self, to: &mut Registry) {
        let help = "Lookups by what they came to";
        to.register("lookup_outcomes", help, self.by_outcome.clone());
        let help = "Lookups where what the best worker has cached is not known, by why";
        to.register("lookups_unpredicted", help, self.by_why.clone());
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn each_outcome_and_each_reason_has_a_count_of_its_own_from_the_start() {
        let mut registry = Registry::default();
        let outcomes = Outcomes::default();
        outcomes.register(&mut registry);
        let said = || {
            let mut said = String::new();
            text::encode_registry(&mut said, &registry).unwrap();
            said
        };
        let all: Vec<Outcome> = Outcome::all().collect();
        for (n, outcome) in all.iter().enumerate() {
            assert!(said().contains(&format!("{{outcome=\"{}\"}} 0\n", outcome.as_str())));
            (0..=n).for_each(|_| outcomes.count(*outcome, None));
        }
        for (n, why) in Unpredictable::ALL.into_iter().enumerate() {
            assert!(said().contains(&format!("{{why=\"{}\"}} 0\n", why.as_str())), "{}", said());
            (0..=n).for_each(|_| outcomes.count(Outcome::Hit, Some(why)));
        }
        let hits = 1 + (1..=Unpredictable::ALL.len()).sum::<usize>();
        let said = said();
        for (n, outcome) in all.iter().enumerate() {
            let count = if *outcome == Outcome::Hit { hits } else { n + 1 };
            let line = format!("{{outcome=\"{}\"}} {count}\n", outcome.as_str());
            assert!(said.contains(&line), "{line}{said}");
        }
        for (n, why) in Unpredictable::ALL.into_iter().enumerate() {
            let line = format!("{{why=\"{}\"}} {}\n", why.as_str(), n + 1);
            assert!(said.contains(&line), "{line}{said}");
        }
    }
}
