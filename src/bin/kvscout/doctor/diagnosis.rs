//! From what was seen to what a tired operator needs to hear. Pure: facts in, findings out.

use kvscout::ingest::zmq::SourceStatus;
use kvscout::scout::{Warning, WorkerStatus};

use super::announced;
use super::engine::{Metrics, Said};
use super::heard::Heard;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// As it should be.
    Fine,
    /// Worth knowing; scores are right.
    Note,
    /// Could not be checked, and why.
    Unknown,
    /// Scores will be wrong, missing or not to be trusted.
    Problem,
}

impl Level {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Level::Fine => "ok",
            Level::Note => "note",
            Level::Unknown => "unknown",
            Level::Problem => "problem",
        }
    }
}

/// One line of the diagnosis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// What was looked at; stable.
    pub(super) check: &'static str,
    pub(super) level: Level,
    /// What is so.
    pub(super) text: String,
    /// What to do about it; empty where there is nothing to do.
    pub(super) advice: &'static str,
}

/// What the replay socket gave.
#[derive(Clone, Debug, Default)]
pub(super) struct Replayed {
    /// Why it gave nothing.
    pub(super) error: Option<String>,
    pub(super) batches: u64,
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
    /// Batches missing between the first and the last one.
    pub(super) holes: u64,
    /// Whether the end marker came.
    pub(super) ended: bool,
}

/// What the same prompt twice led to.
#[derive(Clone, Debug)]
pub(super) struct Twice {
    pub(super) error: Option<String>,
    pub(super) tokens: usize,
    /// What kvscout expected before the second request, with its trust.
    pub(super) expected: Option<u32>,
    /// What the engine reported for it.
    pub(super) cached: Option<u64>,
}

/// What became of the connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    /// A publisher has completed the handshake, now or before.
    pub(super) answered: bool,
    /// Something took the connection and was no publisher.
    pub(super) foreign: bool,
    pub(super) malformed: u64,
    pub(super) overruns: u64,
}

impl From<&SourceStatus> for Link {
    fn from(status: &SourceStatus) -> Link {
        Link {
            answered: status.up || status.messages > 0,
            foreign: status.connections as u64 + status.failed_handshakes + status.violations > 0,
            malformed: status.malformed_frames + status.malformed_sequence,
            overruns: status.overruns,
        }
    }
}

/// Everything that was seen.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) endpoint: String,
    pub(super) seconds: f64,
    pub(super) link: Link,
    /// The links to the ranks behind the first one.
    pub(super) ranks: Vec<SourceStatus>,
    pub(super) live: u64,
    pub(super) heard: &'a Heard,
    pub(super) replay: Option<Replayed>,
    pub(super) workers: Vec<WorkerStatus>,
    pub(super) said: Said,
    /// The engine's metrics after listening.
    pub(super) later: Option<Metrics>,
    pub(super) model: Option<String>,
    pub(super) block_size: Option<u32>,
    /// Those of `--seed`.
    pub(super) seeds: &'a [String],
    /// Blocks that match of a prompt taken from the events, and how many it has.
    pub(super) again: Option<(u32, u32)>,
    pub(super) twice: Option<Twice>,
}

const PUBLISH: &str = "vLLM publishes with --kv-events-config '{\"enable_kv_cache_events\": true, \
     \"publisher\": \"zmq\", \"endpoint\": \"tcp://*:5557\", \"replay_endpoint\": \"tcp://*:5558\"}'";

/// All findings, in the order in which things depend on each other.
pub(super) fn diagnose(facts: &Facts<'_>) -> Vec<Finding> {
    let mut out = Findings::default();
    reachable(facts, &mut out);
    engine(facts, &mut out);
    events(facts, &mut out);
    if facts.heard.batches > 0 {
        decoding(facts, &mut out);
        sequence(facts, &mut out);
        announced::contract(facts, &mut out);
        announced::blocks(facts, &mut out);
        announced::shape(facts, &mut out);
    }
    ranks(facts, &mut out);
    replay(facts, &mut out);
    audit(facts, &mut out);
    scores(facts, &mut out);
    out.0
}

#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn say(
        &mut self,
        check: &'static str,
        level: Level,
        text: String,
        advice: &'static str,
    ) {
        self.0.push(Finding { check, level, text, advice });
    }

    pub(super) fn fine(&mut self, check: &'static str, text: String) {
        self.say(check, Level::Fine, text, "");
    }
}

