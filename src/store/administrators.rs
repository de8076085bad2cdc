//! The rule that somebody is always left who can administer.

use super::{AccountPatch, Result, StoreError};
use crate::model::account::may_be_present;
use crate::model::{Account, Role, UserId};

impl AccountPatch {
    /// Whether it could make an administrator less of one.
    pub(super) fn may_end_an_administration(&self) -> bool {
        self.role.is_some_and(|role| role != Role::Admin)
            || self.status.is_some_and(|status| !may_be_present(status, true))
            || self.is_active == Some(false)
    }
}

/// Refuses a change after which nobody could administer. `administrators` are those before it; `after` is `None` where
/// the account is deleted.
///
/// # Errors
/// [`StoreError::LastAdministrator`].
pub fn refuse_the_last(administrators: &[UserId], before: &Account, after: Option<&Account>) -> Result<()> {
    let steps_down = can_administer(before) && !after.is_some_and(can_administer);
    let others = administrators.iter().any(|id| *id != before.id);
    if steps_down && !others { Err(StoreError::LastAdministrator) } else { Ok(()) }
}

/// Whether the account may administer.
pub fn can_administer(account: &Account) -> bool {
    account.role == Role::Admin && account.may_be_present()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AccountStatus, OnlineStatus};

    fn account(id: UserId, role: Role, status: AccountStatus) -> Account {
        Account {
            id,
            username: "ada".into(),
            email: "ada@example.com".into(),
            role,
            status,
            is_active: true,
            mirror: OnlineStatus::Offline,
            last_seen: None,
        }
    }

    #[test]
    fn only_the_last_one_who_can_administer_is_kept() {
        let admin = account(7, Role::Admin, AccountStatus::Active);
        let user = account(7, Role::User, AccountStatus::Active);
        let banned = account(7, Role::Admin, AccountStatus::Banned);
        let refused = |others: &[UserId], before: &Account, after: Option<&Account>| {
            refuse_the_last(others, before, after).is_err()
        };
        assert!(refused(&[7], &admin, Some(&user)) && refused(&[7], &admin, Some(&banned)));
        assert!(refused(&[7], &admin, None) && refused(&[], &admin, None));
        assert!(!refused(&[7, 8], &admin, None) && !refused(&[7], &admin, Some(&admin)));
        assert!(!refused(&[8], &banned, None) && !refused(&[], &user, None), "who was none is no loss");
    }

    #[test]
    fn a_patch_says_whether_it_could_take_an_administration() {
        let patch = AccountPatch::default;
        assert!(AccountPatch { role: Some(Role::User), ..patch() }.may_end_an_administration());
        assert!(
            AccountPatch { status: Some(AccountStatus::Inactive), ..patch() }.may_end_an_administration()
        );
        assert!(AccountPatch { is_active: Some(false), ..patch() }.may_end_an_administration());
        let harmless = AccountPatch {
            role: Some(Role::Admin),
            status: Some(AccountStatus::Pending),
            is_active: Some(true),
            email: Some("a@b".into()),
            password_hash: None,
        };
        assert!(!harmless.may_end_an_administration());
    }
}
