//! Reading a request: in what form it comes and how its answer goes, within what limits.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body as Stream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use super::App;
use super::body::Body;
use super::refusal::HttpError;
use crate::admission::{Overloaded, Room};
use crate::auth::Leave;

/// How much of a refused body is drained, in limits of a body: what a client with a somewhat too
/// long prompt sends.
const DRAIN_LIMITS: usize = 4;

/// For how long a refused body is drained.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Msgpack,
    /// Token ids alone, little-endian, 32 bits each; the other fields are in the address.
    Tokens,
}

impl Form {
    fn of(media: &str) -> Option<Form> {
        let kind = media.split(';').next().unwrap_or_default().trim();
        let is = |other: &str| kind.eq_ignore_ascii_case(other);
        if is("application/json") {
            Some(Form::Json)
        } else if is("application/msgpack") || is("application/x-msgpack") {
            Some(Form::Msgpack)
        } else if is("application/octet-stream") {
            Some(Form::Tokens)
        } else {
            None
        }
    }

    /// The form of an answer: the first one that is asked for and that there is, else that of the body.
    pub(super) fn of_answer(headers: &HeaderMap) -> Form {
        let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let accepted = value(header::ACCEPT).unwrap_or_default().split(',').filter_map(Form::of);
        let asked = accepted.into_iter().find(|form| *form != Form::Tokens);
        match asked.or_else(|| value(header::CONTENT_TYPE).and_then(Form::of)) {
            Some(Form::Msgpack) => Form::Msgpack,
            _ => Form::Json,
        }
    }

    /// The form of a request's body; of those without a name it is JSON.
    fn of_body(headers: &HeaderMap, tokens: bool) -> Result<Form, HttpError> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Form::Json) };
        let value = value.to_str().unwrap_or("(not text)");
        match Form::of(value) {
            Some(form) if tokens || form != Form::Tokens => Ok(form),
            _ => Err(HttpError::unsupported(
                value.split(';').next().unwrap_or_default().trim(),
                match tokens {
                    true => "application/json, application/msgpack or application/octet-stream",
                    false => "application/json or application/msgpack",
                },
            )),
        }
    }
}

/// What a request brings, unread.
#[derive(Debug)]
pub(super) struct Received {
    form: Form,
    bytes: Vec<u8>,
    query: String,
    leave: Leave,
    /// Kept until the answer is there.
    room: Room,
}

impl Received {
    /// The length of its body.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Its fields, whatever its form.
    pub(super) fn body(self) -> Result<(Body, Room), HttpError> {
        let body = match self.form {
            Form::Json => Body::json(self.bytes),
            Form::Msgpack => Body::msgpack(self.bytes)?,
            Form::Tokens => Body::tokens(self.bytes, &self.query)?,
        };
        Ok((body.of(&self.leave), self.room))
    }
}

/// The body of a request, if it is in a form that is read, in time and within the limit; `tokens` alone
/// may be one.
///
/// What is refused for its body is drained first: a client that is still sending reads no answer, and
/// gets none when we close on it.
pub(super) async fn read(app: &App, request: Request, tokens: bool) -> Result<Received, HttpError> {
    let (mut head, mut body) = request.into_parts();
    // Whoever has none was asked for none, which no route may forget.
    let Some(leave) = head.extensions.remove::<Leave>() else {
        return Err(HttpError::internal("the caller is not known"));
    };
    let announced = body.size_hint().exact();
    let form = Form::of_body(&head.headers, tokens);
    let refusal = match &form {
        Err(error) => Some(error.clone()),
        Ok(_) if announced.is_some_and(|length| length > app.max_body as u64) => {
            Some(HttpError::too_large(app.max_body))
        }
        Ok(_) => None,
    };
    if let Some(error) = refusal {
        // Who asks first has sent nothing yet, and need not.
        if !head.headers.contains_key(header::EXPECT) {
            drain(&mut body, app.max_body).await;
        }
        return Err(error);
    }
    let form = form?;
    let mut room = app.admission.room();
    let collected = collect(&mut body, app.max_body, &mut room);
    match tokio::time::timeout(app.read_timeout, collected).await {
        Ok(Ok(Some(bytes))) => {
            let query = head.uri.query().unwrap_or_default().to_owned();
            Ok(Received { form, bytes, query, leave, room })
        }
        Ok(Ok(None)) => {
            drain(&mut body, app.max_body).await;
            Err(HttpError::too_large(app.max_body))
        }
        Ok(Err(overloaded)) => {
            let limit = app.max_body;
            tokio::spawn(async move { drain(&mut body, limit).await });
            Err(overloaded.into())
        }
        Err(_) => Err(HttpError::timeout(app.read_timeout)),
    }
}

/// The answer to a request whose body nobody reads: at once, while what its client is still sending is drained.
pub(super) fn refuse(app: &App, request: Request, error: HttpError) -> Response {
    let (head, mut body) = request.into_parts();
    // Who asks first has sent nothing yet, and need not.
    if !body.is_end_stream() && !head.headers.contains_key(header::EXPECT) {
        let limit = app.max_body;
        tokio::spawn(async move { drain(&mut body, limit).await });
    }
    error.into_response()
}

/// The whole body; none where it goes beyond the limit. What else breaks a body off leaves nobody
/// to read the answer.
async fn collect(
    body: &mut Stream,
    limit: usize,
    room: &mut Room,
) -> Result<Option<Vec<u8>>, Overloaded> {
    let mut bytes = Vec::new();
    while let Some(data) = next_data(body).await {
        let Ok(data) = data else { return Ok(None) };
        if data.len() > limit - bytes.len() {
            return Ok(None);
        }
        room.grow_to(bytes.len() + data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes))
}

/// Reads on and forgets, within bounds: no client should keep us at it.
async fn drain(body: &mut Stream, limit: usize) {
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
async fn next_data(body: &mut Stream) -> Option<Result<Bytes, axum::Error>> {
    let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
    frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn an_answer_has_the_form_that_is_asked_for_or_else_that_of_the_body() {
        for (accept, kind, form) in [
            (None, None, Form::Json),
            (None, Some("application/msgpack"), Form::Msgpack),
            (Some("*/*"), Some("application/x-msgpack; x=y"), Form::Msgpack),
            (Some("application/json"), Some("application/msgpack"), Form::Json),
            (Some("text/html, Application/Msgpack;q=0.9"), None, Form::Msgpack),
            (Some("application/octet-stream"), Some("application/octet-stream"), Form::Json),
        ] {
            let mut headers = HeaderMap::new();
            let given = [(header::ACCEPT, accept), (header::CONTENT_TYPE, kind)];
            for (name, value) in given {
                let value = value.map(HeaderValue::from_static);
                value.map(|value| headers.insert(name, value));
            }
            assert_eq!(Form::of_answer(&headers), form, "{accept:?} {kind:?}");
        }
    }
}
