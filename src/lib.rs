//! The right credential on every MLflow request, from the secrets manager that a company already has.
//!
//! ```text
//! requests.PreparedRequest.url
//!       │
//!       ▼
//! origin        Origin            scheme, host, port that will be dialed; anything odd is refused
//!       ▼
//! allowlist     Allowlist         may this origin get a credential?
//!       ▼
//! cache         CredentialCache   fresh: done. Otherwise one flight; the others wait or use the old one
//!       ▼
//! chain         ProviderChain     one deadline, fail over, remember who is down
//!       ▼
//! provider/*    Provider          fetch_secret() → SecretPayload
//!       ▼
//! credential    Credential        payload + mode → token | basic | headers
//!       ▼
//! header        AuthHeaders       checked, masked, ready to set
//!       ▼
//! request.headers[…]  ── 401/403 ──▶ CredentialCache::denied ▶ fetch again ▶ resend once
//! ```
//!
//! The cache stands on three smaller rooms: `flight` (one leader fetches, the others wait), `errand` (who can't wait is told)
//! and `denials` (who denied what).
//! `authorizer` runs these steps; `settings` says how; `error` says what went wrong; `runtime`, `retry`, `http`,
//! `network`, `x509` and `clock` are the ground that they stand on. `steps` is where a fetch tells what it does, to the log
//! and to `doctor`, which makes findings of it. `python` binds it all to Python, and is the only part that knows PyO3.
//! `testing` is for the tests of programs that use all this: a backend and a clock that do as they are told.
//!
//! Four words are kept apart: a *token* or *identity* logs us in to the backend; a *secret* is what the backend stores; a
//! *credential* is what the MLflow server wants; a *header* is what goes on the wire.

#[cfg(not(any(feature = "vault", feature = "aws", feature = "azure")))]
compile_error!("a build needs a backend: enable at least one of the features vault, aws, azure");

pub mod allowlist;
pub mod authorizer;
pub mod cache;
pub mod chain;
pub mod clock;
pub mod credential;
mod denials;
pub mod doctor;
pub mod errand;
pub mod error;
mod flight;
pub mod header;
pub mod http;
pub mod network;
pub mod origin;
pub mod provider;
#[cfg(feature = "python")]
mod python;
pub mod retry;
pub mod runtime;
pub mod secret;
pub mod settings;
mod steps;
pub mod testing;
mod x509;

pub use authorizer::Authorizer;
pub use error::{Error, ErrorCode, Result};
