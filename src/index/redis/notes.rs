//! What owners say beside the index: notes about their workers, which readers need, and snapshots, with which
//! others begin. Both are bytes here; whoever writes them knows what they mean.

use std::time::Duration;

use super::reply::{bytes, damaged, fields, int, list, value};
use super::{Batch, RedisIndex, command, next};
use crate::error::{Error, ErrorKind};

/// Bytes of a part of a snapshot: written and read within a deadline, and no burden for a server.
const PART: usize = 256 << 10;

/// Parts that a snapshot may have: 16 GiB.
const MOST_PARTS: usize = 1 << 16;

/// How long notes outlive their owner's last sign of life, at least: so long others say that it is gone.
const NOTES_TTL: Duration = Duration::from_secs(600);

/// What an owner says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notes {
    /// Who.
    pub owner: String,
    /// Whether it lives.
    pub lives: bool,
    /// What it says about what.
    pub notes: Vec<(String, Vec<u8>)>,
}

/// A snapshot that lies in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stowed {
    /// Who left it there.
    pub owner: String,
    /// When, in milliseconds since 1970, by that owner's clock.
    pub created: u64,
    /// Its bytes.
    pub bytes: u64,
    id: String,
    parts: usize,
}

impl Stowed {
    fn read(owner: &[u8], record: &[u8]) -> Option<Stowed> {
        let (owner, record) = (std::str::from_utf8(owner).ok()?, std::str::from_utf8(record).ok()?);
        let mut words = record.split(' ');
        let (id, parts) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let (bytes, created) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let is_id = !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit());
        let fits = is_id && parts <= MOST_PARTS;
        fits.then(|| Stowed { owner: owner.to_owned(), created, bytes, id, parts })
    }
}

impl RedisIndex {
    /// Says something about each of these, in the place of what this owner said before, takes other notes back,
    /// and says that this owner lives.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server, [`ErrorKind::InvalidInput`] without an owner.
    pub async fn announce(
        &self,
        notes: &[(String, Vec<u8>)],
        taken_back: &[String],
    ) -> Result<(), Error> {
        let owner =
            self.options.owner.as_deref().ok_or_else(|| Error::invalid("notes need an owner"))?;
        let (key, all) = (self.keys.notes(owner), self.keys.authors());
        let ttl = NOTES_TTL.max(self.options.owner_ttl * 2).as_millis().to_string();
        let mut batch = Batch::new();
        for (about, note) in notes {
            batch.push(&key, command("HSET", &[&key, about.as_bytes(), note]));
        }
        for about in taken_back {
            batch.push(&key, command("HDEL", &[&key, about.as_bytes()]));
        }
        batch.push(&key, command("PEXPIRE", &[&key, ttl.as_bytes()]));
        batch.push(&all, command("SADD", &[&all, owner.as_bytes()]));
        let mut replies = self.send(batch).await?;
        for _ in 0..notes.len() + taken_back.len() + 1 {
            value(&key, next(&mut replies))?;
        }
        value(&all, next(&mut replies))?;
        self.heartbeat().await
    }

    /// What all owners say.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server.
    pub async fn announced(&self) -> Result<Vec<Notes>, Error> {
        let all = self.keys.authors();
        let mut batch = Batch::reading();
        batch.push(&all, command("SMEMBERS", &[&all]));
        let owners = list(&all, value(&all, next(&mut self.send(batch).await?))?)?;
        let owners: Vec<Vec<u8>> =
            owners.into_iter().map(|owner| bytes(&all, owner)).collect::<Result<_, _>>()?;
        let owners: Vec<String> =
            owners.into_iter().filter_map(|owner| String::from_utf8(owner).ok()).collect();
        let mut batch = Batch::reading();
        for owner in &owners {
            let (key, life) = (self.keys.notes(owner), self.keys.owner(owner));
            batch.push(&key, command("HGETALL", &[&key]));
            batch.push(&life, command("EXISTS", &[&life]));
        }
        let mut replies = self.send(batch).await?;
        let mut found = Vec::with_capacity(owners.len());
        for owner in owners {
            let (key, life) = (self.keys.notes(&owner), self.keys.owner(&owner));
            let said = fields(&key, value(&key, next(&mut replies))?)?;
            let lives = int(&life, value(&life, next(&mut replies))?)? == 1;
            let notes = said
                .into_iter()
                .filter_map(|(about, note)| Some((String::from_utf8(about).ok()?, note)));
            found.push(Notes { owner, lives, notes: notes.collect() });
        }
        Ok(found)
    }

