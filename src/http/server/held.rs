//! The connections that are open, and how many may be: in all, and from one address.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;

use super::patience::Watch;

/// Where room must be made, this part of all goes at once, so that a flood does not have them all looked through for each
/// newcomer.
const PART: usize = 64;
/// Between two lines that say that there are too many.
const SAY_AGAIN: Duration = Duration::from_mins(1);

/// How many connections may be open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// In all.
    pub most: usize,
    /// From one address.
    pub per_address: usize,
}

/// What becomes of a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// There is room, or some was made.
    Admitted,
    /// Every connection has a request in hand: the newcomer waits until one has not.
    Waits,
    /// Its address has as many as it may, and every one of them has a request in hand: it is closed.
    Refused,
}

/// The tasks of all connections, with their watches.
pub(super) struct Held {
    bounds: Bounds,
    open: HashMap<Id, Open>,
    /// The connections of each address that is counted.
    by_address: HashMap<IpAddr, HashSet<Id>>,
    arrived: u64,
    tasks: JoinSet<()>,
    too_many: Reminder,
    too_many_of_one: Reminder,
}

struct Open {
    watch: Arc<Watch>,
    handle: AbortHandle,
    /// The number of its arrival: a tick may bring thousands.
    arrival: u64,
    /// Where it counts against the bound of an address.
    address: Option<IpAddr>,
}

impl Held {
    pub(super) fn new(bounds: Bounds) -> Self {
        let bounds = Bounds { most: bounds.most.max(1), per_address: bounds.per_address.max(1) };
        Self {
            bounds,
            open: HashMap::new(),
            by_address: HashMap::new(),
            arrived: 0,
            tasks: JoinSet::new(),
            too_many: Reminder::default(),
            too_many_of_one: Reminder::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Serves a connection. `address` is where it counts against the bound of an address; `None` for a trusted proxy.
    pub(super) fn hold(
        &mut self,
        watch: Arc<Watch>,
        address: Option<IpAddr>,
        serving: impl Future<Output = ()> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(serving);
        self.arrived += 1;
        let id = handle.id();
        if let Some(address) = address {
            self.by_address.entry(address).or_default().insert(id);
        }
        self.open.insert(id, Open { watch, handle, arrival: self.arrived, address });
    }

    /// Done when a connection has ended; for ever waiting where there is none.
    pub(super) async fn next_end(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => std::future::pending().await,
        };
        self.remove(id);
    }

    /// Closes those of which this is true.
    pub(super) fn close(&mut self, which: impl Fn(&Watch) -> bool) {
        let late: Vec<Id> =
            self.open.iter().filter(|(_, open)| which(&open.watch)).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(open) = self.remove(id) {
                tracing::debug!(stage = ?open.watch.stage(), "a connection took too long, and is closed");
                open.handle.abort();
            }
        }
    }

    /// Whether one more may be open from this address; room is made where there is none: see the module above.
    pub(super) fn admit(&mut self, address: Option<IpAddr>) -> Admission {
        if let Some(address) = address
            && !self.has_room_for(address)
        {
            return Admission::Refused;
        }
        if self.open.len() < self.bounds.most {
            return Admission::Admitted;
        }
        if self.too_many.is_due() {
            tracing::warn!(
                open = self.open.len(),
                "no more connections may be open: newcomers take the place of those that have been silent for longest; \
                 PRESENCE_MAX_CONNECTIONS sets the number"
            );
        }
        let all: Vec<Id> = self.open.keys().copied().collect();
        if self.displace(&all, self.bounds.most) { Admission::Admitted } else { Admission::Waits }
    }

    /// Whether an address has room for one more; where it has not, its own connections make some. An address that may have
    /// all connections has no bound of its own.
    fn has_room_for(&mut self, address: IpAddr) -> bool {
        let is_bounded = self.bounds.per_address < self.bounds.most;
        let own = match self.by_address.get(&address) {
            Some(own) if is_bounded && own.len() >= self.bounds.per_address => {
                own.iter().copied().collect::<Vec<_>>()
            }
            _ => return true,
        };
        if self.too_many_of_one.is_due() {
            tracing::warn!(
                %address,
                open = own.len(),
                "one address has as many connections as it may: new ones take the place of those of its own that have been \
                 silent for longest; PRESENCE_MAX_CONNECTIONS_PER_ADDRESS sets the number, and PRESENCE_TRUSTED_PROXIES \
                 names the proxies to which it does not apply"
            );
        }
        self.displace(&own, self.bounds.per_address)
    }

    /// Closes some of these connections, of which there may be `most`; whether there was any to close.
    fn displace(&mut self, among: &[Id], most: usize) -> bool {
        let place = |id: &Id| {
            let open = self.open.get(id)?;
            Some(((open.watch.rank()?, open.arrival), *id))
        };
        let mut row: Vec<_> = among.iter().filter_map(place).collect();
        if row.is_empty() {
            return false;
        }
        let last = (most / PART).min(row.len() - 1);
        row.select_nth_unstable_by_key(last, |(place, _)| *place);
        for (_, id) in &row[..=last] {
            if let Some(open) = self.remove(*id) {
                open.handle.abort();
            }
        }
        true
    }

    fn remove(&mut self, id: Id) -> Option<Open> {
        let open = self.open.remove(&id)?;
        if let Some(address) = open.address
            && let Some(own) = self.by_address.get_mut(&address)
        {
            own.remove(&id);
            if own.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(open)
    }

    /// Cuts off what is left.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Something that is worth a line now and then while it lasts.
#[derive(Default)]
struct Reminder(Option<Instant>);

impl Reminder {
    fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|said| said.elapsed() >= SAY_AGAIN);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}
