//! What every client has to know of a store before it can use it, and numbers of texts.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use redis::Value;
use sha2::{Digest as _, Sha256};

use super::chain::ChainKey;
use super::local::{Kept, Local, Member, Opened, Texts};
use super::read::present;
use super::reply::{self, bytes, damaged, fields, list, value};
use super::{Batch, GROUPS, RedisIndex, Replies, USUAL_GROUPS, command, next, script};
use crate::block::{SpaceId, VocabularyId, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::hash::content::DigestKey;

/// The layout that this version reads and writes.
const VERSION: &[u8] = b"1";

/// A key for one purpose, made of the cluster's secret.
fn derived(secret: &[u8; 32], purpose: &[u8]) -> [u8; 16] {
    let hash = Sha256::new_with_prefix(purpose).chain_update(secret).finalize();
    let mut key = [0; 16];
    key.copy_from_slice(&hash[..16]);
    key
}

/// What a client remembers and has asked the store for.
#[derive(Debug)]
pub(super) struct Recall {
    birth: Vec<u8>,
    spaces: Vec<u32>,
}

/// Where the numbers of a new store begin.
pub(super) fn random_base() -> Result<String, Error> {
    Ok((random::<4>()?.iter().fold(0, |n, &b| n << 8 | u32::from(b)) >> 2).to_string())
}

/// A name that nobody else has.
pub(super) fn random_id() -> Result<String, Error> {
    Ok(random::<12>()?.iter().map(|b| format!("{b:02x}")).collect())
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| {
        Error::new(ErrorKind::Unavailable, "the system's random source gave nothing").with_source(e)
    })?;
    Ok(bytes)
}

impl RedisIndex {
    /// The key of content digests that all clients of the store share.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server; an error of kind
    /// [`InvalidInput`](ErrorKind::InvalidInput) when the store was made under another secret.
    pub async fn digest_key(&self) -> Result<DigestKey, Error> {
        Ok(RedisIndex::digest_key_of(&self.secret().await?.0))
    }

    /// The secret that all clients of the store share, to be kept as carefully as a password: a client that has it
    /// can make digests while the store is away ([`RedisOptions::offer`](super::RedisOptions::offer)).
    ///
    /// # Errors
    ///
    /// As [`digest_key`](RedisIndex::digest_key).
    pub async fn shared_secret(&self) -> Result<[u8; 32], Error> {
        self.secret().await.map(|(secret, ..)| secret)
    }

    /// A new secret, for [`RedisOptions::secret`](super::RedisOptions::secret) or `offer`.
    ///
    /// # Errors
    ///
    /// The operating system gave no randomness.
    pub fn random_secret() -> Result<[u8; 32], Error> {
        random()
    }

    /// The key of content digests of stores with this secret.
    pub fn digest_key_of(secret: &[u8; 32]) -> DigestKey {
        DigestKey::from_bytes(derived(secret, b"kvscout digest key"))
    }

    pub(super) async fn opened(&self) -> Result<Arc<Opened>, Error> {
        if let Some(opened) = &self.local.lock().opened {
            return Ok(opened.clone());
        }
        let (secret, birth, groups) = self.secret().await?;
        let chain = ChainKey::new(derived(&secret, b"kvscout chain key"));
        let opened = Arc::new(Opened { chain, birth, groups });
        let mut local = self.local.lock();
        if local.opened.as_ref().is_some_and(|old| old.birth != opened.birth) {
            local.reopen();
        }
        local.opened = Some(opened.clone());
        local.looked = Some(Instant::now());
        Ok(opened)
    }

    /// The same, after a look whether the store is still that one.
    pub(super) async fn current(&self) -> Result<Arc<Opened>, Error> {
        let (opened, meta) = (self.opened().await?, self.keys.meta());
        let found = bytes(&meta, self.ask(&meta, command("HGET", &[&meta, b"birth"])).await?)?;
        if found == opened.birth {
            return Ok(opened);
        }
        self.local.lock().reopen();
        self.opened().await
    }

    /// Asks from time to time whether the store's birth and the numbers of spaces are still what this
    /// client remembers: if one of their keys alone got lost, who comes next makes it anew, and the two
    /// would be in different stores from then on.
    pub(super) fn recall(&self, batch: &mut Batch) -> Option<Recall> {
        let (meta, texts) = (self.keys.meta(), self.keys.texts());
        let mut local = self.local.lock();
        let every = self.options.owner_ttl / 4;
        let birth = local.opened.as_ref()?.birth.clone();
        if local.spaces.is_empty() || local.looked.is_some_and(|at| at.elapsed() < every) {
            return None;
        }
        local.looked = Some(Instant::now());
        let mut ask = command("HMGET", &[&texts]);
        for space in local.spaces.keys() {
            ask.arg(format!("s{}", local.texts.space(*space)));
        }
        batch.push(&meta, command("HGET", &[&meta, b"birth"]));
        batch.push(&texts, ask);
        Some(Recall { birth, spaces: local.spaces.values().copied().collect() })
    }

