//! S3: secrets live in types that mask themselves, and that wipe their memory before they give it back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mlflow_secrets_auth::credential::{AuthMode, Credential};
use mlflow_secrets_auth::header::AuthHeaders;
use mlflow_secrets_auth::secret::SecretString;
use mlflow_secrets_auth::settings::{Environment, Reader, Settings};

const CANARY: &str = "canary-4d1f";
/// The middle of `u:canary-4d1f` in Base64.
const ENCODED: &str = "mNhbmFyeS00ZDFm";

static WATCHING: AtomicBool = AtomicBool::new(false);
static FOUND: AtomicUsize = AtomicUsize::new(0);
/// One test watches at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Looks at every block that is given back.
struct Watching;

// SAFETY: every call goes on to the system's allocator as it came. In between, bytes of a block that the caller still owns
// are read; they may be uninitialised, so they are read as volatile bytes, which a debug build of the tests tolerates.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Zeroed, so that what is found later was written by its owner.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if WATCHING.load(Ordering::Relaxed) {
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
            if holds(CANARY) || holds(ENCODED) {
                FOUND.fetch_add(1, Ordering::Relaxed);
            }
        }
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// How many blocks were given back with the canary in them while `work` ran.
fn left_behind(work: impl FnOnce()) -> usize {
    let _turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    FOUND.store(0, Ordering::Relaxed);
    WATCHING.store(true, Ordering::Relaxed);
    work();
    WATCHING.store(false, Ordering::Relaxed);
    FOUND.load(Ordering::Relaxed)
}

#[test]
fn the_search_finds_what_is_not_wiped() {
    assert_eq!(left_behind(|| drop(CANARY.to_owned())), 1);
    assert_eq!(left_behind(|| drop(format!("Basic {ENCODED}"))), 1);
}

#[test]
fn a_secret_and_its_copies_are_wiped() {
    let secret = SecretString::from(CANARY);
    assert_eq!(left_behind(|| drop((secret.clone(), secret))), 0);
}

#[test]
fn what_is_made_of_a_payload_is_wiped() {
    let payloads = [
        (AuthMode::Bearer, CANARY.to_owned()),
        (AuthMode::Raw, CANARY.to_owned()),
        (AuthMode::Basic, format!("u:{CANARY}")),
        (AuthMode::Bearer, format!(r#"{{"token": "{CANARY}"}}"#)),
        (AuthMode::Bearer, format!(r#"{{"token": "Bearer {CANARY}", "note": ["{CANARY}", {{"a": "{CANARY}"}}]}}"#)),
        (AuthMode::Basic, format!(r#"{{"username": "u", "password": "{CANARY}"}}"#)),
        (AuthMode::Bearer, format!(r#"{{"headers": {{"X-A": "{CANARY}"}}}}"#)),
        (AuthMode::Bearer, format!(r#"{{"headers": {{"Host": "{CANARY}"}}}}"#)),
        (AuthMode::Bearer, format!(r#"{{"user": "{CANARY}"}}"#)),
        (AuthMode::Bearer, format!(r#"["{CANARY}"]"#)),
        (AuthMode::Bearer, format!(r#""{CANARY}""#)),
        (AuthMode::Raw, format!("{CANARY}\nX: 1")),
    ];
    for (mode, payload) in payloads {
        let payload = SecretString::from(payload);
        let found = left_behind(|| drop(Credential::read(&payload, mode, "Authorization")));
        assert_eq!(found, 0, "{}", payload.expose());
    }
}

const SECRETS: [(&str, &str); 12] = [
    ("MLFLOW_SECRETS_AUTH_ENABLE", "vault,aws-secrets-manager,azure-key-vault"),
    ("VAULT_ADDR", "https://vault.example.com"),
    ("MLFLOW_VAULT_SECRET_PATH", "secret/mlflow"),
    ("VAULT_TOKEN", CANARY),
    ("MLFLOW_AWS_SECRET_NAME", "mlflow"),
    ("AWS_REGION", "us-east-1"),
    ("AWS_ACCESS_KEY_ID", CANARY),
    ("AWS_SECRET_ACCESS_KEY", CANARY),
    ("MLFLOW_AZURE_KEY_VAULT_URL", "https://v.vault.azure.net"),
    ("MLFLOW_AZURE_SECRET_NAME", "mlflow"),
    ("AZURE_CLIENT_SECRET", CANARY),
    ("HTTPS_PROXY", "http://jim:canary-4d1f@proxy:3128"),
];

fn environment() -> Environment {
    SECRETS.iter().copied().collect()
}

#[test]
fn the_environment_and_its_settings_are_wiped() {
    let environment = environment();
    assert_eq!(left_behind(|| drop(environment)), 0);
    let environment = self::environment();
    let read = || {
        let settings = Settings::read(&environment).unwrap();
        assert_eq!(settings.fetch.providers.len(), 3);
        drop(settings.clone());
    };
    assert_eq!(left_behind(read), 0);
}

#[test]
fn debug_output_is_masked() {
    let headers = AuthHeaders::single("X-A", SecretString::from(CANARY)).unwrap();
    let credential = Credential::read(&SecretString::from(CANARY), AuthMode::Bearer, "Authorization").unwrap();
    let environment = environment();
    let mut reader = Reader::new(&environment);
    let settings = Settings::read_from(&mut reader).unwrap();
    assert_eq!(format!("{:?}", SecretString::from(CANARY)), "SecretString(masked)");
    for shown in [
        format!("{headers:?}"),
        format!("{credential:#?}"),
        format!("{settings:#?}"),
        format!("{:?}", reader.readings()),
        format!("{:?}", settings.notices),
    ] {
        assert!(!shown.contains("canary") && !shown.contains(ENCODED), "{shown}");
    }
}
