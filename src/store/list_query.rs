//! The statements of lists of accounts: one text for both databases, and the few places in which they differ.

use sqlx::{Database, QueryBuilder};

use super::listing::{ASKS, ON_PAGE, all_accounts, block, place_begin, place_end, total_begin, total_end};
use super::rows::account_columns;
use super::{AccountFilter, EmailSearch};
use crate::model::login_name::fold;
use crate::model::{AccountStatus, Millis, OnlineStatus, Place, UserId};

/// What a database says in its own way.
pub trait Dialect: Database {
    /// What stands before a text and behind it in the condition that `n.name_key` holds it.
    const HOLDS: [&'static str; 2];

    fn bind_number(sql: &mut QueryBuilder<Self>, number: i64);

    fn bind_text(sql: &mut QueryBuilder<Self>, text: String);

    fn bind_instant(sql: &mut QueryBuilder<Self>, at: Millis);

    /// The condition that `u.id` is one of these.
    fn push_is_one_of(sql: &mut QueryBuilder<Self>, users: &[UserId]);

    /// Joins these statuses to `u`, as `correction (user_id, status)`.
    fn push_corrections(sql: &mut QueryBuilder<Self>, corrections: &[(UserId, OnlineStatus)]);
}

/// A statement whose rows are [`super::listing::ListRow`]s, as it is put together.
struct ListQuery<D: Dialect>(QueryBuilder<D>);

/// The accounts that match a filter, by id. Only the conditions that are asked for stand in the statement, so each kind of
/// list gets a plan of its own.
pub fn all<D: Dialect>(filter: &AccountFilter, place: Place<UserId>, askers: &[UserId]) -> QueryBuilder<D> {
    let mut query = ListQuery(QueryBuilder::new(""));
    match &filter.search {
        Some(search) => query.found(filter, search, place),
        None if filter.is_read_once() => query.read_once(filter, place),
        None => query.in_order(filter, place),
    }
    query.askers(askers).text(total_begin!());
    if filter.is_read_once() {
        query.text("(SELECT count(*) FROM matching)");
    } else if filter.is_open() {
        query.text(all_accounts!());
    } else {
        query.text("(SELECT count(*)").matching(filter).text(")");
    }
    query.text(total_end!());
    query.0
}

/// Accounts that are present in the mirror and were seen since an instant, the latest first.
pub fn present<D: Dialect>(
    since: Millis,
    place: Place<(Millis, UserId)>,
    askers: &[UserId],
) -> QueryBuilder<D> {
    const PRESENT: &str =
        " FROM users u WHERE u.may_be_present AND u.online_status <> 'offline' AND u.last_seen >= ";
    let mut query = ListQuery(QueryBuilder::new(""));
    query.page().text(PRESENT).instant(since);
    if let Place::After((seen, user), _) = place {
        query.text(" AND (u.last_seen, u.id) < (").instant(seen).text(", ").number(user).text(")");
    }
    query.text(" ORDER BY u.last_seen DESC, u.id DESC LIMIT ").number(i64::from(place.size()) + 1);
    if let Place::Page(page) = place {
        query.text(" OFFSET ").number(page.offset());
    }
    query.askers(askers).text(total_begin!());
    query.text("(SELECT count(*)").text(PRESENT).instant(since).text(")").text(total_end!());
    query.0
}

impl<D: Dialect> ListQuery<D> {
    fn text(&mut self, text: &str) -> &mut Self {
        self.0.push(text);
        self
    }

    fn number(&mut self, number: i64) -> &mut Self {
        D::bind_number(&mut self.0, number);
        self
    }

    fn instant(&mut self, at: Millis) -> &mut Self {
        D::bind_instant(&mut self.0, at);
        self
    }

    fn word(&mut self, word: &str) -> &mut Self {
        D::bind_text(&mut self.0, word.to_owned());
        self
    }

    /// The page straight from the order of ids, up to its end.
    fn in_order(&mut self, filter: &AccountFilter, place: Place<UserId>) {
        let offset = offset(place);
        let by_block = filter.is_open() && offset > 0;
        if by_block {
            self.text(place_begin!()).number(offset).text(place_end!());
        }
        self.page().matching(filter);
        if by_block {
            self.text(concat!(" AND u.id >= (SELECT block * ", block!(), " FROM place)"));
        }
        if let Place::After(user, _) = place {
            self.text(" AND u.id > ").number(user);
        }
        self.text(" ORDER BY u.id LIMIT ").number(i64::from(place.size()) + 1);
        if by_block {
            self.text(" OFFSET (SELECT ").number(offset).text(" - before FROM place)");
        } else if offset > 0 {
            self.text(" OFFSET ").number(offset);
        }
    }

