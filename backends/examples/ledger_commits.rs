//! What belonging to an installation costs a database: commits of the ledger one after the other and 64 at a time, with
//! and without a guard, bytes written to its files, and how long a start takes to check them.
//!
//! `cargo run --release -p wayfix-backends --example ledger_commits [deliveries]`

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use backends::installation::{Commit, Installation, Numbers, Store, Witnesses};
use backends::ledger::embedded::EmbeddedLedger;
use backends::ledger::{DeliveryLedger, NewDelivery};
use backends::sqlite::{Guard, survey};
use protocol::{DeliveryPolicy, Position, Stop, StopKind, TenantId, Time};

#[tokio::main]
async fn main() -> Result<()> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(3000), |count| count.parse()).context("a number")?;
    let folder = tempfile::tempdir()?;
    // Turn and turn about, so that a machine that grows slower is unfair to neither.
    for round in 0..2 {
        for is_guarded in [false, true] {
            let path = folder.path().join(format!("{round}-{is_guarded}")).join("ledger.db");
            measure(&path, is_guarded, count).await?;
        }
    }
    Ok(())
}

async fn measure(path: &Path, is_guarded: bool, count: u64) -> Result<()> {
    let guard = is_guarded.then(|| guard(path)).transpose()?;
    let ledger = Arc::new(EmbeddedLedger::open_guarded(path, guard)?);
    let (began, cpu_began) = (Instant::now(), cpu_ticks()?);
    for _ in 0..count {
        ledger.create(order()?, None, Time(0)).await?;
    }
    let (alone, cpu_ticks) = (began.elapsed(), cpu_ticks()? - cpu_began);
    let began = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let ledger = ledger.clone();
        writers.spawn(async move {
            for _ in 0..count / 8 {
                ledger.create(order()?, None, Time(0)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(outcome) = writers.join_next().await {
        outcome??;
    }
    let together = began.elapsed();
    drop(ledger);
    let began = Instant::now();
    let found = survey(path)?.0;
    let checked = began.elapsed();
    let mb = std::fs::metadata(path)?.len() as f64 / 1e6;
    println!(
        "{:<9} {:>7.1} us a commit alone ({:.0} us of CPU), {:>6.1} us with 64 at once, {mb:.1} MB looked at in {checked:.0?} ({})",
        if is_guarded { "guarded" } else { "unguarded" },
        alone.as_secs_f64() * 1e6 / count as f64,
        cpu_ticks as f64 * 10_000.0 / count as f64,
        together.as_secs_f64() * 1e6 / (64 * (count / 8)) as f64,
        if is_guarded { "every page" } else { "none" },
    );
    drop(found);
    Ok(())
}

/// What this process has used, in hundredths of a second: other work on the machine does not count.
fn cpu_ticks() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("a name in brackets")?.split_whitespace().collect();
    let field = |at: usize| fields.get(at).context("a time")?.parse::<u64>().context("a number");
    Ok(field(11)? + field(12)?)
}

fn guard(path: &Path) -> Result<Guard> {
    let folder = path.parent().context("a folder")?;
    let places = |store: Store| {
        let notes = ["witness", "log"].map(|place| folder.join(place).join(store.name()));
        (store, (notes.to_vec(), Commit::default()))
    };
    let places: BTreeMap<_, _> = [places(Store::Ledger), places(Store::Registry)].into_iter().collect();
    let witnesses = Witnesses::open(Installation::new(), Numbers::default(), &places)?;
    Ok(Guard { store: Store::Ledger, witnesses, cache_bytes: 24 << 20 })
}

fn order() -> Result<NewDelivery> {
    let position = Position::from_degrees(41.15, -8.61).context("a place on Earth")?;
    let stop = |kind| Stop { kind, position, radius_m: 60, label: String::new() };
    Ok(NewDelivery {
        tenant: TenantId(7),
        id: None,
        stops: vec![stop(StopKind::Pickup), stop(StopKind::DropOff)],
        policy: DeliveryPolicy::default(),
        reference: String::new(),
        driver: None,
    })
}
