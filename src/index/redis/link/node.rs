//! One server: a connection that is kept up in the background, behind a breaker.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::batch::Entry;
use super::breaker::{Breaker, BreakerState};
use super::connect::{Profile, Target};
use super::counters::{Counting, add};
use super::fault::{Fault, Late};

/// How long to wait before a connection to a server that turned out to be a replica is made anew.
const RENEW_PAUSE: Duration = Duration::from_millis(200);

/// How a command is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    /// To the server that its slot is being moved to.
    Asking,
    /// With the text of its script.
    Source,
}

/// When a call has to be over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) start: Instant,
    pub(super) deadline: Duration,
}

/// A server. Dropping it ends its task and its connection.
#[derive(Debug)]
pub(super) struct Node {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.keeper.abort();
        // The task goes when the runtime next looks at it; the connection goes now.
        self.shared.state.lock().live = None;
    }
}

#[derive(Debug)]
struct Shared {
    target: Target,
    profile: Arc<Profile>,
    counting: Arc<Counting>,
    handle: Handle,
    state: Mutex<State>,
    /// Wakes the keeper: the connection is lost, given up, or to be made anew.
    wake: Notify,
    ready: watch::Sender<bool>,
    /// Told when the node lost its connection.
    lost: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    live: Option<Live>,
    breaker: Breaker,
    /// Why there is no connection.
    fault: Fault,
    /// Connections made so far.
    generation: u64,
    renew: bool,
}

#[derive(Clone, Debug)]
struct Live {
    connection: MultiplexedConnection,
    label: Arc<str>,
    generation: u64,
    /// Hashes of the scripts that were sent over this connection with their text.
    loaded: Arc<Mutex<HashSet<&'static str>>>,
}

impl Node {
    /// Starts connecting in the background.
    pub(super) fn open(
        target: Target,
        profile: Arc<Profile>,
        counting: Arc<Counting>,
        handle: &Handle,
        lost: Arc<Notify>,
    ) -> Node {
        let name = match &target {
            Target::Fixed(endpoint) => endpoint.to_string(),
            Target::Master { master, .. } => format!("the master {master:?}"),
        };
        let state = State {
            live: None,
            breaker: Breaker::new(profile.options.late_limit),
            fault: Fault::Down(format!("not connected to {name} yet").into()),
            generation: 0,
            renew: false,
        };
        let shared = Arc::new(Shared {
            target,
            profile,
            counting,
            handle: handle.clone(),
            state: Mutex::new(state),
            wake: Notify::new(),
            ready: watch::Sender::new(false),
            lost,
        });
        let keeper = handle.spawn(Arc::clone(&shared).keep()).abort_handle();
        Node { shared, keeper }
    }

    pub(super) fn breaker(&self) -> BreakerState {
        self.shared.state.lock().breaker.state()
    }

    /// Waits until there is a connection, until the limit.
    pub(super) async fn ready(&self, limit: Limit) -> Result<(), Fault> {
        let mut ready = self.shared.ready.subscribe();
        let connected = pin!(async { ready.wait_for(|ready| *ready).await.is_ok() });
        match select(connected, pin!(self.shared.sleep(limit))).await {
            Either::Left(_) => Ok(()),
            Either::Right(_) => Err(self.shared.state.lock().fault.clone()),
        }
    }

    /// Asks the keeper for a new connection, while the old one stays in use: the server is not the
    /// one to write to.
    pub(super) fn renew(&self) {
        self.shared.state.lock().renew = true;
        self.shared.wake.notify_one();
    }

    /// Sends commands in one go and returns the replies in order, with errors that the server
    /// answered among them.
    pub(super) async fn call(
        &self,
        commands: &[(&Entry, Form)],
        limit: Limit,
    ) -> Result<(Arc<str>, Vec<Value>), Fault> {
        self.shared.call(commands, limit).await
    }
}

impl Shared {
    /// Ends with the limit. It needs no runtime around it, only the one that the link was opened in.
    fn sleep(&self, limit: Limit) -> tokio::time::Sleep {
        let _context = self.handle.enter();
        tokio::time::sleep_until((limit.start + limit.deadline).into())
    }

