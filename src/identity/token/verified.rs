//! Tokens that were found good: a client shows the same one every 30 s for as long as it lives.
//!
//! A token is known again by a keyed hash of 128 bits over all of it (SipHash-2-4, a pseudo-random function whose key no
//! process tells): whoever has no good token would have to guess one of 2^128. What is kept is who speaks and until when, not
//! the token. Bounded, and forgotten as a whole when any issuer's keys change, for they may not hold the one that signed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem::take;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::model::{Millis, SessionKey};

/// Parts with a lock each: many more than there are cores.
const PARTS: usize = 64;
/// Tokens of a shared secret in the younger half of a part. With both halves of all parts that is 16,384 to 32,768 tokens of
/// some 150 bytes: 5 MB at the most. A larger number pays only where it holds all that are shown within half a minute, and where
/// there are so many, to verify each of them anew is a small part of the work.
pub(super) const YOUNG_OF_SECRETS: usize = 256;
/// Tokens of issuers in the younger half of a part: to verify one by a public key costs a hundred times as much. In all 131,072
/// to 262,144 tokens, 40 MB at the most, and nothing where no issuer is set.
pub(super) const YOUNG_OF_ISSUERS: usize = 2_048;

/// Counts the changes of issuers' keys.
pub(super) type Changes = Arc<AtomicU64>;

/// See the module.
pub(super) struct Verified {
    secret: [u8; 16],
    parts: Box<[Mutex<Part>]>,
    /// Tokens in the younger half of a part.
    young: usize,
    changes: Changes,
}

/// Two halves: what is shown goes to the young one, and when that is full it becomes the old one, whose tokens, not shown
/// for as long, are forgotten.
#[derive(Default)]
struct Part {
    young: Half,
    old: Half,
    /// As of which change of keys they are good.
    change: u64,
}

type Half = HashMap<u128, Good, BuildHasherDefault<AsItIs>>;

#[derive(Clone)]
struct Good {
    who: SessionKey,
    until: Millis,
}

/// A token as it is known again, and since when: before it was looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fingerprint {
    hash: u128,
    change: u64,
}

impl Verified {
    /// None yet; `young` is how many go into the younger half of each part.
    pub(super) fn new(young: usize) -> Self {
        let mut secret = [0; 16];
        // The random keys of std's hash maps, where the system gives no randomness of its own.
        if getrandom::fill(&mut secret).is_err() {
            let random = || std::hash::BuildHasher::build_hasher(&std::hash::RandomState::new()).finish();
            secret = (u128::from(random()) << 64 | u128::from(random())).to_le_bytes();
        }
        let parts = (0..PARTS).map(|_| Mutex::default()).collect();
        Self { secret, parts, young, changes: Changes::default() }
    }

    /// Told when an issuer's keys change.
    pub(super) fn changes(&self) -> Changes {
        self.changes.clone()
    }

    pub(super) fn fingerprint(&self, token: &str) -> Fingerprint {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(token.as_bytes());
        Fingerprint { hash: hasher.finish128().as_u128(), change: self.changes.load(Ordering::Acquire) }
    }

    /// Who speaks by a token that was found good before, and until when it is.
    pub(super) fn find(&self, token: Fingerprint, now: Millis) -> Option<(SessionKey, Millis)> {
        let mut part = self.part(token);
        if part.change != token.change {
            return None;
        }
        if let Some(good) = part.young.get(&token.hash) {
            return good.at(now);
        }
        let good = part.old.remove(&token.hash)?;
        let found = good.at(now);
        part.keep(token.hash, good, self.young);
        found
    }

    /// Notes that a token was found good.
    pub(super) fn note(&self, token: Fingerprint, who: &SessionKey, until: Millis) {
        let mut part = self.part(token);
        if part.change < token.change {
            *part = Part { change: token.change, ..Part::default() };
        }
        if part.change == token.change {
            part.keep(token.hash, Good { who: who.clone(), until }, self.young);
        }
    }

    fn part(&self, token: Fingerprint) -> std::sync::MutexGuard<'_, Part> {
        let index = usize::try_from(token.hash % PARTS as u128).unwrap_or(0);
        self.parts[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    fn keep(&mut self, hash: u128, good: Good, most: usize) {
        if self.young.len() >= most {
            self.old = take(&mut self.young);
        }
        self.young.insert(hash, good);
    }
}

impl Good {
    fn at(&self, now: Millis) -> Option<(SessionKey, Millis)> {
        (now < self.until).then(|| (self.who.clone(), self.until))
    }
}

/// A hash needs no hashing.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u128 are keys here");
    }
    #[allow(clippy::cast_possible_truncation)] // the other half told the part
    fn write_u128(&mut self, hash: u128) {
        self.0 = (hash >> 64) as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SessionId;

    fn who(user: i64) -> SessionKey {
        SessionKey { user, sid: SessionId::parse("phone") }
    }

    #[test]
    fn a_token_is_known_again_until_it_expires_and_no_other_is() {
        let verified = Verified::new(YOUNG_OF_SECRETS);
        let token = verified.fingerprint("a.b.c");
        assert_eq!(verified.find(token, Millis(0)), None);
        verified.note(token, &who(7), Millis(1_000));
        assert_eq!(verified.find(verified.fingerprint("a.b.c"), Millis(999)), Some((who(7), Millis(1_000))));
        assert_eq!(verified.find(token, Millis(1_000)), None, "expired");
        assert_eq!(verified.find(verified.fingerprint("a.b.d"), Millis(0)), None);
    }

    #[test]
    fn another_process_hashes_otherwise() {
        let (one, other) = (Verified::new(YOUNG_OF_SECRETS), Verified::new(YOUNG_OF_SECRETS));
        assert_ne!(one.fingerprint("a.b.c").hash, other.fingerprint("a.b.c").hash);
    }

    #[test]
    fn a_change_of_keys_forgets_all_and_what_was_looked_at_before_it() {
        let verified = Verified::new(YOUNG_OF_SECRETS);
        let (old, under_way) = (verified.fingerprint("old"), verified.fingerprint("under way"));
        verified.note(old, &who(1), Millis(1_000));
        verified.changes().fetch_add(1, Ordering::Release);
        assert_eq!(verified.find(verified.fingerprint("old"), Millis(0)), None);
        // Verified with the keys of before, noted after: never found.
        verified.note(under_way, &who(2), Millis(1_000));
        assert_eq!(verified.find(verified.fingerprint("under way"), Millis(0)), None);
        let anew = verified.fingerprint("anew");
        verified.note(anew, &who(3), Millis(1_000));
        assert!(verified.find(anew, Millis(0)).is_some());
        assert_eq!(verified.find(verified.fingerprint("old"), Millis(0)), None);
    }

    #[test]
    fn what_is_shown_stays_and_the_number_is_bounded() {
        let verified = Verified::new(YOUNG_OF_SECRETS);
        let shown = verified.fingerprint("shown");
        verified.note(shown, &who(0), Millis(1_000));
        for number in 0..200_000 {
            verified.note(verified.fingerprint(&number.to_string()), &who(number), Millis(1_000));
            if number % 10_000 == 0 {
                assert!(verified.find(shown, Millis(0)).is_some(), "after {number}");
            }
        }
        let held = |part: &Mutex<Part>| {
            let part = part.lock().unwrap();
            part.young.len() + part.old.len()
        };
        let all: usize = verified.parts.iter().map(held).sum();
        assert!((PARTS * YOUNG_OF_SECRETS..=2 * PARTS * YOUNG_OF_SECRETS).contains(&all), "{all}");
    }
}
