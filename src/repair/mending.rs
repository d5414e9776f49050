//! What `wayfix repair` mends because it is no loss: a damaged write-ahead log all of which stands in its file too, and
//! checksums that are gone while the database itself is whole.
//!
//! **Invariant:** whether it is no loss is known before a file is moved, and no file is ever moved over another. So a
//! repair that is killed, or fails, anywhere leaves everything for the next one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use backends::installation::compare::{Finding, Found, Problem, Survey};
use backends::installation::{Installation, Store};
use backends::sqlite;

use crate::installation::DataFolder;

/// Does nothing where the finding is of another kind.
pub fn mend(folder: &DataFolder, survey: &Survey, finding: &Finding) -> Result<()> {
    let Some(path) = folder.database(finding.store).filter(|path| path.exists()) else { return Ok(()) };
    if !matches!(finding.problem, Problem::Damaged(_) | Problem::Behind { .. }) {
        return Ok(());
    }
    put_wal_back(&path)?;
    mend_wal(&path, survey, finding.store)?;
    mend_sums(&path, survey, finding.store)
}

/// Whether a database that holds this would belong to the others. How far history has come it knows itself.
fn would_belong(survey: &Survey, store: Store, found: Found) -> bool {
    match (found, survey.installation()) {
        (Found::Marked(index, _), Some(here)) if store == Store::Trail => {
            survey.would_belong(store, Found::Marked(Installation { id: index.id, ..here }, None))
        }
        (found, _) => survey.would_belong(store, found),
    }
}

/// A repair of an earlier release set the write-ahead log aside before it looked, and may have been killed then: where no
/// other one has begun, it still belongs to its file.
fn put_wal_back(path: &Path) -> Result<()> {
    let wal = sqlite::wal_path(path);
    let aside = wal.with_extension("db-wal.aside");
    let is_alone = std::fs::metadata(&wal).map_or(true, |meta| meta.len() == 0);
    if is_alone && aside.exists() {
        std::fs::rename(&aside, &wal).with_context(|| format!("put {} back", wal.display()))?;
        eprintln!("{}: an unfinished repair had set it aside, it was put back", wal.display());
    }
    Ok(())
}

fn mend_wal(path: &Path, survey: &Survey, store: Store) -> Result<()> {
    let wal = sqlite::wal_path(path);
    let is_needed = would_belong(survey, store, sqlite::survey(path)?.0);
    if !wal.exists() || is_needed || !would_belong(survey, store, sqlite::survey_without_wal(path)?) {
        return Ok(());
    }
    let aside = unused(&wal.with_extension("db-wal.damaged"));
    std::fs::rename(&wal, &aside).with_context(|| format!("set {} aside", wal.display()))?;
    eprintln!("{}: its write-ahead log was damaged, and held nothing that its file has not", store.name());
    Ok(())
}

fn mend_sums(path: &Path, survey: &Survey, store: Store) -> Result<()> {
    let is_whole_but_for_sums =
        || Ok::<_, sqlite::Fault>(would_belong(survey, store, sqlite::survey_without_sums(path)?));
    if !sqlite::sums_path(path).exists() && is_whole_but_for_sums()? && sqlite::remake_sums(path).is_ok() {
        eprintln!("{}: its checksums were gone and were made anew", store.name());
    }
    Ok(())
}

/// This name, or the first after it that nothing has.
fn unused(path: &Path) -> PathBuf {
    let numbered = |number: u32| PathBuf::from(format!("{}-{number}", path.display()));
    let mut names = std::iter::once(path.to_path_buf()).chain((2..).map(numbered));
    names.find(|name| std::fs::symlink_metadata(name).is_err()).expect("there are more names than files")
}
