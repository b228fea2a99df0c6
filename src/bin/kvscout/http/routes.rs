//! Every route, and whose question a request is where dialects share a path.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body as Stream, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use super::body::{Body, Fields};
use super::query::parameters;
use super::receive::{Form, read};
use super::refusal::HttpError;
use super::{Answer, App, admin, dynamo, mooncake, openapi, own};
use crate::metrics::Answered;
use crate::service::Refusal;

/// Bodies above this are parsed and answered on a blocking thread: 256 KiB, some 40,000 tokens,
/// take about a millisecond, more than which no other request should wait. Below, handing a request
/// over would cost a good part of the answer itself.
const LONG_BODY: usize = 256 << 10;

/// One route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) path: &'static str,
    serves: Serves,
}

/// What a route does with a request's fields: those of its body, or those after the question mark.
type Call = fn(&App, Fields<'_>) -> Result<Answer, HttpError>;

#[derive(Clone, Copy, Debug)]
enum Serves {
    /// A document is posted.
    Post(Place, Call),
    /// A question about a prompt; or token ids alone.
    PostPrompt(Place, Call),
    /// Something is looked at.
    Get(Call),
    Health,
    Metrics,
    Snapshot,
}

/// Where a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Where the request is, unless its body is long or a text has to be tokenized.
    Here,
    /// On a blocking thread: it waits for the receiver, or takes long.
    Aside,
}

use Place::{Aside, Here};
use Serves::{Get, Post, PostPrompt};

const fn route(path: &'static str, serves: Serves) -> Route {
    Route { path, serves }
}

/// All routes.
pub(super) const ROUTES: &[Route] = &[
    route("/v1/score", PostPrompt(Here, own::score)),
    route("/v1/score/batch", Post(Aside, own::batch)),
    route("/v1/explain", PostPrompt(Aside, own::explain)),
    route("/v1/picked", PostPrompt(Here, own::picked)),
    route("/v1/receipt", Post(Here, own::receipt)),
    route("/v1/admin/clear", Post(Aside, admin::clear)),
    route("/register", Post(Aside, register)),
    route("/unregister", Post(Aside, unregister)),
    route("/query", Post(Here, query)),
    route("/query_by_hash", Post(Here, query_by_hash)),
    route("/workers", Get(workers)),
    route("/global_view", Get(mooncake::global_view)),
    route("/services", Get(mooncake::services)),
    route("/dump", Get(dynamo::dump)),
    route("/register_peer", Post(Here, dynamo::register_peer)),
    route("/deregister_peer", Post(Here, dynamo::deregister_peer)),
    route("/peers", Get(dynamo::peers)),
    route("/health", Serves::Health),
    route("/ready", Get(own::ready)),
    route("/snapshot", Serves::Snapshot),
    route("/metrics", Serves::Metrics),
    route("/openapi.json", Get(openapi::openapi)),
];

impl Route {
    /// The method, in lower case.
    #[cfg(test)]
    pub(super) fn method(&self) -> &'static str {
        match self.serves {
            Post(..) | PostPrompt(..) => "post",
            _ => "get",
        }
    }

    fn handler(self) -> MethodRouter<Arc<App>> {
        match self.serves {
            Post(place, call) => {
                post(move |State(app), request| posted(app, request, place, call, false))
            }
            PostPrompt(place, call) => {
                post(move |State(app), request| posted(app, request, place, call, true))
            }
            Get(call) => get(move |State(app), request| looked(app, request, call)),
            Serves::Health => get(health),
            Serves::Metrics => get(metrics),
            Serves::Snapshot => get(snapshot),
        }
    }
}

/// Serves every route.
pub(crate) fn router(app: Arc<App>) -> Router {
    let routes = ROUTES.iter();
    let router =
        routes.fold(Router::new(), |router, route| router.route(route.path, route.handler()));
    router
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), count))
        .with_state(app)
}

async fn posted(
    app: Arc<App>,
    request: Request,
    place: Place,
    call: Call,
    prompt: bool,
) -> Response {
    let form = Form::of_answer(request.headers());
    let received = match read(&app, request, prompt).await {
        Ok(received) => received,
        Err(error) => return error.into_response(),
    };
    let run = move |app: &App, body: &Body| call(app, body.fields()?);
    let outcome = if place == Aside || received.len() > LONG_BODY || app.service.waits() {
        aside(move || run(&app, &received.body()?)).await
    } else {
        match received.body() {
            Ok(body) if prompt && body.fields().is_ok_and(|fields| own::has_text(&fields)) => {
                aside(move || run(&app, &body)).await
            }
            body => body.and_then(|body| run(&app, &body)),
        }
    };
    respond(outcome, form)
}

/// Runs a call on a blocking thread.
async fn aside(
    run: impl FnOnce() -> Result<Answer, HttpError> + Send + 'static,
) -> Result<Answer, HttpError> {
    tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(broken()))
}

/// What is looked at may be locked for a moment, behind the batch being applied.
async fn looked(app: Arc<App>, request: Request, call: Call) -> Response {
    let form = Form::of_answer(request.headers());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let run = move || {
        let fields = parameters(&query, &[])?;
        let body = Body::json(serde_json::to_vec(&fields).unwrap_or_default());
        call(&app, body.fields()?)
    };
    respond(aside(run).await, form)
}

fn broken() -> HttpError {
    HttpError::internal("the request could not be completed")
}

/// Errors are JSON whatever was asked for: who debugs them should not need a decoder.
fn respond(outcome: Result<Answer, HttpError>, form: Form) -> Response {
    match outcome {
        Ok(answer) if form == Form::Msgpack => answer.into_msgpack(),
        Ok(answer) => answer.into_response(),
        Err(error) => error.into_response(),
    }
}

fn register(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    if fields.has("model_name") {
        dynamo::register(&app.service, &fields)
    } else if fields.has("modelname") {
        mooncake::register(&app.service, &fields, app.mooncake)
    } else {
        Err(no_model("modelname"))
    }
}

fn unregister(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    // Mooncake identifies a worker without its model.
    if fields.has("model_name") {
        dynamo::unregister(&app.service, &fields)
    } else {
        mooncake::unregister(&app.service, &fields, app.mooncake)
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
        Dialect::Dynamo => dynamo::query_by_hash(app, &fields),
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

/// Dynamo's list where its filters are given; ours otherwise.
fn workers(app: &App, fields: Fields<'_>) -> Result<Answer, HttpError> {
    match fields.has("model_name") || fields.has("routing_group") {
        true => dynamo::workers(&app.service, &fields),
        false => own::workers(app, fields),
    }
}

async fn health() -> Answer {
    Answer::ok(&serde_json::json!({ "status": "alive" }))
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
    if let Err(refusal) = app.service.follows_engines("take a snapshot") {
        return HttpError::from(refusal).into_response();
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

async fn unknown_path(request: Request<Stream>) -> HttpError {
    HttpError::unknown_path(request.uri().path())
}

async fn wrong_method(method: Method, request: Request<Stream>) -> HttpError {
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
