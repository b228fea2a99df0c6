//! Error answers: a sentence, a stable reason, and the field that was wrong.

use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Answer;
use super::body::Fields;
use super::packed::Malformed;
use super::routes::ROUTES;
use crate::admission::Overloaded;
use crate::auth::Denied;
use crate::auth::browser::Foreign;
use crate::service::{OVERLOADED, Refusal, elsewhere};

/// An error as HTTP answers it: Mooncake's `{"error", "reason", "field"?, "index"?}`, of which
/// Dynamo's clients read `error`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct HttpError {
    #[serde(skip)]
    status: StatusCode,
    /// The header that goes with the status: the challenge of 401, when to come back of 503.
    #[serde(skip)]
    header: Option<&'static str>,
    error: String,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
}

impl HttpError {
    fn new(status: StatusCode, reason: &'static str, error: impl Into<String>) -> HttpError {
        HttpError { status, header: None, error: error.into(), reason, field: None, index: None }
    }

    /// 400: what is wrong with a field.
    pub(super) fn field(name: impl Into<String>, wrong: impl AsRef<str>) -> HttpError {
        let name = name.into();
        let error = format!("field '{name}': {}", wrong.as_ref());
        HttpError {
            field: Some(name),
            ..HttpError::new(StatusCode::BAD_REQUEST, "invalid_field", error)
        }
    }

    /// 400: what is wrong with an element of a list.
    pub(super) fn element(name: &str, index: usize, wrong: &str) -> HttpError {
        let error = format!("field '{name}', element {index}: {wrong}");
        HttpError { error, index: Some(index), ..HttpError::field(name, "") }
    }

    /// The same about a field of an object within the body.
    pub(super) fn within(mut self, fields: &Fields<'_>) -> HttpError {
        if let Some(field) = &mut self.field {
            let place = fields.place(field);
            self.error = self.error.replacen(field.as_str(), &place, 1);
            *field = place;
        }
        self
    }

    /// 400: the body is JSON of another kind.
    pub(super) fn no_object(found: &str) -> HttpError {
        let error = format!("the body is no JSON object: expected an object, found {found}");
        HttpError::new(StatusCode::BAD_REQUEST, "invalid_json", error)
    }

    /// 400: the body is no JSON.
    pub(super) fn no_json(error: &serde_json::Error) -> HttpError {
        let (line, column) = (error.line(), error.column());
        HttpError::new(
            StatusCode::BAD_REQUEST,
            "invalid_json",
            format!("the body is no JSON object: broken at line {line}, column {column}"),
        )
    }

    /// 400: the body is no msgpack map.
    pub(super) fn no_msgpack(wrong: &Malformed) -> HttpError {
        let Malformed { what, at } = wrong;
        let error = format!("the body is no msgpack map of fields: {what}, at byte {at}");
        HttpError::new(StatusCode::BAD_REQUEST, "invalid_msgpack", error)
    }

    pub(super) fn too_large(limit: usize) -> HttpError {
        let error = format!("the body is larger than {limit} bytes (limits.max_body_bytes)");
        HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", error)
    }

    pub(super) fn timeout(limit: Duration) -> HttpError {
        let error = format!("the body took longer than {limit:?} to arrive");
        HttpError::new(StatusCode::REQUEST_TIMEOUT, "timeout", error)
    }

    pub(super) fn unsupported(kind: &str, supported: &str) -> HttpError {
        let error = format!("content type '{kind}' is not supported here; send {supported}");
        HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", error)
    }

    pub(super) fn unknown_path(path: &str) -> HttpError {
        let routes: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
        let error = format!("no route '{path}'; there are {}", routes.join(", "));
        HttpError::new(StatusCode::NOT_FOUND, "unknown_path", error)
    }

    pub(super) fn wrong_method(method: &Method, path: &str) -> HttpError {
        let right = if *method == Method::POST { "GET" } else { "POST" };
        let error = format!("{method} does not go with '{path}'; use {right}");
        HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", error)
    }

