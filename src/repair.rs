//! `wayfix repair`: says whether the stores of a data folder belong together, mends what can be mended without a loss,
//! and, where a loss is accepted by name, goes on without what is lost: in a new incarnation, with all numbers above
//! every one that can have been given. Nothing is deleted: what is not used any more is set aside under another name.

mod mending;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use backends::control::{ControlKey, RegionKey};
use backends::installation::compare::{Finding, Found, Problem, Survey, Verdict};
use backends::installation::{Installation, Numbers, Raise, Store};
use backends::log::embedded::{InstalledLog, forget_acknowledged};
use backends::log::{Append, Log, LogError, Topic};
use backends::registry::embedded::{Voided, void_suspects};
use backends::sqlite;
use backends::trail_store::embedded as trail_store;
use bytes::Bytes;
use daemon::{Clock, ClockWatch, Meter};
use protocol::{PartitionId, TenantId, Time};

use crate::compose::CLOCK_FILE;
use crate::compose::stores::Embedded;
use crate::config::StoresConfig;
use crate::installation::{DataFolder, Refused, acknowledged, acknowledged_before, unfinished};
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
        mending::mend(&folder, &survey, &finding)?;
        survey = folder.survey()?;
    }
    match survey.compare() {
        Verdict::Fresh => bail!("{} holds no installation", stores.data.display()),
        Verdict::Adopt => bail!("{} is from an earlier release: `wayfix up` takes it over", stores.data.display()),
        Verdict::Together { installation, warnings } => {
            warnings.iter().for_each(|warning| eprintln!("made anew: {warning}"));
            together(folder, stores, survey, installation, accepted).await
        }
        Verdict::Unfinished { raise: raise @ Raise::Restore, .. } => bail!("{}", unfinished(&stores.data, raise)),
        Verdict::Refused(findings) | Verdict::Unfinished { findings, .. }
            if !findings.iter().all(|finding| accepted.contains(&finding.store)) =>
        {
            Err(Refused { data: stores.data.clone(), findings }.into())
        }
        Verdict::Refused(findings) => {
            let after = survey.installation().unwrap_or_default().raised();
            accept(folder, stores, &survey, &findings, Loss { after, is_log_lost: false, is_key_lost: false }).await
        }
        Verdict::Unfinished { installation: after, findings, .. } => {
            // What an earlier run has set aside and begun anew shows itself as missing no more.
            let has_no_key = survey.file().is_some_and(|file| file.region_key.is_none());
            let is_key_lost = has_no_key && accepted.contains(&Store::RegionKey);
            let loss = Loss { after, is_log_lost: accepted.contains(&Store::Log), is_key_lost };
            accept(folder, stores, &survey, &findings, loss).await
        }
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
    let place = InstalledLog { witnesses, acknowledged: known, is_taken_over: false, is_loss_accepted: false };
    match Embedded::open(folder, stores, &Clock::system(), &Meter::discard(), place).await {
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
            let loss = Loss { after: installation.raised(), is_log_lost: true, is_key_lost: false };
            accept(folder, stores, &survey, &[Finding { store: Store::Log, problem }], loss).await
        }
        Err(error) => Err(error),
    }
}

fn findings(survey: &Survey) -> Vec<Finding> {
    match survey.compare() {
        Verdict::Refused(findings) | Verdict::Unfinished { findings, .. } => findings,
        Verdict::Fresh | Verdict::Adopt | Verdict::Together { .. } => Vec::new(),
    }
}

/// How to go on without something.
#[derive(Clone, Copy, Debug)]
struct Loss {
    after: Installation,
    /// Accepted before, beside what is found to be lost.
    is_log_lost: bool,
    is_key_lost: bool,
}

