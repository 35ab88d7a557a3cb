//! The way to the backends: which CA certificates are trusted, and which proxies stand on it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorCode, Result};
use crate::http::plain_io;
use crate::origin::{Origin, redacted};
use crate::secret::SecretString;
use crate::settings::variables::{self as var, Variable};
use crate::settings::{Environment, Reader};

/// The way to every backend. A backend's own settings may put other roots in place of these.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// The CA certificates to trust.
    pub roots: TrustRoots,
    /// The proxies.
    pub proxies: Proxies,
}

impl Network {
    /// Reads the variables of the section Network.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        Self { roots: TrustRoots::read(reader), proxies: Proxies::read(reader) }
    }

    /// The same proxies with a backend's own `roots`, where it has any.
    pub fn trusting(&self, roots: Option<&TrustRoots>) -> Self {
        Self { roots: roots.unwrap_or(&self.roots).clone(), proxies: self.proxies.clone() }
    }
}

/// The CA certificates that a backend's certificate must lead to.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TrustRoots {
    /// Those of the operating system.
    #[default]
    System,
    /// Those in these places, and no others.
    Only(Vec<RootPlace>),
}

/// A PEM file, or a directory of them, that a variable names.
#[derive(Clone, Debug, PartialEq)]
pub struct RootPlace {
    /// The variable, for error texts.
    pub variable: &'static str,
    /// The file or directory.
    pub path: PathBuf,
}

impl TrustRoots {
    /// The roots for every backend: `REQUESTS_CA_BUNDLE`, else `SSL_CERT_FILE` and `SSL_CERT_DIR` together, else the
    /// system's.
    fn read(reader: &mut Reader<'_>) -> Self {
        let bundle = reader.text(&var::REQUESTS_CA_BUNDLE);
        let file = reader.text(&var::SSL_CERT_FILE);
        let folders = reader.text(&var::SSL_CERT_DIR);
        if let Some(bundle) = bundle {
            return Self::only(&var::REQUESTS_CA_BUNDLE, bundle);
        }
        let place = |variable: &Variable, path: PathBuf| RootPlace { variable: variable.name, path };
        let mut places: Vec<_> = file.map(|file| place(&var::SSL_CERT_FILE, file.into())).into_iter().collect();
        // Several directories are separated as in PATH, which is OpenSSL's rule.
        let folders = folders.iter().flat_map(std::env::split_paths).filter(|path| !path.as_os_str().is_empty());
        places.extend(folders.map(|folder| place(&var::SSL_CERT_DIR, folder)));
        if places.is_empty() { Self::System } else { Self::Only(places) }
    }

    /// The certificates in the place that `variable` names, and no others.
    pub fn only(variable: &Variable, path: impl Into<PathBuf>) -> Self {
        Self::Only(vec![RootPlace { variable: variable.name, path: path.into() }])
    }

    /// The places; none where the system's roots count.
    pub fn places(&self) -> &[RootPlace] {
        match self {
            Self::System => &[],
            Self::Only(places) => places,
        }
    }

    /// The certificates; `None` where the system's count.
    ///
    /// # Errors
    /// [`ErrorCode::ConfigFile`] for a place that can't be read, and where no place holds a certificate.
    pub(crate) fn certificates(&self) -> Result<Option<Vec<reqwest::Certificate>>> {
        let Self::Only(places) = self else { return Ok(None) };
        let mut certificates = Vec::new();
        for place in places {
            let unreadable = |e: io::Error| self.unusable(&format!("{place}, which can't be read: {}", plain_io(&e)));
            for file in files(&place.path).map_err(unreadable)? {
                let pem = std::fs::read(&file).map_err(unreadable)?;
                certificates.extend(reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default());
            }
        }
        if certificates.is_empty() {
            let verb = if places.len() == 1 { "holds" } else { "hold" };
            return Err(self.unusable(&format!("{self}, which {verb} no PEM certificate")));
        }
        Ok(Some(certificates))
    }

