//! The result as a page: one HTML file with charts, without anything that has to be fetched.

use std::fmt::Write as _;
use std::time::Duration;

use super::chart::{self, Bar, Line, Spread};
use super::report::{Report, imbalance, mean, percent, quantile, ratio};
use super::trial::Tally;

/// Colours and type, for light and dark.
const STYLE: &str = include_str!("page.css");

/// Most points of a line over time, and requests of each, so that few of them are no noise.
const POINTS: u64 = 40;
const REQUESTS_OF_A_POINT: u64 = 25;

/// The page of a result.
pub(super) fn page(report: &Report<'_>) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>kvscout demo</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    );
    head(&mut out, report);
    for part in [cached, over_time, balance, first_token, scoring, table] {
        part(&mut out, report);
    }
    foot(&mut out, report);
    out.push_str("</body>\n</html>\n");
    out
}

/// The class of a policy's colour.
fn class(policy: &str) -> &'static str {
    match policy {
        "kvscout" => "kvscout",
        "session affinity" => "affinity",
        "round-robin" => "round",
        _ => "random",
    }
}

/// A text that may hold anything, such as the name of a file.
fn escaped(text: &str) -> String {
    let escape = |c| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        c => String::from(c),
    };
    text.chars().map(escape).collect()
}

/// A whole number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn millis(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0} s", value / 1000.0),
        value if value >= 1000.0 => format!("{:.1} s", value / 1000.0).replace(".0 ", " "),
        value => format!("{value:.0} ms"),
    }
}

fn micros(value: f64) -> String {
    match value {
        value if value >= 1_000_000.0 => format!("{:.1} s", value / 1e6),
        value if value >= 1000.0 => format!("{:.0} ms", value / 1000.0),
        value if value >= 10.0 => format!("{value:.0} us"),
        value => format!("{value:.1} us").replace(".0 ", " "),
    }
}

fn rate(tally: &Tally) -> f64 {
    ratio(tally.cached_tokens, tally.prompt_tokens)
}

/// A title, what is shown in which unit, and a chart.
fn section(out: &mut String, title: &str, note: &str, chart: &str) {
    // Writing to a string does not fail.
    let _ = write!(out, "<h2>{title}</h2>\n<p class=\"note\">{note}</p>\n{chart}\n");
}

fn head(out: &mut String, report: &Report<'_>) {
    let setting = report.setting;
    let of = match &setting.trace {
        Some(path) => format!("of the trace <code>{}</code>", escaped(path)),
        None => "of users and agents whose conversations share system prompts".to_owned(),
    };
    let engines = match setting.engines {
        1 => "one simulated vLLM engine".to_owned(),
        n => format!("{n} simulated vLLM engines"),
    };
    let _ = write!(
        out,
        "<h1>What routing by cached prefix gains</h1>\n<p>The same {} requests {of} went through \
         four routing policies, each to {engines} with a cache of {} tokens. The engines' KV events \
         went over ZeroMQ to kvscout, which said before each request what every engine had cached.</p>\n",
        grouped(report.served),
        grouped(u64::from(setting.blocks) * 16),
    );
    let Some((_, kvscout)) = report.rows.iter().find(|(policy, _)| *policy == "kvscout") else {
        return;
    };
    let Some((_, random)) = report.rows.iter().find(|(policy, _)| *policy == "random") else {
        return;
    };
    let right: u64 = report.rows.iter().map(|(_, tally)| tally.as_predicted).sum();
    let all: u64 = report.rows.iter().map(|(_, tally)| tally.requests).sum();
    let times = all_scoring(report);
    let (p50, p99) = (quantile(&times, 50), quantile(&times, 99));
    let _ = writeln!(
        out,
        "<ul class=\"facts\">\
         <li><b>{}</b><span>of prompt tokens cached<br>random: {}</span></li>\
         <li><b>{}</b><span>to first token, modelled<br>random: {}</span></li>\
         <li><b>{} wrong</b><span>of {} predictions of what<br>an engine has cached</span></li>\
         <li><b>{}</b><span>median time to score<br>99 of 100 within {}</span></li></ul>",
        percent(kvscout.cached_tokens, kvscout.prompt_tokens),
        percent(random.cached_tokens, random.prompt_tokens),
        millis(mean(&kvscout.first_token) as f64),
        millis(mean(&random.first_token) as f64),
        grouped(all - right),
        grouped(all),
        micros(in_micros(p50)),
        micros(in_micros(p99)),
    );
}

