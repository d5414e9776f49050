//! Checksums as mirrors publish them: a line of hexadecimal digits, then the file's name.

use std::fmt;
use std::io::{self, Read};

use md5::Md5;
use sha2::{Digest, Sha256};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Checksum {
    Md5([u8; 16]),
    Sha256([u8; 32]),
}

impl Checksum {
    /// By its length; None if the text does not begin with one.
    pub fn read(text: &str) -> Option<Checksum> {
        let digits = text.split_whitespace().next()?;
        if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
            return None;
        }
        let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect::<Option<_>>()?;
        match bytes.len() {
            16 => bytes.try_into().ok().map(Checksum::Md5),
            32 => bytes.try_into().ok().map(Checksum::Sha256),
            _ => None,
        }
    }

    /// The same kind of checksum of these bytes.
    pub fn of(&self, reader: impl Read, progress: impl Fn(u64)) -> io::Result<Checksum> {
        Ok(match self {
            Checksum::Md5(_) => Checksum::Md5(digest::<Md5>(reader, progress)?.into()),
            Checksum::Sha256(_) => Checksum::Sha256(digest::<Sha256>(reader, progress)?.into()),
        })
    }
}

fn digest<D: Digest>(mut reader: impl Read, progress: impl Fn(u64)) -> io::Result<md5::digest::Output<D>> {
    let mut digest = D::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(digest.finalize()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        digest.update(&buffer[..count]);
        done += count as u64;
        progress(done);
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, bytes): (&str, &[u8]) = match self {
            Checksum::Md5(bytes) => ("md5", bytes),
            Checksum::Sha256(bytes) => ("sha256", bytes),
        };
        write!(f, "{kind} ")?;
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_checksum_is_that_of_the_bytes() {
        let md5 = Checksum::read("900150983cd24fb0d6963f7d28e17f72  monaco-latest.osm.pbf\n").unwrap();
        let sha256 = Checksum::read("BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD *x\n").unwrap();

        for published in [md5, sha256] {
            assert_eq!(published.of(&b"abc"[..], |_| {}).unwrap(), published);
            assert_ne!(published.of(&b"abd"[..], |_| {}).unwrap(), published);
        }
    }

    #[test]
    fn what_is_no_checksum_is_none() {
        for text in [
            "",
            "\n",
            "<!doctype html>",
            "900150983cd24fb0d6963f7d28e17f7",
            "zz0150983cd24fb0d6963f7d28e17f72",
            "00",
            "é",
        ] {
            assert_eq!(Checksum::read(text), None, "{text}");
        }
    }
}
