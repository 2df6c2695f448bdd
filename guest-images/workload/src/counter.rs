//! The counter protocol: a tiny key-value store, one request a line, one response a line.
//!
//! ```text
//! SET k v   ->  OK
//! GET k     ->  VALUE v  |  NONE
//! INCR k    ->  VALUE n  (a missing key counts as 0)
//! anything else or over a limit  ->  ERROR why
//! ```
//!
//! Lines end with LF (a CR before it is ignored). Keys are printable ASCII without spaces, values
//! printable ASCII. A client that repeats an `INCR` whose answer it did not see can tell from the
//! number whether the first one counted: this is what exactly-once checks are built on.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use core::fmt;

/// Longest line in bytes, its end included.
pub const LINE_BYTES_MAX: usize = 512;
/// Longest key in bytes.
const KEY_BYTES_MAX: usize = 64;
/// Longest value in bytes.
const VALUE_BYTES_MAX: usize = 256;
/// Most keys a store keeps.
const KEYS_MAX: usize = 1024;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Store a value.
    Set {
        /// The key.
        key: &'a str,
        /// Its new value.
        value: &'a str,
    },
    /// Read a value.
    Get {
        /// The key.
        key: &'a str,
    },
    /// Add one.
    Incr {
        /// The key.
        key: &'a str,
    },
}

/// What the guest answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response<'a> {
    /// Stored.
    Ok,
    /// The value of a key.
    Value(&'a str),
    /// There is no such key.
    None,
    /// The request was refused; the text says why.
    Error(&'a str),
}

/// Why a line is not a request or a response, or a request cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterError {
    /// Longer than [`LINE_BYTES_MAX`].
    LineTooLong,
    /// Not printable ASCII.
    NotText,
    /// Not a word of the protocol.
    UnknownWord,
    /// No key, one with a space, or one longer than [`KEY_BYTES_MAX`].
    BadKey,
    /// No value, or one longer than [`VALUE_BYTES_MAX`].
    BadValue,
    /// `INCR` of something that is not a number.
    NotANumber,
    /// `INCR` of the largest number.
    Overflow,
    /// The store has [`KEYS_MAX`] keys.
    Full,
}

impl CounterError {
    /// The text behind `ERROR`.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::LineTooLong => "the line is longer than 512 bytes",
            Self::NotText => "the line is not printable ASCII",
            Self::UnknownWord => "the line does not start with a word of the protocol",
            Self::BadKey => "a key has 1 to 64 bytes and no spaces",
            Self::BadValue => "a value has 1 to 256 bytes",
            Self::NotANumber => "the value is not a number",
            Self::Overflow => "the number is the largest there is",
            Self::Full => "the store has 1024 keys, its limit",
        }
    }
}

impl fmt::Display for CounterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for CounterError {}

/// Cuts one line (without its end) off the front of received bytes: the line and how many bytes it
/// used, or `None` while it is incomplete.
///
/// # Errors
///
/// [`CounterError::LineTooLong`] once [`LINE_BYTES_MAX`] bytes hold no end of line.
pub fn next_line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, CounterError> {
    let window = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => Ok(Some((
            bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]),
            end + 1,
        ))),
        None if bytes.len() >= LINE_BYTES_MAX => Err(CounterError::LineTooLong),
        None => Ok(None),
    }
}

fn text(line: &[u8]) -> Result<&str, CounterError> {
    if line.len() >= LINE_BYTES_MAX {
        return Err(CounterError::LineTooLong);
    }
    if !line.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        return Err(CounterError::NotText);
    }
    core::str::from_utf8(line).map_err(|_| CounterError::NotText)
}

fn checked_key(key: &str) -> Result<&str, CounterError> {
    let fits = (1..=KEY_BYTES_MAX).contains(&key.len()) && !key.contains(' ');
    if fits {
        Ok(key)
    } else {
        Err(CounterError::BadKey)
    }
}

fn checked_value(value: &str) -> Result<&str, CounterError> {
    let fits = (1..=VALUE_BYTES_MAX).contains(&value.len());
    if fits {
        Ok(value)
    } else {
        Err(CounterError::BadValue)
    }
}

impl<'a> Request<'a> {
    /// Reads a line without its end.
    ///
    /// # Errors
    ///
    /// Which rule or limit the line breaks.
    pub fn parse(line: &'a [u8]) -> Result<Self, CounterError> {
        let line = text(line)?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "SET" => {
                let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
                Ok(Self::Set {
                    key: checked_key(key)?,
                    value: checked_value(value)?,
                })
            }
            "GET" => Ok(Self::Get {
                key: checked_key(rest)?,
            }),
            "INCR" => Ok(Self::Incr {
                key: checked_key(rest)?,
            }),
            _ => Err(CounterError::UnknownWord),
        }
    }
}

impl fmt::Display for Request<'_> {
    /// The line without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { key, value } => write!(f, "SET {key} {value}"),
            Self::Get { key } => write!(f, "GET {key}"),
            Self::Incr { key } => write!(f, "INCR {key}"),
        }
    }
}

impl<'a> Response<'a> {
    /// Reads a line without its end.
    ///
    /// # Errors
    ///
    /// Which rule or limit the line breaks.
    pub fn parse(line: &'a [u8]) -> Result<Self, CounterError> {
        let line = text(line)?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (word, rest) {
            ("OK", "") => Ok(Self::Ok),
            ("NONE", "") => Ok(Self::None),
            ("VALUE", value) => Ok(Self::Value(checked_value(value)?)),
            ("ERROR", why) => Ok(Self::Error(why)),
            _ => Err(CounterError::UnknownWord),
        }
    }
}