    /// Whether it is all as remembered; if not, it is forgotten.
    pub(super) fn recalled(
        &self,
        recall: Option<Recall>,
        replies: &mut Replies,
    ) -> Result<bool, Error> {
        let Some(recall) = recall else { return Ok(true) };
        let (meta, texts, mut same) = (self.keys.meta(), self.keys.texts(), true);
        let (birth, spaces) = (present(next(replies)), present(next(replies)));
        if let Some(birth) = birth {
            same &= bytes(&meta, value(&meta, birth)?)? == recall.birth;
        }
        if let Some(spaces) = spaces {
            let found = list(&texts, value(&texts, spaces)?)?;
            for (found, number) in found.into_iter().zip(&recall.spaces) {
                same &= reply::int(&texts, found)? == i64::from(*number);
            }
        }
        if !same {
            self.local.lock().reopen();
        }
        Ok(same)
    }

    /// The secret, the store's birth, and the number of groups. Whoever comes first makes them.
    async fn secret(&self) -> Result<([u8; 32], Vec<u8>, u32), Error> {
        let random = random::<40>()?;
        let (fresh, birth) = random.split_at(32);
        // Who emptied the store does not make digests worthless that are elsewhere: it gets its secret back.
        let known = self.local.lock().secret.map(|Kept(secret)| secret).or(self.options.offer);
        let fresh = known.as_ref().map_or(fresh, |known| &known[..]);
        let given = self.options.secret;
        let key = self.keys.meta();
        let check = given.map(|secret| derived(&secret, b"kvscout secret check"));
        let [of_cluster, of_one] = USUAL_GROUPS;
        let usual = if self.link.is_cluster() { of_cluster } else { of_one };
        let groups = self.options.groups.unwrap_or(usual).to_string();
        let mut batch = Batch::new();
        let secret = match &check {
            Some(check) => (b"x", &check[..]),
            None => (b"s", fresh),
        };
        // One script, so that no client ever sees a store that is half made.
        let args: [&[u8]; 5] = [VERSION, birth, groups.as_bytes(), secret.0, secret.1];
        match self.options.only_reads {
            true => batch.push(&key, command("HGETALL", &[&key])),
            false => batch.script(&script::MAKE, &[&key], &args),
        }
        let mut replies = self.send(batch).await?;
        let found = fields(&key, value(&key, next(&mut replies))?)?;
        if found.is_empty() {
            return Err(Error::unavailable("nobody has written to the store's namespace yet"));
        }
        let field = |name: &[u8]| found.iter().find(|(f, _)| f == name).map(|(_, v)| v.as_slice());
        if field(b"version") != Some(VERSION) {
            let theirs = field(b"version").map(super::key::shown).unwrap_or_default();
            return Err(Error::invalid(format!(
                "the store's layout is version '{theirs}', and this program knows version 1: use another namespace"
            )));
        }
        let secret = match (given, check, field(b"s"), field(b"x")) {
            (Some(secret), Some(check), None, Some(theirs)) if check == theirs => secret,
            (None, None, Some(secret), None) => {
                secret.try_into().map_err(|_| damaged(&key, "secret of 32 bytes"))?
            }
            (Some(_), ..) => {
                return Err(Error::invalid(
                    "the store was made under another secret than the one given: give that one, or use another namespace",
                ));
            }
            (None, ..) => {
                return Err(Error::invalid(
                    "the store was made under a secret that is kept outside of it: give it, or use another namespace",
                ));
            }
        };
        let birth = field(b"birth").filter(|b| b.len() == 8);
        let birth = birth.ok_or_else(|| damaged(&key, "birth"))?.to_vec();
        let groups = field(b"groups").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
        let groups = groups.filter(|n| GROUPS.contains(n));
        // In a statement of its own: who looks into what is locked keeps it locked.
        let before = self.local.lock().secret.get_or_insert(Kept(secret)).0;
        if before != secret {
            return Err(Error::invalid(
                "the store was emptied and made anew under another secret: what this program knows is of no use there; \
                 start it again",
            ));
        }
        Ok((secret, birth, groups.ok_or_else(|| damaged(&key, "number of groups"))?))
    }

    /// The number of a text, given out on demand.
    async fn intern(&self, text: &[u8]) -> Result<u32, Error> {
        let key = self.keys.texts();
        let mut batch = Batch::new();
        batch.script(&script::INTERN, &[&key], &[text, random_base()?.as_bytes()]);
        self.number(&key, value(&key, next(&mut self.send(batch).await?))?)
    }

