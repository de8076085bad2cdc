//! Keys and arguments of a call in one piece of memory.

use std::ops::Range;

use bytes::Bytes;
use fred::types::{Key, Value};

/// What many keys and arguments are written into, one after the other: each of them is then a slice of it, and costs no
/// allocation of its own.
pub(super) struct Packed {
    text: String,
    ends: Vec<usize>,
}

impl Packed {
    /// Room for so many parts of so many bytes in all; it grows where that was too little.
    pub(super) fn with_capacity(parts: usize, bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ends: Vec::with_capacity(parts) }
    }

    /// Adds a part: all that is written to it.
    pub(super) fn part(&mut self, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.ends.push(self.text.len());
    }

    /// Adds a number.
    pub(super) fn number(&mut self, number: i64) {
        self.part(|text| text.push_str(itoa::Buffer::new().format(number)));
    }

    /// The first `keys` parts as keys, the others as arguments.
    pub(super) fn split(self, keys: usize) -> (Vec<Key>, Vec<Value>) {
        let (whole, starts) = (Bytes::from(self.text), std::iter::once(0).chain(self.ends.iter().copied()));
        let ranges: Vec<Range<usize>> =
            starts.zip(self.ends.iter().copied()).map(|(from, to)| from..to).collect();
        let (first, rest) = ranges.split_at(keys.min(ranges.len()));
        let slice = |range: &Range<usize>| whole.slice(range.clone());
        (
            first.iter().map(|range| Key::from(slice(range))).collect(),
            rest.iter().map(|range| Value::Bytes(slice(range))).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_what_was_written_in_their_order() {
        let mut packed = Packed::with_capacity(1, 1);
        packed.part(|text| text.push_str("presence:{0}:user:7"));
        packed.number(i64::MIN);
        packed.part(|text| text.extend(["s:", "phone"]));
        packed.part(|_| {});
        let (keys, args) = packed.split(1);
        assert_eq!(keys, [Key::from("presence:{0}:user:7")]);
        let args: Vec<_> = args.into_iter().map(|arg| arg.into_bytes().unwrap()).collect();
        assert_eq!(args, ["-9223372036854775808", "s:phone", ""]);
    }

    #[test]
    fn where_there_are_fewer_parts_than_keys_all_are_keys() {
        let mut packed = Packed::with_capacity(0, 0);
        packed.number(1);
        assert_eq!(packed.split(9).0.len(), 1);
    }
}
