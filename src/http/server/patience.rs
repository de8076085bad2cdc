//! How long a connection may take for what it does, and which goes first where there are too many.
//!
//! hyper knows one timeout for idling and for the head of a request together, and none for a client that does not read
//! its answer. So each connection keeps a [`Watch`] of what it is doing and since when, by a clock of coarse ticks: on a
//! request's way that is a few loads and stores, and no timer. The accept loop looks at all of them once a tick.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Of what waits to be written, so many bytes must be taken within [`Patience::write`].
const PIECE: usize = 64 * 1024;
/// An answer of at most so many bytes is copied together and written as one piece: for the kernel that is cheaper than to
/// gather its head and its body.
const SMALL: usize = 1024;

/// How long each thing may take; a tick more at most.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The TLS handshake.
    pub handshake: Duration,
    /// The head of a request, from its first byte on; on a new connection from the beginning.
    pub head: Duration,
    /// Silence between two requests. Longer than two heartbeats, so that clients keep their connections.
    pub idle: Duration,
    /// The client's taking of an answer that is ready, or of each 64 KiB of a long one.
    pub write: Duration,
    /// Between two looks.
    pub tick: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write: Duration::from_secs(30),
            tick: Duration::from_secs(1),
        }
    }
}

impl Patience {
    fn ticks(&self, span: Duration) -> u32 {
        u32::try_from(span.as_nanos().div_ceil(self.tick.as_nanos().max(1))).unwrap_or(u32::MAX)
    }
}

/// The time in ticks since the start, which only [`Self::advance`] moves.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(Arc<AtomicU32>);

impl Clock {
    pub(super) fn advance(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn now(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

/// What a connection does while no request is in hand. In the order in which connections go where there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    /// In the TLS handshake.
    Handshake,
    /// Has sent nothing yet.
    Fresh,
    /// Is sending the head of its first request.
    FirstHead,
    /// Has been answered.
    Idle,
    /// Is sending the head of a further request.
    Head,
}

impl Stage {
    const ALL: [Self; 5] = [Self::Handshake, Self::Fresh, Self::FirstHead, Self::Idle, Self::Head];

    /// Whether no request has ever been answered.
    const fn is_new(self) -> bool {
        matches!(self, Self::Handshake | Self::Fresh | Self::FirstHead)
    }
}

/// What one connection does, and since when.
#[derive(Debug)]
pub(super) struct Watch {
    clock: Clock,
    stage: AtomicU8,
    /// When it entered the stage, ticks.
    since: AtomicU32,
    /// Requests whose answers are being made.
    in_hand: AtomicU32,
    /// Those of them whose bodies have not come yet.
    awaited: AtomicU32,
    /// Since when bytes wait to be taken, ticks plus one; 0 where none do.
    stalled: AtomicU32,
}

impl Watch {
    pub(super) fn new(clock: Clock, stage: Stage) -> Self {
        let since = clock.now().into();
        Self {
            clock,
            stage: (stage as u8).into(),
            since,
            in_hand: 0.into(),
            awaited: 0.into(),
            stalled: 0.into(),
        }
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.since.store(self.clock.now(), Relaxed);
        self.stage.store(stage as u8, Relaxed);
    }

    pub(super) fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Relaxed))]
    }

    /// A request has come; it is in hand until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> InHand {
        self.in_hand.fetch_add(1, Relaxed);
        InHand(self.clone())
    }

    /// A request in hand waits for its body until the guard is dropped.
    pub(super) fn await_body(self: &Arc<Self>) -> AwaitedBody {
        self.awaited.fetch_add(1, Relaxed);
        AwaitedBody(self.clone())
    }

    /// Bytes have come that may belong to a head.
    fn heard(&self) {
        if self.in_hand.load(Relaxed) > 0 {
            return;
        }
        match self.stage() {
            Stage::Fresh => self.enter(Stage::FirstHead),
            Stage::Idle => self.enter(Stage::Head),
            Stage::Handshake | Stage::FirstHead | Stage::Head => {}
        }
    }

    fn stall(&self) {
        if self.stalled.load(Relaxed) == 0 {
            self.stalled.store(self.clock.now().saturating_add(1), Relaxed);
        }
    }

    fn flow(&self) {
        if self.stalled.load(Relaxed) != 0 {
            self.stalled.store(0, Relaxed);
        }
    }

    /// How long it has been doing what it does, ticks.
    fn age(&self) -> u32 {
        self.clock.now().saturating_sub(self.since.load(Relaxed))
    }

    /// Whether it takes longer than it may.
    pub(super) fn is_late(&self, patience: &Patience) -> bool {
        let stalled = self.stalled.load(Relaxed);
        if stalled > 0 && self.clock.now().saturating_sub(stalled - 1) > patience.ticks(patience.write) {
            return true;
        }
        let may_take = match self.stage() {
            Stage::Handshake => patience.handshake,
            Stage::Fresh | Stage::FirstHead | Stage::Head => patience.head,
            Stage::Idle => patience.idle,
        };
        self.in_hand.load(Relaxed) == 0 && self.age() > patience.ticks(may_take)
    }

    /// Whether it has made no request of what it began, and not only just now: nobody's answer is lost with it.
    pub(super) fn dawdles(&self) -> bool {
        self.in_hand.load(Relaxed) == 0 && self.stage() != Stage::Idle && self.age() > 1
    }

    /// The place in the row of those that go where there are too many, smallest first, of equals the oldest: whoever has
    /// never been answered, however much of a head or a body has come, before whoever has, the longest silent first. `None`
    /// with a whole request in hand, which nobody may lose.
    pub(super) fn rank(&self) -> Option<(bool, u32)> {
        let is_new = self.stage().is_new();
        let since = if is_new { 0 } else { self.since.load(Relaxed) };
        (self.in_hand.load(Relaxed) <= self.awaited.load(Relaxed)).then_some((!is_new, since))
    }
}

