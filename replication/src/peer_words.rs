//! What a peer says, before anything is done with it: lists that must not be long, and text for
//! people.
//!
//! Must not be done here: deciding what is true.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Longest name of a peer that is shown, in characters.
pub(crate) const NAME_CHARS_MAX: usize = 64;
/// Longest reason of a peer that is shown, in characters.
pub(crate) const REASON_CHARS_MAX: usize = 1000;

/// Deserialises a list of at most `MAX` elements. An element takes a byte or two on the wire and
/// many times that in memory, so the length of a body alone is no bound.
///
/// # Errors
/// If there are more, or one of them cannot be read.
pub(crate) fn at_most<'de, const MAX: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(AtMost::<MAX, T>(PhantomData))
}

struct AtMost<const MAX: usize, T>(PhantomData<T>);

impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for AtMost<MAX, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            if elements.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}

/// A peer's text as it may be shown to a person: on one line, in its own direction of writing,
/// without what a terminal would obey, and with at most `chars_max` characters, or so many and an
/// ellipsis. What has been through this once stays as it is.
pub(crate) fn for_people(text: &str, chars_max: usize) -> String {
    let (mut shown, mut chars) = (String::new(), 0);
    for char in text.chars() {
        let is_hidden = matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        let escaped = char.is_control() || is_hidden;
        chars += if escaped {
            char.escape_default().count()
        } else {
            1
        };
        if chars > chars_max {
            shown.push('…');
            break;
        }
        if escaped {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Said {
        #[serde(deserialize_with = "at_most::<3, _, _>")]
        list: Vec<u8>,
    }

    #[test]
    fn a_list_that_is_too_long_is_refused() {
        for len in 0..6 {
            let said = Said {
                list: (0..len).collect(),
            };
            let bytes = postcard::to_stdvec(&said).unwrap();
            let read = postcard::from_bytes::<Said>(&bytes).ok();
            assert_eq!(read, (len <= 3).then_some(said));
        }
    }

    #[test]
    fn text_is_short_and_moves_no_cursor() {
        assert_eq!(for_people("höst-a", 64), "höst-a");
        assert_eq!(
            for_people("a\n\u{1b}[2J\u{202e}b", 64),
            "a\\n\\u{1b}[2J\\u{202e}b"
        );
        assert_eq!(for_people("abcd", 4), "abcd");
        assert_eq!(for_people("abcde", 4), "abcd…");
        // An escape counts as long as it is shown.
        assert_eq!(for_people("ab\n\u{1b}c", 4), "ab\\n…");
    }

    #[test]
    fn what_was_made_fit_for_people_once_stays_as_it_is() {
        let long = "\u{13}".repeat(9);
        for text in [
            "abcdefghi",
            "ab\n\u{1b}\u{202e}c",
            "höst\u{feff}",
            "…………………",
            &long,
        ] {
            for chars_max in 0..70 {
                let once = for_people(text, chars_max);
                assert!(once.chars().count() <= chars_max + 1, "{once}");
                assert_eq!(for_people(&once, chars_max), once, "{chars_max}");
            }
        }
    }
}
