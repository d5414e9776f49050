//! `wayfix repair`: says whether the stores of a data folder belong together, mends what can be mended without a loss,
//! and, where a loss is accepted by name, goes on without what is lost: in a new incarnation, with all numbers above
//! every one that can have been given. Nothing is deleted: what is not used any more is set aside under another name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use backends::control::{ControlKey, RegionKey};
use backends::installation::compare::{Finding, Found, Problem, Survey, Verdict};
use backends::installation::{Installation, Numbers, Store};
use backends::log::embedded::forget_acknowledged;
use backends::log::{Append, Log, LogError, Topic};
use backends::sqlite;
use bytes::Bytes;
use daemon::{Clock, ClockWatch, Meter};
use protocol::{PartitionId, TenantId, Time};

use crate::compose::CLOCK_FILE;
use crate::compose::stores::Embedded;
use crate::config::StoresConfig;
use crate::installation::{DataFolder, Refused, acknowledged};
use crate::settings::Settings;
use crate::up;

#[derive(clap::Args)]
pub struct Options {
    /// A TOML file; every setting has a default.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where all state lies.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// A store whose loss, whole or in part, is accepted. Can be given several times.
    #[arg(long, value_name = "STORE")]
    accept_loss: Vec<StoreName>,
    /// Makes another API key of this tenant and leaves it in `tenant.key`.
    #[arg(long, value_name = "TENANT")]
    new_tenant_key: Option<u32>,
}

/// The stores as the command line names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum StoreName {
    Log,
    Registry,
    Ledger,
    Trail,
    Blobs,
    RegionKey,
}