/// A request in hand.
#[derive(Debug)]
pub(super) struct InHand(Arc<Watch>);

impl Drop for InHand {
    fn drop(&mut self) {
        if self.0.in_hand.fetch_sub(1, Relaxed) == 1 {
            self.0.enter(Stage::Idle);
        }
    }
}

/// A request in hand whose body has not come yet.
#[derive(Debug)]
pub(super) struct AwaitedBody(Arc<Watch>);

impl Drop for AwaitedBody {
    fn drop(&mut self) {
        self.0.awaited.fetch_sub(1, Relaxed);
    }
}

/// A connection's bytes, which tell its [`Watch`] what they do.
#[derive(Debug)]
pub(super) struct Watched<S> {
    inner: S,
    watch: Arc<Watch>,
    /// Whether bytes outside of a request begin a head. In HTTP/2 they may be a ping or a window.
    heads: bool,
    /// Bytes taken since the last whole [`PIECE`].
    taken: usize,
}

impl<S> Watched<S> {
    pub(super) const fn new(inner: S, watch: Arc<Watch>, heads: bool) -> Self {
        Self { inner, watch, heads, taken: 0 }
    }

    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Pending => self.watch.stall(),
            Poll::Ready(Ok(count)) => {
                self.taken += count;
                if self.taken >= PIECE {
                    self.taken = 0;
                    self.watch.flow();
                }
            }
            Poll::Ready(Err(_)) => {}
        }
    }

    fn note_end(&mut self, ended: &Poll<io::Result<()>>) {
        if ended.is_pending() {
            self.watch.stall();
        } else {
            self.taken = 0;
            self.watch.flow();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, into);
        if this.heads && into.filled().len() > before {
            this.watch.heard();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.note(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut together = [0; SMALL];
        if let Some(length) = join(bytes, &mut together) {
            return self.poll_write(cx, &together[..length]);
        }
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bytes);
        this.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.note_end(&flushed);
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ended = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.note_end(&ended);
        ended
    }
}

/// Copies the pieces one behind the other; their length, or `None` where they are too long.
fn join(pieces: &[IoSlice<'_>], into: &mut [u8; SMALL]) -> Option<usize> {
    let mut length = 0;
    for piece in pieces {
        into.get_mut(length..length + piece.len())?.copy_from_slice(piece);
        length += piece.len();
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(stage: Stage) -> (Clock, Arc<Watch>) {
        let clock = Clock::default();
        (clock.clone(), Arc::new(Watch::new(clock, stage)))
    }

    /// How many ticks pass until the watch is late; `None` where it never is.
    fn late_after(clock: &Clock, watch: &Watch) -> Option<u32> {
        (1..200).find(|_| {
            clock.advance();
            watch.is_late(&Patience::default())
        })
    }

    #[test]
    fn each_stage_has_its_time() {
        let table = [
            (Stage::Handshake, 11),
            (Stage::Fresh, 11),
            (Stage::FirstHead, 11),
            (Stage::Head, 11),
            (Stage::Idle, 76),
        ];
        for (stage, ticks) in table {
            let (clock, watch) = at(stage);
            assert_eq!(late_after(&clock, &watch), Some(ticks), "{stage:?}");
        }
    }

    #[test]
    fn a_head_has_its_time_from_its_first_byte_however_many_follow() {
        let (clock, watch) = at(Stage::Idle);
        (0..70).for_each(|_| clock.advance());
        watch.heard();
        let late = (1..200).find(|_| {
            clock.advance();
            watch.heard();
            watch.is_late(&Patience::default())
        });
        assert_eq!((late, watch.stage()), (Some(11), Stage::Head));
    }

    #[test]
    fn a_request_in_hand_has_all_the_time_it_needs_and_silence_counts_from_its_end() {
        let (clock, watch) = at(Stage::Fresh);
        watch.heard();
        let (first, second) = (watch.begin(), watch.begin());
        watch.heard();
        assert_eq!((late_after(&clock, &watch), watch.rank()), (None, None));
        drop(first);
        assert_eq!(late_after(&clock, &watch), None);
        drop(second);
        assert_eq!((late_after(&clock, &watch), watch.stage()), (Some(76), Stage::Idle));
    }

    #[test]
    fn a_client_that_does_not_read_is_late_even_with_a_request_in_hand() {
        let (clock, watch) = at(Stage::Fresh);
        let _in_hand = watch.begin();
        watch.stall();
        clock.advance();
        watch.stall();
        assert_eq!(late_after(&clock, &watch), Some(30));
        watch.flow();
        assert_eq!(late_after(&clock, &watch), None);
    }

    #[test]
    fn strangers_go_before_those_who_were_answered_and_the_longest_silence_first() {
        let clock = Clock::default();
        let mut watches = Vec::new();
        for stage in [Stage::Idle, Stage::Handshake, Stage::Idle, Stage::Fresh, Stage::Head] {
            watches.push(Watch::new(clock.clone(), stage));
            clock.advance();
        }
        let mut row: Vec<usize> = (0..5).collect();
        row.sort_by_key(|index| watches[*index].rank());
        assert_eq!(row, [1, 3, 0, 2, 4]);
    }
}
