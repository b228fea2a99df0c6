//! One picture of a [`Board`], as lines of styled text.

use std::time::Duration;

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::board::{Board, Order};
use super::figures::{age, bytes, count, latency, span};
use super::table;
use crate::status::{Status, TierBlocks};

/// What the terminal can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// The sixteen colours of any terminal.
    pub(super) colour: bool,
    /// Characters beyond ASCII.
    pub(super) unicode: bool,
}

impl Look {
    /// Text and nothing else.
    pub(super) const PLAIN: Look = Look { colour: false, unicode: false };

    /// A style in a colour, if there are any.
    pub(super) fn in_colour(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// How a trust is shown, beside its word.
    pub(super) fn trust(self, trust: &str) -> Style {
        match trust {
            "exact" => self.in_colour(Color::Green),
            "syncing" => self.in_colour(Color::Cyan),
            "degraded" => self.in_colour(Color::Yellow).add_modifier(Modifier::BOLD),
            _ => self.in_colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Lines that are no worker's: above the table, its titles, and the keys below.
const OTHERS: usize = 9;

/// How many workers a screen of this height shows.
pub(super) fn shown(height: u16) -> usize {
    usize::from(height).saturating_sub(OTHERS)
}

/// A screen: never more lines than it has, each cut at its width by whoever draws it.
pub(super) fn screen(board: &Board, look: Look, width: u16, height: u16) -> Vec<Line<'static>> {
    let mut lines = head(board, look);
    let (shown, all) = (shown(height), board.workers());
    let above = board.above.min(board.last_above(shown));
    let until = (above + shown).min(all.len());
    lines.extend(table::lines(board, look, Some(width.into()), above..until));
    let bottom = usize::from(height).saturating_sub(1);
    lines.resize(bottom.max(1), Line::default());
    lines.truncate(bottom);
    lines.push(keys(board, above, until, all.len()));
    if !look.unicode {
        lines.iter_mut().flat_map(|line| &mut line.spans).for_each(to_ascii);
    }
    lines
}

/// Replaces what a terminal without further characters would show as others.
fn to_ascii(span: &mut Span<'static>) {
    if !span.content.is_ascii() {
        let ascii = |c: char| if c.is_ascii() { c } else { '?' };
        span.content = span.content.chars().map(ascii).collect::<String>().into();
    }
}

/// The same as text, all workers and all that is known of them, however wide.
pub(super) fn text(board: &Board) -> String {
    let mut lines = head(board, Look::PLAIN);
    let workers = board.status.as_ref().map_or(0, |status| status.workers.len());
    lines.extend(table::lines(board, Look::PLAIN, None, 0..workers));
    let text = |line: &Line<'_>| {
        let text: String = line.spans.iter().map(|span| span.content.as_ref()).collect();
        text.trim_end().to_owned() + "\n"
    };
    lines.iter().map(text).collect()
}

/// What is above the table.
fn head(board: &Board, look: Look) -> Vec<Line<'static>> {
    let mut lines = vec![title(board)];
    lines.push(match (&board.trouble, &board.status) {
        (Some(trouble), known) => {
            let gone = span(trouble.since.elapsed());
            let stale = if known.is_some() { "; what is below is from before" } else { "" };
            let style = look.in_colour(Color::Red).add_modifier(Modifier::REVERSED);
            let every = board.every;
            let text =
                format!(" NO ANSWER for {gone}, asking again every {every:?}: {} ", trouble.why);
            Line::from(vec![Span::styled(text, style), Span::raw(stale)])
        }
        (None, Some(Status { not_ready: Some(why), .. })) => {
            let style = look.in_colour(Color::Yellow).add_modifier(Modifier::BOLD);
            Line::styled(format!("not ready: {why}"), style)
        }
        (None, Some(_)) => Line::default(),
        (None, None) => Line::raw("asking..."),
    });
    if let Some(status) = &board.status {
        lines.extend([trusts(status, look), events(board, look), scores(board)]);
        lines.extend([index(status, look), Line::default()]);
    }
    lines
}

fn title(board: &Board) -> Line<'static> {
    let mut spans = vec![Span::styled("kvscout", BOLD)];
    let known = board.status.as_ref().map(|status| {
        let up = span(Duration::try_from_secs_f64(status.uptime_seconds).unwrap_or_default());
        let ready = if status.ready { "ready" } else { "not ready" };
        format!(" {} at {}, up {up}, {ready}", status.version, board.url)
    });
    spans.push(Span::raw(known.unwrap_or_else(|| format!(" at {}", board.url))));
    Line::from(spans)
}

