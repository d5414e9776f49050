//! Cursors: where a list goes on. Clients hand back the text they were given and read nothing in it, so what stands in
//! it can change. A cursor names its list: one list's cursor is refused at another.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer};

use super::problem::{Problem, ProblemKind};

/// The lists that come in pages. The number stands in the cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum List {
    Drivers = 1,
    Deliveries = 2,
    Trail = 3,
}

/// The text of a cursor as it came in a query.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cursor(Option<String>);

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<String>::deserialize(deserializer).map(Cursor)
    }
}

impl Cursor {
    /// The numbers that `write` put into it; None: the list from its beginning.
    pub fn read<const N: usize>(&self, list: List) -> Result<Option<[u64; N]>, Problem> {
        let Some(text) = self.0.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let detail = "cursor is the `next` of an earlier page of this list, unchanged";
        let problem = || Problem::new(ProblemKind::BadRequest, detail);
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| problem())?;
        let (head, rest) = bytes.split_first_chunk::<2>().ok_or_else(problem)?;
        let (words, rest) = rest.as_chunks::<8>();
        if *head != [VERSION, list as u8] || !rest.is_empty() || words.len() != N {
            return Err(problem());
        }
        let mut numbers = [0; N];
        numbers.iter_mut().zip(words).for_each(|(number, word)| *number = u64::from_be_bytes(*word));
        Ok(Some(numbers))
    }
}

/// The text of the cursor that goes on from these numbers.
pub(crate) fn write<const N: usize>(list: List, numbers: [u64; N]) -> String {
    let mut bytes = vec![VERSION, list as u8];
    numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
    URL_SAFE_NO_PAD.encode(bytes)
}

const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = Cursor(Some(write(List::Trail, [u64::MAX, 7])));

        assert_eq!(cursor.read(List::Trail), Ok(Some([u64::MAX, 7])));
        assert_eq!(Cursor(None).read::<1>(List::Drivers), Ok(None));
    }

    #[test]
    fn what_is_no_cursor_of_this_list_is_refused() {
        let other = write(List::Drivers, [7]);
        let longer = write(List::Deliveries, [7, 7]);
        for text in ["7", "AAAA", "====", "é", other.as_str(), longer.as_str(), &longer[..9]] {
            assert!(Cursor(Some(text.to_string())).read::<1>(List::Deliveries).is_err(), "{text}");
        }
    }
}
