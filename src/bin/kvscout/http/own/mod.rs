//! kvscout's own questions and answers.

mod explain;
mod picked;
mod prompt;
mod score;
mod workers;

pub(super) use self::explain::explain;
pub(super) use self::picked::{picked, receipt};
pub(super) use self::prompt::has_text;
pub(super) use self::score::{batch, score};
pub(super) use self::workers::{ready, status, workers};

use super::App;
use super::body::Fields;
use super::refusal::HttpError;
use crate::service::{Adapter, Candidate, Labels, Medium, Question, Wanted};

/// What labels may take: they are in every list of workers.
const MOST_LABELS: usize = 16;
const LONGEST_LABEL: usize = 256;

/// The fields of a question, besides those of its prompt.
const QUESTION: [&str; 7] = ["model", "tenant", "lora", "cache_salt", "mm", "candidates", "labels"];

/// A question; `also` are fields that the request has besides.
fn question(app: &App, fields: &Fields<'_>, also: &[&str]) -> Result<Question, HttpError> {
    fields.only(&[&prompt::FIELDS[..], &QUESTION, also].concat())?;
    let mut question = Question {
        token_ids: Vec::new(),
        model: fields.text("model")?,
        tenant: Some(fields.tenant("tenant")?),
        cache_salt: fields.text("cache_salt")?,
        lora: adapter(fields)?,
        media: media(fields)?,
        candidates: candidates(fields)?,
        labels: wanted(fields)?,
    };
    // Last: of what is wrong otherwise, nothing is tokenized.
    question.token_ids = prompt::tokens(app, fields, &question)?;
    Ok(question)
}

fn adapter(fields: &Fields<'_>) -> Result<Option<Adapter>, HttpError> {
    Ok(match fields.object_or_text("lora")? {
        None => None,
        Some(Err(name)) if name.is_empty() => None,
        Some(Err(name)) => Some(Adapter { name, id: None, path: None }),
        Some(Ok(lora)) => {
            lora.only(&["name", "id", "path"])?;
            let (name, id) = (lora.required_text("name")?, lora.i64("id")?);
            Some(Adapter { name, id, path: lora.text("path")? })
        }
    })
}

fn media(fields: &Fields<'_>) -> Result<Vec<Medium>, HttpError> {
    let items = fields.objects("mm")?.unwrap_or_default().into_iter().enumerate();
    let read = |(n, item): (usize, Result<Fields<'_>, String>)| {
        let wrong =
            |_| HttpError::element("mm", n, "expected {hash, offset, length}, found a text");
        let item = item.map_err(wrong)?;
        item.only(&["hash", "offset", "length"])?;
        Ok(Medium {
            hash: item.required_text("hash")?,
            offset: item.required_u32("offset")?,
            length: item.required_u32("length")?,
        })
    };
    items.map(read).collect()
}

fn candidates(fields: &Fields<'_>) -> Result<Option<Vec<Candidate>>, HttpError> {
    let Some(given) = fields.objects("candidates")? else { return Ok(None) };
    let read = |candidate: Result<Fields<'_>, String>| match candidate {
        Err(pod) => Ok(Candidate { pod, rank: None }),
        Ok(candidate) => {
            candidate.only(&["worker", "rank"])?;
            let (pod, rank) = (candidate.required_text("worker")?, candidate.u32("rank")?);
            Ok(Candidate { pod, rank })
        }
    };
    given.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}

/// Labels that workers must have: an object of texts or lists of texts, or texts such as
/// `role=prefill`, as the parameters of a binary question.
fn wanted(fields: &Fields<'_>) -> Result<Option<Wanted>, HttpError> {
    let Some(pairs) = fields.choices("labels")? else { return Ok(None) };
    let mut wanted = Wanted::new();
    for (name, value) in pairs {
        wanted.entry(name).or_default().push(value);
    }
    Ok(Some(wanted))
}

/// Labels of a registration: names and values are texts.
pub(super) fn labels(fields: &Fields<'_>) -> Result<Option<Labels>, HttpError> {
    let Some(given) = fields.texts("labels")? else { return Ok(None) };
    let wrong = |text: &String| text.is_empty() || text.len() > LONGEST_LABEL;
    if given.len() > MOST_LABELS || given.iter().any(|(name, value)| wrong(name) || wrong(value)) {
        return Err(HttpError::field(
            "labels",
            format!(
                "expected up to {MOST_LABELS} labels, each name and value of 1 to {LONGEST_LABEL} bytes"
            ),
        ));
    }
    Ok(Some(given))
}
