//! An engine as a process would be: a thread that serves, and publishes over ZeroMQ.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use kvscout::block::TokenId;

use super::Failure;
use super::engine::{Engine, PoolFull, Prompt, RequestId};
use super::wire;

/// How long a subscription may take on a machine that is busy with other things.
const PATIENCE_MS: i32 = 10_000;

/// vLLM's default send queue, in messages.
const SEND_HWM: i32 = 100_000;

/// An engine that runs in a thread of its own until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    endpoint: String,
    commands: Option<Sender<Command>>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
    last: Option<u64>,
}

enum Command {
    AwaitSubscriber,
    Serve { id: RequestId, token_ids: Arc<[TokenId]> },
    Finish { id: RequestId, reply: Arc<[TokenId]> },
}

struct Answer {
    outcome: Result<Outcome, Failure>,
    /// The number of the last message that was published.
    last: Option<u64>,
}

#[derive(Clone, Copy)]
enum Outcome {
    Done,
    Served(Result<u32, PoolFull>),
}

impl Server {
    /// Starts an engine and binds its publisher to a free port.
    pub(super) fn start(context: &zmq::Context, engine: Engine) -> Result<Server, Failure> {
        // An XPUB socket is a PUB socket that can tell when a subscription has arrived; on the wire
        // the two are one. Without it the first messages could go to nobody.
        let socket = context.socket(zmq::XPUB)?;
        socket.set_linger(0)?;
        socket.set_sndhwm(SEND_HWM)?;
        socket.set_rcvtimeo(PATIENCE_MS)?;
        socket.bind("tcp://127.0.0.1:*")?;
        let endpoint = socket.get_last_endpoint()?.map_err(|_| "the endpoint is no text")?;
        let (commands, inbox) = mpsc::channel();
        let (outbox, answers) = mpsc::channel();
        let publisher = Publisher { socket, next: 0 };
        let thread = thread::Builder::new()
            .name("demo-engine".into())
            .spawn(move || run(engine, publisher, &inbox, &outbox))?;
        let thread = Some(thread);
        Ok(Server { endpoint, commands: Some(commands), answers, thread, last: None })
    }

    /// Where it publishes.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The number of the last message that it published; `None` before the first.
    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }

    /// Waits until somebody has subscribed to it.
    pub(super) fn await_subscriber(&mut self) -> Result<(), Failure> {
        self.ask(Command::AwaitSubscriber).map(drop)
    }

    /// Admits and prefills a request; returns how many of its tokens were cached.
    pub(super) fn serve(
        &mut self,
        id: RequestId,
        token_ids: Arc<[TokenId]>,
    ) -> Result<Result<u32, PoolFull>, Failure> {
        match self.ask(Command::Serve { id, token_ids })? {
            Outcome::Served(cached) => Ok(cached),
            Outcome::Done => Err("an engine gave the answer to another question".into()),
        }
    }

    /// Generates the reply of a request and ends it.
    pub(super) fn finish(&mut self, id: RequestId, reply: Arc<[TokenId]>) -> Result<(), Failure> {
        self.ask(Command::Finish { id, reply }).map(drop)
    }

    fn ask(&mut self, command: Command) -> Result<Outcome, Failure> {
        let ended = "the thread of an engine has ended";
        self.commands.as_ref().ok_or(ended)?.send(command).map_err(|_| ended)?;
        let answer = self.answers.recv().map_err(|_| ended)?;
        self.last = answer.last;
        answer.outcome
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn run(
    mut engine: Engine,
    mut publisher: Publisher,
    commands: &Receiver<Command>,
    answers: &Sender<Answer>,
) {
    for command in commands {
        let outcome = execute(&mut engine, &mut publisher, command);
        let answer = Answer { outcome, last: publisher.next.checked_sub(1) };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

fn execute(
    engine: &mut Engine,
    publisher: &mut Publisher,
    command: Command,
) -> Result<Outcome, Failure> {
    match command {
        Command::AwaitSubscriber => {
            publisher.socket.recv_bytes(0).map_err(|_| "nobody subscribed to an engine")?;
        }
        Command::Serve { id, token_ids } => {
            let prompt = Prompt { token_ids: token_ids.to_vec(), ..Prompt::default() };
            let cached = engine.admit(id, prompt);
            publisher.step(engine)?;
            return Ok(Outcome::Served(cached));
        }
        Command::Finish { id, reply } => {
            // The last token is sampled and sent, but never fed back, so it is never cached.
            for &token in reply.split_last().map_or(&[][..], |(_, fed_back)| fed_back) {
                // An engine that runs out of blocks here would preempt a request; ours cuts the
                // reply short, which is as good for what the cache holds.
                if engine.decode(id, token).is_err() {
                    break;
                }
                publisher.step(engine)?;
            }
            engine.free(id);
        }
    }
    Ok(Outcome::Done)
}

struct Publisher {
    socket: zmq::Socket,
    next: u64,
}

impl Publisher {
    /// Publishes what happened in a step of the engine, if anything did.
    fn step(&mut self, engine: &mut Engine) -> Result<(), Failure> {
        let events = engine.take_events();
        if events.is_empty() {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let payload = wire::batch(now, &events, 0);
        let sequence = self.next.to_be_bytes();
        self.socket.send_multipart([&b""[..], &sequence, &payload], 0)?;
        self.next += 1;
        Ok(())
    }
}
