//! How the state of a tracker stands in a snapshot: each struct as a list of numbered fields, each field with a version
//! of its own, so that another build can read what it knows. `snapshot/mod.rs` says how to add a field.
//!
//! A field is `tag u8 ‖ version u8 ‖ length LEB128 ‖ bytes`. The highest bit of the version says that a build that does
//! not know the field, or not this version of it, must refuse the snapshot; without it such a build takes the field's
//! default. A field that a snapshot lacks has its default too.
//!
//! Format 3 (the build before fields) wrote the same structs without heads, one field after the other: that is what the
//! fields of a struct's first block are, in the order of their tags, each in its version 1.

use wincode::config::DefaultConfig;
use wincode::{SchemaRead, SchemaReadOwned, SchemaWrite};

use super::snapshot::SnapshotError;

/// A struct that stands in a snapshot field by field. Made by `fields!`.
pub trait Fields: Sized {
    fn write_fields(&self, to: &mut Vec<u8>) -> Result<(), SnapshotError>;

    fn read_fields(from: &[u8], reading: &mut Reading) -> Result<Self, SnapshotError>;

    /// Takes from the front what format 3 wrote of it.
    fn read_format_3(from: &mut &[u8], reading: &mut Reading) -> Result<Self, SnapshotError>;
}

/// How one field is written and read.
pub trait Codec<T> {
    /// Of what `write` writes.
    const VERSION: u8 = 1;
    /// A build that does not know it must not go on without it.
    const IS_REQUIRED: bool = false;

    fn write(value: &T, to: &mut Vec<u8>) -> Result<(), SnapshotError>;

    /// Takes a value of `version` from the front; None if this build does not know that version.
    fn read(version: u8, from: &mut &[u8], reading: &mut Reading) -> Result<Option<T>, SnapshotError>;

    /// Takes from the front what format 3 wrote of it: version 1, unless the value has fields itself.
    fn read_format_3(from: &mut &[u8], reading: &mut Reading) -> Result<T, SnapshotError> {
        Self::read(1, from, reading)?.ok_or(SnapshotError::Decode)
    }
}

/// What was met while reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// Fields of a newer build that were left out.
    pub skipped: u32,
}

/// A value that has no fields of its own: wincode's bytes.
pub struct Plain;

impl<T> Codec<T> for Plain
where
    T: SchemaWrite<DefaultConfig, Src = T> + SchemaReadOwned<DefaultConfig, Dst = T>,
{
    fn write(value: &T, to: &mut Vec<u8>) -> Result<(), SnapshotError> {
        wincode::serialize_into(to, value).map_err(|_| SnapshotError::Decode)
    }

    fn read(version: u8, from: &mut &[u8], _: &mut Reading) -> Result<Option<T>, SnapshotError> {
        if version == 1 { take_plain(from).map(Some) } else { Ok(None) }
    }
}

/// A plain value in its version 2, which comes of `Old`, its version 1. A third version needs a codec of its own.
#[cfg_attr(not(test), expect(dead_code, reason = "for the first type that changes"))]
pub struct From1<Old>(std::marker::PhantomData<Old>);

impl<T, Old> Codec<T> for From1<Old>
where
    T: SchemaWrite<DefaultConfig, Src = T> + SchemaReadOwned<DefaultConfig, Dst = T> + From<Old>,
    Old: SchemaReadOwned<DefaultConfig, Dst = Old>,
{
    const VERSION: u8 = 2;

    fn write(value: &T, to: &mut Vec<u8>) -> Result<(), SnapshotError> {
        Plain::write(value, to)
    }

    fn read(version: u8, from: &mut &[u8], _: &mut Reading) -> Result<Option<T>, SnapshotError> {
        match version {
            1 => Ok(Some(take_plain::<Old>(from)?.into())),
            2 => take_plain(from).map(Some),
            _ => Ok(None),
        }
    }
}

/// A field that a build which does not know it must not leave out.
pub struct Required<C>(std::marker::PhantomData<C>);

impl<T, C: Codec<T>> Codec<T> for Required<C> {
    const VERSION: u8 = C::VERSION;
    const IS_REQUIRED: bool = true;

    fn write(value: &T, to: &mut Vec<u8>) -> Result<(), SnapshotError> {
        C::write(value, to)
    }

