//! The HTTP API: routes, limits and error answers; the meaning of each request is in
//! [`service`](crate::service).

mod admin;
mod body;
mod dynamo;
mod mooncake;
mod own;
mod refusal;

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use self::body::Fields;
use self::refusal::HttpError;
use crate::config::Config;
use crate::metrics::{Answered, Exposition};
use crate::service::{Refusal, Service};

/// Bodies above this are parsed and answered on a blocking thread: 256 KiB, some 40,000 tokens,
/// take about a millisecond, more than which no other request should wait. Below, handing a request
/// over would cost a good part of the answer itself.
const LONG_BODY: usize = 256 << 10;

/// How much of a refused body is drained, in limits of a body: what a client with a somewhat too
/// long prompt sends.
const DRAIN_LIMITS: usize = 4;

/// For how long a refused body is drained.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Which of Mooncake's documented answers its `/query` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MooncakeAnswer {
    /// Of the API document: tenant, then instance; upper-case tiers.
    Doc,
    /// Of the C++ implementation: `instances`; lower-case tiers, and tiers for each rank.
    Branch,
}

impl FromStr for MooncakeAnswer {
    type Err = ();

    fn from_str(text: &str) -> Result<MooncakeAnswer, ()> {
        match text {
            "doc" => Ok(MooncakeAnswer::Doc),
            "branch" => Ok(MooncakeAnswer::Branch),
            _ => Err(()),
        }
    }
}

impl fmt::Display for MooncakeAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MooncakeAnswer::Doc => "doc",
            MooncakeAnswer::Branch => "branch",
        })
    }
}

/// What every request needs.
#[derive(Debug)]
pub(crate) struct App {
    service: Arc<Service>,
    exposition: Exposition,
    mooncake: MooncakeAnswer,
    max_body: usize,
    read_timeout: Duration,
    share: bool,
    /// One snapshot at a time is under way: each takes half as much memory as the index.
    snapshots: Arc<Semaphore>,
}

impl App {
    /// The API of a service.
    pub(crate) fn new(service: Arc<Service>, config: &Config) -> App {
        App {
            exposition: Exposition::new(Arc::clone(&service)),
            service,
            mooncake: config.mooncake_answer,
            max_body: config.limits.max_body.get(),
            read_timeout: config.limits.read_timeout,
            share: config.state.share,
            snapshots: Arc::new(Semaphore::new(1)),
        }
    }
}

/// A finished answer.
struct Answer {
    status: StatusCode,
    json: Vec<u8>,
}

impl Answer {
    fn ok(value: &impl Serialize) -> Answer {
        Answer::with(StatusCode::OK, value)
    }

    fn with(status: StatusCode, value: &impl Serialize) -> Answer {
        match serde_json::to_vec(value) {
            Ok(json) => Answer { status, json },
            // Answers are plain structs and maps with text keys, which always serialize.
            Err(_) => Answer { status: StatusCode::INTERNAL_SERVER_ERROR, json: b"{}".to_vec() },
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "application/json")], self.json).into_response()
    }
}

/// A request with a JSON body.
type Call = fn(&App, Fields<'_>) -> Result<Answer, HttpError>;

/// Where a call runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Where the request is, unless its body is long.
    Here,
    /// On a blocking thread: it waits for the receiver.
    Aside,
}

/// Every route.
pub(crate) fn router(app: Arc<App>) -> Router {
    let call = |place, call: Call| {
        post(move |State(app): State<Arc<App>>, request: Request| answer(app, request, place, call))
    };
    Router::new()
        .route("/register", call(Place::Aside, register))
        .route("/unregister", call(Place::Aside, unregister))
        .route("/query", call(Place::Here, query))
        .route("/query_by_hash", call(Place::Here, query_by_hash))
        .route("/v1/score", call(Place::Here, own::score))
        .route("/v1/admin/clear", call(Place::Aside, admin::clear))
        .route("/workers", get(workers))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/snapshot", get(snapshot))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), count))
        .with_state(app)
}

async fn answer(app: Arc<App>, request: Request, place: Place, call: Call) -> Response {
    let body = match read(&app, request).await {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    let outcome = if place == Place::Aside || body.len() > LONG_BODY {
        let run = move || Fields::parse(&body).and_then(|fields| call(&app, fields));
        match tokio::task::spawn_blocking(run).await {
            Ok(outcome) => outcome,
            Err(_) => Err(HttpError::internal("the request could not be completed")),
        }
    } else {
        Fields::parse(&body).and_then(|fields| call(&app, fields))
    };
    match outcome {
        Ok(answer) => answer.into_response(),
        Err(error) => error.into_response(),
    }
}

/// The body of a request, if it is JSON, in time and within the limit.
///
/// What is refused for its body is drained first: a client that is still sending reads no answer, and
/// gets none when we close on it.
async fn read(app: &App, request: Request) -> Result<Vec<u8>, HttpError> {
    let (head, mut body) = request.into_parts();
    let announced = body.size_hint().exact();
    let refusal = match check_content_type(&head.headers) {
        Err(error) => Some(error),
        Ok(()) if announced.is_some_and(|length| length > app.max_body as u64) => {
            Some(HttpError::too_large(app.max_body))
        }
        Ok(()) => None,
    };
    if let Some(error) = refusal {
        // Who asks first has sent nothing yet, and need not.
        if !head.headers.contains_key(header::EXPECT) {
            drain(&mut body, app.max_body).await;
        }
        return Err(error);
    }
    match tokio::time::timeout(app.read_timeout, collect(&mut body, app.max_body)).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => {
            drain(&mut body, app.max_body).await;
            Err(HttpError::too_large(app.max_body))
        }
        Err(_) => Err(HttpError::timeout(app.read_timeout)),
    }
}

