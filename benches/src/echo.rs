//! The yardsticks of everything between a phone and a customer: a bare echo from UDP to a WebSocket, and how long the disk
//! takes to make a few bytes durable.

use std::fs::File;
use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

/// Seconds from sending a datagram to receiving it on a WebSocket, over a task that does nothing but hand it on.
pub async fn udp_to_websocket(count: u32, pause: Duration) -> Result<Vec<f64>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("bind the echo")?;
    let address = listener.local_addr()?;
    let inlet = UdpSocket::bind("127.0.0.1:0").context("bind the echo")?;
    let inlet_address = inlet.local_addr()?;
    std::thread::Builder::new().name("echo".to_string()).spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            inlet.set_nonblocking(true)?;
            let inlet = tokio::net::UdpSocket::from_std(inlet)?;
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let mut socket = tokio_tungstenite::accept_async(stream).await?;
            let mut bytes = [0; 2_048];
            loop {
                let length = inlet.recv(&mut bytes).await?;
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                // The other end goes when it has enough.
                if socket.send(Message::text(text)).await.is_err() {
                    return Ok(());
                }
            }
        })
    })?;
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}")).await.context("connect")?;
    let outlet = UdpSocket::bind("127.0.0.1:0").context("bind a sender")?;
    let mut seconds = Vec::new();
    for _ in 0..count {
        let sent = Instant::now();
        outlet.send_to(&[b'x'; 300], inlet_address).context("send")?;
        let received = tokio::time::timeout(Duration::from_secs(5), socket.next()).await;
        received.context("the echo is silent")?.context("the echo has ended")??;
        seconds.push(sent.elapsed().as_secs_f64());
        tokio::time::sleep(pause).await;
    }
    Ok(seconds)
}

/// Seconds for appending a little to a file and syncing it.
pub fn synced_appends(folder: &Path, count: u32, pause: Duration) -> Result<Vec<f64>> {
    let path = folder.join("yardstick");
    let mut file = File::create(&path).context("make a file")?;
    let mut seconds = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        file.write_all(&[7; 512])?;
        file.sync_data().context("sync a file")?;
        seconds.push(began.elapsed().as_secs_f64());
        std::thread::sleep(pause);
    }
    std::fs::remove_file(&path)?;
    Ok(seconds)
}

/// The quantile of samples, sorted by this; NaN where there are none.
pub fn quantile_of(samples: &mut [f64], wanted: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    samples.get((last as f64 * wanted).round() as usize).copied().unwrap_or(f64::NAN)
}
