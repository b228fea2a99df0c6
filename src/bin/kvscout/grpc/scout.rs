//! `kvscout.v1.Scout`: kvscout's own question, with everything that `/v1/score` takes and says.

use std::sync::Arc;
use std::time::Instant;

use kvscout::block::{BlockSize, Name, Tier};
use kvscout::score::named_tiers;
use kvscout::scout::Registration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::App;
use super::generated::kvscout_v1::score_request::Prompt;
use super::generated::kvscout_v1::scout_server::Scout;
use super::generated::kvscout_v1::{ScoreRequest, ScoreResponse, Tiers, WorkerScore};
use super::guard::{check, leave};
use super::refusal::Failure;
use crate::auth::Leave;
use crate::service::{Adapter, Candidate, Medium, Question, Row, Service, Wanted};

/// Answers of a stream that may wait for whoever asked.
const WAITING: usize = 4;

/// What one question of a stream is counted as, beside the stream itself.
const STREAMED: &str = "kvscout.v1.Scout/ScoreMany/question";

/// The service.
#[derive(Debug)]
pub(super) struct Questions(pub(super) Arc<App>);

#[tonic::async_trait]
impl Scout for Questions {
    async fn score(
        &self,
        request: Request<ScoreRequest>,
    ) -> Result<Response<ScoreResponse>, Status> {
        let start = Instant::now();
        let outcome = match leave(&request) {
            Ok(leave) => score(&self.0, leave, request.into_inner()).await,
            Err(failure) => Err(failure),
        };
        self.0.answer("kvscout.v1.Scout/Score", start, outcome)
    }

    type ScoreManyStream = ReceiverStream<Result<ScoreResponse, Status>>;

    async fn score_many(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreManyStream>, Status> {
        let (answers, waiting) = mpsc::channel(WAITING);
        let leave = leave(&request)?;
        tokio::spawn(answer_all(Arc::clone(&self.0), leave, request.into_inner(), answers));
        self.0.answer(
            "kvscout.v1.Scout/ScoreMany",
            Instant::now(),
            Ok(ReceiverStream::new(waiting)),
        )
    }
}

/// Answers one question after the other until there are no more, nobody listens, or the daemon ends.
async fn answer_all(
    app: Arc<App>,
    leave: Leave,
    mut questions: Streaming<ScoreRequest>,
    answers: mpsc::Sender<Result<ScoreResponse, Status>>,
) {
    loop {
        let next = tokio::select! {
            () = app.ending.begins() => return,
            () = answers.closed() => return,
            next = questions.message() => next,
        };
        let answer = match next {
            Ok(None) => return,
            Ok(Some(question)) => {
                let (id, start) = (question.id, Instant::now());
                let outcome = score(&app, leave.clone(), question).await;
                app.count(STREAMED, start, outcome.as_ref().err().map_or(Code::Ok, Failure::code));
                // One that is wrong fails itself only.
                Ok(outcome.unwrap_or_else(|failure| ScoreResponse {
                    id,
                    error: Some(failure.into_error()),
                    ..ScoreResponse::default()
                }))
            }
            Err(status) => Err(status),
        };
        let ends = answer.is_err();
        if answers.send(answer).await.is_err() || ends {
            return;
        }
    }
}

async fn score(app: &App, leave: Leave, request: ScoreRequest) -> Result<ScoreResponse, Failure> {
    let size = match &request.prompt {
        Some(Prompt::TokenIds(tokens)) => tokens.ids.len(),
        Some(Prompt::BlockHashes(blocks)) => blocks.hashes.len(),
        None => 0,
    };
    let tenant = match &*request.tenant {
        "" => Registration::DEFAULT_TENANT,
        tenant => tenant,
    };
    check(&leave, tenant)?;
    app.run(size, move |service| answer(service, request)).await
}

fn answer(service: &Service, mut request: ScoreRequest) -> Result<ScoreResponse, Failure> {
    let id = request.id;
    let prompt = request.prompt.take();
    let read = |rows: &[Row<'_>], unknown: &[String]| ScoreResponse {
        id,
        workers: rows.iter().map(worker_score).collect(),
        unknown_candidates: unknown.to_vec(),
        error: None,
    };
    Ok(match prompt {
        None => return Err(Failure::field("prompt", "give 'token_ids' or 'block_hashes'")),
        Some(Prompt::TokenIds(tokens)) => service.answer(&question(request, tokens.ids)?, read)?,
        Some(Prompt::BlockHashes(blocks)) => {
            let given = [
                ("lora", request.lora.is_some()),
                ("cache_salt", !request.cache_salt.is_empty()),
                ("mm", !request.mm.is_empty()),
            ];
            if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(Failure::field(
                    name,
                    "is in the hashes; give it with 'token_ids' only",
                ));
            }
            let size = BlockSize::new(blocks.block_size).ok_or_else(|| {
                Failure::field("block_hashes.block_size", "expected a number of tokens from 1")
            })?;
            let names: Vec<Name> = blocks.hashes.into_iter().map(Name).collect();
            service.answer_named(&question(request, Vec::new())?, &names, size, read)?
        }
    })
}