/// The whole body; none where it goes beyond the limit. What else breaks a body off leaves nobody
/// to read the answer.
async fn collect(body: &mut Body, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(data) = next_data(body).await {
        let data = data.ok()?;
        if data.len() > limit - bytes.len() {
            return None;
        }
        bytes.extend_from_slice(&data);
    }
    Some(bytes)
}

/// Reads on and forgets, within bounds: no client should keep us at it.
async fn drain(body: &mut Body, limit: usize) {
    let mut left = limit.saturating_mul(DRAIN_LIMITS);
    let reading = async {
        while let Some(Ok(data)) = next_data(body).await {
            match left.checked_sub(data.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Whatever ended it, the answer is the same.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

/// The next piece of a body; trailers are an empty one.
async fn next_data(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
    frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), HttpError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let value = value.to_str().unwrap_or("(not text)");
    let kind = value.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(HttpError::unsupported(kind))
}

fn register(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    if fields.has("model_name") {
        dynamo::register(&app.service, &fields)
    } else if fields.has("modelname") {
        mooncake::register(&app.service, &fields)
    } else {
        Err(no_model("modelname"))
    }
}

fn unregister(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    // Mooncake identifies a worker without its model.
    if fields.has("model_name") {
        dynamo::unregister(&app.service, &fields)
    } else {
        mooncake::unregister(&app.service, &fields)
    }
}

fn query(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    match dialect(&fields)? {
        Dialect::Dynamo => dynamo::query(&app.service, &fields),
        Dialect::Mooncake => mooncake::query(&app.service, &fields, app.mooncake),
    }
}

fn query_by_hash(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    match dialect(&fields)? {
        Dialect::Dynamo => dynamo::query_by_hash(&fields),
        Dialect::Mooncake => mooncake::query_by_hash(&app.service, &fields, app.mooncake),
    }
}

enum Dialect {
    Mooncake,
    Dynamo,
}

/// Whose question it is: the two share paths, but not the name of the model's field.
fn dialect(fields: &Fields<'_>) -> Result<Dialect, HttpError> {
    match (fields.has("model") || fields.has("modelname"), fields.has("model_name")) {
        (true, false) => Ok(Dialect::Mooncake),
        (false, true) => Ok(Dialect::Dynamo),
        (false, false) => Err(no_model("model")),
        (true, true) => Err(HttpError::field(
            "model_name",
            "given beside 'model': give 'model' for an answer as Mooncake's, 'model_name' for one \
             as Dynamo's",
        )),
    }
}

fn no_model(mooncake: &'static str) -> HttpError {
    HttpError::field(
        mooncake,
        format!("missing: give '{mooncake}' (Mooncake's dialect) or 'model_name' (Dynamo's)"),
    )
}

async fn workers(State(app): State<Arc<App>>) -> Response {
    // Each worker's stream is locked for a moment, behind the batch being applied.
    let run = move || own::workers(&app.service);
    match tokio::task::spawn_blocking(run).await {
        Ok(answer) => answer.into_response(),
        Err(_) => HttpError::internal("the workers could not be listed").into_response(),
    }
}

async fn health() -> Answer {
    Answer::ok(&serde_json::json!({ "status": "alive" }))
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    // As for the list of workers, where their trust is asked for.
    match tokio::task::spawn_blocking(move || own::ready(&app.service)).await {
        Ok(answer) => answer.into_response(),
        Err(_) => HttpError::internal("the workers could not be looked at").into_response(),
    }
}

/// A snapshot's bytes; its turn is over when they are sent, or nobody wants them any more.
struct Sent {
    bytes: Vec<u8>,
    _turn: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn snapshot(State(app): State<Arc<App>>) -> Response {
    if !app.share {
        return HttpError::not_shared().into_response();
    }
    let Ok(turn) = Arc::clone(&app.snapshots).try_acquire_owned() else {
        let busy = "another snapshot is being sent; try again later".to_owned();
        return HttpError::from(Refusal::Unavailable(busy)).into_response();
    };
    let run = move || app.service.snapshot().into_bytes();
    match tokio::task::spawn_blocking(run).await {
        Ok(bytes) => {
            let body = Bytes::from_owner(Sent { bytes, _turn: turn });
            ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
        }
        Err(_) => HttpError::internal("the snapshot could not be taken").into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = tokio::task::spawn_blocking(move || app.exposition.text()).await;
    match text {
        Ok(Ok(text)) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        _ => HttpError::internal("the metrics could not be written").into_response(),
    }
}

async fn unknown_path(request: Request<Body>) -> HttpError {
    HttpError::unknown_path(request.uri().path())
}

async fn wrong_method(method: Method, request: Request<Body>) -> HttpError {
    HttpError::wrong_method(&method, request.uri().path())
}

/// Counts and logs every answer, by the route's pattern: paths that do not exist are one series.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "other".to_owned());
    let start = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    debug!(route, status, micros = start.elapsed().as_micros() as u64, "answered");
    app.service.metrics().requests.get_or_create(&Answered { route, status }).inc();
    response
}
