//! A hash map that knows how many bytes it takes, and gives them back.
//!
//! Invariant: `room` is what the map has place for, entries that were removed without giving their
//! place back included. The map's own `capacity` leaves those out, and is exact only just after it
//! asked for memory: that is when `room` is read.

use std::collections::{HashMap, hash_map};
use std::hash::Hash;
use std::ops::Deref;

/// Maps with room for no more keep it.
const SMALL: usize = 64;

#[derive(Debug)]
pub(super) struct Map<K, V> {
    map: HashMap<K, V>,
    room: usize,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Map<K, V> {
        Map { map: HashMap::new(), room: 0 }
    }
}

/// What can be read of it.
impl<K, V> Deref for Map<K, V> {
    type Target = HashMap<K, V>;

    fn deref(&self) -> &HashMap<K, V> {
        &self.map
    }
}

impl<'a, K, V> IntoIterator for &'a mut Map<K, V> {
    type Item = (&'a K, &'a mut V);
    type IntoIter = hash_map::IterMut<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.map.iter_mut()
    }
}

impl<K: Eq + Hash, V> Map<K, V> {
    #[inline]
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.map.insert(key, value);
        self.room = self.room.max(self.map.capacity());
        old
    }

    /// The value of a key, made if there is none.
    pub(super) fn or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if self.map.len() == self.map.capacity() && !self.map.contains_key(&key) {
            self.map.reserve(1);
            self.room = self.room.max(self.map.capacity());
        }
        self.map.entry(key).or_insert_with(make)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.map.remove(key)?;
        if self.room > SMALL && self.map.len() < self.room / 4 {
            self.map.shrink_to(self.map.len() * 2);
            self.room = self.map.capacity();
        }
        Some(value)
    }
}

impl<K, V> Map<K, V> {
    /// Bytes that it takes, those behind its values left out.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        Self::bytes_of(self.room)
    }

    /// Bytes that it takes more at a time if so many more entries come.
    #[inline]
    pub(super) fn soon(&self, more: usize) -> usize {
        let len = self.map.len();
        if self.map.capacity() - len >= more || len + more <= self.room / 2 {
            return 0;
        }
        Self::bytes_of(room_for((len + more).max(self.room + 1))) - self.bytes()
    }

    /// The standard library's maps have one control byte for each place, and a group of them more.
    #[inline]
    fn bytes_of(room: usize) -> usize {
        let places = match room {
            0 => return 0,
            1..8 => room + 1,
            _ => room / 7 * 8,
        };
        (places * size_of::<(K, V)>()).next_multiple_of(16) + places + 16
    }
}

/// Room that a map makes for so many entries: seven eighths of a power of two.
fn room_for(entries: usize) -> usize {
    match entries {
        0..4 => 3,
        4..8 => 7,
        _ => (entries * 8 / 7).next_power_of_two() / 8 * 7,
    }
}

#[cfg(test)]
mod tests {
    use super::Map;

    #[test]
    fn a_map_takes_the_bytes_that_it_says() {
        let mut map: Map<u64, [u32; 3]> = Map::default();
        let mut state = 1u64;
        let mut keys = Vec::with_capacity(100_000);
        let counted = allocation_counter::measure(|| {
            // Grows, is held at its size while entries come and go, and shrinks.
            for step in 0..200_000u64 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let grows = state >> 33 & 7 < if step < 100_000 { 5 } else { 3 };
                if grows {
                    let key = state >> 8;
                    match step % 2 {
                        0 => drop(map.insert(key, [0; 3])),
                        _ => *map.or_insert_with(key, || [0; 3]) = [1; 3],
                    }
                    keys.push(key);
                } else if let Some(last) = keys.len().checked_sub(1) {
                    let key = keys.swap_remove((state >> 40) as usize % (last + 1));
                    assert!(map.remove(&key).is_some());
                }
            }
        });
        assert_eq!(counted.bytes_current, map.bytes() as i64, "{} entries", map.len());
        let before = map.bytes();
        let soon = map.soon(1 << 17);
        let counted = allocation_counter::measure(|| {
            (0..1 << 17).for_each(|n| _ = map.insert(u64::MAX - n, [0; 3]));
        });
        assert_eq!(counted.bytes_current, map.bytes() as i64 - before as i64);
        assert!(map.bytes() - before <= soon, "{} {soon}", map.bytes() - before);
        let all: Vec<u64> = map.keys().copied().collect();
        all.iter().for_each(|key| assert!(map.remove(key).is_some()));
        assert!(map.bytes() < 4096, "{}", map.bytes());
    }
}
