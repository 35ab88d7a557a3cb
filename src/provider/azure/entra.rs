//! What Microsoft Entra ID says when it refuses: AADSTS numbers, and what to do about each.
//!
//! <https://learn.microsoft.com/entra/identity-platform/reference-error-codes>

use super::client::{self, Failure};
use super::settings::AzureSettings;
use crate::error::{Error, ErrorCode};

/// What a service principal or a workload shows to sign in.
#[derive(Clone, Copy, PartialEq)]
pub enum Presented {
    /// `AZURE_CLIENT_SECRET`.
    Secret,
    /// An assertion signed with the key of `AZURE_CLIENT_CERTIFICATE_PATH`.
    Certificate,
    /// The token in `AZURE_FEDERATED_TOKEN_FILE`.
    FederatedToken,
}

/// The error for a sign-in that failed. What our own code found wrong on the way comes first, then Entra's number, then the
/// exchange itself.
pub fn refused(error: &azure_core::Error, settings: &AzureSettings, presented: Presented) -> Error {
    if let Some(ours) = client::cause::<Error>(error) {
        return ours.clone();
    }
    let Some(failure) = client::cause::<Failure>(error) else {
        return Error::new(
            ErrorCode::AzureUnexpectedAnswer,
            format!("Microsoft Entra ID at {} did not answer as it should: it gave no token", settings.authority),
            "check AZURE_AUTHORITY_HOST, and that no proxy answers in its place",
        );
    };
    match (failure.status(), failure.aadsts()) {
        // Busy or broken: its number says no more than that.
        (Some(408 | 429 | 500..=599), _) | (None, _) => failure.error(),
        (Some(status), Some(number)) => numbered(settings, presented, status, number),
        (Some(_), None) => failure.error(),
    }
}

fn numbered(settings: &AzureSettings, presented: Presented, status: u16, number: u64) -> Error {
    let authority = &settings.authority;
    let tenant = settings.tenant_id.as_deref().unwrap_or_default();
    let client = settings.client_id.as_deref().unwrap_or_default();
    let shown = format!("(HTTP {status}, AADSTS{number})");
    match number {
        90002 | 90013 | 900021 | 900023 | 900971 => Error::new(
            ErrorCode::AzureTenantUnknown,
            format!("Microsoft Entra ID at {authority} has no tenant {tenant} {shown}"),
            "check AZURE_TENANT_ID, and the cloud: AZURE_CLOUD_ENVIRONMENT or AZURE_AUTHORITY_HOST",
        ),
        900432 | 900439 => Error::new(
            ErrorCode::AzureTenantUnknown,
            format!("the tenant {tenant} is in another cloud than Microsoft Entra ID at {authority} {shown}"),
            "set AZURE_CLOUD_ENVIRONMENT or AZURE_AUTHORITY_HOST to the cloud of the tenant",
        ),
        700016 => Error::new(
            ErrorCode::AzureClientUnknown,
            format!("the tenant {tenant} has no application {client} {shown}"),
            "check AZURE_CLIENT_ID (the application's client id, not its object id) and AZURE_TENANT_ID",
        ),
        7000112 => Error::new(
            ErrorCode::AzureClientUnknown,
            format!("the application {client} in the tenant {tenant} is disabled {shown}"),
            "enable the application in Microsoft Entra ID, or use another one",
        ),
        7000215 => Error::new(
            ErrorCode::AzureClientSecretInvalid,
            format!("Microsoft Entra ID does not accept the client secret of {client} {shown}"),
            "copy the secret's value into AZURE_CLIENT_SECRET, not its id; make a new one where the value is lost",
        ),
        7000222 => Error::new(
            ErrorCode::AzureClientSecretExpired,
            format!("the client secret of {client} has expired {shown}"),
            "make a new secret for the application, and put its value into AZURE_CLIENT_SECRET",
        ),
        _ if presented == Presented::Certificate && is_about_an_assertion(number) => {
            certificate(client, &shown, number)
        }
        _ if presented == Presented::FederatedToken && is_about_an_assertion(number) => {
            federated(client, &shown, number)
        }
        500011 | 650057 => Error::new(
            ErrorCode::AzureSignInRefused,
            format!("the tenant {tenant} can't give tokens for Key Vault in this cloud {shown}"),
            "check that the vault is in the cloud of AZURE_AUTHORITY_HOST or AZURE_CLOUD_ENVIRONMENT",
        ),
        _ => Error::new(
            ErrorCode::AzureSignInRefused,
            format!("Microsoft Entra ID at {authority} refused to sign {client} in {shown}"),
            format!("look the number up at https://login.microsoftonline.com/error?code={number}"),
        ),
    }
}

/// Invalid JWT, wrong times, audience, issuer, subject, signature, or no record that matches.
fn is_about_an_assertion(number: u64) -> bool {
    matches!(
        number,
        50027
            | 50012
            | 50013
            | 700021
            | 700023
            | 700024
            | 700027
            | 700030
            | 7000214
            | 7000212
            | 1000502
            | 70021
            | 70025
            | 700211..=700213
            | 7002111..=7002139
    )
}

fn certificate(client: &str, shown: &str, number: u64) -> Error {
    let (what, hint) = match number {
        1000502 => (
            "says that the certificate has expired or is not valid yet",
            "make a new certificate and register it for the application",
        ),
        700024 => ("says that the signed statement is out of its time", "check this machine's clock"),
        _ => (
            "does not accept the certificate",
            "register this certificate for the application: `az ad app credential reset --id … --cert @certificate.crt --append`",
        ),
    };
    Error::new(ErrorCode::AzureCertificateRefused, format!("Microsoft Entra ID {what} of {client} {shown}"), hint)
}

fn federated(client: &str, shown: &str, number: u64) -> Error {
    let (what, hint) = match number {
        70025 => ("has no federated credential at all", "add one to the application or the managed identity"),
        700211 => (
            "has no federated credential for the token's issuer",
            "its issuer must be the cluster's: `az aks show --query oidcIssuerProfile.issuerUrl`",
        ),
        700212 => (
            "has no federated credential for the token's audience",
            "its audience, and the token's, must be api://AzureADTokenExchange",
        ),
        700213 | 7002138 => (
            "has no federated credential for the token's subject",
            "its subject must be system:serviceaccount:NAMESPACE:SERVICE-ACCOUNT, in the same case",
        ),
        700024 => ("was shown a token that is out of its time", "check that the token's file is still being renewed"),
        _ => (
            "has no federated credential that matches the token",
            "compare issuer, subject and audience of the federated credential with those of the token",
        ),
    };
    Error::new(ErrorCode::AzureFederatedTokenRefused, format!("the identity {client} {what} {shown}"), hint)
}
