//! The map file as a container: a header, a table of sections, the sections. Each section carries a checksum, the
//! header and the table one of their own, and the header a digest of everything, which is the map's version. So a file
//! that was cut short, or changed by one bit, is refused at opening with the name of what is wrong.
//!
//! ```text
//! 0   magic "wayfix m" · 8 format u32 · 12 sections u32 · 16 file length u64 · 24 digest [32] · 56 crc32 of 0..56, then of the table u32 u32
//! 64  table: per section kind u32 · crc32 u32 · offset u64 · length u64
//! …   sections, each from an offset divisible by 64
//! ```
//! All integers are little-endian.

use std::cmp::Ordering;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::mapping::Mapping;

/// Why a map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("{path}: cannot be read")]
    Io { path: PathBuf, source: io::Error },
    #[error("not a map file: it does not begin like one")]
    NotAMap,
    #[error("map format {found} is not known here, this build reads {FORMAT}: import the extract again")]
    Format { found: u32 },
    #[error("cut short: {found} bytes of {expected}")]
    CutShort { found: u64, expected: u64 },
    #[error("damaged: {found} bytes of {expected}, there is something behind its end")]
    TooLong { found: u64, expected: u64 },
    #[error("damaged: the checksum of {part} does not fit")]
    Damaged { part: &'static str },
    #[error("damaged: {part} {what}")]
    Malformed { part: &'static str, what: &'static str },
}

impl MapError {
    /// Whether trying again later could help.
    pub fn is_transient(&self) -> bool {
        matches!(self, MapError::Io { source, .. } if source.kind() == io::ErrorKind::Interrupted)
    }
}

macro_rules! sections {
    ($($variant:ident = $number:literal, $name:literal;)*) => {
        /// What a section holds. Numbers are never used again.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u32)]
        pub enum Section {
            $($variant = $number,)*
        }

        impl Section {
            pub const ALL: &'static [Section] = &[$(Section::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Section::$variant => $name,)*
                }
            }
        }
    };
}

sections!(
    Summary = 1, "the summary";
    Edges = 2, "the edges";
    OutFirst = 3, "the outgoing lists";
    InFirst = 4, "the incoming lists";
    InEdges = 5, "the incoming edges";
    Roads = 6, "the roads";
    Ways = 7, "the ways";
    Points = 8, "the points";
    Turns = 9, "the turns";
    Text = 10, "the text";
    IndexRows = 11, "the index rows";
    IndexBlocks = 12, "the index blocks";
    IndexRuns = 13, "the index runs";
    Order = 14, "the router's order";
    Features = 15, "the features";
    FeaturePoints = 16, "the feature points";
    IndexColumns = 18, "the index columns";
    Conditions = 19, "the conditions";
    Parts = 20, "the parts";
);

/// The digest of everything in a map file but its own place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapVersion(pub [u8; 32]);

impl std::fmt::Display for MapVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for MapVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Where the sections of a checked map file lie.
#[derive(Clone, Debug)]
pub struct Sections {
    ranges: [(usize, usize); SECTIONS_MAX],
    pub version: MapVersion,
}

impl Sections {
    /// Reads the table and checks every checksum: some ten gigabytes a second, so milliseconds for a city.
    pub fn check(bytes: &[u8]) -> Result<Sections, MapError> {
        if bytes.len() < MAGIC.len() || bytes[..MAGIC.len()] != MAGIC {
            return Err(MapError::NotAMap);
        }
        let cut_short = |expected: u64| MapError::CutShort { found: bytes.len() as u64, expected };
        if bytes.len() < HEADER_LEN {
            return Err(cut_short(HEADER_LEN as u64));
        }
        if !FORMATS_READ.contains(&u32_at(bytes, 8)) {
            return Err(MapError::Format { found: u32_at(bytes, 8) });
        }
        if crc32fast::hash(&bytes[..56]) != u32_at(bytes, 56) {
            return Err(MapError::Damaged { part: "the header" });
        }
        let (found, expected) = (bytes.len() as u64, u64_at(bytes, 16));
        match found.cmp(&expected) {
            Ordering::Less => return Err(cut_short(expected)),
            Ordering::Greater => return Err(MapError::TooLong { found, expected }),
            Ordering::Equal => {}
        }
        let count = u32_at(bytes, 12) as usize;
        let table_end = HEADER_LEN + count.min(SECTIONS_MAX) * ENTRY_LEN;
        if count > SECTIONS_MAX || bytes.len() < table_end {
            return Err(MapError::Malformed { part: "the table", what: "is too long" });
        }
        if crc32fast::hash(&bytes[HEADER_LEN..table_end]) != u32_at(bytes, 60) {
            return Err(MapError::Damaged { part: "the table" });
        }
        let mut sections = Sections { ranges: [(0, 0); SECTIONS_MAX], version: MapVersion(array_at(bytes, 24)) };
        let mut end = table_end;
        for i in 0..count {
            end = sections.check_entry(bytes, HEADER_LEN + i * ENTRY_LEN, end)?;
        }
        check_gap(&bytes[end..])?;
        Ok(sections)
    }

