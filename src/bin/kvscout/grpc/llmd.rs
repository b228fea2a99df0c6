//! `indexer.v1.IndexerService`, llm-d's: scores of pods for a text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kvscout::scout::Registration;
use tonic::{Code, Request, Response, Status};

use super::App;
use super::generated::indexer_v1::indexer_service_server::IndexerService;
use super::generated::indexer_v1::{GetPodScoresRequest, GetPodScoresResponse, PodScore};
use super::guard::{check, leave};
use super::refusal::Failure;
use crate::service::{Candidate, Question, Row, Service};

/// The service.
#[derive(Debug)]
pub(super) struct Texts(pub(super) Arc<App>);

#[tonic::async_trait]
impl IndexerService for Texts {
    async fn get_pod_scores(
        &self,
        request: Request<GetPodScoresRequest>,
    ) -> Result<Response<GetPodScoresResponse>, Status> {
        let start = Instant::now();
        let outcome = leave(&request).and_then(|leave| check(&leave, Registration::DEFAULT_TENANT));
        let request = request.into_inner();
        let outcome = match outcome {
            Ok(()) => self.0.run_text(move |service| pod_scores(service, request)).await,
            Err(failure) => Err(failure),
        };
        self.0.answer("indexer.v1.IndexerService/GetPodScores", start, outcome)
    }
}

fn pod_scores(
    service: &Service,
    request: GetPodScoresRequest,
) -> Result<GetPodScoresResponse, Failure> {
    let GetPodScoresRequest { prompt, model_name, pod_identifiers } = request;
    if model_name.is_empty() {
        return Err(Failure::field("model_name", "expected a text that is not empty"));
    }
    let candidates = pod_identifiers.into_iter().map(|pod| Candidate { pod, rank: None });
    let candidates: Vec<Candidate> = candidates.collect();
    let question = Question {
        token_ids: tokenize(service, &model_name, &prompt)?,
        model: Some(model_name),
        candidates: Some(candidates).filter(|candidates| !candidates.is_empty()),
        ..Question::default()
    };
    Ok(service.answer(&question, |rows, _| GetPodScoresResponse { scores: by_pod(rows) })?)
}

/// As an engine tokenizes a completion's text; llm-d's own tokenizers add special tokens, too.
fn tokenize(service: &Service, model: &str, prompt: &str) -> Result<Vec<u32>, Failure> {
    let tenant = Registration::DEFAULT_TENANT;
    if !service.has_tokenizer(tenant, model) {
        return Err(Failure::new(
            Code::FailedPrecondition,
            "no_tokenizer",
            format!(
                "a tokenizer for model '{model}' has to be configured ([models.{model:?}] tokenizer); \
                 kvscout.v1.Scout/Score takes tokens"
            ),
        ));
    }
    Ok(service.tokens_of_text(tenant, model, prompt, true)?)
}

/// The pods that hold something, each with the score of the rank that holds most, best first.
fn by_pod(rows: &[Row<'_>]) -> Vec<PodScore> {
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *ranks.entry(row.ranked.pod).or_default() += 1;
    }
    let mut scores: Vec<PodScore> = Vec::new();
    for row in rows.iter().filter(|row| row.ranked.score.weighted > 0.0) {
        // Rows are in order: the first one of a pod is its best. A pod that is done counts no ranks.
        let Some(count) = ranks.remove(row.ranked.pod) else { continue };
        scores.push(PodScore {
            pod: row.ranked.pod.to_owned(),
            score: row.ranked.score.weighted,
            data_parallel_rank: (count > 1).then(|| i32::try_from(row.ranked.rank).ok()).flatten(),
        });
    }
    scores
}

#[cfg(test)]
mod tests {
    use kvscout::block::WorkerId;
    use kvscout::ingest::Trust;
    use kvscout::score::Score;
    use kvscout::scout::Ranked;

    use super::*;

    fn row(pod: &'static str, rank: u32, weighted: f64) -> Row<'static> {
        let score = Score { weighted, ..Score::NOTHING };
        let worker = WorkerId(rank);
        let ranked = Ranked { worker, pod, rank, score, trust: Trust::Exact, as_of: Some(0) };
        Row { ranked, predicted_blocks: 0, quarantined: false, excluded: false }
    }

    #[test]
    fn a_pod_has_the_score_of_its_best_rank_and_one_that_holds_nothing_has_none() {
        let rows = [row("b", 1, 3.0), row("a", 0, 2.5), row("b", 0, 1.0), row("c", 0, 0.0)];
        let score = |pod: &str, score, data_parallel_rank| PodScore {
            pod: pod.to_owned(),
            score,
            data_parallel_rank,
        };
        assert_eq!(by_pod(&rows), [score("b", 3.0, Some(1)), score("a", 2.5, None)]);
    }
}
