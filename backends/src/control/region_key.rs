//! The region key: what all keys in `control` are wrapped under. It never enters the log; each process of a region is
//! given it as a setting or as a file that only its owner may read.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use protocol::Time;

use super::credential::TokenKeyId;
use super::entry::Kid;
use super::secret::{SECRET_BYTES, Secret, random_bytes};
use crate::installation::{Fingerprint, fingerprint};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionKey(Secret);

#[derive(Debug, thiserror::Error)]
pub enum RegionKeyError {
    #[error("a region key is {} hexadecimal digits", SECRET_BYTES * 2)]
    Malformed,
    #[error("the region key {path} may be read by others, it must have mode 0600")]
    Exposed { path: String },
    #[error("the region key {path} cannot be read or made")]
    File { path: String, source: std::io::Error },
}

/// What a wrapped key is, so that none can be put in another's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Fleet { kid: Kid, not_before: Time, wiped_after: Time },
    Token { id: TokenKeyId },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the key was not wrapped under this region key")]
pub struct UnwrapError;

impl RegionKey {
    pub fn new(secret: Secret) -> Self {
        RegionKey(secret)
    }

    pub fn from_hex(text: &str) -> Result<Self, RegionKeyError> {
        let digits = text.trim().as_bytes();
        if digits.len() != SECRET_BYTES * 2 {
            return Err(RegionKeyError::Malformed);
        }
        let mut bytes = [0; SECRET_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(RegionKeyError::Malformed);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(RegionKey(Secret::new(bytes)))
    }

    /// What the stores of an installation know their region key by.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&[b"wayfix1 region key", &self.0.bytes()[..]].concat())
    }

    /// The key in this file, if there is one.
    pub fn load(path: &Path) -> Result<Option<Self>, RegionKeyError> {
        let exists = path.try_exists();
        let exists = exists.map_err(|source| RegionKeyError::File { path: path.display().to_string(), source })?;
        if exists { Self::load_or_create(path).map(Some) } else { Ok(None) }
    }

    /// The key in this file; the first who asks makes it, with mode 0600. Of two who ask at once both get the same.
    pub fn load_or_create(path: &Path) -> Result<Self, RegionKeyError> {
        let failed = |source| RegionKeyError::File { path: path.display().to_string(), source };
        if !path.try_exists().map_err(failed)? {
            create(path, &Secret::random()).map_err(failed)?;
        }
        let file = File::open(path).map_err(failed)?;
        if is_exposed(&file).map_err(failed)? {
            return Err(RegionKeyError::Exposed { path: path.display().to_string() });
        }
        let mut text = String::new();
        (&file).take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        Self::from_hex(&text)
    }

    /// `nonce ‖ ciphertext ‖ tag`, by AES-256-GCM under a random nonce. There are a few keys a day: nonces never meet.
    pub fn wrap(&self, key: &Secret, purpose: Purpose) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = random_bytes();
        let mut sealed = key.bytes().to_vec();
        self.cipher()
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated(purpose)), &mut sealed)
            .expect("32 bytes are not too many to seal");
        [&nonce[..], &sealed].concat()
    }

    pub fn unwrap(&self, wrapped: &[u8], purpose: Purpose) -> Result<Secret, UnwrapError> {
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or(UnwrapError)?;
        let mut sealed = sealed.to_vec();
        let opened = self
            .cipher()
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(associated(purpose)), &mut sealed)
            .map_err(|_| UnwrapError)?;
        let bytes: [u8; SECRET_BYTES] = (&*opened).try_into().map_err(|_| UnwrapError)?;
        Ok(Secret::new(bytes))
    }

    fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, self.0.bytes()).expect("a secret has 32 bytes"))
    }
}

fn associated(purpose: Purpose) -> Vec<u8> {
    match purpose {
        Purpose::Fleet { kid, not_before, wiped_after } => {
            let times = [not_before.0.to_be_bytes(), wiped_after.0.to_be_bytes()].concat();
            [b"wayfix1 fleet key", &[kid.0][..], &times].concat()
        }
        Purpose::Token { id } => [b"wayfix1 token key", &[id.0][..]].concat(),
    }
}

/// Written whole under another name first: nobody ever reads half a key.
fn create(path: &Path, secret: &Secret) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let random: [u8; 8] = random_bytes();
    let temporary = path.with_extension(format!("{:016x}.new", u64::from_be_bytes(random)));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    let text: String = secret.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let linked = file
        .write_all(format!("{text}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::hard_link(&temporary, path));
    std::fs::remove_file(&temporary)?;
    match linked {
        // Another process was first: its key is the one.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(folder)?.sync_all(),
    }
}

#[cfg(unix)]
fn is_exposed(file: &File) -> std::io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(file.metadata()?.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn is_exposed(_: &File) -> std::io::Result<bool> {
    Ok(false)
}

const FILE_BYTES_MAX: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_under_its_region_key_and_for_its_purpose_only() {
        let (region, secret) = (RegionKey::new(Secret::new([1; 32])), Secret::new([2; 32]));
        let purpose = Purpose::Fleet { kid: Kid(1), not_before: Time(5), wiped_after: Time(9) };

        let wrapped = region.wrap(&secret, purpose);

        assert_eq!(region.unwrap(&wrapped, purpose), Ok(secret.clone()));
        assert_ne!(wrapped, region.wrap(&secret, purpose), "no nonce twice");
        let others = [
            Purpose::Fleet { kid: Kid(2), not_before: Time(5), wiped_after: Time(9) },
            Purpose::Fleet { kid: Kid(1), not_before: Time(4), wiped_after: Time(9) },
            Purpose::Fleet { kid: Kid(1), not_before: Time(5), wiped_after: Time(10) },
            Purpose::Token { id: TokenKeyId(1) },
        ];
        for other in others {
            assert_eq!(region.unwrap(&wrapped, other), Err(UnwrapError));
        }
        assert_eq!(RegionKey::new(Secret::new([3; 32])).unwrap(&wrapped, purpose), Err(UnwrapError));
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            assert_eq!(region.unwrap(&changed, purpose), Err(UnwrapError), "{at}");
            assert_eq!(region.unwrap(&wrapped[..at], purpose), Err(UnwrapError), "{at}");
        }
    }

    #[test]
    fn the_file_is_made_once_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/region.key");

        let first = RegionKey::load_or_create(&path).unwrap();

        assert_eq!(RegionKey::load_or_create(&path).unwrap(), first);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
            assert!(matches!(RegionKey::load_or_create(&path), Err(RegionKeyError::Exposed { .. })));
        }
    }

    #[test]
    fn many_who_ask_at_once_get_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("region.key");

        let asking: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || RegionKey::load_or_create(&path).unwrap())
            })
            .collect();

        let keys: Vec<_> = asking.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert!(matches!(RegionKey::from_hex(text), Err(RegionKeyError::Malformed)), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            RegionKey::load_or_create(folder.path()),
            Err(RegionKeyError::File { .. } | RegionKeyError::Exposed { .. })
        ));
        assert!(RegionKey::from_hex(&format!("{}\n", "aB".repeat(32))).is_ok());
    }
}
