//! Which login the variables describe.

use std::path::{Path, PathBuf};

use super::settings::{is_odd, mount, secret_for_header};
use crate::error::ErrorCode;
use crate::secret::SecretString;
use crate::settings::Reader;
use crate::settings::variables::{self as var, Variable};

/// Where Kubernetes puts the token of a pod's service account.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Below this Kubernetes mounts the tokens that it projects into a pod.
const PROJECTED_TOKENS: &str = "/var/run/secrets/";
/// Where Vault's command line keeps the token of its last login.
const TOKEN_FILE: &str = ".vault-token";

/// Who we are to Vault.
#[derive(Clone, Debug, PartialEq)]
pub enum Login {
    /// `VAULT_TOKEN`.
    Token(SecretString),
    /// The file that `vault login` writes, read anew for every fetch.
    TokenFile(PathBuf),
    /// `VAULT_ROLE_ID` with a secret id.
    AppRole {
        /// The mount of the method, `approle` by default.
        mount: String,
        /// The role id.
        role_id: String,
        /// What goes with it.
        secret_id: SecretId,
    },
    /// A signed token in a file, which is read anew for every login.
    Jwt {
        /// `kubernetes` or `jwt`, which also are the default mounts.
        method: &'static str,
        /// The mount of the method.
        mount: String,
        /// The role; the method `jwt` may have a default one.
        role: Option<String>,
        /// The file.
        path: PathBuf,
    },
    /// A user's name and password.
    Password {
        /// `userpass` or `ldap`, which also are the default mounts.
        method: &'static str,
        /// The mount of the method.
        mount: String,
        /// The name.
        username: String,
        /// The password.
        password: SecretString,
    },
    /// The certificate of the TLS connection.
    Certificate {
        /// The mount of the method, `cert` by default.
        mount: String,
        /// The role; without one, Vault takes the first that fits.
        role: Option<String>,
    },
    /// A Vault agent logs in for us.
    Agent,
}

/// What goes with a role id.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretId {
    /// The role binds none.
    None,
    /// `VAULT_SECRET_ID`.
    Plain(SecretString),
    /// `MLFLOW_VAULT_WRAPPED_SECRET_ID`: a token that gives the secret id once.
    Wrapped(SecretString),
}

impl Login {
    /// The method's name, as in `MLFLOW_VAULT_AUTH_METHOD`.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Token(_) | Self::TokenFile(_) => "token",
            Self::AppRole { .. } => "approle",
            Self::Jwt { method, .. } | Self::Password { method, .. } => method,
            Self::Certificate { .. } => "cert",
            Self::Agent => "agent",
        }
    }

    /// How users know it: `the token in VAULT_TOKEN`, `AppRole at auth/approle`.
    pub fn description(&self) -> String {
        let of_role = |role: &Option<String>| role.as_ref().map(|role| format!(" as role {role}")).unwrap_or_default();
        match self {
            Self::Token(_) => "the token in VAULT_TOKEN".to_owned(),
            Self::TokenFile(path) => format!("the token in {}", path.display()),
            Self::AppRole { mount, .. } => format!("AppRole at auth/{mount}"),
            Self::Jwt { method, mount, role, .. } => format!("{method} at auth/{mount}{}", of_role(role)),
            Self::Password { method, mount, username, .. } => format!("{method} at auth/{mount} as user {username}"),
            Self::Certificate { mount, role } => format!("TLS certificate at auth/{mount}{}", of_role(role)),
            Self::Agent => "the token of the Vault agent".to_owned(),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Auto,
    Token,
    AppRole,
    Kubernetes,
    Jwt,
    Userpass,
    Ldap,
    Certificate,
    Agent,
}

impl Method {
    const NAMES: [(&'static str, Self); 9] = [
        ("auto", Self::Auto),
        ("token", Self::Token),
        ("approle", Self::AppRole),
        ("kubernetes", Self::Kubernetes),
        ("jwt", Self::Jwt),
        ("userpass", Self::Userpass),
        ("ldap", Self::Ldap),
        ("cert", Self::Certificate),
        ("agent", Self::Agent),
    ];
    /// Its name in the settings.
    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, method)| *method == self).map_or("", |(name, _)| name)
    }

    /// What `auto` looks for, in this order; the token helper's file comes after all of them.
    const AUTO: [Self; 8] = [
        Self::Token,
        Self::AppRole,
        Self::Kubernetes,
        Self::Jwt,
        Self::Userpass,
        Self::Ldap,
        Self::Certificate,
        Self::Agent,
    ];
}

/// The login to use, and why.
pub struct LoginChoice {
    /// The login.
    pub login: Login,
    /// Why this one.
    pub reason: String,
    /// The methods that `auto` looked for before, each with what it lacks.
    pub passed_by: Vec<PassedBy>,
}

/// A method that is not configured.
#[derive(Clone, Debug, PartialEq)]
pub struct PassedBy {
    /// Its name in the settings.
    pub method: &'static str,
    /// What it lacks.
    pub reason: String,
}

