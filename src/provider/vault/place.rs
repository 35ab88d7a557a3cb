//! Where a secret is: which mount, which version of the KV engine, which path of the API.

use std::sync::{Arc, LazyLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use serde_json::Value;

use super::endpoints::MountInfo;
use super::settings::{KvVersion, Server, VaultSettings};

/// How many places are remembered.
const MAX_PLACES: usize = 64;

/// Where a secret was found last, if it was.
pub type FoundPlace = Arc<ArcSwapOption<Place>>;

/// What decides about a secret's place: server, namespace, path, and what the settings say of the mount.
type Whereabouts = (Server, Option<String>, String, Option<String>, Option<KvVersion>);

/// The places of this process, oldest first. A provider lasts as long as its settings: when only the token or the TTL
/// changes, the next one need not ask for the mount again.
static FOUND: LazyLock<ArcSwap<Vec<(Whereabouts, FoundPlace)>>> = LazyLock::new(ArcSwap::default);

/// The memory of the place that `settings` describe, shared by all providers that look for the same.
pub fn found_place(settings: &VaultSettings) -> FoundPlace {
    let whereabouts = (
        settings.server.clone(),
        settings.namespace.clone(),
        settings.path.clone(),
        settings.kv_mount.clone(),
        settings.kv_version,
    );
    let find = |known: &[(Whereabouts, FoundPlace)]| {
        known.iter().find(|(of, _)| *of == whereabouts).map(|(_, place)| Arc::clone(place))
    };
    if let Some(place) = find(&FOUND.load()) {
        return place;
    }
    let fresh = FoundPlace::default();
    FOUND.rcu(|known| {
        let mut known = Vec::clone(known);
        if find(&known).is_none() {
            let surplus = (known.len() + 1).saturating_sub(MAX_PLACES);
            known.drain(..surplus);
            known.push((whereabouts.clone(), Arc::clone(&fresh)));
        }
        known
    });
    find(&FOUND.load()).unwrap_or(fresh)
}

/// Where a secret is, and how its answer is laid out.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The path behind `/v1/`.
    pub path: String,
    /// How the answer is laid out.
    pub layout: Layout,
}

/// How an answer is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// KV version 2: below `data.data`, with metadata beside it.
    V2,
    /// KV version 1: below `data`.
    V1,
    /// Any other engine: below `data`, and a `ttl` there says how long it lasts.
    Other,
    /// One of them; the answer's own shape tells.
    Unknown,
}

impl Layout {
    /// The layout of an answer with this `data`.
    pub fn of(self, data: &Value) -> Self {
        if self != Self::Unknown {
            return self;
        }
        let has_version = data.pointer("/metadata/version").is_some_and(Value::is_u64);
        if has_version && data.get("data").is_some() { Self::V2 } else { Self::Other }
    }
}

/// What is known of a secret's place before the server is asked.
pub enum Known {
    /// The settings tell.
    Exactly(Place),
    /// The server is to be asked about this path.
    Ask(String),
}

impl VaultSettings {
    /// What the settings alone say of the secret's place.
    pub(super) fn known_place(&self) -> Known {
        let full = self.full_path();
        match (&self.kv_mount, self.kv_version) {
            (Some(mount), Some(version)) => Known::Exactly(place(mount, &full, version)),
            // A path on version 1 is the same wherever its mount ends.
            (None, Some(KvVersion::V1)) => Known::Exactly(Place { path: full, layout: Layout::V1 }),
            _ => Known::Ask(full),
        }
    }

    /// The places to try where the server does not say: version 2 and then version 1, on the mount that is set, else on
    /// the first segment's.
    pub(super) fn likely_places(&self) -> Vec<Place> {
        let full = self.full_path();
        let mount = self.kv_mount.as_deref().unwrap_or_else(|| full.split('/').next().unwrap_or_default());
        let v2 = place(mount, &full, KvVersion::V2);
        let as_is = Place { path: full.clone(), layout: Layout::Unknown };
        // `nested/mount/data/path` names its mount itself.
        let names_mount = self.kv_mount.is_none() && full.split('/').skip(2).any(|segment| segment == "data");
        let mut places = match self.kv_version {
            Some(KvVersion::V2) => vec![v2, Place { path: full, layout: Layout::V2 }],
            Some(KvVersion::V1) => vec![as_is],
            None => vec![Place { layout: Layout::Unknown, ..v2 }, as_is],
        };
        if names_mount {
            places.reverse();
        } else if self.kv_version == Some(KvVersion::V2) {
            places.truncate(1);
        }
        places.dedup();
        places
    }

    /// The place of the secret on the mount that the server found; `None` where that is not the one in the settings.
    pub(super) fn place_on(&self, info: &MountInfo) -> Option<Place> {
        let mount = info.path.trim_matches('/');
        if self.kv_mount.as_deref().is_some_and(|named| named != mount) {
            return None;
        }
        let full = self.full_path();
        if !matches!(info.kind.as_str(), "kv" | "generic") {
            return Some(Place { path: full, layout: Layout::Other });
        }
        let on_server = info.options.as_ref().and_then(|options| options.version.as_deref());
        let version = self.kv_version.unwrap_or(if on_server == Some("2") { KvVersion::V2 } else { KvVersion::V1 });
        Some(place(mount, &full, version))
    }

    /// The secret's path with its mount.
    fn full_path(&self) -> String {
        match &self.kv_mount {
            Some(mount) if below(mount, &self.path).is_none() => format!("{mount}/{}", self.path),
            _ => self.path.clone(),
        }
    }
}

/// The rest of `path` below `mount`.
fn below<'p>(mount: &str, path: &'p str) -> Option<&'p str> {
    path.strip_prefix(mount)?.strip_prefix('/')
}

/// The place of `path` on `mount`. On version 2, a path that already goes through `data/` is left as it is.
fn place(mount: &str, path: &str, version: KvVersion) -> Place {
    let rest = below(mount, path).unwrap_or(path);
    match version {
        KvVersion::V1 => Place { path: format!("{mount}/{rest}"), layout: Layout::V1 },
        KvVersion::V2 => {
            let rest = rest.strip_prefix("data/").unwrap_or(rest);
            Place { path: format!("{mount}/data/{rest}"), layout: Layout::V2 }
        }
    }
}

/// The places in words.
pub fn paths(places: &[Place]) -> String {
    places.iter().map(|place| place.path.as_str()).collect::<Vec<_>>().join(" or ")
}
