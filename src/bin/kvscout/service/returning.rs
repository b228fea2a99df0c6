//! Workers over a restart: how each was fed goes into the snapshot, and tells who comes back.

use kvscout::ingest::snapshot::{Snapshot, WorkerState};
use kvscout::ingest::zmq::{Endpoint, Mode};
use kvscout::scout::Registration;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{Enrolment, Labels, Origin, Refusal, Service, discovered};
use crate::config::Config;
use crate::dial::is_by_name;
use crate::intake::{Feed, Heard};
use crate::state;

/// How a worker was fed, as the snapshot keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fed", rename_all = "snake_case")]
pub(super) enum Attached {
    /// By a source of its own.
    Source {
        endpoint: String,
        replay: Option<String>,
        bound: bool,
        configured: bool,
        #[serde(default)]
        discovered: bool,
        #[serde(default)]
        labels: Labels,
    },
    /// By messages on the shared endpoint.
    Topic,
}

impl Attached {
    fn of(feed: &Feed, labels: Labels) -> Attached {
        match feed {
            Feed::Source { endpoint, replay, mode, origin, .. } => Attached::Source {
                endpoint: endpoint.to_string(),
                replay: replay.as_ref().map(ToString::to_string),
                bound: *mode != Mode::Connect,
                configured: *origin == Origin::Configured,
                discovered: matches!(origin, Origin::Discovered(_)),
                labels,
            },
            Feed::Topic => Attached::Topic,
        }
    }

    /// Whether a name has to be looked up before it can be dialled.
    fn is_by_name(&self) -> bool {
        let Attached::Source { endpoint, replay, .. } = self else { return false };
        let endpoints = [Some(endpoint), replay.as_ref()].into_iter().flatten();
        endpoints.filter_map(|endpoint| endpoint.parse().ok()).any(|endpoint| is_by_name(&endpoint))
    }

    /// Whether an enrolment would feed the worker from the same place.
    pub(super) fn is_as(&self, enrolment: &Enrolment) -> bool {
        let Attached::Source { endpoint, replay, bound, .. } = self else { return false };
        let asked = enrolment.replay.as_ref().map(ToString::to_string);
        *endpoint == enrolment.endpoint.to_string()
            && *replay == asked
            && *bound == (enrolment.mode != Mode::Connect)
    }
}

