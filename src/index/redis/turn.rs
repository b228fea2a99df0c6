//! Several writers: who applies a worker's batches, each of them once; and who is alive.

use std::collections::HashSet;
use std::time::Instant;

use super::chain::{HELD, TAG};
use super::local::Table;
use super::read::present;
use super::reply::{bytes, damaged, int, list, value};
use super::sweep::Leaving;
use super::{Batch, RedisIndex, command, next, script};
use crate::block::WorkerId;
use crate::error::Error;
use crate::index::{Applied, Change};

/// Which batch of a worker's stream it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The life of the worker's publisher; a later one has a greater number, at most 2^53.
    pub life: u64,
    /// The batch's number in that life, at most 2^53.
    pub seq: u64,
}

/// What [`RedisIndex::apply_once`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Once {
    /// It applied the batch.
    Applied(Applied),
    /// The batch, or a later one of the same life, has been applied before.
    Repeated,
    /// A batch of a later life has been applied before.
    Outlived,
    /// Another owner applies this worker's batches, until it has not for a lease.
    Elsewhere(String),
}

impl RedisIndex {
    /// Like [`Index::apply`](crate::index::Index::apply), once for each number of the worker's stream, whoever calls it: of
    /// several owners the one that has the worker's lease applies, another takes over when that
    /// has expired. What a writer applied in part before it died is not applied again. The first
    /// batch of a later life takes the place of all that the earlier one held.
    ///
    /// # Errors
    ///
    /// As [`Index::apply`](crate::index::Index::apply). After an error the batch may be applied in
    /// part; the same call again does the rest.
    pub async fn apply_once(
        &self,
        worker: WorkerId,
        turn: Turn,
        changes: &[Change<'_>],
    ) -> Result<Once, Error> {
        let member = self.member(worker)?;
        let key = self.keys.worker(member.worker);
        let (life, seq) = (turn.life.to_string(), turn.seq.to_string());
        let owner = self.options.owner.clone().unwrap_or_default();
        let lease = self.options.lease.as_millis().to_string();
        let birth = self.opened().await?.birth.clone();
        let mut renewed: &[u8] = b"0";
        loop {
            let args: [&[u8]; 6] = [
                life.as_bytes(),
                seq.as_bytes(),
                owner.as_bytes(),
                lease.as_bytes(),
                renewed,
                &birth,
            ];
            let mut batch = Batch::new();
            batch.script(&script::BEGIN, &[&key], &args);
            let reply = list(&key, value(&key, next(&mut self.send(batch).await?))?)?;
            let reply: [redis::Value; 2] = reply.try_into().map_err(|_| damaged(&key, "answer"))?;
            let [what, other] = reply;
            match &bytes(&key, what)?[..] {
                b"go" => break,
                b"again" => return Ok(Once::Repeated),
                b"old" => return Ok(Once::Outlived),
                b"other" => {
                    let other = bytes(&key, other)?;
                    return Ok(Once::Elsewhere(String::from_utf8_lossy(&other).into_owned()));
                }
                b"renew" if renewed == b"0" => {
                    self.retire(&member, Leaving::Tier(None)).await?;
                    renewed = b"1";
                }
                _ => return Err(damaged(&key, "answer")),
            }
        }
        let applied = self.apply_stamped(&member, changes, Some(turn.seq)).await?;
        let mut batch = Batch::new();
        let args: [&[u8]; 3] = [life.as_bytes(), seq.as_bytes(), owner.as_bytes()];
        batch.script(&script::DONE, &[&key], &args);
        value(&key, next(&mut self.send(batch).await?))?;
        Ok(Once::Applied(applied))
    }

    /// Says that this owner lives. To be called several times in each
    /// [`owner_ttl`](super::RedisOptions::owner_ttl); when it is not, lookups leave out the workers
    /// that the owner assigned. It also notices a store that was lost in part and made anew: then workers
    /// need homes again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) without a server.
    pub async fn heartbeat(&self) -> Result<(), Error> {
        let Some(owner) = &self.options.owner else { return Ok(()) };
        let key = self.keys.owner(owner);
        let ttl = self.options.owner_ttl.as_millis().to_string();
        let mut batch = Batch::new();
        batch.push(&key, command("SET", &[&key, b"1", b"PX", ttl.as_bytes()]));
        let recall = self.recall(&mut batch);
        let mut replies = self.send(batch).await?;
        value(&key, next(&mut replies))?;
        self.recalled(recall, &mut replies).map(drop)
    }

    /// Puts off the end of all that a worker holds. To be called several times in each
    /// [`ttl`](super::RedisOptions::ttl), for each worker of this owner.
    ///
    /// # Errors
    ///
    /// [`UnknownWorker`](crate::ErrorKind::UnknownWorker) for a worker without a home,
    /// [`Unavailable`](crate::ErrorKind::Unavailable) without a server.
    pub async fn refresh(&self, worker: WorkerId) -> Result<(), Error> {
        let member = self.member(worker)?;
        let groups = self.opened().await?.groups;
        let mut keys =
            vec![self.keys.worker(member.worker), self.keys.share(member.space, member.worker)];
        for group in 0..groups {
            keys.push(self.keys.meanings(member.vocabulary, group));
            keys.push(self.keys.unplaced(member.vocabulary, group));
            keys.push(self.keys.waiting(member.vocabulary, group));
        }
        for slot in self.own_slots(&member) {
            let held = self.keys.held(member.space, slot);
            keys.push(held.clone());
            let mut cursor = b"0".to_vec();
            loop {
                let (next, members) = self.scan("SSCAN", &held, &cursor).await?;
                for one in list(&held, members)? {
                    let one = bytes(&held, one)?;
                    if let (Some(tag), Some(run), HELD) =
                        (one.first_chunk::<TAG>(), one.last_chunk::<8>(), one.len())
                    {
                        keys.push(self.keys.run(tag, run));
                        keys.push(self.keys.names(tag, run));
                    }
                }
                self.put_off(&mut keys).await?;
                cursor = next;
                if cursor == b"0" {
                    break;
                }
            }
        }
        self.put_off(&mut keys).await
    }

    async fn put_off(&self, keys: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        let ttl = self.ttl();
        let mut batch = Batch::new();
        keys.iter().for_each(|key| batch.push(key, command("EXPIRE", &[key, &ttl])));
        let replies = self.send(batch).await?;
        for (reply, key) in replies.zip(keys.drain(..)) {
            value(&key, reply)?;
        }
        Ok(())
    }

    /// Owners of a table's workers of which it is time to ask whether they live.
    pub(super) fn due(&self, table: &Table) -> Vec<String> {
        let local = self.local.lock();
        let mut owners: Vec<&String> = table.workers.values().map(|record| &record.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        let every = self.options.owner_ttl / 4;
        let is_due = |owner: &&String| {
            !owner.is_empty()
                && local.owners.get(*owner).is_none_or(|(_, asked)| asked.elapsed() >= every)
        };
        owners.into_iter().filter(is_due).cloned().collect()
    }

    pub(super) fn ask_owners(&self, batch: &mut Batch, owners: &[String]) {
        for owner in owners {
            let key = self.keys.owner(owner);
            batch.push(&key, command("EXISTS", &[&key]));
        }
    }

    pub(super) fn heard(
        &self,
        owners: Vec<String>,
        replies: &mut super::Replies,
    ) -> Result<(), Error> {
        for owner in owners {
            let key = self.keys.owner(&owner);
            // While an owner's key cannot be asked for, it counts as when last heard of.
            let Some(reply) = present(next(replies)) else { continue };
            let lives = int(&key, value(&key, reply)?)? == 1;
            self.local.lock().owners.insert(owner, (lives, Instant::now()));
        }
        Ok(())
    }

    /// The owners that are known to be gone.
    pub(super) fn gone(&self) -> HashSet<String> {
        let local = self.local.lock();
        let gone = local.owners.iter().filter(|(_, (lives, _))| !lives);
        gone.map(|(owner, _)| owner.clone()).collect()
    }
}
