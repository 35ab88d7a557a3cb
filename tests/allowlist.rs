//! Which origins may get the credential: H4 and H5 for the part that needs no Python.

use mlflow_secrets_auth::allowlist::{Allowlist, Pattern, Verdict};
use mlflow_secrets_auth::origin::Origin;

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
}

fn origin(url: &str) -> Origin {
    Origin::of(url).unwrap()
}

fn matches(text: &str, url: &str) -> bool {
    pattern(text).matches(&origin(url))
}

/// H4: names, globs, ports, schemes and addresses mean what the contract says.
#[test]
fn h4_what_a_pattern_matches() {
    for (text, url) in [
        ("mlflow.example.com", "https://mlflow.example.com/"),
        ("MLflow.Example.com.", "https://mlflow.example.com:8443/"),
        ("mlflow.example.com", "http://mlflow.example.com./"),
        ("*.example.com", "https://a.example.com/"),
        ("*.example.com", "https://a.b.example.com/"),
        ("*.EXAMPLE.com.", "https://a.example.com./"),
        ("mlflow-*", "https://mlflow-prod.example.com/"),
        ("api.*.com", "https://api.x.com/"),
        ("api.*.com", "https://api.x.y.com/"),
        ("mlflow-?.example.com", "https://mlflow-1.example.com/"),
        ("mlflow-[12].example.com", "https://mlflow-2.example.com/"),
        ("mlflow-[!12].example.com", "https://mlflow-3.example.com/"),
        ("mlflow-[a-c].example.com", "https://mlflow-b.example.com/"),
        ("*", "https://anything.example/"),
        ("*", "https://[2001:db8::1]/"),
        ("https://*.example.com:8443", "https://a.example.com:8443/"),
        ("HTTPS://mlflow.example.com", "https://mlflow.example.com/"),
        ("*:5000", "http://a.example:5000/"),
        ("192.0.2.1", "https://192.0.2.1/"),
        ("192.0.2.*", "https://192.0.2.77/"),
        ("::1", "https://[::1]/"),
        ("[::1]", "https://[0::1]:8443/"),
        ("[0:0::1]:8443", "https://[::1]:8443/"),
        ("https://[::1]", "https://[::1]/"),
        ("bücher.example", "https://xn--bcher-kva.example/"),
        ("*.bücher.example", "https://a.xn--bcher-kva.example/"),
    ] {
        assert!(matches(text, url), "{text} should match {url}");
    }
    for (text, url) in [
        ("*.example.com", "https://example.com/"),
        ("*.example.com", "https://evilexample.com/"),
        ("*.example.com", "https://a.example.com.evil.com/"),
        ("*.example.com", "https://a.example.org/"),
        ("mlflow.example.com", "https://a.mlflow.example.com/"),
        ("mlflow.example.com", "https://mlflow.example.com.evil.com/"),
        ("mlflow.example.com", "https://mlflowXexample.com/"),
        ("mlflow-[12].example.com", "https://mlflow-3.example.com/"),
        ("mlflow-[!12].example.com", "https://mlflow-1.example.com/"),
        ("https://mlflow.example.com", "http://mlflow.example.com/"),
        ("mlflow.example.com:443", "https://mlflow.example.com:8443/"),
        ("[::1]:8443", "https://[::1]/"),
        ("::1", "https://[::2]/"),
    ] {
        assert!(!matches(text, url), "{text} should not match {url}");
    }
}

