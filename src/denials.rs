//! Which credential was denied where, and when there is a use in reading the backend again because of it.

use std::collections::HashMap;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::origin::Origin;

/// A credential that the backend still returns after a 401 is read again after this long, then twice as long, up to a minute.
const FIRST_REST: Duration = Duration::from_secs(5);
const LAST_REST: Duration = Duration::from_secs(60);
/// How many origins' denials are remembered.
const MAX_ORIGINS: usize = 64;

/// The denials of one configuration's credentials. Read without a lock; survives a fork.
#[derive(Default)]
pub(crate) struct Denials(ArcSwap<Book>);

#[derive(Clone, Default)]
struct Book {
    /// The newest generation that a 401 rejected: never used as a stale one.
    rejected: u64,
    by_origin: HashMap<Origin, Denial>,
}

/// An origin denied a credential that is as new as the backend's: until `read_again_at` there is no use in reading.
#[derive(Clone)]
struct Denial {
    generation: u64,
    read_again_at: Duration,
    rest: Duration,
    /// A 403: whoever it is may not do this, and will not because we ask again.
    forbidden: bool,
}

impl Denials {
    /// Notes that a 401 rejected `generation`.
    pub(crate) fn reject(&self, generation: u64) {
        self.0.rcu(|book| Book { rejected: book.rejected.max(generation), ..Book::clone(book) });
    }

    /// Whether a 401 rejected `generation` or a newer one.
    pub(crate) fn is_rejected(&self, generation: u64) -> bool {
        self.0.load().rejected >= generation
    }

    /// Notes that `origin` denied `generation`, the newest that the backend has.
    ///
    /// Where every read mints a new secret, each generation is denied once; that is one story, too, as long as the denials
    /// follow one another: the rests grow.
    pub(crate) fn note(&self, origin: &Origin, generation: u64, status: u16, now: Duration) {
        self.0.rcu(|book| {
            let mut book = Book::clone(book);
            if status == 401 {
                book.rejected = book.rejected.max(generation);
            }
            let goes_on = |before: &&Denial| before.generation == generation || now < before.read_again_at + LAST_REST;
            let before = book.by_origin.get(origin).filter(goes_on);
            let rest = before.map_or(FIRST_REST, |before| (before.rest * 2).min(LAST_REST));
            let denial = Denial { generation, read_again_at: now + rest, rest, forbidden: status != 401 };
            if book.by_origin.len() >= MAX_ORIGINS && !book.by_origin.contains_key(origin) {
                book.by_origin.clear();
            }
            book.by_origin.insert(origin.clone(), denial);
            book
        });
    }

    /// Whether `origin` is known to deny `generation`.
    pub(crate) fn is_noted(&self, origin: &Origin, generation: u64) -> bool {
        self.0.load().by_origin.get(origin).is_some_and(|denial| denial.generation == generation)
    }

    /// Whether reading again may help `origin`, which denies `generation`. `fresh` says that the credential at hand is
    /// within its TTL: while it is, a 403 is not a reason to read.
    pub(crate) fn may_read_again(&self, origin: &Origin, generation: u64, now: Duration, fresh: bool) -> bool {
        let book = self.0.load();
        let denial = book.by_origin.get(origin).filter(|denial| denial.generation == generation);
        denial.is_none_or(|denial| now >= denial.read_again_at && !(denial.forbidden && fresh))
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.0.store(Default::default());
    }
}