fn question(request: ScoreRequest, token_ids: Vec<u32>) -> Result<Question, Failure> {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let required = |place: String, text: &str| match text.is_empty() {
        true => Err(Failure::field(place, "expected a text that is not empty")),
        false => Ok(()),
    };
    let lora = request.lora.map(|lora| {
        required("lora.name".to_owned(), &lora.name)?;
        Ok::<_, Failure>(Adapter { name: lora.name, id: lora.id, path: lora.path })
    });
    let mut media = Vec::with_capacity(request.mm.len());
    for (n, item) in request.mm.into_iter().enumerate() {
        required(format!("mm[{n}].hash"), &item.hash)?;
        media.push(Medium { hash: item.hash, offset: item.offset, length: item.length });
    }
    let mut candidates = Vec::with_capacity(request.candidates.len());
    for (n, candidate) in request.candidates.into_iter().enumerate() {
        required(format!("candidates[{n}].worker"), &candidate.worker)?;
        candidates.push(Candidate { pod: candidate.worker, rank: candidate.rank });
    }
    let mut labels = Wanted::new();
    for (n, label) in request.labels.into_iter().enumerate() {
        required(format!("labels[{n}].name"), &label.name)?;
        if label.values.is_empty() {
            return Err(Failure::field(format!("labels[{n}].values"), "expected one at least"));
        }
        labels.entry(label.name).or_default().extend(label.values);
    }
    Ok(Question {
        tenant: text(request.tenant),
        model: text(request.model),
        token_ids,
        lora: lora.transpose()?,
        cache_salt: text(request.cache_salt),
        media,
        candidates: Some(candidates).filter(|candidates| !candidates.is_empty()),
        labels: Some(labels).filter(|labels| !labels.is_empty()),
    })
}

fn worker_score(row: &Row<'_>) -> WorkerScore {
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
    let label = |label: Option<&'static str>| label.unwrap_or_default().to_owned();
    WorkerScore {
        worker: ranked.pod.to_owned(),
        rank: ranked.rank,
        matched_blocks: score.matched_blocks,
        predicted_blocks: *predicted_blocks,
        expected_cached_tokens: score.expected_cached_tokens.ok(),
        expected_unknown: label(score.expected_cached_tokens.err().map(|why| why.as_str())),
        tiers: Some(tiers),
        score: score.weighted,
        ratio: score.ratio,
        miss: label(score.miss.map(|why| why.as_str())),
        as_of: ranked.as_of,
        trust: ranked.trust.as_str().to_owned(),
        reason: label(ranked.trust.reason().map(|reason| reason.as_str())),
        quarantined: *quarantined,
    }
}
