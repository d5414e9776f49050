//! A download that can be broken off anywhere and goes on where it stopped: the bytes so far in `FILE.part`, and beside
//! them, in `FILE.part.json`, of which version of which file they are.
//!
//! **Invariant:** bytes of two versions never meet in one part. The rest is asked for under the condition that the file
//! has not changed (`If-Range`); where a mirror names no version, the published checksum must be the same as before.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::checksum::Checksum;
use super::{FetchError, unreachable};

pub struct Part {
    pub path: PathBuf,
    /// Locked: two downloads into one file would tear it.
    pub file: File,
    note_path: PathBuf,
    note: Option<Note>,
    length: u64,
}

/// Of what the bytes are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Note {
    url: String,
    etag: Option<String>,
    modified: Option<String>,
    checksum: Option<String>,
}

impl Note {
    fn of(url: &Url, checksum: Option<&Checksum>, headers: &HeaderMap) -> Note {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let checksum = checksum.map(ToString::to_string);
        // A weak tag may stand for other bytes of the same meaning.
        let etag = text(ETAG).filter(|etag| !etag.starts_with("W/"));
        Note { url: url.to_string(), etag, modified: text(LAST_MODIFIED), checksum }
    }

    /// What the mirror calls this version.
    fn validator(&self) -> Option<&str> {
        self.etag.as_deref().or(self.modified.as_deref())
    }

    /// Whether the rest may be asked for, as far as one knows before asking.
    fn may_go_on(&self, url: &Url, checksum: Option<&Checksum>) -> bool {
        let published = checksum.map(ToString::to_string);
        let is_same = match (&self.checksum, &published) {
            (Some(then), Some(now)) => then == now,
            _ => self.validator().is_some(),
        };
        self.url == url.as_str() && is_same
    }
}

/// How an attempt went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    Anew,
    /// After so many bytes.
    GoneOn(u64),
    /// Had been here before, and the mirror has no other version of it.
    AnewBecauseChanged,
}

