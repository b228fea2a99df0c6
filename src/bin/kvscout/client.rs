//! What this process asks others over HTTP: the bounds of each kind of question, and why they are so.
//!
//! Operators say who is asked, and nobody else is: no redirect is followed, and no proxy of the environment
//! (`HTTP_PROXY`) learns prompts, tokens or keys. A status is an answer like any other.

use std::time::Duration;

use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, Error, RequestBuilder};

/// What a question may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Until the connection stands, where that has a bound of its own.
    connect: Option<Duration>,
    /// From the beginning to the last byte of the answer.
    whole: Duration,
    /// Bytes of the answer.
    answer: u64,
}

/// An engine's metrics, by the daemon: engines are asked one after the other, so others wait meanwhile.
pub(crate) const METRICS: Bounds =
    Bounds { connect: None, whole: Duration::from_secs(2), answer: ENGINE_ANSWER };

/// An engine's `/tokenize`: longer than a router waits for an answer.
pub(crate) const TOKENIZE: Bounds =
    Bounds { connect: None, whole: Duration::from_secs(5), answer: ENGINE_ANSWER };

/// A daemon's status, for `top`: more bytes than a hundred thousand workers take.
pub(crate) const STATUS: Bounds =
    Bounds { connect: None, whole: Duration::from_secs(5), answer: 64 << 20 };

/// More than the metrics of a busy engine take, or two million token ids.
const ENGINE_ANSWER: u64 = 16 << 20;

impl Bounds {
    /// Another replica's snapshot of so many bytes at most. Whoever is not there must not keep a start waiting; a
    /// gigabyte at 10 MB/s takes less than two minutes.
    pub(crate) const fn of_snapshot(most_bytes: u64) -> Bounds {
        let (connect, whole) = (Duration::from_secs(10), Duration::from_secs(180));
        Bounds { connect: Some(connect), whole, answer: most_bytes }
    }

    /// An engine, by a person who waits so long.
    pub(crate) const fn of_engine(patience: Duration) -> Bounds {
        Bounds { connect: None, whole: patience, answer: ENGINE_ANSWER }
    }
}

/// Who asks.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    bounds: Bounds,
}

impl Client {
    /// One that asks within these bounds.
    pub(crate) fn new(bounds: Bounds) -> Client {
        let config = Agent::config_builder()
            .timeout_connect(bounds.connect)
            .timeout_global(Some(bounds.whole))
            .max_redirects(0)
            .proxy(None)
            .http_status_as_error(false)
            .build();
        Client { agent: config.into(), bounds }
    }

    /// Asks for what is at a URL, and shows a token if one is wanted.
    pub(crate) fn get(&self, url: &str, token: Option<&str>) -> Result<Answer, Error> {
        showing(self.agent.get(url), token).call().map(|response| self.answer(response))
    }

    /// Sends JSON to a URL.
    pub(crate) fn post(&self, url: &str, json: &str, token: Option<&str>) -> Result<Answer, Error> {
        let request = self.agent.post(url).header("content-type", "application/json");
        showing(request, token).send(json).map(|response| self.answer(response))
    }

    fn answer(&self, response: Response<Body>) -> Answer {
        Answer { response, most: self.bounds.answer }
    }
}

/// A status that is none of those hoped for, in words.
pub(crate) fn unexpected(status: StatusCode) -> String {
    let number = status.as_u16();
    match status.is_redirection() {
        true => format!(
            "status {number}: it sends us elsewhere, where nothing is asked; give the address itself"
        ),
        false => format!("status {number}"),
    }
}

fn showing<B>(request: RequestBuilder<B>, token: Option<&str>) -> RequestBuilder<B> {
    match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    }
}

/// An answer whose body is not read yet.
#[derive(Debug)]
pub(crate) struct Answer {
    response: Response<Body>,
    most: u64,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The whole body.
    ///
    /// # Errors
    ///
    /// It is larger than it may be, no text, or does not come in time.
    pub(crate) fn text(mut self) -> Result<String, Error> {
        self.response.body_mut().with_config().limit(self.most).read_to_string()
    }

    /// The body as it comes; one that is larger than it may be ends with an error.
    pub(crate) fn reader(&mut self) -> impl std::io::Read + '_ {
        self.response.body_mut().with_config().limit(self.most).reader()
    }
}
