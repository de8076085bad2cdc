//! What a new username may hold: the `UsernameCaseMapped` profile of RFC 8265, on the string class `IdentifierClass` of
//! RFC 8264.
//!
//! A username is one or more parts, separated by spaces; each part keeps to the profile. The derived property of a code
//! point comes from the tables of the Unicode version of ICU4X, as RFC 8264 (section 11.1) intends. The spelling that is
//! kept is that of `UsernameCasePreserved`: letter case stays, width and normalisation do not.

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::props::{
    BidiClass, CanonicalCombiningClass, EastAsianWidth, EnumeratedProperty, GeneralCategory,
    HangulSyllableType, JoinControl, JoiningType, NoncharacterCodePoint, Script,
};
use icu_properties::{CodePointMapData, CodePointSetData};

use crate::model::login_name::is_ignorable;

/// Why a username is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Objection {
    /// A code point that no name may hold.
    CodePoint(char),
    /// A code point that is allowed beside certain others only.
    OutOfContext(char),
    /// Letters that run from right to left beside others in a way whose display is ambiguous (RFC 5893).
    Direction,
}

/// The derived property of a code point for the class `IdentifierClass` (RFC 8264, section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Derived {
    Valid,
    InContext,
    Disallowed,
}

/// The username as it is kept: fullwidth and halfwidth characters in their ordinary form, in NFC.
///
/// # Errors
/// The first [`Objection`].
pub(super) fn enforce(username: &str) -> Result<String, Objection> {
    let mapped: String = username.chars().map(ordinary_width).collect();
    for part in mapped.split(' ') {
        let letters: Vec<char> = part.chars().collect();
        for (index, c) in letters.iter().enumerate() {
            match derived(*c) {
                Derived::Valid => {}
                Derived::InContext if is_in_context(&letters, index) => {}
                Derived::InContext => return Err(Objection::OutOfContext(*c)),
                Derived::Disallowed => return Err(Objection::CodePoint(*c)),
            }
        }
        if !is_of_clear_direction(&letters) {
            return Err(Objection::Direction);
        }
    }
    Ok(ComposingNormalizerBorrowed::new_nfc().normalize(&mapped).into_owned())
}

/// Whether the character takes no ink and is no space: ignorable by default, a control character, a line or paragraph
/// separator, or the blank of the Braille patterns.
pub(super) fn is_invisible(c: char) -> bool {
    c.is_control() || is_ignorable(c) || matches!(c, '\u{2028}' | '\u{2029}' | '\u{2800}')
}

/// The first invisible character of a text, apart from joiners that its script needs.
pub(super) fn first_invisible(text: &str) -> Option<char> {
    let letters: Vec<char> = text.chars().collect();
    let needed =
        |index: usize| matches!(letters[index], '\u{200c}' | '\u{200d}') && is_in_context(&letters, index);
    let found = (0..letters.len()).find(|index| is_invisible(letters[*index]) && !needed(*index));
    found.map(|index| letters[index])
}

fn property<T: EnumeratedProperty>(c: char) -> T {
    CodePointMapData::<T>::new().get(c)
}

/// The width mapping rule (RFC 8265, section 3.3.1): a fullwidth or halfwidth character becomes what it decomposes to.
fn ordinary_width(c: char) -> char {
    if !matches!(property(c), EastAsianWidth::Fullwidth | EastAsianWidth::Halfwidth) {
        return c;
    }
    let mut mapped = compatible(c);
    match (mapped.next(), mapped.next()) {
        (Some(one), None) => one,
        // Decomposes further than by its width; `derived` refuses it.
        _ => c,
    }
}

fn compatible(c: char) -> impl Iterator<Item = char> {
    ComposingNormalizerBorrowed::new_nfkc().normalize_iter(std::iter::once(c))
}

