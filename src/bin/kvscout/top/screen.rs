//! The terminal: taken over, drawn on, and given back however this ends.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use super::ask::Daemon;
use super::board::{Board, Order, Scroll};
use super::frame::{self, Look};
use crate::Failure;
use crate::status::Status;

/// What there is to react to.
enum Happened {
    /// The daemon answered, or did not.
    Answer(Box<Result<Status, String>>),
    /// A key was pressed.
    Key(KeyEvent),
    /// The screen has another size.
    Resized,
    /// It is to end.
    End,
}

/// A terminal that is as it was before once this is dropped; ratatui sees to panics.
struct Borrowed;

impl Drop for Borrowed {
    fn drop(&mut self) {
        // Fails when the terminal is gone, and then there is nothing to give back.
        let _ = ratatui::try_restore();
    }
}

/// Shows the board until a key or a signal ends it.
pub(super) fn run(daemon: Daemon, mut board: Board) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Failed(format!("the terminal: {error}"));
    let (send, inbox) = mpsc::channel();
    // Before the terminal is taken: from then on a signal gives it back.
    listen_for_signals(send.clone()).map_err(failed)?;
    let borrowed = Borrowed;
    let mut terminal = ratatui::try_init().map_err(failed)?;
    read_keys(send.clone());
    ask(daemon, board.every, send);
    let outcome = show(&mut terminal, &mut board, &inbox);
    // Shows the cursor.
    drop(terminal);
    drop(borrowed);
    outcome.map_err(failed)
}

fn show(
    terminal: &mut DefaultTerminal,
    board: &mut Board,
    inbox: &Receiver<Happened>,
) -> io::Result<()> {
    let look = look();
    loop {
        terminal.draw(|picture| {
            let area = picture.area();
            let lines = frame::screen(board, look, area.width, area.height);
            for (y, line) in (area.y..).zip(&lines) {
                picture.buffer_mut().set_line(area.x, y, line, area.width);
            }
        })?;
        // Everything that waits, so that keys that repeat are not drawn one by one.
        let mut next = inbox.recv().ok();
        while let Some(happened) = next {
            match happened {
                Happened::Answer(answer) => board.heard(*answer),
                Happened::Key(key) => {
                    let shown = frame::shown(terminal.size()?.height);
                    if !obey(board, key, shown) {
                        return Ok(());
                    }
                    if key.code == KeyCode::Char('l') && key.modifiers == KeyModifiers::CONTROL {
                        terminal.clear()?;
                    }
                }
                Happened::Resized => {}
                Happened::End => return Ok(()),
            }
            next = inbox.try_recv().ok();
        }
    }
}

/// Does what a key is for; whether to go on.
fn obey(board: &mut Board, key: KeyEvent, shown: usize) -> bool {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return key.code != KeyCode::Char('c');
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('t') => board.order_by(Order::Trust),
        KeyCode::Char('n') => board.order_by(Order::Name),
        KeyCode::Char('b') => board.order_by(Order::Blocks),
        KeyCode::Char('e') => board.order_by(Order::Events),
        KeyCode::Char('l') => board.order_by(Order::Lag),
        KeyCode::Char('r') => {
            board.reversed = !board.reversed;
            board.above = 0;
        }
        KeyCode::Up | KeyCode::Char('k') => board.scroll(Scroll::Lines(-1), shown),
        KeyCode::Down | KeyCode::Char('j') => board.scroll(Scroll::Lines(1), shown),
        KeyCode::PageUp => board.scroll(Scroll::Pages(-1), shown),
        KeyCode::PageDown | KeyCode::Char(' ') => board.scroll(Scroll::Pages(1), shown),
        KeyCode::Home | KeyCode::Char('g') => board.scroll(Scroll::First, shown),
        KeyCode::End | KeyCode::Char('G') => board.scroll(Scroll::Last, shown),
        _ => {}
    }
    true
}

/// Asks the daemon again and again until nobody listens.
fn ask(daemon: Daemon, every: Duration, send: Sender<Happened>) {
    thread::spawn(move || {
        while send.send(Happened::Answer(Box::new(daemon.ask()))).is_ok() {
            thread::sleep(every);
        }
    });
}

/// Reads keys until nobody listens, or the terminal is gone.
fn read_keys(send: Sender<Happened>) {
    thread::spawn(move || {
        loop {
            let happened = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => Happened::Key(key),
                Ok(Event::Resize(..)) => Happened::Resized,
                Ok(_) => continue,
                Err(_) => Happened::End,
            };
            let ends = matches!(happened, Happened::End);
            if send.send(happened).is_err() || ends {
                return;
            }
        }
    });
}

/// Ends with SIGTERM, SIGINT, and SIGHUP, which a closed connection sends.
fn listen_for_signals(send: Sender<Happened>) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let all = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let [mut terminate, mut interrupt, mut hangup] = {
        let _inside = runtime.enter();
        let [terminate, interrupt, hangup] = all.map(signal);
        [terminate?, interrupt?, hangup?]
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        // Fails when it has ended already.
        let _ = send.send(Happened::End);
    });
    Ok(())
}

/// What the user wants and the terminal can.
fn look() -> Look {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable);
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    Look {
        // https://no-color.org
        colour: variable("NO_COLOR").is_none(),
        unicode: locale.contains("utf-8") || locale.contains("utf8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_end_ends_it_and_no_other_key_does() {
        let mut board = Board::new("http://x", Duration::from_secs(1));
        let key = |code, modifiers| KeyEvent::new(code, modifiers);
        let plain = KeyModifiers::NONE;
        for ends in [
            key(KeyCode::Char('q'), plain),
            key(KeyCode::Esc, plain),
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert!(!obey(&mut board, ends, 10), "{ends:?}");
        }
        for c in "tnbelrjkgGxc ".chars() {
            assert!(obey(&mut board, key(KeyCode::Char(c), plain), 10), "{c}");
        }
    }
}
