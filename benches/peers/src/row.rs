//! The rows: what is measured, and how far from the best rival it may be.

use serde_json::{Value, json};

/// What a row's figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Time of one operation.
    Nanoseconds,
    /// Operations in a CPU second.
    PerSecond,
    /// Bytes.
    Bytes,
    /// A number of things.
    Count,
}

/// The condition on ours / rival.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Lower is better.
    AtMost(f64),
    /// Higher is better.
    AtLeast(f64),
    /// Ours is zero, whatever the rival does.
    Zero,
}

/// What a row promises.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// The row's name.
    pub name: &'static str,
    /// The bound.
    pub bound: Bound,
    /// What the figures are.
    pub unit: Unit,
}

const fn row(name: &'static str, bound: Bound, unit: Unit) -> Promise {
    Promise { name, bound, unit }
}

use Bound::{AtLeast, AtMost, Zero};
use Unit::{Bytes, Count, Nanoseconds, PerSecond};

/// Every row of `check`.
pub const ROWS: [Promise; 22] = [
    row("wrong-churn", Zero, Count),
    row("wrong-holes", Zero, Count),
    row("wrong-healed", Zero, Count),
    row("wrong-shared-seed", Zero, Count),
    row("wrong-seed-per-worker", Zero, Count),
    row("ingest-fill", AtLeast(1.2), PerSecond),
    row("ingest-churn", AtLeast(2.0), PerSecond),
    row("mixed-writer", AtLeast(1.0), PerSecond),
    row("mixed-reader", AtLeast(1.5), PerSecond),
    row("mixed-reader-p99", AtMost(1.0), Nanoseconds),
    row("lookup-1024", AtMost(0.60), Nanoseconds),
    row("next-turn-64", AtMost(0.65), Nanoseconds),
    row("next-turn-256", AtMost(0.85), Nanoseconds),
    row("tokens-next-turn", AtMost(0.25), Nanoseconds),
    row("tokens-miss-2048", AtMost(0.05), Nanoseconds),
    row("wire-to-applied", AtMost(0.35), Nanoseconds),
    row("memory-shared", AtMost(0.45), Bytes),
    row("memory-unshared", AtMost(0.65), Bytes),
    row("names-cold", AtMost(1.3), Nanoseconds),
    row("names-next-turn", AtMost(0.2), Nanoseconds),
    // Not bounds of their own: they say that the figures above were taken from whole indexes.
    row("oracle-64", Zero, Count),
    row("oracle-256", Zero, Count),
];

/// The promise of a row.
pub fn promise(name: &str) -> Option<&'static Promise> {
    ROWS.iter().find(|promise| promise.name == name)
}

/// A row that was measured.
#[derive(Clone, Debug)]
pub struct Row {
    promise: &'static Promise,
    ours: f64,
    rival: f64,
    rival_name: String,
    /// Why it fails whatever the figures are.
    failure: Option<String>,
    detail: Value,
}

impl Row {
    /// A row with both figures.
    pub fn new(name: &str, ours: f64, rival: f64, rival_name: &str, detail: Value) -> Row {
        let promise = promise(name).expect("only rows of the table are measured");
        Row { promise, ours, rival, rival_name: rival_name.to_owned(), failure: None, detail }
    }

    /// A row that could not be measured: it fails.
    pub fn failed(name: &str, why: impl Into<String>) -> Row {
        let row = Row::new(name, f64::NAN, f64::NAN, "-", Value::Null);
        Row { failure: Some(why.into()), ..row }
    }

    /// Fails the row for a reason that its figures do not show.
    pub fn fail_if(mut self, failed: bool, why: &str) -> Row {
        if failed {
            self.failure.get_or_insert_with(|| why.to_owned());
        }
        self
    }

