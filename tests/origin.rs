//! Which host would be dialed: H3 and H4 for the part that needs no Python. The differential test is tests_py/test_urls.py.

use mlflow_secrets_auth::ErrorCode;
use mlflow_secrets_auth::origin::{Origin, Scheme};

fn origin(url: &str) -> Origin {
    Origin::of(url).unwrap_or_else(|error| panic!("{url} was refused: {error}"))
}

fn refusal(url: &str) -> String {
    let error = Origin::of(url).expect_err(url);
    assert_eq!(error.code(), ErrorCode::UrlRefused, "{url}");
    error.to_string()
}

#[test]
fn scheme_host_and_port_are_read() {
    let plain = origin("https://mlflow.example.com/api?x#y");
    assert_eq!((plain.scheme(), plain.host(), plain.port()), (Scheme::Https, "mlflow.example.com", 443));
    let with_port = origin("HTTP://mlflow.example.com:5000");
    assert_eq!((with_port.scheme(), with_port.host(), with_port.port()), (Scheme::Http, "mlflow.example.com", 5000));
}

/// H4: equal hosts are equal, however they are written.
#[test]
fn h4_hosts_are_normalised() {
    for (written, normal) in [
        ("https://MLflow.Example.COM/", "https://mlflow.example.com"),
        ("https://mlflow.example.com./", "https://mlflow.example.com"),
        ("https://mlflow.example.com:443/", "https://mlflow.example.com"),
        ("http://mlflow.example.com:443/", "http://mlflow.example.com:443"),
        ("https://[0:0:0:0:0:0:0:1]:8443/", "https://[::1]:8443"),
        ("https://[2001:DB8::0:1]/", "https://[2001:db8::1]"),
        ("https://192.0.2.1/", "https://192.0.2.1"),
        ("https://a_b.example.com/", "https://a_b.example.com"),
    ] {
        assert_eq!(origin(written).to_string(), normal);
        assert_eq!(origin(written), origin(normal));
    }
}

/// H3: everything that two parsers could read differently is refused.
#[test]
fn h3_what_is_odd_is_refused() {
    for url in [
        "",
        "mlflow.example.com",
        "https:mlflow.example.com",
        "ftp://mlflow.example.com/",
        "https://",
        "https:///path",
        "https://./",
        "https://u@mlflow.example.com/",
        "https://u:p@mlflow.example.com/",
        "https://mlflow.example.com\\@evil.com/",
        "https://mlflow.example.com\\",
        "https://mlflow.example.com/\\evil.com",
        "https://mlflow.example.com/a b",
        "https://mlflow.example.com\t/",
        "https://mlflow.example.com/\n",
        "https://mlflow.example.com/\x7f",
        "https://mlflow%2eexample.com/",
        "https://mlflow..example.com/",
        "https://.mlflow.example.com/",
        "https://mlflow.example.com../",
        "https://bücher.example/",
        "https://*.example.com/",
        "https://mlflow.example.com:/",
        "https://mlflow.example.com:0/",
        "https://mlflow.example.com:080/",
        "https://mlflow.example.com:+80/",
        "https://mlflow.example.com:65536/",
        "https://mlflow.example.com:80:80/",
        "https://[::1/",
        "https://::1/",
        "https://[::1]x/",
        "https://[::1]:x/",
        "https://[fe80::1%25eth0]/",
        "https://[fe80::1%eth0]/",
        "https://[mlflow.example.com]/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.0.0.01/",
        "https://256.0.0.1/",
        "https://1.2.3.4.5/",
        "https://example.0x1f/",
    ] {
        refusal(url);
    }
    refusal(&format!("https://{}.com/", "a".repeat(64)));
    refusal(&format!("https://{}/", ["a".repeat(60).as_str(); 5].join(".")));
}

/// H3: the refusal shows the URL without what may be secret in it, and without what could mess up a terminal.
#[test]
fn a_refusal_does_not_show_secrets() {
    for url in [
        "https://user:canary@mlflow.example.com/",
        "https://user:can/ary@mlflow.example.com/",
        "https://user:can?ary@mlflow.example.com/canary",
        "https://mlflow.example.com\\/?token=canary",
        "https://mlflow.example.com\\/#canary",
    ] {
        let text = refusal(url);
        assert!(!text.contains("canary") && !text.contains("ary@"), "{text}");
    }
    assert!(!refusal("https://a\x1b[31m/").contains('\x1b'));
}

#[test]
fn loopback_is_this_machine_only() {
    for url in ["http://localhost/", "http://a.localhost./", "http://127.0.0.1/", "http://127.9.9.9/", "http://[::1]/"]
    {
        assert!(origin(url).is_loopback(), "{url}");
    }
    for url in
        ["http://localhost.com/", "http://notlocalhost/", "http://128.0.0.1/", "http://[::2]/", "http://10.0.0.1/"]
    {
        assert!(!origin(url).is_loopback(), "{url}");
    }
}

/// H2: the same origin, or the same host's own https on the standard ports.
#[test]
fn h2_what_keeps_the_credential() {
    let keeps = |from: &str, to: &str| origin(from).keeps_credential(&origin(to));
    assert!(keeps("https://a.com/x", "https://A.com:443/y"));
    assert!(keeps("http://a.com/", "https://a.com/"));
    assert!(keeps("http://a.com:80/", "https://a.com:443/"));
    for (from, to) in [
        ("https://a.com/", "https://b.com/"),
        ("https://a.com/", "https://x.a.com/"),
        ("https://a.com/", "https://a.com:8443/"),
        ("https://a.com/", "http://a.com/"),
        ("https://a.com/", "http://a.com:443/"),
        ("http://a.com:5000/", "https://a.com/"),
        ("http://a.com/", "https://a.com:8443/"),
        ("http://a.com/", "https://b.com/"),
    ] {
        assert!(!keeps(from, to), "{from} to {to}");
    }
}

/// H1: a URL that a user wrote may have letters beyond ASCII; one that requests has prepared may not.
#[test]
fn h1_settings_may_be_international() {
    let same = [
        ("https://bücher.example:8443/x", "https://xn--bcher-kva.example:8443"),
        ("https://BÜCHER.example", "https://xn--bcher-kva.example"),
        ("https://mlflow.example.com/bücher", "https://mlflow.example.com"),
    ];
    for (written, normal) in same {
        assert_eq!(Origin::of_setting(written).unwrap().to_string(), normal);
    }
    for url in ["https://ü@bücher.example/", "https://bü cher.example/", "bücher.example", "https://bücher.example:x/"]
    {
        assert_eq!(Origin::of_setting(url).unwrap_err().code(), ErrorCode::UrlRefused, "{url}");
    }
}
