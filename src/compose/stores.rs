//! What stands behind each seam. All is embedded: a log, databases and folders under one data folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use backends::blob_store::embedded::FolderBlobStore;
use backends::blob_store::{BlobStore, SweptBlobStore};
use backends::control::{Control, ControlReader, ControlWriter, Purpose, RegionKey, reconcile};
use backends::file_identity::FileIdentity;
use backends::installation::compare::{Survey, Verdict};
use backends::installation::{Installation, Store, Witnesses};
use backends::ledger::DeliveryLedger;
use backends::ledger::embedded::EmbeddedLedger;
use backends::live_store::LiveStore;
use backends::live_store::embedded::MemoryLiveStore;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig, InstalledLog};
use backends::log::{DecodedUpdates, Log, LogError};
use backends::registry::Registry;
use backends::registry::embedded::EmbeddedRegistry;
use backends::sqlite::{self, Guard};
use backends::trail_store::TrailStore;
use backends::trail_store::embedded::{EmbeddedTrailConfig, EmbeddedTrailStore};
use daemon::{Clock, Drain, Meter};
use protocol::Time;
use tracing::{info, warn};

use super::space;
use crate::config::{RecordLogConfig, StoresConfig};
use crate::installation::{DataFolder, Refused, acknowledged, unfinished};

pub struct Stores {
    pub log: Arc<dyn Log>,
    /// What of updates is decoded, for all who read them.
    pub decoded: DecodedUpdates,
    pub blobs: Arc<dyn BlobStore>,
    /// The same, for who looks through all of it.
    pub swept_blobs: Arc<dyn SweptBlobStore>,
    pub live_store: Arc<dyn LiveStore>,
    pub trail_store: Arc<dyn TrailStore>,
    pub ledger: Arc<dyn DeliveryLedger>,
    pub registry: Arc<dyn Registry>,
    pub control: ControlReader,
    pub control_writer: ControlWriter,
    /// The first start of this folder has not come to its end before.
    pub is_first_start: bool,
    embedded: Arc<Embedded>,
    region_key: RegionKey,
}

/// The stores of an installation whose numbers and commits are compared, open.
pub struct Embedded {
    pub folder: DataFolder,
    pub log: Arc<EmbeddedLog>,
    pub registry: Arc<EmbeddedRegistry>,
    pub ledger: Arc<EmbeddedLedger>,
    pub witnesses: Arc<Witnesses>,
}

impl Stores {
    pub async fn open(config: &StoresConfig, clock: &Clock, meter: &Meter, upkeep: &Drain) -> Result<Stores> {
        let data = &config.data;
        std::fs::create_dir_all(data).with_context(|| format!("make {}", data.display()))?;
        let folder = DataFolder::lock(data)?;
        let survey = folder.survey()?;
        let (installation, is_taken_over) = belong_together(&folder, &survey)?;
        space::check(data, is_taken_over && !folder.path(Store::Log).exists())?;
        let witnesses = folder.witnesses(installation, survey.numbers(), &survey)?;
        let acknowledged = acknowledged(&survey, installation);
        let place = InstalledLog { witnesses, acknowledged, is_taken_over, is_loss_accepted: false };
        let embedded = Embedded::open(folder, config, clock, meter, place).await?;
        if is_taken_over {
            embedded.learn_numbers().await?;
        }
        let (folder, log) = (&embedded.folder, embedded.log.clone());
        let region_key = RegionKey::load_or_create(&folder.path(Store::RegionKey)).context("read the region's key")?;
        let control_writer = ControlWriter::new(log.clone(), region_key.clone());
        embedded.take_up_keys(&region_key, &control_writer, clock).await?;

        let control = ControlReader::start(log.clone(), region_key.clone(), upkeep, *clock);
        control_writer.clone().start_rotation(upkeep, *clock);
        let registry: Arc<dyn Registry> = embedded.registry.clone();
        reconcile::start(registry.clone(), control.clone(), control_writer.clone(), upkeep, *clock);
        let blobs = FolderBlobStore::open(folder.path(Store::Blobs)).context("open the blob store")?;
        let blobs = Arc::new(blobs);
        let trail_store = open_history(config, &embedded, meter)?;
        let ledger = embedded.ledger.clone();
        Ok(Stores {
            decoded: DecodedUpdates::of(&*log),
            log,
            blobs: blobs.clone(),
            swept_blobs: blobs,
            live_store: Arc::new(MemoryLiveStore::new(LIVE_ENTRIES_MAX, meter)),
            trail_store: Arc::new(trail_store),
            ledger,
            registry,
            control,
            control_writer,
            is_first_start: is_taken_over,
            embedded: Arc::new(embedded),
            region_key,
        })
    }