impl StoreName {
    fn store(self) -> Store {
        match self {
            StoreName::Log => Store::Log,
            StoreName::Registry => Store::Registry,
            StoreName::Ledger => Store::Ledger,
            StoreName::Trail => Store::Trail,
            StoreName::Blobs => Store::Blobs,
            StoreName::RegionKey => Store::RegionKey,
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let stores = begin(options.config.as_deref(), options.data.as_deref())?;
    up::runtime()?.block_on(async {
        let folder = open_folder(&stores)?;
        let accepted: Vec<Store> = options.accept_loss.iter().map(|name| name.store()).collect();
        let repaired = repair(folder, &stores, &accepted).await?;
        match options.new_tenant_key {
            Some(tenant) => new_tenant_key(&repaired, TenantId(tenant)).await,
            None => Ok(()),
        }
    })
}

/// Starts logging and says where the stores are: with the data folder of the command line, as `wayfix up` takes it.
pub fn begin(config: Option<&Path>, data: Option<&Path>) -> Result<StoresConfig> {
    let mut settings = Settings::load(config)?;
    if let Some(data) = data {
        settings.data = data.to_path_buf();
    }
    let stores = settings.stores()?;
    daemon::logging::start(settings.logging.format, "warn");
    Ok(stores)
}

pub fn open_folder(stores: &StoresConfig) -> Result<DataFolder> {
    if !stores.data.is_dir() {
        bail!("{} is no folder", stores.data.display());
    }
    // Nothing expires here because the clock was set meanwhile.
    ClockWatch::begin(stores.data.join(CLOCK_FILE));
    DataFolder::lock(&stores.data)
}

async fn repair(folder: DataFolder, stores: &StoresConfig, accepted: &[Store]) -> Result<Embedded> {
    let mut survey = folder.survey()?;
    for finding in findings(&survey) {
        mend(&folder, &survey, &finding)?;
        survey = folder.survey()?;
    }
    match survey.compare() {
        Verdict::Fresh => bail!("{} holds no installation", stores.data.display()),
        Verdict::Adopt => bail!("{} is from an earlier release: `wayfix up` takes it over", stores.data.display()),
        Verdict::Together { installation, warnings } => {
            warnings.iter().for_each(|warning| eprintln!("made anew: {warning}"));
            together(folder, stores, survey, installation, accepted).await
        }
        Verdict::Refused(findings) if findings.iter().all(|finding| accepted.contains(&finding.store)) => {
            accept(folder, stores, &survey, &findings).await
        }
        Verdict::Refused(findings) => Err(Refused { data: stores.data.clone(), findings }.into()),
    }
}

/// The databases and keys fit; whether the log does is known when it is opened.
async fn together(
    folder: DataFolder,
    stores: &StoresConfig,
    survey: Survey,
    installation: Installation,
    accepted: &[Store],
) -> Result<Embedded> {
    let witnesses = folder.witnesses(installation, survey.numbers(), &survey)?;
    let known = acknowledged(&survey, installation);
    let data = stores.data.clone();
    match Embedded::open(folder, stores, &Clock::system(), &Meter::discard(), witnesses, known, false).await {
        Ok(embedded) => {
            let region_key =
                RegionKey::load(&embedded.folder.path(Store::RegionKey))?.context("the region key is there")?;
            embedded.folder.finish(installation, &region_key)?;
            eprintln!("the stores in {} belong together, nothing is missing", data.display());
            Ok(embedded)
        }
        Err(error) if accepted.contains(&Store::Log) && is_damage(&error) => {
            let problem = Problem::Damaged(format!("{error:#}"));
            let folder = DataFolder::lock(&data)?;
            accept(folder, stores, &survey, &[Finding { store: Store::Log, problem }]).await
        }
        Err(error) => Err(error),
    }
}

fn findings(survey: &Survey) -> Vec<Finding> {
    match survey.compare() {
        Verdict::Refused(findings) => findings,
        Verdict::Fresh | Verdict::Adopt | Verdict::Together { .. } => Vec::new(),
    }
}

/// Two things are no loss: a damaged write-ahead log all of which stands in its file too, and checksums that are gone
/// while the database itself is whole.
fn mend(folder: &DataFolder, survey: &Survey, finding: &Finding) -> Result<()> {
    let store = finding.store;
    let Some(path) = folder.database(store) else { return Ok(()) };
    let known = survey.installation().and_then(|here| survey.known(store, here.id)).map(|claim| claim.note.commit);
    let is_whole = || -> Result<bool> {
        let (found, _) = sqlite::survey(&path)?;
        Ok(
            matches!(found, Found::Marked(_, Some(commit)) if known.is_none_or(|known| commit.sequence >= known.sequence)),
        )
    };
    let wal = sqlite::wal_path(&path);
    if wal.exists() {
        let aside = wal.with_extension("db-wal.aside");
        std::fs::rename(&wal, &aside).with_context(|| format!("set {} aside", wal.display()))?;
        if is_whole()? {
            eprintln!("{}: its write-ahead log was damaged, and held nothing that its file has not", store.name());
            return Ok(());
        }
        std::fs::rename(&aside, &wal).with_context(|| format!("put {} back", wal.display()))?;
    }
    let sums = sqlite::sums_path(&path);
    if path.exists() && !sums.exists() && sqlite::remake_sums(&path).is_ok() {
        if is_whole()? {
            eprintln!("{}: its checksums were gone and were made anew", store.name());
            return Ok(());
        }
        std::fs::remove_file(&sums).with_context(|| format!("remove {}", sums.display()))?;
    }
    Ok(())
}

/// Goes on without what is lost.
async fn accept(folder: DataFolder, stores: &StoresConfig, survey: &Survey, findings: &[Finding]) -> Result<Embedded> {
    let suffix = format!(".lost-{}", Clock::system().now_ms() / 1000);
    let mut begun_anew = Vec::new();
    for finding in findings {
        println!("accepted: {finding}");
        if !is_kept(&folder, finding)? {
            begun_anew.push(finding.store);
            for moved in folder.set_aside(finding.store, &suffix)? {
                println!("  set aside: {}", moved.display());
            }
        }
    }
    if begun_anew.contains(&Store::Registry) && folder.tenant_key().exists() {
        // It opens nothing any more; the next start makes a tenant and leaves its key there.
        let path = folder.tenant_key();
        std::fs::rename(&path, path.with_extension(format!("key{suffix}"))).context("set tenant.key aside")?;
    }
    let before = survey.installation().unwrap_or_default();
    let is_key_lost = begun_anew.contains(&Store::RegionKey);
    let keys = if is_key_lost { Keys::All } else { Keys::None };
    let is_log_lost = findings.iter().any(|finding| finding.store == Store::Log);
    let known = if is_log_lost { KnownLog::Lost } else { KnownLog::Through(acknowledged(survey, before)) };
    let embedded = go_on(folder, stores, survey, before.raised(), known, Numbers::after_loss, keys).await?;
    println!("the stores go on as incarnation {}", before.raised().incarnation);
    Ok(embedded)
}

/// Whether a store that lost something is gone on with.
fn is_kept(folder: &DataFolder, finding: &Finding) -> Result<bool> {
    match (finding.store, &finding.problem) {
        (store, Problem::Damaged(_)) if let Some(path) = folder.database(store) => {
            let wal = sqlite::wal_path(&path);
            let is_readable = path.exists() && sqlite::remake_sums(&path).is_ok();
            let is_kept = is_readable && matches!(sqlite::survey(&path)?.0, Found::Marked(..) | Found::Unmarked);
            if is_kept {
                println!("  what SQLite can still read of it is kept");
            } else if wal.exists() {
                println!("  nothing of it can be read");
            }
            Ok(is_kept)
        }
        (Store::Log, Problem::Damaged(_)) => {
            forget_acknowledged(&folder.path(Store::Log)).context("take back what the log has noted")?;
            Ok(true)
        }
        (_, _) => Ok(finding.leaves_something()),
    }
}

/// Which keys in control go, with every session or credential that depends on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    None,
    /// Of sessions: phones ask for new ones by themselves.
    Fleet,
    /// Of credentials too: every device must be enrolled anew.
    All,
}

/// Whether the log itself is to blame, and not a setting or another process.
fn is_damage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<LogError>(), Some(LogError::Damaged { .. }))
}