    fn unusable(&self, what: &str) -> Error {
        let mut names: Vec<_> = self.places().iter().map(|place| place.variable).collect();
        names.dedup();
        let names = names.join(" or ");
        Error::new(
            ErrorCode::ConfigFile,
            what,
            format!("let {names} name a PEM file with CA certificates, or a directory of them, or unset it"),
        )
    }
}

/// `SSL_CERT_FILE names /etc/ssl/company.pem`.
impl fmt::Display for RootPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} names {}", self.variable, self.path.display())
    }
}

impl fmt::Display for TrustRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("the system's"),
            Self::Only(places) => {
                f.write_str(&places.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "))
            }
        }
    }
}

/// The file itself, or the files in a directory; those in directories below it don't count.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = entries.collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

/// The proxies for backends that are not on this machine or next to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    except: Option<String>,
}

/// A proxy's URL, which may hold a password.
#[derive(Clone, PartialEq)]
struct Proxy(SecretString);

impl Proxies {
    /// The proxies that `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` name, and the exceptions in `NO_PROXY`.
    fn read(reader: &mut Reader<'_>) -> Self {
        let https = reader.in_either_case(&var::HTTPS_PROXY);
        let mut http = reader.in_either_case(&var::HTTP_PROXY);
        if reader.environment().contains("REQUEST_METHOD") {
            // In a CGI script a client sets HTTP_PROXY by sending a header `Proxy`: only lower case is the owner's.
            http = lower_case_only(reader.environment(), &var::HTTP_PROXY);
        }
        let every = reader.in_either_case(&var::ALL_PROXY);
        let mut parse = |variable, text: Option<&str>| text.and_then(|text| Proxy::parse(reader, variable, text));
        let unnamed = https.is_none() || http.is_none();
        let every = parse(&var::ALL_PROXY, every.filter(|_| unnamed));
        let https = if https.is_some() { parse(&var::HTTPS_PROXY, https) } else { every.clone() };
        let http = if http.is_some() { parse(&var::HTTP_PROXY, http) } else { every };
        Self { https, http, except: reader.in_either_case(&var::NO_PROXY).map(str::to_ascii_lowercase) }
    }

    /// They, as the HTTP client wants them.
    ///
    /// # Errors
    /// Those of the client, which takes every URL that was accepted here.
    pub(crate) fn rules(&self) -> reqwest::Result<Vec<reqwest::Proxy>> {
        let except = || self.except.as_deref().and_then(reqwest::NoProxy::from_string);
        let https = self.https.as_ref().map(|proxy| reqwest::Proxy::https(proxy.0.expose()));
        let http = self.http.as_ref().map(|proxy| reqwest::Proxy::http(proxy.0.expose()));
        [https, http].into_iter().flatten().map(|proxy| Ok(proxy?.no_proxy(except()))).collect()
    }

    /// The proxy for backends that speak TLS, or those that don't, as it may be shown.
    pub(crate) fn shown(&self, tls: bool) -> String {
        let proxy = if tls { &self.https } else { &self.http };
        let Some(proxy) = proxy else { return "none".to_owned() };
        let except = self.except.as_ref().map(|list| format!(", except for {list}")).unwrap_or_default();
        format!("{}{except}", redacted(proxy.0.expose()))
    }
}

fn lower_case_only<'a>(environment: &'a Environment, variable: &Variable) -> Option<&'a str> {
    environment.get(variable.lower_case?)
}

impl Proxy {
    fn parse(reader: &mut Reader<'_>, variable: &'static Variable, text: &str) -> Option<Self> {
        // As in requests, a bare host means http.
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // Not a URL library's reading: it would leave a copy of the password behind.
        let origin = rest.rsplit('@').next().and_then(|host| Origin::of(&format!("{scheme}://{host}")).ok());
        let odd = |c: char| matches!(c, '/' | '?' | '#' | '\\') || c.is_whitespace() || c.is_control();
        if origin.is_some() && !rest.contains(odd) {
            return Some(Self(SecretString::new(format!("{scheme}://{rest}"))));
        }
        reader.invalid(variable, text, None);
        None
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(self.0.expose()))
    }
}
