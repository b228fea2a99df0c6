//! The lines of a stream, one at a time and within a bound.

use std::io::{self, BufRead, Read};
use std::str::Utf8Error;

/// Longest line that is read; a prompt of a million tokens takes a tenth of it.
const LINE_MAX: u64 = 64 << 20;

/// Lines with their numbers from 1; blank ones are passed over.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `input`.
    pub(crate) fn new(input: R) -> Lines<R> {
        Lines { input, line: Vec::new(), number: 0 }
    }

    /// The next line and its number: its text, or what is wrong with it, which spoils no other
    /// line. `None` at the end.
    ///
    /// # Errors
    ///
    /// The stream cannot be read.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, Result<&str, String>)>> {
        loop {
            self.line.clear();
            if self.input.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.line.len() as u64 > LINE_MAX && !self.line.ends_with(b"\n") {
                skip_line(&mut self.input)?;
                let wrong = format!("the line is longer than {LINE_MAX} bytes");
                return Ok(Some((self.number, Err(wrong))));
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        let text = str::from_utf8(&self.line);
        let wrong = |e: Utf8Error| format!("byte {} of the line is no UTF-8", e.valid_up_to());
        Ok(Some((self.number, text.map_err(wrong))))
    }
}

/// Reads up to the next line's begin, in pieces.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let piece = input.fill_buf()?;
        let end = piece.iter().position(|&byte| byte == b'\n');
        let (length, found) = match end {
            Some(end) => (end + 1, true),
            None => (piece.len(), piece.is_empty()),
        };
        input.consume(length);
        if found {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let (mut lines, mut all) = (Lines::new(input), Vec::new());
        while let Some((number, line)) = lines.next().unwrap() {
            all.push((number, line.map(|line| line.trim_end().to_owned())));
        }
        all
    }

    #[test]
    fn a_line_beyond_the_bound_is_refused_and_the_next_one_read() {
        let mut input = vec![b'x'; LINE_MAX as usize + 10];
        input.extend(b"\ngood");
        let refused = Err("the line is longer than 67108864 bytes".to_owned());
        assert_eq!(lines(&input), [(1, refused), (2, Ok("good".to_owned()))]);
    }

    #[test]
    fn blank_lines_are_counted_and_passed_over() {
        assert_eq!(lines(b"\n  \r\na\r\n\nb"), [(3, Ok("a".to_owned())), (5, Ok("b".to_owned()))]);
    }

    #[test]
    fn a_line_that_is_no_utf_8_is_refused_and_the_next_one_read() {
        let refused = Err("byte 2 of the line is no UTF-8".to_owned());
        assert_eq!(lines(b"ab\xff\nc\n"), [(1, refused), (2, Ok("c".to_owned()))]);
    }
}