    async fn call(
        &self,
        commands: &[(&Entry, Form)],
        limit: Limit,
    ) -> Result<(Arc<str>, Vec<Value>), Fault> {
        let live = {
            let state = self.state.lock();
            match &state.live {
                Some(live) => live.clone(),
                None => return Err(state.fault.clone()),
            }
        };
        let mut pipeline = Pipeline::with_capacity(commands.len());
        // A script goes ahead of its first use with its text, so that the use needs no second trip
        // and runs in its place.
        let mut new = Vec::new();
        {
            let loaded = live.loaded.lock();
            for script in commands.iter().filter_map(|(entry, _)| entry.script) {
                if !loaded.contains(script.sha()) && !new.contains(&script.sha()) {
                    new.push(script.sha());
                    pipeline.add_command(script.load());
                }
            }
        }
        for (entry, form) in commands {
            match (form, entry.script) {
                (Form::Source, Some(script)) => pipeline.add_command(entry.with_source(script)),
                (Form::Asking, _) => {
                    pipeline.add_command(redis::cmd("ASKING")).add_command(entry.cmd.clone())
                }
                _ => pipeline.add_command(entry.cmd.clone()),
            };
        }
        add(&self.counting.commands, commands.len() as u64);
        let sent = pipeline.len();
        let reply = {
            let mut connection = live.connection.clone();
            let call = pin!(connection.send_packed_commands(&pipeline, 0, sent));
            match select(call, pin!(self.sleep(limit))).await {
                Either::Left((reply, _)) => reply,
                Either::Right(_) => return Err(self.late(&live, limit.deadline)),
            }
        };
        match reply {
            Ok(mut values) if values.len() == sent => {
                self.in_time(&live);
                live.loaded.lock().extend(new.iter().copied());
                values.drain(..new.len());
                if commands.iter().any(|(_, form)| *form == Form::Asking) {
                    values = without_asking(values, commands);
                }
                Ok((live.label, values))
            }
            Ok(_) => Err(self.broken(
                &live,
                Fault::Down(
                    format!("{} answered another number of commands than it was sent", live.label)
                        .into(),
                ),
            )),
            Err(error) => Err(self.broken(&live, Fault::connecting(&live.label, &error))),
        }
    }

    fn in_time(&self, live: &Live) {
        let mut state = self.state.lock();
        if state.generation == live.generation {
            state.breaker.in_time();
        }
    }

    fn late(&self, live: &Live, deadline: Duration) -> Fault {
        let fault = Fault::Late(Late { server: (*live.label).into(), deadline });
        let mut state = self.state.lock();
        // What was sent over an earlier connection says nothing of this one.
        if state.generation == live.generation && state.breaker.late() {
            let why = format!(
                "{} was late {} times in a row; trying it again in the background",
                live.label, self.profile.options.late_limit
            );
            self.give_up(&mut state, Fault::Down(why.into()));
        }
        fault
    }

    fn broken(&self, live: &Live, fault: Fault) -> Fault {
        let mut state = self.state.lock();
        if state.generation == live.generation && state.breaker.open() {
            self.give_up(&mut state, fault.clone());
        }
        fault
    }

    fn give_up(&self, state: &mut State, why: Fault) {
        add(&self.counting.opened, 1);
        state.live = None;
        state.fault = why;
        self.ready.send_replace(false);
        self.wake.notify_one();
        self.lost.notify_one();
    }

    /// The node's task: keeps a connection, until the node is dropped.
    async fn keep(self: Arc<Self>) {
        let options = &self.profile.options;
        let mut turn = 0;
        loop {
            let pause =
                self.state.lock().breaker.pause(options.retry_min, options.retry_max, chance());
            tokio::time::sleep(pause).await;
            self.state.lock().breaker.probe();
            match self.connect(turn).await {
                Ok(live) => {
                    self.install(live);
                    self.attend().await;
                }
                Err(fault) => {
                    add(&self.counting.connect_failures, 1);
                    let mut state = self.state.lock();
                    state.fault = fault;
                    state.breaker.open();
                }
            }
            turn += 1;
        }
    }