    /// All is made: from now on what is not there is missing.
    pub fn finish(&self) -> Result<()> {
        let installation = self.embedded.witnesses.installation();
        self.embedded.folder.finish(installation, &self.region_key)
    }

    /// Another API key of a tenant whose first one was never told.
    pub async fn new_tenant_key(&self, tenant: protocol::TenantId, now: Time) -> Result<String> {
        self.embedded.registry.new_tenant_key(tenant, now).await.context("make another key of the tenant")
    }

    /// Looks every second whether the files are still those that were opened, and whether a database has shown
    /// itself damaged. Either ends the process: it must not go on acknowledging what nobody will find.
    pub fn watch(&self, upkeep: &Drain) {
        let (embedded, stop) = (self.embedded.clone(), upkeep.token().clone());
        let watched = [Store::Log, Store::Registry, Store::Ledger, Store::Trail, Store::Blobs, Store::RegionKey];
        let mut paths: Vec<_> = watched.iter().map(|store| embedded.folder.path(*store)).collect();
        paths.push(embedded.folder.path(Store::Log).join("entries"));
        for database in watched.iter().filter_map(|store| embedded.folder.database(*store)) {
            paths.extend([sqlite::wal_path(&database), sqlite::sums_path(&database), database]);
        }
        let files: Vec<FileIdentity> = paths.iter().filter_map(|path| FileIdentity::of(path)).collect();
        upkeep.spawn("watch over the stores", async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                let log = embedded.log.clone();
                let gone = tokio::task::spawn_blocking(move || log.gone()).await.context("look at the log's files")?;
                if let Some(reason) = embedded.damage(&files, gone) {
                    bail!("{reason}");
                }
            }
        });
    }

    /// Writes what is queued and lets the files go.
    pub async fn close(self) {
        let log = self.embedded.log.clone();
        let closed = tokio::task::spawn_blocking(move || log.close()).await;
        if let Err(error) = closed {
            tracing::error!(%error, "the log did not close");
        }
    }
}

impl Embedded {
    /// Opens log, registry and ledger as parts of the installation of the log's witnesses.
    pub async fn open(
        folder: DataFolder,
        config: &StoresConfig,
        clock: &Clock,
        meter: &Meter,
        place: InstalledLog,
    ) -> Result<Embedded> {
        let witnesses = place.witnesses.clone();
        let log = match config.record_log {
            RecordLogConfig::Embedded { partitions } => {
                open_log(&folder.path(Store::Log), place, partitions, config, clock, meter).await?
            }
        };
        let cache_bytes = config.database_cache_bytes;
        let guard = |store| Some(Guard { store, witnesses: witnesses.clone(), cache_bytes });
        let (registry, ledger) = (folder.path(Store::Registry), folder.path(Store::Ledger));
        let registry = EmbeddedRegistry::open_guarded(&registry, Default::default(), guard(Store::Registry));
        let ledger = EmbeddedLedger::open_guarded(&ledger, guard(Store::Ledger));
        Ok(Embedded {
            folder,
            log,
            registry: Arc::new(registry.context("open the registry")?),
            ledger: Arc::new(ledger.context("open the ledger")?),
            witnesses,
        })
    }

    /// A folder of a release that wrote no numbers down: they are read from the databases, once.
    pub async fn learn_numbers(&self) -> Result<()> {
        let registry = self.registry.numbers().await.context("read the registry's numbers")?;
        let ledger = self.ledger.numbers().await.context("read the ledger's numbers")?;
        self.witnesses.give(registry.max(ledger));
        Ok(())
    }

    /// Every credential depends on the token keys, so they stand in the registry too: a log that lost them gets them
    /// back. Then control is brought up to what the registry says.
    async fn take_up_keys(&self, region_key: &RegionKey, writer: &ControlWriter, clock: &Clock) -> Result<()> {
        let load = async || Control::load(&*self.log, region_key).await.context("read control");
        let known = load().await?;
        for (id, wrapped) in self.registry.kept_token_keys().await.context("read the token keys")? {
            if known.token_keys.key(id).is_some() {
                continue;
            }
            match region_key.unwrap(&wrapped, Purpose::Token { id }) {
                Ok(key) => {
                    writer.put_token_key(id, &key).await.context("put a token key back")?;
                    warn!(id = id.0, "the log had lost a token key, the registry had it");
                }
                Err(error) => warn!(%error, id = id.0, "a token key that the registry keeps was passed by"),
            }
        }
        writer.until_keys(*clock, &Default::default()).await.context("make the region's keys")?;
        let known = load().await?;
        let wrap = |(id, key)| (id, region_key.wrap(key, Purpose::Token { id }));
        self.registry
            .keep_token_keys(known.token_keys.all().map(wrap).collect())
            .await
            .context("keep the token keys")?;
        self.registry.change_token_keys(known.token_keys.clone());
        let written = reconcile::reconcile(&*self.registry, &known, writer).await.context("compare control")?;
        if written > 0 {
            info!(written, "control was brought up to what the registry says");
        }
        Ok(())
    }

