//! A driver's phone in twenty lines: sends one position over sealed UDP and waits until the server says that it is safe.
//!
//!     cargo run --example send_fix -- http://localhost:8080 wfd_… 43.7325 7.4190
//!
//! The credential is what `POST /api/v1/devices` answered. A real app keeps one phone running, hands it every fix, and
//! at the next start gives back what `shutdown` left as `PhoneConfig::restore`.

use anyhow::{Context, Result, ensure};
use phone::Clock;
use phone::driver::{Credential, Phone, PhoneConfig, SystemClock};
use protocol::{Fix, MeasuredTime, Position};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, credential, lat, lng] = &arguments[..] else {
        anyhow::bail!("usage: send_fix URL CREDENTIAL LAT LNG");
    };
    let position = Position::from_degrees(lat.parse()?, lng.parse()?).context("a place on Earth")?;

    let mut config = PhoneConfig::new(url, Credential::new(credential));
    config.logged_in = true; // this device leads: its fixes are the ones that are shown
    let now = SystemClock::default().now();
    let phone = Phone::start(config).await.context("start the phone")?;
    phone.send_fix(Fix { accuracy_m: Some(8), ..Fix::at(MeasuredTime::from_time(now), position) })?;

    let left = phone.shutdown().await;
    ensure!(left.is_empty(), "no edge has said that the fix is safe: it would be sent again at the next start");
    println!("the fix is safe in the log");
    Ok(())
}
