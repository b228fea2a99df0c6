//! A worker's part of the store as the copy of what somebody holds in memory: begun from scratch, then
//! kept up batch by batch, each on top of exactly the one before.
//!
//! Where [`apply_once`](RedisIndex::apply_once) takes lives from its caller, here the store gives them out: what
//! two owners have to agree on is only what their engine said, its batches' numbers and [`Mark`]s.

use super::reply::{bytes, damaged, fields, int, list, value};
use super::sweep::Leaving;
use super::{Batch, RedisIndex, command, next, script};
use crate::block::WorkerId;
use crate::error::{Error, ErrorKind};
use crate::index::{Applied, Change, Home};

/// A batch, by its number and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its number, at most 2^53.
    pub seq: u64,
    /// A hash of its bytes, so that two publishers' batches of one number are told apart.
    pub digest: u64,
}

/// How far a worker's part of the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which life it is, counted by the store.
    pub life: u64,
    /// The last batch that is in it; `None` before the first.
    pub at: Option<Mark>,
    /// Whether a batch, or the beginning, was not applied to its end.
    pub is_torn: bool,
    /// Who wrote last.
    pub owner: String,
    /// Whether that owner still has the lease.
    pub is_leased: bool,
    /// What its vocabulary is called; empty if nobody said.
    pub vocabulary: String,
}

/// What became of a batch, or of a new beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It was applied.
    Applied(Applied),
    /// It had been applied before.
    Repeated,
    /// Another owner writes this worker's part.
    Elsewhere(String),
    /// The store does not have what comes before it: the worker's part has to be begun anew.
    Apart,
}

/// A worker's part that is being stored from scratch.
#[derive(Debug)]
#[must_use = "a part that was not ended is nobody's to go on with"]
pub struct Anew {
    worker: WorkerId,
    life: u64,
}

impl Anew {
    /// Which life it is, counted by the store.
    pub fn life(&self) -> u64 {
        self.life
    }
}

fn number(mark: Option<Mark>) -> Vec<u8> {
    mark.map_or_else(|| b"-1".to_vec(), |mark| mark.seq.to_string().into_bytes())
}

fn digest(mark: Option<Mark>) -> Vec<u8> {
    mark.map_or_else(Vec::new, |mark| format!("{:016x}", mark.digest).into_bytes())
}

/// The owner of parts that are being stored from scratch; it never lives.
const UNDER_WAY: &str = "!";

/// A part of which nothing was applied yet, and that was begun.
const NOTHING: u64 = 0;

impl RedisIndex {
    /// How far a worker's part is; `None` if nobody ever wrote it. The worker needs no home here.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server.
    pub async fn progress(&self, worker: WorkerId) -> Result<Option<Progress>, Error> {
        let key = self.keys.worker(self.worker(worker).await?);
        let mut batch = Batch::reading();
        batch.push(&key, command("HGETALL", &[&key]));
        batch.push(&key, command("TIME", &[]));
        let mut replies = self.send(batch).await?;
        let found = fields(&key, value(&key, next(&mut replies))?)?;
        let time = list(&key, value(&key, next(&mut replies))?)?;
        let text = |name: &[u8]| {
            let value = found.iter().find(|(field, _)| field == name).map(|(_, value)| value);
            value.and_then(|value| std::str::from_utf8(value).ok())
        };
        let Some(life) = text(b"life").and_then(|life| life.parse().ok()) else { return Ok(None) };
        let seq = text(b"seq").and_then(|seq| seq.parse().ok());
        let mark = text(b"mark").and_then(|mark| u64::from_str_radix(mark, 16).ok());
        let at = seq.map(|seq| Mark { seq, digest: mark.unwrap_or(NOTHING) });
        let mut now = 0;
        for (part, scale) in time.into_iter().zip([1_000_000, 1]) {
            let part = bytes(&key, part)?;
            let part: u64 =
                std::str::from_utf8(&part).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
            now += part * scale;
        }
        let until: u64 = text(b"until").and_then(|until| until.parse().ok()).unwrap_or(0);
        Ok(Some(Progress {
            life,
            at,
            is_torn: text(b"going").is_some(),
            owner: text(b"owner").unwrap_or_default().to_owned(),
            is_leased: until > now / 1000,
            vocabulary: text(b"voc").unwrap_or_default().to_owned(),
        }))
    }