/// Goes on without what is lost.
async fn accept(
    folder: DataFolder,
    stores: &StoresConfig,
    survey: &Survey,
    findings: &[Finding],
    loss: Loss,
) -> Result<Embedded> {
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
    let is_key_lost = loss.is_key_lost || begun_anew.contains(&Store::RegionKey);
    let keys = if is_key_lost { Keys::All } else { Keys::None };
    let is_log_lost = loss.is_log_lost || findings.iter().any(|finding| finding.store == Store::Log);
    let known = if is_log_lost { KnownLog::Lost } else { KnownLog::Through(acknowledged_before(survey, loss.after)) };
    let raise = (Raise::Repair, loss.after);
    let embedded = go_on(folder, stores, survey, raise, known, Numbers::after_loss, keys).await?;
    println!("the stores go on as incarnation {}", loss.after.incarnation);
    Ok(embedded)
}

/// Whether a store that lost something is gone on with.
fn is_kept(folder: &DataFolder, finding: &Finding) -> Result<bool> {
    match (finding.store, &finding.problem) {
        (store, Problem::Damaged(_)) if let Some(path) = folder.database(store) => {
            let wal = sqlite::wal_path(&path);
            let is_readable = path.exists() && is_sound(store, &path)?;
            let is_kept = is_readable && matches!(sqlite::survey(&path)?.0, Found::Marked(..) | Found::Unmarked);
            if is_kept {
                println!("  what SQLite can still read of it is kept");
            } else if wal.exists() {
                println!("  nothing of it can be read");
            }
            Ok(is_kept && (store != Store::Trail || is_history_kept(&folder.path(store))?))
        }
        (Store::Log, Problem::Damaged(_)) => {
            forget_acknowledged(&folder.path(Store::Log)).context("take back what the log has noted")?;
            Ok(true)
        }
        (_, _) => Ok(finding.leaves_something()),
    }
}

/// Whether history goes on, without what stood in segments that are gone.
fn is_history_kept(path: &Path) -> Result<bool> {
    let lost = trail_store::leave_out_lost(path).context("leave out what history has lost")?;
    if let Some(fixes) = lost {
        println!("  {fixes} fixes of it cannot be read; those of the last days come again from the log");
    }
    Ok(lost.is_some())
}

/// Whether SQLite finds the file in order; then it has new checksums, and what they cannot vouch for opens nothing.
fn is_sound(store: Store, path: &Path) -> Result<bool> {
    let void = || match store {
        Store::Registry => void_suspects(path, Time(Clock::system().now_ms())),
        Store::Ledger | Store::Log | Store::Trail | Store::Blobs | Store::RegionKey => Ok(Voided::default()),
    };
    match void().and_then(|voided| sqlite::remake_sums(path).map(|()| voided)) {
        Ok(Voided { tokens: 0, devices: 0 }) => Ok(true),
        Ok(Voided { tokens, devices }) => {
            println!("  {tokens} tokens and {devices} devices stood on damaged pages: they open nothing any more");
            Ok(true)
        }
        Err(sqlite::Fault::Damaged(_)) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
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
///
/// **Invariant:** the incarnation is written down before any store is brought to it. Killed anywhere, the same command
/// finds it there and goes on to the same end.
pub async fn go_on(
    folder: DataFolder,
    stores: &StoresConfig,
    survey: &Survey,
    (raise, installation): (Raise, Installation),
    log: KnownLog,
    above: impl Fn(Numbers) -> Numbers,
    keys: Keys,
) -> Result<Embedded> {
    let clock = Clock::system();
    let region_key = survey.file().and_then(|file| file.region_key).filter(|_| keys != Keys::All);
    folder.begin_raise(installation, raise, region_key)?;
    let witnesses = folder.witnesses(installation, survey.numbers(), survey)?;
    let data = stores.data.clone();
    let known = match log {
        KnownLog::Lost => 0,
        KnownLog::Through(commit) => commit,
    };
    let open = async |folder, witnesses| {
        let is_loss_accepted = log == KnownLog::Lost;
        let place = InstalledLog { witnesses, acknowledged: known, is_taken_over: true, is_loss_accepted };
        Embedded::open(folder, stores, &clock, &Meter::discard(), place).await
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
