//! Opened bodies, each once for all who use it: whoever uses one keeps it, and the last few stay for those who are about
//! to. What nobody uses any more is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

pub(crate) struct Cache<K, V> {
    kept_max: usize,
    inner: Mutex<Inner<K, V>>,
}

struct Inner<K, V> {
    all: BTreeMap<K, Weak<V>>,
    kept: VecDeque<Arc<V>>,
}

impl<K: Ord + Clone, V> Cache<K, V> {
    pub(crate) fn new(kept_max: usize) -> Cache<K, V> {
        Cache { kept_max, inner: Mutex::new(Inner { all: BTreeMap::new(), kept: VecDeque::new() }) }
    }

    pub(crate) fn find(&self, key: &K) -> Option<Arc<V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).all.get(key)?.upgrade()
    }

    /// The one that is there already if two made it at the same time.
    pub(crate) fn put(&self, key: K, value: V) -> Arc<V> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = inner.all.get(&key).and_then(Weak::upgrade) {
            return there;
        }
        let value = Arc::new(value);
        inner.kept.push_back(value.clone());
        if inner.kept.len() > self.kept_max {
            inner.kept.pop_front();
        }
        inner.all.retain(|_, other| other.strong_count() > 0);
        inner.all.insert(key, Arc::downgrade(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_uses_stays_and_what_nobody_uses_goes_after_a_few_others() {
        let cache: Cache<u32, u32> = Cache::new(2);
        let used = cache.put(0, 100);
        for key in 1..10 {
            cache.put(key, key);
        }

        assert_eq!(cache.find(&0).as_deref(), Some(&100));
        assert_eq!(cache.find(&9).as_deref(), Some(&9));
        assert_eq!(cache.find(&5), None);

        drop(used);
        assert_eq!(cache.find(&0), None);
    }

    #[test]
    fn of_two_that_make_the_same_one_wins() {
        let cache: Cache<u32, u32> = Cache::new(2);

        let (first, second) = (cache.put(1, 7), cache.put(1, 8));

        assert!(Arc::ptr_eq(&first, &second));
    }
}
