//! ICMP's echo, for both versions of IP: what is asked, and what is an answer.
//!
//! What must not be done here: sockets.

use std::net::IpAddr;

/// Type, code, checksum, identifier and sequence number.
const HEADER_BYTES: usize = 8;
/// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_6: u8 = 128;
const ECHO_REPLY_6: u8 = 129;

/// An echo request with `token` in it, which the answer has, too.
pub(super) fn request(target: IpAddr, token: u64) -> Vec<u8> {
    let kind = match target {
        IpAddr::V4(_) => ECHO,
        IpAddr::V6(_) => ECHO_6,
    };
    // The identifier and the number may be anything: the token tells answers apart.
    let mut packet = vec![0; HEADER_BYTES];
    packet[0] = kind;
    packet.extend(token.to_be_bytes());
    if target.is_ipv4() {
        // The kernel does it for the other one.
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Whether what a socket has received is the answer. A raw one receives an IPv4 header before it, and whatever else of ICMP
/// comes from there.
pub(super) fn is_answer(target: IpAddr, received: &[u8], token: u64) -> bool {
    let (kind, message) = match (target, received.first()) {
        (IpAddr::V4(_), Some(first)) if first >> 4 == 4 => {
            let header = usize::from(first & 0xf) * 4;
            (ECHO_REPLY, received.get(header..))
        }
        (IpAddr::V4(_), _) => (ECHO_REPLY, Some(received)),
        (IpAddr::V6(_), _) => (ECHO_REPLY_6, Some(received)),
    };
    let Some((header, rest)) = message.and_then(|it| it.split_first_chunk::<HEADER_BYTES>()) else {
        return false;
    };
    header[0] == kind && rest == token.to_be_bytes()
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    const TOKEN: u64 = 0x0102_0304_0506_0708;

    #[test]
    fn a_request_is_as_the_standards_have_it() {
        // 0x0800 + 0x0102 + 0x0304 + 0x0506 + 0x0708 = 0x1814
        let v4 = [8, 0, 0xe7, 0xeb, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(request(V4, TOKEN), v4);
        let v6 = [128, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(request(V6, TOKEN), v6);
        // The example of RFC 1071, and one that carries twice.
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&example), !0xddf2);
        assert_eq!(checksum(&[0xff; 4]), 0);
    }

    #[test]
    fn only_the_answer_is_one() {
        let mut reply = request(V4, TOKEN);
        assert!(!is_answer(V4, &reply, TOKEN), "it is a request");
        reply[0] = ECHO_REPLY;
        assert!(is_answer(V4, &reply, TOKEN));
        assert!(!is_answer(V4, &reply, TOKEN + 1), "to another one");
        // From a raw socket.
        for words in [5, 15] {
            let mut raw = vec![0; usize::from(words) * 4];
            raw[0] = 0x40 | words;
            raw.extend(&reply);
            assert!(is_answer(V4, &raw, TOKEN));
            for bytes in 0..raw.len() {
                assert!(!is_answer(V4, &raw[..bytes], TOKEN), "cut off at {bytes}");
            }
        }
        let mut reply = request(V6, TOKEN);
        assert!(!is_answer(V6, &reply, TOKEN));
        reply[0] = ECHO_REPLY_6;
        assert!(is_answer(V6, &reply, TOKEN));
        for bytes in 0..reply.len() {
            assert!(!is_answer(V6, &reply[..bytes], TOKEN), "cut off");
        }
    }
}
