//! The sockets of the UDP door: one per thread on one port, steered by the kernel so that a session id always meets the
//! same thread. Where the kernel cannot steer, threads hand foreign datagrams over to each other.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use mio::net::UdpSocket;
use protocol::datagram::STEER_BYTE_AT;
use quinn_udp::{UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{info, warn};

/// One thread's socket.
pub struct ThreadSocket {
    pub socket: UdpSocket,
    pub state: UdpSocketState,
    /// Bytes one receive buffer needs, so that nothing the kernel joined is cut.
    pub receive_bytes: usize,
}

/// As many sockets as threads, all bound to one address. Port 0 takes a free one.
pub fn bind(address: SocketAddr, count: usize, receive_buffer_bytes: usize) -> io::Result<Vec<ThreadSocket>> {
    if count > 1 {
        refuse_taken(address)?;
    }
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = bind_one(address, count > 1, receive_buffer_bytes)?;
        if address.port() == 0 {
            address = socket.local_addr()?;
        }
        sockets.push(socket);
    }
    if count > 1
        && let Err(error) = steer(&sockets[0], count)
    {
        info!(%error, "the kernel does not steer datagrams, the threads hand them over themselves");
    }
    sockets.into_iter().map(with_state).collect()
}

/// Sockets that share their port let any other process of the same user join, which then gets a part of the datagrams
/// and says nothing. One socket that shares nothing shows whether somebody is there already; it is closed at once.
fn refuse_taken(address: SocketAddr) -> io::Result<()> {
    let probe = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        probe.set_only_v6(false)?;
    }
    probe.bind(&address.into())
}

fn bind_one(address: SocketAddr, shares_port: bool, receive_buffer_bytes: usize) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if shares_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if force_receive_buffer(&socket, receive_buffer_bytes).is_err() {
        socket.set_recv_buffer_size(receive_buffer_bytes)?;
    }
    // Linux answers twice what it grants.
    let granted_bytes = socket.recv_buffer_size()? / 2;
    if granted_bytes < receive_buffer_bytes {
        info!(granted_bytes, receive_buffer_bytes, "the kernel grants a smaller receive buffer (net.core.rmem_max)");
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Beyond what the kernel grants to everyone, where we have the right (`CAP_NET_ADMIN`).
#[cfg(target_os = "linux")]
fn force_receive_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    Ok(nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBufForce, &bytes)?)
}

#[cfg(not(target_os = "linux"))]
fn force_receive_buffer(_socket: &impl AsFd, _bytes: usize) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

fn with_state(socket: std::net::UdpSocket) -> io::Result<ThreadSocket> {
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    let receive_bytes = match do_not_join(&socket) {
        Ok(()) => RECEIVE_BYTES,
        Err(error) => {
            warn!(%error, "the kernel joins received datagrams; large buffers are used");
            state.gro_segments() * RECEIVE_BYTES
        }
    };
    Ok(ThreadSocket { socket: UdpSocket::from_std(socket), state, receive_bytes })
}

/// The kernel can join datagrams of one sender (GRO). Our many senders send one each, so there is nothing to join, and
/// buffers large enough for it would not fit the cache.
#[cfg(target_os = "linux")]
fn do_not_join(socket: &impl AsFd) -> io::Result<()> {
    Ok(nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::UdpGroSegment, &false)?)
}

#[cfg(not(target_os = "linux"))]
fn do_not_join(_socket: &impl AsFd) -> io::Result<()> {
    Ok(())
}

/// Has the kernel pick the socket as `protocol::datagram::thread_of` does, by a classic BPF program of three steps
/// over the payload. Sockets are numbered in the order in which they were bound. A payload too short to have that byte
/// goes to the first.
#[cfg(target_os = "linux")]
fn steer(first: &impl AsFd, count: usize) -> io::Result<()> {
    use nix::libc::{BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_K, BPF_LD, BPF_MOD, BPF_RET, sock_filter, sock_fprog};
    let step = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        step(BPF_LD | BPF_B | BPF_ABS, STEER_BYTE_AT as u32),
        step(BPF_ALU | BPF_MOD | BPF_K, count as u32),
        step(BPF_RET | BPF_A, 0),
    ];
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    Ok(nix::sys::socket::setsockopt(first, nix::sys::socket::sockopt::AttachReusePortCbpf, &program)?)
}

#[cfg(not(target_os = "linux"))]
fn steer(_first: &impl AsFd, _count: usize) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// One more than the longest datagram shows that a longer one is too long; the rest keeps buffers on cache lines.
const RECEIVE_BYTES: usize = 1280;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use protocol::datagram::thread_of;

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_steers_as_the_protocol_says() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 3, 1 << 20).unwrap();
        let address = sockets[0].socket.local_addr().unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();

        for byte in 0..=255u8 {
            let datagram = [0x20, byte, 7, 7, 7];
            sender.send_to(&datagram, address).unwrap();
            assert_eq!(arrived_at(&sockets), thread_of(&datagram, 3), "byte {byte}");
        }
        sender.send_to(&[0x20], address).unwrap();
        assert_eq!(arrived_at(&sockets), 0, "too short to be steered");
    }

    #[test]
    fn an_address_whose_sockets_share_their_port_is_not_joined_from_elsewhere() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 2, 1 << 20).unwrap();
        let address = first[0].socket.local_addr().unwrap();

        let second = bind(address, 2, 1 << 20).map(|_| ());
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);

        drop(first);
        bind(address, 2, 1 << 20).unwrap();
    }

    fn arrived_at(sockets: &[ThreadSocket]) -> usize {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            let mut bytes = [0; 16];
            if let Some(at) = sockets.iter().position(|s| s.socket.recv_from(&mut bytes).is_ok()) {
                return at;
            }
        }
        panic!("it arrived nowhere");
    }
}
