//! Every route, and whose question a request is where dialects share a path.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body as Stream, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use super::body::{Body, Fields};
use super::query::parameters;
use super::receive::{Form, read, refuse};
use super::refusal::HttpError;
use super::serving::Insists;
use super::{Answer, App, admin, dynamo, mooncake, openapi, own, page};
use crate::admission::Turn;
use crate::auth::{Class, Guard, Shown, browser};
use crate::listen::Peer;
use crate::service::Refusal;

/// Bodies above this are parsed and answered on a blocking thread: 256 KiB, some 40,000 tokens,
/// take about a millisecond, more than which no other request should wait. Below, handing a request
/// over would cost a good part of the answer itself.
const LONG_BODY: usize = 256 << 10;

/// One route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) guard: Guard,
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
    Page,
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

const fn route(path: &'static str, guard: Guard, serves: Serves) -> Route {
    Route { path, guard, serves }
}

const SCORE: Guard = Guard::Tenant(Class::Score);
const PICK: Guard = Guard::Tenant(Class::Pick);
const READ: Guard = Guard::Everything(Class::Read);
const CHANGE: Guard = Guard::Tenant(Class::Change);
const ADMIN: Guard = Guard::Everything(Class::Admin);

/// All routes, and what each asks of its caller.
pub(super) const ROUTES: &[Route] = &[
    route("/v1/score", SCORE, PostPrompt(Here, own::score)),
    route("/v1/score/batch", SCORE, Post(Aside, own::batch)),
    route("/v1/explain", READ, PostPrompt(Aside, own::explain)),
    route("/v1/picked", PICK, PostPrompt(Here, own::picked)),
    route("/v1/receipt", PICK, Post(Here, own::receipt)),
    route("/v1/status", READ, Get(own::status)),
    route("/v1/admin/clear", ADMIN, Post(Aside, admin::clear)),
    route("/register", CHANGE, Post(Aside, register)),
    route("/unregister", CHANGE, Post(Aside, unregister)),
    route("/query", SCORE, Post(Here, query)),
    route("/query_by_hash", SCORE, Post(Here, query_by_hash)),
    route("/query_tiered_by_hash", SCORE, Post(Here, dynamo::query_tiered_by_hash)),
    route("/workers", READ, Get(workers)),
    route("/global_view", READ, Get(mooncake::global_view)),
    route("/services", READ, Get(mooncake::services)),
    route("/dump", READ, Get(dynamo::dump)),
    route("/register_peer", Guard::Everything(Class::Change), Post(Here, dynamo::register_peer)),
    route(
        "/deregister_peer",
        Guard::Everything(Class::Change),
        Post(Here, dynamo::deregister_peer),
    ),
    route("/peers", READ, Get(dynamo::peers)),
    // It has nothing in it before the status is read.
    route("/", Guard::Open, Serves::Page),
    route("/health", Guard::Open, Serves::Health),
    route("/ready", Guard::Open, Get(own::ready)),
    route("/snapshot", ADMIN, Serves::Snapshot),
    route("/metrics", READ, Serves::Metrics),
    route("/openapi.json", Guard::Open, Get(openapi::openapi)),
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
            Post(place, call) => post(move |State(app), request| {
                posted(app, request, self.guard, place, call, false)
            }),
            PostPrompt(place, call) => {
                post(move |State(app), request| posted(app, request, self.guard, place, call, true))
            }
            Get(call) => get(move |State(app), request| looked(app, request, self.guard, call)),
            Serves::Page => get(page::page),
            Serves::Health => get(health),
            Serves::Metrics => get(metrics),
            Serves::Snapshot => get(snapshot),
        }
    }
}

/// Serves every route.
pub(crate) fn router(app: Arc<App>) -> Router {
    let router = ROUTES.iter().fold(Router::new(), |router, route| {
        let guard = middleware::from_fn_with_state((Arc::clone(&app), route.guard), admit);
        router.route(route.path, route.handler().route_layer(guard))
    });
    router
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), count))
        .with_state(app)
}

/// Lets a request through if its caller may do what the route is for.
async fn admit(
    State((app, guard)): State<(Arc<App>, Guard)>,
    mut request: Request,
    next: Next,
) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let peer = request.extensions().get::<Peer>();
    let shown = Shown { authorization, certificate: peer.and_then(Peer::certificate) };
    if guard != Guard::Open && peer.is_some_and(Peer::is_crowded) {
        let mut response = refuse(&app, request, HttpError::overloaded());
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    if guard != Guard::Open && request.extensions().get::<Insists>().is_some() {
        return refuse(&app, request, HttpError::overloaded());
    }
    let nobody = app.access.asks_nobody_for(guard).filter(|_| app.is_local);
    if guard != Guard::Open
        && let Err(foreign) = browser::check(request.uri(), request.headers(), nobody)
    {
        debug!(path = request.uri().path(), ?foreign, "refused");
        return refuse(&app, request, HttpError::foreign(&foreign));
    }
    match app.access.admit(guard, shown) {
        Ok(leave) => {
            request.extensions_mut().insert(leave);
            next.run(request).await
        }
        Err(denied) => {
            debug!(path = request.uri().path(), ?denied, "refused");
            refuse(&app, request, HttpError::denied(denied))
        }
    }
}