fn cached(out: &mut String, report: &Report<'_>) {
    let bar = |(policy, tally): &(&'static str, &Tally)| Bar {
        name: policy,
        class: class(policy),
        share: rate(tally),
        label: percent(tally.cached_tokens, tally.prompt_tokens),
    };
    let bars: Vec<Bar<'_>> = report.rows.iter().map(bar).collect();
    section(
        out,
        "Prompt tokens found in the cache",
        "Share of all prompt tokens that the chosen engine had cached and did not compute again; more is better.",
        &chart::bars("Share of prompt tokens found in the cache, by policy", &bars),
    );
}

fn over_time(out: &mut String, report: &Report<'_>) {
    let served = report.rows.iter().flat_map(|(_, tally)| &tally.served);
    let end = served.map(|served| served.at).max().unwrap_or(0) + 1;
    // Seconds as long as minutes would be fractions.
    let (unit, name) = if end < 180_000 { (1000.0, "seconds") } else { (60_000.0, "minutes") };
    let points = (report.served / REQUESTS_OF_A_POINT).clamp(8, POINTS);
    let line = |(policy, tally): &(&'static str, &Tally)| {
        let mut sums = vec![(0, 0); points as usize];
        for served in &tally.served {
            let (cached, tokens) = &mut sums[(served.at * points / end) as usize];
            *cached += served.cached_tokens;
            *tokens += served.prompt_tokens;
        }
        let point = |(n, &(cached, tokens)): (usize, &(u64, u64))| {
            let middle = (n as f64 + 0.5) * end as f64 / points as f64;
            (tokens > 0).then(|| (middle / unit, ratio(cached, tokens)))
        };
        let points = sums.iter().enumerate().filter_map(point).collect();
        Line { name: policy, class: class(policy), points }
    };
    let lines: Vec<Line<'_>> = report.rows.iter().map(line).collect();
    section(
        out,
        "The same over time",
        "Share of prompt tokens found in the cache, in equal spans of time. All caches are empty at first.",
        &chart::lines(
            "Share of prompt tokens found in the cache over time, by policy",
            &format!("virtual time, {name}"),
            &lines,
        ),
    );
}

