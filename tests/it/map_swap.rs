//! A new version of the map put in the place of the old one while drivers are under way: everything goes on, and what is
//! broken is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Log, ReadLimit, Topic};
use protocol::envelope;
use protocol::record::{BlobHash, BodyKind};
use protocol::update::{DeliveryBody, Epoch};
use protocol::{DeliveryKey, PartitionId, Record, RecordBatch, Update, UpdateBatch};

use crate::fleet::Sim;
use crate::harness::{Api, Server, ServerOptions, eventually};
use crate::maps::{town, town_without_buildings};
use crate::watch::Watch;

#[tokio::test(flavor = "multi_thread")]
async fn a_map_is_replaced_under_drivers_who_go_on_and_a_broken_one_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let map = folder.path().join("city.wfm");
    std::fs::copy(town()?, &map)?;
    let mut server =
        Server::start(ServerOptions { map: Some(map.clone()), clock_factor: Some(5.0), ..Default::default() }).await?;
    let api = server.api()?;
    let fleet = Sim::start(&server, &town()?, &["--drivers", "8", "--seed", "3"])?;
    let mut watches = BTreeMap::new();
    eventually("all drivers under way", Duration::from_secs(60), || async {
        Ok((live(&api).await?.len() >= 8).then_some(()))
    })
    .await?;
    moves_on(&api, &mut watches).await.context("before anything")?;
    let (before, tile) = (tile_version(&server).await?, tile_bytes(&server).await?);

    // Written over in place, cut short: whoever had the file mapped would fall.
    let whole = std::fs::read(&map)?;
    std::fs::write(&map, &whole[..whole.len() / 2])?;
    server.hang_up().await?;
    eventually("the broken map refused", Duration::from_secs(20), || async {
        Ok(server.output().contains("cannot be used").then_some(()))
    })
    .await?;
    ensure!(server.output().contains("cut short"), "it does not say why:\n{}", server.output());
    ensure!(tile_version(&server).await? == before && tile_bytes(&server).await? == tile);
    moves_on(&api, &mut watches).await.context("after a broken map")?;

    // A whole one, renamed into place; nobody says so.
    put(&town_without_buildings()?, &map)?;
    let after = eventually("tiles of the new map", Duration::from_secs(30), || async {
        let version = tile_version(&server).await?;
        Ok((version != before).then_some(version))
    })
    .await?;
    ensure!(tile_bytes(&server).await? != tile, "the tiles are the old ones");
    moves_on(&api, &mut watches).await.context("after the new map")?;

    // And back, said by SIGHUP.
    put(&town()?, &map)?;
    server.hang_up().await?;
    let back = eventually("tiles of the first map", Duration::from_secs(8), || async {
        let version = tile_version(&server).await?;
        Ok((version != after).then_some(version))
    });
    ensure!(back.await? == before, "the same map has another version");
    moves_on(&api, &mut watches).await.context("after the map before")?;

    ensure!(server.counted("wayfix_processor_folds_failed_total").await? == 0.0, "a fold failed");
    fleet.end().await?;
    ensure!(server.stop().await?.success(), "the server did not stop well:\n{}", server.output());
    let log = EmbeddedLog::open(server.data().join("log"), EmbeddedLogConfig::default())?;
    ensure!(
        in_use(&log).await? >= 3 * usize::try_from(log.partition_count(Topic::Records))?,
        "not every partition took it"
    );
    numbered_without_gaps_in_one_epoch_each(&log, &watches).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_broken_map_fails_and_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let map = folder.path().join("city.wfm");
    let mut bytes = std::fs::read(town()?)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&map, bytes)?;

    let started = Server::start(ServerOptions { map: Some(map), ..Default::default() }).await;

    let said = format!("{:#}", started.err().context("it started")?);
    ensure!(said.contains("city.wfm") && said.contains("checksum"), "{said}");
    Ok(())
}

/// As an operator should: under another name first, then renamed.
fn put(map: &Path, place: &Path) -> Result<()> {
    let beside = place.with_extension("new");
    std::fs::copy(map, &beside)?;
    Ok(std::fs::rename(beside, place)?)
}

async fn live(api: &Api) -> Result<Vec<u64>> {
    let listed = api.read("/deliveries?live=true&limit=1000").await?;
    let rows = listed["deliveries"].as_array().context("a list of deliveries")?;
    Ok(rows.iter().filter_map(|row| row["delivery"].as_str()?.parse().ok()).collect())
}

