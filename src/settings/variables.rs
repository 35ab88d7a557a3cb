//! Every environment variable that we read, declared once with its documentation.
//!
//! `docs/configuration.md` and the table in the README are generated from this file, and a test keeps them equal to it.

/// Which part of the documentation a variable belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Holds for every provider.
    Global,
    /// HashiCorp Vault and OpenBao.
    Vault,
    /// TLS roots and proxies, for every backend.
    Network,
}

/// One environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name, as users type it.
    pub name: &'static str,
    /// Where it is documented.
    pub section: Section,
    /// What it means, in Markdown.
    pub documentation: &'static str,
    /// The value in effect when it is unset, in words where it is not a value.
    pub default: &'static str,
    /// What is accepted, as the end of a sentence.
    pub accepts: &'static str,
    /// A value to copy.
    pub example: &'static str,
    /// Whether its value is never shown.
    pub secret: bool,
    /// Whether its provider can't do without it.
    pub required: bool,
}

impl Variable {
    const fn new(name: &'static str, section: Section, documentation: &'static str) -> Self {
        Self {
            name,
            section,
            documentation,
            default: "unset",
            accepts: "text",
            example: "",
            secret: false,
            required: false,
        }
    }

    const fn default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    const fn accepts(mut self, accepts: &'static str) -> Self {
        self.accepts = accepts;
        self
    }

    const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// The first paragraph of its documentation, on one line.
    pub fn summary(&self) -> String {
        let paragraph = self.documentation.trim().split("\n\n").next().unwrap_or_default();
        paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ")
    }
}

