//! A reader of answers that knows what it needs: the status, and where the answer ends.

use anyhow::{Context as _, ensure};

/// Longer heads than this are no answers of ours.
const LONGEST_HEAD: usize = 16 * 1_024;

/// An answer that is being read.
#[derive(Debug, Default)]
pub struct Answer {
    /// What there is of its head, where that came in pieces.
    head: Vec<u8>,
    /// How much of the body is still to come, once the head is known.
    body_left: Option<usize>,
}

impl Answer {
    /// Takes what was read; whether the answer is whole, after which the next may begin.
    ///
    /// # Errors
    /// Where it is not 200, says no length, or is longer than it says.
    pub fn take(&mut self, read: &[u8]) -> anyhow::Result<bool> {
        let (left, body) = match self.body_left {
            Some(left) => (left, read.len()),
            None => match self.take_head(read)? {
                Some(found) => found,
                None => return Ok(false),
            },
        };
        ensure!(body <= left, "an answer is longer than it says");
        let left = left - body;
        self.body_left = (left > 0).then_some(left);
        Ok(left == 0)
    }

    /// The length of the body, and how much of it was read with the head; `None` while the head is not whole.
    fn take_head(&mut self, read: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
        if self.head.is_empty()
            && let Some(end) = end_of_head(read)
        {
            return Ok(Some((body_length(&read[..end])?, read.len() - end)));
        }
        self.head.extend_from_slice(read);
        let Some(end) = end_of_head(&self.head) else {
            ensure!(self.head.len() <= LONGEST_HEAD, "the head of an answer does not end");
            return Ok(None);
        };
        let found = (body_length(&self.head[..end])?, self.head.len() - end);
        self.head.clear();
        Ok(Some(found))
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn body_length(head: &[u8]) -> anyhow::Result<usize> {
    let shown = || String::from_utf8_lossy(head).into_owned();
    ensure!(head.get(9..12) == Some(b"200".as_slice()), "an answer that is not 200:\n{}", shown());
    let length = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked("content-length:".len())?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    let length = length.and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
    length.with_context(|| format!("an answer that does not say its length:\n{}", shown()))
}
