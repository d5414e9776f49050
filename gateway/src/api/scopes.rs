//! What tokens opened when they were last looked up, for the time in which the registry is away: customers who watch
//! go on watching, over reconnects too. While the registry answers, only its word counts.

use std::collections::{HashMap, VecDeque};

use backends::registry::Scope;
use parking_lot::Mutex;
use protocol::Time;
use sha2::{Digest, Sha256};

/// Only hashes of tokens are kept.
type TokenHash = [u8; 32];

#[derive(Debug)]
pub(crate) struct KnownScopes {
    known: Mutex<Known>,
    max: usize,
}

#[derive(Debug, Default)]
struct Known {
    scopes: HashMap<TokenHash, (Scope, Time)>,
    order: VecDeque<TokenHash>,
}

impl KnownScopes {
    pub fn new(max: usize) -> Self {
        KnownScopes { known: Mutex::default(), max }
    }

    /// The registry's word, whatever it is.
    pub fn handle_answer(&self, token: &str, scope: Option<Scope>, now: Time) {
        let hash = hash_of(token);
        let mut known = self.known.lock();
        let Some(scope) = scope else {
            known.scopes.remove(&hash);
            return;
        };
        if known.scopes.insert(hash, (scope, now)).is_none() {
            known.order.push_back(hash);
        }
        while known.order.len() > self.max {
            if let Some(oldest) = known.order.pop_front() {
                known.scopes.remove(&oldest);
            }
        }
    }

    /// What the token opened not long ago.
    pub fn recall(&self, token: &str, now: Time) -> Option<Scope> {
        let known = self.known.lock();
        let (scope, at) = known.scopes.get(&hash_of(token))?;
        (now.millis_since(*at) < KEPT_MS).then_some(*scope)
    }
}

fn hash_of(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

const KEPT_MS: i64 = 3_600_000;

#[cfg(test)]
mod tests {
    use protocol::TenantId;

    use super::*;

    #[test]
    fn a_token_is_recalled_for_an_hour_and_not_after_the_registry_took_it_back() {
        let scopes = KnownScopes::new(2);
        let scope = Scope::Tenant(TenantId(1));

        scopes.handle_answer("a", Some(scope), Time(0));

        assert_eq!(scopes.recall("a", Time(KEPT_MS - 1)), Some(scope));
        assert_eq!(scopes.recall("a", Time(KEPT_MS)), None);
        assert_eq!(scopes.recall("b", Time(0)), None);
        scopes.handle_answer("a", None, Time(1));
        assert_eq!(scopes.recall("a", Time(1)), None);
    }

    #[test]
    fn no_more_tokens_are_kept_than_there_is_room_for() {
        let scopes = KnownScopes::new(2);

        for token in ["a", "b", "b", "c", "c", "d"] {
            scopes.handle_answer(token, Some(Scope::Tenant(TenantId(1))), Time(0));
        }

        let known: Vec<bool> =
            ["a", "b", "c", "d"].iter().map(|token| scopes.recall(token, Time(0)).is_some()).collect();
        assert_eq!(known, [false, false, true, true]);
    }
}