/// A line that begins with what it is about.
fn about(what: &str, rest: impl IntoIterator<Item = Span<'static>>) -> Line<'static> {
    let mut spans = vec![Span::styled(format!("{what:<9}"), BOLD)];
    spans.extend(rest);
    Line::from(spans)
}

fn trusts(status: &Status, look: Look) -> Line<'static> {
    let of = |trust: &str| status.workers.iter().filter(|line| line.trust == trust).count();
    let mut spans = vec![Span::raw(format!("{:<9}", status.workers.len()))];
    for trust in ["exact", "syncing", "degraded", "silent"] {
        let n = of(trust);
        let style = if n > 0 { look.trust(trust) } else { Style::new() };
        spans.extend([Span::styled(format!("{trust} {n}"), style), Span::raw("  ")]);
    }
    let warned = status.workers.iter().filter(|line| !line.warnings.is_empty()).count();
    if warned > 0 {
        let style = look.in_colour(Color::Yellow).add_modifier(Modifier::BOLD);
        spans.push(Span::styled(format!("with warnings {warned}"), style));
    }
    about("workers", spans)
}

fn events(board: &Board, look: Look) -> Line<'static> {
    let Some(rates) = &board.rates else {
        let total = board.status.as_ref().map_or(0, |status| status.events.events);
        return about("events", [Span::raw(format!("{} so far", count(total as f64)))]);
    };
    let text = format!(
        "{:<9}{}/s batches, blocks +{}/s -{}/s  ",
        format!("{}/s", count(rates.events)),
        count(rates.batches),
        count(rates.stored),
        count(rates.removed)
    );
    let curve = Span::styled(curve(board, look), look.in_colour(Color::Cyan));
    about("events", [Span::raw(text), curve])
}

/// The last looks' events a second, as high as they were.
fn curve(board: &Board, look: Look) -> String {
    let levels = match look.unicode {
        true => [
            "\u{2581}", "\u{2582}", "\u{2583}", "\u{2584}", "\u{2585}", "\u{2586}", "\u{2587}",
            "\u{2588}",
        ],
        false => ["_", ".", ",", "-", "=", "+", "*", "#"],
    };
    let most = board.curve.iter().copied().fold(0.0, f64::max);
    let level = |&rate: &f64| match rate > 0.0 {
        // At least visible.
        true => levels[((rate / most * 8.0).ceil() as usize).clamp(2, 8) - 1],
        false => levels[0],
    };
    board.curve.iter().map(level).collect()
}

fn scores(board: &Board) -> Line<'static> {
    let (asked, since_start) = board.asked();
    let rate = board.rates.as_ref().map(|rates| format!("{}/s", count(rates.questions)));
    let rate = rate.unwrap_or_else(|| format!("{} so far", count(asked.questions as f64)));
    let Some(ratio) = asked.hit_ratio else {
        return about("scores", [Span::raw(format!("{rate:<9}nothing was asked yet"))]);
    };
    let time = |seconds: Option<f64>| seconds.map_or("-".to_owned(), latency);
    let text = format!(
        "{rate:<9}hit ratio {:.0} % of {} tokens, index p50 {} p99 {}{}",
        100.0 * ratio,
        count(asked.asked_tokens as f64),
        time(asked.p50_seconds),
        time(asked.p99_seconds),
        if since_start { " (since the start)" } else { "" }
    );
    about("scores", [Span::raw(text)])
}

fn index(status: &Status, look: Look) -> Line<'static> {
    let index = &status.index;
    let mut tiers = TierBlocks::default();
    for line in &status.workers {
        tiers.add_all(&line.blocks);
    }
    let part = index.bytes as f64 / index.budget_bytes.max(1) as f64;
    let filled = ((10.0 * part).ceil() as usize).min(10);
    let colour = if part > 0.9 { Color::Yellow } else { Color::Cyan };
    let bar = Span::styled(
        format!("[{}{}]", "#".repeat(filled), "-".repeat(10 - filled)),
        look.in_colour(colour),
    );
    let size = format!("{} of {} ", bytes(index.bytes), bytes(index.budget_bytes));
    let held: Vec<String> = tiers
        .by_name()
        .filter(|(name, blocks)| *blocks > 0 || *name == "gpu")
        .map(|(name, blocks)| format!("{name} {}", count(blocks as f64)))
        .collect();
    let mut rest = format!(", held: {}", held.join(", "));
    if index.evicted > 0 {
        rest += &format!(", {} given up", count(index.evicted as f64));
    }
    about("index", [Span::raw(size), bar, Span::raw(rest)])
}

fn keys(board: &Board, above: usize, until: usize, all: usize) -> Line<'static> {
    let place = match all {
        0 => "no workers".to_owned(),
        _ => format!("{}-{until} of {all}", (above + 1).min(until)),
    };
    let order = |order, key: &str, word: &str| {
        let style = if board.order == order { BOLD } else { Style::new() };
        [Span::styled(format!(" {key} {word}"), style)]
    };
    let mut spans = vec![Span::raw(place), Span::raw("  q quit  sort:")];
    spans.extend(order(Order::Trust, "t", "trust"));
    spans.extend(order(Order::Name, "n", "name"));
    spans.extend(order(Order::Blocks, "b", "blocks"));
    spans.extend(order(Order::Events, "e", "events"));
    spans.extend(order(Order::Lag, "l", "lag"));
    let reverse = if board.reversed { BOLD } else { Style::new() };
    spans.push(Span::styled(" r reverse", reverse));
    spans.push(Span::raw("  arrows PgUp PgDn Home End"));
    Line::from(spans)
}

