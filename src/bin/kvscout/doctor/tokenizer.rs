//! Whether a tokenizer of ours gives the engine's ids.

use kvscout::block::TokenId;
use kvscout::tokenize::{Chat, EngineTokenizer, Options, Tokenize, Tokenizer};

use super::diagnosis::{Finding, Level};
use super::engine::Engine;

/// Texts at which tokenizers part: case, spaces, digits, marks that combine, characters of several bytes, and what
/// looks like a special token.
const TEXTS: [&str; 3] = [
    "The quick brown fox isn't 12345678 years old.\n\n\tIt  said: ok!",
    "Zürich e\u{301} 你好，世界 \u{1f468}\u{200d}\u{1f469} \u{a0}नमस्ते",
    "<s><|im_start|><|begin_of_text|>[INST] a </s>",
];

/// A chat with a call and its result, and one with two turns.
const CHATS: [&str; 2] = [
    r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi!"},
        {"role":"assistant","content":"Hello."},{"role":"user","content":"And  now?"}]}"#,
    r#"{"messages":[{"role":"user","content":"How warm is it?"}],"tools":[{"type":"function","function":
        {"name":"warm","description":"the temperature","parameters":{"type":"object","properties":{"n":{"type":"number"}}}}}]}"#,
];

const ADVICE: &str = "give the files that the engine was started with (--tokenizer, --revision), and its chat template \
    beside them; else let kvscout ask the engine itself";

/// Compares the tokenizer at `source` with the engine's `/tokenize`.
pub(super) fn check(source: &str, model: Option<&str>, engine: &Engine) -> Finding {
    let Some(model) = model else {
        return finding(Level::Unknown, "which model to ask for is not known: give --model".into());
    };
    let ours = match Tokenizer::load(model, source, Options::default()) {
        Ok(ours) => ours,
        Err(error) => return finding(Level::Problem, error.to_string()),
    };
    compare(&ours, &EngineTokenizer::new(model, |body| engine.tokenize(body)))
}

fn compare(ours: &dyn Tokenize, engine: &dyn Tokenize) -> Finding {
    let mut questions: Vec<(String, Question)> = Vec::new();
    for (n, text) in TEXTS.into_iter().enumerate() {
        questions.push((format!("text {}", n + 1), Box::new(move |t| t.text(text, true))));
    }
    for (n, chat) in CHATS.into_iter().enumerate() {
        questions.push((format!("chat {}", n + 1), Box::new(move |t| t.chat(&Chat::parse(chat)?))));
    }
    let (mut same, mut refused) = (0, 0);
    for (name, ask) in &questions {
        match (ask(ours), ask(engine)) {
            (Ok(ours), Ok(theirs)) if ours == theirs => same += ours.len(),
            (Ok(ours), Ok(theirs)) => {
                let text = format!("{name} of the comparison: {}", parting(&ours, &theirs));
                return finding(Level::Problem, text);
            }
            // Models without a template, and templates without tools, refuse on both sides.
            (Err(_), Err(_)) => refused += 1,
            (Err(error), Ok(_)) => {
                let text =
                    format!("{name} of the comparison: the engine answers, we do not: {error}");
                return finding(Level::Problem, text);
            }
            (Ok(_), Err(error)) => {
                return finding(Level::Unknown, format!("{name} of the comparison: {error}"));
            }
        }
    }
    if same == 0 {
        let text = "the engine's /tokenize answers nothing that could be compared".to_owned();
        return finding(Level::Unknown, text);
    }
    let of = questions.len();
    let text = format!("{} of {of} samples have the engine's ids, {same} tokens", of - refused);
    finding(Level::Fine, text)
}

type Question = Box<dyn Fn(&dyn Tokenize) -> Result<Vec<TokenId>, kvscout::Error>>;

/// The first token at which two lists part.
fn parting(ours: &[TokenId], theirs: &[TokenId]) -> String {
    let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    let shown = |ids: &[TokenId]| ids.get(at).map_or("the end".to_owned(), TokenId::to_string);
    format!("token {at} is {} here and {} at the engine", shown(ours), shown(theirs))
}

fn finding(level: Level, text: String) -> Finding {
    let advice = if level == Level::Problem { ADVICE } else { "" };
    Finding { check: "tokenizer", level, text, advice }
}

#[cfg(test)]
mod tests {
    use kvscout::Error;

    use super::*;

    /// One id a byte, another one at a place, and none for chats.
    struct Bytes(Option<usize>);

    impl Tokenize for Bytes {
        fn text(&self, text: &str, _: bool) -> Result<Vec<TokenId>, Error> {
            let mut ids: Vec<TokenId> = text.bytes().map(TokenId::from).collect();
            if let Some(id) = self.0.and_then(|at| ids.get_mut(at)) {
                *id += 1000;
            }
            Ok(ids)
        }

        fn chat(&self, _: &Chat) -> Result<Vec<TokenId>, Error> {
            Chat::parse("").map(|_| Vec::new())
        }
    }

    #[test]
    fn the_first_token_that_differs_is_named() {
        let found = compare(&Bytes(Some(5)), &Bytes(None));
        assert_eq!(found.level, Level::Problem);
        assert_eq!(
            found.text,
            "text 1 of the comparison: token 5 is 1117 here and 117 at the engine"
        );
        assert_eq!(parting(&[1, 2], &[1]), "token 1 is 2 here and the end at the engine");
    }

    #[test]
    fn what_both_refuse_is_not_held_against_them() {
        let found = compare(&Bytes(None), &Bytes(None));
        assert_eq!((found.level, found.advice), (Level::Fine, ""));
        assert!(found.text.starts_with("3 of 5 samples"), "{}", found.text);
    }
}
