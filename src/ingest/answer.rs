//! What a replay socket answers.

/// One message of a replay, as a DEALER receives it.
///
/// ```
/// use kvscout::ingest::Answer;
///
/// let (seven, end) = (7_u64.to_be_bytes(), [0xff; 8]);
/// let (seven, end, none, payload) = (&seven[..], &end[..], &b""[..], &b"p"[..]);
/// // vLLM up to 0.25, and since 0.26 with the topic.
/// assert_eq!(Answer::parse(&[none, seven, payload]), Some(Answer::Batch { seq: 7, payload }));
/// assert_eq!(Answer::parse(&[none, none, seven, payload]), Some(Answer::Batch { seq: 7, payload }));
/// assert_eq!(Answer::parse(&[none, end, none]), Some(Answer::End));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// A batch out of the publisher's buffer.
    Batch {
        /// Its number.
        seq: u64,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// The end marker, -1. Only here: as the number of a live batch it is one like any other.
    End,
}

impl Answer<'_> {
    /// Reads the frames of a message: an empty one, the topic (vLLM since 0.26), the number as 8 bytes in
    /// big-endian order, the payload. `None` for anything else.
    pub fn parse<'a>(frames: &[&'a [u8]]) -> Option<Answer<'a>> {
        let (seq, payload) = match *frames {
            [b"", seq, payload] | [b"", _, seq, payload] => (seq, payload),
            _ => return None,
        };
        match u64::from_be_bytes(seq.try_into().ok()?) {
            u64::MAX => Some(Answer::End),
            seq => Some(Answer::Batch { seq, payload }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s9_both_shapes_are_read_and_nothing_else() {
        let (seq, end) = (300_u64.to_be_bytes(), [0xff; 8]);
        let (seq, end, none, payload) = (&seq[..], &end[..], &b""[..], &b"p"[..]);
        let batch = Some(Answer::Batch { seq: 300, payload });
        assert_eq!(Answer::parse(&[none, seq, payload]), batch);
        assert_eq!(Answer::parse(&[none, none, seq, payload]), batch);
        assert_eq!(Answer::parse(&[none, b"topic 08", seq, payload]), batch);
        assert_eq!(Answer::parse(&[none, end, none]), Some(Answer::End));
        assert_eq!(Answer::parse(&[none, none, end, none]), Some(Answer::End));
        for wrong in [
            &[][..],
            &[none],
            &[none, seq],
            &[seq, payload],
            &[payload, seq, payload],
            &[none, &seq[1..], payload],
            &[none, seq, payload, none],
            &[none, payload, seq, payload, none],
        ] {
            assert_eq!(Answer::parse(wrong), None, "{wrong:?}");
        }
    }
}