async fn posted(
    app: Arc<App>,
    request: Request,
    guard: Guard,
    place: Place,
    call: Call,
    prompt: bool,
) -> Response {
    let form = Form::of_answer(request.headers());
    // A registration may wait for a name server, which no question should: they have a bound of their own.
    let takes_turn = guard != CHANGE;
    let mut question = None;
    if takes_turn {
        match app.admission.question().await {
            Ok(counted) => question = Some(counted),
            Err(overloaded) => return refuse(&app, request, overloaded.into()),
        }
    }
    let reading = read(&app, request, prompt);
    let received = match &mut question {
        Some(question) => question.body(reading).await,
        None => reading.await,
    };
    let received = match received {
        Ok(received) => received,
        Err(error) => return error.into_response(),
    };
    let (turn, change) = match question {
        Some(question) => match question.turn().await {
            Ok(turn) => (Some(turn), None),
            Err(overloaded) => return HttpError::from(overloaded).into_response(),
        },
        None => match app.admission.change() {
            Ok(change) => (None, Some(change)),
            Err(busy) => return HttpError::from(busy).into_response(),
        },
    };
    let run = move |app: &App, body: &Body, turn: Option<Turn>| {
        let _change = change;
        let fields = body.fields()?;
        // Those who tokenize, or ask an engine to, have turns of their own, and may wait for long.
        let _turn = turn.filter(|_| !prompt || !own::has_text(&fields));
        call(app, fields)
    };
    let outcome = if place == Aside || received.len() > LONG_BODY || app.service.waits() {
        aside(move || {
            let (body, _room) = received.body()?;
            run(&app, &body, turn)
        })
        .await
    } else {
        match received.body() {
            Ok((body, room))
                if prompt && body.fields().is_ok_and(|fields| own::has_text(&fields)) =>
            {
                aside(move || {
                    let _room = room;
                    run(&app, &body, turn)
                })
                .await
            }
            Ok((body, _room)) => run(&app, &body, turn),
            Err(error) => Err(error),
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
async fn looked(app: Arc<App>, request: Request, guard: Guard, call: Call) -> Response {
    let form = Form::of_answer(request.headers());
    // Whether the daemon works is told however much it has to do.
    let turn = match guard {
        Guard::Open => None,
        _ => match app.admission.turn().await {
            Ok(turn) => Some(turn),
            Err(overloaded) => return HttpError::from(overloaded).into_response(),
        },
    };
    let query = request.uri().query().unwrap_or_default().to_owned();
    let run = move || {
        let _turn = turn;
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
    } else if fields.required_u64("instance_id").is_ok() {
        Err(HttpError::field(
            "model_name",
            "missing: 'instance_id' is a number, as Dynamo's, which needs the model; Mooncake's is a text",
        ))
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
    let (single, rolling) = ("block_hashes", ["seq_hashes", "block_hash"]);
    let given = rolling.into_iter().find(|name| fields.has(name));
    match (dialect(&fields)?, given) {
        (Dialect::Dynamo, Some(given)) if !fields.has(single) => Err(HttpError::field(
            given,
            "rolling hashes, which go with 'model'; 'model_name' goes with 'block_hashes', of single blocks",
        )),
        (Dialect::Mooncake, None) if fields.has(single) => Err(HttpError::field(
            single,
            "hashes of single blocks, which go with 'model_name'; 'model' goes with 'seq_hashes', rolling ones",
        )),
        (Dialect::Dynamo, _) => dynamo::query_by_hash(app, &fields),
        (Dialect::Mooncake, _) => mooncake::query_by_hash(&app.service, &fields, app.mooncake),
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
        return HttpError::from(Refusal::Busy(busy)).into_response();
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
    let took = start.elapsed();
    debug!(route, status, micros = took.as_micros() as u64, "answered");
    app.service.metrics().count_answer(route, status, took);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_of_every_route_what_it_asks_of_its_caller() {
        let document = include_str!("../../../../docs/security.md");
        for class in Class::ALL.map(Some).into_iter().chain([None]) {
            let name = class.map_or("none".to_owned(), |class| format!("`{}`", class.as_str()));
            let row = document.lines().find(|line| line.starts_with(&format!("| {name} |")));
            let cell = row.and_then(|row| row.split(" | ").nth(1)).expect("a row for each class");
            let is_path = |word: &&str| word.starts_with('/');
            let mut said: Vec<&str> = cell.split('`').filter(is_path).collect();
            let of_class = |route: &&Route| match route.guard {
                Guard::Tenant(its) | Guard::Everything(its) => Some(its) == class,
                Guard::Open => class.is_none(),
            };
            let mut there: Vec<&str> = ROUTES.iter().filter(of_class).map(|r| r.path).collect();
            // What the page is filled from stands beside it.
            said.retain(|path| class.is_some() || *path != "/v1/status");
            said.sort_unstable();
            there.sort_unstable();
            assert_eq!(said, there, "{name}");
        }
    }

    /// What is looked at names no tenant that could be held against its caller.
    #[test]
    fn only_what_is_posted_may_be_for_one_tenant_and_only_what_says_little_is_open() {
        for route in ROUTES {
            if let Guard::Tenant(_) = route.guard {
                assert_eq!(route.method(), "post", "{}", route.path);
            }
        }
        let open = ROUTES.iter().filter(|route| route.guard == Guard::Open);
        let open: Vec<&str> = open.map(|route| route.path).collect();
        assert_eq!(open, ["/", "/health", "/ready", "/openapi.json"]);
    }
}