fn reachable(facts: &Facts<'_>, out: &mut Findings) {
    let (link, at) = (&facts.link, &facts.endpoint);
    let malformed = link.malformed;
    if link.answered {
        out.fine("reachable", format!("a publisher answers at {at}"));
    } else if link.foreign {
        out.say(
            "reachable",
            Level::Problem,
            format!("something listens at {at}, but it is no ZMQ publisher"),
            "is it the port of KV events? 5557 is also the default of NIXL's side channel, and the \
             HTTP API has a port of its own",
        );
    } else {
        let text = format!("nobody answers at {at}");
        out.say("reachable", Level::Problem, text, PUBLISH);
        out.say(
            "reachable",
            Level::Note,
            "an endpoint without '*' makes the engine dial instead of listen".to_owned(),
            "then give --bind here and let it dial this address",
        );
    }
    if malformed > 0 {
        let text = format!("{malformed} messages are not [topic, sequence number, payload]");
        out.say("frames", Level::Problem, text, "another publisher than vLLM's or SGLang's?");
    }
    if link.overruns > 0 {
        let text = format!("{} connections were cut for messages beyond the limit", link.overruns);
        out.say("frames", Level::Problem, text, "raise max_message_bytes if they are genuine");
    }
}

fn engine(facts: &Facts<'_>, out: &mut Findings) {
    match &facts.said.version {
        Some(Ok(version)) => out.fine("engine", format!("the engine says it is {version}")),
        Some(Err(error)) => {
            let advice = "is --engine the base of its HTTP API, such as http://host:8000?";
            out.say("engine", Level::Unknown, error.clone(), advice);
        }
        None => {}
    }
    if let (Some(Ok(models)), Some(model)) = (&facts.said.models, &facts.model) {
        if models.contains(model) {
            out.fine("model", format!("it serves {model}"));
        } else {
            let text = format!("it serves {}, not {model}", models.join(", "));
            let advice = "requests for the registered model would find nobody: use the served name";
            out.say("model", Level::Problem, text, advice);
        }
    }
    let Some(Ok(metrics)) = &facts.said.metrics else {
        if let Some(Err(error)) = &facts.said.metrics {
            out.say("metrics", Level::Unknown, error.clone(), "");
        }
        return;
    };
    match metrics.prefix_caching {
        Some(false) => out.say(
            "prefix_caching",
            Level::Problem,
            "the engine runs without prefix caching: it keeps nothing and announces nothing"
                .to_owned(),
            "start it with --enable-prefix-caching",
        ),
        Some(true) => out.fine("prefix_caching", "prefix caching is on".to_owned()),
        None => {}
    }
    if metrics.awake == Some(false) {
        out.say(
            "sleep",
            Level::Note,
            "the engine sleeps: its cache is gone, and it says so only with its next step"
                .to_owned(),
            "give kvscout its metrics (`metrics` of the source), which notices that",
        );
    }
}

fn events(facts: &Facts<'_>, out: &mut Findings) {
    let served = |metrics: &Metrics| metrics.prompt_tokens;
    let before = facts.said.metrics.as_ref().and_then(|m| m.as_ref().ok()).and_then(served);
    let after = facts.later.as_ref().and_then(served);
    let traffic = before.zip(after).map(|(before, after)| after - before);
    if facts.live > 0 {
        let rate = facts.live as f64 / facts.seconds.max(0.001);
        out.fine(
            "events",
            format!("{} batches in {:.0} s ({rate:.1}/s)", facts.live, facts.seconds),
        );
        return;
    }
    let text = format!("no event came in {:.0} s", facts.seconds);
    match traffic {
        Some(tokens) if tokens > 0.0 => {
            let text = format!("{text} while the engine served {tokens:.0} prompt tokens");
            out.say("events", Level::Problem, text, PUBLISH);
        }
        Some(_) => {
            let text = format!("{text}, and the engine was idle");
            out.say("events", Level::Unknown, text, "send it a prompt, or let --probe do that");
        }
        None => {
            let advice = "is it idle? give --engine to see whether it works meanwhile, or --probe";
            out.say("events", Level::Unknown, text, advice);
        }
    }
}

