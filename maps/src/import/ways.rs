//! What a way holds besides its tags and nodes: the places of its nodes, where the extract's maker put them there
//! (`osmium add-locations-to-ways`), and what of its tags is not taken over.

use osmpbfreader::osmformat::Way;
use protobuf::{CodedInputStream, UnknownValueRef};

use super::left_out::{LeftOutKind, LeftOuts};
use super::tags::{self, Tags};

/// Latitude and longitude of each node, in the block's units; empty where the way does not say them.
pub fn places(way: &Way) -> Vec<(i64, i64)> {
    let (lats, lons) = (packed(way, LAT_FIELD), packed(way, LON_FIELD));
    if lats.len() != way.refs.len() || lons.len() != way.refs.len() {
        return Vec::new();
    }
    let (mut lat, mut lon) = (0_i64, 0_i64);
    let sum = |(lat_delta, lon_delta): (&i64, &i64)| {
        (lat, lon) = (lat.wrapping_add(*lat_delta), lon.wrapping_add(*lon_delta));
        (lat, lon)
    };
    lats.iter().zip(&lons).map(sum).collect()
}

/// A packed list of signed numbers in a field that the reader's own description of the format does not have.
fn packed(way: &Way, field: u32) -> Vec<i64> {
    let Some(UnknownValueRef::LengthDelimited(bytes)) = way.special_fields.unknown_fields().get(field) else {
        return Vec::new();
    };
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut numbers = Vec::with_capacity(way.refs.len());
    while let Ok(false) = input.eof() {
        let Ok(number) = input.read_sint64() else { return Vec::new() };
        numbers.push(number);
    }
    numbers
}

/// Notes which tags of a road say what is not known here.
pub fn note_left_out(id: i64, tags: Tags<'_>, left_out: &mut LeftOuts) {
    if let Some(what) = super::access::unknown(tags) {
        left_out.add(LeftOutKind::AccessValue, "way", id, what);
    }
    if let Some(what) = tags::unknown_limit(tags) {
        left_out.add(LeftOutKind::LimitRule, "way", id, what);
    }
    if let Some(what) = tags::conditional(tags) {
        left_out.add(LeftOutKind::Condition, "way", id, what);
    }
}

const LAT_FIELD: u32 = 9;
const LON_FIELD: u32 = 10;
