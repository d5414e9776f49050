//! 32 secret bytes that print as `***`: every key in `control` has this form.

use std::fmt;

use aws_lc_rs::rand;

#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Secret(bytes)
    }

    /// Fresh from the system's randomness.
    pub fn random() -> Self {
        Secret(random_bytes())
    }

    /// For the one who seals or opens with it; never for printing.
    pub fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// **Contract:** a system without randomness cannot make keys, and going on with weak ones would be worse than dying.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has randomness to give");
    bytes
}

pub const SECRET_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::new([7; SECRET_BYTES]);

        assert_eq!(format!("{secret:?}"), "***");
    }
}