impl fmt::Display for Response<'_> {
    /// The line without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("OK"),
            Self::Value(value) => write!(f, "VALUE {value}"),
            Self::None => f.write_str("NONE"),
            Self::Error(why) => write!(f, "ERROR {why}"),
        }
    }
}

/// The store behind the protocol.
#[derive(Debug, Default, Clone)]
pub struct Store {
    values: BTreeMap<String, String>,
}

impl Store {
    /// Does what one line asks and answers. A line that is no request changes nothing.
    pub fn serve(&mut self, line: &[u8]) -> Response<'_> {
        match Request::parse(line).and_then(|request| self.apply(request)) {
            Ok(Some(value)) => Response::Value(value),
            Ok(None) if line.starts_with(b"SET") => Response::Ok,
            Ok(None) => Response::None,
            Err(error) => Response::Error(error.text()),
        }
    }

    fn apply(&mut self, request: Request<'_>) -> Result<Option<&str>, CounterError> {
        match request {
            Request::Set { key, value } => {
                self.put(key, value.to_string())?;
                Ok(None)
            }
            Request::Get { key } => Ok(self.values.get(key).map(String::as_str)),
            Request::Incr { key } => {
                let number = match self.values.get(key) {
                    None => 0,
                    Some(value) => value.parse::<u64>().map_err(|_| CounterError::NotANumber)?,
                };
                let next = number.checked_add(1).ok_or(CounterError::Overflow)?;
                self.put(key, next.to_string())?;
                Ok(self.values.get(key).map(String::as_str))
            }
        }
    }

    fn put(&mut self, key: &str, value: String) -> Result<(), CounterError> {
        if let Some(slot) = self.values.get_mut(key) {
            *slot = value;
            return Ok(());
        }
        if self.values.len() >= KEYS_MAX {
            return Err(CounterError::Full);
        }
        self.values.insert(key.to_string(), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::vec;

    fn ask(store: &mut Store, line: &str) -> String {
        store.serve(line.as_bytes()).to_string()
    }

    #[test]
    fn a_session() {
        let mut store = Store::default();
        assert_eq!(ask(&mut store, "GET a"), "NONE");
        assert_eq!(ask(&mut store, "INCR a"), "VALUE 1");
        assert_eq!(ask(&mut store, "INCR a"), "VALUE 2");
        assert_eq!(ask(&mut store, "SET a two words"), "OK");
        assert_eq!(ask(&mut store, "GET a"), "VALUE two words");
        assert_eq!(ask(&mut store, "INCR a"), "ERROR the value is not a number");
        assert_eq!(ask(&mut store, "SET a 18446744073709551615"), "OK");
        assert_eq!(
            ask(&mut store, "INCR a"),
            "ERROR the number is the largest there is"
        );
        assert_eq!(ask(&mut store, "GET a"), "VALUE 18446744073709551615");
        assert!(ask(&mut store, "DROP a").starts_with("ERROR"));
    }

    #[test]
    fn the_limits_hold() {
        let mut store = Store::default();
        for key in 0..KEYS_MAX {
            assert_eq!(ask(&mut store, &format!("INCR k{key}")), "VALUE 1");
        }
        assert_eq!(
            ask(&mut store, "INCR one-more"),
            "ERROR the store has 1024 keys, its limit"
        );
        assert_eq!(ask(&mut store, "INCR k7"), "VALUE 2");
        let key = "k".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(
            Request::parse(format!("GET {key}").as_bytes()),
            Err(CounterError::BadKey)
        );
        let value = "v".repeat(VALUE_BYTES_MAX + 1);
        let set = format!("SET k {value}");
        assert_eq!(Request::parse(set.as_bytes()), Err(CounterError::BadValue));
        assert_eq!(Request::parse(b"SET k"), Err(CounterError::BadValue));
        assert_eq!(Request::parse(b"GET a b"), Err(CounterError::BadKey));
        assert_eq!(Request::parse(b"GET \x07"), Err(CounterError::NotText));
    }

    #[test]
    fn lines_are_cut_at_their_end_only() {
        assert_eq!(next_line(b"GET a"), Ok(None));
        assert_eq!(next_line(b"GET a\r\nGET b\n"), Ok(Some((&b"GET a"[..], 7))));
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(next_line(&long[1..]), Ok(None));
        assert_eq!(next_line(&long), Err(CounterError::LineTooLong));
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(key in "[!-~]{1,64}", value in "[ -~]{1,256}", word in 0..3) {
            let request = match word {
                0 => Request::Set { key: &key, value: &value },
                1 => Request::Get { key: &key },
                _ => Request::Incr { key: &key },
            };
            let line = request.to_string();
            prop_assert!(line.len() < LINE_BYTES_MAX);
            prop_assert_eq!(Request::parse(line.as_bytes()), Ok(request));
        }

        #[test]
        fn responses_survive_the_wire(value in "[ -~]{1,256}") {
            for response in [Response::Value(&value), Response::Error(&value), Response::Ok, Response::None] {
                let line = response.to_string();
                prop_assert_eq!(Response::parse(line.as_bytes()), Ok(response));
            }
        }

        #[test]
        fn any_bytes_get_one_answer_line(line: std::vec::Vec<u8>) {
            let mut store = Store::default();
            let answer = store.serve(&line).to_string();
            prop_assert!(!answer.contains('\n') && answer.len() < LINE_BYTES_MAX);
            prop_assert!(Response::parse(answer.as_bytes()).is_ok());
        }
    }
}
