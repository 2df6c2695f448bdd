//! The HTTP/1.1 paths of the `stream` workload, as much HTTP as they need.
//!
//! - `GET /stream[?from=N]`: the [`pattern`](crate::pattern) from position N (default 0) on, without
//!   end: `Connection: close`, no `Content-Length`, rate limited per client.
//! - `GET /file?bytes=N`: the first N bytes of the pattern, with `Content-Length`.
//! - `GET /status`: a JSON object, see [`Status`].
//!
//! One request a connection; the guest closes behind every response.

use core::fmt;

/// Longest request head in bytes.
pub const HEAD_BYTES_MAX: usize = 2048;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The endless stream.
    Stream {
        /// First position, in bytes.
        from: u64,
    },
    /// A plain download.
    File {
        /// Length of the body.
        bytes: u64,
    },
    /// What the guest is doing.
    Status,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpError {
    /// The head is longer than [`HEAD_BYTES_MAX`].
    HeadTooLong,
    /// Not a request line of HTTP/1.
    BadRequest,
    /// Not `GET`.
    MethodNotAllowed,
    /// No such path.
    NotFound,
    /// The parameters of this path are missing, unknown or not numbers.
    BadParameter,
}

impl HttpError {
    /// Status code and text of the response.
    #[must_use]
    pub fn status(self) -> &'static str {
        match self {
            Self::HeadTooLong => "431 Request Header Fields Too Large",
            Self::BadRequest | Self::BadParameter => "400 Bad Request",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::NotFound => "404 Not Found",
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::HeadTooLong => "the request head is longer than 2048 bytes",
            Self::BadRequest => "this is not an HTTP/1 request",
            Self::MethodNotAllowed => "only GET is served",
            Self::NotFound => "there are /stream[?from=N], /file?bytes=N and /status",
            Self::BadParameter => "the parameters are not what this path takes",
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

impl core::error::Error for HttpError {}

impl Request {
    /// Reads a request head from the front of received bytes; `None` while it is incomplete.
    ///
    /// # Errors
    ///
    /// Why the request must be refused.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, HttpError> {
        let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
        let Some(end) = window.windows(4).position(|four| four == b"\r\n\r\n") else {
            let too_long = bytes.len() >= HEAD_BYTES_MAX;
            return if too_long {
                Err(HttpError::HeadTooLong)
            } else {
                Ok(None)
            };
        };
        let line = window[..end]
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        let line = core::str::from_utf8(line).map_err(|_| HttpError::BadRequest)?;
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(HttpError::BadRequest);
        };
        if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
            return Err(HttpError::BadRequest);
        }
        if method != "GET" {
            return Err(HttpError::MethodNotAllowed);
        }
        Self::from_target(target).map(Some)
    }

    fn from_target(target: &str) -> Result<Self, HttpError> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let number = |name| {
            let value = query?.strip_prefix(name)?.strip_prefix('=')?;
            if value.starts_with('+') {
                None
            } else {
                value.parse::<u64>().ok()
            }
        };
        match (path, query) {
            ("/stream", None) => Ok(Self::Stream { from: 0 }),
            ("/stream", Some(_)) => number("from")
                .map(|from| Self::Stream { from })
                .ok_or(HttpError::BadParameter),
            ("/file", _) => number("bytes")
                .map(|bytes| Self::File { bytes })
                .ok_or(HttpError::BadParameter),
            ("/status", None) => Ok(Self::Status),
            ("/status", Some(_)) => Err(HttpError::BadParameter),
            _ => Err(HttpError::NotFound),
        }
    }
}

impl fmt::Display for Request {
    /// The request head, ready to send.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GET ")?;
        match self {
            Self::Stream { from } => write!(f, "/stream?from={from}")?,
            Self::File { bytes } => write!(f, "/file?bytes={bytes}")?,
            Self::Status => f.write_str("/status")?,
        }
        f.write_str(" HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")
    }
}

/// A response head, ready to send: `Display` writes it with its empty line. For a refusal the body
/// (why, one line) follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseHead {
    /// Pattern bytes; with a length unless endless.
    Pattern {
        /// Length of the body, `None` for an endless one.
        bytes: Option<u64>,
    },
    /// JSON of this many bytes.
    Json {
        /// Length of the body.
        bytes: usize,
    },
    /// Head and body of a refusal.
    Refusal(HttpError),
}

