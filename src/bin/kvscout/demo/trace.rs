//! A recorded workload: the public format of Mooncake's traces, JSON lines.
//!
//! A line is a request: `timestamp` (milliseconds), `input_length` and `output_length` (tokens), and
//! `hash_ids`, one for each 512 tokens of the prompt and one for the rest. Equal ids mean that the prompts
//! are equal up to there. The text itself is not published, so each id stands for 512 tokens that follow
//! from it; replies are text of their own, since nothing says which ids they became.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;

use kvscout::block::TokenId;
use serde::Deserialize;

use super::Failure;
use super::random::Random;
use super::workload::{Millis, Turn, VOCABULARY};
use crate::lines::Lines;

/// Tokens of an id.
const TOKENS: usize = 512;

/// Streams of random numbers for tokens of prompts and of replies.
const PROMPTS: u64 = 2;
const REPLIES: u64 = 3;

/// The longest reply that is generated; no engine goes on for so long.
const LONGEST_REPLY: u32 = 1 << 20;

/// Requests of a trace, in their order.
#[derive(Debug)]
pub(super) struct Trace {
    requests: Vec<Recorded>,
}

/// One request.
#[derive(Debug)]
struct Recorded {
    line: u64,
    /// Since the first request.
    at: Millis,
    session: u64,
    tokens: usize,
    reply: u32,
    ids: Box<[u64]>,
}

#[derive(Debug, Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// The first `most` requests of a file.
    ///
    /// # Errors
    ///
    /// It cannot be read, has no request, or a line of it is wrong; the message names the line.
    pub(super) fn read(path: &str, most: usize) -> Result<Trace, Failure> {
        let file = File::open(path).map_err(|error| format!("--trace {path}: {error}"))?;
        let mut lines = Lines::new(BufReader::new(file));
        let (mut requests, mut sessions) = (Vec::new(), Sessions::default());
        let mut first = None;
        while requests.len() < most {
            let Some((number, text)) =
                lines.next().map_err(|error| format!("--trace {path}: {error}"))?
            else {
                break;
            };
            let wrong = |what: String| format!("--trace {path}, line {number}: {what}");
            let line = text.and_then(parsed).map_err(wrong)?;
            let begin = *first.get_or_insert(line.timestamp);
            let before = requests.last().map_or(0, |last: &Recorded| last.at);
            let Some(at) = line.timestamp.checked_sub(begin).filter(|at| *at >= before) else {
                let (timestamp, before) = (line.timestamp, begin + before);
                return Err(wrong(format!(
                    "timestamp {timestamp} is before {before}, that of the request above; sort the file by time"
                ))
                .into());
            };
            let tokens = line.input_length as usize;
            let session = sessions.of(&line.hash_ids[..tokens / TOKENS]);
            let (reply, ids) = (line.output_length, line.hash_ids.into());
            requests.push(Recorded { line: number, at, session, tokens, reply, ids });
        }
        match requests.is_empty() {
            true => Err(format!("--trace {path}: it has no request").into()),
            false => Ok(Trace { requests }),
        }
    }

    /// How many requests there are.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether an engine with so many blocks can take every prompt and the token that follows.
    ///
    /// # Errors
    ///
    /// A prompt is too long; the message names its line.
    pub(super) fn fits(&self, blocks: u32, block_size: usize) -> Result<(), Failure> {
        // One block of a pool is never given out.
        let most = (blocks as usize - 1) * block_size;
        match self.requests.iter().find(|request| request.tokens >= most) {
            Some(Recorded { line, tokens, .. }) => Err(format!(
                "line {line} of the trace: a prompt of {tokens} tokens does not fit into an engine of \
                 {blocks} blocks; give more by --blocks"
            )
            .into()),
            None => Ok(()),
        }
    }

    /// One request with its tokens.
    pub(super) fn turn(&self, n: usize) -> Turn {
        let Recorded { at, session, tokens, reply, ids, .. } = &self.requests[n];
        let mut token_ids: Vec<TokenId> = Vec::with_capacity(*tokens);
        for &id in ids {
            let mut random = Random::new(id, PROMPTS);
            let left = (tokens - token_ids.len()).min(TOKENS);
            token_ids.extend((0..left).map(|_| random.below(VOCABULARY) as TokenId));
        }
        let mut random = Random::new(n as u64, REPLIES);
        let reply = (0..*reply).map(|_| random.below(VOCABULARY) as TokenId);
        Turn { at: *at, session: *session, token_ids: token_ids.into(), reply: reply.collect() }
    }
}

