//! The whole under peers that hold what they can hold, and under operators who mean it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Server, ServerOptions, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn health_and_other_hosts_are_served_while_one_host_holds_all_it_can() -> Result<()> {
    let server = Server::start(ServerOptions { descriptors: Some(600), ..ServerOptions::default() }).await?;
    let mut held = Vec::new();
    for _ in 0..700 {
        held.push(from(Ipv4Addr::new(127, 0, 0, 1), server.http).await?);
    }
    eventually("the bound on one address", Duration::from_secs(20), || async {
        let text = server.metrics().await?;
        Ok(text.contains("refused_total{reason=\"too_many_of_address\"}").then_some(()))
    })
    .await?;

    for path in ["livez", "readyz", "metrics"] {
        let answer = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
        let answer = answer.get(format!("http://{}/{path}", server.admin)).send().await.context(path)?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", answer.status());
    }
    let mut other = from(Ipv4Addr::new(127, 0, 0, 2), server.http).await?;
    other.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let answer = tokio::time::timeout(Duration::from_secs(5), read(other)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer:.200}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_what_the_first_one_only_asks() -> Result<()> {
    let mut server = Server::start(ServerOptions::default()).await?;
    // A request that never ends holds an orderly stop for seconds.
    let mut slow = TcpStream::connect(server.http).await?;
    let head = "POST /v1/datagrams HTTP/1.1\r\nhost: x\r\ncontent-type: application/vnd.wayfix.datagram\r\n\
                content-length: 100\r\n\r\n";
    slow.write_all(head.as_bytes()).await?;

    server.tell("-TERM").await?;
    eventually("the doors to close", Duration::from_secs(10), || async {
        Ok(TcpStream::connect(server.http).await.is_err().then_some(()))
    })
    .await?;
    let told_again = Instant::now();
    let status = server.stop().await?;

    ensure!(told_again.elapsed() < Duration::from_secs(3), "it took {:?}", told_again.elapsed());
    ensure!(status.code() == Some(1), "{status}");
    Ok(())
}

/// Files that do not answer hold a start up: as long as nobody writes into them, pipes in their place.
#[tokio::test(flavor = "multi_thread")]
async fn a_sigterm_is_heard_while_a_start_waits_for_its_disk() -> Result<()> {
    for file in ["region.key", "edge/edge-id"] {
        let mut server = Server::start(ServerOptions::default()).await?;
        server.stop().await?;
        let path = server.data().join(file);
        std::fs::remove_file(&path)?;
        ensure!(std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&path).status()?.success());
        server.begin()?;
        let _held = eventually("the start to read the pipe", Duration::from_secs(20), || async {
            let mut options = std::fs::OpenOptions::new();
            Ok(options.write(true).custom_flags(O_NONBLOCK).open(&path).ok())
        })
        .await?;

        let told = Instant::now();
        let status = server.stop().await?;

        ensure!(told.elapsed() < Duration::from_secs(5), "{file}: it took {:?}", told.elapsed());
        ensure!(status.success(), "{file}: {status}: {}", server.output());
        ensure!(TcpStream::connect(server.http).await.is_err());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_of_the_https_door_are_closed_and_health_is_answered_meanwhile() -> Result<()> {
    let https = free_address()?;
    let more = format!("[https]\nlisten = \"{https}\"\n[connections]\nidle_s_max = 1\n");
    let server = Server::start(ServerOptions { more, descriptors: Some(600), ..ServerOptions::default() }).await?;
    let client = |from: Ipv4Addr| {
        let client = reqwest::Client::builder().danger_accept_invalid_certs(true).local_address(IpAddr::V4(from));
        client.timeout(Duration::from_secs(10)).build()
    };
    // Some never begin the handshake, some ask once and stay.
    let (mut silent, mut idle) = (Vec::new(), Vec::new());
    for _ in 0..400 {
        silent.push(from(Ipv4Addr::new(127, 0, 0, 1), https).await?);
    }
    for octet in 0..10 {
        let client = client(Ipv4Addr::new(127, 0, 1, octet))?;
        let answer = client.get(format!("https://{https}/openapi.json")).send().await?;
        ensure!(answer.status() == StatusCode::OK && !answer.bytes().await?.is_empty());
        idle.push(client);
    }

    for path in ["livez", "readyz", "metrics"] {
        let answer = client(Ipv4Addr::LOCALHOST)?.get(format!("http://{}/{path}", server.admin)).send().await;
        ensure!(answer.context(path)?.status() == StatusCode::OK, "{path}");
    }
    eventually("all that are idle to be closed", Duration::from_secs(40), || async {
        let text = server.metrics().await?;
        let counted = |what: &str| text.lines().find_map(|line| line.strip_prefix(what)?.trim().parse::<u64>().ok());
        let idle = counted("wayfix_http_connections_ended_total{reason=\"idle\"}").unwrap_or(0);
        Ok((idle >= 10).then_some(()))
    })
    .await?;
    for mut stream in silent {
        let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0; 16])).await;
        ensure!(matches!(end.context("a silent connection stays")?, Ok(0) | Err(_)));
    }
    let answer = client(Ipv4Addr::LOCALHOST)?.get(format!("https://{https}/openapi.json")).send().await?;
    ensure!(answer.status() == StatusCode::OK, "the places are free again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_s_doors_are_in_the_contract_and_open_to_the_same_origins() -> Result<()> {
    let more = "[gateway]\nallowed_origins = [\"http://shop.test\"]\n".to_string();
    let server = Server::start(ServerOptions { more, ..ServerOptions::default() }).await?;
    let contract: Value = reqwest::get(format!("{}/openapi.json", server.url())).await?.json().await?;
    let client = reqwest::Client::new();
    for (path, media_type) in
        [("/api/v1/tracking/locations", "application/json"), ("/v1/datagrams", "application/vnd.wayfix.datagram")]
    {
        let promised = &contract["paths"][path]["post"]["requestBody"]["content"][media_type];
        ensure!(promised.is_object(), "{path} is not in the contract");

        let asked = client.request(reqwest::Method::OPTIONS, format!("{}{path}", server.url()));
        let asked = asked.header("origin", "http://shop.test").header("access-control-request-method", "POST");
        let asked = asked.header("access-control-request-headers", "authorization,content-type").send().await?;
        let header = |name: &str| asked.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure!(asked.status() == StatusCode::OK, "{path}: {}", asked.status());
        ensure!(header("access-control-allow-origin") == "http://shop.test", "{path}");
        ensure!(header("access-control-allow-headers").contains("authorization"), "{path}: `*` does not name it");
        ensure!(header("access-control-max-age") == "7200", "{path}");

        let refused = client.get(format!("{}{path}", server.url())).header("origin", "http://shop.test").send().await?;
        ensure!(refused.status() == StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let exposed = refused.headers().get("access-control-expose-headers").context("headers are exposed")?;
        ensure!(exposed.to_str()?.contains("retry-after"), "{exposed:?}");
        let problem: Value = refused.json().await?;
        ensure!(problem["type"] == "urn:wayfix:problem:method_not_allowed", "{problem}");
        ensure!(problem["request_id"].is_string(), "{problem}");
    }
    Ok(())
}

fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

async fn from(address: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((address, 0)))?;
    socket.connect(to).await.context("connect")
}

async fn read(mut stream: TcpStream) -> Result<String> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Of Linux: an open for writing fails as long as nobody reads.
const O_NONBLOCK: i32 = 0o4000;
