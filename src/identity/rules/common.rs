//! Passwords that many people use.

use std::sync::LazyLock;

/// One a line behind a header, in lower case, sorted by their bytes. Shorter ones and numbers are refused anyway.
static COMMON: LazyLock<Vec<&str>> = LazyLock::new(|| {
    include_str!("common_passwords.txt").lines().skip_while(|line| line.starts_with("# ")).collect()
});

/// Whether the password is among them, whatever its case and the spaces around it.
pub(super) fn is_common(password: &str) -> bool {
    let password = password.to_lowercase();
    COMMON.binary_search(&password.trim()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_whole_and_sorted_and_each_of_it_is_found() {
        assert!(COMMON.len() > 7_000, "{}", COMMON.len());
        assert!(COMMON.is_sorted());
        for common in COMMON.iter() {
            assert!(common.chars().count() >= super::super::MIN_PASSWORD, "{common}");
            assert!(!common.chars().all(|letter| letter.is_ascii_digit()), "{common}");
            assert!(is_common(common), "{common}");
        }
        assert!(!is_common("correct horse battery"));
    }
}
