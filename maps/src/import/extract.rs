//! An `.osm.pbf` extract as a list of blobs, found by walking its frames once: what is cut short or is no extract at
//! all is known, with the byte where it begins, before anything is decoded. The blobs are then decoded in parallel.
//!
//! `osmpbfreader` decodes them (`osmformat`, `fileformat`); its own `par_iter` is not used, because it panics on a
//! file that was cut short or that points outside its string table, and makes owned strings of every tag.

use std::path::Path;

use osmpbfreader::fileformat::BlobHeader;
use osmpbfreader::osmformat::{HeaderBlock, PrimitiveBlock};
use protobuf::rt::WireType;
use protobuf::{CodedInputStream, Message};

use super::ImportError;
use super::blob::{self, BLOB_BYTES_MAX};
use crate::mapping::Mapping;

/// A checked list of an extract's data blobs.
pub struct Extract {
    mapping: Mapping,
    blobs: Vec<BlobPlace>,
}

/// Where a blob lies in the file.
#[derive(Clone, Copy, Debug)]
pub struct BlobPlace {
    pub at: u64,
    len: usize,
}

/// What a block holds, as found without decoding it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockContent {
    pub has_nodes: bool,
    pub has_ways_or_relations: bool,
}

impl Extract {
    pub fn open(path: &Path) -> Result<Extract, ImportError> {
        let read = |source| ImportError::Io { path: path.to_owned(), source };
        Extract::of(Mapping::open(path).map_err(read)?)
    }

    pub fn of(mapping: Mapping) -> Result<Extract, ImportError> {
        let blobs = walk(mapping.bytes())?;
        Ok(Extract { mapping, blobs })
    }

    pub fn blobs(&self) -> &[BlobPlace] {
        &self.blobs
    }

    pub fn len(&self) -> u64 {
        self.mapping.bytes().len() as u64
    }

    /// A blob's content, unpacked.
    pub fn unpack(&self, place: BlobPlace) -> Result<Vec<u8>, ImportError> {
        let start = place.at as usize;
        blob::unpack(place.at, &self.mapping.bytes()[start..start + place.len])
    }
}

impl BlobPlace {
    pub fn len(self) -> u64 {
        self.len as u64
    }
}

/// Decodes an unpacked block.
pub fn decode(at: u64, raw: &[u8]) -> Result<PrimitiveBlock, ImportError> {
    PrimitiveBlock::parse_from_bytes(raw)
        .map_err(|_| ImportError::Damaged { at, what: "a block that cannot be decoded" })
}

/// Looks at the kinds of the groups in an unpacked block; a group has objects of one kind only.
pub fn content(at: u64, raw: &[u8]) -> Result<BlockContent, ImportError> {
    peek(raw).ok_or(ImportError::Damaged { at, what: "a block that cannot be decoded" })
}

fn peek(raw: &[u8]) -> Option<BlockContent> {
    let mut input = CodedInputStream::from_bytes(raw);
    let mut content = BlockContent::default();
    while let Some(tag) = input.read_raw_tag_or_eof().ok()? {
        if tag != PRIMITIVE_GROUP_TAG {
            input.skip_field(WireType::new(tag & 7)?).ok()?;
            continue;
        }
        let len = input.read_raw_varint32().ok()?;
        let end = input.pos() + u64::from(len);
        if len > 0 {
            match input.read_raw_varint32().ok()? >> 3 {
                1 | 2 => content.has_nodes = true,
                3 | 4 => content.has_ways_or_relations = true,
                _ => {} // change sets
            }
        }
        let rest = end.checked_sub(input.pos())?;
        input.skip_raw_bytes(rest as u32).ok()?;
    }
    Some(content)
}

fn walk(bytes: &[u8]) -> Result<Vec<BlobPlace>, ImportError> {
    if bytes.is_empty() {
        return Err(ImportError::Empty);
    }
    let mut blobs = Vec::new();
    let mut at = 0;
    let mut has_header = false;
    while at < bytes.len() {
        let (kind, start, len) = frame(bytes, at)?;
        let end = start + len;
        match kind.as_str() {
            "OSMHeader" => {
                check_header(start as u64, &bytes[start..end])?;
                has_header = true;
            }
            _ if !has_header => return Err(ImportError::NotAnExtract),
            "OSMData" => blobs.push(BlobPlace { at: start as u64, len }),
            _ => {} // the format asks readers to pass over kinds that they do not know
        }
        at = end;
    }
    Ok(blobs)
}

/// The frame at `at`: its blob's kind, and where the blob begins and how long it is.
fn frame(bytes: &[u8], at: usize) -> Result<(String, usize, usize), ImportError> {
    let is_first = at == 0;
    let bad = |what| if is_first { ImportError::NotAnExtract } else { ImportError::Damaged { at: at as u64, what } };
    let cut = |needed: usize| ImportError::CutShort { at: at as u64, found: bytes.len() as u64, needed: needed as u64 };
    let Some(prefix) = bytes.get(at..at + 4) else {
        return Err(if is_first { ImportError::NotAnExtract } else { cut(at + 4) });
    };
    let header_len = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
    if header_len == 0 || header_len > HEADER_BYTES_MAX {
        return Err(bad("a frame of impossible length"));
    }
    let header_end = at + 4 + header_len;
    let header = bytes.get(at + 4..header_end).ok_or_else(|| cut(header_end))?;
    let header = BlobHeader::parse_from_bytes(header).map_err(|_| bad("a frame that cannot be decoded"))?;
    let len = usize::try_from(header.datasize()).ok().filter(|len| *len <= BLOB_BYTES_MAX);
    let len = len.ok_or_else(|| bad("a blob of impossible length"))?;
    let end = header_end + len;
    if end > bytes.len() {
        return Err(cut(end));
    }
    Ok((header.type_().to_owned(), header_end, len))
}

fn check_header(at: u64, blob: &[u8]) -> Result<(), ImportError> {
    let raw = blob::unpack(at, blob)?;
    let header = HeaderBlock::parse_from_bytes(&raw)
        .map_err(|_| ImportError::Damaged { at, what: "a header that cannot be decoded" })?;
    let unknown = header.required_features.iter().find(|feature| !FEATURES_KNOWN.contains(&feature.as_str()));
    match unknown {
        Some(feature) => Err(ImportError::Unsupported {
            at,
            what: format!("the feature {feature} (`osmium cat` writes an extract without it)"),
        }),
        None => Ok(()),
    }
}

const PRIMITIVE_GROUP_TAG: u32 = 2 << 3 | 2;
const HEADER_BYTES_MAX: usize = 64 * 1024; // of the format's own rules
/// Of a history the newest version of each object counts.
const FEATURES_KNOWN: &[&str] = &["OsmSchema-V0.6", "DenseNodes", "HistoricalInformation", "LocationsOnWays"];
