//! The workers as a table that fits the screen.

use std::ops::Range;

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::board::{Board, Order};
use super::figures::count;
use super::frame::{Look, last_batch};
use crate::status::WorkerLine;

/// Blank characters between two columns.
const GAP: usize = 2;

/// What a column shows, from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Worker,
    Trust,
    Gpu,
    Cpu,
    Disk,
    Remote,
    Unknown,
    Events,
    Behind,
    Held,
    Last,
    Tenant,
    Model,
}

use Column::*;

const ALL: [Column; 13] =
    [Worker, Trust, Gpu, Cpu, Disk, Remote, Unknown, Events, Behind, Held, Last, Tenant, Model];

/// What is left out where there is no room, in this order.
const DISPENSABLE: [Column; 9] = [Model, Tenant, Held, Unknown, Remote, Disk, Cpu, Last, Events];

impl Column {
    fn title(self) -> &'static str {
        match self {
            Worker => "WORKER",
            Trust => "TRUST",
            Gpu => "GPU",
            Cpu => "CPU",
            Disk => "DISK",
            Remote => "REMOTE",
            Unknown => "UNKNOWN",
            Events => "EVENTS/S",
            Behind => "BEHIND",
            Held => "HELD",
            Last => "LAST",
            Tenant => "TENANT",
            Model => "MODEL",
        }
    }

    /// Texts are left, numbers right.
    fn is_text(self) -> bool {
        matches!(self, Worker | Trust | Tenant | Model)
    }

    /// What it may shrink to before something is left out.
    fn least(self) -> usize {
        match self {
            Worker => 16,
            Trust => 20,
            Tenant | Model => 8,
            _ => usize::MAX,
        }
    }

    fn is_ordered_by(self, order: Order) -> bool {
        match order {
            Order::Trust => self == Trust,
            Order::Name => self == Worker,
            Order::Blocks => self == Gpu,
            Order::Events => self == Events,
            Order::Lag => self == Behind,
        }
    }

    fn cell(self, line: &WorkerLine, rate: Option<f64>) -> String {
        let blocks = |n: u64| count(n as f64);
        match self {
            Worker if line.rank > 0 => format!("{} rank {}", line.worker, line.rank),
            Worker => line.worker.clone(),
            Trust => trust(line),
            Gpu => blocks(line.blocks.gpu),
            Cpu => blocks(line.blocks.cpu),
            Disk => blocks(line.blocks.disk),
            Remote => blocks(line.blocks.remote),
            Unknown => blocks(line.blocks.unknown),
            Events => rate.map_or("-".to_owned(), count),
            Behind => count(line.behind as f64),
            Held => count(line.held_back as f64),
            Last => last_batch(line.seconds_since_batch),
            Tenant => line.tenant.clone(),
            Model => line.model.clone().unwrap_or_else(|| "(any)".to_owned()),
        }
    }

    /// Whether a worker has something to say there.
    fn is_of_use(self, line: &WorkerLine) -> bool {
        match self {
            Disk => line.blocks.disk > 0,
            Remote => line.blocks.remote > 0,
            Unknown => line.blocks.unknown > 0,
            Held => line.held_back > 0,
            Tenant => line.tenant != "default",
            _ => true,
        }
    }
}

/// A worker's trust with what explains it.
fn trust(line: &WorkerLine) -> String {
    let mut text = line.trust.clone();
    if let Some(reason) = &line.reason {
        text += &format!(": {reason}");
    }
    if line.link == "down" {
        text += ", link down";
    }
    if !line.warnings.is_empty() {
        text += &format!(" ! {}", line.warnings.join(", "));
    }
    text
}

/// The titles, and some of the workers. Without a width everything is shown.
pub(super) fn lines(
    board: &Board,
    look: Look,
    width: Option<usize>,
    shown: Range<usize>,
) -> Vec<Line<'static>> {
    let workers = board.workers();
    if workers.is_empty() {
        return Vec::new();
    }
    let columns = ALL
        .into_iter()
        .filter(|column| width.is_none() || workers.iter().any(|(line, _)| column.is_of_use(line)));
    // Of all workers, so that scrolling does not move the columns.
    let wide = |column: Column| {
        let cells = workers.iter().map(|(line, rate)| width_of(&column.cell(line, *rate)));
        cells.max().unwrap_or(0).max(column.title().len() + 1)
    };
    let mut columns: Vec<(Column, usize)> = columns.map(|column| (column, wide(column))).collect();
    if let Some(width) = width {
        fit(&mut columns, width);
    }
    let title = |&(column, width): &(Column, usize)| {
        let mark = match (column.is_ordered_by(board.order), board.reversed) {
            (false, _) => "",
            (true, false) => "*",
            (true, true) => "'",
        };
        padded(&format!("{}{mark}", column.title()), width, column.is_text())
    };
    let titles: Vec<String> = columns.iter().map(title).collect();
    let style = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
    let mut lines = vec![Line::styled(titles.join(&" ".repeat(GAP)), style)];
    let stale = board.trouble.is_some();
    for (line, rate) in workers.get(shown).unwrap_or_default() {
        let mut spans = Vec::new();
        for &(column, width) in &columns {
            let text = padded(&column.cell(line, *rate), width, column.is_text());
            let style = match column {
                _ if stale => Style::new().add_modifier(Modifier::DIM),
                Trust => look.trust(&line.trust),
                Behind if line.behind > 0 => look.in_colour(Color::Yellow),
                _ => Style::new(),
            };
            spans.extend([Span::styled(text, style), Span::raw(" ".repeat(GAP))]);
        }
        lines.push(Line::from(spans));
    }
    lines
}

/// Makes columns narrower, and leaves some out, until they fit.
fn fit(columns: &mut Vec<(Column, usize)>, width: usize) {
    let excess = |columns: &[(Column, usize)]| {
        let all: usize = columns.iter().map(|(_, width)| width + GAP).sum();
        all.saturating_sub(GAP).saturating_sub(width)
    };
    let shrink = |columns: &mut Vec<(Column, usize)>| {
        for at in (0..columns.len()).rev() {
            let excess = excess(columns);
            let (column, width) = &mut columns[at];
            *width -= excess.min(width.saturating_sub(column.least()));
        }
    };
    shrink(columns);
    for column in DISPENSABLE {
        if excess(columns) == 0 {
            return;
        }
        columns.retain(|(other, _)| *other != column);
    }
    shrink(columns);
}

fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

/// A text of exactly this width: cut, or filled up.
fn padded(text: &str, width: usize, left: bool) -> String {
    let wide = width_of(text);
    if wide <= width {
        let fill = " ".repeat(width - wide);
        return if left { text.to_owned() + &fill } else { fill + text };
    }
    let (mut cut, mut at) = (String::new(), 0);
    for c in text.chars() {
        let wide = width_of(c.encode_utf8(&mut [0; 4]));
        if at + wide >= width {
            break;
        }
        cut.push(c);
        at += wide;
    }
    cut + "~" + &" ".repeat(width.saturating_sub(at + 1))
}
