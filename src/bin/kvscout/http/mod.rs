//! The HTTP API: routes, dialects, limits and error answers; the meaning of each request is in
//! [`service`](crate::service).

mod admin;
mod body;
mod dynamo;
mod mooncake;
mod openapi;
mod own;
mod packed;
mod page;
mod profile;
mod query;
mod receive;
mod refusal;
mod routes;
mod serving;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Semaphore;

pub(crate) use self::routes::router;
pub(crate) use self::serving::serve;
use crate::admission::Admission;
use crate::auth::Access;
use crate::config::Config;
use crate::metrics::Exposition;
use crate::service::Service;

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
    access: Arc<Access>,
    admission: Arc<Admission>,
    exposition: Exposition,
    mooncake: MooncakeAnswer,
    dynamo_hashes: bool,
    max_body: usize,
    read_timeout: Duration,
    share: bool,
    /// Whether only this machine reaches us.
    is_local: bool,
    /// One snapshot at a time is under way: each takes half as much memory as the index.
    snapshots: Arc<Semaphore>,
}

impl App {
    /// The API of a service.
    pub(crate) fn new(
        service: Arc<Service>,
        access: Arc<Access>,
        admission: Arc<Admission>,
        config: &Config,
    ) -> App {
        App {
            exposition: Exposition::new(Arc::clone(&service)),
            service,
            access,
            admission,
            mooncake: config.mooncake_answer,
            dynamo_hashes: config.dialects.dynamo_hashes,
            max_body: config.limits.max_body.get(),
            read_timeout: config.limits.read_timeout,
            share: config.state.share,
            is_local: config.listen.ip().to_canonical().is_loopback(),
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

    /// A document that is JSON already.
    fn of_json(json: Vec<u8>) -> Answer {
        Answer { status: StatusCode::OK, json }
    }

    fn with(status: StatusCode, value: &impl Serialize) -> Answer {
        match serde_json::to_vec(value) {
            Ok(json) => Answer { status, json },
            // Answers are plain structs and maps with text keys, which always serialize.
            Err(_) => Answer { status: StatusCode::INTERNAL_SERVER_ERROR, json: b"{}".to_vec() },
        }
    }
}

impl Answer {
    /// The same document in msgpack.
    fn into_msgpack(self) -> Response {
        let body = packed::pack(&self.json);
        (self.status, [(header::CONTENT_TYPE, "application/msgpack")], body).into_response()
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "application/json")], self.json).into_response()
    }
}
