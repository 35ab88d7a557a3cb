//! Which origins may get the credential.

use std::fmt;
use std::net::Ipv6Addr;

use globset::{GlobBuilder, GlobMatcher};

use crate::origin::{Origin, Scheme, normal_host, parse_port};

/// Top-level domains in which nobody can register a name.
const PRIVATE: [&str; 7] = [".local", ".localhost", ".internal", ".intranet", ".lan", ".corp", ".home"];

/// One entry of the allowlist: `[scheme://]host[:port]`, where what is left out is not restricted.
///
/// The host may use the shell's `*`, `?` and `[…]`, which cross dots; letter case does not matter; there are no braces and
/// no backslash escapes. Text that is an IP address, with or without brackets and port, is that address.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    scheme: Option<Scheme>,
    host: HostPattern,
    port: Option<u16>,
}

#[derive(Clone, Debug)]
enum HostPattern {
    Exact(String),
    Glob { text: String, matcher: GlobMatcher },
}

impl Pattern {
    /// Reads one pattern; the error says what is wrong with it, as the end of a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            None => (None, text),
            Some((name, rest)) if name.eq_ignore_ascii_case("https") => (Some(Scheme::Https), rest),
            Some((name, rest)) if name.eq_ignore_ascii_case("http") => (Some(Scheme::Http), rest),
            Some(_) => return Err("its scheme is neither http nor https".to_owned()),
        };
        if rest.contains('/') {
            return Err("it has a path; a pattern is [scheme://]host[:port]".to_owned());
        }
        let (host, port) =
            if rest.parse::<Ipv6Addr>().is_ok() { (format!("[{rest}]"), None) } else { split_port(rest)? };
        Ok(Self { text: text.to_owned(), scheme, host: HostPattern::parse(&host)?, port })
    }

    /// Whether `origin` is one that this pattern means.
    pub fn matches(&self, origin: &Origin) -> bool {
        self.scheme.is_none_or(|scheme| scheme == origin.scheme())
            && self.port.is_none_or(|port| port == origin.port())
            && match &self.host {
                HostPattern::Exact(host) => host == origin.host(),
                HostPattern::Glob { matcher, .. } => matcher.is_match(origin.host()),
            }
    }

    /// Whether this pattern permits plain http to what it matches: it says `http://`, is an exact name, or is `*.local`.
    pub fn permits_http(&self) -> bool {
        self.scheme == Some(Scheme::Http)
            || match &self.host {
                HostPattern::Exact(_) => true,
                HostPattern::Glob { text, .. } => text == "*.local",
            }
    }

    /// A name that matches and that anybody can register, if there is one: `mlflow-*` matches `mlflow-x.attacker.com`,
    /// `*example.com` matches `evilexample.com`. Public suffixes of more than one label (`*.co.uk`) are not known here.
    pub fn foreign_example(&self) -> Option<String> {
        let HostPattern::Glob { text, matcher } = &self.host else { return None };
        let (start, end) =
            (text.find(['*', '?', '[']).unwrap_or(0), text.rfind(['*', '?', ']']).map_or(0, |end| end + 1));
        let (before, after) = (&text[..start], &text[end..]);
        let in_own_domain = after.starts_with('.') && (after[1..].contains('.') || PRIVATE.contains(&after));
        if in_own_domain {
            return None;
        }
        let examples = match after {
            "" => [format!("{before}x.attacker.com"), format!("{before}m")],
            after if after.starts_with('.') => [format!("{before}attacker{after}"), format!("{before}a{after}")],
            after => [format!("{before}evil{after}"), format!("{before}x{after}")],
        };
        // A name of one label, as `mlflow-?` matches, is nobody's to register.
        examples.into_iter().find(|example| example.contains('.') && matcher.is_match(example))
    }

    /// Whether this pattern asks for plain http to another machine.
    pub fn asks_for_http(&self) -> bool {
        let to_itself = match &self.host {
            HostPattern::Exact(host) => Origin::of(&format!("http://{host}")).is_ok_and(|origin| origin.is_loopback()),
            HostPattern::Glob { .. } => false,
        };
        self.scheme == Some(Scheme::Http) && !to_itself
    }

    /// The pattern as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl HostPattern {
    fn parse(text: &str) -> Result<Self, String> {
        let is_ip = text.starts_with('[') && text.trim_matches(['[', ']']).parse::<Ipv6Addr>().is_ok();
        if !is_ip && text.contains(['*', '?', '[']) {
            return Self::parse_glob(text);
        }
        let ascii = if text.is_ascii() { text.to_owned() } else { idna_label(text)? };
        normal_host(&ascii).map(Self::Exact).map_err(str::to_owned)
    }

    fn parse_glob(text: &str) -> Result<Self, String> {
        let labels: Result<Vec<_>, _> = text.strip_suffix('.').unwrap_or(text).split('.').map(glob_label).collect();
        let text = labels?.join(".");
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.*?[]!^".contains(c);
        if let Some(odd) = text.chars().find(|c| !allowed(*c)) {
            return Err(format!("{odd:?} has no meaning in a host pattern"));
        }
        let glob = GlobBuilder::new(&text).literal_separator(false).backslash_escape(false).build();
        let matcher = glob.map_err(|_| "its brackets don't form a character set".to_owned())?.compile_matcher();
        Ok(Self::Glob { text, matcher })
    }
}