/// A line, if it is one of the format.
fn parsed(text: &str) -> Result<Line, String> {
    let line: Line = serde_json::from_str(text).map_err(|error| {
        // It is one line that is read: only the column says something.
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        format!("{what} (column {})", error.column())
    })?;
    let Line { input_length, output_length, hash_ids, .. } = &line;
    let ids = (*input_length as usize).div_ceil(TOKENS);
    if *input_length == 0 {
        return Err("input_length is 0; a prompt has at least one token".into());
    }
    if hash_ids.len() != ids {
        let found = hash_ids.len();
        return Err(format!(
            "{found} hash_ids for an input_length of {input_length}; expected {ids}, one for each {TOKENS} tokens"
        ));
    }
    if *output_length > LONGEST_REPLY {
        return Err(format!("output_length is {output_length}; expected up to {LONGEST_REPLY}"));
    }
    Ok(line)
}

/// Which conversation a request belongs to, which a trace does not say: that of the last request whose
/// whole blocks it repeats, if these are more than the first one, which all may share.
#[derive(Debug, Default)]
struct Sessions {
    /// By the last whole block of a request, which stands for all before it.
    by_last: HashMap<u64, u64>,
    next: u64,
}

impl Sessions {
    fn of(&mut self, whole: &[u64]) -> u64 {
        let known = whole.iter().skip(1).rev().find_map(|id| self.by_last.get(id)).copied();
        let session = known.unwrap_or(self.next);
        self.next += u64::from(known.is_none());
        if let [_, .., last] = whole {
            self.by_last.insert(*last, session);
        }
        session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Line, String> {
        parsed(text)
    }

    #[test]
    fn a_line_that_is_wrong_says_why() {
        for (text, said) in [
            ("{\"timestamp\": 1", "EOF while parsing an object (column 15)"),
            ("{\"timestamp\": 1}", "missing field `input_length` (column 16)"),
            (
                r#"{"timestamp": 1, "input_length": -5, "output_length": 1, "hash_ids": []}"#,
                "invalid value: integer `-5`, expected u32 (column 35)",
            ),
            (
                r#"{"timestamp": 1, "input_length": 0, "output_length": 1, "hash_ids": []}"#,
                "input_length is 0",
            ),
            (
                r#"{"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [7]}"#,
                "1 hash_ids for an input_length of 513; expected 2",
            ),
            (
                r#"{"timestamp": 1, "input_length": 1, "output_length": 4294967295, "hash_ids": [7]}"#,
                "output_length is 4294967295",
            ),
        ] {
            let wrong = parse(text).unwrap_err();
            assert!(wrong.starts_with(said), "{wrong}");
        }
    }

    #[test]
    fn equal_ids_are_equal_tokens_and_others_are_not() {
        let recorded = |tokens, ids: &[u64]| Recorded {
            line: 1,
            at: 0,
            session: 0,
            tokens,
            reply: 3,
            ids: ids.into(),
        };
        let requests = vec![recorded(1000, &[1, 2]), recorded(1200, &[1, 3, 4])];
        let trace = Trace { requests };
        let (a, b) = (trace.turn(0), trace.turn(1));
        assert_eq!((a.token_ids.len(), b.token_ids.len(), a.reply.len()), (1000, 1200, 3));
        assert_eq!(a.token_ids[..512], b.token_ids[..512]);
        assert_ne!(a.token_ids[512..520], b.token_ids[512..520]);
        assert_ne!(a.reply, b.reply);
        assert_eq!(a.token_ids, trace.turn(0).token_ids);
        assert!(trace.fits(77, 16).is_ok());
        let wrong = trace.fits(76, 16).unwrap_err().to_string();
        assert!(wrong.contains("a prompt of 1200 tokens does not fit"), "{wrong}");
    }

    #[test]
    fn a_conversation_is_who_repeats_a_whole_prompt_and_more_than_its_beginning() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.of(&[0, 1, 2]), 0);
        assert_eq!(sessions.of(&[0, 5]), 1);
        assert_eq!(sessions.of(&[0, 1, 2, 3]), 0);
        assert_eq!(sessions.of(&[0, 1, 2, 3, 4]), 0);
        assert_eq!(sessions.of(&[0]), 2);
        assert_eq!(sessions.of(&[0, 6]), 3);
        assert_eq!(sessions.of(&[]), 4);
    }
}
