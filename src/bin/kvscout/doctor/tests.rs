//! Each cause of a wrong or missing score has its line.

use kvscout::ingest::sequencer::SequencerCounters;
use kvscout::scout::{Options, Registration, Scout, Unexplained};

use super::diagnosis::*;
use super::engine::{Metrics, Said};
use super::heard::Heard;

/// An engine that is as it should be, but for its replay socket.
fn healthy(heard: &Heard) -> Facts<'_> {
    let scout = Scout::new(Options::default()).unwrap();
    scout.register(Registration::new("engine", "m")).unwrap();
    Facts {
        endpoint: "tcp://host:5557".to_owned(),
        seconds: 10.0,
        link: Link { answered: true, ..Link::default() },
        ranks: Vec::new(),
        live: heard.batches,
        heard,
        replay: Some(Replayed {
            batches: 3,
            first: Some(0),
            last: Some(2),
            ended: true,
            ..Replayed::default()
        }),
        workers: scout.workers(),
        said: Said::default(),
        later: None,
        model: Some("m".to_owned()),
        block_size: None,
        seeds: &[],
        again: Some((2, 2)),
        twice: None,
    }
}

fn heard() -> Heard {
    let mut heard = Heard { batches: 3, stored: 2, removed: 1, plain: 2, ..Heard::default() };
    heard.block_sizes.insert(16, 2);
    heard.tiers.insert("gpu", 2);
    heard
}

fn problems(facts: &Facts<'_>) -> Vec<&'static str> {
    let findings = diagnose(facts);
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem);
    problems.map(|finding| finding.check).collect()
}

fn of<'f>(findings: &'f [Finding], check: &str) -> &'f Finding {
    findings.iter().find(|finding| finding.check == check).expect(check)
}

#[test]
fn an_engine_that_is_well_has_no_problem() {
    let heard = heard();
    assert_eq!(problems(&healthy(&heard)), [""; 0]);
}

#[test]
fn each_cause_of_a_silent_zero_is_a_problem_that_says_what_to_do() {
    let (heard, nothing) = (heard(), Heard::default());
    let metrics = |tokens, caching| Metrics {
        prompt_tokens: Some(tokens),
        prefix_caching: Some(caching),
        ..Metrics::default()
    };
    let silent = |said: Metrics, later: Metrics| Facts {
        said: Said { metrics: Some(Ok(said)), ..Said::default() },
        later: Some(later),
        ..healthy(&nothing)
    };
    let nameless = Heard { nameless: 2, ..self::heard() };
    let mut unknown_medium = self::heard();
    unknown_medium.tiers.insert("unknown", 4);
    let broken =
        Heard { undecodable: 1, first_error: Some("not a batch".to_owned()), ..self::heard() };
    let mut lossy = healthy(&heard);
    lossy.workers[0].counters = {
        let mut c = SequencerCounters::default();
        (c.gaps, c.missing) = (1, 7);
        c
    };
    let mut unexplained = healthy(&heard);
    unexplained.workers[0].unexplained = {
        let mut events = Unexplained::default();
        (events.unknown, events.changes) = (3, 40);
        events
    };
    let probe = |expected, cached| Some(Twice { error: None, tokens: 65, expected, cached });
    let link = |foreign| Link { foreign, ..Link::default() };
    let models = Some(Ok(vec!["other".to_owned()]));
    let cases = [
        ("reachable", Facts { link: link(false), ..healthy(&heard) }),
        ("reachable", Facts { link: link(true), ..healthy(&heard) }),
        (
            "frames",
            Facts {
                link: Link { answered: true, overruns: 2, ..Link::default() },
                ..healthy(&heard)
            },
        ),
        ("model", Facts { said: Said { models, ..Said::default() }, ..healthy(&heard) }),
        ("prefix_caching", silent(metrics(5.0, false), metrics(5.0, false))),
        ("events", silent(metrics(5.0, true), metrics(900.0, true))),
        ("decoding", healthy(&broken)),
        ("sequence", lossy),
        ("losses", unexplained),
        ("block_size", Facts { block_size: Some(32), ..healthy(&heard) }),
        ("tokens", healthy(&nameless)),
        ("tiers", healthy(&unknown_medium)),
        ("scores", Facts { again: Some((0, 2)), ..healthy(&heard) }),
        ("probe", Facts { twice: probe(Some(64), Some(0)), ..healthy(&heard) }),
        ("probe", Facts { twice: probe(None, Some(64)), ..healthy(&heard) }),
    ];
    for (check, facts) in &cases {
        assert_eq!(problems(facts), [*check]);
        assert!(!of(&diagnose(facts), check).advice.is_empty(), "{check}");
    }
}

#[test]
fn what_could_not_be_seen_is_said_to_be_unknown() {
    let nothing = Heard::default();
    let facts = Facts { again: None, replay: None, ..healthy(&nothing) };
    let findings = diagnose(&facts);
    assert_eq!(problems(&facts), [""; 0]);
    assert_eq!(of(&findings, "events").level, Level::Unknown);
    assert_eq!(of(&findings, "scores").level, Level::Unknown);
    assert_eq!(of(&findings, "replay").level, Level::Note);
}

#[test]
fn a_replay_with_a_lost_beginning_or_holes_is_told_from_a_whole_one() {
    let heard = heard();
    let level = |replayed: Replayed| {
        let facts = Facts { replay: Some(replayed), ..healthy(&heard) };
        of(&diagnose(&facts), "replay").level
    };
    let whole =
        Replayed { batches: 9, first: Some(0), last: Some(8), ended: true, ..Replayed::default() };
    assert_eq!(level(whole.clone()), Level::Fine);
    assert_eq!(level(Replayed { holes: 2, ..whole.clone() }), Level::Note);
    assert_eq!(level(Replayed { first: Some(4), ..whole.clone() }), Level::Note);
    assert_eq!(level(Replayed { ended: false, ..whole.clone() }), Level::Note);
    assert_eq!(level(Replayed { error: Some("no answer".to_owned()), ..whole }), Level::Problem);
}

#[test]
fn whether_audits_can_be_had_is_said() {
    let heard = heard();
    let said = |replay: Option<Replayed>| {
        let facts = Facts { replay, ..healthy(&heard) };
        let findings = diagnose(&facts);
        let finding = of(&findings, "audit");
        (finding.level, finding.text.contains("unavailable"))
    };
    let whole = healthy(&heard).replay.unwrap();
    let error = Some("no answer".to_owned());
    assert_eq!(said(Some(whole.clone())), (Level::Fine, false));
    assert_eq!(
        said(Some(Replayed { first: None, last: None, ..whole.clone() })),
        (Level::Fine, false)
    );
    assert_eq!(said(Some(Replayed { first: Some(1), ..whole.clone() })), (Level::Fine, false));
    assert_eq!(said(Some(Replayed { error, ..whole })), (Level::Note, true));
    assert_eq!(said(None), (Level::Note, true));
}

#[test]
fn a_probe_that_comes_back_as_predicted_is_fine() {
    let heard = heard();
    let twice = Twice { error: None, tokens: 65, expected: Some(64), cached: Some(64) };
    let facts = Facts { twice: Some(twice), ..healthy(&heard) };
    assert_eq!(of(&diagnose(&facts), "probe").level, Level::Fine);
}