    /// Applies a step of a worker's stream on top of exactly what came before it, if this owner has or gets
    /// the worker's lease. The worker has its home.
    ///
    /// # Errors
    ///
    /// As [`Index::apply`](crate::index::Index::apply). After an error the step may be applied in part; the same
    /// call again does the rest, and nobody else goes on from there.
    pub async fn append(
        &self,
        worker: WorkerId,
        life: u64,
        before: Option<Mark>,
        after: Mark,
        changes: &[Change<'_>],
    ) -> Result<Joined, Error> {
        let member = self.member(worker)?;
        let key = self.keys.worker(member.worker);
        let owner = self.owner()?;
        let (life, lease) = (life.to_string(), self.lease());
        let [before_seq, after_seq] = [before, Some(after)].map(number);
        let [before_mark, after_mark] = [before, Some(after)].map(digest);
        let args: [&[u8]; 7] = [
            life.as_bytes(),
            &before_seq,
            &before_mark,
            &after_seq,
            &after_mark,
            owner.as_bytes(),
            &lease,
        ];
        let mut batch = Batch::new();
        batch.script(&script::APPEND, &[&key], &args);
        if let Some(not) = self.turned_away(&key, next(&mut self.send(batch).await?))? {
            return Ok(not);
        }
        let applied = self.apply_stamped(&member, changes, Some(after.seq)).await?;
        match self.end(&key, &life, after).await? {
            true => Ok(Joined::Applied(applied)),
            false => Ok(Joined::Apart),
        }
    }

    /// Begins a worker's part anew, if this owner has or gets the worker's lease and the life is still the one
    /// that [`progress`](RedisIndex::progress) said (`None` for a worker that nobody wrote): what was there is
    /// nobody's from now on. What is there instead is said by [`Index::apply`](crate::index::Index::apply), between which
    /// [`keep`](RedisIndex::keep) is called several times in each lease, and then [`ended`](RedisIndex::ended). This is
    /// the worker's home from now on.
    ///
    /// # Errors
    ///
    /// As [`Index::apply`](crate::index::Index::apply).
    pub async fn begin_anew(
        &self,
        worker: WorkerId,
        home: Home,
        had: Option<u64>,
    ) -> Result<Result<Anew, Joined>, Error> {
        // Somebody may have emptied the store, and what this client remembers of it is of no use then.
        self.unless_reborn(b"").await?;
        let key = self.keys.worker(self.worker(worker).await?);
        let owner = self.owner()?;
        let text = had.map_or_else(|| "-1".to_owned(), |life| life.to_string());
        let vocabulary = self.local.lock().texts.vocabulary(home.vocabulary);
        let args: [&[u8]; 4] =
            [text.as_bytes(), owner.as_bytes(), &self.lease(), vocabulary.as_bytes()];
        let mut batch = Batch::new();
        batch.script(&script::RENEW, &[&key], &args);
        if let Some(not) = self.turned_away(&key, next(&mut self.send(batch).await?))? {
            return Ok(Err(not));
        }
        // Whatever it held is nobody's first, so that nothing has to move with it to another home.
        self.forget(worker).await?;
        // Nobody has this name: until the end, lookups do not take part of it for all of it.
        self.settle_under(worker, home, UNDER_WAY).await?;
        self.retire(&self.member(worker)?, Leaving::Tier(None)).await?;
        Ok(Ok(Anew { worker, life: had.map_or(0, |life| life + 1) }))
    }

    /// Puts off the end of a lease; `false` if it is another's by now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server.
    pub async fn keep(&self, worker: WorkerId, life: u64) -> Result<bool, Error> {
        let key = self.keys.worker(self.member(worker)?.worker);
        let (life, owner, lease) = (life.to_string(), self.owner()?, self.lease());
        let mut batch = Batch::new();
        batch.script(&script::KEEP, &[&key], &[life.as_bytes(), owner.as_bytes(), &lease]);
        Ok(int(&key, value(&key, next(&mut self.send(batch).await?))?)? == 1)
    }

    /// Says that a part that was begun anew is whole, as of this batch; `false` if another owner or life has
    /// taken its place meanwhile.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server.
    pub async fn ended(&self, anew: Anew, at: Option<Mark>) -> Result<bool, Error> {
        let member = self.member(anew.worker)?;
        let key = self.keys.worker(member.worker);
        let life = anew.life.to_string();
        let is_ours = match at {
            Some(at) => self.end(&key, &life, at).await?,
            None => {
                let owner = self.owner()?;
                let mut batch = Batch::new();
                batch.script(&script::DONE, &[&key], &[life.as_bytes(), b"-1", owner.as_bytes()]);
                int(&key, value(&key, next(&mut self.send(batch).await?))?)? == 1
            }
        };
        if is_ours {
            self.settle_in(anew.worker, member.home).await?;
        }
        Ok(is_ours)
    }

    /// Gives a lease back, so that nobody waits for its end. Nothing happens if it is another's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server.
    pub async fn hand_over(&self, worker: WorkerId, life: u64) -> Result<(), Error> {
        let key = self.keys.worker(self.member(worker)?.worker);
        let (life, owner) = (life.to_string(), self.owner()?);
        let mut batch = Batch::new();
        batch.script(&script::KEEP, &[&key], &[life.as_bytes(), owner.as_bytes(), b"0"]);
        value(&key, next(&mut self.send(batch).await?)).map(drop)
    }

    async fn end(&self, key: &[u8], life: &str, at: Mark) -> Result<bool, Error> {
        let owner = self.owner()?;
        let (seq, mark) = (number(Some(at)), digest(Some(at)));
        let mut batch = Batch::new();
        batch.script(&script::DONE, &[key], &[life.as_bytes(), &seq, owner.as_bytes(), &mark]);
        Ok(int(key, value(key, next(&mut self.send(batch).await?))?)? == 1)
    }

    /// Why a script did not say 'go'.
    fn turned_away(
        &self,
        key: &[u8],
        reply: Result<redis::Value, super::link::Fault>,
    ) -> Result<Option<Joined>, Error> {
        let reply = list(key, value(key, reply)?)?;
        let [what, other]: [redis::Value; 2] =
            reply.try_into().map_err(|_| damaged(key, "answer"))?;
        Ok(match &bytes(key, what)?[..] {
            b"go" => None,
            b"again" => Some(Joined::Repeated),
            b"apart" => Some(Joined::Apart),
            b"other" => {
                let other = bytes(key, other)?;
                Some(Joined::Elsewhere(String::from_utf8_lossy(&other).into_owned()))
            }
            _ => return Err(damaged(key, "answer")),
        })
    }

    fn owner(&self) -> Result<&str, Error> {
        let owner = self.options.owner.as_deref();
        owner.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                "an index that keeps parts of a store needs an owner",
            )
        })
    }

    fn lease(&self) -> Vec<u8> {
        self.options.lease.as_millis().to_string().into_bytes()
    }
}
