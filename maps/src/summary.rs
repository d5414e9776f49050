//! What a map file says of itself.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use protocol::Position;

use crate::file::{MapError, Section};
use crate::geo::Bbox;

/// Written by the import, the same for the same extract and options: no dates, no paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub bbox: Bbox,
    /// Whose speed limits hold where none is signed; ISO 3166-1 alpha-2, empty for the world's default.
    pub country: String,
    /// Turn restrictions of the extract that the graph keeps.
    pub restrictions: u32,
    /// Turn restrictions that could not be kept: members missing, or a kind that is not known here.
    pub restrictions_left_out: u32,
    /// Whether the router's order was not found in time.
    pub is_order_missing: bool,
}

#[derive(SchemaWrite, SchemaRead)]
struct Stored {
    bbox: [Position; 2],
    country: String,
    restrictions: u32,
    restrictions_left_out: u32,
    is_order_missing: bool,
}

impl Summary {
    pub fn read(bytes: &[u8]) -> Result<Summary, MapError> {
        let stored: Stored = wincode::deserialize_exact(bytes)
            .map_err(|_| MapError::Malformed { part: Section::Summary.name(), what: "cannot be read" })?;
        Ok(Summary {
            bbox: Bbox { south_west: stored.bbox[0], north_east: stored.bbox[1] },
            country: stored.country,
            restrictions: stored.restrictions,
            restrictions_left_out: stored.restrictions_left_out,
            is_order_missing: stored.is_order_missing,
        })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let stored = Stored {
            bbox: [self.bbox.south_west, self.bbox.north_east],
            country: self.country.clone(),
            restrictions: self.restrictions,
            restrictions_left_out: self.restrictions_left_out,
            is_order_missing: self.is_order_missing,
        };
        wincode::serialize(&stored).expect("a summary is far smaller than wincode's limit")
    }
}