    /// 401 for whoever has to say who it is, 403 for whoever has.
    pub(super) fn denied(denied: Denied) -> HttpError {
        if !denied.wants_credential() {
            return HttpError::new(StatusCode::FORBIDDEN, "forbidden", denied.to_string());
        }
        let challenge = match denied {
            Denied::Unknown => "Bearer realm=\"kvscout\", error=\"invalid_token\"",
            _ => "Bearer realm=\"kvscout\"",
        };
        let error = HttpError::new(StatusCode::UNAUTHORIZED, "unauthenticated", denied.to_string());
        HttpError { header: Some(challenge), ..error }
    }

    /// 403: a browser asks for somebody else's page.
    pub(super) fn foreign(foreign: &Foreign) -> HttpError {
        HttpError::new(StatusCode::FORBIDDEN, foreign.reason(), foreign.to_string())
    }

    /// 503 at once: whoever waits longer than an answer is worth goes without it.
    pub(super) fn overloaded() -> HttpError {
        let error = HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", OVERLOADED);
        HttpError { header: Some("1"), ..error }
    }

    /// 503: as much of this is done already as may be at a time.
    fn busy(error: String) -> HttpError {
        let error = HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error);
        HttpError { header: Some("1"), ..error }
    }

    /// 403: the same whatever there is of that tenant.
    pub(super) fn other_tenant(field: String) -> HttpError {
        let error = format!("field '{field}': this caller is bound to another tenant");
        let error = HttpError::new(StatusCode::FORBIDDEN, "other_tenant", error);
        HttpError { field: Some(field), ..error }
    }

    pub(super) fn not_shared() -> HttpError {
        let error = "snapshots are not given away: set state.share = true here if whoever reaches this \
                     port may have one";
        HttpError::new(StatusCode::FORBIDDEN, "not_shared", error)
    }

    pub(super) fn not_implemented(error: &str) -> HttpError {
        HttpError::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", error)
    }

    pub(super) fn internal(error: &str) -> HttpError {
        HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error)
    }
}

impl From<Overloaded> for HttpError {
    fn from(_: Overloaded) -> HttpError {
        HttpError::overloaded()
    }
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> HttpError {
        let (status, reason, error) = match refusal {
            Refusal::Conflict(error) => (StatusCode::CONFLICT, "conflict", error),
            Refusal::UnknownWorker(error) => (StatusCode::NOT_FOUND, "unknown_worker", error),
            Refusal::UnknownModel(error) => (StatusCode::NOT_FOUND, "unknown_model", error),
            Refusal::UnknownPeer(error) => (StatusCode::NOT_FOUND, "unknown_peer", error),
            Refusal::Rank(error) => return HttpError::field("rank", error),
            Refusal::Candidate { n, wrong } => return HttpError::element("candidates", n, &wrong),
            Refusal::Overloaded => return HttpError::overloaded(),
            Refusal::Busy(error) => return HttpError::busy(error),
            Refusal::NotAllowed(error) => (StatusCode::FORBIDDEN, "not_allowed", error),
            Refusal::Invalid(error) => (StatusCode::BAD_REQUEST, "invalid", error),
            Refusal::Unavailable(error) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", error),
            Refusal::Elsewhere(what) => {
                (StatusCode::NOT_IMPLEMENTED, "not_implemented", elsewhere(what))
            }
        };
        HttpError::new(status, reason, error)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = Answer::with(self.status, &self).into_response();
        if let Some(value) = self.header {
            let name = match self.status {
                StatusCode::UNAUTHORIZED => header::WWW_AUTHENTICATE,
                _ => header::RETRY_AFTER,
            };
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_while_as_much_is_done_as_may_be_is_told_when_to_come_back() {
        let retry_after = |refusal: Refusal| {
            let response = HttpError::from(refusal).into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let header = response.headers().get(header::RETRY_AFTER);
            header.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(retry_after(Refusal::Busy("busy".into())).as_deref(), Some("1"));
        assert_eq!(retry_after(Refusal::Overloaded).as_deref(), Some("1"));
        // Nobody knows when a descriptor is there again.
        assert_eq!(retry_after(Refusal::Unavailable("none".into())), None);
    }
}
