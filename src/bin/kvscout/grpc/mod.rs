//! The gRPC services: limits, error answers, and what each call becomes; the meaning is in
//! [`service`](crate::service). The code in `generated/` is made from `proto/` by `scripts/grpc-code/run`.

mod generated;
mod guard;
mod health;
mod llmd;
mod refusal;
mod scout;
mod sglang;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::middleware;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Code, Response, Status};
use tracing::debug;

use self::generated::grpc_health_v1::health_server::HealthServer;
use self::generated::indexer_v1::indexer_service_server::IndexerServiceServer;
use self::generated::kv_indexer_v1::kv_indexer_server::KvIndexerServer;
use self::generated::kvscout_v1::scout_server::ScoutServer;
use self::refusal::Failure;
use crate::admission::Admission;
use crate::auth::Access;
use crate::config::Config;
use crate::ending::Ending;
use crate::listen::Listener;
use crate::service::Service;

/// A connection is asked for a sign of life after so long, and cut after as long again.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Questions of so many tokens or hashes are answered on a blocking thread.
const LONG: usize = 40_000;

/// What every call needs.
#[derive(Debug)]
struct App {
    service: Arc<Service>,
    access: Arc<Access>,
    admission: Arc<Admission>,
    /// True once the daemon ends; streams end with it.
    ending: Ending,
}

impl App {
    /// Runs what may take long on a thread of its own, and the rest where it stands, once there is a turn for it.
    async fn run<T: Send + 'static>(
        &self,
        size: usize,
        run: impl FnOnce(&Service) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let turn = self.admission.turn().await?;
        if size < LONG && !self.service.waits() {
            return run(&self.service);
        }
        let run = move |service: &Service| {
            let _turn = turn;
            run(service)
        };
        self.aside(run).await
    }

    /// Runs what tokenizes, or asks an engine to: it has a turn of its own for that, and may wait for long.
    async fn run_text<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Service) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        drop(self.admission.turn().await?);
        self.aside(run).await
    }

    async fn aside<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Service) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let service = Arc::clone(&self.service);
        let aside = tokio::task::spawn_blocking(move || run(&service));
        aside.await.unwrap_or_else(|_| Err(Failure::internal()))
    }

    /// Counts a call's outcome and gives it its form on the wire.
    fn answer<T>(
        &self,
        method: &'static str,
        start: Instant,
        outcome: Result<T, Failure>,
    ) -> Result<Response<T>, Status> {
        let outcome = outcome.map_err(Status::from);
        self.count(method, start, outcome.as_ref().err().map_or(Code::Ok, Status::code));
        outcome.map(Response::new)
    }

    /// Counts how a call ended, or a question of a stream.
    fn count(&self, method: &'static str, start: Instant, code: Code) {
        let took = start.elapsed();
        debug!(method, ?code, micros = took.as_micros() as u64, "answered");
        self.service.metrics().count_call(method, refusal::name(code));
        self.service.metrics().time_call(method, took);
    }
}

/// Serves every service until the end begins, then lets calls in flight end.
pub(crate) async fn serve(
    listener: Listener,
    service: Arc<Service>,
    access: Arc<Access>,
    admission: Arc<Admission>,
    config: &Config,
    ending: Ending,
) -> io::Result<()> {
    let app = Arc::new(App { service, access, admission, ending: ending.clone() });
    let most = config.limits.max_body.get();
    let scout = ScoutServer::new(scout::Questions(Arc::clone(&app)));
    let sglang = KvIndexerServer::new(sglang::Bridges(Arc::clone(&app)));
    let llmd = IndexerServiceServer::new(llmd::Texts(Arc::clone(&app)));
    let health = HealthServer::new(health::Probes(Arc::clone(&app)));
    let routes = Routes::new(scout.max_decoding_message_size(most))
        .add_service(sglang.max_decoding_message_size(most))
        .add_service(llmd.max_decoding_message_size(most))
        .add_service(health.max_decoding_message_size(most))
        .prepare()
        .into_axum_router()
        .layer(middleware::from_fn_with_state(app, guard::admit));
    Server::builder()
        // Of a call until its answer begins: a body that does not come ends here.
        .timeout(config.limits.read_timeout)
        .max_concurrent_streams(config.grpc.max_streams.get())
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(routes.into())
        .serve_with_incoming_shutdown(listener.accepted(), async move { ending.begins().await })
        .await
        .map_err(io::Error::other)
}