/// A pattern that can't be meant is an error, with its reason.
#[test]
fn what_is_no_pattern() {
    for (text, reason) in [
        ("https://mlflow.example.com/path", "path"),
        ("mlflow.example.com/", "path"),
        ("ftp://mlflow.example.com", "scheme"),
        ("mlflow.example.com:0", "port"),
        ("mlflow.example.com:x", "port"),
        ("mlflow.example.com:+80", "port"),
        ("mlflow.example.com:080", "port"),
        ("mlflow.example.com:65536", "port"),
        ("user@mlflow.example.com", "character"),
        ("{a,b}.example.com", "character"),
        ("*.{a,b}.com", "no meaning"),
        ("*\\.example.com", "no meaning"),
        ("*.exa mple.com", "no meaning"),
        ("mlflow-[12.example.com", "character set"),
        ("[fe80::1%eth0]", "no meaning"),
        ("b*ücher.example", "wildcard"),
        ("2130706433", "number"),
        ("127.1", "number"),
        ("a..b", "empty label"),
        ("https://", "no host"),
    ] {
        let why = Pattern::parse(text).expect_err(text);
        assert!(why.contains(reason), "{text}: {why}");
    }
}

/// H5: plain http is permitted by an exact name, `*.local`, or a pattern that says `http://`; not by a wildcard alone.
#[test]
fn h5_which_pattern_permits_plain_http() {
    for (text, permits) in [
        ("mlflow.example.com", true),
        ("192.0.2.1", true),
        ("*.local", true),
        ("*.LOCAL", true),
        ("http://*.example.com", true),
        ("http://*", true),
        ("*.example.com", false),
        ("*", false),
        ("*.x.local", false),
        ("mlflow.loca[l]", false),
    ] {
        assert_eq!(pattern(text).permits_http(), permits, "{text}");
    }
}

/// H5: it is enough that one of several matching patterns permits it, wherever it stands in the list.
#[test]
fn h5_any_matching_pattern_may_permit_plain_http() {
    let list = Allowlist::new(["*.example.com", "mlflow.example.com", "other.org"].map(pattern).to_vec());
    let permits = |url: &str| match list.verdict(&origin(url)) {
        Verdict::Allowed { rule, permits_http } => Some((rule.as_str().to_owned(), permits_http)),
        Verdict::NotAllowed { .. } => None,
    };
    assert_eq!(permits("http://mlflow.example.com/"), Some(("*.example.com".to_owned(), true)));
    assert_eq!(permits("http://a.example.com/"), Some(("*.example.com".to_owned(), false)));
    assert_eq!(permits("http://example.com/"), None);
}

/// For the diagnosis: the pattern that comes nearest.
#[test]
fn the_nearest_pattern_is_named() {
    let list = Allowlist::new(["*.other.org", "mlflow.example.com"].map(pattern).to_vec());
    let Verdict::NotAllowed { nearest } = list.verdict(&origin("https://mlflow.exmaple.com/")) else {
        panic!("a typing error was allowed");
    };
    assert_eq!(nearest.map(Pattern::as_str), Some("mlflow.example.com"));
}

/// Whoever can register a name can match a pattern that ends in a wildcard.
#[test]
fn patterns_that_match_what_others_can_register_are_known() {
    let example = |text: &str| pattern(text).foreign_example();
    for (text, foreign) in [
        ("*", "x.attacker.com"),
        ("mlflow-*", "mlflow-x.attacker.com"),
        ("a.co?", "a.com"),
        ("*.com", "attacker.com"),
        ("*example.com", "evilexample.com"),
        ("https://mlflow-*:8443", "mlflow-x.attacker.com"),
    ] {
        assert_eq!(example(text).as_deref(), Some(foreign), "{text}");
    }
    for text in
        ["*.example.com", "example.com", "*.local", "mlflow-?", "mlflow-[0-9].example.com", "127.0.0.1", "[::1]"]
    {
        assert_eq!(example(text), None, "{text}");
    }
}

#[test]
fn patterns_that_ask_for_plain_http_to_another_machine_are_known() {
    assert!(pattern("http://mlflow.example.com").asks_for_http() && pattern("http://*.example.com").asks_for_http());
    assert!(!pattern("mlflow.example.com").asks_for_http() && !pattern("https://a.example.com").asks_for_http());
    assert!(!pattern("http://localhost:5000").asks_for_http() && !pattern("http://127.0.0.1").asks_for_http());
}
