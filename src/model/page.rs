//! Pages of a list.

use super::{Millis, UserId};

/// The largest page that is served.
pub const MAX_PER_PAGE: u32 = 1000;

/// Which part of a list is asked for; `number` counts from 1, `size` lies within 1 and [`MAX_PER_PAGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Page {
    /// Number of the page, from 1.
    pub number: u32,
    /// Items a page.
    pub size: u32,
}

impl Page {
    /// How many items come before this page.
    pub fn offset(self) -> i64 {
        i64::from(self.number.saturating_sub(1)) * i64::from(self.size)
    }

    /// How many pages `total` items fill.
    pub fn count(self, total: i64) -> i64 {
        (total + i64::from(self.size) - 1) / i64::from(self.size)
    }
}

/// Where a part of a list begins: at a page's number, or behind the item that a cursor names, however deep in the list
/// that lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place<C> {
    /// A page by its number.
    Page(Page),
    /// So many items behind the cursor; the size as in [`Page`].
    After(C, u32),
}

impl<C> Place<C> {
    /// Items at most.
    pub const fn size(&self) -> u32 {
        match self {
            Self::Page(page) => page.size,
            Self::After(_, size) => *size,
        }
    }
}

impl<C> From<Page> for Place<C> {
    fn from(page: Page) -> Self {
        Self::Page(page)
    }
}

/// A place in the list of who is online, which goes from the latest deadline to the earliest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OnlineCursor {
    /// The deadline that the user had.
    pub deadline: Millis,
    /// The user.
    pub user: UserId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_just_full_has_no_successor() {
        let page = Page { number: 3, size: 50 };
        assert_eq!((page.offset(), page.count(0), page.count(50), page.count(51)), (100, 0, 1, 2));
    }
}