impl Part {
    pub fn open(output: &Path) -> Result<Part, FetchError> {
        let beside = |ending: &str| {
            let mut name = output.file_name().unwrap_or_default().to_owned();
            name.push(ending);
            output.with_file_name(name)
        };
        let (path, note_path) = (beside(".part"), beside(".part.json"));
        let cannot = |source| FetchError::Disk { path: path.clone(), source };
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(cannot)?;
        file.try_lock().map_err(|_| FetchError::Busy { path: path.clone() })?;
        let note = fs::read(&note_path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let length = file.metadata().map_err(cannot)?.len();
        Ok(Part { path, file, note_path, note, length })
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// Gets what is missing. After an error that `is_transient` it can be called again.
    pub async fn download(
        &mut self,
        client: &Client,
        url: &Url,
        checksum: Option<&Checksum>,
        bar: &ProgressBar,
    ) -> Result<Begun, FetchError> {
        let note = self.note.clone().filter(|note| self.length > 0 && note.may_go_on(url, checksum));
        let had = self.length > 0;
        let (answer, begun) = match note {
            None => (self.ask(client, url, None).await?, if had { Begun::AnewBecauseChanged } else { Begun::Anew }),
            Some(note) => {
                let answer = self.ask(client, url, Some(&note)).await?;
                let now = Note::of(url, checksum, answer.headers());
                match answer.status() {
                    // Whoever sends a part of another version did not heed the condition.
                    StatusCode::PARTIAL_CONTENT if !self.goes_on(&note, &now, &answer) => {
                        (self.ask(client, url, None).await?, Begun::AnewBecauseChanged)
                    }
                    StatusCode::PARTIAL_CONTENT => (answer, Begun::GoneOn(self.length)),
                    StatusCode::RANGE_NOT_SATISFIABLE if total_of(&answer) == Some(self.length) => {
                        return Ok(Begun::GoneOn(self.length));
                    }
                    StatusCode::RANGE_NOT_SATISFIABLE => {
                        (self.ask(client, url, None).await?, Begun::AnewBecauseChanged)
                    }
                    _ => (answer, Begun::AnewBecauseChanged),
                }
            }
        };
        match (answer.status(), begun) {
            (StatusCode::PARTIAL_CONTENT, Begun::GoneOn(_)) => {}
            (StatusCode::OK, _) => self.begin_anew(Note::of(url, checksum, answer.headers()))?,
            (status, _) => return Err(FetchError::Status { url: url.to_string(), status }),
        }
        self.receive(url, answer, bar).await?;
        Ok(begun)
    }

    async fn ask(&self, client: &Client, url: &Url, rest_of: Option<&Note>) -> Result<Response, FetchError> {
        let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(note) = rest_of {
            request = request.header(RANGE, format!("bytes={}-", self.length));
            if let Some(validator) = note.validator() {
                request = request.header(IF_RANGE, validator);
            }
        }
        request.send().await.map_err(|error| unreachable(url, error))
    }

    fn goes_on(&self, then: &Note, now: &Note, answer: &Response) -> bool {
        let is_same = match (then.validator(), now.validator()) {
            (Some(then), Some(now)) => then == now,
            // Without a version's name the checksum was compared before.
            _ => true,
        };
        is_same && start_of(answer) == Some(self.length)
    }

    fn begin_anew(&mut self, note: Note) -> Result<(), FetchError> {
        // An old note beside new bytes would be wrong, a new one beside none is not.
        self.file.set_len(0).or_else(ignore_device).map_err(|source| self.failed(source))?;
        self.length = 0;
        let text = serde_json::to_vec(&note).map_err(|error| self.failed(io::Error::other(error)))?;
        fs::write(&self.note_path, text).map_err(|source| self.failed(source))?;
        self.note = Some(note);
        Ok(())
    }

    async fn receive(&mut self, url: &Url, mut answer: Response, bar: &ProgressBar) -> Result<(), FetchError> {
        self.file.seek(SeekFrom::Start(self.length)).map_err(|source| self.failed(source))?;
        let expected = answer.content_length().map(|rest| self.length + rest);
        bar.set_length(expected.unwrap_or(0));
        bar.set_position(self.length);
        while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(url, error))? {
            self.file.write_all(&chunk).map_err(|source| self.failed(source))?;
            self.length += chunk.len() as u64;
            bar.set_position(self.length);
        }
        match expected {
            Some(expected) if expected != self.length => {
                Err(FetchError::CutShort { url: url.to_string(), found: self.length, expected })
            }
            _ => Ok(()),
        }
    }

    /// Puts the whole file under its name, durably and in one step.
    pub fn finish(self, output: &Path) -> Result<(), FetchError> {
        let finish = || {
            self.file.sync_all()?;
            fs::rename(&self.path, output)
        };
        finish().map_err(|source| FetchError::Disk { path: output.to_owned(), source })?;
        let _ = fs::remove_file(&self.note_path); // a note without its part is not looked at
        Ok(())
    }

    /// What was downloaded is of no use.
    pub fn discard(self) {
        let _ = (fs::remove_file(&self.path), fs::remove_file(&self.note_path)); // left over, they begin anew
    }

    fn failed(&self, source: io::Error) -> FetchError {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return FetchError::NoSpace { path: self.path.clone(), written: self.length };
        }
        FetchError::Disk { path: self.path.clone(), source }
    }
}

/// What is no regular file has no length to set.
fn ignore_device(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(error) }
}

/// Where a part begins, by `bytes FROM-TO/TOTAL`.
fn start_of(answer: &Response) -> Option<u64> {
    range_of(answer)?.split('-').next()?.trim().parse().ok()
}

/// How long the whole is, by `bytes */TOTAL` too.
fn total_of(answer: &Response) -> Option<u64> {
    range_of(answer)?.rsplit('/').next()?.trim().parse().ok()
}

fn range_of(answer: &Response) -> Option<&str> {
    answer.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes")
}
