//! The data folder as one installation: where each store lies, what a start finds there, and what it says when the
//! stores do not belong together. The comparison itself is `backends::installation::compare`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use backends::control::RegionKey;
use backends::installation::compare::{Claim, FileCopy, Finding, Found, Survey};
use backends::installation::witness::read_note;
use backends::installation::{Commit, Fingerprint, Installation, InstallationFile, Numbers, Raise, Store, Witnesses};
use backends::sqlite;
use backends::trail_store::embedded as trail_store;

/// A data folder that no other process may open meanwhile.
pub struct DataFolder {
    data: PathBuf,
    _lock: File,
}

impl DataFolder {
    pub fn lock(data: &Path) -> Result<DataFolder> {
        let folder = data.join(WITNESS);
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let path = folder.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| format!("open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(DataFolder { data: data.to_path_buf(), _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!("{} is open already, in another process", data.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    pub fn path(&self, store: Store) -> PathBuf {
        self.data.join(match store {
            Store::Log => "log",
            Store::Registry => "registry.db",
            Store::Ledger => "ledger.db",
            Store::Trail => "trail",
            Store::Blobs => "blobs",
            Store::RegionKey => "region.key",
        })
    }

    /// The folder of history, and the database of earlier releases.
    pub fn trail(&self) -> [PathBuf; 2] {
        ["trail", "trail.db"].map(|name| self.data.join(name))
    }

    pub fn tenant_key(&self) -> PathBuf {
        self.data.join("tenant.key")
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Looks at everything and changes nothing.
    pub fn survey(&self) -> Result<Survey> {
        let mut survey = Survey::default();
        for path in self.file_copies() {
            let file = InstallationFile::read(&path).map_err(|error| error.to_string());
            survey.copies.push(FileCopy { place: self.shown(&path), file });
        }
        for store in [Store::Registry, Store::Ledger, Store::Log] {
            for path in self.notes_of(store) {
                match read_note(&path) {
                    Ok(Some(note)) => survey.claims.push(Claim { place: self.shown(&path), note }),
                    Ok(None) => {}
                    Err(reason) => survey.unreadable.push(reason),
                }
            }
        }
        for store in [Store::Registry, Store::Ledger] {
            let path = self.path(store);
            let (found, notes) = sqlite::survey(&path).with_context(|| format!("look at {}", path.display()))?;
            survey.stores.insert(store, found);
            survey.claims.extend(notes.into_iter().map(|note| Claim { place: self.shown(&path), note }));
        }
        let present = match survey.installation() {
            Some(installation) => Found::Marked(installation, None),
            None => Found::Unmarked,
        };
        let found = |is_there: bool| if is_there { present.clone() } else { Found::Absent };
        survey.stores.insert(Store::Log, found(self.path(Store::Log).join("entries").exists()));
        let trail = found(self.trail().iter().any(|path| path.exists()));
        survey.stores.insert(Store::Trail, self.of_its_index(self.of_its_file(Store::Trail, trail))?);
        let blobs = found(self.path(Store::Blobs).exists());
        survey.stores.insert(Store::Blobs, self.of_its_file(Store::Blobs, blobs));
        if let Some(reason) = trail_store::find_damage(&self.path(Store::Trail)).context("look at history")? {
            survey.stores.insert(Store::Trail, Found::Damaged(reason));
        }
        match RegionKey::load(&self.path(Store::RegionKey)) {
            Ok(key) => {
                survey.region_key = key.map(|key| key.fingerprint());
                survey.stores.insert(Store::RegionKey, found(survey.region_key.is_some()));
            }
            Err(error) => drop(survey.stores.insert(Store::RegionKey, Found::Damaged(error.to_string()))),
        }
        Ok(survey)
    }

    /// A folder names its installation in a file of its own. Of which incarnation it is does not matter: bodies are named
    /// by their hash, and history knows which log it has read.
    fn of_its_file(&self, store: Store, found: Found) -> Found {
        let file = InstallationFile::read(&self.path(store).join(FILE)).ok().flatten();
        match (found, file) {
            (Found::Marked(here, commit), Some(file)) => {
                Found::Marked(Installation { id: file.installation.id, ..here }, commit)
            }
            (found, _) => found,
        }
    }

    /// History's index has a checksum for each page and names its installation. How far it had come nobody need know: an
    /// older one says itself from where on the log is read again, and what the log has no more is said then.
    fn of_its_index(&self, found: Found) -> Result<Found> {
        let path = self.database(Store::Trail).context("history has an index")?;
        let (of_index, _) = sqlite::survey(&path).with_context(|| format!("look at {}", path.display()))?;
        Ok(match (found, of_index) {
            (_, Found::Damaged(reason)) => Found::Damaged(reason),
            (Found::Marked(here, commit), Found::Marked(index, _)) => {
                Found::Marked(Installation { id: index.id, ..here }, commit)
            }
            (found, _) => found,
        })
    }

    /// The SQLite file of a store that has one, which is checked page by page.
    pub fn database(&self, store: Store) -> Option<PathBuf> {
        match store {
            Store::Registry | Store::Ledger => Some(self.path(store)),
            Store::Trail => Some(self.path(store).join("index.db")),
            Store::Log | Store::Blobs | Store::RegionKey => None,
        }
    }

    /// Where the commits of the stores are written down from now on.
    pub fn witnesses(&self, installation: Installation, numbers: Numbers, survey: &Survey) -> Result<Arc<Witnesses>> {
        let commit_of = |store: Store| match (store, survey.stores.get(&store)) {
            (Store::Log, _) => Commit { sequence: acknowledged(survey, installation), mark: 0 },
            (_, Some(Found::Marked(found, Some(commit)))) if *found == installation => *commit,
            (_, _) => Commit::default(),
        };
        let places: BTreeMap<_, _> = [Store::Registry, Store::Ledger, Store::Log]
            .into_iter()
            .map(|store| (store, (self.notes_of(store), commit_of(store))))
            .collect();
        Witnesses::open(installation, numbers, &places).context("open the notes of what the stores reached")
    }

    /// The first word of a new installation: it has an id, and its stores are being made.
    pub fn begin(&self, installation: Installation) -> Result<()> {
        let file = InstallationFile { installation, is_whole: false, region_key: None, raised_by: None };
        Ok(file.write(&self.data.join(WITNESS).join(FILE))?)
    }

    /// The first word of a repair or a restore that brings the stores to this incarnation: whoever comes after a kill goes
    /// on with the same id, and no start takes the stores for whole before it came to its end.
    pub fn begin_raise(&self, installation: Installation, raise: Raise, region_key: Option<Fingerprint>) -> Result<()> {
        let file = InstallationFile { installation, is_whole: false, region_key, raised_by: Some(raise) };
        Ok(file.write(&self.data.join(WITNESS).join(FILE))?)
    }

    /// All stores are there; from now on one that is not is missing. Copies that say so already are left alone.
    pub fn finish(&self, installation: Installation, region_key: &RegionKey) -> Result<()> {
        let file = InstallationFile {
            installation,
            is_whole: true,
            region_key: Some(region_key.fingerprint()),
            raised_by: None,
        };
        for path in self.file_copies() {
            if InstallationFile::read(&path).ok().flatten().as_ref() != Some(&file) {
                file.write(&path)?;
            }
        }
        Ok(())
    }

    /// Where a lost store's files go, so that nothing is ever deleted. Answers the new names.
    pub fn set_aside(&self, store: Store, suffix: &str) -> Result<Vec<PathBuf>> {
        let path = self.path(store);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names = match store {
            Store::Registry | Store::Ledger => ["", "-wal", "-shm", ".sums"].map(|end| format!("{name}{end}")).to_vec(),
            // A history of earlier releases that is still being taken over is not what is lost.
            Store::Trail => vec![name],
            Store::Log | Store::Blobs | Store::RegionKey => vec![name],
        };
        let mut moved = Vec::new();
        for name in names {
            let (from, to) = (self.data.join(&name), self.data.join(format!("{name}{suffix}")));
            if from.exists() {
                std::fs::rename(&from, &to).with_context(|| format!("set {} aside", from.display()))?;
                moved.push(to);
            }
        }
        Ok(moved)
    }

    fn file_copies(&self) -> [PathBuf; 4] {
        [
            self.data.join(WITNESS).join(FILE),
            self.path(Store::Log).join(FILE),
            self.path(Store::Blobs).join(FILE),
            self.path(Store::Trail).join(FILE),
        ]
    }

    /// A note about a store never lies in the store itself: the log's own is `log/acknowledged`.
    fn notes_of(&self, store: Store) -> Vec<PathBuf> {
        let in_witness = self.data.join(WITNESS).join(store.name());
        match store {
            Store::Registry | Store::Ledger => {
                vec![in_witness, self.path(Store::Log).join(format!("reached-{}", store.name()))]
            }
            Store::Log => vec![in_witness],
            Store::Trail | Store::Blobs | Store::RegionKey => Vec::new(),
        }
    }

    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.data).unwrap_or(path).display().to_string()
    }
}

