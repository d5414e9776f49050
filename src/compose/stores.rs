//! What stands behind each seam. All is embedded: a log, databases and folders under one data folder.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use backends::blob_store::BlobStore;
use backends::blob_store::embedded::FolderBlobStore;
use backends::control::{Control, ControlReader, ControlWriter, RegionKey};
use backends::ledger::DeliveryLedger;
use backends::ledger::embedded::EmbeddedLedger;
use backends::live_store::LiveStore;
use backends::live_store::embedded::MemoryLiveStore;
use backends::log::Log;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::registry::Registry;
use backends::registry::embedded::EmbeddedRegistry;
use backends::trail_store::TrailStore;
use backends::trail_store::embedded::{EmbeddedTrailConfig, EmbeddedTrailStore};
use daemon::{Clock, Drain, Meter};
use protocol::Time;

use crate::settings::{RecordLogKind, Settings};

pub struct Stores {
    pub log: Arc<dyn Log>,
    pub blobs: Arc<dyn BlobStore>,
    pub live_store: Arc<dyn LiveStore>,
    pub trail_store: Arc<dyn TrailStore>,
    pub ledger: Arc<dyn DeliveryLedger>,
    pub registry: Arc<dyn Registry>,
    pub control: ControlReader,
    pub control_writer: ControlWriter,
    embedded_log: Arc<EmbeddedLog>,
}

impl Stores {
    pub async fn open(settings: &Settings, clock: &Clock, meter: &Meter, upkeep: &Drain) -> Result<Stores> {
        let data = &settings.data;
        std::fs::create_dir_all(data).with_context(|| format!("make {}", data.display()))?;
        let embedded_log = match settings.record_log.kind {
            RecordLogKind::Embedded => open_log(settings, clock, meter).await?,
        };
        let log: Arc<dyn Log> = embedded_log.clone();

        let region_key = RegionKey::load_or_create(&data.join("region.key")).context("read the region's key")?;
        let control_writer = ControlWriter::new(log.clone(), region_key.clone());
        control_writer.rotate(Time(clock.now_ms())).await.context("make the region's keys")?;
        let known = Control::load(&*log, &region_key).await.context("read control")?;
        let control = ControlReader::start(log.clone(), region_key, upkeep, *clock);
        control_writer.clone().start_rotation(upkeep, *clock);

        let registry = EmbeddedRegistry::open(&data.join("registry.db"), known.token_keys.clone());
        Ok(Stores {
            log,
            blobs: Arc::new(FolderBlobStore::open(data.join("blobs")).context("open the blob store")?),
            live_store: Arc::new(MemoryLiveStore::new(LIVE_ENTRIES_MAX, meter)),
            trail_store: Arc::new(open_history(data, embedded_log.incarnation(), meter)?),
            ledger: Arc::new(EmbeddedLedger::open(&data.join("ledger.db")).context("open the ledger")?),
            registry: Arc::new(registry.context("open the registry")?),
            control,
            control_writer,
            embedded_log,
        })
    }

    /// Writes what is queued and lets the files go.
    pub async fn close(self) {
        let log = self.embedded_log;
        let closed = tokio::task::spawn_blocking(move || log.close()).await;
        if let Err(error) = closed {
            tracing::error!(%error, "the log did not close");
        }
    }
}

async fn open_log(settings: &Settings, clock: &Clock, meter: &Meter) -> Result<Arc<EmbeddedLog>> {
    let folder: &Path = &settings.data.join("log");
    let config = EmbeddedLogConfig {
        partitions: settings.record_log.embedded.partitions,
        meter: meter.clone(),
        ..EmbeddedLogConfig::default()
    };
    let (folder, config) = (folder.to_path_buf(), config.with_clock(*clock));
    let opened = tokio::task::spawn_blocking(move || EmbeddedLog::open(folder, config)).await;
    Ok(Arc::new(opened.context("open the log")?.context("open the log")?))
}

fn open_history(data: &Path, incarnation: u32, meter: &Meter) -> Result<EmbeddedTrailStore> {
    let config = EmbeddedTrailConfig {
        meter: meter.clone(),
        linger: HISTORY_LINGER,
        before: Some(data.join("trail.db")),
        incarnation,
        ..EmbeddedTrailConfig::default()
    };
    EmbeddedTrailStore::open_with(&data.join("trail"), config).context("open history")
}

/// Five syncs a second at most, whatever the traffic.
const HISTORY_LINGER: Duration = Duration::from_millis(200);
/// Deliveries and drivers.
const LIVE_ENTRIES_MAX: usize = 1 << 20;
