//! Who serves which slot: what one server says of it, and what several of them come to. Pure.
//!
//! Servers disagree while a failover or a move is under way, and one that was silent for a while believes what was true
//! before. So each claim to a slot is dated by the owner's configuration epoch, which Redis gives anew with every failover
//! and every move, and the latest wins.

use std::ops::RangeInclusive;

use fred::types::config::Server;

/// Slots of a cluster. What is no cluster is treated as one whose slots are all with one server.
pub(super) const SLOTS: u16 = 16_384;

/// What one server says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct View {
    /// Who owns what.
    pub(super) claims: Vec<Claim>,
    /// All servers that it knows of and that can be asked the same, replicas (or sentinels) included.
    pub(super) members: Vec<Server>,
}

/// A primary's claim to slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) server: Server,
    pub(super) epoch: u64,
    pub(super) slots: Vec<RangeInclusive<u16>>,
}

/// Who serves which slot, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Map {
    /// Owners, each with the epoch of its claim.
    owners: Vec<(Server, u64)>,
    /// By slot, an index into `owners`; empty where nothing is known at all.
    slots: Vec<Option<u16>>,
    members: Vec<Server>,
}

impl View {
    /// All slots with one server.
    pub(super) fn of_one(server: Server, epoch: u64, members: Vec<Server>) -> Self {
        Self { claims: vec![Claim { server, epoch, slots: vec![0..=SLOTS - 1] }], members }
    }

    /// Reads the answer to `CLUSTER NODES` (<https://redis.io/docs/latest/commands/cluster-nodes/>). A node that knows no
    /// address of its own is `asked`; `by_name` prefers the name that a node announces to its address: a certificate
    /// names hosts.
    pub(super) fn of_cluster(text: &str, asked: &Server, by_name: bool) -> Self {
        let mut view = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(_id), Some(address), Some(flags)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let is = |flag| flags.split(',').any(|word| word == flag);
            if is("handshake") || is("noaddr") {
                continue;
            }
            let Some(server) = server(address, asked, by_name) else { continue };
            view.members.push(server.clone());
            // master, ping-sent, pong-received; then the epoch, the state of the link, and the slots.
            let epoch = words.nth(3).and_then(|word| word.parse().ok()).unwrap_or(0);
            let slots: Vec<_> = words.skip(1).filter_map(slots).collect();
            if is("master") && !slots.is_empty() {
                view.claims.push(Claim { server, epoch, slots });
            }
        }
        view
    }
}

/// `127.0.0.1:30001@31001,host-1,…`
fn server(address: &str, asked: &Server, by_name: bool) -> Option<Server> {
    let mut parts = address.split(',');
    let (host, port) = parts.next()?.split('@').next()?.rsplit_once(':')?;
    let name = parts.next().filter(|name| !name.is_empty() && !name.contains('='));
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = match name {
        Some(name) if by_name => name,
        Some(name) if host == "?" => name,
        _ if host.is_empty() => &asked.host,
        _ => host,
    };
    Some(Server::new(host, port))
}

/// `0-5460` or `7`; what is being moved (`[93-<-…]`) is nobody's claim.
fn slots(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (last < SLOTS).then_some(first..=last)
}

impl Map {
    /// What these views come to, beside what was known before. Between claims of one epoch the earlier known stays.
    pub(super) fn merge(mut self, views: &[View]) -> Self {
        self.slots.resize(usize::from(SLOTS), None);
        for claim in views.iter().flat_map(|view| &view.claims) {
            let index = self.owner(claim.server.clone(), claim.epoch);
            for slot in claim.slots.iter().cloned().flatten() {
                let slot = &mut self.slots[usize::from(slot)];
                let known = slot.map(|owner| self.owners[usize::from(owner)].1);
                if known.is_none_or(|known| known < claim.epoch) {
                    *slot = Some(index);
                }
            }
        }
        self.members.extend(views.iter().flat_map(|view| view.members.iter().cloned()));
        self.members.sort_unstable();
        self.members.dedup();
        self
    }

