//! Two routers, one store: what one learns of an engine, the other answers with.
//!
//! `cargo run --features redis --example shared_index -- redis://127.0.0.1:6379`

use kvscout::block::{
    BlockSize, Digest, Group, Name, Prompt, Shape, SpaceId, Tier, TokenId, VocabularyId, WorkerId,
};
use kvscout::hash::content::DigestKey;
use kvscout::index::redis::{RedisIndex, RedisOptions};
use kvscout::index::{Block, BlockSource, Change, Home, Index, Matches, Parent, Query, Store};

const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);
const MODEL: SpaceId = SpaceId(0);

/// A prompt as an index asks for it: its blocks' contents under the store's key.
struct Blocks(Vec<Digest>);

impl Blocks {
    fn of(prompt: &Prompt<'_>, key: &DigestKey) -> Blocks {
        let mut digests = vec![Digest(0); SHAPE.blocks_in(prompt.token_ids.len())];
        key.plain(prompt.token_ids, SHAPE.size.tokens(), &mut digests);
        Blocks(digests)
    }
}

impl BlockSource for Blocks {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn digests(&mut self, from: usize, _least: usize) -> &[Digest] {
        &self.0[from..]
    }

    fn name(&mut self, _: VocabularyId, _: usize) -> Option<Name> {
        None
    }
}

async fn router(url: &str) -> Result<RedisIndex, kvscout::Error> {
    let options = RedisOptions { namespace: "example".to_owned(), ..RedisOptions::default() };
    let index = RedisIndex::connect(url, options).await?;
    index.name_space(MODEL, "tenant/model");
    Ok(index)
}

#[tokio::main]
async fn main() -> Result<(), kvscout::Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let (here, there) = (router(&url).await?, router(&url).await?);
    let tokens: Vec<TokenId> = (0..1000).collect();
    let prompt = Prompt::new(&tokens);

    // One router follows an engine and stores what that has announced.
    let engine = WorkerId(0);
    here.name_worker(engine, "tenant/pod-1/0");
    here.assign(engine, Home { space: MODEL, vocabulary: VocabularyId(0) }).await?;
    let contents = Blocks::of(&prompt, &here.digest_key().await?).0;
    let named = (1..).zip(contents).map(|(n, digest)| (Name(n), Some(digest)));
    let blocks: Vec<Block> = named.map(|(name, digest)| Block { name, digest }).collect();
    let (group, tier, parent) = (Group(0), Tier::Gpu, Parent::Root);
    let store = Store { shape: SHAPE, group, tier, parent, blocks: &blocks };
    here.apply(engine, &[Change::Store(store)]).await?;

    // The other has never heard of the engine, and answers all the same.
    let mut asked = Blocks::of(&prompt, &there.digest_key().await?);
    let query = Query { space: MODEL, shape: SHAPE, candidates: None, spans: false };
    let mut matches = Matches::default();
    there.lookup(&query, &mut asked, &mut matches).await?;
    for found in matches.iter() {
        let worker = there.worker_name(found.worker).unwrap_or_default();
        println!("{worker} holds {} of {} blocks", found.leading[0], asked.len());
    }
    here.remove(engine).await
}
