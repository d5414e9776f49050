//! The yardstick of everything that receives: a loop that does nothing but receive, on the same kind of socket.

use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use edge::udp::socket;
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef};

use crate::cpu;
use crate::load::Sender;

/// What the loop did.
#[derive(Clone, Copy, Debug)]
pub struct Bare {
    pub received: u64,
    pub cpu: Duration,
    /// For as long as the sender sent.
    pub wall: Duration,
}

impl Bare {
    pub fn cpu_ns_each(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.received.max(1) as f64
    }

    pub fn per_s(&self) -> f64 {
        self.received as f64 / self.wall.as_secs_f64()
    }
}

/// Receives what is sent, in full batches: when the socket is empty it sleeps until there is a batch again.
pub fn receive(bytes: &[u8], each: usize) -> anyhow::Result<Bare> {
    let mut sockets = socket::bind("127.0.0.1:0".parse()?, 1, 8 << 20).context("bind the bare loop")?;
    let socket = sockets.remove(0);
    let sender = Sender::new(socket.socket.local_addr()?, 1)?;
    let stop = Arc::new(AtomicBool::new(false));
    let loop_stop = stop.clone();
    let receiver = std::thread::spawn(move || {
        let mut buffers = vec![0; socket.receive_bytes * BATCH_SIZE];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut received = 0u64;
        let before = cpu::of_this_thread();
        loop {
            let mut room = buffers.chunks_exact_mut(socket.receive_bytes);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(room.next().unwrap_or_default()));
            match socket.state.recv(UdpSockRef::from(&socket.socket), &mut slices, &mut metas) {
                Ok(count) => received += count as u64,
                Err(_) if loop_stop.load(Ordering::Relaxed) => break,
                Err(_) => std::thread::sleep(Duration::from_micros(500)),
            }
        }
        (received, cpu::of_this_thread() - before)
    });
    let wall = sender.send(bytes, each, None);
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Relaxed);
    let Ok((received, cpu)) = receiver.join() else { anyhow::bail!("the bare loop died") };
    Ok(Bare { received, cpu, wall })
}
