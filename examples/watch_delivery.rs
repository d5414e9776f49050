//! A customer in forty lines: watches a delivery over a WebSocket, comes back when the line is cut, and misses no status.
//!
//!     cargo run --example watch_delivery -- ws://localhost:8080/api/v1/tracking/1/connect TOKEN
//!
//! Address and token are what `POST /api/v1/deliveries` answered under `links.connect` and `token`.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, token] = &arguments[..] else { anyhow::bail!("usage: watch_delivery WS_URL TOKEN") };
    // The number of the newest journal entry: what was missed comes after it.
    let mut last = 0;
    loop {
        match follow(url, token, &mut last).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => eprintln!("the line is cut: {error:#}"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Whether the delivery is over.
async fn follow(url: &str, token: &str, last: &mut u64) -> Result<bool> {
    let (mut socket, _) = connect_async(format!("{url}?last={last}")).await.context("connect")?;
    // In the first message the token stands in no log of any proxy.
    socket.send(Message::text(json!({ "token": token }).to_string())).await?;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => show(&serde_json::from_str(&text)?, last),
            // 1000: the delivery is finished, and nothing was missed.
            Message::Close(close) => return Ok(close.is_some_and(|close| u16::from(close.code) == 1000)),
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
    Ok(false)
}

fn show(frame: &Value, last: &mut u64) {
    match frame["type"].as_str() {
        Some("snapshot") => {
            *last = frame["last_number"].as_u64().unwrap_or(*last);
            println!("delivery {} is {}", frame["delivery"], frame["status"]);
        }
        Some("status") => {
            *last = frame["number"].as_u64().unwrap_or(*last);
            println!("{}: {}", frame["kind"], frame);
        }
        Some("position") => println!("at {}, {} ({} ms old)", frame["lat"], frame["lng"], frame["age_ms"]),
        Some("eta") => println!("arrives at {} ms since 1970", frame["arrival"]),
        _ => println!("{frame}"),
    }
}