/// Everybody who watches a delivery that is under way sees positions come from here on, until it has ended.
async fn moves_on(api: &Api, watches: &mut BTreeMap<u64, Watch>) -> Result<()> {
    let live = live(api).await?;
    ensure!(live.len() >= 4, "only {} deliveries are under way", live.len());
    for delivery in &live {
        watches.entry(*delivery).or_insert_with(|| Watch::start(api, *delivery));
    }
    let seen = |delivery: &u64| watches[delivery].of_type("position").len();
    let is_over = |delivery: &u64| {
        watches[delivery].of_type("status").iter().any(|received| received.frame["status"] == "delivered")
    };
    let before: Vec<(u64, usize)> = live.iter().map(|delivery| (*delivery, seen(delivery))).collect();
    eventually("a position for everybody", Duration::from_secs(30), || async {
        let waits: Vec<_> = before.iter().filter(|(d, count)| seen(d) <= *count && !is_over(d)).collect();
        ensure!(waits.is_empty(), "deliveries and what they had: {waits:?}");
        Ok(Some(()))
    })
    .await
}

async fn tile_version(server: &Server) -> Result<String> {
    let said: serde_json::Value = reqwest::get(format!("{}/api/v1/map/tiles.json", server.url())).await?.json().await?;
    let url = said["tiles"][0].as_str().context("a tile's address")?;
    Ok(url.rsplit("v=").next().unwrap_or_default().to_string())
}

/// The tile in the middle of the map, at a zoom that shows buildings.
async fn tile_bytes(server: &Server) -> Result<Vec<u8>> {
    let said: serde_json::Value = reqwest::get(format!("{}/api/v1/map/tiles.json", server.url())).await?.json().await?;
    let bounds: [f64; 4] = serde_json::from_value(said["bounds"].clone())?;
    let (lon, lat) = ((bounds[0] + bounds[2]) / 2.0, (bounds[1] + bounds[3]) / 2.0);
    let scale = f64::from(1 << 15);
    let x = ((lon + 180.0) / 360.0 * scale) as u32;
    let y = ((1.0 - lat.to_radians().tan().asinh() / std::f64::consts::PI) / 2.0 * scale) as u32;
    let url = format!("{}/api/v1/map/tiles/15/{x}/{y}.mvt", server.url());
    let bytes = reqwest::get(url).await?.error_for_status()?.bytes().await?.to_vec();
    ensure!(!bytes.is_empty(), "the middle of the town is empty");
    Ok(bytes)
}

/// How often maps were taken into use, over all partitions.
async fn in_use(log: &EmbeddedLog) -> Result<usize> {
    let mut maps: Vec<BlobHash> = Vec::new();
    each::<RecordBatch>(log, Topic::Records, |batch| {
        maps.extend(batch.records.iter().filter_map(|record| {
            let Record::InUse { kind: BodyKind::Map, hash } = record else { return None };
            Some(*hash)
        }));
    })
    .await?;
    Ok(maps.len())
}

async fn numbered_without_gaps_in_one_epoch_each(log: &EmbeddedLog, watches: &BTreeMap<u64, Watch>) -> Result<()> {
    let mut by_delivery: BTreeMap<DeliveryKey, Vec<(Epoch, u64, bool)>> = BTreeMap::new();
    each::<UpdateBatch>(log, Topic::Updates, |batch| {
        for update in &batch.updates {
            if let Update::Delivery(update) = update {
                let is_keyframe = matches!(update.body, DeliveryBody::Keyframe { .. });
                by_delivery.entry(update.key).or_default().push((update.epoch, update.number, is_keyframe));
            }
        }
    })
    .await?;
    ensure!(by_delivery.len() >= watches.len(), "only {} deliveries have updates", by_delivery.len());
    for (key, updates) in &by_delivery {
        let mut epochs: BTreeMap<Epoch, Vec<u64>> = BTreeMap::new();
        for (epoch, number, is_keyframe) in updates {
            let numbers = epochs.entry(*epoch).or_default();
            ensure!(!numbers.is_empty() || *is_keyframe, "{key:?}: {epoch:?} does not begin with a keyframe");
            numbers.push(*number);
        }
        for (epoch, numbers) in &epochs {
            let gapless: Vec<u64> = (1..=numbers.len() as u64).collect();
            ensure!(*numbers == gapless, "{key:?}: {epoch:?} is numbered {numbers:?}");
        }
        // A tracker that had been started anew would have begun another epoch for the same assignment.
        let mut assignments: Vec<_> = epochs.keys().map(|epoch| epoch.assignment).collect();
        assignments.dedup();
        ensure!(assignments.len() == epochs.len(), "{key:?} has epochs {:?}", epochs.keys().collect::<Vec<_>>());
    }
    Ok(())
}

/// All entries of all partitions of a topic.
async fn each<B: envelope::Enveloped>(log: &EmbeddedLog, topic: Topic, mut visit: impl FnMut(B)) -> Result<()> {
    for partition in (0..log.partition_count(topic)).map(PartitionId) {
        let mut reader = log.reader(topic, partition, log.range(topic, partition).await?.first).await?;
        loop {
            let entries = reader.read(ReadLimit::default(), Duration::ZERO).await?;
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                visit(envelope::decode::<B>(&entry.value)?);
            }
        }
    }
    Ok(())
}