/// RFC 8264, section 8, in its order.
fn derived(c: char) -> Derived {
    use GeneralCategory as G;
    match c {
        // The exceptions of RFC 5892, section 2.6.
        // And ASCII, whose class comes before all other rules.
        '\u{df}' | '\u{3c2}' | '\u{6fd}' | '\u{6fe}' | '\u{f0b}' | '\u{3007}' | '!'..='~' => {
            return Derived::Valid;
        }
        '\u{b7}'
        | '\u{375}'
        | '\u{5f3}'
        | '\u{5f4}'
        | '\u{30fb}'
        | '\u{660}'..='\u{669}'
        | '\u{6f0}'..='\u{6f9}' => return Derived::InContext,
        '\u{640}' | '\u{7fa}' | '\u{302e}' | '\u{302f}' | '\u{3031}'..='\u{3035}' | '\u{303b}' => {
            return Derived::Disallowed;
        }
        _ if CodePointSetData::new::<JoinControl>().contains(c) => return Derived::InContext,
        _ => {}
    }
    let is_old_jamo = matches!(
        property(c),
        HangulSyllableType::LeadingJamo | HangulSyllableType::VowelJamo | HangulSyllableType::TrailingJamo
    );
    let is_refused = is_old_jamo
        || is_ignorable(c)
        || CodePointSetData::new::<NoncharacterCodePoint>().contains(c)
        || !compatible(c).eq([c]);
    match property(c) {
        _ if is_refused => Derived::Disallowed,
        G::UppercaseLetter
        | G::LowercaseLetter
        | G::OtherLetter
        | G::ModifierLetter
        | G::DecimalNumber
        | G::NonspacingMark
        | G::SpacingMark => Derived::Valid,
        _ => Derived::Disallowed,
    }
}

/// The contextual rules of RFC 5892, appendix A.
fn is_in_context(part: &[char], index: usize) -> bool {
    let before = index.checked_sub(1).map(|before| part[before]);
    let after = part.get(index + 1).copied();
    let after_virama = before
        .is_some_and(|before| property::<CanonicalCombiningClass>(before) == CanonicalCombiningClass::Virama);
    let holds_none = |range: std::ops::RangeInclusive<char>| !part.iter().any(|c| range.contains(c));
    match part[index] {
        '\u{200c}' => after_virama || is_between_joining(part, index),
        '\u{200d}' => after_virama,
        '\u{b7}' => before == Some('l') && after == Some('l'),
        '\u{375}' => after.is_some_and(|after| property::<Script>(after) == Script::Greek),
        '\u{5f3}' | '\u{5f4}' => before.is_some_and(|before| property::<Script>(before) == Script::Hebrew),
        '\u{30fb}' => {
            part.iter().any(|c| matches!(property(*c), Script::Hiragana | Script::Katakana | Script::Han))
        }
        '\u{660}'..='\u{669}' => holds_none('\u{6f0}'..='\u{6f9}'),
        _ => holds_none('\u{660}'..='\u{669}'),
    }
}

/// The rule of the zero width non-joiner: it breaks a cursive connection that there would be.
fn is_between_joining(part: &[char], index: usize) -> bool {
    let transparent = |c: &&char| property::<JoiningType>(**c) == JoiningType::Transparent;
    let joins = |c: Option<&char>, types: [JoiningType; 2]| c.is_some_and(|c| types.contains(&property(*c)));
    joins(
        part[..index].iter().rev().find(|c| !transparent(c)),
        [JoiningType::LeftJoining, JoiningType::DualJoining],
    ) && joins(
        part[index + 1..].iter().find(|c| !transparent(c)),
        [JoiningType::RightJoining, JoiningType::DualJoining],
    )
}