fn balance(out: &mut String, report: &Report<'_>) {
    let part = |(policy, tally): &(&'static str, &Tally)| {
        let work: u64 = tally.engines.iter().map(|engine| engine.computed_tokens).sum();
        let share =
            |n: usize| ratio(tally.engines[n].computed_tokens * tally.engines.len() as u64, work);
        let points = (0..tally.engines.len()).map(|n| ((n + 1) as f64, share(n))).collect();
        let line = Line { name: policy, class: class(policy), points };
        (line, format!("busiest {:.2}x", imbalance(tally)))
    };
    let parts: Vec<(Line<'_>, String)> = report.rows.iter().map(part).collect();
    section(
        out,
        "Balance between the engines",
        "Prompt tokens that each engine had to compute, over the mean of all engines (dashed). Even bars are best.",
        &chart::multiples("Prefill work of each engine over the mean, by policy", &parts),
    );
}

fn first_token(out: &mut String, report: &Report<'_>) {
    let row = |(policy, tally): &(&'static str, &Tally)| Spread {
        name: policy,
        class: class(policy),
        at: [50, 90, 99].map(|percent| quantile(&tally.first_token, percent) as f64),
    };
    let rows: Vec<Spread<'_>> = report.rows.iter().map(row).collect();
    section(
        out,
        "Time to the first token",
        "Median, 90th and 99th percentile on a logarithmic axis; less is better. Modelled: an engine computes one prompt \
         after the other, 8,000 tokens a second.",
        &chart::spreads("Modelled time to the first token, by policy", &rows, millis),
    );
}

fn all_scoring(report: &Report<'_>) -> Vec<Duration> {
    report.rows.iter().flat_map(|(_, tally)| tally.scoring.iter().copied()).collect()
}

fn in_micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

fn scoring(out: &mut String, report: &Report<'_>) {
    let times = all_scoring(report);
    let values: Vec<f64> = times.iter().copied().map(in_micros).collect();
    let mark = |name: &str, percent| {
        let at = in_micros(quantile(&times, percent));
        (format!("{name} {}", micros(at)), at)
    };
    let marks = [mark("median", 50), mark("99 %", 99)];
    let mut sorted = values.clone();
    sorted.sort_by(f64::total_cmp);
    let end = sorted.get(sorted.len() * 999 / 1000).copied().unwrap_or(1.0);
    section(
        out,
        "How long kvscout took to score",
        "How often which time, of all questions of all policies but for the slowest in a thousand, on a logarithmic axis. \
         Measured beside the engines that this machine simulates.",
        &chart::distribution("Distribution of the time to score", &values, end, &marks, micros),
    );
}

fn table(out: &mut String, report: &Report<'_>) {
    out.push_str(
        "<h2>In numbers</h2>\n<div class=\"wide\"><table>\n<tr><th>policy</th><th>cached tokens</th>\
         <th>busiest engine</th><th>first token, mean</th><th>predicted = actual</th><th>differed at once</th>\
         <th>scoring p50</th><th>p99</th></tr>\n",
    );
    for (policy, tally) in &report.rows {
        let _ = writeln!(
            out,
            "<tr><td>{policy}</td><td>{}</td><td>{:.2}x</td><td>{}</td><td>{} of {}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>",
            percent(tally.cached_tokens, tally.prompt_tokens),
            imbalance(tally),
            millis(mean(&tally.first_token) as f64),
            grouped(tally.as_predicted),
            grouped(tally.requests),
            percent(tally.differed_at_once, tally.requests),
            micros(in_micros(quantile(&tally.scoring, 50))),
            micros(in_micros(quantile(&tally.scoring, 99))),
        );
    }
    out.push_str("</table></div>\n");
}

fn foot(out: &mut String, report: &Report<'_>) {
    let setting = report.setting;
    let contract = report.contract.as_deref().unwrap_or("none");
    let trace = match &setting.trace {
        Some(path) => format!(" --trace {}", escaped(path)),
        None => format!(" --seed {}", setting.seed),
    };
    let short = match report.served < setting.requests as u64 {
        true => {
            format!(" Time ran out: {} requests were asked for.", grouped(setting.requests as u64))
        }
        false => String::new(),
    };
    let doubt = match report.is_sound() {
        true => "",
        false => " <b>Not every prediction was exact and what the engine found.</b>",
    };
    let _ = write!(
        out,
        "<footer><p><code>kvscout demo --engines {} --blocks {} --requests {}{trace}</code>, kvscout {}, {:.1} s. \
         Hash contract detected: {contract}.{short}{doubt}</p>\n\
         <p>Simulated are the engines' block pools and the users; events, their transport, the index and scoring are \
         real. Predicted = actual: kvscout, asked once it had applied the engines' last batches, said what the engine \
         found; differed at once: how often it was wrong when asked right after those batches were sent.</p></footer>\n",
        setting.engines,
        setting.blocks,
        setting.requests,
        env!("CARGO_PKG_VERSION"),
        report.elapsed.as_secs_f64(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_called_is_no_markup() {
        assert_eq!(escaped("a<b>&\"c\".jsonl"), "a&lt;b&gt;&amp;&quot;c&quot;.jsonl");
    }

    #[test]
    fn numbers_have_units_and_thousands() {
        assert_eq!([7, 1000, 1_048_576].map(grouped), ["7", "1,000", "1,048,576"]);
        assert_eq!([54.0, 1500.0, 1000.0, 12_000.0].map(millis), ["54 ms", "1.5 s", "1 s", "12 s"]);
        assert_eq!([1.26, 31.0, 1500.0].map(micros), ["1.3 us", "31 us", "2 ms"]);
    }
}
