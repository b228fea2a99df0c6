//! The `/tokenize` of a model's engines.

use std::sync::atomic::{AtomicUsize, Ordering};

use kvscout::Error;
use kvscout::block::TokenId;
use kvscout::tokenize::{EngineTokenizer, Tokenize};
use parking_lot::{Mutex, RwLock};
use ureq::http::StatusCode;

use super::Refusal;
use crate::client::{self, Client};

/// How many engines are asked for one text, should the ones before not answer.
const MOST_ASKED: usize = 3;

/// More of an engine's own words says no more.
const MAX_REASON: usize = 300;

/// The engines of one model.
#[derive(Debug)]
pub(super) struct Engines {
    model: String,
    configured: Vec<String>,
    /// Those of engines that come and go.
    discovered: RwLock<Vec<String>>,
    /// Who is asked first, so that none does all the work.
    next: AtomicUsize,
    client: Client,
}

/// Why an engine gives no ids.
enum Failed {
    /// The text or chat is wrong: every other engine says the same.
    Refused(String),
    /// Another one may answer.
    Unavailable(String),
}

impl Engines {
    /// The engines at these bases.
    pub(super) fn new<'a>(model: &str, bases: impl Iterator<Item = &'a str>) -> Engines {
        Engines {
            model: model.to_owned(),
            configured: bases.map(url).collect(),
            discovered: RwLock::default(),
            next: AtomicUsize::new(0),
            client: Client::new(client::TOKENIZE),
        }
    }

    /// One more engine that was discovered, or one less.
    pub(super) fn set(&self, base: &str, is_there: bool) {
        let url = url(base);
        let mut urls = self.discovered.write();
        match (is_there, urls.iter().position(|known| *known == url)) {
            (true, None) => urls.push(url),
            (false, Some(at)) => drop(urls.remove(at)),
            _ => {}
        }
    }

    /// What `ask` wants to know of an engine.
    pub(super) fn tokens(
        &self,
        ask: impl FnOnce(&dyn Tokenize) -> Result<Vec<TokenId>, Error>,
    ) -> Result<Vec<TokenId>, Refusal> {
        let refused = Mutex::new(None);
        let engine = EngineTokenizer::new(&self.model, |body| {
            self.post(body).map_err(|failed| match failed {
                Failed::Refused(reason) => {
                    *refused.lock() = Some(reason);
                    Error::unavailable("refused")
                }
                Failed::Unavailable(reason) => Error::unavailable(reason),
            })
        });
        let tokens = ask(&engine);
        match refused.into_inner() {
            Some(reason) => Err(Refusal::Invalid(reason)),
            None => Ok(tokens?),
        }
    }

    fn post(&self, body: &str) -> Result<String, Failed> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut reasons = Vec::new();
        let mut urls = [&self.configured[..], &self.discovered.read()].concat();
        if urls.is_empty() {
            return Err(Failed::Unavailable("no engine of this model is there".to_owned()));
        }
        let first = first % urls.len();
        urls.rotate_left(first);
        for url in urls.iter().take(MOST_ASKED) {
            match self.post_to(url, body) {
                Err(Failed::Unavailable(reason)) => reasons.push(format!("{url}: {reason}")),
                done => return done,
            }
        }
        Err(Failed::Unavailable(format!("no engine tokenizes: {}", reasons.join("; "))))
    }

    fn post_to(&self, url: &str, body: &str) -> Result<String, Failed> {
        let unavailable = |error: ureq::Error| Failed::Unavailable(error.to_string());
        let answer = self.client.post(url, body, None).map_err(unavailable)?;
        let status = answer.status();
        let text = answer.text().map_err(unavailable)?;
        match status {
            StatusCode::OK => Ok(text),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                let line = text.chars().filter(|c| !c.is_control()).take(MAX_REASON);
                Err(Failed::Refused(format!("the engine says: {}", line.collect::<String>())))
            }
            // An older engine, one that serves something else, or one that is ill.
            status => Err(Failed::Unavailable(client::unexpected(status))),
        }
    }
}

fn url(base: &str) -> String {
    format!("{}/tokenize", base.trim_end_matches('/'))
}
