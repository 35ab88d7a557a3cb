//! Which host would be dialed: scheme, host and port, or a refusal.
//!
//! Parsers disagree about odd URLs, and `requests` has used two of them over the years. So this one does not try to be
//! clever: what is not plain is refused, and for what is plain all of them agree (a differential test proves it).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::error::{Error, ErrorCode, Result};

/// http or https.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain text on the wire; default port 80.
    Http,
    /// TLS; default port 443.
    Https,
}

impl Scheme {
    /// The scheme's name as it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that is used when the URL names none.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Scheme, host and port of a request: what decides about the credential, and where it may be remembered.
///
/// The host is lower case, without a trailing dot; an IPv6 address is in its shortest form and without brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: Scheme,
    host: String,
    port: u16,
}

impl Origin {
    /// Reads the origin of `url`, which must be as `requests` has prepared it: host in ASCII.
    ///
    /// # Errors
    /// [`ErrorCode::UrlRefused`] for everything that two parsers could read differently: user information, backslash,
    /// space or control character, `%` in the host, an IPv6 zone, a host that is a number but not a plain IPv4 address,
    /// an empty label, a port that is not 1 to 65535, and every scheme but http and https.
    pub fn of(url: &str) -> Result<Self> {
        Self::parse(url).map_err(|reason| refused(url, reason))
    }

    /// As [`of`](Self::of), for a URL that a user wrote and `requests` has not prepared: its host may have letters beyond
    /// ASCII.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn of_setting(url: &str) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else { return Self::of(url) };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.is_ascii() {
            return Self::of(url);
        }
        let (host, port) = authority.split_at(authority.rfind(':').unwrap_or(authority.len()));
        match idna::domain_to_ascii_strict(host) {
            Ok(host) => Self::of(&format!("{scheme}://{host}{port}{path}")),
            Err(_) => Self::of(url),
        }
    }

    fn parse(url: &str) -> std::result::Result<Self, &'static str> {
        if url.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err("it holds a space or a control character");
        }
        if url.contains('\\') {
            return Err("it holds a backslash");
        }
        let (scheme, rest) = split_scheme(url).ok_or("it is neither http:// nor https://")?;
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        if authority.contains('@') {
            return Err("it holds a user name or a password");
        }
        let (host, port) = split_port(authority)?;
        let port = match port {
            None => scheme.default_port(),
            Some(text) => parse_port(text)?,
        };
        Ok(Self { scheme, host: normal_host(host)?, port })
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host in its normal form.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, also when the URL leaves it out.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the host is this machine: `localhost`, `*.localhost`, 127.0.0.0/8, `::1`.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.as_str();
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
            || host.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether the host is an address at which a cloud tells a machine or a container who it is: 169.254.0.0/16, where
    /// EC2, ECS, EKS, Azure's machines and its App Service have theirs, or one of AWS's in IPv6.
    pub fn is_metadata(&self) -> bool {
        self.host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_link_local())
            || matches!(self.host.as_str(), "fd00:ec2::254" | "fd00:ec2::23")
    }

    /// Whether whoever is on the way can read along: plain http to a host that is neither this machine nor next to it.
    pub fn is_exposed(&self) -> bool {
        self.scheme == Scheme::Http && !self.is_loopback() && !self.is_metadata()
    }

    /// Whether a redirect from here to `next` may keep our headers: the same origin, or the same host from http on
    /// port 80 to https on port 443, as in `requests`.
    pub fn keeps_credential(&self, next: &Origin) -> bool {
        self == next || self.is_upgraded_by(next)
    }

    /// Whether `next` is this host's own https: http on port 80 to https on port 443.
    pub fn is_upgraded_by(&self, next: &Origin) -> bool {
        self.host == next.host
            && (self.scheme, self.port) == (Scheme::Http, 80)
            && (next.scheme, next.port) == (Scheme::Https, 443)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{}://{open}{}{close}", self.scheme.as_str(), self.host)?;
        if self.port == self.scheme.default_port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

fn split_scheme(url: &str) -> Option<(Scheme, &str)> {
    let (name, rest) = url.split_once("://")?;
    if name.eq_ignore_ascii_case("https") {
        Some((Scheme::Https, rest))
    } else if name.eq_ignore_ascii_case("http") {
        Some((Scheme::Http, rest))
    } else {
        None
    }
}

fn split_port(authority: &str) -> std::result::Result<(&str, Option<&str>), &'static str> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (_, after) = rest.split_once(']').ok_or("its IPv6 address has no closing bracket")?;
        let host = &authority[..authority.len() - after.len()];
        return match after {
            "" => Ok((host, None)),
            _ => after.strip_prefix(':').map(|port| (host, Some(port))).ok_or("its IPv6 address has a suffix"),
        };
    }
    match authority.split_once(':') {
        None => Ok((authority, None)),
        Some((_, port)) if port.contains(':') => Err("its host has several colons and no brackets"),
        Some((host, port)) => Ok((host, Some(port))),
    }
}

