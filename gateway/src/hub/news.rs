//! What a watcher has not been told yet, as one byte: latest wins, so there is nothing to queue.

use std::ops::{BitOr, BitOrAssign};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct News(u8);

impl News {
    pub const NONE: News = News(0);
    /// Another epoch, another plan, or something that only a whole view can say.
    pub const WHOLE: News = News(1);
    pub const POSITION: News = News(2);
    pub const ETA: News = News(4);
    pub const STALE: News = News(8);
    pub const JOURNAL: News = News(16);
    /// For dispatchers' maps.
    pub const MAP: News = News(32);

    pub fn has(self, other: News) -> bool {
        self.0 & other.0 != 0
    }

    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// What customers are told.
    pub fn of_customers(self) -> News {
        News(self.0 & !News::MAP.0)
    }
}

impl BitOr for News {
    type Output = News;
    fn bitor(self, other: News) -> News {
        News(self.0 | other.0)
    }
}

impl BitOrAssign for News {
    fn bitor_assign(&mut self, other: News) {
        self.0 |= other.0;
    }
}
