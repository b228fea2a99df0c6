//! The commands of a page: what stands in its `sh` and `console` blocks.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::path::{Path, PathBuf};

/// A command of a page, with what a `console` block shows of its output.
#[derive(Debug)]
pub(crate) struct Command {
    /// As it stands there, over one or more lines.
    pub(crate) text: String,
    /// The lines below it.
    pub(crate) output: String,
}

/// Something of a page, in its order.
#[derive(Debug)]
pub(crate) enum Item {
    Command(Command),
    /// A block that is named by the line before: its file's name and content.
    File(String, String),
    /// A block of this language.
    Other(String, String),
}

/// The top of the repository.
fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every page: `README.md`, `CONTRIBUTING.md` and those of `docs`.
pub(crate) fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    let docs = fs::read_dir(top().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let is_page = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "md");
    let name = |path: PathBuf| format!("docs/{}", path.file_name().unwrap().to_str().unwrap());
    pages.extend(docs.filter(is_page).map(name));
    pages.sort();
    pages
}

pub(crate) fn read(page: &str) -> String {
    fs::read_to_string(top().join(page)).unwrap()
}

/// What a page has in blocks of code.
pub(crate) fn items(page: &str) -> Vec<Item> {
    let (mut items, mut before) = (Vec::new(), "");
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            before = if line.is_empty() { before } else { line };
            continue;
        };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        match language {
            "sh" => items.extend(commands(&body, false)),
            "console" => items.extend(commands(&body, true)),
            language => {
                let name = before.strip_prefix('`').and_then(|name| name.strip_suffix("`:"));
                let body = body.join("\n");
                items.push(match name {
                    Some(name) => Item::File(name.to_owned(), body),
                    None => Item::Other(language.to_owned(), body),
                });
            }
        }
        before = "";
    }
    items
}

/// The commands of a block; in a `console` those behind a `$`, what is between them is their output.
fn commands(lines: &[&str], console: bool) -> Vec<Item> {
    let mut commands: Vec<Command> = Vec::new();
    let mut open = false;
    for line in lines {
        let begins = match console {
            true => line.strip_prefix("$ "),
            false => Some(*line).filter(|line| !line.trim().is_empty()),
        };
        match (open, begins, commands.last_mut()) {
            (true, _, Some(last)) => last.text += &format!("\n{line}"),
            (false, Some(text), _) => {
                commands.push(Command { text: text.to_owned(), output: String::new() });
            }
            (false, None, Some(last)) => last.output += &format!("{line}\n"),
            (_, None, None) | (true, _, None) => {}
        }
        open = commands.last().is_some_and(|last| last.output.is_empty() && is_open(&last.text));
    }
    commands.into_iter().map(Item::Command).collect()
}

/// Whether a shell would wait for more.
fn is_open(text: &str) -> bool {
    let quotes = text.matches('\'').count() % 2 == 1;
    let end = text.trim_end();
    quotes || end.ends_with('\\') || end.ends_with('|') || end.ends_with("&&")
}

/// A command without comment and superfluous space, for lists.
pub(crate) fn plain(text: &str) -> String {
    let without = text.split(" #").next().unwrap_or_default();
    without.replace("\\\n", " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The files that a page links to, as they stand there, from where the page is.
pub(crate) fn links(page: &str) -> Vec<String> {
    let text = read(page);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let is_file = |target: &&str| !target.contains("://") && !target.starts_with('#');
    let mut links: Vec<String> = targets
        .filter(is_file)
        .map(|target| target.split('#').next().unwrap_or_default().to_owned())
        .collect();
    links.sort();
    links.dedup();
    links
}

/// The folder of a page.
pub(crate) fn folder(page: &str) -> PathBuf {
    top().join(Path::new(page).parent().unwrap())
}
