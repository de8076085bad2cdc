//! Cursors: places in a list as clients carry them from answer to answer. What is in them is nobody's business but ours.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::model::{Millis, OnlineCursor, UserId};

/// A place in a list.
pub trait Cursor: Sized {
    /// What the list is called in its cursors, so that none is taken for one of another list.
    const LIST: char;
    /// Its parts, as text.
    fn parts(&self) -> String;
    /// Reads [`Self::parts`].
    fn of_parts(parts: &str) -> Option<Self>;

    /// As a client carries it: letters that need no escape in an address.
    fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}{}", Self::LIST, self.parts()))
    }

    /// Reads what [`Self::write`] has written, and nothing else.
    fn read(text: &str) -> Option<Self> {
        let plain = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let cursor = Self::of_parts(plain.strip_prefix(Self::LIST)?)?;
        (cursor.write() == text).then_some(cursor)
    }
}

impl Cursor for UserId {
    const LIST: char = 'u';

    fn parts(&self) -> String {
        self.to_string()
    }

    fn of_parts(parts: &str) -> Option<Self> {
        parts.parse().ok().filter(|id| *id > 0)
    }
}

impl Cursor for OnlineCursor {
    const LIST: char = 'o';

    fn parts(&self) -> String {
        format!("{}.{}", self.deadline.0, self.user)
    }

    fn of_parts(parts: &str) -> Option<Self> {
        let (deadline, user) = parts.split_once('.')?;
        let deadline = deadline.parse().ok().filter(|ms| *ms >= 0)?;
        Some(Self { deadline: Millis(deadline), user: UserId::of_parts(user)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for id in [1, 12, UserId::MAX] {
            assert_eq!(UserId::read(&id.write()), Some(id));
            let online = OnlineCursor { deadline: Millis(1_768_473_000_120), user: id };
            assert_eq!(OnlineCursor::read(&online.write()), Some(online));
            assert!(online.write().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        }
    }

    #[test]
    fn what_nobody_has_written_is_no_cursor() {
        let wrong =
            ["", "u", "u0", "u-7", "u+7", "u07", "u 7", "u7.5", "x7", "u99999999999999999999", "o5.7"];
        for plain in wrong {
            assert_eq!(UserId::read(&URL_SAFE_NO_PAD.encode(plain)), None, "{plain}");
        }
        for plain in ["o", "o5", "o5.", "o.7", "o-5.7", "o5.0", "o5.7.9", "o05.7", "u7"] {
            assert_eq!(OnlineCursor::read(&URL_SAFE_NO_PAD.encode(plain)), None, "{plain}");
        }
        assert_eq!(UserId::read(&format!("{}=", 7.write())), None);
    }
}