    fn number(&self, key: &[u8], value: Value) -> Result<u32, Error> {
        u32::try_from(reply::int(key, value)?).map_err(|_| damaged(key, "number"))
    }

    /// The number of a space, or `None` if nobody ever had a home there.
    pub(super) async fn known_space(&self, space: SpaceId) -> Result<Option<u32>, Error> {
        let (lives, text) = {
            let local = self.local.lock();
            if let Some(&number) = local.spaces.get(&space) {
                return Ok(Some(number));
            }
            (local.lives, format!("s{}", local.texts.space(space)))
        };
        let key = self.keys.texts();
        let found = self.ask(&key, command("HGET", &[&key, text.as_bytes()])).await?;
        if found == Value::Nil {
            return Ok(None);
        }
        let number = self.number(&key, found)?;
        let mut local = self.local.lock();
        local.same_life(lives)?;
        local.spaces.insert(space, number);
        Ok(Some(number))
    }

    pub(super) async fn space(&self, space: SpaceId) -> Result<u32, Error> {
        let text = |texts: &Texts| format!("s{}", texts.space(space));
        self.numbered(|local| &mut local.spaces, space, text).await
    }

    /// Lets lookups ask for the names that a prompt has in a vocabulary of others, if anybody speaks it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server.
    pub async fn understand(&self, space: SpaceId, id: VocabularyId) -> Result<(), Error> {
        let Some(space) = self.known_space(space).await? else { return Ok(()) };
        let text = format!("v{space}/{}", self.local.lock().texts.vocabulary(id));
        let key = self.keys.texts();
        let found = self.ask(&key, command("HGET", &[&key, text.as_bytes()])).await?;
        let mut number = None;
        if found != Value::Nil {
            number = Some(self.number(&key, found)?);
        }
        let mut local = self.local.lock();
        match number {
            Some(number) => local.vocabularies.insert((space, id), number),
            None => local.vocabularies.remove(&(space, id)),
        };
        Ok(())
    }

    /// Names mean blocks of one space, so a vocabulary has a number in each.
    pub(super) async fn vocabulary(&self, space: u32, id: VocabularyId) -> Result<u32, Error> {
        let text = |texts: &Texts| format!("v{space}/{}", texts.vocabulary(id));
        self.numbered(|local| &mut local.vocabularies, (space, id), text).await
    }

    /// Names of a vocabulary that no worker has are gone: when it is used again, it has another number.
    pub(super) async fn leave(&self, old: &Member) -> Result<(), Error> {
        if self.is_spoken(old).await? {
            return Ok(());
        }
        let (space, id) = (old.space, old.home.vocabulary);
        self.local.lock().vocabularies.remove(&(space, id));
        let text = format!("v{space}/{}", self.local.lock().texts.vocabulary(id));
        let (key, number) = (self.keys.texts(), old.vocabulary.to_string());
        let mut batch = Batch::new();
        batch.script(&script::RELEASE, &[&key], &[text.as_bytes(), number.as_bytes()]);
        let released = reply::int(&key, value(&key, next(&mut self.send(batch).await?))?)? == 1;
        // If somebody came meanwhile, the names stay.
        if !released || self.is_spoken(old).await? {
            return Ok(());
        }
        let keys: Vec<Vec<u8>> = (0..self.opened().await?.groups)
            .map(|group| self.keys.meanings(old.vocabulary, group))
            .collect();
        let mut batch = Batch::new();
        keys.iter().for_each(|key| batch.push(key, command("UNLINK", &[key])));
        for (reply, key) in self.send(batch).await?.zip(&keys) {
            value(key, reply)?;
        }
        Ok(())
    }

    /// Whether a worker has the member's vocabulary.
    async fn is_spoken(&self, member: &Member) -> Result<bool, Error> {
        let table = self.load_table(member.space).await?;
        Ok(table.workers.values().any(|record| record.vocabulary == member.vocabulary))
    }

    pub(super) async fn worker(&self, id: WorkerId) -> Result<u32, Error> {
        let text = |texts: &Texts| format!("w{}", texts.worker(id));
        self.numbered(|local| &mut local.workers, id, text).await
    }

    /// A number that is remembered, or given out for a text on demand.
    async fn numbered<K: Copy + Eq + Hash + Send>(
        &self,
        known: fn(&mut Local) -> &mut HashMap<K, u32>,
        key: K,
        text: impl FnOnce(&Texts) -> String + Send,
    ) -> Result<u32, Error> {
        let (lives, text) = {
            let mut local = self.local.lock();
            if let Some(&number) = known(&mut local).get(&key) {
                return Ok(number);
            }
            (local.lives, text(&local.texts))
        };
        let number = self.intern(text.as_bytes()).await?;
        let mut local = self.local.lock();
        local.same_life(lives)?;
        known(&mut local).insert(key, number);
        Ok(number)
    }
}
