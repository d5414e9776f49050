//! The pages in a real browser, with drivers on their way: they show what they should, complain of nothing, and ask no
//! other host for anything. `WAYFIX_KEEP_PICTURES=1` puts the screenshots under `docs/`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::browser::Browser;
use crate::fleet::Sim;
use crate::harness::{Server, ServerOptions, id_of};
use crate::maps::demo_city;

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_show_live_drivers_without_a_complaint_or_a_foreign_request() -> Result<()> {
    let Some(program) = Browser::program() else {
        assert!(std::env::var_os("WAYFIX_TESTS_NEED_ALL").is_none(), "a browser is needed and not here");
        eprintln!("skipped: there is no browser here");
        return Ok(());
    };
    let map = demo_city()?;
    let server = Server::start(ServerOptions { map: Some(map.clone()), ..ServerOptions::default() }).await?;
    let sim = Sim::start(&server, &map, &["--drivers", "8"])?;

    dispatcher(&server, program).await?;
    customer(&server, program).await?;
    driver(&server, program).await?;

    sim.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_finished_delivery_lets_go_and_comes_back_no_more() -> Result<()> {
    let Some(program) = Browser::program() else {
        assert!(std::env::var_os("WAYFIX_TESTS_NEED_ALL").is_none(), "a browser is needed and not here");
        eprintln!("skipped: there is no browser here");
        return Ok(());
    };
    let more = "[gateway]\nfinished_linger_s = 1\n".to_string();
    let server = Server::start(ServerOptions { more, ..ServerOptions::default() }).await?;
    let api = server.api()?;
    let stops =
        json!([{"kind": "pickup", "lat": 60.17, "lng": 24.94}, {"kind": "drop_off", "lat": 60.18, "lng": 24.95}]);
    let made = api.post("/deliveries", json!({"stops": stops})).await?;
    let delivery = id_of(&made, "delivery")?;
    let mut browser = Browser::start(program, 420, 860).await?;
    browser.open(made["links"]["page"].as_str().context("a page")?).await?;
    browser.until("wayfix.view?.status === 'received'", LONG).await?;

    api.post(&format!("/deliveries/{delivery}/status"), json!({"status": "failed"})).await?;
    browser.until("wayfix.view?.status === 'failed'", LONG).await?;
    let deadline = tokio::time::Instant::now() + LONG;
    while browser.sockets_closed == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the stream has not ended");
        browser.until("true", LONG).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Whoever tries again does so within a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    browser.until("document.getElementById('note').hidden", LONG).await?;

    let connects = browser.requests.iter().filter(|url| url.contains("/connect")).count();
    assert_eq!((connects, browser.sockets_closed), (1, 1), "{:?}", browser.requests);
    browser.close().await
}

async fn dispatcher(server: &Server, program: &str) -> Result<()> {
    let mut browser = Browser::start(program, 1280, 800).await?;
    browser.open(&format!("{}/#key={}", server.url(), server.key()?)).await?;
    browser.until("wayfix.map && wayfix.drivers.size >= 5 && wayfix.deliveries.size >= 5", LONG).await?;
    browser
        .until("[...wayfix.drivers.values()].filter(d => d.position?.freshness === 'live').length >= 5", LONG)
        .await?;
    browser.until("[...wayfix.deliveries.values()].some(d => d.eta)", LONG).await?;
    let key_is_hidden = browser.evaluate("!location.hash.includes('wft_')").await?;
    assert_eq!(key_is_hidden, json!(true), "the key must not stay in the address");

    browser.until("document.querySelector('#rows li .eta:not(:empty)')", LONG).await?;
    browser.evaluate("document.querySelector('#rows li .eta:not(:empty)').parentElement.click()").await?;
    browser.until("!document.getElementById('detail').hidden", LONG).await?;
    browser.until("wayfix.map.areTilesLoaded()", LONG).await?;
    browser.until("wayfix.map.queryRenderedFeatures({layers: ['roads']}).length > 50", LONG).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    browser.picture(&picture("dispatch.png")).await?;

    check(&browser, server)?;
    browser.close().await
}

async fn customer(server: &Server, program: &str) -> Result<()> {
    let api = server.api()?;
    let listed = api.read("/deliveries?live=true").await?;
    let under_way = listed["deliveries"].as_array().context("deliveries")?;
    let delivery = under_way.iter().find(|d| d["driver"].is_string()).context("one with a driver")?;
    let path = format!("/deliveries/{}/token", id_of(delivery, "delivery")?);
    let page = api.post(&path, json!({})).await?["links"]["page"].as_str().context("a page")?.to_string();

    let mut browser = Browser::start(program, 420, 860).await?;
    browser.open(&page).await?;
    browser.until("wayfix.map && wayfix.view?.position", LONG).await?;
    browser.until("document.getElementById('freshness').textContent === 'Live'", LONG).await?;
    browser.until("/min|Now/.test(document.getElementById('arrival').textContent)", LONG).await?;
    let first = browser.evaluate("JSON.stringify([wayfix.view.position.lat, wayfix.view.position.lng])").await?;
    browser
        .until(&format!("JSON.stringify([wayfix.view.position.lat, wayfix.view.position.lng]) !== {first}"), LONG)
        .await?;
    browser.until("wayfix.map.areTilesLoaded()", LONG).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    browser.picture(&picture("customer.png")).await?;

    check(&browser, server)?;
    browser.close().await
}

/// A browser's own position goes in over the HTTPS fall-back door and comes out as a driver's.
async fn driver(server: &Server, program: &str) -> Result<()> {
    let api = server.api()?;
    let (driver, credential) = api.new_driver("Browser").await?;
    let mut browser = Browser::start(program, 420, 860).await?;
    browser.place(&server.url(), 60.1702, 24.9385).await?;
    browser.open(&format!("{}/drive#{credential}", server.url())).await?;
    browser.until("document.getElementById('credential').value.startsWith('wfd_')", LONG).await?;
    browser.evaluate("document.querySelector('#form button').click()").await?;
    browser.until("wayfix.sent >= 1 && wayfix.queue.length === 0", LONG).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    browser.picture(&picture("drive.png")).await?;

    let trail = crate::harness::eventually("the browser's fix in history", LONG, || async {
        let trail = api.read(&format!("/drivers/{driver}/trail")).await?;
        let text = trail.to_string();
        Ok(text.contains("60.170").then_some(text))
    });
    trail.await?;
    check(&browser, server)?;
    browser.close().await
}

fn check(browser: &Browser, server: &Server) -> Result<()> {
    assert_eq!(browser.complaints, Vec::<String>::new());
    let own = [server.url(), server.url().replace("http", "ws")];
    let is_own = |url: &&String| {
        own.iter().any(|own| url.starts_with(own.as_str())) || url.starts_with("data:") || url.starts_with("blob:")
    };
    let foreign: Vec<&String> =
        browser.requests.iter().filter(|url| !is_own(url)).filter(|u| *u != "about:blank").collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(browser.requests.len() > 5, "the page asked for its parts: {:?}", browser.requests);
    Ok(())
}

fn picture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("WAYFIX_KEEP_PICTURES").is_some() {
        return root.join("docs").join(name);
    }
    std::env::temp_dir().join(format!("wayfix-{}-{name}", std::process::id()))
}

const LONG: Duration = Duration::from_secs(90);
