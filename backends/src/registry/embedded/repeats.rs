//! What a client may ask for twice and gets once: the answer to a request stands beside its idempotency key, written in
//! the same transaction as what the request made. No secret is kept: those of the answer follow from a secret that the
//! client shows again when it repeats the request.

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use protocol::{DriverId, Time};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{DELIVERY_PREFIX, EmbeddedRegistry, TENANT_PREFIX, TOKEN_BYTES};
use super::{
    check_text, create_driver, damaged, driver, hash_of, insert_device, insert_tenant, insert_token, scope_of_hash,
    tenant,
};
use crate::control::credential;
use crate::installation::Numbers;
use crate::registry::{Asker, Driver, Made, New, Once, RegistryError, Scope, Tenant};

pub(super) const TABLE: &str = "
    CREATE TABLE repeats (
        asker INTEGER NOT NULL,
        key TEXT NOT NULL,
        request BLOB NOT NULL CHECK (length(request) = 32),
        answer TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        PRIMARY KEY (asker, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX repeats_created ON repeats (created_ms);
";

/// Of the secret that the client showed; rows of earlier releases have none.
pub(super) const SECRET_COLUMN: &str = "ALTER TABLE repeats ADD COLUMN secret BLOB CHECK (length(secret) = 32)";

/// Which secret is derived, where the others have the prefix of their token.
const CREDENTIAL: &str = "credential";

/// What was made, without its secrets.
#[derive(Clone, Serialize, Deserialize)]
enum Kept {
    Tenant(Tenant),
    Driver(Driver),
    Device(protocol::DeviceKey),
    DeliveryToken,
}

impl EmbeddedRegistry {
    pub(super) async fn make_once(&self, once: Once, new: New, now: Time) -> Result<Made, RegistryError> {
        check_text(&once.idempotency.key)?;
        let given = self.given.clone();
        let (kept, roots) = self
            .db
            .write(move |connection| {
                if let Some((kept, roots)) = remembered(connection, &once, now)?
                    && is_current(connection, &kept, &new, &roots)?
                {
                    return Ok((kept, roots));
                }
                let roots = Roots::of(&once, now);
                let (kept, numbers) = make(connection, new, &roots, now)?;
                given.give(numbers);
                remember(connection, &once, &kept, now)?;
                Ok::<_, RegistryError>((kept, roots))
            })
            .await?;
        Ok(match kept {
            Kept::Tenant(tenant) => Made::Tenant(tenant, roots.token(TENANT_PREFIX)),
            Kept::Driver(driver) => Made::Driver(driver),
            Kept::DeliveryToken => Made::DeliveryToken(roots.token(DELIVERY_PREFIX)),
            Kept::Device(device) => {
                let credential = credential::issue_again(device, &self.token_keys.read(), roots.bytes(CREDENTIAL));
                let failed = |error: credential::NoTokenKey| RegistryError::Unavailable { reason: error.to_string() };
                Made::Device(device, credential.map_err(failed)?)
            }
        })
    }
}

fn make(connection: &Connection, new: New, roots: &Roots, now: Time) -> Result<(Kept, Numbers), RegistryError> {
    match new {
        New::Tenant { name, policy } => {
            check_text(&name)?;
            let made = insert_tenant(connection, name, policy, now)?;
            let hash = hash_of(&roots.token(TENANT_PREFIX));
            insert_token(connection, &hash, made.id, None, now)?;
            let numbers = Numbers { tenant: u64::from(made.id.0), ..Numbers::default() };
            Ok((Kept::Tenant(made), numbers))
        }
        New::Driver { tenant, name, external_id, vehicle } => {
            check_text(&name)?;
            check_text(&external_id)?;
            let new = Driver { id: DriverId(0), name, external_id, vehicle };
            let made = create_driver(connection, tenant, new, now)?;
            let numbers = Numbers { driver: u64::from(made.id.0), ..Numbers::default() };
            Ok((Kept::Driver(made), numbers))
        }
        New::Device { tenant, driver: of } => {
            driver(connection, tenant, of)?;
            let made = insert_device(connection, tenant, of, now)?;
            let numbers = Numbers { device: u64::from(made.device.0), ..Numbers::default() };
            Ok((Kept::Device(made), numbers))
        }
        New::DeliveryToken { key, birth } => {
            tenant(connection, key.tenant)?;
            let hash = hash_of(&roots.token(DELIVERY_PREFIX));
            insert_token(connection, &hash, key.tenant, Some((key.delivery, birth)), now)?;
            Ok((Kept::DeliveryToken, Numbers::default()))
        }
    }
}

/// What the secrets of one answer follow from: the same for the same secret, moment and key, and as hard to guess as the
/// secret. A client shows one secret for two keys where one call makes two things, so the key is a part of it: no two
/// answers have one token.
struct Roots {
    secret: [u8; 32],
    at: Time,
    /// Rows of earlier releases went without it.
    key: Option<String>,
}

impl Roots {
    fn of(once: &Once, at: Time) -> Self {
        Roots { secret: once.secret, at, key: Some(once.idempotency.key.clone()) }
    }

    fn token(&self, prefix: &str) -> String {
        format!("{prefix}{}", URL_SAFE_NO_PAD.encode(self.bytes::<TOKEN_BYTES>(prefix)))
    }

    fn bytes<const N: usize>(&self, what: &str) -> [u8; N] {
        let key = self.key.as_deref().unwrap_or_default();
        let text = [what.as_bytes(), &self.at.0.to_be_bytes(), key.as_bytes()].concat();
        let tag = sign(&Key::new(HMAC_SHA256, &self.secret), &text);
        let mut bytes = [0; N];
        bytes.copy_from_slice(&tag.as_ref()[..N]);
        bytes
    }
}

fn remembered(connection: &Connection, once: &Once, now: Time) -> Result<Option<(Kept, Roots)>, RegistryError> {
    type Columns = (Vec<u8>, String, i64, Option<Vec<u8>>);
    let columns = |row: &Row| -> rusqlite::Result<Columns> { Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)) };
    let found = connection
        .prepare_cached(
            "SELECT request, answer, created_ms, secret FROM repeats WHERE asker = ?1 AND key = ?2 AND created_ms > ?3",
        )?
        .query_row(params![asker_of(once), once.idempotency.key, once.idempotency.forgotten_before(now).0], columns)
        .optional()?;
    let Some((request, answer, created_ms, secret)) = found else { return Ok(None) };
    if request != once.idempotency.request {
        return Err(RegistryError::IdempotencyMismatch);
    }
    if secret.as_ref().is_some_and(|secret| *secret != hash_of_secret(&once.secret)) {
        return Err(RegistryError::OtherSecret);
    }
    let kept = serde_json::from_str(&answer).map_err(|error| damaged(error.to_string()))?;
    let at = Time(created_ms);
    let roots = if secret.is_some() { Roots::of(once, at) } else { Roots { secret: once.secret, at, key: None } };
    Ok(Some((kept, roots)))
}