    /// The row's name.
    pub fn name(&self) -> &'static str {
        self.promise.name
    }

    /// Ours / rival.
    pub fn ratio(&self) -> f64 {
        self.ours / self.rival
    }

    /// Whether the promise is kept. A figure that is not a number never is.
    pub fn ok(&self) -> bool {
        self.failure.is_none()
            && match self.promise.bound {
                Bound::AtMost(most) => self.ratio() <= most,
                Bound::AtLeast(least) => self.ratio() >= least,
                Bound::Zero => self.ours == 0.0,
            }
    }

    /// Column heads of [`Row::line`].
    pub fn head() -> String {
        format!(
            "{:<22} {:>10} {:>10} {:<11} {:>8} {:>8}  ok",
            "name", "ours", "rival", "", "ratio", "bound"
        )
    }

    /// The row on one line.
    pub fn line(&self) -> String {
        let bound = match self.promise.bound {
            Bound::AtMost(most) => format!("<= {most:.2}"),
            Bound::AtLeast(least) => format!(">= {least:.2}"),
            Bound::Zero => "= 0".to_owned(),
        };
        let ratio = match self.promise.bound {
            Bound::Zero => "-".to_owned(),
            _ if self.ratio().is_nan() => "-".to_owned(),
            _ => format!("{:.3}", self.ratio()),
        };
        let why = self.failure.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        format!(
            "{:<22} {:>10} {:>10} {:<11} {ratio:>8} {bound:>8}  {}{why}",
            self.name(),
            figure(self.ours, self.promise.unit),
            figure(self.rival, self.promise.unit),
            self.rival_name,
            if self.ok() { "yes" } else { "NO" },
        )
    }

    /// The row and what its figures were made from.
    pub fn json(&self) -> Value {
        let bound = match self.promise.bound {
            Bound::AtMost(most) => json!({"at_most": most}),
            Bound::AtLeast(least) => json!({"at_least": least}),
            Bound::Zero => json!({"ours": 0}),
        };
        json!({
            "name": self.name(),
            "unit": format!("{:?}", self.promise.unit).to_lowercase(),
            "ours": self.ours,
            "rival": self.rival,
            "rival_name": self.rival_name,
            "ratio": self.ratio(),
            "bound": bound,
            "ok": self.ok(),
            "failure": self.failure,
            "detail": self.detail,
        })
    }
}

/// A figure with its unit, in at most ten characters.
fn figure(value: f64, unit: Unit) -> String {
    if value.is_nan() {
        return "-".to_owned();
    }
    match unit {
        Unit::Nanoseconds if value < 1e3 => format!("{value:.0} ns"),
        Unit::Nanoseconds if value < 1e6 => format!("{:.2} us", value / 1e3),
        Unit::Nanoseconds => format!("{:.2} ms", value / 1e6),
        Unit::PerSecond if value < 1e6 => format!("{:.1} k/s", value / 1e3),
        Unit::PerSecond => format!("{:.2} M/s", value / 1e6),
        Unit::Bytes => format!("{value:.1} B"),
        Unit::Count => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_keeps_its_promise_at_the_bound_and_not_beyond() {
        let row = |name, ours, rival| Row::new(name, ours, rival, "r", Value::Null).ok();
        assert!(row("lookup-1024", 0.6, 1.0) && !row("lookup-1024", 0.61, 1.0));
        assert!(row("ingest-fill", 1.2, 1.0) && !row("ingest-fill", 1.19, 1.0));
        assert!(row("wrong-churn", 0.0, 7.0) && !row("wrong-churn", 1.0, 7.0));
    }

    #[test]
    fn a_row_without_figures_fails() {
        let row = |name, ours, rival| Row::new(name, ours, rival, "r", Value::Null).ok();
        assert!(!row("lookup-1024", f64::NAN, 1.0));
        assert!(!row("ingest-fill", 1.0, f64::NAN));
        assert!(!row("wrong-churn", f64::NAN, 0.0));
        assert!(!Row::failed("ingest-fill", "no reason").ok());
        let row = Row::new("ingest-fill", 2.0, 1.0, "r", Value::Null);
        assert!(!row.fail_if(true, "wrong scores").ok());
    }
}
