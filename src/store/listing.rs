//! A list as one statement gives it: the page, who asks, and how many there are in all, told apart by a number in front.

use chrono::{DateTime, Utc};
use sqlx::error::BoxDynError;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row};

use super::rows::{no_row, word};
use super::{AccountFilter, AccountList, Result};
use crate::model::{Account, Millis, UserId};

/// Accounts that have neighbouring ids are counted together, so many ids a block: a page deep in the list of all accounts is
/// found by its block, and reads no more than that. As the migrations have it.
macro_rules! block {
    () => {
        "4096"
    };
}
pub(super) use block;

/// `WITH` the block that holds the item at an offset, and how many items lie before it; the offset is to follow, then
/// [`place_end`].
macro_rules! place_begin {
    () => {
        "WITH place AS (SELECT block, before FROM (SELECT block, \
         CAST(sum(sum(users)) OVER (ORDER BY block) - sum(users) AS bigint) AS before \
         FROM user_counts WHERE block >= 0 GROUP BY block) AS blocks WHERE before <= "
    };
}
pub(super) use place_begin;

/// See [`place_begin`].
macro_rules! place_end {
    () => {
        " ORDER BY block DESC LIMIT 1) "
    };
}
pub(super) use place_end;

/// How many accounts there are, without counting them.
macro_rules! all_accounts {
    () => {
        "(SELECT CAST(COALESCE(sum(users), 0) AS bigint) FROM user_counts WHERE block = -1)"
    };
}
pub(super) use all_accounts;

/// In front of the columns of an account that lies on the page.
pub const ON_PAGE: i32 = 0;
/// In front of those of an account that asks.
pub const ASKS: i32 = 1;
/// In front of the number of all, which stands in the place of an id.
const TOTAL: i32 = 2;
/// The place of that column.
const LAST_SEEN: usize = 8;

/// The columns that follow the number of all, after its sign; [`total_end`] closes them.
macro_rules! total_begin {
    () => {
        " UNION ALL SELECT 2, "
    };
}
pub(super) use total_begin;

/// See [`total_begin`]. In the order of `account_columns!`.
macro_rules! total_end {
    () => {
        ", '', '', '', '', NULL, '', NULL"
    };
}
pub(super) use total_end;

/// A row of such a statement.
#[derive(Debug)]
pub enum ListRow {
    /// An account of the page.
    OnPage(Account),
    /// An account that asks.
    Asks(Account),
    /// How many match.
    Total(i64),
}

/// Columns go by their places, words are looked at where they lie: a page has a thousand rows.
macro_rules! list_row {
    ($row:ty, $last_seen:expr) => {
        impl<'r> FromRow<'r, $row> for ListRow {
            fn from_row(row: &'r $row) -> sqlx::Result<Self> {
                let kind: i32 = row.try_get(0)?;
                let id: UserId = row.try_get(1)?;
                if kind == TOTAL {
                    return Ok(Self::Total(id));
                }
                let decode = |error: super::StoreError| sqlx::Error::Decode(BoxDynError::from(error));
                let account = Account {
                    id,
                    username: row.try_get(2)?,
                    email: row.try_get(3)?,
                    role: word("users.role", row.try_get(4)?).map_err(decode)?,
                    status: word("users.status", row.try_get(5)?).map_err(decode)?,
                    is_active: row.try_get(6)?,
                    mirror: word("users.online_status", row.try_get(7)?).map_err(decode)?,
                    last_seen: $last_seen(row)?,
                };
                Ok(if kind == ASKS { Self::Asks(account) } else { Self::OnPage(account) })
            }
        }
    };
}

list_row!(PgRow, postgres_instant);
list_row!(SqliteRow, sqlite_instant);

fn postgres_instant(row: &PgRow) -> sqlx::Result<Option<Millis>> {
    let seen: Option<DateTime<Utc>> = row.try_get(LAST_SEEN)?;
    Ok(seen.map(Millis::from_utc))
}

fn sqlite_instant(row: &SqliteRow) -> sqlx::Result<Option<Millis>> {
    let seen: Option<&str> = row.try_get(LAST_SEEN)?;
    let broken = || sqlx::Error::Decode("users.last_seen is no instant".into());
    seen.map(|text| Millis::parse(text).ok_or_else(broken)).transpose()
}

/// The list that the rows make, the page ordered by `order`; one more than `size` was asked for.
pub fn listed<K: Ord>(rows: Vec<ListRow>, size: u32, order: impl Fn(&Account) -> K) -> Result<AccountList> {
    let mut list = AccountList {
        accounts: Vec::with_capacity(rows.len()),
        has_more: false,
        total: 0,
        askers: Vec::new(),
    };
    let mut total = None;
    for row in rows {
        match row {
            ListRow::OnPage(account) => list.accounts.push(account),
            ListRow::Asks(account) => list.askers.push(account),
            ListRow::Total(count) => total = Some(count),
        }
    }
    // No database promises the order of what it puts together; mostly it is there already.
    list.accounts.sort_by_key(order);
    list.has_more = list.accounts.len() > size as usize;
    list.accounts.truncate(size as usize);
    list.total = total.ok_or_else(no_row)?;
    Ok(list)
}

impl AccountFilter {
    /// Whether all accounts are looked at once, for the page and the count alike: a search finds few, and a large number of
    /// corrections is put in order once.
    pub(super) fn is_read_once(&self) -> bool {
        self.search.is_some()
            || self.presence.as_ref().is_some_and(|presence| !presence.corrections.is_empty())
    }

    /// Whether it lets every account through.
    pub(super) const fn is_open(&self) -> bool {
        self.search.is_none() && self.status.is_none() && self.presence.is_none()
    }
}