    /// `gone`: of the log's journals.
    fn damage(&self, files: &[FileIdentity], gone: Option<PathBuf>) -> Option<String> {
        let moved = files.iter().find(|file| !file.is_in_place()).map(|file| file.path().to_path_buf());
        let gone = moved.or(gone);
        let gone = gone.map(|path| format!("{} was removed or replaced while it was open", path.display()));
        let of = |store: Store, damage: Option<String>| {
            damage.map(|reason| format!("the {} is damaged: {reason}", store.name()))
        };
        gone.or_else(|| of(Store::Registry, self.registry.damage())).or_else(|| of(Store::Ledger, self.ledger.damage()))
    }
}

/// Whether this start may go on, as which installation, and whether what has no id is taken over.
fn belong_together(folder: &DataFolder, survey: &Survey) -> Result<(Installation, bool)> {
    match survey.compare() {
        Verdict::Fresh => {
            let installation = Installation::new();
            folder.begin(installation)?;
            info!(installation = %installation.id, "a new installation begins");
            Ok((installation, true))
        }
        Verdict::Adopt => {
            let installation = Installation::new();
            folder.begin(installation)?;
            let id = installation.id;
            info!(installation = %id, "the stores are from a release without installation ids and get one, once");
            Ok((installation, true))
        }
        Verdict::Together { installation, warnings } => {
            for warning in warnings {
                warn!(warning, "a witness of the stores is not as it should be, it is made anew");
            }
            let is_whole = survey.file().is_none_or(|file| file.is_whole);
            Ok((installation, !is_whole))
        }
        Verdict::Refused(findings) => Err(Refused { data: folder.data().to_path_buf(), findings }.into()),
        Verdict::Unfinished { raise, .. } => bail!("{}", unfinished(folder.data(), raise)),
    }
}

async fn open_log(
    folder: &Path,
    place: InstalledLog,
    partitions: u32,
    stores: &StoresConfig,
    clock: &Clock,
    meter: &Meter,
) -> Result<Arc<EmbeddedLog>> {
    let config = EmbeddedLogConfig {
        partitions,
        meter: meter.clone(),
        place: Some(place),
        cache_bytes: stores.log_cache_bytes,
        ..EmbeddedLogConfig::default()
    };
    let (folder, config) = (folder.to_path_buf(), config.with_clock(*clock));
    let opened =
        tokio::task::spawn_blocking(move || EmbeddedLog::open(folder, config)).await.context("open the log")?;
    let opened = opened.map_err(|error| {
        let is_damaged = matches!(error, LogError::Damaged { .. });
        let advice = format!(
            "the log cannot be used: put it back from a copy, or accept the loss: `wayfix repair --data {} --accept-loss log`",
            stores.data.display()
        );
        let error = anyhow::Error::new(error).context("open the log");
        if is_damaged { error.context(advice) } else { error }
    });
    Ok(Arc::new(opened?))
}

fn open_history(stores: &StoresConfig, embedded: &Embedded, meter: &Meter) -> Result<EmbeddedTrailStore> {
    let data = &stores.data;
    let config = EmbeddedTrailConfig {
        meter: meter.clone(),
        linger: HISTORY_LINGER,
        cache_bytes: stores.database_cache_bytes,
        before: Some(data.join("trail.db")),
        guard: Some(Guard {
            store: Store::Trail,
            witnesses: embedded.witnesses.clone(),
            cache_bytes: stores.database_cache_bytes,
        }),
        ..EmbeddedTrailConfig::default()
    };
    EmbeddedTrailStore::open_with(&data.join("trail"), config).context("open history")
}

/// One sync a second at most, whatever the traffic: a sync costs the disk a page of 4 KB. A breadcrumb has waited for its
/// snapping for half a minute before.
const HISTORY_LINGER: Duration = Duration::from_secs(1);
/// Deliveries and drivers.
const LIVE_ENTRIES_MAX: usize = 1 << 20;
/// What is found is said within two seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
