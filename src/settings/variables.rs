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
    /// AWS Secrets Manager.
    Aws,
    /// Azure Key Vault.
    Azure,
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
    /// Its name in lower case, where that counts too.
    pub lower_case: Option<&'static str>,
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
            lower_case: None,
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

    const fn lower_case(mut self, name: &'static str) -> Self {
        self.lower_case = Some(name);
        self
    }

    /// Every name that it may be set by.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [Some(self.name), self.lower_case].into_iter().flatten()
    }

    /// Whether its value is or holds a URL, in which there may be a password.
    pub fn is_url(&self) -> bool {
        self.accepts.contains("URL") || self.accepts.contains("://")
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

    /// Where Vault is: `https://host[:port]`, and a path behind it where a proxy adds one.
    ///
    /// Not needed where `VAULT_AGENT_ADDR` is set.
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
    /// How to log in to Vault. `auto` takes the first of these that is configured: `VAULT_TOKEN`, AppRole, kubernetes or
    /// jwt, userpass or ldap, a TLS certificate, an agent, and last the file `~/.vault-token`.
    ///
    /// `token` without `VAULT_TOKEN` reads `~/.vault-token`, anew for every fetch.
    MLFLOW_VAULT_AUTH_METHOD: Vault
        .default("auto").accepts("auto, token, approle, kubernetes, jwt, userpass, ldap, cert or agent")
        .example("approle");
    /// Where the login method is mounted.
    MLFLOW_VAULT_AUTH_MOUNT: Vault.default("the method's own name").accepts("a mount path").example("approle-ci");
    /// The namespace of the secret and, unless `MLFLOW_VAULT_AUTH_NAMESPACE` says otherwise, of the login.
    VAULT_NAMESPACE: Vault.accepts("a namespace").example("team-a");
    /// The mount of the secret's engine, where it can't be told from the path. The path may then leave it out.
    ///
    /// Together with `MLFLOW_VAULT_KV_VERSION` it saves the question which engine the path belongs to.
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
    /// The namespace of the login, where it is not the secret's; `root` is the outermost.
    MLFLOW_VAULT_AUTH_NAMESPACE: Vault
        .default("VAULT_NAMESPACE").accepts("a namespace").example("root");
    /// The role to log in as, with the methods kubernetes, jwt and cert.
    MLFLOW_VAULT_ROLE: Vault.accepts("the name of a role").example("mlflow");
    /// The file with the signed token of the methods kubernetes and jwt, read anew for every login.
    ///
    /// For kubernetes, the token of the pod's service account by default.
    MLFLOW_VAULT_JWT_PATH: Vault.accepts("a file path").example("/var/run/secrets/tokens/vault");
    /// The user name of the methods userpass and ldap.
    MLFLOW_VAULT_USERNAME: Vault.accepts("a user name").example("mlflow-ci");
    /// The password of the methods userpass and ldap.
    MLFLOW_VAULT_PASSWORD: Vault.accepts("a password").example("…").secret();
    /// A response-wrapping token that gives the secret id of an AppRole login, once.
    ///
    /// The secret id that it gives stays in the memory of the process that unwrapped it, and of those that it forks.
    MLFLOW_VAULT_WRAPPED_SECRET_ID: Vault.accepts("a wrapping token").example("hvs.…").secret();
    /// The version of the secret to read, on a KV version 2 mount.
    MLFLOW_VAULT_SECRET_VERSION: Vault.default("the newest").accepts("a whole number, 1 or more").example("3");
    /// A directory of PEM files with the CA certificates that sign Vault's. `VAULT_CACERT` comes first.
    VAULT_CAPATH: Vault.default("the system's roots").accepts("a directory").example("/etc/ssl/vault-ca.d");
    /// A PEM file with the certificate to show Vault, for the login method cert or a listener that asks for one.
    VAULT_CLIENT_CERT: Vault.accepts("a file path").example("/etc/ssl/mlflow.pem");
    /// A PEM file with the private key of `VAULT_CLIENT_CERT`.
    VAULT_CLIENT_KEY: Vault.accepts("a file path").example("/etc/ssl/mlflow.key");
    /// The name that Vault's certificate must carry, where it is not the one in `VAULT_ADDR`.
    VAULT_TLS_SERVER_NAME: Vault.accepts("a host name").example("vault.internal");
    /// Where a Vault agent or proxy listens that logs in for us: `http://host:port` or `unix:///path`.
    ///
    /// With a login of ours it is only used where `VAULT_ADDR` is unset.
    VAULT_AGENT_ADDR: Vault
        .accepts("a URL, http://host:port, or unix:///path").example("http://127.0.0.1:8100");

    /// The region of the secret and of STS. A full ARN as the secret's name brings its own region, which wins for reading
    /// the secret.
    ///
    /// Unset: `AWS_DEFAULT_REGION`, then the profile's `region`.
    AWS_REGION: Aws.default("the profile's region").accepts("the name of a region").example("us-east-1").required();
    /// The region where `AWS_REGION` is unset.
    AWS_DEFAULT_REGION: Aws.accepts("the name of a region").example("us-east-1");
    /// The name or the ARN of the secret.
    MLFLOW_AWS_SECRET_NAME: Aws.accepts("a secret's name or ARN").example("mlflow/auth").required();
    /// Means the same as `MLFLOW_AWS_SECRET_NAME`.
    MLFLOW_AWS_SECRET_ID: Aws.accepts("a secret's name or ARN").example("mlflow/auth");
    /// Which version of the secret to read: a staging label such as `AWSPREVIOUS`, or a version id.
    ///
    /// 32 to 64 characters are a version id, as Secrets Manager makes them; anything shorter is a staging label.
    MLFLOW_AWS_SECRET_VERSION: Aws
        .default("AWSCURRENT").accepts("a staging label or a version id").example("AWSPREVIOUS");
    /// How the secret becomes a header.
    MLFLOW_AWS_AUTH_MODE: Aws.default("bearer").accepts("bearer, basic or raw").example("basic");
    /// How long a fetched credential is used before it is fetched again, in seconds.
    ///
    /// An earlier expiry of the secret itself wins. 0 turns caching off.
    MLFLOW_AWS_TTL_SEC: Aws.default("300").accepts("a number of seconds, 0 to 86400").example("600");
    /// How often a fetch from AWS is tried again after a failure that may pass.
    ///
    /// Unset: `MLFLOW_SECRETS_MAX_RETRIES`, then `AWS_MAX_ATTEMPTS` less one, then 3.
    MLFLOW_AWS_MAX_RETRIES: Aws
        .default("MLFLOW_SECRETS_MAX_RETRIES").accepts("a whole number, 0 to 10").example("5");
    /// How attempts are spaced: `standard` waits between them, longer each time and by chance; `adaptive` also slows the
    /// requests of this process down for a while after AWS has asked for fewer; `legacy` is treated as `standard`.
    ///
    /// Unset: `AWS_RETRY_MODE`, then `adaptive`.
    MLFLOW_AWS_RETRY_MODE: Aws.default("adaptive").accepts("adaptive, standard or legacy").example("standard");
    /// Attempts in all, the first included, where neither `MLFLOW_AWS_MAX_RETRIES` nor `MLFLOW_SECRETS_MAX_RETRIES` is set.
    AWS_MAX_ATTEMPTS: Aws.accepts("a whole number, 1 to 100").example("3");
    /// The retry mode where `MLFLOW_AWS_RETRY_MODE` is unset.
    AWS_RETRY_MODE: Aws.accepts("adaptive, standard or legacy").example("standard");
    /// Static keys: the id. Needs `AWS_SECRET_ACCESS_KEY`; not used where `AWS_PROFILE` is set.
    AWS_ACCESS_KEY_ID: Aws.accepts("an access key id").example("AKIA…").secret();
    /// Static keys: the secret.
    AWS_SECRET_ACCESS_KEY: Aws.accepts("a secret access key").example("wJal…").secret();
    /// Static keys: the session token of temporary ones.
    AWS_SESSION_TOKEN: Aws.accepts("a session token").example("IQoJ…").secret();
    /// The profile of the shared config and credentials files to sign in with. It wins over keys in the environment.
    AWS_PROFILE: Aws.default("default").accepts("the name of a profile").example("mlflow");
    /// The shared config file.
    AWS_CONFIG_FILE: Aws.default("~/.aws/config").accepts("a file path").example("/etc/aws/config");
    /// The shared credentials file.
    AWS_SHARED_CREDENTIALS_FILE: Aws.default("~/.aws/credentials").accepts("a file path").example("/etc/aws/credentials");
    /// A file with a web identity token (IRSA on EKS, GitHub Actions), which is read again at every sign-in. Needs
    /// `AWS_ROLE_ARN`, which then is the role that the token is exchanged for.
    AWS_WEB_IDENTITY_TOKEN_FILE: Aws
        .accepts("a file path").example("/var/run/secrets/eks.amazonaws.com/serviceaccount/token");
    /// A role to assume on top of the identity that was found; with `AWS_WEB_IDENTITY_TOKEN_FILE`, the role that the token
    /// is exchanged for.
    AWS_ROLE_ARN: Aws.accepts("the ARN of a role").example("arn:aws:iam::123456789012:role/mlflow-reader");
    /// The name of the session when a role is assumed, as CloudTrail shows it.
    AWS_ROLE_SESSION_NAME: Aws
        .default("mlflow-secrets-auth").accepts("2 to 64 letters, digits or any of +=,.@_-").example("mlflow-ci");
    /// The external id that the trust policy of an assumed role asks for.
    AWS_EXTERNAL_ID: Aws.accepts("2 to 1224 letters, digits or any of +=,.@:/_-").example("b7c1…").secret();
    /// A role to assume on top of everything else, a web identity's role included.
    MLFLOW_AWS_ROLE_ARN: Aws.accepts("the ARN of a role").example("arn:aws:iam::210987654321:role/mlflow-secret");
    /// Where a container gets its credentials, as ECS sets it.
    AWS_CONTAINER_CREDENTIALS_RELATIVE_URI: Aws.accepts("a path").example("/v2/credentials/…");
    /// Where a container gets its credentials, as EKS Pod Identity sets it.
    AWS_CONTAINER_CREDENTIALS_FULL_URI: Aws
        .accepts("a URL: https, or http to this machine or to the addresses of ECS and EKS")
        .example("http://169.254.170.23/v1/credentials");
    /// What to send to the container's endpoint as `Authorization`.
    AWS_CONTAINER_AUTHORIZATION_TOKEN: Aws.accepts("a header value").example("…").secret();
    /// A file with what to send to the container's endpoint as `Authorization`. It is read again at every sign-in.
    AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: Aws
        .accepts("a file path").example("/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token");
    /// Keeps from asking the EC2 metadata service for credentials.
    AWS_EC2_METADATA_DISABLED: Aws
        .default("false").accepts("true, 1, yes, on, false, 0, no or off").example("true");
    /// Where the EC2 metadata service is.
    AWS_EC2_METADATA_SERVICE_ENDPOINT: Aws
        .default("http://169.254.169.254").accepts("a URL").example("http://[fd00:ec2::254]");
    /// Which address of the EC2 metadata service to use.
    AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE: Aws.default("IPv4").accepts("IPv4 or IPv6").example("IPv6");
    /// The endpoint of every AWS service, for stand-ins and private endpoints.
    AWS_ENDPOINT_URL: Aws.default("AWS's own").accepts("a URL").example("http://localhost:4566");
    /// The endpoint of Secrets Manager.
    AWS_ENDPOINT_URL_SECRETS_MANAGER: Aws
        .default("AWS_ENDPOINT_URL").accepts("a URL").example("https://vpce-0a1b.secretsmanager.us-east-1.vpce.amazonaws.com");
    /// The endpoint of STS.
    AWS_ENDPOINT_URL_STS: Aws
        .default("AWS_ENDPOINT_URL").accepts("a URL").example("https://vpce-0a1b.sts.us-east-1.vpce.amazonaws.com");
    /// Ignores the endpoints that the environment and the profile name.
    AWS_IGNORE_CONFIGURED_ENDPOINT_URLS: Aws
        .default("false").accepts("true, 1, yes, on, false, 0, no or off").example("true");
    /// Uses the FIPS endpoints.
    AWS_USE_FIPS_ENDPOINT: Aws
        .default("false").accepts("true, 1, yes, on, false, 0, no or off").example("true");
    /// Uses the endpoints that have IPv6 addresses too.
    AWS_USE_DUALSTACK_ENDPOINT: Aws
        .default("false").accepts("true, 1, yes, on, false, 0, no or off").example("true");
    /// A PEM file with the only CA certificates to trust for AWS. It wins over `REQUESTS_CA_BUNDLE` and `SSL_CERT_FILE`.
    AWS_CA_BUNDLE: Aws.default("the system's roots").accepts("a file path").example("/etc/ssl/company.pem");
    /// The node's AWS Secrets Manager Agent, or the Lambda extension. With it, the agent reads the secret, and no AWS
    /// identity or region is needed here.
    MLFLOW_AWS_AGENT_URL: Aws.accepts("a URL").example("http://localhost:2773");
    /// The agent's token: itself, or `file://` and the path of a file that holds it.
    MLFLOW_AWS_AGENT_TOKEN: Aws.accepts("a token, or file:///path").example("file:///var/run/awssmatoken").secret();
    /// Where the key vault is: `https://NAME.vault.azure.net`.
    MLFLOW_AZURE_KEY_VAULT_URL: Azure
        .accepts("a URL, https://NAME.vault.azure.net, without a path").example("https://team-ml.vault.azure.net").required();
    /// The same as `MLFLOW_AZURE_KEY_VAULT_URL`.
    AZURE_KEY_VAULT_URL: Azure
        .accepts("a URL, https://NAME.vault.azure.net, without a path").example("https://team-ml.vault.azure.net");
    /// The name of the key vault alone, in place of its URL. The cloud's suffix is added.
    AZURE_KEY_VAULT_NAME: Azure
        .accepts("3 to 24 letters, digits and hyphens, a letter first").example("team-ml");
    /// The name of the secret in the key vault.
    MLFLOW_AZURE_SECRET_NAME: Azure
        .accepts("1 to 127 letters, digits and hyphens").example("mlflow-auth").required();
    /// The version of the secret to read, or `latest`.
    MLFLOW_AZURE_SECRET_VERSION: Azure
        .default("latest").accepts("latest, or the 1 to 64 letters and digits of a version's id")
        .example("d1234567890abcdef1234567890abcde");
    /// How the secret becomes a header.
    MLFLOW_AZURE_AUTH_MODE: Azure.default("bearer").accepts("bearer, basic or raw").example("basic");
    /// How long a fetched credential is used before it is fetched again, in seconds.
    ///
    /// An earlier expiry of the secret itself wins. 0 turns caching off.
    MLFLOW_AZURE_TTL_SEC: Azure.default("300").accepts("a number of seconds, 0 to 86400").example("600");
    /// Whether the vault's sign-in challenge must name the vault's own domain. Turn it off only for a vault behind a
    /// name of your own: otherwise any host in the vault's place could ask for a token to something else.
    MLFLOW_AZURE_VERIFY_CHALLENGE: Azure
        .default("true").accepts("true, 1, yes, on, false, 0, no or off").example("false");
    /// The cloud that the key vault and Microsoft Entra ID are in.
    AZURE_CLOUD_ENVIRONMENT: Azure
        .default("told by the vault's host name").accepts("AzurePublicCloud, AzureUSGovernment or AzureChinaCloud")
        .example("AzureUSGovernment");
    /// Where Microsoft Entra ID is. It wins over the cloud's own.
    AZURE_AUTHORITY_HOST: Azure
        .default("the cloud's own").accepts("an https URL without a path, or a host").example("https://login.microsoftonline.us");
    /// Which ways to sign in are tried: `prod` (service principal, workload identity, managed identity), `dev` (Azure
    /// CLI, Azure Developer CLI), or one of them by its name. Unset: all, in this order.
    AZURE_TOKEN_CREDENTIALS: Azure
        .default("all").accepts("prod, dev, EnvironmentCredential, WorkloadIdentityCredential, ManagedIdentityCredential, AzureCliCredential or AzureDeveloperCliCredential")
        .example("ManagedIdentityCredential");
    /// The tenant (directory) of the service principal or the workload identity.
    AZURE_TENANT_ID: Azure
        .accepts("a tenant id or domain: letters, digits, hyphens and dots").example("12345678-1234-1234-1234-123456789012");
    /// With a tenant and a secret or a certificate: the service principal. Alone: a user-assigned managed identity.
    AZURE_CLIENT_ID: Azure
        .accepts("a client id: letters, digits, hyphens and dots").example("87654321-4321-4321-4321-210987654321");
    /// The secret of the service principal: its value, not its id.
    AZURE_CLIENT_SECRET: Azure.accepts("a client secret").example("…").secret();
    /// A PEM file with the certificate of the service principal and its private key, for example one that
    /// `openssl pkcs12 -in client.pfx -out client.pem -nodes` wrote. It is read again at each sign-in.
    AZURE_CLIENT_CERTIFICATE_PATH: Azure.accepts("a file path").example("/etc/mlflow/client.pem");
    /// The password of the private key in `AZURE_CLIENT_CERTIFICATE_PATH`.
    AZURE_CLIENT_CERTIFICATE_PASSWORD: Azure.accepts("a password").example("…").secret();
    /// Sends the certificate's chain along, as sign-in by subject name and issuer needs it.
    AZURE_CLIENT_SEND_CERTIFICATE_CHAIN: Azure
        .default("false").accepts("true, 1, yes, on, false, 0, no or off").example("true");
    /// The file with the token of a workload identity. AKS sets it. It is read again at each sign-in.
    AZURE_FEDERATED_TOKEN_FILE: Azure.accepts("a file path").example("/var/run/secrets/azure/tokens/azure-identity-token");
    /// Where a managed identity gets its tokens on App Service, Functions and Container Apps, which set it.
    IDENTITY_ENDPOINT: Azure.accepts("a URL").example("http://localhost:42356/msi/token");
    /// What proves to `IDENTITY_ENDPOINT` that the request is ours. The platform sets it.
    IDENTITY_HEADER: Azure.accepts("text").example("…").secret();
    /// Set by Service Fabric, whose managed identities are not supported.
    IDENTITY_SERVER_THUMBPRINT: Azure.accepts("a thumbprint").example("…");
    /// Set by Azure Arc, whose managed identities are not supported.
    IMDS_ENDPOINT: Azure.accepts("a URL").example("http://localhost:40342");
    /// Where a managed identity gets its tokens on Azure Machine Learning compute, which sets it.
    MSI_ENDPOINT: Azure.accepts("a URL").example("http://127.0.0.1:46808/MSI/auth");
    /// What proves to `MSI_ENDPOINT` that the request is ours. The platform sets it.
    MSI_SECRET: Azure.accepts("text").example("…").secret();
    /// The managed identity that Azure Machine Learning compute uses when `AZURE_CLIENT_ID` names none.
    DEFAULT_IDENTITY_CLIENT_ID: Azure.accepts("a client id").example("87654321-4321-4321-4321-210987654321");

    /// A PEM file, or a directory of them, with the only CA certificates to trust for every backend, as in `requests`.
    REQUESTS_CA_BUNDLE: Network
        .default("the system's roots").accepts("a file path or a directory").example("/etc/ssl/company.pem");
    /// A PEM file that takes the place of the system's CA certificates, together with `SSL_CERT_DIR` where that is set too.
    ///
    /// `REQUESTS_CA_BUNDLE` wins over both.
    SSL_CERT_FILE: Network.default("the system's roots").accepts("a file path").example("/etc/ssl/company.pem");
    /// A directory of PEM files that take the place of the system's CA certificates, together with `SSL_CERT_FILE` where
    /// that is set too.
    ///
    /// Several directories are separated as in `PATH`. Every file in them counts, whatever its name.
    SSL_CERT_DIR: Network.default("the system's roots").accepts("a directory").example("/etc/ssl/company.d");
    /// The proxy for backends that speak https. Also in lower case, which comes first, as in `requests`.
    ///
    /// A user name and a password in it are sent to the proxy and shown nowhere. This machine (loopback) and the addresses
    /// at which a cloud tells a machine who it is (169.254.0.0/16, managed identities, containers) are never asked through
    /// a proxy. SOCKS proxies are not supported.
    HTTPS_PROXY: Network
        .default("ALL_PROXY").accepts("the URL of an HTTP proxy, http://[user:password@]host[:port]")
        .example("http://proxy.example.com:3128").lower_case("https_proxy");
    /// The proxy for backends that speak plain http. Also in lower case, which comes first.
    ///
    /// In a CGI script, where `REQUEST_METHOD` is set, only the lower-case name counts.
    HTTP_PROXY: Network
        .default("ALL_PROXY").accepts("the URL of an HTTP proxy, http://[user:password@]host[:port]")
        .example("http://proxy.example.com:3128").lower_case("http_proxy");
    /// The proxy where the one above for its scheme is unset. Also in lower case, which comes first.
    ALL_PROXY: Network
        .default("none").accepts("the URL of an HTTP proxy, http://[user:password@]host[:port]")
        .example("http://proxy.example.com:3128").lower_case("all_proxy");
    /// What is asked without a proxy: a comma list of hosts, which stand for what is below them too, of IP addresses and of
    /// networks such as `10.0.0.0/8`; `*` is everything. Ports are not looked at. Also in lower case, which comes first.
    NO_PROXY: Network
        .default("none").accepts("a comma list of hosts, addresses and networks")
        .example("vault.example.com,.internal,10.0.0.0/8").lower_case("no_proxy");
}
