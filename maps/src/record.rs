//! The fixed-size records of a map file, read in place. Little-endian, no padding: what lies in the file is what the
//! router reads.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::class::{Profile, RoadClass, Surface};

/// One direction of one road: all that a search over the graph needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EdgeRecord {
    pub from: u32,
    pub to: u32,
    pub length_cm: u32,
    /// The road's number; the highest bit says that this edge runs against its points. So the edge the other way has
    /// the same number but for that bit.
    pub road: u32,
    /// Of a car on an empty road.
    pub car_cm_s: u16,
    pub flags: u16,
    /// Of a bicycle, in decimetres per second. On a ferry, which is as fast for everybody, 256ths of a centimetre per
    /// second on top of `car_cm_s`.
    pub bicycle_dm_s: u8,
    /// Low five bits: the road's class. High three: its surface.
    pub kind: u8,
    /// Low four bits: which profiles may use it. High four: whether it belongs to that profile's largest connected part.
    pub access: u8,
    /// The speed limit, 0 where none is signed.
    pub limit_km_h: u8,
}

impl EdgeRecord {
    /// The number of the road's class.
    #[inline]
    pub fn class(&self) -> u8 {
        self.kind & 0x1f
    }

    /// The number of the road's surface.
    #[inline]
    pub fn surface(&self) -> u8 {
        self.kind >> 5
    }

    pub fn kind_of(class: RoadClass, surface: Surface) -> u8 {
        class.number() | surface.number() << 5
    }
}

/// A stretch between two junctions, shared by its two edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RoadRecord {
    /// Its first point; it ends where the next road's begin. One more record than roads closes the last.
    pub first_point: u32,
    /// Number of its way; the highest bit says that an edge of the road has copies.
    pub way: u32,
    /// The edge along its points, or NONE.
    pub forward: u32,
    /// The edge against its points, or NONE.
    pub backward: u32,
}

/// What the map's makers call a road, and under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WayRecord {
    pub osm_id: i64,
    /// Where its name begins in the text section, and how long it is.
    pub name: u32,
    pub name_len: u32,
}

/// A point of a road's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PointRecord {
    pub lat_e7: i32,
    pub lon_e7: i32,
    /// How far from the road's first point.
    pub along_cm: u32,
}

/// A turn that is not open to everybody at all times. Sorted by (from, to).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TurnRecord {
    pub from: u32,
    pub to: u32,
    /// From the lowest bit: who may not; from bit 8: who may only with business behind it, as at a private gate; from
    /// bit 16: who may not at some hours (`ConditionRecord`).
    pub profiles: u32,
}

impl TurnRecord {
    pub const LIMITED_SHIFT: u32 = 8;
    pub const CONDITIONAL_SHIFT: u32 = 16;

    #[inline]
    pub fn is_forbidden(&self, profile: Profile) -> bool {
        self.profiles & u32::from(profile.bit()) != 0
    }

    #[inline]
    pub fn is_limited(&self, profile: Profile) -> bool {
        self.profiles >> Self::LIMITED_SHIFT & u32::from(profile.bit()) != 0
    }

    #[inline]
    pub fn is_conditional(&self, profile: Profile) -> bool {
        self.profiles >> Self::CONDITIONAL_SHIFT & u32::from(profile.bit()) != 0
    }
}

/// When a turn is forbidden that is so at some hours only. Sorted; a turn may have several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConditionRecord {
    pub from: u32,
    pub to: u32,
    pub profiles: u32,
    /// Its hours in the text section, as OpenStreetMap writes them.
    pub text: u32,
    pub text_len: u32,
}

/// From which edge on, for a profile, edges lie in which part of the map: one within which one gets everywhere and back.
/// Sorted by (profile, first edge).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PartRecord {
    pub profile: u32,
    pub first_edge: u32,
    /// 0 where one cannot come back.
    pub part: u32,
}

/// Eight by eight cells of the segment index, some of which are not empty. Its column lies in a list of its own, so that
/// the search for it stays within a few cache lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockRecord {
    /// Where the runs of its first cell begin.
    pub first_run: u32,
    /// Where the runs of each cell end, counted from `first_run`; cells row by row from the south-west.
    pub ends: [u16; 64],
}

/// Up to four neighbouring segments of one road that touch one cell, with what decides whether to look at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RunRecord {
    /// Its first point; in the highest two bits, how many segments beyond the first.
    pub points: u32,
    /// The box of its part within the cell, and in the highest eight bits who may use the road along its points (four
    /// bits) and against them (four). See `index::grid`.
    pub sides: u32,
    pub road: u32,
}

impl RunRecord {
    #[inline]
    pub fn first_point(self) -> u32 {
        self.points & !(3 << 30)
    }

    /// How many segments.
    #[inline]
    pub fn count(self) -> u32 {
        (self.points >> 30) + 1
    }

    /// Who may use the road along its points, and against them.
    #[inline]
    pub fn access(self) -> (u8, u8) {
        let access = (self.sides >> 24) as u8;
        (access & 0x0f, access >> 4)
    }
}

/// The most segments in a run.
pub const RUN_SEGMENTS_MAX: usize = 4;
/// In place of a number that is not there.
pub const NONE: u32 = u32::MAX;
/// Marks, in `EdgeRecord::road`, an edge that runs against its road's points.
pub const BACKWARD: u32 = 1 << 31;
/// Marks, in `RoadRecord::way`, a road of which an edge has copies.
pub const COPIED: u32 = 1 << 31;

/// Something that tiles draw beside roads: water, green, a building, a place's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FeatureRecord {
    pub first_point: u32,
    pub points: u32,
    /// Its name in the text section.
    pub name: u32,
    pub name_len: u32,
    /// Its box: south, west, north, east.
    pub bbox_e7: [i32; 4],
    /// Layer and kind; see `tiles::feature`.
    pub kind: u16,
    /// 1 if this ring cuts a hole into the feature before.
    pub hole: u16,
    /// For places: how many live there; for areas: square metres.
    pub size: u32,
}
