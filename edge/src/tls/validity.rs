//! From when to when a certificate holds, read from its DER. Nothing else of it is looked at: whether it is good is for
//! those to say who are shown it.

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// None: it is no certificate as RFC 5280 describes them.
    ///
    /// `Certificate { TBSCertificate { [0] version?, serial, signature, issuer, Validity { Time, Time }, … } … }`
    pub fn of(certificate: &[u8]) -> Option<Validity> {
        let (outer, _) = element(certificate, SEQUENCE)?;
        let (mut body, _) = element(outer, SEQUENCE)?;
        if let Some((_, rest)) = element(body, VERSION) {
            body = rest;
        }
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            body = element(body, tag)?.1;
        }
        let (validity, _) = element(body, SEQUENCE)?;
        let (not_before, rest) = time(validity)?;
        let (not_after, _) = time(rest)?;
        Some(Validity { not_before, not_after })
    }
}

/// The content of the first element, if it has this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(*length) {
        short @ 0..0x80 => (short, rest),
        long => {
            let (digits, rest) = rest.split_at_checked(long - 0x80)?;
            if digits.len() > 4 {
                return None;
            }
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
    };
    (*first == tag).then(|| rest.split_at_checked(length)).flatten()
}

/// `YYMMDDHHMMSSZ` (1950 to 2049) or `YYYYMMDDHHMMSSZ`.
fn time(bytes: &[u8]) -> Option<(OffsetDateTime, &[u8])> {
    let (text, year_digits, rest) = match element(bytes, UTC_TIME) {
        Some((text, rest)) => (text, 2, rest),
        None => element(bytes, GENERALIZED_TIME).map(|(text, rest)| (text, 4, rest))?,
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let number = |from: usize, digits: usize| text.get(from..from + digits)?.parse::<u16>().ok();
    let year = number(0, year_digits)?;
    let year = match year_digits {
        2 if year < 50 => year + 2000,
        2 => year + 1900,
        _ => year,
    };
    let part = |place: usize| number(year_digits + 2 * place, 2).and_then(|value| u8::try_from(value).ok());
    let date = Date::from_calendar_date(i32::from(year), Month::try_from(part(0)?).ok()?, part(1)?).ok()?;
    let time = Time::from_hms(part(2)?, part(3)?, part(4)?).ok()?;
    Some((PrimitiveDateTime::new(date, time).assume_utc(), rest))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_s_validity_is_read_in_both_forms_of_time() {
        for (from_year, to_year) in [(1975, 4096), (2024, 2026), (2049, 2050)] {
            let mut params = CertificateParams::new(vec!["x.example".to_string()]).unwrap();
            params.not_before = rcgen::date_time_ymd(from_year, 1, 2);
            params.not_after = rcgen::date_time_ymd(to_year, 12, 31);
            let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();

            let validity = Validity::of(made.der()).unwrap();

            assert_eq!(validity, Validity { not_before: params.not_before, not_after: params.not_after });
        }
    }

    #[test]
    fn what_is_cut_or_no_certificate_has_no_validity() {
        let params = CertificateParams::new(vec!["x.example".to_string()]).unwrap();
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();

        for len in 0..made.der().len() {
            assert_eq!(Validity::of(&made.der()[..len]), None, "{len}");
        }
        assert_eq!(Validity::of(&[0x30; 400]), None);
        assert_eq!(Validity::of(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x30]), None);
    }
}