/// How long ago a worker's last batch came.
pub(super) fn last_batch(seconds: Option<f64>) -> String {
    seconds.map_or("never".to_owned(), age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{EventCounts, IndexSizes, WorkerLine};

    fn worker(n: u64) -> WorkerLine {
        WorkerLine {
            worker: format!("a-pod-with-a-rather-long-name-{n}"),
            model: Some("Qwen/Qwen3-8B".into()),
            tenant: "default".into(),
            trust: if n == 3 { "degraded".into() } else { "exact".into() },
            reason: (n == 3).then(|| "gap".into()),
            link: "up".into(),
            seconds_since_batch: Some(0.2),
            blocks: TierBlocks { gpu: 12_345, cpu: n, ..TierBlocks::default() },
            events: 10 * n,
            ..WorkerLine::default()
        }
    }

    fn board(workers: u64) -> Board {
        let mut board = Board::new("http://127.0.0.1:13333", Duration::from_secs(1));
        let status = |seconds, events| Status {
            version: "0.1.0".into(),
            uptime_seconds: seconds,
            ready: true,
            index: IndexSizes { bytes: 1 << 30, budget_bytes: 8 << 30, ..IndexSizes::default() },
            events: EventCounts { events, ..EventCounts::default() },
            workers: (0..workers).map(worker).collect(),
            ..Status::default()
        };
        board.heard(Ok(status(60.0, 0)));
        board.heard(Ok(status(62.0, 2500)));
        board
    }

    fn texts(lines: &[Line<'_>]) -> Vec<String> {
        lines.iter().map(|line| line.to_string().trim_end().to_owned()).collect()
    }

    #[test]
    fn a_screen_has_its_lines_and_fits_every_width() {
        let board = board(100);
        for (width, height) in [(80, 24), (200, 50), (40, 12), (20, 5), (1, 1)] {
            let lines = screen(&board, Look::PLAIN, width, height);
            assert_eq!(lines.len(), usize::from(height), "{width}x{height}");
        }
        let texts = texts(&screen(&board, Look::PLAIN, 80, 24));
        let table = &texts[7..23];
        assert!(table.iter().all(|line| line.len() <= 80), "{table:#?}");
        assert!(table[0].starts_with("WORKER") && table[0].contains("TRUST*"), "{table:#?}");
        assert!(table[1].contains("degraded: gap") && table[1].contains("12 k"), "{table:#?}");
        assert!(texts[23].starts_with("1-15 of 100  q quit"), "{texts:#?}");
        assert!(texts[3].starts_with("events   1.2 k/s  "), "{texts:#?}");
    }

    #[test]
    fn the_end_of_many_workers_can_be_reached() {
        let mut board = board(100);
        board.order_by(Order::Name);
        board.scroll(super::super::board::Scroll::Last, shown(24));
        let texts = texts(&screen(&board, Look::PLAIN, 120, 24));
        assert!(texts[22].starts_with("a-pod-with-a-rather-long-name-99 "), "{texts:#?}");
        assert!(texts[23].starts_with("86-100 of 100"), "{texts:#?}");
    }

    #[test]
    fn a_daemon_that_is_gone_is_said_to_be() {
        let mut board = board(2);
        board.heard(Err("io: Connection refused".into()));
        let texts = texts(&screen(&board, Look::PLAIN, 120, 24));
        let expected = "NO ANSWER for 0 s, asking again every 1s: io: Connection refused";
        assert!(texts[1].contains(expected), "{texts:#?}");
        assert!(texts[1].contains("from before") && texts[8].contains("a-pod"), "{texts:#?}");
    }

    #[test]
    fn without_colours_nothing_is_told_by_colour_alone() {
        let board = board(4);
        let colours = |look| {
            let lines = screen(&board, look, 100, 24);
            let spans = lines.iter().flat_map(|line| &line.spans);
            spans.filter(|span| span.style.fg.is_some()).count()
        };
        assert_eq!(colours(Look::PLAIN), 0);
        assert!(colours(Look { colour: true, unicode: true }) > 0);
    }

    #[test]
    fn as_text_every_worker_is_there_in_full() {
        let text = text(&board(3));
        assert!(text.is_ascii() && !text.contains('\x1b'));
        for n in 0..3 {
            assert!(text.contains(&format!("a-pod-with-a-rather-long-name-{n} ")), "{text}");
        }
        assert!(text.contains("REMOTE") && text.contains("Qwen/Qwen3-8B"), "{text}");
    }
}
