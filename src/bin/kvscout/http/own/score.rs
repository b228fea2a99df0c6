//! `/v1/score`: ranked workers with every field of their scores.

use kvscout::block::Tier;
use kvscout::score::named_tiers;
use serde::Serialize;

use super::super::body::Fields;
use super::super::refusal::HttpError;
use super::super::{Answer, App};
use super::question;
use crate::service::Row;

/// How many questions may be asked together: within the limit of a body, so that this bounds what is
/// kept beside it.
const MOST_TOGETHER: usize = 4096;

/// Ranks workers for a prompt; or for each of several, under `requests`.
pub(in super::super) fn score(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    if !fields.has("requests") {
        return one(app, &fields, |scores| Answer::ok(&scores));
    }
    fields.only(&["requests"])?;
    let requests = fields.objects("requests")?.unwrap_or_default();
    if requests.len() > MOST_TOGETHER {
        let wrong = format!("expected up to {MOST_TOGETHER} questions, found {}", requests.len());
        return Err(HttpError::field("requests", wrong));
    }
    let mut answers = Vec::with_capacity(requests.len());
    for (n, request) in requests.into_iter().enumerate() {
        let text = |_| HttpError::element("requests", n, "expected an object, found a text");
        let answer = request
            .map_err(text)
            .and_then(|fields| one(app, &fields, |scores| serde_json::to_value(scores)));
        // One that is wrong fails itself only, in its place.
        answers.push(match answer {
            Ok(scores) => scores.unwrap_or_default(),
            Err(error) => serde_json::to_value(error).unwrap_or_default(),
        });
    }
    Ok(Answer::ok(&serde_json::json!({ "answers": answers })))
}

fn one<T>(
    app: &App,
    fields: &Fields<'_>,
    read: impl FnOnce(Scores<'_>) -> T,
) -> Result<T, HttpError> {
    let question = question(fields, &[])?;
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
