//! Payloads as vLLM 0.24 to 0.33 publishes them: `[timestamp, [event, ...], rank]` in msgpack, an
//! event being a map.

use crate::workload::{BLOCK, Block, Event, Kind, Stream, tokens};

/// A batch in the making.
#[derive(Debug, Default)]
pub struct Payload {
    bytes: Vec<u8>,
}

impl Payload {
    /// A batch of so many events.
    pub fn new(events: usize) -> Payload {
        let mut payload = Payload::default();
        payload.array(3);
        payload.bytes.push(0xcb);
        payload.bytes.extend(1.7e9_f64.to_be_bytes());
        payload.array(events);
        payload
    }

    /// Adds a `BlockStored` of a full-attention group.
    pub fn stored(&mut self, parent: Option<u64>, blocks: &[Block]) {
        self.map(11);
        self.field("type");
        self.text("BlockStored");
        self.field("block_hashes");
        self.array(blocks.len());
        blocks.iter().for_each(|block| self.integer(block.name));
        self.field("parent_block_hash");
        match parent {
            Some(name) => self.integer(name),
            None => self.nil(),
        }
        self.field("token_ids");
        self.array(blocks.len() * BLOCK);
        for block in blocks {
            tokens(block.text).into_iter().for_each(|token| self.integer(u64::from(token)));
        }
        self.field("block_size");
        self.integer(BLOCK as u64);
        self.field("lora_id");
        self.nil();
        self.field("medium");
        self.text("GPU");
        self.field("lora_name");
        self.nil();
        self.field("extra_keys");
        self.array(blocks.len());
        blocks.iter().for_each(|_| self.nil());
        self.field("group_idx");
        self.integer(0);
        self.field("kv_cache_spec_kind");
        self.text("full_attention");
    }

    /// Adds a `BlockRemoved` of one block.
    pub fn removed(&mut self, name: u64) {
        self.map(4);
        self.field("type");
        self.text("BlockRemoved");
        self.field("block_hashes");
        self.array(1);
        self.integer(name);
        self.field("medium");
        self.text("GPU");
        self.field("group_idx");
        self.integer(0);
    }

    /// The bytes, of data-parallel rank 0.
    pub fn finish(mut self) -> Vec<u8> {
        self.integer(0);
        self.bytes
    }

    fn nil(&mut self) {
        self.bytes.push(0xc0);
    }

    fn field(&mut self, name: &str) {
        self.text(name);
    }

    fn map(&mut self, fields: u8) {
        self.bytes.push(0x80 | fields);
    }

    fn array(&mut self, len: usize) {
        match u16::try_from(len) {
            Ok(len) if len < 16 => self.bytes.push(0x90 | len as u8),
            Ok(len) => {
                self.bytes.push(0xdc);
                self.bytes.extend(len.to_be_bytes());
            }
            Err(_) => unreachable!("a batch has less than 65,536 of anything"),
        }
    }

    /// Texts here are shorter than 32 bytes.
    fn text(&mut self, text: &str) {
        self.bytes.push(0xa0 | text.len() as u8);
        self.bytes.extend(text.as_bytes());
    }

    /// The shortest form, as vLLM's encoder writes it.
    fn integer(&mut self, n: u64) {
        let bytes = n.to_be_bytes();
        match n {
            0..=0x7f => self.bytes.push(n as u8),
            0x80..=0xff => self.tagged(0xcc, &bytes[7..]),
            0x100..=0xffff => self.tagged(0xcd, &bytes[6..]),
            0x1_0000..=0xffff_ffff => self.tagged(0xce, &bytes[4..]),
            _ => self.tagged(0xcf, &bytes),
        }
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.bytes.push(tag);
        self.bytes.extend(bytes);
    }
}

/// The events of one step of one engine as one payload.
pub fn payload(stream: &Stream, events: &[Event]) -> Vec<u8> {
    let mut payload = Payload::new(events.len());
    for event in events {
        let named = event.start as usize..event.start as usize + event.len as usize;
        match event.kind {
            Kind::Stored => payload.stored(event.parent, &stream.stored[named]),
            Kind::Removed => {
                stream.removed[named].iter().for_each(|&name| payload.removed(name));
            }
        }
    }
    payload.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_read_alike_by_dynamo_and_by_us() {
        let block = |text| Block { name: 1 << 63 | text, content: 0, text };
        let mut payload = Payload::new(2);
        payload.stored(None, &[block(1), block(2)]);
        payload.removed(block(2).name);
        let payload = payload.finish();

        let mut theirs = Vec::new();
        crate::dynamo::Listeners::new(1).decode(0, &payload, &mut theirs);
        assert_eq!(theirs.len(), 2);
        let mut ours = crate::ours::Scouted::new(1);
        assert_eq!(ours.receive(0, &payload), 3);
        assert_eq!(ours.entries(), 1);
    }
}