/// A port in its plain form.
pub(crate) fn parse_port(text: &str) -> std::result::Result<u16, &'static str> {
    // "host:" means the default port to some parsers and nothing to others; "+80" and "080" are numbers to Python.
    if text.is_empty() || text.len() > 5 || text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err("its port is not a number from 1 to 65535");
    }
    text.parse().map_err(|_| "its port is not a number from 1 to 65535")
}

/// The one form in which hosts are compared: see [`Origin`].
pub(crate) fn normal_host(host: &str) -> std::result::Result<String, &'static str> {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        if inner.contains('%') {
            return Err("its IPv6 address names a zone");
        }
        return inner.parse::<Ipv6Addr>().map(|ip| ip.to_string()).map_err(|_| "its IPv6 address is malformed");
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() {
        return Err("it has no host");
    }
    if host.len() > 253 {
        return Err("its host is longer than 253 characters");
    }
    if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        return Err("its host has a character other than letters, digits, hyphen, dot and underscore");
    }
    if host.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err("its host has an empty label or one of more than 63 characters");
    }
    let host = host.to_ascii_lowercase();
    if ends_in_number(&host) && host.parse::<Ipv4Addr>().is_err() {
        // The system's resolver reads 0177.1, 0x7f000001 and 2130706433 as addresses.
        return Err("its host is a number, but not an IPv4 address in its plain form");
    }
    Ok(host)
}

/// Whether the last label would make a resolver read the host as an IPv4 address.
fn ends_in_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    hexadecimal || (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
}

fn refused(url: &str, reason: &'static str) -> Error {
    Error::new(
        ErrorCode::UrlRefused,
        format!("{} is not a URL that can be given a credential: {reason}", redacted(url)),
        "write the URL plainly, as http(s)://host[:port]/path; credentials come from the secrets manager, not from the URL",
    )
}

/// What was meant to be a URL or a part of one, as it may be shown: unchanged, but for user information.
pub(crate) fn without_user(text: &str) -> String {
    if text.contains('@') { redacted(text) } else { text.to_owned() }
}

/// `url` as it may be shown: without user information, query and fragment, and with everything unprintable escaped.
pub(crate) fn redacted(url: &str) -> String {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = start + url[start..].find(['/', '?', '#']).unwrap_or(url.len() - start);
    let shown = match url.rfind('@') {
        None => url[..url.find(['?', '#']).unwrap_or(url.len())].to_owned(),
        Some(at) if at < end => format!("{}***{}", &url[..start], &url[at..end]),
        // A password may itself hold "/", "?" or "#": then nothing behind the scheme is certain to be harmless.
        Some(_) => format!("{}***", &url[..start]),
    };
    let text: String = shown.chars().take(200).flat_map(char::escape_debug).collect();
    if text.is_empty() { "(empty)".to_owned() } else { text }
}