fn decoding(facts: &Facts<'_>, out: &mut Findings) {
    let heard = facts.heard;
    let error = heard.first_error.as_deref().unwrap_or_default();
    if heard.undecodable > 0 {
        let text =
            format!("{} of {} batches cannot be read: {error}", heard.undecodable, heard.batches);
        let advice = "their effect is missing; another serializer, or a newer engine than kvscout?";
        out.say("decoding", Level::Problem, text, advice);
    } else if heard.rejected > 0 {
        let text = format!("{} events cannot be read: {error}", heard.rejected);
        out.say("decoding", Level::Problem, text, "their effect is missing");
    } else if heard.stored + heard.removed + heard.cleared == 0 {
        let text = format!("{} batches and not one event in them", heard.batches);
        let advice = "vLLM before 0.10.2 with sha256 cannot encode its hashes; and prompts shorter \
                      than a block store nothing";
        out.say("decoding", Level::Unknown, text, advice);
    } else {
        let (s, r, c) = (heard.stored, heard.removed, heard.cleared);
        let text = format!(
            "{s} stored, {r} removed, {c} cleared; written as by vLLM {}",
            heard.versions()
        );
        out.fine("decoding", text);
    }
}

fn sequence(facts: &Facts<'_>, out: &mut Findings) {
    let sum = |f: fn(&WorkerStatus) -> u64| facts.workers.iter().map(f).sum::<u64>();
    let (gaps, missing) = (sum(|w| w.counters.gaps), sum(|w| w.counters.missing));
    let restarts = sum(|w| w.counters.restarts);
    if gaps > 0 {
        let text = format!("{gaps} gaps: {missing} batches were published and did not arrive");
        let advice = "a slow reader or network; the publisher's hwm may be too small. With a \
                      replay endpoint kvscout asks for them again";
        out.say("sequence", Level::Problem, text, advice);
    } else if missing > 0 {
        // Nothing came before: a late start, not a gap.
        let text = format!(
            "the first batch that came was number {missing}: what was stored before is unknown"
        );
        let advice = "prompts that go on from there score 0 until the engine clears its cache or starts anew: \
                      give the replay endpoint, or start kvscout first";
        out.say("sequence", Level::Note, text, advice);
    } else {
        out.fine("sequence", "no number is missing".to_owned());
    }
    if restarts > 0 {
        out.say(
            "sequence",
            Level::Note,
            format!("the publisher started anew {restarts} times"),
            "",
        );
    }
    if facts.workers.iter().any(|w| w.warnings().any(|it| it == Warning::EventsUnexplained)) {
        let (unknown, changes) = (sum(|w| w.unexplained.unknown), sum(|w| w.unexplained.changes));
        out.say(
            "losses",
            Level::Problem,
            format!("{unknown} events about blocks that were never announced, in {changes} changes"),
            "no number is missing, so the engine loses events before it numbers them (a full queue?); \
             only a reset of its prefix cache makes up for that",
        );
    }
}

fn replay(facts: &Facts<'_>, out: &mut Findings) {
    let Some(replay) = &facts.replay else {
        out.say(
            "replay",
            Level::Note,
            "no replay endpoint was given".to_owned(),
            "without one a lost batch or a late start stays a gap until the engine restarts: set \
             \"replay_endpoint\" in --kv-events-config",
        );
        return;
    };
    if let Some(error) = &replay.error {
        let advice = "is \"replay_endpoint\" set? the port of rank r is the base port + r";
        return out.say("replay", Level::Problem, error.clone(), advice);
    }
    let range = match (replay.first, replay.last) {
        (Some(first), Some(last)) => format!("{} batches, {first} to {last}", replay.batches),
        _ => "nothing is buffered yet".to_owned(),
    };
    if replay.holes > 0 || !replay.ended {
        let end = if replay.ended { "" } else { ", and the end was never marked" };
        let text = format!("{range}, {} missing among them{end}", replay.holes);
        let advice = "vLLM before 0.33 drops from long replays; kvscout asks again from the hole";
        out.say("replay", Level::Note, text, advice);
    } else if replay.first.is_some_and(|first| first > 0) {
        let text = format!("{range}: its buffer no longer reaches the first batch");
        let advice = "blocks stored before are unknown and the worker stays degraded(missed_start) \
                      until it clears or restarts: start kvscout first, keep its state (--state), \
                      or raise \"buffer_steps\"";
        out.say("replay", Level::Note, text, advice);
    } else {
        out.fine("replay", format!("{range}, complete"));
    }
}

