//! As much of HTTP/1.1 as a bench needs against our own server: one connection that stays, JSON in and out, and a stream
//! that is only counted. Not a client: what it does not know is an error.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

pub struct Http {
    address: SocketAddr,
    connection: Option<BufStream<TcpStream>>,
}

impl Http {
    pub fn new(address: SocketAddr) -> Http {
        Http { address, connection: None }
    }

    /// The status and the body; null where it is no JSON. A connection that the server closed meanwhile is opened again.
    pub async fn call(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(u16, Value)> {
        let is_kept = self.connection.is_some();
        match self.try_call(method, path, token, body).await {
            Err(_) if is_kept => {
                self.connection = None;
                self.try_call(method, path, token, body).await
            }
            answer => answer,
        }
    }

    async fn try_call(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(u16, Value)> {
        let mut connection = self.send(method, path, token, body).await?;
        let (status, length) = read_head(&mut connection).await?;
        let mut body = vec![0; length.context("an answer without a length")?];
        connection.read_exact(&mut body).await?;
        self.connection = Some(connection);
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// Reads until the server ends the stream, and answers how many bytes came.
    pub async fn stream(&mut self, method: &str, path: &str) -> Result<u64> {
        let mut connection = self.send(method, path, None, None).await?;
        let (status, _) = read_head(&mut connection).await?;
        if status != 200 {
            bail!("a stream was answered {status}");
        }
        let (mut buffer, mut bytes) = (vec![0; 4_096], 0);
        loop {
            match connection.read(&mut buffer).await? {
                0 => return Ok(bytes),
                count => bytes += count as u64,
            }
        }
    }

    async fn send(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<BufStream<TcpStream>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                BufStream::with_capacity(4_096, 4_096, stream)
            }
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n{token}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(body.as_bytes()).await?;
        connection.flush().await?;
        Ok(connection)
    }
}

async fn read_head(connection: &mut BufStream<TcpStream>) -> Result<(u16, Option<usize>)> {
    let mut line = String::new();
    connection.read_line(&mut line).await?;
    let status = line.split(' ').nth(1).context("no status line")?.parse().context("no status")?;
    let mut length = None;
    loop {
        line.clear();
        anyhow::ensure!(connection.read_line(&mut line).await? > 0, "the head was cut");
        let header = line.trim_end();
        if header.is_empty() {
            return Ok((status, length));
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse().context("no length")?);
        }
    }
}