/// One label of a glob, in the form that hosts have: lower case, and in ASCII where it is not a glob itself.
fn glob_label(label: &str) -> Result<String, String> {
    if label.is_ascii() {
        return Ok(label.to_ascii_lowercase());
    }
    if label.contains(['*', '?', '[']) {
        return Err(
            "a wildcard can't stand in a label with letters beyond ASCII; write that label in its xn-- form".to_owned()
        );
    }
    idna_label(label)
}

fn idna_label(text: &str) -> Result<String, String> {
    idna::domain_to_ascii_strict(text).map_err(|_| "its host is not a valid international name".to_owned())
}

fn split_port(rest: &str) -> Result<(String, Option<u16>), String> {
    let Some((host, port)) = rest.rsplit_once(':') else { return Ok((rest.to_owned(), None)) };
    if port.ends_with(']') {
        return Ok((rest.to_owned(), None));
    }
    parse_port(port).map(|port| (host.to_owned(), Some(port))).map_err(str::to_owned)
}

/// What the allowlist says about an origin.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<'a> {
    /// It may get the credential: the pattern that matched, and whether plain http is permitted by one that matched.
    Allowed { rule: &'a Pattern, permits_http: bool },
    /// No pattern matches; the one that comes nearest, for the diagnosis.
    NotAllowed { nearest: Option<&'a Pattern> },
}

/// The patterns of `MLFLOW_SECRETS_ALLOWED_HOSTS`.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowlist(Vec<Pattern>);

impl Allowlist {
    /// An allowlist of these patterns.
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Self(patterns)
    }

    /// Its patterns, in the order of the setting.
    pub fn patterns(&self) -> &[Pattern] {
        &self.0
    }

    /// Whether `origin` may get the credential, and which pattern says so.
    pub fn verdict(&self, origin: &Origin) -> Verdict<'_> {
        let mut matching = self.0.iter().filter(|pattern| pattern.matches(origin));
        let Some(rule) = matching.next() else {
            return Verdict::NotAllowed { nearest: self.nearest(origin) };
        };
        let permits_http = rule.permits_http() || matching.any(Pattern::permits_http);
        Verdict::Allowed { rule, permits_http }
    }

    fn nearest(&self, origin: &Origin) -> Option<&Pattern> {
        let likeness = |pattern: &Pattern| {
            let text = pattern.text.rsplit("://").next().unwrap_or_default().to_ascii_lowercase();
            strsim::jaro_winkler(&text, origin.host())
        };
        self.0.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
    }
}
