//! What lies in one blob of an extract, unpacked: raw, zlib, lz4 or zstd. What is packed in another way is named, with
//! what makes an extract of it that can be read. No blob unpacks to more than the format allows.

use std::io::Read;

use osmpbfreader::fileformat::Blob;
use protobuf::{Message, UnknownValueRef};

use super::ImportError;

/// The blob's content.
pub fn unpack(at: u64, blob: &[u8]) -> Result<Vec<u8>, ImportError> {
    let damaged = |what| ImportError::Damaged { at, what };
    let mut blob = Blob::parse_from_bytes(blob).map_err(|_| damaged("a blob that cannot be decoded"))?;
    if blob.has_raw() {
        return Some(blob.take_raw()).filter(|raw| raw.len() <= BLOB_BYTES_MAX).ok_or_else(|| damaged(TOO_LONG));
    }
    let expected = usize::try_from(blob.raw_size()).ok().filter(|size| *size <= BLOB_BYTES_MAX);
    let expected = expected.ok_or_else(|| damaged(TOO_LONG))?;
    let packed = packed(&blob);
    let raw = match packed {
        Packed::Zlib(bytes) => read_up_to(flate2::read::ZlibDecoder::new(bytes), expected),
        Packed::Lz4(bytes) => lz4_flex::block::decompress(bytes, expected).ok(),
        Packed::Zstd(bytes) => {
            zstd::stream::read::Decoder::with_buffer(bytes).ok().and_then(|reader| read_up_to(reader, expected))
        }
        Packed::Other(name) => {
            let what = format!("{name} compression (`osmium cat` writes the extract with zlib)");
            return Err(ImportError::Unsupported { at, what });
        }
    };
    let raw = raw.ok_or_else(|| damaged("a blob that cannot be unpacked"))?;
    if raw.len() != expected {
        return Err(damaged("a blob that does not unpack to its length"));
    }
    Ok(raw)
}

/// How a blob is packed. The newer ways are fields that the reader's own description of the format does not have yet.
enum Packed<'a> {
    Zlib(&'a [u8]),
    Lz4(&'a [u8]),
    Zstd(&'a [u8]),
    Other(&'static str),
}

fn packed(blob: &Blob) -> Packed<'_> {
    if blob.has_zlib_data() {
        return Packed::Zlib(blob.zlib_data());
    }
    if blob.has_lzma_data() {
        return Packed::Other("lzma");
    }
    if blob.has_OBSOLETE_bzip2_data() {
        return Packed::Other("bzip2");
    }
    let bytes = |field| match blob.special_fields.unknown_fields().get(field) {
        Some(UnknownValueRef::LengthDelimited(bytes)) => Some(bytes),
        _ => None,
    };
    match (bytes(LZ4_FIELD), bytes(ZSTD_FIELD)) {
        (Some(bytes), _) => Packed::Lz4(bytes),
        (None, Some(bytes)) => Packed::Zstd(bytes),
        (None, None) => Packed::Other("an unknown"),
    }
}

/// All that comes, and one byte more than is expected at most: then it does not fit.
fn read_up_to(reader: impl Read, expected: usize) -> Option<Vec<u8>> {
    let mut raw = Vec::with_capacity(expected);
    reader.take(expected as u64 + 1).read_to_end(&mut raw).ok()?;
    Some(raw)
}

const TOO_LONG: &str = "a blob of impossible length";
const LZ4_FIELD: u32 = 6;
const ZSTD_FIELD: u32 = 7;
pub const BLOB_BYTES_MAX: usize = 32 * 1024 * 1024; // of the format's own rules
