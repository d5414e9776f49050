//! Whose connection it is when a proxy stands in front: the PROXY protocol, versions 1 and 2, at the beginning of a
//! connection, and `x-forwarded-for` on a request. Both count only from addresses that the settings trust.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderMap;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Addresses that share a prefix: `10.0.0.0/8`, `2001:db8::/32`, or one address alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressRange {
    base: IpAddr,
    prefix_bits: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no address like 10.0.0.1 or range like 10.0.0.0/8")]
pub struct AddressRangeError(String);

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(text: &str) -> Result<Self, AddressRangeError> {
        let wrong = || AddressRangeError(text.to_string());
        let (base, bits) = text.split_once('/').map_or((text, None), |(base, bits)| (base, Some(bits)));
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let bits_max = if base.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match bits {
            None => bits_max,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= bits_max).ok_or_else(wrong)?,
        };
        Ok(AddressRange { base, prefix_bits })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_bits)
    }
}

impl AddressRange {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differing = u32::from(base) ^ u32::from(address);
                differing.checked_shr(32 - self.prefix_bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differing = u128::from(base) ^ u128::from(address);
                differing.checked_shr(128 - self.prefix_bits).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Who asks, by `x-forwarded-for`: the last address there that is not one of our proxies. What stands before it was
/// written by the client itself and proves nothing.
pub(super) fn forwarded_for(headers: &HeaderMap, trusted: &[AddressRange]) -> Option<IpAddr> {
    let lines = headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok());
    let named: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    let addresses = named.iter().rev().map_while(|text| address_of(text));
    addresses.take(HOPS_MAX).find(|address| !trusted.iter().any(|range| range.contains(*address)))
}

/// Some proxies write the port too.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Preamble {
    Incomplete,
    Other,
    /// Its length, and the address it names; none for a proxy's own connections (health checks).
    Whole {
        len: usize,
        source: Option<SocketAddr>,
    },
}

