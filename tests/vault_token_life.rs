//! Token life, over a simulated day: the clock is ours, and so is the server, which is as strict about leases as Vault.
//!
//! Each test fetches every so often for 24 hours and then counts what the server was asked.

#![cfg(feature = "vault")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use mlflow_secrets_auth::clock::Clock;
use mlflow_secrets_auth::network::Network;
use mlflow_secrets_auth::provider::vault::{VaultProvider, VaultSettings};
use mlflow_secrets_auth::provider::{Provider, SecretPayload};
use mlflow_secrets_auth::runtime::{Driver, UNINTERRUPTED};
use mlflow_secrets_auth::settings::{Environment, Reader};
use mlflow_secrets_auth::{ErrorCode, Result};

const DAY: u64 = 24 * 3600;

/// A clock that moves when the test says so.
#[derive(Clone, Default)]
struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    fn seconds(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_secs(self.seconds())
    }

    fn calendar(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.now()
    }

    fn chance(&self) -> f64 {
        0.5
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What the server gives, and what it has been asked.
#[derive(Default)]
struct Server {
    /// Seconds of a login's lease, and of a renewal's.
    lease: u64,
    /// Seconds after which no renewal helps; 0 where tokens can't be renewed.
    max_ttl: u64,
    /// Requests that a token is good for; 0 for no limit.
    num_uses: u64,
    /// Whether the policies permit reading.
    permits: bool,
    /// Whether the policies permit `renew-self`.
    permits_renewal: bool,
    /// How much earlier than promised a token ends.
    cheats_by: u64,
    tokens: HashMap<String, Token>,
    logins: u64,
    renewals: u64,
    lookups: u64,
    reads: u64,
}

struct Token {
    ends_at: u64,
    made_at: u64,
    uses_left: Option<u64>,
}

const UNKNOWN: &str = r#"{"errors":["permission denied"]}"#;
const NOT_PERMITTED: &str = r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;

impl Server {
    fn answer(&mut self, now: u64, path: &str, token: Option<&str>) -> (u16, String) {
        if path == "/v1/auth/approle/login" {
            return self.log_in(now);
        }
        let Some(token) = token.and_then(|token| self.tokens.get_mut(token)) else { return (403, UNKNOWN.into()) };
        if now >= token.ends_at || token.uses_left == Some(0) {
            return (403, UNKNOWN.into());
        }
        token.uses_left = token.uses_left.map(|uses| uses - 1);
        match path {
            "/v1/auth/token/renew-self" if !self.permits_renewal => (403, NOT_PERMITTED.into()),
            "/v1/auth/token/renew-self" if self.max_ttl == 0 => {
                (400, r#"{"errors":["lease is not renewable"]}"#.into())
            }
            "/v1/auth/token/renew-self" => {
                self.renewals += 1;
                let lease = self.lease.min(token.made_at + self.max_ttl - now);
                token.ends_at = now + lease;
                (200, envelope(&auth("same", lease, true, 0)))
            }
            "/v1/auth/token/lookup-self" => {
                self.lookups += 1;
                let left = token.ends_at - now;
                let renewable = self.max_ttl > 0;
                (200, envelope(&format!(r#""data":{{"ttl":{left},"renewable":{renewable},"num_uses":0}}"#)))
            }
            "/v1/secret/data/mlflow/auth" if self.permits => {
                self.reads += 1;
                (200, envelope(r#""data":{"data":{"token":"t"},"metadata":{"version":1}}"#))
            }
            _ => (403, NOT_PERMITTED.into()),
        }
    }

    fn log_in(&mut self, now: u64) -> (u16, String) {
        self.logins += 1;
        let name = format!("token-{}", self.logins);
        let uses_left = (self.num_uses > 0).then_some(self.num_uses);
        self.tokens.insert(name.clone(), Token { ends_at: now + self.lease - self.cheats_by, made_at: now, uses_left });
        (200, envelope(&auth(&name, self.lease, self.max_ttl > 0, self.num_uses)))
    }
}

fn envelope(content: &str) -> String {
    format!(r#"{{"request_id":"r","lease_id":"","renewable":false,"lease_duration":0,{content}}}"#)
}

fn auth(token: &str, lease: u64, renewable: bool, num_uses: u64) -> String {
    format!(
        r#""auth":{{"client_token":"{token}","lease_duration":{lease},"renewable":{renewable},"num_uses":{num_uses}}}"#
    )
}

/// The server on a port of loopback; its thread ends with the test program.
struct Running {
    address: String,
    state: Arc<Mutex<Server>>,
    clock: ManualClock,
}

impl Running {
    fn start(server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (state, clock) = (Arc::new(Mutex::new(server)), ManualClock::default());
        let (shared, time) = (Arc::clone(&state), clock.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, time) = (Arc::clone(&shared), time.clone());
                std::thread::spawn(move || serve(stream, &shared, &time));
            }
        });
        Self { address, state, clock }
    }

    fn provider(&self, login: &[(&str, &str)]) -> VaultProvider {
        let common = [
            ("VAULT_ADDR", self.address.as_str()),
            ("MLFLOW_VAULT_SECRET_PATH", "secret/mlflow/auth"),
            ("MLFLOW_VAULT_KV_MOUNT", "secret"),
            ("MLFLOW_VAULT_KV_VERSION", "2"),
            ("HOME", "/nonexistent"),
        ];
        let environment: Environment = common.iter().chain(login).copied().collect();
        let mut reader = Reader::new(&environment);
        let settings = VaultSettings::read(&mut reader).unwrap().unwrap();
        VaultProvider::new(settings, Network::default())
    }

    /// Fetches every `interval` seconds for a day; `each` sees every outcome and may change the server.
    fn day(&self, provider: &VaultProvider, interval: u64, mut each: impl FnMut(&Self, Result<SecretPayload>)) {
        let driver = Driver::default();
        while self.clock.seconds() < DAY {
            let outcome = driver.run(provider.fetch_secret(&self.clock), UNINTERRUPTED);
            each(self, outcome);
            self.clock.advance(interval);
        }
    }

    fn good_day(&self, provider: &VaultProvider, interval: u64) {
        self.day(provider, interval, |running, outcome| {
            assert!(outcome.is_ok(), "{:?} after {} s", outcome.err(), running.clock.seconds());
        });
    }

    fn logins(&self) -> u64 {
        self.state.lock().unwrap().logins
    }

    fn renewals(&self) -> u64 {
        self.state.lock().unwrap().renewals
    }
}

fn serve(stream: TcpStream, state: &Mutex<Server>, clock: &ManualClock) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut token) = (0, None);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) <= 2 {
                break;
            }
            match header.split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap()
                }
                Some((name, value)) if name.eq_ignore_ascii_case("x-vault-token") => {
                    token = Some(value.trim().to_owned())
                }
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let (status, body) = state.lock().unwrap().answer(clock.seconds(), &path, token.as_deref());
        let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

const APP_ROLE: &[(&str, &str)] = &[("VAULT_ROLE_ID", "role"), ("VAULT_SECRET_ID", "id")];

fn working(lease: u64) -> Server {
    Server { lease, permits: true, permits_renewal: true, ..Server::default() }
}

/// A simulated day costs at most ceil(24 h / lease) + 1 logins, however the fetches fall on the leases.
#[test]
fn a_day_costs_no_more_logins_than_it_has_leases() {
    for (lease, interval) in
        [(600, 30), (600, 47), (600, 299), (600, 301), (600, 599), (90, 31), (3600, 270), (45_000, 300)]
    {
        let running = Running::start(working(lease));
        running.good_day(&running.provider(APP_ROLE), interval);
        let bound = DAY.div_ceil(lease) + 1;
        assert!(running.logins() <= bound, "{} logins, lease {lease} s, a fetch every {interval} s", running.logins());
    }
}

/// A token that can be renewed is renewed, until its maximum makes that worthless; then a login follows.
#[test]
fn a_renewable_token_costs_one_login_per_maximum() {
    for interval in [30, 240, 299, 301, 550] {
        let running = Running::start(Server { max_ttl: 7200, ..working(600) });
        running.good_day(&running.provider(APP_ROLE), interval);
        assert!(running.logins() <= DAY / 7200 + 1, "{} logins at {interval} s", running.logins());
        assert!(running.renewals() <= 2 * DAY / 600, "{} renewals at {interval} s", running.renewals());
        assert!(running.renewals() > 0);
    }
}

/// Where the policies don't permit `renew-self`, that is asked once per login and never hurts.
#[test]
fn a_renewal_that_is_not_permitted_is_not_needed() {
    let running = Running::start(Server { max_ttl: 7200, permits_renewal: false, ..working(600) });
    running.good_day(&running.provider(APP_ROLE), 30);
    assert!(running.logins() <= DAY / 600 + 1);
    assert_eq!(running.renewals(), 0);
}

/// A token limited in uses is replaced when they are spent, without a refused read, and never sooner.
#[test]
fn a_token_limited_in_uses_is_used_up() {
    let running = Running::start(Server { num_uses: 10, max_ttl: 7200, ..working(3600) });
    running.good_day(&running.provider(APP_ROLE), 300);
    let state = running.state.lock().unwrap();
    assert_eq!((state.reads, state.logins), (288, 29));
    assert_eq!((state.renewals, state.lookups), (0, 0));
}

/// A token that ends before its time costs a refused read, and the fetch succeeds all the same.
#[test]
fn a_token_that_ends_early_is_replaced_in_the_same_fetch() {
    let running = Running::start(Server { cheats_by: 100, ..working(600) });
    running.good_day(&running.provider(APP_ROLE), 30);
    assert!(running.logins() <= DAY / 500 + 1);
}

/// Revoked at noon: one login more.
#[test]
fn a_revoked_token_is_replaced_in_the_same_fetch() {
    let running = Running::start(working(45_000));
    let provider = running.provider(APP_ROLE);
    running.day(&provider, 300, |running, outcome| {
        assert!(outcome.is_ok());
        if running.clock.seconds() == DAY / 2 {
            running.state.lock().unwrap().tokens.clear();
        }
    });
    assert_eq!(running.logins(), 2);
}

/// A 403 that a fresh login cures: the new token has the policy that the old one lacks.
#[test]
fn a_fresh_login_may_have_other_policies() {
    let running = Running::start(Server { permits: false, ..working(45_000) });
    let provider = running.provider(APP_ROLE);
    let driver = Driver::default();
    let fetch = || driver.run(provider.fetch_secret(&running.clock), UNINTERRUPTED);
    assert_eq!(fetch().unwrap_err().code(), ErrorCode::VaultPermissionDenied);
    assert_eq!(running.logins(), 1, "a login of the same fetch is not made again");
    running.clock.advance(1);
    running.state.lock().unwrap().permits = true;
    assert!(fetch().is_ok());
    assert_eq!(running.logins(), 1, "the policy changed in Vault, the token sees it");
}

/// Permission that is missing for good does not become a stream of logins.
#[test]
fn a_permission_that_is_missing_for_good_costs_few_logins() {
    let running = Running::start(Server { permits: false, ..working(45_000) });
    let provider = running.provider(APP_ROLE);
    running.day(&provider, 30, |_, outcome| {
        assert_eq!(outcome.unwrap_err().code(), ErrorCode::VaultPermissionDenied);
    });
    assert!((3..=35).contains(&running.logins()), "{} logins", running.logins());
}

/// A periodic token in `VAULT_TOKEN` is kept alive; a process that ends within a minute asks nothing beside the read.
#[test]
fn a_periodic_token_is_kept_alive() {
    let running = Running::start(Server { max_ttl: 10 * DAY, ..working(3600) });
    let token = Token { ends_at: 3600, made_at: 0, uses_left: None };
    running.state.lock().unwrap().tokens.insert("mine".into(), token);
    let provider = running.provider(&[("VAULT_TOKEN", "mine")]);
    running.day(&provider, 50, |running, outcome| {
        assert!(outcome.is_ok());
        if running.clock.seconds() <= 50 {
            assert_eq!(running.state.lock().unwrap().lookups, 0);
        }
    });
    let state = running.state.lock().unwrap();
    assert_eq!((state.logins, state.lookups), (0, 1));
    assert!((24..=60).contains(&state.renewals), "{} renewals", state.renewals);
}

/// A token in `VAULT_TOKEN` that can't be renewed is used until Vault refuses it.
#[test]
fn a_token_of_the_settings_ends() {
    let running = Running::start(working(3600));
    let token = Token { ends_at: 3600, made_at: 0, uses_left: None };
    running.state.lock().unwrap().tokens.insert("mine".into(), token);
    let provider = running.provider(&[("VAULT_TOKEN", "mine")]);
    running.day(&provider, 300, |running, outcome| match outcome {
        Ok(_) => assert!(running.clock.seconds() < 3600),
        Err(error) => {
            assert!(running.clock.seconds() >= 3600);
            assert_eq!(error.code(), ErrorCode::VaultTokenRefused);
        }
    });
}
