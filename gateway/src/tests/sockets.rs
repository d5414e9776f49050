//! What WebSocket doors do with a close, with what RFC 6455 forbids, and with floods, before a token and after one:
//! bytes of our own, because a well-behaved client does not send them.

use super::*;

/// A frame from a client, masked with zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(0x80 | short as u8),
        long => {
            bytes.push(0x80 | 126);
            bytes.extend((long as u16).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

async fn opened(server: &Server, path: &str, token: Option<&str>) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let bearer = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{bearer}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut byte = [0];
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).await.unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    stream
}

/// The code of the Close frame that comes before the connection's end; 1005 without a code, 1006 without a frame.
async fn close_code(stream: &mut TcpStream) -> u16 {
    let mut bytes = Vec::new();
    let _reset = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it does not end");
    let mut rest = &bytes[..];
    while rest.len() >= 2 {
        let (size, at) = match rest[1] & 127 {
            126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
            127 => (u64::from_be_bytes(rest[2..10].try_into().unwrap()) as usize, 10),
            short => (usize::from(short), 2),
        };
        if rest[0] & 15 == 8 {
            return if size < 2 { 1005 } else { u16::from_be_bytes([rest[at], rest[at + 1]]) };
        }
        rest = &rest[at + size..];
    }
    1006
}

#[tokio::test]
async fn every_end_of_a_socket_is_said_with_the_code_of_its_reason() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let too_large = [frame(0x01, &[b'a'; 60_000]), frame(0x80, &[b'a'; 10_000])].concat();
    let cases: [(&str, Vec<u8>, &[u16]); 13] = [
        ("a normal close", frame(0x88, &1000_u16.to_be_bytes()), &[1000]),
        ("a close of the client's own", frame(0x88, &4999_u16.to_be_bytes()), &[4999]),
        ("a close without a code", frame(0x88, b""), &[1000, 1005]),
        ("a close of half a code", frame(0x88, b"\x03"), &[1002]),
        ("a code that nobody may send", frame(0x88, &999_u16.to_be_bytes()), &[1002]),
        ("text that is not masked", vec![0x81, 2, b'{', b'}'], &[1002]),
        ("a reserved bit", frame(0xc1, b"{}"), &[1002]),
        ("a reserved opcode", frame(0x83, b"x"), &[1002]),
        ("a ping in parts", frame(0x09, b"a"), &[1002]),
        ("a ping too long", frame(0x89, &[b'a'; 126]), &[1002]),
        ("the rest of nothing", frame(0x80, b"a"), &[1002]),
        ("no UTF-8", frame(0x81, b"\xff\xfe"), &[1007]),
        ("more than is understood", too_large, &[1009]),
    ];
    let before = format!("/api/v1/tracking/{}/connect", tenant.delivery.delivery);
    for (path, token) in [(before.as_str(), None), ("/api/v1/map/connect", Some(tenant.key.as_str()))] {
        for (name, bytes, wanted) in &cases {
            let mut stream = opened(&server, path, token).await;
            let _may_be_refused_half_way = stream.write_all(bytes).await;

            let code = close_code(&mut stream).await;

            assert!(wanted.contains(&code), "{path}, {name}: {code}, not {wanted:?}");
        }
    }
}

#[tokio::test]
async fn who_sends_pings_and_reads_no_pong_is_not_read_on() {
    let server = World::new(Clock::system()).await.serve(GatewaySettings { stall_s: 1, ..settings() }).await;
    let tenant = server.tenant("ours").await;
    let pings = frame(0x89, &[b'z'; 125]).repeat(1000);
    let before = format!("/api/v1/tracking/{}/connect", tenant.delivery.delivery);
    for (path, token) in [(before.as_str(), None), ("/api/v1/map/connect", Some(tenant.key.as_str()))] {
        let mut stream = opened(&server, path, token).await;

        let mut taken = 0;
        while taken < FLOOD_BYTES
            && let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&pings)).await
        {
            taken += pings.len();
        }

        assert!(taken < FLOOD_BYTES, "{path} took {taken} bytes of pings, and has a pong for each in memory");
    }
}

/// Far more than the kernel keeps for two ends of a connection.
const FLOOD_BYTES: usize = 64 << 20;