/// Which data-parallel ranks are there.
fn ranks(facts: &Facts<'_>, out: &mut Findings) {
    for status in facts.ranks.iter().filter(|status| !Link::from(*status).answered) {
        let text = format!("rank {}: nobody answers at {}", status.source, status.endpoint);
        let advice = "what this rank holds scores 0: is the number of ranks right? Each publishes at the base port + \
                      its number";
        out.say("ranks", Level::Problem, text, advice);
    }
    let metrics = facts.said.metrics.as_ref().and_then(|metrics| metrics.as_ref().ok());
    let (engine, looked_at) = (metrics.map_or(0, |it| it.ranks), facts.ranks.len() as u32 + 1);
    if engine > looked_at {
        let text =
            format!("the engine has {engine} data-parallel ranks, and {looked_at} is looked at");
        let advice = "each has a cache and a port of its own, and scores 0 until it is registered (ranks = N): give \
                      --ranks to see whether all are there";
        out.say("ranks", Level::Note, text, advice);
    } else if looked_at > 1 && facts.ranks.iter().all(|status| Link::from(status).answered) {
        out.fine("ranks", format!("ranks 0 to {} answer", looked_at - 1));
    }
}

/// Whether what is held could be compared with what the engine has kept.
fn audit(facts: &Facts<'_>, out: &mut Findings) {
    let why = match &facts.replay {
        None => "there is no replay endpoint",
        Some(replay) if replay.error.is_some() => "the replay endpoint gives nothing",
        Some(replay) => {
            let text = match replay.first {
                Some(0) => "audits can be had: the engine's buffer reaches batch 0",
                Some(_) => {
                    "audits can be had of what happens from now on: the engine's buffer does not \
                     reach batch 0 any more"
                }
                None => "audits can be had once the engine has published something",
            };
            return out.fine("audit", text.to_owned());
        }
    };
    let advice =
        "losses that leave no gap then show only as unknown removals and parents, in /workers";
    out.say("audit", Level::Note, format!("audit: unavailable: {why}"), advice);
}

fn scores(facts: &Facts<'_>, out: &mut Findings) {
    match facts.again {
        Some((matched, blocks)) if matched == blocks => {
            let text = format!("a prompt from its events scores {matched} of {blocks} blocks");
            out.fine("scores", text);
        }
        Some((matched, blocks)) => {
            let text = format!("a prompt from its events scores {matched} of {blocks} blocks only");
            let advice = "see the lines above; if none explains it, this is a bug of kvscout";
            out.say("scores", Level::Problem, text, advice);
        }
        None => out.say(
            "scores",
            Level::Unknown,
            "no whole plain prompt is among the events".to_owned(),
            "listen longer, give the replay endpoint, or let --probe send one",
        ),
    }
    let Some(twice) = &facts.twice else { return };
    let n = twice.tokens;
    match (&twice.error, twice.expected, twice.cached) {
        (Some(error), ..) => {
            let advice = "the engine refused the probe";
            out.say("probe", Level::Unknown, error.clone(), advice);
        }
        (None, Some(expected), Some(cached)) if u64::from(expected) == cached => {
            let text = format!("{n} tokens sent twice: {cached} cached, as predicted");
            out.fine("probe", text);
        }
        (None, Some(expected), Some(cached)) => {
            let text = format!("{n} tokens sent twice: {cached} cached, {expected} predicted");
            let advice = "the events do not tell what this engine holds: another engine behind \
                          the same HTTP address, lost events, or a kind of cache without a rule";
            out.say("probe", Level::Problem, text, advice);
        }
        (None, Some(expected), None) => {
            let text =
                format!("{n} tokens sent twice: {expected} predicted, the engine does not say");
            out.say("probe", Level::Unknown, text, "start it with --enable-prompt-tokens-details");
        }
        (None, None, _) => out.say(
            "probe",
            Level::Problem,
            format!("{n} tokens were sent, and no event came for them"),
            "the events are another engine's or another data-parallel rank's, or prompts never become full blocks",
        ),
    }
}
