//! `/v1/score` and `/v1/score/batch`: ranked workers with every field of their scores.

use kvscout::block::Tier;
use kvscout::score::named_tiers;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::super::body::Fields;
use super::super::refusal::HttpError;
use super::super::{Answer, App};
use super::question;
use crate::service::Row;

/// How many questions may be asked together: within the limit of a body, so that this bounds what is
/// kept beside it.
const MOST_TOGETHER: usize = 4096;

/// After so many workers' lines, some 60 MB, the questions that are left have an error.
const MOST_LINES: usize = 1 << 18;

/// Ranks workers for a prompt.
pub(in super::super) fn score(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    one(app, &fields, |scores| Answer::ok(&scores))
}

/// Ranks workers for each of several prompts.
pub(in super::super) fn batch(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    fields.only(&["requests"])?;
    let Some(requests) = fields.objects("requests")? else {
        return Err(HttpError::field("requests", "missing; expected a list of questions"));
    };
    if requests.len() > MOST_TOGETHER {
        let wrong = format!("expected up to {MOST_TOGETHER} questions, found {}", requests.len());
        return Err(HttpError::field("requests", wrong));
    }
    let (mut answers, mut lines) = (Vec::with_capacity(requests.len()), 0);
    for (n, request) in requests.into_iter().enumerate() {
        let text = |_| HttpError::element("requests", n, "expected an object, found a text");
        let answer = request.map_err(text).and_then(|fields| {
            if lines >= MOST_LINES {
                let wrong =
                    format!("not answered: {MOST_LINES} lines are as many as one answer has");
                return Err(HttpError::element("requests", n, &wrong));
            }
            one(app, &fields, |scores| {
                lines += scores.workers.len();
                to_raw_value(&scores)
            })
        });
        // One that is wrong fails itself only, in its place.
        let answer = answer.unwrap_or_else(|error| to_raw_value(&error));
        answers.push(answer.map_err(|_| HttpError::internal("an answer could not be written"))?);
    }
    Ok(Answer::ok(&Answers { answers }))
}

#[derive(Serialize)]
struct Answers {
    answers: Vec<Box<RawValue>>,
}

fn one<T>(
    app: &App,
    fields: &Fields<'_>,
    read: impl FnOnce(Scores<'_>) -> T,
) -> Result<T, HttpError> {
    let question = question(app, fields, &[])?;
    let answer = app.service.answer(&question, |rows, unknown_candidates| {
        read(Scores { workers: rows.iter().map(Scored::new).collect(), unknown_candidates })
    });
    answer.map_err(|refusal| HttpError::from(refusal).within(fields))
}

#[derive(Serialize)]
struct Scores<'a> {
    workers: Vec<Scored<'a>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    unknown_candidates: &'a [String],
}

#[derive(Serialize)]
struct Scored<'a> {
    worker: &'a str,
    rank: u32,
    matched_blocks: u32,
    #[serde(skip_serializing_if = "is_zero")]
    predicted_blocks: u32,
    expected_cached_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_unknown: Option<&'static str>,
    tiers: Tiers,
    score: f64,
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    miss: Option<&'static str>,
    as_of: Option<u64>,
    trust: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    quarantined: bool,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[derive(Default, Serialize)]
struct Tiers {
    gpu: u32,
    cpu: u32,
    disk: u32,
    remote: u32,
}

impl<'a> Scored<'a> {
    fn new(row: &'a Row<'_>) -> Scored<'a> {
        let Row { ranked, predicted_blocks, quarantined, .. } = row;
        let score = &ranked.score;
        let mut tiers = Tiers::default();
        for (tier, tokens) in named_tiers(score) {
            match tier {
                Tier::Gpu => tiers.gpu = tokens,
                Tier::Cpu => tiers.cpu = tokens,
                Tier::Disk => tiers.disk = tokens,
                Tier::Remote => tiers.remote = tokens,
                Tier::Unknown => {}
            }
        }
        Scored {
            worker: ranked.pod,
            rank: ranked.rank,
            matched_blocks: score.matched_blocks,
            predicted_blocks: *predicted_blocks,
            expected_cached_tokens: score.expected_cached_tokens.ok(),
            expected_unknown: score.expected_cached_tokens.err().map(|why| why.as_str()),
            tiers,
            score: score.weighted,
            ratio: score.ratio,
            miss: score.miss.map(|why| why.as_str()),
            as_of: ranked.as_of,
            trust: ranked.trust.as_str(),
            reason: ranked.trust.reason().map(|reason| reason.as_str()),
            quarantined: *quarantined,
        }
    }
}
