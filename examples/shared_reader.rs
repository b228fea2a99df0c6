//! A router without an index of its own: `kvscout serve --store` hears the engines and keeps the store, this
//! answers from there. Any number of them may come and go.
//!
//! A line of token ids in, the engines that hold most of that prompt out:
//!
//! `echo 1 2 3 | cargo run --features redis --example shared_reader -- redis://127.0.0.1:6379 my-model`

use std::sync::Arc;
use std::time::Duration;

use kvscout::block::{Prompt, TokenId};
use kvscout::index::redis::{RedisIndex, RedisOptions};
use kvscout::ingest::Trust;
use kvscout::scout::shared::{Reader, ReaderOptions};
use kvscout::scout::{Ranked, Request, Scratch};

/// Reads again and again which engines there are and how far they can be believed. What they hold is read with
/// each prompt.
async fn keep(reader: Arc<Reader>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Err(error) = reader.refresh().await {
            eprintln!("going on with the engines that are known: {error}");
        }
    }
}

/// What a router should know of an engine before it sends a prompt there.
fn line(row: &Ranked<'_>) -> String {
    let cached = row.score.expected_cached_tokens.unwrap_or(0);
    match row.trust {
        Trust::Exact => format!("{}: {cached} tokens cached", row.pod),
        // Such as the store being away, or nobody hearing the engine: an engine like any other, for now.
        Trust::Degraded(why) => format!("{}: unknown ({})", row.pod, why.as_str()),
        other => format!("{}: unknown ({})", row.pod, other.as_str()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(model)) = (arguments.next(), arguments.next()) else {
        return Err("expected the address of a store and a model".into());
    };
    // It needs the permission to read, and no more.
    let options = RedisOptions { only_reads: true, ..RedisOptions::default() };
    let index = Arc::new(RedisIndex::connect(&url, options).await?);
    let reader = Arc::new(Reader::open(index, ReaderOptions::default()).await?);
    reader.refresh().await?;
    tokio::spawn(keep(Arc::clone(&reader)));

    let mut scratch = Scratch::default();
    for prompt in std::io::stdin().lines() {
        let Ok(prompt) = prompt else { break };
        let ids: Result<Vec<TokenId>, _> = prompt.split_whitespace().map(str::parse).collect();
        let Ok(ids) = ids else {
            eprintln!("expected token ids, got {prompt:?}");
            continue;
        };
        // Within the deadline, whatever the store does: then every engine is in the answer as unknown.
        let request = Request::new(&model, Prompt::new(&ids));
        let ranking = reader.score(&request, &mut scratch).await?;
        for row in ranking.iter().take(3) {
            println!("{}", line(&row));
        }
    }
    Ok(())
}
