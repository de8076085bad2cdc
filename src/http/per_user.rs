//! How much one user may have under way at once, so that no other user waits for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::UserId;

/// A bound on what each user has under way in this process; clones share one inside.
#[derive(Debug, Clone)]
pub struct PerUser {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    at_once: usize,
    may_wait: usize,
    users: Mutex<HashMap<UserId, Line>>,
}

/// What one user has under way. It is forgotten when nothing is.
#[derive(Debug)]
struct Line {
    /// Under way or waiting.
    count: usize,
    places: Arc<Semaphore>,
}

/// A place that one user has taken, until it is dropped.
#[derive(Debug)]
pub struct Place {
    // Before the entry: fields drop in order, and the next in line has its permit when the entry is gone.
    _permit: OwnedSemaphorePermit,
    _entered: Entered,
}

/// Counts as under way or waiting until it is dropped.
#[derive(Debug)]
struct Entered {
    inner: Arc<Inner>,
    user: UserId,
}

/// The user has as much under way, or waiting, as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl PerUser {
    /// `at_once` of each user are under way, 1 at least, and `may_wait` more wait for that.
    pub fn new(at_once: usize, may_wait: usize) -> Self {
        let inner = Inner { at_once: at_once.max(1), may_wait, users: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Takes a place of this user's, and waits for one where that is allowed. Dropping the future ends the
    /// wait.
    ///
    /// # Errors
    /// [`TooMany`], at once.
    pub async fn enter(&self, user: UserId) -> Result<Place, TooMany> {
        let (places, entered) = self.inner.count(user)?;
        // The semaphore is never closed.
        let permit = places.acquire_owned().await.map_err(|_| TooMany)?;
        Ok(Place { _permit: permit, _entered: entered })
    }

    /// Takes a place of this user's if one is free now.
    pub fn try_enter(&self, user: UserId) -> Option<Place> {
        let (places, entered) = self.inner.count(user).ok()?;
        let permit = places.try_acquire_owned().ok()?;
        Some(Place { _permit: permit, _entered: entered })
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.inner.users().is_empty()
    }
}

impl Inner {
    fn count(self: &Arc<Self>, user: UserId) -> Result<(Arc<Semaphore>, Entered), TooMany> {
        let mut users = self.users();
        let line = users
            .entry(user)
            .or_insert_with(|| Line { count: 0, places: Arc::new(Semaphore::new(self.at_once)) });
        if line.count >= self.at_once.saturating_add(self.may_wait) {
            return Err(TooMany);
        }
        line.count += 1;
        Ok((Arc::clone(&line.places), Entered { inner: Arc::clone(self), user }))
    }

    fn users(&self) -> MutexGuard<'_, HashMap<UserId, Line>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Entry::Occupied(mut line) = self.inner.users().entry(self.user) {
            line.get_mut().count -= 1;
            if line.get().count == 0 {
                line.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_user_has_so_many_places_and_others_have_theirs() {
        let bound = PerUser::new(2, 0);
        let (first, _second) = (bound.enter(7).await.unwrap(), bound.enter(7).await.unwrap());
        assert_eq!(bound.enter(7).await.unwrap_err(), TooMany);
        let _other = bound.enter(8).await.unwrap();
        assert!(bound.try_enter(7).is_none());
        drop(first);
        let _third = bound.try_enter(7).unwrap();
        assert!(bound.try_enter(7).is_none());
    }

    #[tokio::test]
    async fn a_few_wait_in_their_order_and_who_gives_up_frees_the_line() {
        let bound = PerUser::new(1, 2);
        let first = bound.enter(7).await.unwrap();
        assert!(bound.try_enter(7).is_none());
        let mut second = Box::pin(bound.enter(7));
        let mut third = Box::pin(bound.enter(7));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        assert_eq!(bound.enter(7).await.unwrap_err(), TooMany);
        drop(second);
        let mut fourth = Box::pin(bound.enter(7));
        assert!(fourth.as_mut().now_or_never().is_none());
        drop(first);
        let third = third.await.unwrap();
        assert!(fourth.as_mut().now_or_never().is_none(), "one at a time");
        drop(third);
        drop(fourth.await.unwrap());
        assert!(bound.is_empty(), "nothing is kept of users who have nothing under way");
    }
}