    fn read(version: u8, from: &mut &[u8], reading: &mut Reading) -> Result<Option<T>, SnapshotError> {
        C::read(version, from, reading)
    }

    fn read_format_3(from: &mut &[u8], reading: &mut Reading) -> Result<T, SnapshotError> {
        C::read_format_3(from, reading)
    }
}

/// A struct with fields.
pub struct One;

impl<T: Fields> Codec<T> for One {
    fn write(value: &T, to: &mut Vec<u8>) -> Result<(), SnapshotError> {
        value.write_fields(to)
    }

    fn read(_: u8, from: &mut &[u8], reading: &mut Reading) -> Result<Option<T>, SnapshotError> {
        T::read_fields(std::mem::take(from), reading).map(Some)
    }

    fn read_format_3(from: &mut &[u8], reading: &mut Reading) -> Result<T, SnapshotError> {
        T::read_format_3(from, reading)
    }
}

/// A struct with fields, or none.
pub struct Maybe;

impl<T: Fields> Codec<Option<T>> for Maybe {
    fn write(value: &Option<T>, to: &mut Vec<u8>) -> Result<(), SnapshotError> {
        to.push(u8::from(value.is_some()));
        value.as_ref().map_or(Ok(()), |value| value.write_fields(to))
    }

    fn read(_: u8, from: &mut &[u8], reading: &mut Reading) -> Result<Option<Option<T>>, SnapshotError> {
        let is_some = take_flag(from)?;
        let rest = std::mem::take(from);
        Ok(Some(if is_some { Some(T::read_fields(rest, reading)?) } else { None }))
    }

    fn read_format_3(from: &mut &[u8], reading: &mut Reading) -> Result<Option<T>, SnapshotError> {
        if take_flag(from)? { T::read_format_3(from, reading).map(Some) } else { Ok(None) }
    }
}

/// A list of structs with fields.
pub struct Each;

impl<T: Fields> Codec<Vec<T>> for Each {
    fn write(value: &Vec<T>, to: &mut Vec<u8>) -> Result<(), SnapshotError> {
        value.iter().try_for_each(|one| framed(to, |to| one.write_fields(to)))
    }

    fn read(_: u8, from: &mut &[u8], reading: &mut Reading) -> Result<Option<Vec<T>>, SnapshotError> {
        let mut all = Vec::new();
        while !from.is_empty() {
            let one = take_framed(from)?;
            all.push(T::read_fields(one, reading)?);
        }
        Ok(Some(all))
    }

    fn read_format_3(from: &mut &[u8], reading: &mut Reading) -> Result<Vec<T>, SnapshotError> {
        let count: u64 = take_plain(from)?;
        // Not reserved: the count may be wrong, and a wrong one ends with the bytes.
        (0..count).map(|_| T::read_format_3(from, reading)).collect()
    }
}

/// A field as it stands in the bytes.
pub struct Field<'a> {
    pub tag: u8,
    version: u8,
    bytes: &'a [u8],
}

pub fn next_field<'a>(from: &mut &'a [u8]) -> Result<Option<Field<'a>>, SnapshotError> {
    if from.is_empty() {
        return Ok(None);
    }
    let (head, rest) = from.split_first_chunk::<2>().ok_or(SnapshotError::CutShort)?;
    *from = rest;
    let bytes = take_framed(from)?;
    Ok(Some(Field { tag: head[0], version: head[1], bytes }))
}

pub fn write_field<T, C: Codec<T>>(tag: u8, value: &T, to: &mut Vec<u8>) -> Result<(), SnapshotError> {
    let required = if C::IS_REQUIRED { REQUIRED } else { 0 };
    to.extend_from_slice(&[tag, C::VERSION | required]);
    framed(to, |to| C::write(value, to))
}

/// None if it is of a newer build and may be left out.
pub fn read_field<T, C: Codec<T>>(field: &Field<'_>, reading: &mut Reading) -> Result<Option<T>, SnapshotError> {
    let mut bytes = field.bytes;
    match C::read(field.version & !REQUIRED, &mut bytes, reading)? {
        Some(value) if bytes.is_empty() => Ok(Some(value)),
        Some(_) => Err(SnapshotError::Decode),
        None => pass_field(field, reading).map(|()| None),
    }
}

