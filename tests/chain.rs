//! R9 across providers: order, failover, and the memory of who is down.

mod support;

use std::sync::Arc;
use std::time::Duration;

use log::Level;
use mlflow_secrets_auth::chain::{ChainFailure, Fetched, ProviderChain};
use mlflow_secrets_auth::clock::Clock;
use mlflow_secrets_auth::error::{ErrorCode, Outlook};
use mlflow_secrets_auth::provider::ProviderKind::{AwsSecretsManager, AzureKeyVault, Vault};
use mlflow_secrets_auth::retry::Budget;
use support::{
    ManualClock, Script, Shared, Step, chain, error, link, logged, record_logs, seconds, secret, unreachable,
};

fn fetch(chain: &ProviderChain, clock: &Arc<ManualClock>) -> Result<Fetched, ChainFailure> {
    fetch_within(chain, clock, seconds(30.0), false)
}

fn fetch_within(
    chain: &ProviderChain,
    clock: &Arc<ManualClock>,
    time: Duration,
    past_failures: bool,
) -> Result<Fetched, ChainFailure> {
    let clock = Shared(Arc::clone(clock));
    let budget = Budget { attempts: 1, deadline: clock.now() + time, provider_decides: false };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(chain.fetch(&clock, budget, past_failures))
}

/// R9: the providers are asked in their order, the first that answers gives the credential, and the switch is logged
/// once each way.
#[test]
fn r9_failover_follows_the_order_and_is_logged_once() {
    record_logs();
    let clock = ManualClock::new();
    let [vault, aws, azure] = [Script::new([unreachable()]), Script::new([secret("a")]), Script::new([secret("z")])];
    let chain = chain(vec![link(Vault, &vault), link(AwsSecretsManager, &aws), link(AzureKeyVault, &azure)]);
    for _ in 0..5 {
        assert_eq!(fetch(&chain, &clock).unwrap().provider, AwsSecretsManager);
    }
    assert_eq!((vault.reads(), aws.reads(), azure.reads()), (1, 5, 0));
    assert_eq!(logged(Level::Warn).len(), 1, "{:?}", logged(Level::Warn));
    assert!(logged(Level::Warn)[0].contains("aws-secrets-manager (vault: vault.unreachable)"));

    vault.now([secret("v")]);
    clock.advance(seconds(1.0));
    for _ in 0..5 {
        assert_eq!(fetch(&chain, &clock).unwrap().provider, Vault);
    }
    assert_eq!((vault.reads(), aws.reads()), (6, 5));
    assert_eq!(logged(Level::Warn).len(), 2);
}

/// R9: a provider that fails is left alone for 1 s, then 2 s, up to 30 s; a success starts over.
#[test]
fn r9_fail_fast_window_doubles_from_one_second_to_thirty() {
    let clock = ManualClock::new();
    let vault = Script::new([unreachable()]);
    let chain = chain(vec![link(Vault, &vault)]);
    for (index, window) in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0].into_iter().enumerate() {
        assert!(fetch(&chain, &clock).unwrap_err().asked);
        clock.advance(seconds(window - 0.001));
        let failure = fetch(&chain, &clock).unwrap_err();
        assert_eq!(failure.error.code(), ErrorCode::VaultUnreachable);
        assert!(!failure.asked, "window {window}");
        assert_eq!(vault.reads(), index + 1);
        clock.advance(seconds(0.001));
    }
    vault.now([secret("v"), unreachable()]);
    fetch(&chain, &clock).unwrap();
    fetch(&chain, &clock).unwrap_err();
    clock.advance(seconds(1.0));
    assert!(fetch(&chain, &clock).unwrap_err().asked, "the window did not start over");
}

/// R13: `refresh()` asks providers within their fail-fast window, too.
#[test]
fn r13_a_forced_fetch_passes_the_fail_fast_window() {
    let clock = ManualClock::new();
    let vault = Script::new([unreachable(), secret("v")]);
    let chain = chain(vec![link(Vault, &vault)]);
    fetch(&chain, &clock).unwrap_err();
    fetch_within(&chain, &clock, seconds(30.0), true).unwrap();
    assert_eq!(vault.reads(), 2);
}

/// R9: when all fail, each one's own error is shown, together with its outlook.
#[test]
fn r9_all_failures_are_shown() {
    let clock = ManualClock::new();
    let vault = Script::new([unreachable()]);
    let aws = Script::new([Step::Fail(error(ErrorCode::VaultNotFound, Outlook::Final))]);
    let chain = chain(vec![link(Vault, &vault), link(AwsSecretsManager, &aws)]);
    let failure = fetch(&chain, &clock).unwrap_err();
    assert_eq!(failure.error.code(), ErrorCode::FetchAllFailed);
    let codes: Vec<_> = failure.error.parts().iter().map(|part| part.code()).collect();
    assert_eq!(codes, [ErrorCode::VaultUnreachable, ErrorCode::VaultNotFound]);
    assert_eq!(failure.outlooks, [(Vault, Outlook::Unreachable), (AwsSecretsManager, Outlook::Final)]);
}

/// R10: one that hangs uses up its own share of the time only, so the next one still gets asked.
#[test]
fn r10_a_provider_that_hangs_leaves_time_for_the_next() {
    let clock = ManualClock::new();
    let [vault, aws] = [Script::new([Step::Hang]), Script::new([secret("a")])];
    let chain = chain(vec![link(Vault, &vault), link(AwsSecretsManager, &aws)]);
    let fetched = fetch_within(&chain, &clock, seconds(0.2), false).unwrap();
    assert_eq!(fetched.provider, AwsSecretsManager);
    clock.advance(seconds(1.0));
    aws.now([unreachable()]);
    let failure = fetch_within(&chain, &clock, seconds(0.2), false).unwrap_err();
    assert_eq!(failure.error.parts()[0].code(), ErrorCode::FetchTimeout);
    assert_eq!(failure.outlooks[0], (Vault, Outlook::Unreachable));
}

/// R9: a provider whose SDK breaks down has failed like any other.
#[test]
fn r9_a_provider_that_panics_fails_over() {
    let clock = ManualClock::new();
    let [vault, aws] = [Script::new([Step::Panic]), Script::new([secret("a"), unreachable()])];
    let chain = chain(vec![link(Vault, &vault), link(AwsSecretsManager, &aws)]);
    assert_eq!(fetch(&chain, &clock).unwrap().provider, AwsSecretsManager);
    let failure = fetch(&chain, &clock).unwrap_err();
    assert_eq!(failure.error.parts()[0].code(), ErrorCode::FetchInternal);
    assert_eq!(vault.reads(), 1, "a breakdown is remembered like any failure");
}

/// R2, S4: the next attempt is at once while any provider may be asked, else when the first of them may.
#[test]
fn r2_next_attempt_is_that_of_the_first_provider_that_may_be_asked() {
    let clock = ManualClock::new();
    let start = Shared(Arc::clone(&clock)).now();
    let [vault, aws] = [Script::new([unreachable()]), Script::new([secret("a"), unreachable()])];
    let chain = chain(vec![link(Vault, &vault), link(AwsSecretsManager, &aws)]);
    assert_eq!(chain.next_attempt(), Duration::ZERO);
    fetch(&chain, &clock).unwrap();
    assert_eq!(chain.next_attempt(), Duration::ZERO, "one of two is down");
    fetch(&chain, &clock).unwrap_err();
    assert_eq!(chain.next_attempt(), start + seconds(1.0));
    chain.forget_failures();
    assert_eq!(chain.next_attempt(), Duration::ZERO);
}
