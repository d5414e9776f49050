//! A customer who watches one delivery over a WebSocket, comes back when the line is cut, and keeps what he got.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::harness::{Api, now_ms};

/// A frame, and when it came by the machine's clock.
#[derive(Clone, Debug)]
pub struct Received {
    pub at_ms: i64,
    pub frame: Value,
}

pub struct Watch {
    frames: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches until dropped.
    pub fn start(api: &Api, delivery: u64) -> Watch {
        let frames: Arc<Mutex<Vec<Received>>> = Arc::default();
        let (url, token) = (api.base.replacen("http", "ws", 1), api.token.clone());
        let kept = frames.clone();
        let task = tokio::spawn(async move {
            loop {
                let _line_was_cut = follow(&url, &token, delivery, &kept).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Watch { frames, task }
    }

    pub fn frames(&self) -> Vec<Received> {
        self.frames.lock().expect("nobody breaks while holding frames").clone()
    }

    pub fn of_type(&self, kind: &str) -> Vec<Received> {
        self.frames().into_iter().filter(|received| received.frame["type"] == kind).collect()
    }

    /// The numbers of all journal entries that came as news, in the order in which they came; those of the first
    /// snapshot first.
    pub fn journal(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        for received in self.frames() {
            let frame = received.frame;
            if frame["type"] == "status" {
                numbers.extend(frame["number"].as_u64());
            } else if frame["type"] == "snapshot" {
                let last = numbers.last().copied().unwrap_or(0);
                let entries = frame["journal"].as_array().cloned().unwrap_or_default();
                numbers.extend(entries.iter().filter_map(|entry| entry["number"].as_u64()).filter(|n| *n > last));
            }
        }
        numbers
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(url: &str, token: &str, delivery: u64, frames: &Mutex<Vec<Received>>) -> Result<()> {
    let last = last_number(frames);
    let mut request = format!("{url}/tracking/{delivery}/connect?last={last}").into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.context("connect")?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let received = Received { at_ms: now_ms(), frame: serde_json::from_str(&text)? };
        frames.lock().expect("nobody breaks while holding frames").push(received);
    }
    Ok(())
}

fn last_number(frames: &Mutex<Vec<Received>>) -> u64 {
    let frames = frames.lock().expect("nobody breaks while holding frames");
    let number = |received: &Received| {
        let frame = &received.frame;
        if frame["type"] == "status" { frame["number"].as_u64() } else { frame["last_number"].as_u64() }
    };
    frames.iter().filter_map(number).max().unwrap_or(0)
}