impl fmt::Display for ResponseHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern { bytes } => {
                f.write_str("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n")?;
                if let Some(bytes) = bytes {
                    write!(f, "Content-Length: {bytes}\r\n")?;
                }
                f.write_str("Connection: close\r\n\r\n")
            }
            Self::Json { bytes } => write!(
                f,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {bytes}\r\n\
                 Connection: close\r\n\r\n"
            ),
            Self::Refusal(error) => write!(
                f,
                "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{}\n",
                error.status(),
                error.why().len() + 1,
                error.why()
            ),
        }
    }
}

/// What `/status` tells; `Display` writes it as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status<'a> {
    /// Time since the machine was made, by the guest's clock.
    pub uptime_ms: u64,
    /// Iterations of the `dirty` workload, one entry a vCPU.
    pub dirty_iterations: &'a [u64],
    /// Connections that are open now, on all ports.
    pub open_connections: usize,
    /// Bytes echoed so far on each open `echo` connection.
    pub echo_bytes: &'a [u64],
}

impl fmt::Display for Status<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{{\"uptime_ms\":{},\"dirty_iterations\":",
            self.uptime_ms
        )?;
        list(f, self.dirty_iterations)?;
        write!(
            f,
            ",\"open_connections\":{},\"echo_bytes\":",
            self.open_connections
        )?;
        list(f, self.echo_bytes)?;
        f.write_str("}")
    }
}

fn list(f: &mut fmt::Formatter<'_>, numbers: &[u64]) -> fmt::Result {
    f.write_str("[")?;
    for (index, number) in numbers.iter().enumerate() {
        write!(f, "{}{number}", if index == 0 { "" } else { "," })?;
    }
    f.write_str("]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    fn get(target: &str) -> Result<Option<Request>, HttpError> {
        Request::parse(std::format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
    }

    #[test]
    fn the_paths() {
        assert_eq!(get("/stream"), Ok(Some(Request::Stream { from: 0 })));
        assert_eq!(
            get("/stream?from=12"),
            Ok(Some(Request::Stream { from: 12 }))
        );
        assert_eq!(get("/file?bytes=9"), Ok(Some(Request::File { bytes: 9 })));
        assert_eq!(get("/status"), Ok(Some(Request::Status)));
        assert_eq!(get("/"), Err(HttpError::NotFound));
        for bad in [
            "/file",
            "/stream?from=",
            "/stream?from=+1",
            "/stream?from=1&x=2",
            "/stream?to=1",
        ] {
            assert_eq!(get(bad), Err(HttpError::BadParameter), "{bad}");
        }
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        assert_eq!(
            Request::parse(b"POST /stream HTTP/1.1\r\n\r\n"),
            Err(HttpError::MethodNotAllowed)
        );
        assert_eq!(
            Request::parse(b"GET /stream HTTP/2\r\n\r\n"),
            Err(HttpError::BadRequest)
        );
        assert_eq!(
            Request::parse(b"GET  /stream HTTP/1.1\r\n\r\n"),
            Err(HttpError::BadRequest)
        );
        assert_eq!(Request::parse(b"\r\n\r\n"), Err(HttpError::BadRequest));
        let long = vec![b'a'; HEAD_BYTES_MAX];
        assert_eq!(Request::parse(&long[1..]), Ok(None));
        assert_eq!(Request::parse(&long), Err(HttpError::HeadTooLong));
    }

    #[test]
    fn status_is_json() {
        let status = Status {
            uptime_ms: 7,
            dirty_iterations: &[1, 2],
            open_connections: 3,
            echo_bytes: &[],
        };
        assert_eq!(
            status.to_string(),
            r#"{"uptime_ms":7,"dirty_iterations":[1,2],"open_connections":3,"echo_bytes":[]}"#
        );
    }

    #[test]
    fn a_refusal_has_the_length_it_says() {
        let response = ResponseHead::Refusal(HttpError::NotFound).to_string();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"));
        assert!(head.contains(&std::format!("Content-Length: {}\r\n", body.len())));
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire_in_any_pieces(number: u64, kind in 0..3, cut: prop::sample::Index) {
            let request = match kind {
                0 => Request::Stream { from: number },
                1 => Request::File { bytes: number },
                _ => Request::Status,
            };
            let head = request.to_string();
            prop_assert_eq!(Request::parse(head.as_bytes()), Ok(Some(request)));
            prop_assert_eq!(Request::parse(&head.as_bytes()[..cut.index(head.len())]), Ok(None));
        }

        #[test]
        fn any_bytes_are_answered(mut bytes: Vec<u8>) {
            bytes.extend_from_slice(b"\r\n\r\n");
            prop_assert!(!matches!(Request::parse(&bytes), Ok(None)));
        }
    }
}
