//! The requests: conversations of many users with a few applications.

use std::sync::Arc;

use kvscout::block::TokenId;

use super::random::Random;

/// Virtual time since the start.
pub(super) type Millis = u64;

/// Requests of an engine's fleet, for each engine.
const REQUESTS_PER_SECOND: u64 = 4;
const APPLICATIONS: u64 = 4;
pub(super) const VOCABULARY: u64 = 32_000;
const TURNS: (u64, u64) = (2, 8);
/// Mean pause between a user's turns, beyond the shortest.
const THINKING: Millis = 15_000;
const SHORTEST_PAUSE: Millis = 6_000;
const SYSTEM_PROMPT: (u64, u64) = (400, 1600);
const MESSAGE: (u64, u64) = (20, 300);
const REPLY: (u64, u64) = (20, 250);
/// One session in so many is an agent's.
const AGENTS: u64 = 4;
/// How many questions an agent asks at once, each in the same context.
const QUESTIONS: (u64, u64) = (2, 4);

/// One request: a turn of a conversation.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) at: Millis,
    /// Which conversation it belongs to.
    pub(super) session: u64,
    /// System prompt, the conversation so far, and the user's new message.
    pub(super) token_ids: Arc<[TokenId]>,
    /// What the engine will generate.
    pub(super) reply: Arc<[TokenId]>,
}

/// The first `requests` turns, by time, of conversations that begin at random: every application
/// has a system prompt of its own, popular ones have most users, and every turn repeats the
/// conversation before it. Agents ask several questions at once and go on from the first answer.
/// Applications and users grow with the number of engines.
pub(super) fn turns(seed: u64, engines: usize, requests: usize) -> Vec<Turn> {
    let engines = engines as u64;
    let mut random = Random::new(seed, 0);
    let applications: Vec<Vec<TokenId>> =
        (0..APPLICATIONS * engines).map(|_| text(&mut random, SYSTEM_PROMPT)).collect();

    let mut turns: Vec<Turn> = Vec::new();
    let per_turn = 1000 * (AGENTS - 1 + QUESTIONS.0.midpoint(QUESTIONS.1)) / AGENTS;
    let per_session = per_turn * TURNS.0.midpoint(TURNS.1);
    let between_sessions = per_session / (REQUESTS_PER_SECOND * engines);
    let mut begins = 0;
    for session in 0.. {
        // No session that begins later can contribute.
        let earlier = turns.iter().filter(|turn| turn.at < begins).count();
        if earlier >= requests {
            break;
        }
        let application = &applications[random.zipf(applications.len() as u64) as usize];
        let mut conversation = application.clone();
        let mut at = begins;
        let is_agent = random.below(AGENTS) == 0;
        for _ in 0..random.between(TURNS.0, TURNS.1) {
            let questions = if is_agent { random.between(QUESTIONS.0, QUESTIONS.1) } else { 1 };
            for _ in 1..questions {
                let token_ids = [&conversation[..], &text(&mut random, MESSAGE)].concat();
                let reply = text(&mut random, REPLY).into();
                turns.push(Turn { at, session, token_ids: token_ids.into(), reply });
            }
            conversation.extend(text(&mut random, MESSAGE));
            let reply = text(&mut random, REPLY);
            let token_ids = Arc::from(&conversation[..]);
            conversation.extend(&reply);
            turns.push(Turn { at, session, token_ids, reply: reply.into() });
            at += SHORTEST_PAUSE + random.gap(THINKING);
        }
        begins += random.gap(between_sessions);
    }
    turns.sort_by_key(|turn| (turn.at, turn.session));
    turns.truncate(requests);
    turns
}

fn text(random: &mut Random, (least, most): (u64, u64)) -> Vec<TokenId> {
    let length = random.between(least, most);
    (0..length).map(|_| random.below(VOCABULARY) as TokenId).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_requests() {
        let first = |seed| {
            turns(seed, 2, 50)
                .into_iter()
                .map(|t| (t.at, t.session, t.token_ids))
                .collect::<Vec<_>>()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn every_turn_repeats_the_conversation_before_it() {
        let turns = turns(1, 4, 500);
        assert_eq!(turns.len(), 500);
        let mut followed = 0;
        for (n, turn) in turns.iter().enumerate() {
            let mut earlier = turns[..n]
                .iter()
                .filter(|t| t.session == turn.session && t.at < turn.at)
                .peekable();
            if earlier.peek().is_some() {
                let continues = |before: &Turn| {
                    turn.token_ids.starts_with(&[&before.token_ids[..], &before.reply[..]].concat())
                };
                assert!(earlier.any(continues), "turn {n}");
                followed += 1;
            }
        }
        assert!(followed > 100, "{followed}");
    }
}