/// A field that this build does not know.
pub fn pass_field(field: &Field<'_>, reading: &mut Reading) -> Result<(), SnapshotError> {
    if field.version & REQUIRED != 0 {
        return Err(SnapshotError::Required { tag: field.tag });
    }
    reading.skipped = reading.skipped.saturating_add(1);
    Ok(())
}

/// Takes a plain value from the front.
pub fn take_plain<'de, T: SchemaRead<'de, DefaultConfig, Dst = T>>(from: &mut &'de [u8]) -> Result<T, SnapshotError> {
    T::get(&mut *from).map_err(|_| SnapshotError::Decode)
}

fn take_flag(from: &mut &[u8]) -> Result<bool, SnapshotError> {
    let (flag, rest) = from.split_first().ok_or(SnapshotError::CutShort)?;
    *from = rest;
    match flag {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(SnapshotError::Decode),
    }
}

/// What `write` writes, behind its length.
fn framed(
    to: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    let begin = to.len();
    to.push(0);
    write(to)?;
    let mut length = u32::try_from(to.len() - begin - 1).map_err(|_| SnapshotError::TooLarge)?;
    if length < 0x80 {
        to[begin] = length as u8;
        return Ok(());
    }
    let mut head = Vec::with_capacity(LENGTH_BYTES_MAX);
    while length >= 0x80 {
        head.push(length as u8 | 0x80);
        length >>= 7;
    }
    head.push(length as u8);
    to.splice(begin..=begin, head);
    Ok(())
}

fn take_framed<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], SnapshotError> {
    let mut length = 0_u64;
    for shift in 0..LENGTH_BYTES_MAX {
        let (byte, rest) = from.split_first().ok_or(SnapshotError::CutShort)?;
        *from = rest;
        length |= u64::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            let length = usize::try_from(length).map_err(|_| SnapshotError::CutShort)?;
            let (framed, rest) = from.split_at_checked(length).ok_or(SnapshotError::CutShort)?;
            *from = rest;
            return Ok(framed);
        }
    }
    Err(SnapshotError::Decode)
}

/// Says which fields a struct has. The first block is what it had in format 3, by the order in which it wrote them, with
/// `[gone Type]` in the place of what it has no more; `since` is what came later, each with its default.
macro_rules! fields {
    (
        $type:ty {
            $( $tag:literal $( [gone $gone:ty] )? $( $name:ident : $codec:ty $( = $default:expr )? )? ),* $(,)?
        }
        $( since { $( $later_tag:literal $later:ident : $later_codec:ty = $later_default:expr ),* $(,)? } )?
    ) => {
        impl $crate::track::fields::Fields for $type {
            fn write_fields(&self, to: &mut Vec<u8>) -> Result<(), $crate::track::SnapshotError> {
                let Self { $( $( $name, )? )* $( $( $later, )* )? } = self;
                $( $( $crate::track::fields::write_field::<_, $codec>($tag, $name, to)?; )? )*
                $( $( $crate::track::fields::write_field::<_, $later_codec>($later_tag, $later, to)?; )* )?
                Ok(())
            }

            fn read_fields(
                mut from: &[u8],
                reading: &mut $crate::track::fields::Reading,
            ) -> Result<Self, $crate::track::SnapshotError> {
                use $crate::track::fields::{next_field, pass_field, read_field};
                $( $( let mut $name = None; )? )*
                $( $( let mut $later = None; )* )?
                while let Some(field) = next_field(&mut from)? {
                    match field.tag {
                        $( $( $tag => $name = read_field::<_, $codec>(&field, reading)?, )? )*
                        $( $( $tag => { let _: Option<$gone> = None; } )? )*
                        $( $( $later_tag => $later = read_field::<_, $later_codec>(&field, reading)?, )* )?
                        _ => pass_field(&field, reading)?,
                    }
                }
                Ok(Self {
                    $( $( $name: match $name {
                        Some(value) => value,
                        None => $crate::track::fields::fields!(@missing $name $( $default )?),
                    }, )? )*
                    $( $( $later: match $later {
                        Some(value) => value,
                        None => $later_default,
                    }, )* )?
                })
            }

            fn read_format_3(
                from: &mut &[u8],
                reading: &mut $crate::track::fields::Reading,
            ) -> Result<Self, $crate::track::SnapshotError> {
                use $crate::track::fields::Codec;
                $(
                    $( $crate::track::fields::take_plain::<$gone>(from)?; )?
                    $( let $name = <$codec as Codec<_>>::read_format_3(from, reading)?; )?
                )*
                Ok(Self { $( $( $name, )? )* $( $( $later: $later_default, )* )? })
            }
        }
    };
    (@missing $name:ident) => { return Err($crate::track::SnapshotError::Missing { field: stringify!($name) }) };
    (@missing $name:ident $default:expr) => { $default };
}

