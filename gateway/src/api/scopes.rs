//! What tokens opened when they were last looked up, for the time in which the registry is away: customers who watch
//! go on watching, over reconnects too, however long they have watched before. While the registry answers, only its word
//! counts.

use std::collections::{HashMap, VecDeque};

use backends::registry::Scope;
use parking_lot::Mutex;
use protocol::Time;
use sha2::{Digest, Sha256};

use super::Api;

/// Only hashes of tokens are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct TokenHash([u8; 32]);

impl TokenHash {
    pub fn of(token: &str) -> Self {
        TokenHash(Sha256::digest(token.as_bytes()).into())
    }
}

#[derive(Debug)]
pub(crate) struct KnownScopes {
    known: Mutex<Known>,
    max: usize,
}

#[derive(Debug, Default)]
struct Known {
    scopes: HashMap<TokenHash, KnownScope>,
    order: VecDeque<TokenHash>,
}

#[derive(Debug)]
struct KnownScope {
    scope: Scope,
    /// When the registry said so last, or a stream of this token ended.
    at: Time,
    /// How many streams are open with this token.
    streams: u32,
}

/// Keeps a token known for as long as a stream is open with it.
pub(crate) struct HeldScope {
    api: Api,
    token: TokenHash,
}

impl HeldScope {
    pub fn new(api: &Api, token: TokenHash) -> Self {
        api.scopes.hold(token);
        HeldScope { api: api.clone(), token }
    }
}

impl Drop for HeldScope {
    fn drop(&mut self) {
        self.api.scopes.release(self.token, self.api.monotonic());
    }
}

impl KnownScopes {
    pub fn new(max: usize) -> Self {
        KnownScopes { known: Mutex::default(), max }
    }

    /// The registry's word, whatever it is.
    pub fn handle_answer(&self, token: &str, scope: Option<Scope>, now: Time) {
        let hash = TokenHash::of(token);
        let mut known = self.known.lock();
        let Some(scope) = scope else {
            if known.scopes.remove(&hash).is_some() {
                // Should it come again, it stands at the end, and only there.
                known.order.retain(|other| *other != hash);
            }
            return;
        };
        if let Some(known) = known.scopes.get_mut(&hash) {
            (known.scope, known.at) = (scope, now);
            return;
        }
        known.scopes.insert(hash, KnownScope { scope, at: now, streams: 0 });
        known.order.push_back(hash);
        let mut passed_by = 0;
        while known.order.len() > self.max
            && let Some(oldest) = known.order.pop_front()
        {
            if passed_by < PASSED_BY_MAX && known.scopes.get(&oldest).is_some_and(|known| known.streams > 0) {
                known.order.push_back(oldest);
                passed_by += 1;
            } else {
                known.scopes.remove(&oldest);
            }
        }
    }

    /// What the token opened not long ago.
    pub fn recall(&self, token: &str, now: Time) -> Option<Scope> {
        let known = self.known.lock();
        let known = known.scopes.get(&TokenHash::of(token))?;
        (known.streams > 0 || now.millis_since(known.at) < KEPT_MS).then_some(known.scope)
    }

    fn hold(&self, token: TokenHash) {
        if let Some(known) = self.known.lock().scopes.get_mut(&token) {
            known.streams += 1;
        }
    }

    fn release(&self, token: TokenHash, now: Time) {
        if let Some(known) = self.known.lock().scopes.get_mut(&token) {
            known.streams = known.streams.saturating_sub(1);
            known.at = known.at.max(now);
        }
    }
}

const KEPT_MS: i64 = 3_600_000;
/// How many tokens with open streams are spared at a time before one is forgotten all the same.
const PASSED_BY_MAX: usize = 64;

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
    fn a_token_is_recalled_while_a_stream_is_open_with_it_and_an_hour_after_its_end() {
        let scopes = KnownScopes::new(2);
        let scope = Scope::Tenant(TenantId(1));
        scopes.handle_answer("a", Some(scope), Time(0));
        let token = TokenHash::of("a");

        scopes.hold(token);
        scopes.hold(token);
        let open = scopes.recall("a", Time(5 * KEPT_MS));
        scopes.release(token, Time(5 * KEPT_MS));
        let one_is_open = scopes.recall("a", Time(9 * KEPT_MS));
        scopes.release(token, Time(9 * KEPT_MS));

        assert_eq!((open, one_is_open), (Some(scope), Some(scope)));
        assert_eq!(scopes.recall("a", Time(10 * KEPT_MS - 1)), Some(scope));
        assert_eq!(scopes.recall("a", Time(10 * KEPT_MS)), None);
        scopes.hold(token);
        scopes.handle_answer("a", None, Time(0));
        assert_eq!(scopes.recall("a", Time(0)), None, "what the registry took back is not kept open");
        scopes.release(token, Time(0));
    }

    #[test]
    fn a_token_that_was_taken_back_and_came_again_is_as_new_as_its_return() {
        let scopes = KnownScopes::new(2);
        let scope = Some(Scope::Tenant(TenantId(1)));
        for (token, scope) in [("a", scope), ("b", scope), ("a", None), ("a", scope), ("c", scope)] {
            scopes.handle_answer(token, scope, Time(0));
        }

        let known = ["a", "b", "c"].map(|token| scopes.recall(token, Time(0)).is_some());

        assert_eq!(known, [true, false, true]);
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
        scopes.hold(TokenHash::of("c"));
        scopes.handle_answer("e", Some(Scope::Tenant(TenantId(1))), Time(0));
        assert!(scopes.recall("c", Time(0)).is_some(), "a stream is open with it");
        assert!(scopes.recall("d", Time(0)).is_none());
    }
}