    /// The page of a search, which costs more than anything else here and finds few: all keys are looked at once, for the
    /// page and the count alike. The accounts themselves are read where they are filtered, and for the page.
    fn found(&mut self, filter: &AccountFilter, search: &str, place: Place<UserId>) {
        self.text("WITH matching AS MATERIALIZED (SELECT n.user_id AS id FROM login_names n");
        let is_filtered = filter.status.is_some() || filter.presence.is_some();
        if is_filtered {
            self.text(" JOIN users u ON u.id = n.user_id").corrections(filter);
        }
        let [begin, end] = D::HOLDS;
        self.text(" WHERE ").text(begin).word(&fold(search)).text(end);
        match filter.search_email {
            EmailSearch::No => drop(self.text(" AND n.of_username")),
            EmailSearch::Yes => {}
            EmailSearch::IfAdmin(user) => {
                self.text(" AND (n.of_username OR (SELECT c.role = 'admin' FROM users c WHERE c.id = ");
                self.number(user).text("))");
            }
        }
        if is_filtered {
            self.conditions(filter);
        }
        // An account has two keys, both of which may match.
        if filter.search_email != EmailSearch::No {
            self.text(" GROUP BY n.user_id");
        }
        self.page_of_matching(place);
    }

    /// The page of a filter that must look at every account: all are read once, for the page and the count alike.
    fn read_once(&mut self, filter: &AccountFilter, place: Place<UserId>) {
        self.text("WITH matching AS MATERIALIZED (SELECT u.id").matching(filter);
        self.page_of_matching(place);
    }

    /// Ends the table `matching`, and takes the page out of it.
    fn page_of_matching(&mut self, place: Place<UserId>) {
        self.text(") ").page();
        self.text(" FROM users u WHERE u.id IN (SELECT m.id FROM matching m WHERE true");
        if let Place::After(user, _) = place {
            self.text(" AND m.id > ").number(user);
        }
        self.text(" ORDER BY m.id LIMIT ").number(i64::from(place.size()) + 1);
        self.text(" OFFSET ").number(offset(place)).text(")");
    }

    /// The page follows, then [`Self::askers`].
    fn page(&mut self) -> &mut Self {
        self.0.push("SELECT ").push(ON_PAGE);
        self.text(concat!(", page.* FROM (SELECT ", account_columns!()))
    }

    fn askers(&mut self, askers: &[UserId]) -> &mut Self {
        self.0.push(") AS page UNION ALL SELECT ").push(ASKS);
        self.text(concat!(", ", account_columns!(), " FROM users u WHERE "));
        D::push_is_one_of(&mut self.0, askers);
        self
    }

    /// `FROM` and `WHERE`, with the effective status of [`super::PresenceFilter`].
    fn matching(&mut self, filter: &AccountFilter) -> &mut Self {
        self.text(" FROM users u").corrections(filter).text(" WHERE true").conditions(filter)
    }

    /// What Redis knows and the mirror does not, beside `u`.
    fn corrections(&mut self, filter: &AccountFilter) -> &mut Self {
        if let Some(presence) = filter.presence.as_ref().filter(|presence| !presence.corrections.is_empty()) {
            D::push_corrections(&mut self.0, &presence.corrections);
        }
        self
    }

    /// The conditions on `u`, each behind an AND.
    fn conditions(&mut self, filter: &AccountFilter) -> &mut Self {
        if let Some(status) = filter.status {
            self.text(" AND u.status = ").word(AccountStatus::as_str(status));
        }
        if let Some(presence) = &filter.presence {
            self.text(" AND CASE WHEN NOT u.may_be_present THEN 'offline'");
            if !presence.corrections.is_empty() {
                self.text(" WHEN correction.status IS NOT NULL THEN correction.status");
            }
            if let Some(since) = presence.mirror_counts_since {
                self.text(" WHEN u.last_seen IS NULL OR u.last_seen < ")
                    .instant(since)
                    .text(" THEN 'offline'");
            }
            self.text(" ELSE u.online_status END = ").word(OnlineStatus::as_str(presence.is));
        }
        self
    }
}

fn offset(place: Place<UserId>) -> i64 {
    match place {
        Place::Page(page) => page.offset(),
        Place::After(..) => 0,
    }
}
