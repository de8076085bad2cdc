//! The merge (invariant 1): what Redis knows and what SQL allows, made one status.

use super::{Account, Millis, OnlineStatus};

/// By how much the clock of the machine that reads may be behind that of Redis, ms, where Redis cannot be asked.
const CLOCKS_DIFFER_MS: i64 = 1_000;

/// What the live set holds of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// `Online` or `Away`.
    pub status: OnlineStatus,
    /// The latest heartbeat; `None` where an administrator lent the presence.
    pub last_seen: Option<Millis>,
}

/// What is known of a user's presence when a status is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Redis was asked.
    Live {
        /// Redis's time of the read.
        now: Millis,
        /// The user's presence, or `None` where there is none.
        presence: Option<Presence>,
    },
    /// Redis could not be asked, or has lost its data and is still hearing from people: SQL's mirror must do, and
    /// counts only for a TTL after `last_seen`.
    Mirror {
        /// The time of the read.
        now: Millis,
        /// How long a heartbeat counts, ms.
        ttl_ms: i64,
    },
}

impl Evidence {
    /// Of an account that has never been present.
    pub const NEVER_PRESENT: Self = Self::Live { now: Millis(0), presence: None };
}

/// A user's status as every answer gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effective {
    /// The status.
    pub status: OnlineStatus,
    /// The latest heartbeat that anyone knows of.
    pub last_seen: Option<Millis>,
}

/// **The merge.** Nothing else decides a status.
///
/// An account that may not be present is offline whatever Redis holds. Without Redis, nobody is called online of whom
/// SQL has not heard for longer than the TTL. A `last_seen` of SQL's that lies ahead of the read, by more than clocks of
/// different machines differ, counts as nothing: a wrong clock or a wrong UPDATE has put it there.
pub fn effective(account: &Account, evidence: Evidence) -> Effective {
    let (Evidence::Live { now, .. } | Evidence::Mirror { now, .. }) = evidence;
    let in_sql = account.last_seen.filter(|seen| *seen <= now.plus(CLOCKS_DIFFER_MS));
    let (status, last_seen) = match evidence {
        Evidence::Live { presence: Some(presence), .. } => (presence.status, in_sql.max(presence.last_seen)),
        Evidence::Live { presence: None, .. } => (OnlineStatus::Offline, in_sql),
        Evidence::Mirror { now, ttl_ms } => {
            let heard_of = in_sql.is_some_and(|seen| seen.plus(ttl_ms) >= now);
            (if heard_of { account.mirror } else { OnlineStatus::Offline }, in_sql)
        }
    };
    Effective { status: if account.may_be_present() { status } else { OnlineStatus::Offline }, last_seen }
}

#[cfg(test)]
mod tests {
    use super::super::{AccountStatus, Role};
    use super::*;
    use proptest::prelude::*;

    fn account(
        status: AccountStatus,
        is_active: bool,
        mirror: OnlineStatus,
        last_seen: Option<i64>,
    ) -> Account {
        Account {
            id: 7,
            username: "ada".into(),
            email: "ada@example.com".into(),
            role: Role::User,
            status,
            is_active,
            mirror,
            last_seen: last_seen.map(Millis),
        }
    }

    fn any_account() -> impl Strategy<Value = Account> {
        (
            prop::sample::select(AccountStatus::ALL.to_vec()),
            any::<bool>(),
            prop::sample::select(OnlineStatus::ALL.to_vec()),
            prop::option::of(0..1_000_000i64),
        )
            .prop_map(|(status, is_active, mirror, seen)| account(status, is_active, mirror, seen))
    }

    fn any_evidence() -> impl Strategy<Value = Evidence> {
        prop_oneof![
            (0..1_000_000i64).prop_map(|now| Evidence::Live { now: Millis(now), presence: None }),
            (
                prop::sample::select(vec![OnlineStatus::Online, OnlineStatus::Away]),
                prop::option::of(0..1_000_000i64),
                0..1_000_000i64
            )
                .prop_map(|(status, seen, now)| Evidence::Live {
                    now: Millis(now),
                    presence: Some(Presence { status, last_seen: seen.map(Millis) })
                }),
            (0..1_000_000i64, 1_000..200_000i64)
                .prop_map(|(now, ttl_ms)| Evidence::Mirror { now: Millis(now), ttl_ms }),
        ]
    }

    proptest! {
        #[test]
        fn a_blocked_account_is_offline_always(account in any_account(), evidence in any_evidence()) {
            if !account.may_be_present() {
                prop_assert_eq!(effective(&account, evidence).status, OnlineStatus::Offline);
            }
        }

        #[test]
        fn where_redis_was_asked_the_mirror_decides_nothing(account in any_account(), evidence in any_evidence()) {
            if matches!(evidence, Evidence::Live { .. }) {
                let told: Vec<_> = OnlineStatus::ALL
                    .into_iter()
                    .map(|mirror| effective(&Account { mirror, ..account.clone() }, evidence).status)
                    .collect();
                prop_assert!(told.iter().all(|status| *status == told[0]));
            }
        }

        #[test]
        fn without_redis_nobody_is_online_who_was_silent_for_a_ttl(account in any_account(), evidence in any_evidence()) {
            if let Evidence::Mirror { now, ttl_ms } = evidence
                && effective(&account, evidence).status.is_online()
            {
                prop_assert!(now.0 - account.last_seen.unwrap().0 <= ttl_ms);
            }
        }

        #[test]
        fn last_seen_never_goes_back_but_from_the_future(account in any_account(), evidence in any_evidence()) {
            let (Evidence::Live { now, .. } | Evidence::Mirror { now, .. }) = evidence;
            let shown = effective(&account, evidence).last_seen;
            if account.last_seen.is_none_or(|seen| seen <= now) {
                prop_assert!(shown >= account.last_seen);
            }
        }

        #[test]
        fn an_instant_that_lies_ahead_counts_as_nothing(account in any_account(), ttl_ms in 1_000..200_000i64) {
            if let Some(seen) = account.last_seen {
                let now = seen.plus(-CLOCKS_DIFFER_MS - 1);
                let told = effective(&account, Evidence::Mirror { now, ttl_ms });
                prop_assert_eq!(told, Effective { status: OnlineStatus::Offline, last_seen: None });
                let presence = Presence { status: OnlineStatus::Online, last_seen: Some(now) };
                let told = effective(&account, Evidence::Live { now, presence: Some(presence) });
                prop_assert_eq!(told.last_seen, Some(now));
            }
        }
    }

    #[test]
    fn the_account_rule_names_who_may_be_present() {
        let allowed: Vec<_> = AccountStatus::ALL
            .into_iter()
            .flat_map(|status| [true, false].map(|is_active| (status, is_active)))
            .filter(|(status, is_active)| super::super::account::may_be_present(*status, *is_active))
            .collect();
        assert_eq!(allowed, [(AccountStatus::Active, true), (AccountStatus::Pending, true)]);
    }
}
