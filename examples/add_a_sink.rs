//! A sink of one's own: writes every delivery that is finished as one line of CSV, none missed and none twice, whenever
//! it is killed.
//!
//!     cargo run --example add_a_sink -- data/log finished
//!
//! The embedded log belongs to one process at a time: stop `wayfix up` before this, or call `work` from where the log is
//! open. A log that is a service is shared as it is.
//!
//! An entry is committed only after its lines are on the disk, so none is missed. What a kill leaves written and not
//! committed is read again, and a new owner of a driver may say things again: a line that is there is not written again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Holding, Log, LogError, ReadLimit, Topic, read_again, share};
use protocol::update::{DeliveryBody, Event};
use protocol::{DeliveryUpdate, JournalEntry, JournalKind, Offset, Update, UpdateBatch, envelope};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, csv] = &arguments[..] else { anyhow::bail!("usage: add_a_sink LOG_FOLDER CSV_FOLDER") };
    let log = Arc::new(EmbeddedLog::open(folder, EmbeddedLogConfig::default()).context("open the log")?);
    let csv = PathBuf::from(csv);
    std::fs::create_dir_all(&csv)?;

    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let _interrupted = tokio::signal::ctrl_c().await;
        stopped.cancel();
    });
    let begin = |holding: Holding| work(log.clone(), csv.clone(), holding);
    share(&*log, GROUP, Topic::Updates, &stop, begin).await?;
    tokio::task::spawn_blocking(move || log.close()).await?;
    Ok(())
}

/// Works on one partition, until it is another's or the program ends.
async fn work(log: Arc<dyn Log>, csv: PathBuf, holding: Holding) -> Result<()> {
    let mut lines = Lines::open(&csv.join(format!("finished-{}.csv", holding.partition)))?;
    let committed = log.committed(GROUP, Topic::Updates, holding.partition).await?;
    let first = log.range(Topic::Updates, holding.partition).await?.first;
    let mut reader = log.reader(Topic::Updates, holding.partition, committed.unwrap_or(first)).await?;
    loop {
        let reading = read_again(&mut *reader, "read updates", ReadLimit::default(), WAIT, &holding.stop);
        let entries = tokio::select! {
            () = holding.stop.cancelled() => return Ok(()),
            // `Gone` ends the program: the log has let entries go before they were taken, which somebody has to know.
            entries = reading => entries.context("read updates")?,
        };
        let Some(last) = entries.last() else { continue };
        for entry in &entries {
            let batch: UpdateBatch = envelope::decode(&entry.value).context("decode updates")?;
            for update in &batch.updates {
                match update {
                    Update::Delivery(update) => lines.take(update),
                    Update::Driver(_) | Update::Heartbeat { .. } => {}
                }
            }
        }
        let next = Offset(last.offset.0 + 1);
        lines = tokio::task::spawn_blocking(move || lines.write().map(|()| lines)).await??;
        match holding.commit(next).await {
            // The partition is another's, or the log is away: what is not committed is taken again.
            Err(LogError::NotHeld { .. }) => return Ok(()),
            Err(error) if error.is_transient() => {}
            committed => committed.context("commit")?,
        }
    }
}

/// The lines of one partition's file, which are its memory of what is written: 100 bytes for each delivery, so that who
/// has many millions begins new files now and then.
struct Lines {
    file: File,
    written: BTreeSet<String>,
    waiting: Vec<String>,
}

impl Lines {
    /// A line that a kill has cut short is taken away: what it was to say is not committed.
    fn open(path: &Path) -> Result<Lines> {
        let mut file = File::options().create(true).append(true).read(true).open(path).context("open the CSV")?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).context("read the CSV")?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        let written = text[..whole].lines().map(str::to_string).collect();
        Ok(Lines { file, written, waiting: Vec::new() })
    }

    fn take(&mut self, update: &DeliveryUpdate) {
        let journal_entry = |event: &'_ Event| {
            let Event::Journal { entry } = event else { return None };
            Some(entry.clone())
        };
        let of_keyframe = match &update.body {
            DeliveryBody::Keyframe { view } => &view.delivery.journal[..],
            DeliveryBody::Changed { .. } => &[],
        };
        for line in of_keyframe
            .iter()
            .cloned()
            .chain(update.events.iter().filter_map(journal_entry))
            .filter_map(|entry| finished(update, &entry))
        {
            if self.written.insert(line.clone()) {
                self.waiting.push(line + "\n");
            }
        }
    }

    fn write(&mut self) -> std::io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.file.write_all(self.waiting.concat().as_bytes())?;
        self.waiting.clear();
        self.file.sync_data()
    }
}

/// Tenant, delivery, number in its journal, status, milliseconds since 1970. The first three are one and the same journal
/// entry, whoever says it and how often.
fn finished(update: &DeliveryUpdate, entry: &JournalEntry) -> Option<String> {
    let JournalKind::Status { status, .. } = &entry.kind else { return None };
    let (key, number, at) = (update.key, entry.number, entry.at.0);
    status.is_finished().then(|| format!("{},{},{number},{},{at}", key.tenant, key.delivery, status.name()))
}

const GROUP: &str = "finished-as-csv";
const WAIT: Duration = Duration::from_secs(1);
