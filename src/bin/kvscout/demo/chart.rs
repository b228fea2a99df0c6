//! Charts as SVG: bars, lines over time, small multiples, ranges, a distribution.
//!
//! Colours are classes of the page (`page.css`), so that a chart is as readable on a dark page as on a light one; every
//! mark has its label beside it, and its numbers in a title for whoever points at it.

use std::fmt::Write as _;

/// Width of every chart, in units of the picture.
const WIDTH: f64 = 760.0;

/// Where labels of rows end.
const LABELS: f64 = 130.0;

/// One line of a chart: its name, the class of its colour, and its points.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) class: &'a str,
    pub(super) points: Vec<(f64, f64)>,
}

/// Row by row how much: a share from 0 to 1, and what is written beside it.
pub(super) struct Bar<'a> {
    pub(super) name: &'a str,
    pub(super) class: &'a str,
    pub(super) share: f64,
    pub(super) label: String,
}

/// From the median to the 99th percentile, on a logarithmic axis.
pub(super) struct Spread<'a> {
    pub(super) name: &'a str,
    pub(super) class: &'a str,
    /// Median, 90th and 99th percentile.
    pub(super) at: [f64; 3],
}

/// A picture of this height, read aloud as `title`.
fn picture(title: &str, height: f64, draw: impl FnOnce(&mut String)) -> String {
    let mut out =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">");
    draw(&mut out);
    out.push_str("</svg>");
    out
}

/// A text; `anchor` is start, middle or end.
fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, class: &str, text: &str) {
    // Writing to a string does not fail.
    let _ = write!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"
    );
}

fn rule(out: &mut String, from: (f64, f64), to: (f64, f64), class: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = write!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>"
    );
}

fn block(out: &mut String, (x, y): (f64, f64), (w, h): (f64, f64), class: &str, title: &str) {
    let _ = write!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" class=\"{class}\">\
         <title>{title}</title></rect>"
    );
}

fn dot(out: &mut String, (x, y): (f64, f64), r: f64, class: &str, title: &str) {
    let _ = write!(
        out,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\" class=\"{class}\"><title>{title}</title></circle>"
    );
}

