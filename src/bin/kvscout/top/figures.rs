//! Numbers as people read them: three digits and a unit.

use std::time::Duration;

/// A count: `940`, `1.2 k`, `34 M`.
pub(super) fn count(n: f64) -> String {
    match n {
        n if n < 9.95 && n.fract() > 0.05 => format!("{n:.1}"),
        n if n < 999.5 => format!("{n:.0}"),
        n => scaled(n / 1e3, 1e3, &["k", "M", "G", "T"]),
    }
}

/// A size: `512 B`, `1.2 MiB`.
pub(super) fn bytes(n: u64) -> String {
    match n as f64 {
        n if n < 1023.5 => format!("{n:.0} B"),
        n => scaled(n / 1024.0, 1024.0, &["KiB", "MiB", "GiB", "TiB"]),
    }
}

fn scaled(mut n: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while n >= step - 0.5 && unit + 1 < units.len() {
        n /= step;
        unit += 1;
    }
    let digits = if n < 9.95 { 1 } else { 0 };
    format!("{n:.digits$} {}", units[unit])
}

/// A short time: `21 us`, `1.3 ms`, `2.0 s`.
pub(super) fn latency(seconds: f64) -> String {
    let (n, unit) = match seconds {
        s if s < 0.999_5e-3 => (s * 1e6, "us"),
        s if s < 0.999_5 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if n < 9.95 { 1 } else { 0 };
    format!("{n:.digits$} {unit}")
}

/// A time that people wait: `0.4 s`, `12 s`, `3 min`, `5 h`, `2 d`.
pub(super) fn age(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 5970.0 => format!("{:.0} min", s / 60.0),
        s if s < 170_000.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86400.0),
    }
}

/// How long something takes, in full: `3 h 12 min`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let counts = [0.0, 0.26, 7.0, 940.0, 999.6, 1234.0, 12_345.0, 999_700.0, 34e6, 5e12, 5e16];
        let expected =
            ["0", "0.3", "7", "940", "1.0 k", "1.2 k", "12 k", "1.0 M", "34 M", "5.0 T", "50000 T"];
        assert_eq!(counts.map(count), expected);
        let sizes = [0, 1023, 1024, 5 << 20, 8 << 30];
        assert_eq!(sizes.map(bytes), ["0 B", "1023 B", "1.0 KiB", "5.0 MiB", "8.0 GiB"]);
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        let times = [0.0, 21e-6, 0.9996e-3, 0.0131, 2.5];
        assert_eq!(times.map(latency), ["0.0 us", "21 us", "1.0 ms", "13 ms", "2.5 s"]);
        let ages = [0.04, 12.0, 100.0, 7200.0, 864_000.0];
        assert_eq!(ages.map(age), ["0.0 s", "12 s", "2 min", "2 h", "10 d"]);
        let spans = [59, 61, 11_520, 100_000].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans, ["59 s", "1 min 1 s", "3 h 12 min", "1 d 3 h"]);
    }
}