/// The newest commit of the log that anybody but the log knows to have been acknowledged.
pub fn acknowledged(survey: &Survey, installation: Installation) -> u64 {
    let known = survey.known(Store::Log, installation.id);
    known.filter(|claim| claim.note.installation == installation).map_or(0, |claim| claim.note.commit.sequence)
}

/// The same for a log that is brought to this incarnation, from the one before: it may have come there already.
pub fn acknowledged_before(survey: &Survey, raised: Installation) -> u64 {
    let is_of_either = |known: Installation| {
        let before = Installation { incarnation: raised.incarnation.saturating_sub(1), ..raised };
        known == raised || known == before
    };
    let claims = survey.claims.iter().filter(|claim| claim.note.store == Store::Log);
    let sequences = claims.filter(|claim| is_of_either(claim.note.installation));
    sequences.map(|claim| claim.note.commit.sequence).max().unwrap_or(0)
}

/// What is said of a folder that a repair or a restore has begun to change, to all but the same command.
pub fn unfinished(data: &Path, raise: Raise) -> String {
    let (data, command) = (data.display(), raise.name());
    let again = match raise {
        Raise::Restore => "",
        Raise::Repair => ", with the same losses accepted",
    };
    format!(
        "a `wayfix {command}` of {data} has begun and did not come to its end: \
         run `wayfix {command} --data {data}` again{again}"
    )
}

/// Why a start was refused, and what there is to do.
#[derive(Debug, thiserror::Error)]
#[error("{}", refusal(.data, .findings))]
pub struct Refused {
    pub data: PathBuf,
    pub findings: Vec<Finding>,
}

fn refusal(data: &Path, findings: &[Finding]) -> String {
    let data = data.display();
    let mut lines = vec![format!("the stores in {data} do not belong together, nothing was changed:")];
    lines.extend(findings.iter().map(|finding| format!("  {finding}")));
    lines.push(String::from("What to do, in this order:"));
    lines.push(String::from("  1. put the files back that are missing or damaged, if you have them"));
    lines.push(format!("  2. `wayfix repair --data {data}` mends what can be mended without a loss"));
    lines.push(format!("  3. put a whole copy of {data} in its place, and run `wayfix restore --data {data}`"));
    let accept: Vec<String> =
        findings.iter().map(|finding| format!("--accept-loss {}", finding.store.name())).collect();
    lines.push(format!("  4. accept the loss: `wayfix repair --data {data} {}`", accept.join(" ")));
    lines.join("\n")
}

/// What a person who finds it should know, beside the stores themselves.
const WITNESS: &str = "witness";
const FILE: &str = "installation";