/// How far a method is configured.
enum Found {
    Nothing,
    /// Some of it is set, and these variables are not.
    Part(Vec<&'static Variable>),
    /// All of it; the variable is the one that shows it.
    All(Login, &'static Variable),
}

/// The variables of every method, as they are set.
pub struct Logins {
    method: Method,
    mount: Option<String>,
    token: Option<SecretString>,
    role_id: Option<String>,
    secret_id: SecretId,
    role: Option<String>,
    jwt_path: Option<PathBuf>,
    username: Option<String>,
    password: Option<SecretString>,
    has_certificate: bool,
    has_agent: bool,
    token_file: Option<PathBuf>,
}

impl Logins {
    /// Reads the variables. `has_certificate` and `has_agent` say whether those are configured.
    pub fn read(reader: &mut Reader<'_>, has_certificate: bool, has_agent: bool) -> Self {
        let method = reader.choice(&var::MLFLOW_VAULT_AUTH_METHOD, &Method::NAMES, Method::Auto);
        let username = reader.text(&var::MLFLOW_VAULT_USERNAME);
        if let Some(name) = username.as_deref().filter(|name| name.split('/').any(is_odd)) {
            reader.invalid(&var::MLFLOW_VAULT_USERNAME, name, None);
        }
        Self {
            method,
            mount: mount(reader, &var::MLFLOW_VAULT_AUTH_MOUNT),
            token: secret_for_header(reader, &var::VAULT_TOKEN),
            role_id: reader.text(&var::VAULT_ROLE_ID),
            secret_id: secret_id(reader),
            role: reader.text(&var::MLFLOW_VAULT_ROLE),
            jwt_path: reader.text(&var::MLFLOW_VAULT_JWT_PATH).map(PathBuf::from),
            username,
            password: reader.password(&var::MLFLOW_VAULT_PASSWORD),
            has_certificate,
            has_agent,
            token_file: reader.home().map(|home| home.join(TOKEN_FILE)),
        }
    }

    /// The login that is asked for, or the first that is configured; else the variables that are lacking.
    pub fn choose(&self) -> std::result::Result<LoginChoice, Vec<&'static Variable>> {
        if self.method != Method::Auto {
            let reason = format!("{} is {}", var::MLFLOW_VAULT_AUTH_METHOD.name, self.method.name());
            let passed_by = Vec::new();
            return match (self.found(self.method), &self.token_file) {
                (Found::All(login, _), _) => Ok(LoginChoice { login, reason, passed_by }),
                (Found::Part(lacking), _) => Err(lacking),
                (Found::Nothing, Some(file)) if self.method == Method::Token => {
                    let reason = format!("{reason}, and {} is not set", var::VAULT_TOKEN.name);
                    Ok(LoginChoice { login: Login::TokenFile(file.clone()), reason, passed_by })
                }
                (Found::Nothing, _) => Err(self.needs(self.method)),
            };
        }
        let mut part = None;
        let mut passed_by = Vec::new();
        for method in Method::AUTO {
            match self.found(method) {
                Found::All(login, shown_by) => {
                    let reason = format!("{} is set", shown_by.name);
                    return Ok(LoginChoice { login, reason, passed_by });
                }
                Found::Part(lacking) => part = part.or(Some(lacking)),
                Found::Nothing => {
                    let lacking: Vec<_> = self.needs(method).iter().map(|variable| variable.name).collect();
                    let reason = format!("not configured ({})", lacking.join(", "));
                    passed_by.push(PassedBy { method: method.name(), reason });
                }
            }
        }
        // A login that was begun in the settings is to be completed: the file's token may be anybody's, and old.
        match (part, &self.token_file) {
            (Some(lacking), _) => Err(lacking),
            (None, Some(file)) if file.is_file() => {
                let reason = "no login is configured, and the file exists".to_owned();
                Ok(LoginChoice { login: Login::TokenFile(file.clone()), reason, passed_by })
            }
            _ => Err(self.needs(Method::Token)),
        }
    }

    fn found(&self, method: Method) -> Found {
        let auto = self.method == Method::Auto;
        match method {
            Method::Auto => Found::Nothing,
            Method::Token => match &self.token {
                Some(token) => Found::All(Login::Token(token.clone()), &var::VAULT_TOKEN),
                None => Found::Nothing,
            },
            Method::AppRole => match (&self.role_id, &self.secret_id) {
                (Some(role_id), secret_id) => Found::All(
                    Login::AppRole {
                        mount: self.mount_or("approle"),
                        role_id: role_id.clone(),
                        secret_id: secret_id.clone(),
                    },
                    &var::VAULT_ROLE_ID,
                ),
                (None, SecretId::None) => Found::Nothing,
                (None, _) => Found::Part(vec![&var::VAULT_ROLE_ID]),
            },
            Method::Kubernetes if auto && !self.is_in_kubernetes() => Found::Nothing,
            Method::Kubernetes => match &self.role {
                Some(_) => Found::All(self.jwt("kubernetes"), &var::MLFLOW_VAULT_ROLE),
                None if self.jwt_path.is_some() => Found::Part(vec![&var::MLFLOW_VAULT_ROLE]),
                None => Found::Nothing,
            },
            Method::Jwt => match (&self.role, &self.jwt_path) {
                (Some(_), Some(_)) => Found::All(self.jwt("jwt"), &var::MLFLOW_VAULT_JWT_PATH),
                (None, Some(_)) if !auto => Found::All(self.jwt("jwt"), &var::MLFLOW_VAULT_JWT_PATH),
                (None, Some(_)) => Found::Part(vec![&var::MLFLOW_VAULT_ROLE]),
                (Some(_), None) => Found::Part(vec![&var::MLFLOW_VAULT_JWT_PATH]),
                (None, None) => Found::Nothing,
            },
            Method::Ldap if auto && !self.is_mounted_as("ldap") => Found::Nothing,
            Method::Userpass if auto && self.is_mounted_as("ldap") => Found::Nothing,
            Method::Userpass => self.password_login("userpass"),
            Method::Ldap => self.password_login("ldap"),
            Method::Certificate if self.has_certificate => Found::All(
                Login::Certificate { mount: self.mount_or("cert"), role: self.role.clone() },
                &var::VAULT_CLIENT_CERT,
            ),
            Method::Agent if self.has_agent => Found::All(Login::Agent, &var::VAULT_AGENT_ADDR),
            Method::Certificate | Method::Agent => Found::Nothing,
        }
    }

    /// The variables that a method can't do without.
    fn needs(&self, method: Method) -> Vec<&'static Variable> {
        match method {
            Method::Auto | Method::Token => vec![&var::VAULT_TOKEN],
            Method::AppRole => vec![&var::VAULT_ROLE_ID],
            Method::Kubernetes => vec![&var::MLFLOW_VAULT_ROLE],
            Method::Jwt => vec![&var::MLFLOW_VAULT_JWT_PATH],
            Method::Userpass | Method::Ldap => vec![&var::MLFLOW_VAULT_USERNAME, &var::MLFLOW_VAULT_PASSWORD],
            Method::Certificate => vec![&var::VAULT_CLIENT_CERT, &var::VAULT_CLIENT_KEY],
            Method::Agent => vec![&var::VAULT_AGENT_ADDR],
        }
    }