impl Service {
    /// Everything that another daemon needs to go on here.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.scout.snapshot(state::now());
        // Afterwards: whoever was in the scout is known here by now, or gone for good.
        let feeds = self.switchboard.feeds.lock();
        let returning = self.returning.lock();
        for worker in &mut snapshot.registrations.workers {
            let attached = match feeds.get(&worker.worker) {
                Some(feed) => Some(Attached::of(feed, self.labels.of(worker.worker))),
                None => returning.get(&worker.worker).cloned(),
            };
            // Names and numbers in plain structs, which always serialize.
            let text = attached.and_then(|attached| serde_json::to_string(&attached).ok());
            worker.attached = text.unwrap_or_default();
        }
        snapshot
    }

    /// Writes a snapshot wherever there is a place for it.
    pub(crate) fn save(&self) {
        if let Some(state) = &self.state {
            state.save(|| self.snapshot());
        }
        if let Some(behind) = self.behind() {
            behind.stow(self.snapshot());
        }
    }

    /// Decides who of a snapshot's workers is still there: those of the configuration wait for their
    /// sources to be added, those that registered over HTTP or that a name led to are dialled again, those of
    /// topics are known as before. Everyone else is forgotten.
    pub(super) fn take_back(&self, config: &Config, workers: Vec<WorkerState>) {
        for state in workers {
            let attached: Option<Attached> = serde_json::from_str(&state.attached).ok();
            let of_source = config.sources.iter().any(|source| {
                (&source.tenant, &source.name) == (&state.tenant, &state.pod)
                    && state.rank < source.ranks.get()
            });
            let (pod, rank) = (&state.pod, state.rank);
            let kept = match attached {
                Some(attached) if of_source => {
                    self.returning.lock().insert(state.worker, attached);
                    continue;
                }
                Some(Attached::Topic) => {
                    let kept = config.trust_topics && config.topic_tenant == state.tenant;
                    if kept {
                        self.switchboard.feeds.lock().insert(state.worker, Feed::Topic);
                        let known = Heard::nothing();
                        self.switchboard.heard.lock().insert(state.worker, known);
                    }
                    kept
                }
                Some(Attached::Source { configured: true, .. }) | None => false,
                Some(attached) if attached.is_by_name() => {
                    // Not here: a name server that says nothing would keep the daemon from starting.
                    self.returning.lock().insert(state.worker, attached);
                    self.unresolved.lock().push(state);
                    continue;
                }
                Some(attached) => match self.dial_again(config, &state, attached) {
                    Ok(dialled) => dialled,
                    Err(refusal) => {
                        let error = refusal.into_message();
                        warn!(pod, rank, %error, "could not be registered again");
                        false
                    }
                },
            };
            if !kept {
                info!(pod, rank, "not there any more: forgotten");
                self.returning.lock().remove(&state.worker);
                // It may be gone already.
                let _ = self.scout.unregister(state.worker);
            }
        }
        self.forget_adapters();
    }

    /// Dials those of the snapshot whose names had no address, unless they have been registered meanwhile.
    pub(super) fn dial_unresolved(&self) {
        let waiting = std::mem::take(&mut *self.unresolved.lock());
        for state in waiting {
            let attached = self.returning.lock().get(&state.worker).cloned();
            let Some(attached) = attached else { continue };
            let (pod, rank) = (&state.pod, state.rank);
            match self.dial_requested(&state, attached) {
                Ok(()) => {}
                Err(Refusal::Unavailable(_) | Refusal::Busy(_)) => {
                    self.unresolved.lock().push(state)
                }
                Err(refusal) => {
                    let error = refusal.into_message();
                    warn!(pod, rank, %error, "could not be registered again: forgotten");
                    self.returning.lock().remove(&state.worker);
                    // It may be gone already.
                    let _ = self.scout.unregister(state.worker);
                    self.forget_adapters();
                }
            }
        }
    }

    /// A worker of the snapshot that comes back as another one, or from elsewhere, does not come back.
    pub(super) fn make_way(&self, enrolment: &Enrolment) -> Result<(), Refusal> {
        let Registration { tenant, pod, rank, .. } = &enrolment.registration;
        let Some(worker) = self.scout.find(tenant, pod, *rank) else { return Ok(()) };
        let Some(attached) = self.returning.lock().remove(&worker) else { return Ok(()) };
        let status = self.scout.worker(worker);
        let is_same = status.is_some_and(|status| status.registration == enrolment.registration);
        if !is_same || !attached.is_as(enrolment) {
            info!(pod, rank, "configured otherwise than in the snapshot: begins anew");
            self.scout.unregister(worker)?;
        }
        Ok(())
    }

    /// Dials a worker again, unless it is one of a name that is configured no more; whether it does.
    fn dial_again(
        &self,
        config: &Config,
        state: &WorkerState,
        attached: Attached,
    ) -> Result<bool, Refusal> {
        let enrolment = match &attached {
            Attached::Topic => return Ok(false),
            Attached::Source { endpoint, discovered: true, .. } => {
                let led = discovered::leading_to(config, &state.tenant, &state.pod, endpoint);
                let Some((n, source)) = led.filter(|(_, source)| state.rank < source.ranks.get())
                else {
                    return Ok(false);
                };
                self.lends_its_tokenizer(&source, true);
                discovered::enrolment(&source, state.rank, Origin::Discovered(n))?
            }
            Attached::Source { .. } => return self.dial_requested(state, attached).map(|()| true),
        };
        self.returning.lock().insert(state.worker, attached);
        self.register(enrolment).map(|()| true)
    }

    /// Dials a worker again that a request had registered.
    fn dial_requested(&self, state: &WorkerState, attached: Attached) -> Result<(), Refusal> {
        let Attached::Source { endpoint, replay, labels, .. } = &attached else { return Ok(()) };
        let gone = || Refusal::Invalid("it is not in the index".to_owned());
        let enrolment = Enrolment {
            registration: self.scout.worker(state.worker).ok_or_else(gone)?.registration,
            endpoint: over_tcp(endpoint).map_err(Refusal::Invalid)?,
            mode: Mode::Connect,
            replay: replay.as_deref().map(over_tcp).transpose().map_err(Refusal::Invalid)?,
            origin: Origin::Requested,
            labels: Some(labels.clone()),
        };
        self.returning.lock().insert(state.worker, attached);
        self.register(enrolment)
    }
}

/// An endpoint as HTTP takes it: what a snapshot says is no more trusted than a request.
fn over_tcp(text: &str) -> Result<Endpoint, String> {
    if !text.starts_with("tcp://") {
        return Err(format!("endpoint {text:?}: expected tcp://host:port"));
    }
    text.parse().map_err(|error: kvscout::Error| error.to_string())
}