/// The Bidi Rule (RFC 5893, section 2), which binds a text that holds letters of a script that runs from right to left.
fn is_of_clear_direction(part: &[char]) -> bool {
    use BidiClass as B;
    let classes: Vec<BidiClass> = part.iter().map(|c| property(*c)).collect();
    let has = |wanted: BidiClass| classes.contains(&wanted);
    if !has(B::RightToLeft) && !has(B::ArabicLetter) && !has(B::ArabicNumber) {
        return true;
    }
    let neutral = [
        B::EuropeanNumber,
        B::EuropeanSeparator,
        B::CommonSeparator,
        B::EuropeanTerminator,
        B::OtherNeutral,
        B::BoundaryNeutral,
        B::NonspacingMark,
    ];
    let last = classes.iter().rev().find(|class| **class != B::NonspacingMark);
    let only = |own: &[BidiClass]| classes.iter().all(|class| own.contains(class) || neutral.contains(class));
    match classes[0] {
        B::RightToLeft | B::ArabicLetter => {
            only(&[B::RightToLeft, B::ArabicLetter, B::ArabicNumber])
                && last.is_some_and(|last| {
                    [B::RightToLeft, B::ArabicLetter, B::EuropeanNumber, B::ArabicNumber].contains(last)
                })
                && !(has(B::EuropeanNumber) && has(B::ArabicNumber))
        }
        // Nothing that runs from right to left may stand in a text that begins from left to right.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_scripts_are_kept_as_they_are() {
        for name in [
            "ada",
            "Ada Lovelace",
            "ada@example.com",
            "it's_%{0}~",
            "Zoë",
            "Straße",
            "ΣΊΣΥΦΟΣ",
            "Дмитрий",
            "愛子",
            "강남",
            "नमस्ते",
            "क्\u{200d}ष",
            "مرحبا",
            "نامه\u{200c}ای",
            "محمد123",
            "שלום",
            "col·lega",
            "ト・ト",
            "𞤀𞤣𞤤𞤢𞤥",
        ] {
            assert_eq!(enforce(name), Ok(name.to_owned()), "{name}");
        }
    }

    #[test]
    fn width_and_normalisation_are_those_of_the_profile() {
        for (given, kept) in
            [("Ａｄａ", "Ada"), ("e\u{301}va", "éva"), ("ｶﾞ", "ガ"), ("山田\u{3000}太郎", "山田 太郎")]
        {
            assert_eq!(enforce(given).as_deref(), Ok(kept), "{given}");
        }
    }

    #[test]
    fn invisible_and_compatible_characters_symbols_and_unclear_directions_are_refused() {
        for (name, objection) in [
            ("ad\u{200b}a", Objection::CodePoint('\u{200b}')),
            ("\u{212a}im", Objection::CodePoint('\u{212a}')),
            ("ada\u{ad}", Objection::CodePoint('\u{ad}')),
            ("\u{3164}", Objection::CodePoint('\u{3164}')),
            ("\u{2800}", Objection::CodePoint('\u{2800}')),
            ("a\u{a0}b", Objection::CodePoint('\u{a0}')),
            ("a\u{2003}b", Objection::CodePoint('\u{2003}')),
            ("\u{202e}nimda", Objection::CodePoint('\u{202e}')),
            ("a\u{fe0f}", Objection::CodePoint('\u{fe0f}')),
            ("a\u{e0041}", Objection::CodePoint('\u{e0041}')),
            ("ﬁn", Objection::CodePoint('ﬁ')),
            ("Ⅳ", Objection::CodePoint('Ⅳ')),
            ("🦀", Objection::CodePoint('🦀')),
            ("a—b", Objection::CodePoint('—')),
            ("a\0b", Objection::CodePoint('\0')),
            ("\u{378}", Objection::CodePoint('\u{378}')),
            ("\u{1100}", Objection::CodePoint('\u{1100}')),
            ("\u{ffe3}", Objection::CodePoint('\u{ffe3}')),
            ("\u{200d}ada\u{200d}", Objection::OutOfContext('\u{200d}')),
            ("ad\u{200c}a", Objection::OutOfContext('\u{200c}')),
            ("a·b", Objection::OutOfContext('·')),
            ("a・b", Objection::OutOfContext('・')),
            ("٣۳", Objection::OutOfContext('٣')),
            ("abcمرحبا", Objection::Direction),
            ("مرحباabc", Objection::Direction),
            ("مرحبا1٢", Objection::Direction),
            ("٢", Objection::Direction),
        ] {
            assert_eq!(enforce(name), Err(objection), "{name:?}");
        }
    }

    #[test]
    fn an_invisible_character_is_found_unless_its_script_needs_it() {
        for (text, found) in [
            ("نامه\u{200c}ای", None),
            ("🦀 — Ⅳ", None),
            ("ad\u{200c}a", Some('\u{200c}')),
            ("a\u{2028}b", Some('\u{2028}')),
            ("❤\u{fe0f}", Some('\u{fe0f}')),
        ] {
            assert_eq!(first_invisible(text), found, "{text:?}");
        }
    }

    #[test]
    fn what_is_kept_is_kept_again_unchanged() {
        for c in (0..=0x10_ffff_u32).filter_map(char::from_u32) {
            let Ok(kept) = enforce(&format!("a{c}")) else { continue };
            assert_eq!(enforce(&kept), Ok(kept.clone()), "{c:?}");
            assert_eq!(first_invisible(&kept), None, "{c:?}");
        }
    }
}