    fn mount_or(&self, default: &str) -> String {
        self.mount.clone().unwrap_or_else(|| default.to_owned())
    }

    /// Whether the token file is one that Kubernetes mounts. Both methods log in alike; only their mounts differ.
    fn is_in_kubernetes(&self) -> bool {
        match &self.jwt_path {
            Some(path) => path.starts_with(PROJECTED_TOKENS),
            None => self.role.is_some() && Path::new(SERVICE_ACCOUNT_TOKEN).is_file(),
        }
    }

    fn is_mounted_as(&self, method: &str) -> bool {
        self.mount.as_ref().is_some_and(|mount| mount.rsplit('/').next().is_some_and(|last| last.starts_with(method)))
    }

    fn jwt(&self, method: &'static str) -> Login {
        Login::Jwt {
            method,
            mount: self.mount_or(method),
            role: self.role.clone(),
            path: self.jwt_path.clone().unwrap_or_else(|| SERVICE_ACCOUNT_TOKEN.into()),
        }
    }

    fn password_login(&self, method: &'static str) -> Found {
        match (&self.username, &self.password) {
            (Some(username), Some(password)) => Found::All(
                Login::Password {
                    method,
                    mount: self.mount_or(method),
                    username: username.clone(),
                    password: password.clone(),
                },
                &var::MLFLOW_VAULT_USERNAME,
            ),
            (Some(_), None) => Found::Part(vec![&var::MLFLOW_VAULT_PASSWORD]),
            (None, Some(_)) => Found::Part(vec![&var::MLFLOW_VAULT_USERNAME]),
            (None, None) => Found::Nothing,
        }
    }
}

fn secret_id(reader: &mut Reader<'_>) -> SecretId {
    let plain = reader.secret(&var::VAULT_SECRET_ID);
    let wrapped = secret_for_header(reader, &var::MLFLOW_VAULT_WRAPPED_SECRET_ID);
    match (plain, wrapped) {
        (Some(_), Some(_)) => {
            reader.error(
                ErrorCode::ConfigConflict,
                format!("{} and {} are both set", var::VAULT_SECRET_ID.name, var::MLFLOW_VAULT_WRAPPED_SECRET_ID.name),
                format!("unset {}: the wrapping token gives the secret id", var::VAULT_SECRET_ID.name),
            );
            SecretId::None
        }
        (Some(plain), None) => SecretId::Plain(plain),
        (None, Some(wrapped)) => SecretId::Wrapped(wrapped),
        (None, None) => SecretId::None,
    }
}
