//! Where the lines of a recording go: a thread of its own, so that a slow disk or reader holds up nobody who
//! receives.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use crate::Failure;

/// Bytes of lines that may wait: some seconds of a large fleet.
const MOST_WAITING: usize = 128 << 20;
/// How long the last of them may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The recording's file, or stdout.
#[derive(Debug)]
pub(super) struct Output {
    pen: Pen,
    /// Why writing ended before its time; empty where nobody reads any more.
    failure: watch::Receiver<Option<String>>,
    /// Says how it ended.
    ended: mpsc::Receiver<()>,
    name: String,
}

/// Writes lines.
#[derive(Clone, Debug)]
pub(super) struct Pen {
    lines: mpsc::Sender<Option<String>>,
    waiting: Arc<AtomicUsize>,
    fail: watch::Sender<Option<String>>,
}

impl Pen {
    /// Writes a line, some time later. When too much waits already, the recording fails: a hole in its middle
    /// would be worse.
    pub(super) fn line(&self, line: String) {
        let waiting = self.waiting.fetch_add(line.len(), Ordering::Relaxed);
        if waiting > MOST_WAITING {
            let slow = format!("it takes less than engines send; {waiting} bytes wait");
            say(&self.fail, slow);
            return;
        }
        // Fails when writing has ended.
        let _ = self.lines.send(Some(line));
    }
}

impl Output {
    /// A new file, or stdout.
    pub(super) fn open(path: Option<&Path>) -> Result<Output, Failure> {
        let name = path.map_or("stdout".to_owned(), |path| path.display().to_string());
        let sink: Box<dyn Write + Send> = match path {
            None => Box::new(io::stdout()),
            Some(path) => Box::new(create(path).map_err(|error| {
                Failure::Usage(format!("--output {name}: {error}; give the path of a new file"))
            })?),
        };
        let (lines, inbox) = mpsc::channel();
        let (fail, failure) = watch::channel(None);
        let (end, ended) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let pen = Pen { lines, waiting: Arc::clone(&waiting), fail: fail.clone() };
        let writer = move || {
            let mut sink = BufWriter::new(sink);
            if let Err(error) = write(&mut sink, &inbox, &waiting) {
                // Whoever reads stdout has had enough.
                let is_left = error.kind() == io::ErrorKind::BrokenPipe;
                let why = if is_left { String::new() } else { error.to_string() };
                say(&fail, why);
            }
            // Fails when nobody waits for it any more.
            let _ = end.send(());
        };
        let thread = thread::Builder::new().name("kvscout-output".into()).spawn(writer);
        thread.map_err(|error| Failure::Failed(format!("the output: {error}")))?;
        Ok(Output { pen, failure, ended, name })
    }

    /// What others write with.
    pub(super) fn pen(&self) -> Pen {
        self.pen.clone()
    }

    /// Writes a line.
    pub(super) fn line(&self, line: String) {
        self.pen.line(line);
    }

    /// Waits until writing has ended by itself.
    pub(super) async fn has_failed(&self) {
        // Fails when the thread is gone, which is an end, too.
        let _ = self.failure.clone().wait_for(Option::is_some).await;
    }

    /// Ends it, with everything that was written before; whether somebody took all of it.
    pub(super) fn close(self) -> Result<bool, Failure> {
        let failed = |why: &str| Err(Failure::Failed(format!("writing to {}: {why}", self.name)));
        // Fails when it has ended.
        let _ = self.pen.lines.send(None);
        let in_time = self.ended.recv_timeout(PATIENCE).is_ok();
        match (self.failure.borrow().as_deref(), in_time) {
            (Some(""), _) => Ok(false),
            (Some(why), _) => failed(why),
            (None, false) => failed("it takes nothing"),
            (None, true) => Ok(true),
        }
    }
}

/// Says why writing has ended, unless that was said.
fn say(fail: &watch::Sender<Option<String>>, why: String) {
    fail.send_if_modified(|failure| match failure {
        Some(_) => false,
        None => {
            *failure = Some(why);
            true
        }
    });
}

/// A new file that only its owner may read: it will hold prompts.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Writes lines as they come until the end is said.
fn write(
    sink: &mut impl Write,
    inbox: &mpsc::Receiver<Option<String>>,
    waiting: &AtomicUsize,
) -> io::Result<()> {
    while let Ok(Some(line)) = inbox.recv() {
        let mut next = Some(Some(line));
        while let Some(Some(line)) = next {
            sink.write_all(line.as_bytes())?;
            waiting.fetch_sub(line.len(), Ordering::Relaxed);
            next = inbox.try_recv().ok();
        }
        // Whoever reads along sees each batch soon.
        sink.flush()?;
        if next.is_some() {
            break;
        }
    }
    Ok(())
}
