//! `grpc.health.v1.Health`: what `/ready` and `/health` say over HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::App;
use super::generated::grpc_health_v1::health_check_response::ServingStatus;
use super::generated::grpc_health_v1::health_server::Health;
use super::generated::grpc_health_v1::{HealthCheckRequest, HealthCheckResponse};
use super::refusal::Failure;

/// How often a watched status is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Names whose status is whether the daemon is ready; the empty one is the server as a whole.
const READY: [&str; 5] =
    ["", "readiness", "kvscout.v1.Scout", "kv_indexer.v1.KVIndexer", "indexer.v1.IndexerService"];

/// Serving as long as it answers.
const LIVE: &str = "liveness";

/// The service.
#[derive(Debug)]
pub(super) struct Probes(pub(super) Arc<App>);

/// The status of a name; `None` if there is no such name. Readiness may wait for a lock.
async fn status(app: &Arc<App>, name: &str) -> Option<ServingStatus> {
    if name == LIVE {
        return Some(ServingStatus::Serving);
    }
    if !READY.contains(&name) {
        return None;
    }
    let service = Arc::clone(&app.service);
    let ready = tokio::task::spawn_blocking(move || service.readiness().is_ok()).await;
    let serves = matches!(ready, Ok(true)) && !app.ending.has_begun();
    Some(if serves { ServingStatus::Serving } else { ServingStatus::NotServing })
}

#[tonic::async_trait]
impl Health for Probes {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let start = Instant::now();
        let name = request.into_inner().service;
        let outcome = match status(&self.0, &name).await {
            Some(status) => Ok(HealthCheckResponse { status: status.into() }),
            None => {
                let message = format!("field 'service': there are {}", READY[1..].join(", "));
                Err(Failure::new(Code::NotFound, "unknown_service", message))
            }
        };
        self.0.answer("grpc.health.v1.Health/Check", start, outcome)
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, waiting) = mpsc::channel(1);
        tokio::spawn(watch(Arc::clone(&self.0), request.into_inner().service, answers));
        self.0.answer(
            "grpc.health.v1.Health/Watch",
            Instant::now(),
            Ok(ReceiverStream::new(waiting)),
        )
    }
}

/// Tells a status and each change of it, until nobody listens or the daemon ends.
async fn watch(
    app: Arc<App>,
    name: String,
    answers: mpsc::Sender<Result<HealthCheckResponse, Status>>,
) {
    let mut told = None;
    loop {
        // A name that is not known now may be known to a later version: the standard keeps the stream open.
        let now = status(&app, &name).await.unwrap_or(ServingStatus::ServiceUnknown);
        if told != Some(now) {
            told = Some(now);
            if answers.send(Ok(HealthCheckResponse { status: now.into() })).await.is_err() {
                return;
            }
        }
        if app.ending.has_begun() {
            return;
        }
        tokio::select! {
            // Told once more, then over.
            () = app.ending.begins() => {}
            () = answers.closed() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
