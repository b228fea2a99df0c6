//! A router in one file: it applies what engines announce and sends each prompt to the engine that
//! holds most of it, unless that one is busy (`cargo run --example route`).

use std::collections::HashMap;

use kvscout::block::{Prompt, TokenId, WorkerId};
use kvscout::score;
use kvscout::scout::{Options, Ranked, Registration, Request, Scout, Scratch};

struct Router {
    scout: Scout,
    scratch: Scratch,
    /// Requests in flight at each worker: the router's own business.
    in_flight: HashMap<WorkerId, u32>,
}

impl Router {
    /// Where to send a prompt, and how many of its tokens are already there.
    fn route(
        &mut self,
        model: &str,
        token_ids: &[TokenId],
    ) -> Result<(String, u32), kvscout::Error> {
        let request = Request::new(model, Prompt::new(token_ids));
        let ranked = self.scout.score(&request, &mut self.scratch)?;
        let value = |r: &Ranked<'_>| {
            let load = f64::from(*self.in_flight.get(&r.worker).unwrap_or(&0)) / 8.0;
            score::combine(r.score.ratio, load, 0.5)
        };
        let best = ranked
            .iter()
            .max_by(|a, b| value(a).total_cmp(&value(b)))
            .expect("a model that is served has a worker");
        *self.in_flight.entry(best.worker).or_default() += 1;
        Ok((best.pod.to_string(), best.score.expected_cached_tokens.unwrap_or(0)))
    }
}

fn main() -> Result<(), kvscout::Error> {
    let scout = Scout::new(Options::default())?;
    let a = scout.register(Registration::new("engine-a", "tiny"))?;
    scout.register(Registration::new("engine-b", "tiny"))?;

    // What vLLM 0.33 sends when engine-a has computed the tokens 0..4 with blocks of 4, as it comes
    // from its ZeroMQ socket (feature `zmq` receives it; here it is written out).
    let payload = [
        &b"\x93\xcb\x41\xd9\x54\xfc\x40\x10\0\0\x91\x87\xa4type\xabBlockStored"[..],
        b"\xacblock_hashes\x91\x07\xb1parent_block_hash\xc0\xa9token_ids\x94\0\x01\x02\x03",
        b"\xaablock_size\x04\xa6medium\xa3GPU\xaaextra_keys\x91\xc0\0",
    ]
    .concat();
    scout.apply(a, 0, &payload)?;

    let mut router = Router { scout, scratch: Scratch::default(), in_flight: HashMap::new() };
    for prompt in [[0, 1, 2, 3, 9], [5, 6, 7, 8, 9], [0, 1, 2, 3, 4]] {
        let (pod, cached) = router.route("tiny", &prompt)?;
        println!("{prompt:?} -> {pod}, {cached} tokens cached");
    }
    Ok(())
}
