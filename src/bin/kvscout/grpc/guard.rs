//! Who may call what: each method with the leave that it asks for.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::{Code, Status};
use tracing::debug;

use super::App;
use super::refusal::{self, Failure};
use crate::auth::{Class, Guard, Leave, Shown, browser};
use crate::listen::Peer;

const SCORE: Guard = Guard::Tenant(Class::Score);
/// SGLang's blocks have no tenants.
const SCORE_ALL: Guard = Guard::Everything(Class::Score);
const REPORT: Guard = Guard::Everything(Class::Change);

/// All methods by their paths.
const METHODS: &[(&str, Guard)] = &[
    ("/kvscout.v1.Scout/Score", SCORE),
    ("/kvscout.v1.Scout/ScoreMany", SCORE),
    ("/indexer.v1.IndexerService/GetPodScores", SCORE),
    ("/kv_indexer.v1.KVIndexer/ConfigureExpectedWorkers", REPORT),
    ("/kv_indexer.v1.KVIndexer/ReplaceExternalKvSnapshot", REPORT),
    ("/kv_indexer.v1.KVIndexer/ApplyExternalKvBatch", REPORT),
    ("/kv_indexer.v1.KVIndexer/MatchExternalKv", SCORE_ALL),
    ("/kv_indexer.v1.KVIndexer/MatchExternalKvPrefix", SCORE_ALL),
    ("/kv_indexer.v1.KVIndexer/GetExternalKvHitCounts", SCORE_ALL),
    ("/grpc.health.v1.Health/Check", Guard::Open),
    ("/grpc.health.v1.Health/Watch", Guard::Open),
];

/// Lets a call through if its caller may make it.
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let Some((method, guard)) = METHODS.iter().find(|(method, _)| *method == path) else {
        return Status::unimplemented("no such method").into_http::<axum::body::Body>();
    };
    // A browser speaks HTTP/2 over TLS alone, and a certificate is not one for a name of somebody else.
    if *guard != Guard::Open
        && let Err(foreign) = browser::check(request.uri(), request.headers(), None)
    {
        debug!(method, ?foreign, "refused");
        return refuse(&app, method, Code::PermissionDenied, foreign.reason(), foreign.to_string());
    }
    let authorization = request.headers().get("authorization").map(|value| value.as_bytes());
    let certificate = request.extensions().get::<Peer>().and_then(Peer::certificate);
    match app.access.admit(*guard, Shown { authorization, certificate }) {
        Ok(leave) => {
            request.extensions_mut().insert(leave);
            next.run(request).await
        }
        Err(denied) => {
            debug!(method, ?denied, "refused");
            let (code, reason) = match denied.wants_credential() {
                true => (Code::Unauthenticated, "unauthenticated"),
                false => (Code::PermissionDenied, "forbidden"),
            };
            refuse(&app, method, code, reason, denied.to_string())
        }
    }
}

fn refuse(
    app: &App,
    method: &'static str,
    code: Code,
    reason: &'static str,
    why: String,
) -> Response {
    app.service.metrics().count_call(&method[1..], refusal::name(code));
    Status::from(Failure::new(code, reason, why)).into_http::<axum::body::Body>().into_response()
}

/// The leave of a call that was let through.
pub(super) fn leave<T>(request: &tonic::Request<T>) -> Result<Leave, Failure> {
    // Whoever has none was asked for none, which no method may forget.
    request.extensions().get().cloned().ok_or_else(Failure::internal)
}

/// Refuses another tenant than the one that a caller is bound to; the same whatever there is of it.
pub(super) fn check(leave: &Leave, tenant: &str) -> Result<(), Failure> {
    match leave.reaches(tenant) {
        true => Ok(()),
        false => Err(Failure::new(
            Code::PermissionDenied,
            "other_tenant",
            "field 'tenant': this caller is bound to another tenant",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_of_every_method_what_it_asks_of_its_caller() {
        let document = include_str!("../../../../docs/security.md");
        for (method, guard) in METHODS {
            let class = match guard {
                Guard::Tenant(class) | Guard::Everything(class) => format!("`{}`", class.as_str()),
                Guard::Open => "none".to_owned(),
            };
            let row = document.lines().find(|line| line.starts_with(&format!("| {class} |")));
            let name = method.rsplit('.').next().expect("it has a package");
            assert!(row.is_some_and(|row| row.contains(&format!("`{name}`"))), "{method}: {class}");
        }
    }

    /// The methods of the protocol files; one that is not in the table cannot be called at all.
    #[test]
    fn every_method_of_every_protocol_says_what_it_asks_of_its_caller() {
        let files = [
            include_str!("../../../../proto/kvscout.proto"),
            include_str!("../../../../proto/indexer.proto"),
            include_str!("../../../../proto/kv_indexer.proto"),
            include_str!("../../../../proto/health.proto"),
        ];
        let mut declared = Vec::new();
        for file in files {
            let (mut package, mut service) = ("", "");
            for line in file.lines() {
                let mut words = line.split([' ', ';', '(', '{']).filter(|word| !word.is_empty());
                match (words.next(), words.next()) {
                    (Some("package"), Some(name)) => package = name,
                    (Some("service"), Some(name)) => service = name,
                    (Some("rpc"), Some(name)) => {
                        declared.push(format!("/{package}.{service}/{name}"))
                    }
                    _ => {}
                }
            }
        }
        let mut guarded: Vec<String> =
            METHODS.iter().map(|(method, _)| (*method).to_owned()).collect();
        declared.sort();
        guarded.sort();
        assert_eq!(guarded, declared);
        let open: Vec<&str> = METHODS
            .iter()
            .filter(|(_, guard)| *guard == Guard::Open)
            .map(|(name, _)| *name)
            .collect();
        assert!(open.iter().all(|name| name.starts_with("/grpc.health.v1.")), "{open:?}");
    }
}