macro_rules! variables {
    ($( $(#[doc = $doc:literal])+ $name:ident: $section:ident $(. $method:ident ( $($argument:literal)? ))*; )+) => {
        $( $(#[doc = $doc])+ pub const $name: Variable =
            Variable::new(stringify!($name), Section::$section, concat!($($doc, "\n",)+))$( .$method($($argument)?) )*; )+

        /// Every variable, in the order of the documentation.
        pub const ALL: &[Variable] = &[$($name,)+];
    };
}

variables! {
    /// Which providers are enabled, as a comma list of `vault`, `aws-secrets-manager`, `azure-key-vault`.
    ///
    /// The order in the list does not matter: vault comes first, then aws-secrets-manager, then azure-key-vault.
    MLFLOW_SECRETS_AUTH_ENABLE: Global
        .accepts("a comma list of vault, aws-secrets-manager, azure-key-vault").example("vault");
    /// `true` enables the provider `vault`; `false` disables it even when it is listed.
    MLFLOW_SECRETS_AUTH_ENABLE_VAULT: Global
        .accepts("true, 1, yes, on, false, 0, no or off").example("true");
    /// `true` enables the provider `aws-secrets-manager`; `false` disables it even when it is listed.
    MLFLOW_SECRETS_AUTH_ENABLE_AWS_SECRETS_MANAGER: Global
        .accepts("true, 1, yes, on, false, 0, no or off").example("false");
    /// `true` enables the provider `azure-key-vault`; `false` disables it even when it is listed.
    MLFLOW_SECRETS_AUTH_ENABLE_AZURE_KEY_VAULT: Global
        .accepts("true, 1, yes, on, false, 0, no or off").example("false");
    /// Which hosts may get the credential, as a comma list of patterns `[scheme://]host[:port]`.
    ///
    /// The host may use `*`, `?` and `[…]`, which cross dots; `*` alone means every host. Unset: only the origins of
    /// MLflow's tracking and registry URIs. Set but empty is an error, so that a template that did not expand is noticed.
    MLFLOW_SECRETS_ALLOWED_HOSTS: Global
        .default("the tracking and registry origins").accepts("a comma list of patterns [scheme://]host[:port]")
        .example("mlflow.example.com,*.staging.example.com");
    /// The header that carries the credential.
    MLFLOW_AUTH_HEADER_NAME: Global
        .default("Authorization").accepts("the name of a header that does not belong to the connection")
        .example("X-MLflow-Auth");
    /// How much the loggers below `mlflow_secrets_auth` say. Unset leaves them alone.
    ///
    /// An unknown level warns once, and fails only `doctor`.
    MLFLOW_SECRETS_LOG_LEVEL: Global.accepts("DEBUG, INFO, WARNING or ERROR").example("DEBUG");
    /// How often a fetch is tried again after a failure that may pass.
    MLFLOW_SECRETS_MAX_RETRIES: Global.default("3").accepts("a whole number, 0 to 10").example("5");
    /// How long one fetch may take in all, retries and waiting included, in seconds.
    MLFLOW_SECRETS_TIMEOUT_SEC: Global.default("30").accepts("a number of seconds, 1 to 300").example("10");
    /// How long past its TTL a credential may still be used while the backend can't be reached, in seconds; 0 is never.
    MLFLOW_SECRETS_STALE_IF_ERROR_SEC: Global
        .default("3600").accepts("a number of seconds, 0 to 604800").example("600");
    /// What happens to a request when the credential can't be fetched: `raise` the error, or `skip` the credential and log
    /// an ERROR.
    MLFLOW_SECRETS_ON_ERROR: Global.default("raise").accepts("raise or skip").example("skip");
    /// Permits plain http to every allowed host.
    MLFLOW_SECRETS_ALLOW_HTTP: Global
        .default("false").accepts("true, 1, yes, on, false, 0, no or off").example("true");

    /// Where Vault is: `https://host[:port]`.
    VAULT_ADDR: Vault.accepts("a URL, https://host[:port]").example("https://vault.example.com:8200").required();
    /// The path of the secret, with its mount, as in `vault kv get`.
    ///
    /// On a KV version 2 mount, `secret/mlflow/auth` and `secret/data/mlflow/auth` mean the same.
    MLFLOW_VAULT_SECRET_PATH: Vault.accepts("mount/path").example("secret/mlflow/auth").required();
    /// How the secret becomes a header.
    MLFLOW_VAULT_AUTH_MODE: Vault.default("bearer").accepts("bearer, basic or raw").example("basic");
    /// How long a fetched credential is used before it is fetched again, in seconds.
    ///
    /// An earlier expiry of the secret itself wins. 0 turns caching off.
    MLFLOW_VAULT_TTL_SEC: Vault.default("300").accepts("a number of seconds, 0 to 86400").example("600");
    /// A Vault token to read the secret with.
    VAULT_TOKEN: Vault.accepts("a token").example("hvs.…").secret();
    /// The role id of an AppRole login.
    VAULT_ROLE_ID: Vault.accepts("a role id").example("7a0f…");
    /// The secret id of an AppRole login.
    VAULT_SECRET_ID: Vault.accepts("a secret id").example("d41d…").secret();
    /// How to log in to Vault: with `VAULT_TOKEN`, by AppRole, or `auto`, which takes the first of these that is
    /// configured.
    MLFLOW_VAULT_AUTH_METHOD: Vault.default("auto").accepts("auto, token or approle").example("approle");
    /// Where the login method is mounted.
    MLFLOW_VAULT_AUTH_MOUNT: Vault.default("the method's own name").accepts("a mount path").example("approle-ci");
    /// The namespace of the secret and of the login.
    VAULT_NAMESPACE: Vault.accepts("a namespace").example("team-a");
    /// The mount of the secret's engine, where it can't be told from the path.
    MLFLOW_VAULT_KV_MOUNT: Vault.default("found out").accepts("a mount path").example("secret");
    /// The version of the KV engine: `1`, `2`, or `auto`, which asks Vault.
    MLFLOW_VAULT_KV_VERSION: Vault.default("auto").accepts("auto, 1 or 2").example("2");
    /// Turns the verification of Vault's certificate off. Not for production.
    VAULT_SKIP_VERIFY: Vault
        .default("false").accepts("true, 1, yes, on, false, 0, no or off").example("false");
    /// A PEM file with the CA certificates that sign Vault's.
    VAULT_CACERT: Vault.default("the system's roots").accepts("a file path").example("/etc/ssl/vault-ca.pem");
    /// How long one request to Vault may take: `60`, `60s`, `1m`. The lesser of this and the total holds.
    VAULT_CLIENT_TIMEOUT: Vault.accepts("a number of seconds, or one with s or m").example("60s");

    /// A PEM file with the only CA certificates to trust, for every backend, as in `requests`.
    REQUESTS_CA_BUNDLE: Network.default("the system's roots").accepts("a file path").example("/etc/ssl/company.pem");
    /// A PEM file that takes the place of the system's CA certificates.
    SSL_CERT_FILE: Network.default("the system's roots").accepts("a file path").example("/etc/ssl/company.pem");
}