    /// Forgets owners whose notes have ended.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server.
    pub async fn forget_silent(&self, heard: &[Notes]) -> Result<(), Error> {
        let all = self.keys.authors();
        let mut batch = Batch::new();
        let silent = heard.iter().filter(|of| of.notes.is_empty() && !of.lives);
        silent.for_each(|of| batch.push(&all, command("SREM", &[&all, of.owner.as_bytes()])));
        for reply in self.send(batch).await? {
            value(&all, reply)?;
        }
        Ok(())
    }

    /// Leaves a snapshot in the store, in the place of the one that this owner left before: others find either of
    /// them whole. It ends after [`RedisOptions::ttl`](super::RedisOptions::ttl).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server: the one before is still there. [`ErrorKind::InvalidInput`] without an
    /// owner, or for more than 16 GiB.
    pub async fn stow(&self, snapshot: &[u8], created: u64) -> Result<(), Error> {
        let owner = self.options.owner.as_deref();
        let owner = owner.ok_or_else(|| Error::invalid("a snapshot needs an owner"))?;
        let parts = snapshot.len().div_ceil(PART);
        if parts > MOST_PARTS {
            let most = MOST_PARTS * PART;
            return Err(Error::invalid(format!(
                "a snapshot of {} bytes is more than the store takes, {most}",
                snapshot.len()
            )));
        }
        let id = super::open::random_id()?;
        let ttl = self.ttl();
        for (n, part) in snapshot.chunks(PART).enumerate() {
            let key = self.keys.part(&id, n);
            self.ask(&key, command("SET", &[&key, part, b"EX", &ttl])).await?;
        }
        let all = self.keys.snapshots();
        let record = format!("{id} {parts} {} {created}", snapshot.len());
        let mut batch = Batch::new();
        batch.push(&all, command("HGET", &[&all, owner.as_bytes()]));
        batch.push(&all, command("HSET", &[&all, owner.as_bytes(), record.as_bytes()]));
        batch.push(&all, command("EXPIRE", &[&all, &ttl]));
        let mut replies = self.send(batch).await?;
        let before = bytes(&all, value(&all, next(&mut replies))?)?;
        for _ in 0..2 {
            value(&all, next(&mut replies))?;
        }
        if let Some(before) = Stowed::read(owner.as_bytes(), &before) {
            self.drop_parts(&before).await?;
        }
        Ok(())
    }

    async fn drop_parts(&self, stowed: &Stowed) -> Result<(), Error> {
        let mut batch = Batch::new();
        let keys: Vec<Vec<u8>> = (0..stowed.parts).map(|n| self.keys.part(&stowed.id, n)).collect();
        keys.iter().for_each(|key| batch.push(key, command("DEL", &[key])));
        for (reply, key) in self.send(batch).await?.zip(&keys) {
            value(key, reply)?;
        }
        Ok(())
    }

    /// The snapshots in the store, the newest first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server.
    pub async fn stowed(&self) -> Result<Vec<Stowed>, Error> {
        let all = self.keys.snapshots();
        let found = fields(&all, self.ask(&all, command("HGETALL", &[&all])).await?)?;
        let read = found.iter().filter_map(|(owner, record)| Stowed::read(owner, record));
        let mut found: Vec<Stowed> = read.collect();
        found.sort_by(|a, b| (b.created, &a.owner).cmp(&(a.created, &b.owner)));
        Ok(found)
    }

    /// A snapshot's bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server, or when parts of it are gone: a newer one is in its place.
    pub async fn fetch(&self, stowed: &Stowed) -> Result<Vec<u8>, Error> {
        let mut whole = Vec::with_capacity(usize::try_from(stowed.bytes).unwrap_or(0).min(PART));
        for n in 0..stowed.parts {
            let key = self.keys.part(&stowed.id, n);
            let part = bytes(&key, self.ask(&key, command("GET", &[&key])).await?)?;
            whole.extend_from_slice(&part);
            if part.is_empty() || whole.len() as u64 > stowed.bytes {
                break;
            }
        }
        if whole.len() as u64 != stowed.bytes {
            let gone = format!("part of the snapshot of {} is gone from the store", stowed.owner);
            return Err(Error::new(ErrorKind::Unavailable, gone));
        }
        if stowed.bytes == 0 {
            return Err(damaged(&self.keys.snapshots(), "snapshot"));
        }
        Ok(whole)
    }
}
