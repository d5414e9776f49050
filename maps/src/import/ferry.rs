//! How long a ferry or a shuttle train takes: `hh:mm`, `hh:mm:ss`, minutes, or ISO 8601 (`PT1H30M`, `P1DT2H`). It is said
//! of the whole way, or of the whole relation that the ways are members of.

/// Seconds; 0 for what says nothing.
pub fn duration_s(text: &str) -> u32 {
    let text = text.trim();
    let seconds = if text.starts_with(['P', 'p']) { iso_s(text) } else { clock_s(text) };
    seconds.filter(|s| *s <= DURATION_S_MAX).unwrap_or(0)
}

fn clock_s(text: &str) -> Option<u32> {
    let mut parts = [0_u32; 3];
    let mut count = 0;
    for part in text.split(':') {
        *parts.get_mut(count)? = part.trim().parse::<u32>().ok().filter(|n| *n < 100_000)?;
        count += 1;
    }
    match count {
        1 => parts[0].checked_mul(60),
        _ => parts[0].checked_mul(3600)?.checked_add(parts[1] * 60)?.checked_add(parts[2]),
    }
}

fn iso_s(text: &str) -> Option<u32> {
    let (mut seconds, mut number, mut is_time) = (0.0, String::new(), false);
    for letter in text.chars().skip(1) {
        match letter.to_ascii_uppercase() {
            'T' if number.is_empty() => is_time = true,
            digit @ ('0'..='9' | '.') => number.push(digit),
            ',' => number.push('.'),
            unit => {
                let unit_s = match (unit, is_time) {
                    ('W', false) => 604_800.0,
                    ('D', false) => 86_400.0,
                    ('H', true) => 3_600.0,
                    ('M', true) => 60.0,
                    ('S', true) => 1.0,
                    _ => return None, // months and years have no length
                };
                seconds += std::mem::take(&mut number).parse::<f64>().ok()? * unit_s;
            }
        }
    }
    let is_whole = number.is_empty() && (0.0..=f64::from(DURATION_S_MAX)).contains(&seconds);
    is_whole.then(|| seconds.round() as u32)
}

/// Two weeks: the longest that anybody takes a car on.
const DURATION_S_MAX: u32 = 14 * 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_in_each_of_its_forms() {
        let cases = [
            ("00:20", 1200),
            ("25", 1500),
            ("1:30:10", 5410),
            (" 90 ", 5400),
            ("36:00", 129_600),
            ("168:00", 604_800),
            ("PT20M", 1200),
            ("PT1H30M", 5400),
            ("PT90M", 5400),
            ("P1DT2H", 93_600),
            ("P1W", 604_800),
            ("PT0.5H", 1800),
            ("pt45m", 2700),
            ("1:2:3:4", 0),
            ("P1M", 0),
            ("PT", 0),
            ("PT5", 0),
            ("P99999999999999999999D", 0),
            ("half an hour", 0),
            ("-5", 0),
            ("99999:00", 0),
            ("", 0),
        ];

        for (text, seconds) in cases {
            assert_eq!(duration_s(text), seconds, "{text}");
        }
    }
}
