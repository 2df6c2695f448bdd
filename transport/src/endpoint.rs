//! The address of a link, as people write it: `tcp:HOST:PORT`, `HOST:PORT` or `unix:/PATH`.
//!
//! This is only text: names are not resolved and nothing is opened here.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest path that the kernel accepts for a Unix socket, in bytes (`sun_path` without its NUL).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// The address where a link is reached or listened for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `HOST:PORT`. An IPv6 address is in brackets.
    Tcp(String),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

/// Text that is not an [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an address: {problem}; write HOST:PORT, tcp:HOST:PORT or unix:/PATH")]
pub struct EndpointError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let refuse = |problem: String| EndpointError {
            text: text.to_owned(),
            problem,
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(refuse("the path is missing".into())),
                _ if path.contains('\0') => Err(refuse("the path has a NUL in it".into())),
                1..=UNIX_PATH_BYTES_MAX => Ok(Self::Unix(path.into())),
                len => Err(refuse(format!(
                    "the path has {len} bytes, a Unix socket's at most {UNIX_PATH_BYTES_MAX}"
                ))),
            };
        }
        let address = text.strip_prefix("tcp:").unwrap_or(text);
        let Some((host, port)) = address.rsplit_once(':') else {
            return Err(refuse("the port is missing".into()));
        };
        if host.is_empty() {
            return Err(refuse("the host is missing".into()));
        }
        let in_brackets = host.starts_with('[') && host.ends_with(']');
        if host.contains(':') && !in_brackets {
            return Err(refuse(
                "an IPv6 address goes in brackets, as [::1]:7700".into(),
            ));
        }
        if host.contains(char::is_whitespace) || host.contains('/') {
            return Err(refuse(format!("'{host}' cannot be a host")));
        }
        if port.parse::<u16>().is_err() {
            return Err(refuse(format!("'{port}' is not a port from 0 to 65535")));
        }
        Ok(Self::Tcp(address.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for (text, endpoint) in [
            ("tcp:beta:7700", Endpoint::Tcp("beta:7700".into())),
            ("tcp:[::1]:0", Endpoint::Tcp("[::1]:0".into())),
            (
                "unix:/run/us/a.sock",
                Endpoint::Unix("/run/us/a.sock".into()),
            ),
        ] {
            assert_eq!(text.parse::<Endpoint>().as_ref(), Ok(&endpoint));
            assert_eq!(endpoint.to_string(), text);
        }
        assert_eq!(
            "10.0.0.2:7700".parse(),
            Ok(Endpoint::Tcp("10.0.0.2:7700".into()))
        );
    }

    #[test]
    fn says_what_is_wrong_and_what_would_be_right() {
        let long = format!("unix:/{}", "x".repeat(107));
        for (text, hint) in [
            ("beta", "port is missing"),
            (":7700", "host is missing"),
            ("beta:ssh", "'ssh' is not a port"),
            ("beta:70000", "'70000' is not a port"),
            ("::1:7700", "goes in brackets"),
            ("http://beta:7700", "goes in brackets"),
            ("be ta:7700", "cannot be a host"),
            ("unix:", "path is missing"),
            (&long, "108 bytes"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
            assert!(error.contains("write HOST:PORT"), "{text}: {error}");
        }
    }
}