    async fn connect(&self, turn: usize) -> Result<Live, Fault> {
        let endpoint = self.target.find(turn).await?;
        let (mut connection, ping) = self.profile.connect(&endpoint).await?;
        let label: Arc<str> = endpoint.to_string().into();
        let deadline = self.profile.options.connect_deadline;
        let confirmed = self.target.confirm(&mut connection, &label);
        tokio::time::timeout(deadline, confirmed).await.map_err(|_| {
            Fault::Down(format!("no answer from {label} within {deadline:?}").into())
        })??;
        self.counting.ping_took(ping);
        Ok(Live { connection, label, generation: 0, loaded: Arc::default() })
    }

    fn install(&self, mut live: Live) {
        let mut state = self.state.lock();
        add(&self.counting.connects, 1);
        if state.generation > 0 {
            add(&self.counting.reconnects, 1);
        }
        state.generation += 1;
        live.generation = state.generation;
        state.live = Some(live);
        state.renew = false;
        state.breaker.close();
        self.ready.send_replace(true);
    }

    /// Returns when the connection is lost or given up.
    async fn attend(&self) {
        let options = &self.profile.options;
        let interval = options.health_interval;
        let (mut turn, mut renewals) = (0, 0);
        loop {
            let tick = interval.mul_f64(0.75 + 0.5 * f64::from(chance()) / f64::from(u32::MAX));
            let woken = tokio::time::timeout(tick, self.wake.notified()).await.is_ok();
            let (lost, renew) = {
                let state = self.state.lock();
                (state.live.is_none(), state.renew)
            };
            if lost {
                return;
            }
            turn += 1;
            if renew || (!woken && self.moved(turn).await) {
                // A server that stays a replica is asked ever less often.
                let pause = RENEW_PAUSE.saturating_mul(1 << renewals.min(10));
                tokio::time::sleep(pause.min(options.retry_max.max(RENEW_PAUSE))).await;
                renewals += 1;
                let renewed = self.connect(turn).await;
                self.state.lock().renew = false;
                match renewed {
                    Ok(live) => self.install(live),
                    Err(_) => add(&self.counting.connect_failures, 1),
                }
            } else if !woken {
                renewals = 0;
                self.ping().await;
            }
        }
    }

    /// Whether the sentinels name another master than the one in use.
    async fn moved(&self, turn: usize) -> bool {
        if let Target::Fixed(_) = self.target {
            return false;
        }
        let used = self.state.lock().live.as_ref().map(|live| Arc::clone(&live.label));
        match (self.target.find(turn).await, used) {
            (Ok(named), Some(used)) => *named.to_string() != *used,
            _ => false,
        }
    }

    /// Finds out that an idle connection is dead before a call does. Not being answered within the
    /// longest deadline counts as much as `late_limit` late calls.
    async fn ping(&self) {
        let Some(mut live) = self.state.lock().live.clone() else { return };
        let options = &self.profile.options;
        let deadline = options.write_deadline.max(options.read_deadline);
        let start = Instant::now();
        let ping = redis::cmd("PING");
        let call = live.connection.send_packed_command(&ping);
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(_)) => {
                self.counting.ping_took(start.elapsed());
                let mut state = self.state.lock();
                if state.generation == live.generation {
                    state.breaker.lasted();
                }
            }
            Ok(Err(error)) => {
                self.broken(&live, Fault::connecting(&live.label, &error));
            }
            Err(_) => {
                let why = format!("{} did not answer a ping within {deadline:?}", live.label);
                self.broken(&live, Fault::Down(why.into()));
            }
        }
    }
}

/// Leaves out the replies to `ASKING`, which stand before those of the commands sent so.
fn without_asking(values: Vec<Value>, commands: &[(&Entry, Form)]) -> Vec<Value> {
    let mut values = values.into_iter();
    let mut kept = Vec::with_capacity(commands.len());
    for (_, form) in commands {
        if *form == Form::Asking {
            values.next();
        }
        kept.extend(values.next());
    }
    kept
}

/// For jitter only: without a random source it is none.
pub(super) fn chance() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}