/// Shares, each row a bar of the whole width.
pub(super) fn bars(title: &str, rows: &[Bar<'_>]) -> String {
    const ROW: f64 = 36.0;
    let (left, width) = (LABELS + 12.0, WIDTH - LABELS - 12.0 - 70.0);
    picture(title, rows.len() as f64 * ROW + 4.0, |out| {
        for (n, Bar { name, class, share, label }) in rows.iter().enumerate() {
            let y = n as f64 * ROW + 4.0;
            text(out, (LABELS, y + 19.0), "end", "name", name);
            block(out, (left, y), (width, ROW - 8.0), "track", label);
            let length = width * share.clamp(0.0, 1.0);
            block(out, (left, y), (length, ROW - 8.0), &format!("fill {class}"), label);
            text(out, (left + width + 8.0, y + 19.0), "start", "value", label);
        }
    })
}

/// Shares over time; `x` says what the axis is, and its points are given in its unit.
pub(super) fn lines(title: &str, x: &str, lines: &[Line<'_>]) -> String {
    let (left, top, right, bottom) = (44.0, 12.0, WIDTH - 150.0, 260.0);
    let points = || lines.iter().flat_map(|line| &line.points);
    let end = points().map(|(x, _)| *x).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let step = nice(end / 6.0);
    let at_x = |x: f64| left + (right - left) * x / end;
    let most = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let whole = [0.2, 0.4, 1.0].into_iter().find(|whole| most <= *whole).unwrap_or(1.0);
    let at_y = |y: f64| bottom - (bottom - top) * (y / whole).clamp(0.0, 1.0);
    picture(title, bottom + 40.0, |out| {
        for quarter in 0..=4 {
            let share = whole * f64::from(quarter) / 4.0;
            let y = at_y(share);
            rule(out, (left, y), (right, y), if quarter == 0 { "axis" } else { "grid" });
            text(out, (left - 8.0, y + 4.0), "end", "tick", &format!("{:.0} %", 100.0 * share));
        }
        let mut tick = 0.0;
        while tick <= end * 1.001 {
            text(out, (at_x(tick), bottom + 18.0), "middle", "tick", &number(tick));
            tick += step;
        }
        text(out, (right, bottom + 36.0), "end", "tick", x);
        let last = |line: &Line<'_>| line.points.last().map_or(0.0, |point| at_y(point.1));
        let labels = spread(&lines.iter().map(last).collect::<Vec<_>>(), 18.0, (top, bottom));
        for (line, label) in lines.iter().zip(labels) {
            let path: Vec<String> = line
                .points
                .iter()
                .map(|&(x, y)| format!("{:.1},{:.1}", at_x(x), at_y(y)))
                .collect();
            let _ = write!(
                out,
                "<polyline points=\"{}\" class=\"line {}\"/>",
                path.join(" "),
                line.class
            );
            let Some(&(x, y)) = line.points.last() else { continue };
            rule(out, (at_x(x) + 3.0, at_y(y)), (right + 12.0, label), "lead");
            let class = format!("name ink-{}", line.class);
            text(out, (right + 16.0, label + 4.0), "start", &class, line.name);
        }
    })
}

/// Side by side, bars of each engine around the mean, which is 1.
pub(super) fn multiples(title: &str, parts: &[(Line<'_>, String)]) -> String {
    let (top, bottom) = (46.0, 182.0);
    let most = parts.iter().flat_map(|(part, _)| &part.points).map(|(_, y)| *y);
    let most = most.fold(1.25, f64::max);
    let room = WIDTH / parts.len().max(1) as f64;
    let at_y = |y: f64| bottom - (bottom - top) * y / most;
    picture(title, bottom + 26.0, |out| {
        for (n, (part, note)) in parts.iter().enumerate() {
            let (left, width) = (n as f64 * room + 6.0, room - 22.0);
            let class = format!("name ink-{}", part.class);
            text(out, (left, 14.0), "start", &class, part.name);
            let slot = width / part.points.len().max(1) as f64;
            for &(x, y) in &part.points {
                let at = (left + (x - 1.0) * slot + slot * 0.12, at_y(y));
                let title = format!("engine {x}: {y:.2} of the mean");
                let class = format!("fill {}", part.class);
                block(out, at, (slot * 0.76, bottom - at.1), &class, &title);
                if slot >= 16.0 {
                    let under = (at.0 + slot * 0.38, bottom + 16.0);
                    text(out, under, "middle", "tick", &number(x));
                }
            }
            rule(out, (left, bottom), (left + width, bottom), "axis");
            rule(out, (left, at_y(1.0)), (left + width, at_y(1.0)), "mean");
            text(out, (left, 31.0), "start", "tick", note);
        }
    })
}

/// Median to 99th percentile, row by row; `write` says a value with its unit.
pub(super) fn spreads(title: &str, rows: &[Spread<'_>], write: impl Fn(f64) -> String) -> String {
    const ROW: f64 = 40.0;
    if rows.is_empty() {
        return String::new();
    }
    let (left, right) = (LABELS + 75.0, WIDTH - 90.0);
    let all = || rows.iter().flat_map(|row| row.at).map(|at| at.max(1.0));
    let least = all().fold(f64::INFINITY, f64::min).log10().floor();
    let most = all().fold(1.0, f64::max).log10().ceil().max(least + 1.0);
    let at_x = |x: f64| left + (right - left) * (x.max(1.0).log10() - least) / (most - least);
    let bottom = rows.len() as f64 * ROW + 6.0;
    picture(title, bottom + 26.0, |out| {
        let mut decade = least;
        while decade <= most {
            let value = 10_f64.powf(decade);
            rule(out, (at_x(value), 0.0), (at_x(value), bottom), "grid");
            text(out, (at_x(value), bottom + 18.0), "middle", "tick", &write(value));
            decade += 1.0;
        }
        for (n, Spread { name, class, at }) in rows.iter().enumerate() {
            let y = n as f64 * ROW + 22.0;
            text(out, (LABELS, y + 4.0), "end", "name", name);
            rule(out, (at_x(at[0]), y), (at_x(at[2]), y), &format!("range {class}"));
            for (r, (value, what)) in at.iter().zip(["median", "90 %", "99 %"]).enumerate() {
                let title = format!("{what}: {}", write(*value));
                let mark = format!("fill {class}");
                dot(out, (at_x(*value), y), if r == 1 { 3.5 } else { 5.5 }, &mark, &title);
            }
            text(out, (at_x(at[0]) - 10.0, y + 4.0), "end", "value", &write(at[0]));
            text(out, (at_x(at[2]) + 10.0, y + 4.0), "start", "value", &write(at[2]));
        }
    })
}

/// How often which value occurs, on a logarithmic axis that ends at `end`; some values are marked.
pub(super) fn distribution(
    title: &str,
    values: &[f64],
    end: f64,
    marks: &[(String, f64)],
    write: impl Fn(f64) -> String,
) -> String {
    /// Bars of a decade.
    const FINE: f64 = 12.0;
    let (left, top, right, bottom) = (20.0, 30.0, WIDTH - 80.0, 170.0);
    let bin = |value: f64| (value.max(1e-9).log10() * FINE).floor();
    let least = values.iter().copied().map(bin).fold(f64::INFINITY, f64::min);
    let most = bin(end) + 1.0;
    if values.is_empty() {
        return String::new();
    }
    let bins = (most - least) as usize;
    let mut counts = vec![0_usize; bins];
    for &value in values.iter().filter(|value| **value <= end) {
        counts[((bin(value) - least) as usize).min(bins - 1)] += 1;
    }
    let tallest = counts.iter().copied().max().unwrap_or(1) as f64;
    let at_x = |x: f64| left + (right - left) * (x.log10() * FINE - least) / (most - least);
    picture(title, bottom + 26.0, |out| {
        let width = (right - left) / bins as f64;
        for (n, &count) in counts.iter().enumerate() {
            let height = (bottom - top) * count as f64 / tallest;
            let from = 10_f64.powf((least + n as f64) / FINE);
            let title = format!("{count} from {}", write(from));
            let at = (left + n as f64 * width + 0.5, bottom - height);
            block(out, at, (width - 1.0, height), "fill kvscout", &title);
        }
        rule(out, (left, bottom), (right, bottom), "axis");
        let decades = (least / FINE).ceil() as i32..=(most / FINE).floor() as i32;
        for value in decades.map(|decade| 10_f64.powi(decade)) {
            rule(out, (at_x(value), bottom), (at_x(value), bottom + 5.0), "axis");
            text(out, (at_x(value), bottom + 20.0), "middle", "tick", &write(value));
        }
        // The first beside its left, so that two that are close do not cover each other.
        for (n, (name, value)) in marks.iter().enumerate() {
            rule(out, (at_x(*value), top - 14.0), (at_x(*value), bottom), "mark");
            let (by, anchor) = if n == 0 { (-6.0, "end") } else { (6.0, "start") };
            text(out, (at_x(*value) + by, top - 4.0), anchor, "value", name);
        }
    })
}

/// The next of 1, 2, 5, 10, ... above a value.
fn nice(value: f64) -> f64 {
    let decade = 10_f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|n| n * decade).into_iter().find(|n| *n >= value).unwrap_or(value)
}

/// Without what is after the point where that is nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Places for labels that are wanted at these heights, each at least `gap` from the next.
fn spread(wanted: &[f64], gap: f64, (top, bottom): (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut places = wanted.to_vec();
    let mut lowest = top;
    for &n in &order {
        places[n] = places[n].max(lowest);
        lowest = places[n] + gap;
    }
    let mut highest = bottom;
    for &n in order.iter().rev() {
        places[n] = places[n].min(highest);
        highest = places[n] - gap;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stay_apart_and_within_the_chart() {
        let places = spread(&[100.0, 98.0, 20.0, 101.0], 18.0, (12.0, 110.0));
        assert_eq!(places, [92.0, 74.0, 20.0, 110.0]);
        assert_eq!(spread(&[], 18.0, (0.0, 1.0)), [0.0; 0]);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!([0.3, 1.0, 1.2, 4.0, 7.0].map(nice), [0.5, 1.0, 2.0, 5.0, 10.0]);
        assert_eq!([0.0, 2.5, 40.0].map(number), ["0", "2.5", "40"]);
    }

    #[test]
    fn a_chart_of_nothing_is_one() {
        for chart in [
            bars("t", &[]),
            lines("t", "minutes", &[]),
            multiples("t", &[]),
            spreads("t", &[], number),
            distribution("t", &[], 1.0, &[], number),
        ] {
            assert!(!chart.contains("NaN") && !chart.contains("inf"), "{chart}");
        }
    }
}
