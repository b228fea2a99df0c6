//! What each engine holds after each of its batches, written down before the batch is published.

use std::collections::HashMap;
use std::sync::Mutex;

use super::cache::Cache;
use super::prompts::Question;
use super::wire::Event;

/// The answers to all questions, for each engine, life and batch.
pub(crate) struct Oracle {
    questions: usize,
    engines: Vec<Mutex<Vec<Life>>>,
}

/// Matched blocks after each batch, question by question.
#[derive(Default)]
struct Life {
    rows: Vec<u8>,
}

impl Oracle {
    pub(crate) fn new(questions: usize, engines: usize) -> Oracle {
        let engines = (0..engines).map(|_| Mutex::new(vec![Life::default()])).collect();
        Oracle { questions, engines }
    }

    /// The number of an engine's present life.
    pub(crate) fn life(&self, engine: usize) -> usize {
        self.engines[engine].lock().unwrap().len() - 1
    }

    pub(crate) fn begin_life(&self, engine: usize) {
        self.engines[engine].lock().unwrap().push(Life::default());
    }

    fn record(&self, engine: usize, row: &[u8]) {
        let mut lives = self.engines[engine].lock().unwrap();
        lives.last_mut().unwrap().rows.extend(row);
    }

    /// What the engine held of a question's prompt as of a batch, in each of its lives from `first`
    /// on; `None` in a life that has not had that batch.
    pub(crate) fn held(
        &self,
        engine: usize,
        first: usize,
        question: usize,
        as_of: Option<u64>,
    ) -> Vec<Option<u32>> {
        let lives = self.engines[engine].lock().unwrap();
        let held = |life: &Life| match as_of {
            None => Some(0),
            Some(seq) => {
                let at = usize::try_from(seq).unwrap() * self.questions + question;
                life.rows.get(at).map(|&matched| u32::from(matched))
            }
        };
        lives[first..].iter().map(held).collect()
    }
}

/// Keeps the present answers of one engine: only the questions that a batch touches are answered anew.
pub(crate) struct Answers {
    /// Questions by the names of their blocks.
    asked_in: HashMap<u64, Vec<usize>>,
    names: Vec<Vec<u64>>,
    row: Vec<u8>,
}

impl Answers {
    pub(crate) fn new(questions: &[Question]) -> Answers {
        let mut asked_in = HashMap::<u64, Vec<usize>>::new();
        for (number, question) in questions.iter().enumerate() {
            for name in &question.names {
                asked_in.entry(*name).or_default().push(number);
            }
        }
        let names = questions.iter().map(|question| question.names.clone()).collect();
        Answers { asked_in, names, row: vec![0; questions.len()] }
    }

    /// Writes down what the cache holds after these events; they are those of the next batch.
    pub(crate) fn record(
        &mut self,
        oracle: &Oracle,
        engine: usize,
        cache: &Cache,
        events: &[Event],
    ) {
        let mut touched = vec![false; self.row.len()];
        let mut touch = |name: &u64| {
            self.asked_in.get(name).into_iter().flatten().for_each(|&question| {
                touched[question] = true;
            });
        };
        for event in events {
            match event {
                Event::Stored(blocks) => blocks.iter().for_each(|block| touch(&block.name)),
                Event::Removed(name) => touch(name),
                Event::Cleared => {
                    touched.fill(true);
                    break;
                }
            }
        }
        for (question, names) in self.names.iter().enumerate().filter(|(at, _)| touched[*at]) {
            let matched = names.iter().take_while(|name| cache.holds(**name)).count();
            self.row[question] = u8::try_from(matched).unwrap();
        }
        oracle.record(engine, &self.row);
    }

    /// Nothing is held.
    pub(crate) fn clear(&mut self) {
        self.row.fill(0);
    }
}