/// Takes the PROXY header off a connection. Who is trusted and sends none is refused: it would be taken for the proxy.
pub(super) async fn accept(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut bytes = [0; PREAMBLE_BYTES_MAX];
    loop {
        let count = stream.peek(&mut bytes).await?;
        match parse(&bytes[..count]) {
            Preamble::Whole { len, source } => {
                stream.read_exact(&mut bytes[..len]).await?;
                return Ok(source);
            }
            Preamble::Incomplete if count > 0 && count < PREAMBLE_BYTES_MAX => tokio::time::sleep(LOOK_AGAIN).await,
            Preamble::Incomplete | Preamble::Other => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no PROXY header"));
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Preamble {
    let begins = |whole: &[u8]| bytes.iter().zip(whole).all(|(a, b)| a == b);
    if begins(VERSION_2) && !bytes.is_empty() {
        return parse_version_2(bytes);
    }
    if begins(VERSION_1) {
        return parse_version_1(bytes);
    }
    Preamble::Other
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n`, at most 107 bytes.
fn parse_version_1(bytes: &[u8]) -> Preamble {
    let line = &bytes[..bytes.len().min(VERSION_1_BYTES_MAX)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if line.len() == VERSION_1_BYTES_MAX { Preamble::Other } else { Preamble::Incomplete };
    };
    let Ok(text) = std::str::from_utf8(&line[VERSION_1.len()..end]) else { return Preamble::Other };
    let words: Vec<&str> = text.split(' ').collect();
    let source = match words.as_slice() {
        ["UNKNOWN", ..] => None,
        ["TCP4" | "TCP6", source, _, port, _] => match (source.parse(), port.parse()) {
            (Ok(ip), Ok(port)) => Some(SocketAddr::new(ip, port)),
            (Ok(_) | Err(_), _) => return Preamble::Other,
        },
        _ => return Preamble::Other,
    };
    Preamble::Whole { len: end + 2, source }
}

/// Signature, version and command, family, length, addresses, and what else the proxy has to say.
fn parse_version_2(bytes: &[u8]) -> Preamble {
    let Some(head) = bytes.get(..VERSION_2_HEAD_BYTES) else { return Preamble::Incomplete };
    let rest_len = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let len = VERSION_2_HEAD_BYTES + rest_len;
    if len > PREAMBLE_BYTES_MAX || head[12] >> 4 != 2 {
        return Preamble::Other;
    }
    let Some(rest) = bytes.get(VERSION_2_HEAD_BYTES..len) else { return Preamble::Incomplete };
    let source = match (head[12] & 15, head[13] >> 4, rest) {
        (1, 1, [a, b, c, d, _, _, _, _, port_high, port_low, ..]) => {
            let port = u16::from_be_bytes([*port_high, *port_low]);
            Some(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), port))
        }
        (1, 2, rest) if rest.len() >= 36 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&rest[..16]);
            Some(SocketAddr::new(Ipv6Addr::from(octets).into(), u16::from_be_bytes([rest[32], rest[33]])))
        }
        (1, 1 | 2, _) => return Preamble::Other,
        (0 | 1, _, _) => None,
        (_, _, _) => return Preamble::Other,
    };
    Preamble::Whole { len, source }
}

const VERSION_1: &[u8] = b"PROXY ";
const VERSION_1_BYTES_MAX: usize = 107;
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_HEAD_BYTES: usize = 16;
/// With what proxies add in practice (a TLS section, an id).
const PREAMBLE_BYTES_MAX: usize = 1024;
/// The header comes in one packet; what comes in two is looked at again after so long.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Proxies behind proxies.
const HOPS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_name_the_client_and_every_prefix_of_them_is_incomplete() {
        let mut version_2 = VERSION_2.to_vec();
        version_2.extend([0x21, 0x11, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 4, 1, 187]);
        let mut version_2_long = VERSION_2.to_vec();
        version_2_long.extend([0x21, 0x21, 0, 39]);
        version_2_long.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        version_2_long.extend([0; 16]);
        version_2_long.extend([0xdc, 4, 1, 187, 4, 0, 0]);
        for (header, wanted) in [
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(), Some("192.0.2.1:56324")),
            (b"PROXY TCP6 2001:db8::1 ::1 56324 443\r\n".to_vec(), Some("[2001:db8::1]:56324")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (version_2, Some("192.0.2.1:56324")),
            (version_2_long, Some("[2001:db8::1]:56324")),
            ([VERSION_2, &[0x20, 0, 0, 0]].concat(), None),
        ] {
            let whole = Preamble::Whole { len: header.len(), source: wanted.map(|text| text.parse().unwrap()) };

            assert_eq!(parse(&[&header[..], b"GET / HTTP/1.1\r\n"].concat()), whole);
            for len in 1..header.len() {
                assert_eq!(parse(&header[..len]), Preamble::Incomplete, "{len} of {header:?}");
            }
        }
    }

    #[test]
    fn what_is_no_proxy_header_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 nonsense 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 443\r\n",
            &[b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat(),
            &[VERSION_2, &[0x21, 0x11, 0, 2, 1, 2]].concat(),
            &[VERSION_2, &[0x31, 0x11, 0, 0]].concat(),
            &[VERSION_2, &[0x21, 0x11, 0xff, 0xff]].concat(),
        ] {
            assert_eq!(parse(bytes), Preamble::Other, "{bytes:?}");
        }
    }

    #[test]
    fn a_client_is_who_our_last_proxy_says_and_not_who_it_says_itself() {
        let trusted: Vec<AddressRange> = ["10.0.0.0/8", "::1"].map(|text| text.parse().unwrap()).to_vec();
        let asked = |line: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", axum::http::HeaderValue::from_static(line));
            forwarded_for(&headers, &trusted).map(|address| address.to_string())
        };

        assert_eq!(asked("192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(asked("1.1.1.1, 192.0.2.7, 10.1.2.3").as_deref(), Some("192.0.2.7"));
        assert_eq!(asked("192.0.2.7:1234, [::1]").as_deref(), Some("192.0.2.7"));
        assert_eq!(asked("10.1.1.1"), None);
        assert_eq!(asked("192.0.2.7, unknown"), None);
    }

    #[test]
    fn a_range_holds_what_shares_its_prefix() {
        let range = |text: &str| text.parse::<AddressRange>().unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();

        assert!(range("10.0.0.0/8").contains(address("10.255.0.1")));
        assert!(range("10.0.0.0/8").contains(address("::ffff:10.0.0.1")));
        assert!(!range("10.0.0.0/8").contains(address("11.0.0.1")));
        assert!(range("0.0.0.0/0").contains(address("192.0.2.1")));
        assert!(!range("0.0.0.0/0").contains(address("2001:db8::1")));
        assert!(range("192.0.2.1").contains(address("192.0.2.1")));
        for wrong in ["", "10.0.0.0/33", "10/8", "shop.example", "10.0.0.0/"] {
            assert!(wrong.parse::<AddressRange>().is_err(), "{wrong}");
        }
    }
}