    /// Gives a slot to the server that another one has named.
    pub(super) fn moved(mut self, slot: u16, to: Server) -> Self {
        let place = usize::from(slot);
        let epoch =
            self.slots.get(place).copied().flatten().map_or(0, |owner| self.owners[usize::from(owner)].1);
        let index = self.owner(to, epoch);
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = Some(index);
        }
        self
    }

    fn owner(&mut self, server: Server, epoch: u64) -> u16 {
        let owner = (server, epoch);
        let index = self.owners.iter().position(|known| *known == owner).unwrap_or_else(|| {
            self.owners.push(owner);
            self.owners.len() - 1
        });
        // A cluster has a thousand nodes at most; each round begins with those that own something.
        u16::try_from(index).unwrap_or(0)
    }

    /// Forgets owners of nothing.
    pub(super) fn compact(mut self) -> Self {
        let mut kept = vec![None; self.owners.len()];
        let mut owners = Vec::new();
        for slot in self.slots.iter_mut().flatten() {
            let place = kept[usize::from(*slot)].get_or_insert_with(|| {
                owners.push(self.owners[usize::from(*slot)].clone());
                u16::try_from(owners.len() - 1).unwrap_or(0)
            });
            *slot = *place;
        }
        self.owners = owners;
        self
    }

    /// Who serves a slot.
    pub(super) fn of(&self, slot: u16) -> Option<&Server> {
        let owner = self.slots.get(usize::from(slot)).copied().flatten()?;
        Some(&self.owners[usize::from(owner)].0)
    }

    /// Whoever serves any slot, in order.
    pub(super) fn primaries(&self) -> Vec<Server> {
        let mut primaries: Vec<_> = self.owners.iter().map(|(server, _)| server.clone()).collect();
        primaries.sort_unstable();
        primaries.dedup();
        primaries
    }

    /// Whoever was named in the last answers.
    pub(super) fn members(&self) -> &[Server] {
        &self.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Server {
        Server::new("10.0.0.1", port)
    }

    fn claim(port: u16, epoch: u64, slots: RangeInclusive<u16>) -> View {
        let claims = vec![Claim { server: at(port), epoch, slots: vec![slots] }];
        View { claims, members: vec![at(port)] }
    }

    #[test]
    fn an_answer_of_cluster_nodes_is_read_with_all_its_oddities() {
        let text = "\
            a :7001@17001 myself,master - 0 0 7 connected 0-5460 5470 [93-<-b] [77->-c]\n\
            b 10.0.0.2:7002@17002,name-2 master,fail - 1 2 8 disconnected 5461-5469\n\
            c 10.0.0.3:7003@17003,name-3,shard-id=1 slave b 0 0 8 connected\n\
            d ::1:7004@17004,,tls-port=0 master - 0 0 9 connected 6000\n\
            e :0@0 master,noaddr - 0 0 1 disconnected 7000\n\
            f 10.0.0.6:7006@17006 handshake - 0 0 0 connected\n\n";
        let view = View::of_cluster(text, &Server::new("here", 1), false);
        let of = |host: &str, port, epoch, slots: &[RangeInclusive<u16>]| Claim {
            server: Server::new(host, port),
            epoch,
            slots: slots.to_vec(),
        };
        let claims = [
            of("here", 7001, 7, &[0..=5460, 5470..=5470]),
            of("10.0.0.2", 7002, 8, &[5461..=5469]),
            of("::1", 7004, 9, &[6000..=6000]),
        ];
        assert_eq!(view.claims, claims);
        assert_eq!(view.members.len(), 4);
        let view = View::of_cluster(text, &Server::new("here", 1), true);
        assert_eq!(view.claims[1].server.host, "name-2", "a certificate names hosts");
    }

    #[test]
    fn who_was_asleep_during_a_failover_does_not_get_its_slots_back() {
        let asleep = claim(1, 3, 0..=99);
        let now = claim(2, 4, 0..=99);
        for order in [[asleep.clone(), now.clone()], [now.clone(), asleep.clone()]] {
            assert_eq!(Map::default().merge(&order).of(50), Some(&at(2)));
        }
        let known = Map::default().merge(&[now]).merge(&[asleep]);
        assert_eq!(known.compact().primaries(), [at(2)]);
    }

    #[test]
    fn a_slot_that_was_named_by_another_is_there_until_it_is_claimed_anew() {
        let map = Map::default().merge(&[claim(1, 3, 0..=99)]).moved(50, at(2));
        assert_eq!((map.of(50), map.of(51)), (Some(&at(2)), Some(&at(1))));
        assert_eq!(map.primaries(), [at(1), at(2)]);
        assert_eq!(map.merge(&[claim(3, 4, 50..=50)]).of(50), Some(&at(3)));
        assert_eq!(Map::default().moved(5, at(1)).of(5), None, "nothing is known yet");
    }
}