/// What the log must still hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KnownLog {
    /// Its loss is accepted, whatever it holds.
    Lost,
    /// Everything up to this commit.
    Through(u64),
}

/// Opens the stores in another incarnation and lets every number go on above those that may have been given.
pub async fn go_on(
    folder: DataFolder,
    stores: &StoresConfig,
    survey: &Survey,
    installation: Installation,
    log: KnownLog,
    above: impl Fn(Numbers) -> Numbers,
    keys: Keys,
) -> Result<Embedded> {
    let clock = Clock::system();
    let witnesses = folder.witnesses(installation, survey.numbers(), survey)?;
    let data = stores.data.clone();
    let known = match log {
        KnownLog::Lost => 0,
        KnownLog::Through(commit) => commit,
    };
    let open = async |folder, witnesses| {
        Embedded::open(folder, stores, &clock, &Meter::discard(), witnesses, known, true).await
    };
    let embedded = match open(folder, witnesses.clone()).await {
        Ok(embedded) => embedded,
        Err(error) if log != KnownLog::Lost || !is_damage(&error) => return Err(error),
        Err(error) => {
            // Nothing of the log can be read: it begins anew.
            let folder = DataFolder::lock(&data)?;
            let moved = folder.set_aside(Store::Log, &format!(".lost-{}", clock.now_ms() / 1000))?;
            if moved.is_empty() {
                return Err(error);
            }
            println!("  nothing of the log can be read ({error:#}), set aside: {}", moved[0].display());
            let witnesses = folder.witnesses(installation, survey.numbers(), survey)?;
            open(folder, witnesses).await?
        }
    };
    embedded.learn_numbers().await?;
    let numbers = above(embedded.witnesses.numbers());
    embedded.witnesses.give(numbers);
    embedded.registry.go_on_above(numbers, Time(clock.now_ms())).await.context("raise the registry's numbers")?;
    embedded.ledger.go_on_above(numbers).await.context("raise the ledger's numbers")?;
    wipe(&embedded, keys).await?;
    let region_key = RegionKey::load_or_create(&embedded.folder.path(Store::RegionKey))?;
    std::fs::create_dir_all(embedded.folder.path(Store::Blobs)).context("make the blobs' folder")?;
    // A history that begins anew is there from now on.
    std::fs::create_dir_all(embedded.folder.path(Store::Trail)).context("make the folder of history")?;
    embedded.folder.finish(installation, &region_key)?;
    Ok(embedded)
}

async fn wipe(embedded: &Embedded, keys: Keys) -> Result<()> {
    if keys == Keys::None {
        return Ok(());
    }
    let log: Arc<dyn Log> = embedded.log.clone();
    let mut gone = Vec::new();
    for entry in log.newest(Topic::Control).await.context("read control")? {
        let is_wiped = match ControlKey::decode(&entry.key) {
            Some(ControlKey::FleetKey(_)) => true,
            Some(ControlKey::TokenKey(_)) => keys == Keys::All,
            Some(ControlKey::Revoked(_) | ControlKey::TenantPolicy(_)) | None => false,
        };
        let (topic, partition) = (Topic::Control, PartitionId(0));
        gone.extend(is_wiped.then(|| Append { topic, partition, key: entry.key, value: Bytes::new() }));
    }
    log.append(&gone).await.into_offsets().context("wipe keys from control")?;
    if keys == Keys::All {
        embedded.registry.forget_token_keys().await.context("forget the token keys")?;
    }
    Ok(())
}

async fn new_tenant_key(embedded: &Embedded, tenant: TenantId) -> Result<()> {
    let key = embedded.registry.new_tenant_key(tenant, Time(Clock::system().now_ms())).await;
    let key = key.with_context(|| format!("make a key of tenant {tenant}"))?;
    let file = embedded.folder.tenant_key();
    daemon::write_private(&file, key.as_bytes()).with_context(|| format!("write {}", file.display()))?;
    eprintln!("another key of tenant {tenant} lies in {}; those it had go on to open", file.display());
    Ok(())
}