pub(super) use fields;

const REQUIRED: u8 = 0x80;
/// Of a u32.
const LENGTH_BYTES_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct in the release that first had fields.
    #[derive(PartialEq, Debug)]
    struct Older {
        id: u32,
        speed: u16,
    }

    fields! { Older { 1 id: Required<Plain>, 2 speed: Plain = 7 } }

    /// The same a release later: a type changed, a field came, one that older builds must not leave out.
    #[derive(PartialEq, Debug)]
    struct Newer {
        id: u32,
        speed: Speed,
        names: Vec<Older>,
    }

    fields! {
        Newer { 1 id: Required<Plain>, 2 speed: From1<u16> = Speed { cm_s: 0, is_known: false } }
        since { 3 names: Each = Vec::new() }
    }

    #[derive(PartialEq, Debug)]
    struct Strict {
        id: u32,
        lock: u8,
    }

    fields! { Strict { 1 id: Required<Plain> } since { 9 lock: Required<Plain> = 0 } }

    #[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
    struct Speed {
        cm_s: u32,
        is_known: bool,
    }

    impl From<u16> for Speed {
        fn from(dm_s: u16) -> Speed {
            Speed { cm_s: u32::from(dm_s) * 10, is_known: true }
        }
    }

    fn bytes(value: &impl Fields) -> Vec<u8> {
        let mut bytes = Vec::new();
        value.write_fields(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_newer_build_reads_an_older_one_and_the_other_way_round() {
        let mut reading = Reading::default();
        let newer = Newer::read_fields(&bytes(&Older { id: 4, speed: 30 }), &mut reading).unwrap();
        assert_eq!(newer, Newer { id: 4, speed: Speed { cm_s: 300, is_known: true }, names: Vec::new() });
        assert_eq!(reading.skipped, 0);

        let with_names = Newer { names: vec![Older { id: 1, speed: 2 }, Older { id: 300, speed: 2 }], ..newer };
        let older = Older::read_fields(&bytes(&with_names), &mut reading).unwrap();
        assert_eq!(older, Older { id: 4, speed: 7 });
        assert_eq!(reading.skipped, 2);
        assert_eq!(Newer::read_fields(&bytes(&with_names), &mut reading).unwrap(), with_names);
    }

    #[test]
    fn a_field_that_must_not_be_left_out_is_refused_and_one_without_a_default_must_be_there() {
        let mut reading = Reading::default();

        let refused = Older::read_fields(&bytes(&Strict { id: 1, lock: 1 }), &mut reading);

        assert_eq!(refused, Err(SnapshotError::Required { tag: 9 }));
        assert_eq!(Older::read_fields(&[], &mut reading), Err(SnapshotError::Missing { field: "id" }));
    }

    #[test]
    fn format_3_is_the_first_block_without_heads() {
        let format_3 = [4, 0, 0, 0, 30, 0];

        let newer = Newer::read_format_3(&mut &format_3[..], &mut Reading::default()).unwrap();

        assert_eq!(newer, Newer { id: 4, speed: Speed { cm_s: 300, is_known: true }, names: Vec::new() });
    }

    #[test]
    fn bytes_cut_anywhere_are_an_error_or_lack_a_field_and_never_a_panic() {
        let whole = bytes(&Newer {
            id: 4,
            speed: Speed { cm_s: 1, is_known: true },
            names: (0..60).map(|id| Older { id, speed: 1 }).collect(),
        });
        for length in 0..whole.len() {
            if let Ok(read) = Newer::read_fields(&whole[..length], &mut Reading::default()) {
                assert!(read.names.is_empty(), "{length}");
            }
        }
    }
}