    /// Checks the section of the table's entry at `at`, which follows on `before`, and says where it ends.
    fn check_entry(&mut self, bytes: &[u8], at: usize, before: usize) -> Result<usize, MapError> {
        let kind = u32_at(bytes, at);
        // A section that this build does not know was added by a later one, which can do without it.
        let section = Section::ALL.iter().copied().find(|s| *s as u32 == kind);
        let part = section.map_or("a section", Section::name);
        let (start, len) = (u64_at(bytes, at + 8), u64_at(bytes, at + 16));
        let end = start.checked_add(len).filter(|end| *end <= bytes.len() as u64);
        let Some(end) = end.filter(|_| start == before.next_multiple_of(ALIGNMENT) as u64) else {
            return Err(MapError::Malformed { part, what: "does not lie where it belongs" });
        };
        let (start, end) = (start as usize, end as usize);
        check_gap(&bytes[before..start])?;
        if crc32fast::hash(&bytes[start..end]) != u32_at(bytes, at + 4) {
            return Err(MapError::Damaged { part });
        }
        if let Some(section) = section {
            self.ranges[section as usize] = (start, end);
        }
        Ok(end)
    }

    pub fn bytes_of<'a>(&self, bytes: &'a [u8], section: Section) -> &'a [u8] {
        let (start, end) = self.ranges[section as usize];
        &bytes[start..end]
    }
}

/// Maps a file and checks it.
pub fn open(path: &Path) -> Result<(Mapping, Sections), MapError> {
    let mapping = Mapping::open(path).map_err(|source| MapError::Io { path: path.to_owned(), source })?;
    let sections = Sections::check(mapping.bytes())?;
    Ok((mapping, sections))
}

/// A whole map file, in memory. Byte for byte the same for the same sections.
pub fn to_bytes(sections: &[(Section, Vec<u8>)]) -> Vec<u8> {
    let mut offset = (HEADER_LEN + sections.len() * ENTRY_LEN).next_multiple_of(ALIGNMENT);
    let mut table = Vec::with_capacity(sections.len() * ENTRY_LEN);
    let mut digest = Sha256::new();
    for (section, content) in sections {
        table.extend_from_slice(&(*section as u32).to_le_bytes());
        table.extend_from_slice(&crc32fast::hash(content).to_le_bytes());
        table.extend_from_slice(&(offset as u64).to_le_bytes());
        table.extend_from_slice(&(content.len() as u64).to_le_bytes());
        digest.update((*section as u32).to_le_bytes());
        digest.update((content.len() as u64).to_le_bytes());
        digest.update(content);
        offset = (offset + content.len()).next_multiple_of(ALIGNMENT);
    }
    let mut bytes = Vec::with_capacity(offset);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(offset as u64).to_le_bytes());
    bytes.extend_from_slice(&digest.finalize());
    let header_crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&header_crc.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&table).to_le_bytes());
    bytes.extend_from_slice(&table);
    for (_, content) in sections {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend_from_slice(content);
    }
    bytes.resize(offset, 0);
    bytes
}

/// Puts bytes under a name in one step: whoever opens the name sees the old file or the whole new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut part_name = name.to_owned();
    part_name.push(format!(".part-{}", std::process::id()));
    let part = path.with_file_name(part_name);
    let written = write_durably(&part, bytes).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part); // it may not be there; the error that matters is the one returned
    }
    written
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Between sections there are only zeros: what no checksum covers must not be able to change.
fn check_gap(gap: &[u8]) -> Result<(), MapError> {
    let is_gap = gap.len() < ALIGNMENT && gap.iter().all(|byte| *byte == 0);
    is_gap.then_some(()).ok_or(MapError::Damaged { part: "a gap between sections" })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// What every map file begins with.
pub const MAGIC: [u8; 8] = *b"wayfix m";
/// Raised whenever a build could misread what another wrote.
pub const FORMAT: u32 = 5;
/// The one before is read too: it lacks the parts of the map and signs for some hours, and reads as a map without them.
const FORMATS_READ: std::ops::RangeInclusive<u32> = 4..=FORMAT;
const HEADER_LEN: usize = 64;
const ENTRY_LEN: usize = 24;
const ALIGNMENT: usize = 64;
const SECTIONS_MAX: usize = 64;