/// Whether the token that follows opens what is asked for. A delivery that was lost can have had the same key, and its
/// token opens nothing: then another is made.
fn is_current(connection: &Connection, kept: &Kept, new: &New, roots: &Roots) -> Result<bool, RegistryError> {
    let opened = |prefix: &str| {
        let scope = scope_of_hash(connection, &hash_of(&roots.token(prefix)))?;
        scope.ok_or(RegistryError::OtherSecret)
    };
    Ok(match (kept, new) {
        (Kept::DeliveryToken, New::DeliveryToken { key, birth }) => {
            opened(DELIVERY_PREFIX)? == Scope::Delivery { key: *key, birth: *birth }
        }
        (Kept::Tenant(tenant), _) => opened(TENANT_PREFIX)? == Scope::Tenant(tenant.id),
        (Kept::Driver(_) | Kept::Device(_) | Kept::DeliveryToken, _) => true,
    })
}

/// Of the secret itself, which is as hard to guess as a token.
fn hash_of_secret(secret: &[u8; 32]) -> [u8; 32] {
    Roots { secret: *secret, at: Time(0), key: None }.bytes("hash")
}

/// Forgets a few whose time has passed as well: more than are added, so that they do not gather.
fn remember(connection: &Connection, once: &Once, kept: &Kept, now: Time) -> Result<(), RegistryError> {
    connection
        .prepare_cached(
            "DELETE FROM repeats WHERE (asker, key) IN
             (SELECT asker, key FROM repeats WHERE created_ms <= ?1 ORDER BY created_ms LIMIT 16)",
        )?
        .execute([once.idempotency.forgotten_before(now).0])?;
    let answer = serde_json::to_string(kept).map_err(|error| damaged(error.to_string()))?;
    connection.prepare_cached("INSERT OR REPLACE INTO repeats VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        asker_of(once),
        once.idempotency.key,
        once.idempotency.request,
        answer,
        now.0,
        hash_of_secret(&once.secret)
    ])?;
    Ok(())
}

/// Tenants begin at 1.
fn asker_of(once: &Once) -> u32 {
    match once.asker {
        Asker::Operator => 0,
        Asker::Tenant(tenant) => tenant.0,
    }
}
