//! Client certificates as OpenSSL writes them, and the assertion that they sign.
#![cfg(feature = "azure")]

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mlflow_secrets_auth::provider::azure::{CertificateFile, ClientCertificate};
use mlflow_secrets_auth::{Error, ErrorCode};
use serde_json::Value;

const PASSWORD: &str = "open sesame";

fn file(name: &str, password: Option<&str>) -> CertificateFile {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/azure").join(name);
    CertificateFile { path, password: password.map(Into::into), send_chain: false }
}

fn load(name: &str, password: Option<&str>) -> Result<ClientCertificate, Error> {
    ClientCertificate::load(&file(name, password), SystemTime::now())
}

fn problem(name: &str, password: Option<&str>) -> Error {
    match load(name, password) {
        Ok(_) => panic!("{name} was accepted"),
        Err(error) => error,
    }
}

fn part(assertion: &str, index: usize) -> Value {
    let bytes = URL_SAFE_NO_PAD.decode(assertion.split('.').nth(index).expect("three parts")).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The public key of the test's certificate, as in RFC 8017, from behind the header of its SubjectPublicKeyInfo.
fn public_key() -> Vec<u8> {
    let pem = std::fs::read_to_string(file("certificate.pem", None).path).expect("test data");
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(base64).expect("base64");
    // A 2048-bit RSAPublicKey is SEQUENCE of 0x10a bytes, a modulus of 0x101 and the exponent.
    let start = der.windows(8).position(|w| w == [0x30, 0x82, 1, 0x0a, 2, 0x82, 1, 1]).expect("an RSA key");
    der[start..start + 4 + 0x10a].to_vec()
}

#[test]
fn every_form_of_a_key_signs_with_the_same_key() {
    let forms = [
        ("pkcs8.pem", None),
        ("pkcs1.pem", None),
        ("crlf.pem", None),
        ("issuer-first.pem", None),
        ("x509v1.pem", None),
        ("aes256-sha256.pem", Some(PASSWORD)),
        ("aes192-sha512.pem", Some(PASSWORD)),
        ("aes128-sha1.pem", Some(PASSWORD)),
        ("pkcs8.pem", Some("not needed")),
    ];
    for (name, password) in forms {
        let certificate = load(name, password).unwrap_or_else(|error| panic!("{name}: {error}"));
        let assertion = certificate.assertion("https://login/t", "client", false, SystemTime::now()).expect("signed");
        let (text, signature) = assertion.rsplit_once('.').expect("three parts");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, public_key());
        key.verify(text.as_bytes(), &signature).unwrap_or_else(|_| panic!("{name}: the signature does not hold"));
    }
}

#[test]
fn the_assertion_says_who_for_whom_and_for_how_long() {
    let certificate = load("issuer-first.pem", None).expect("usable");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let assertion = certificate.assertion("https://login/t", "client", true, now).expect("signed");
    let (header, claims) = (part(&assertion, 0), part(&assertion, 1));
    assert_eq!(header["alg"], "PS256");
    assert_eq!(header["typ"], "JWT");
    assert_eq!(claims["aud"], "https://login/t");
    assert_eq!((&claims["iss"], &claims["sub"]), (&"client".into(), &"client".into()));
    assert_eq!((claims["nbf"].as_u64(), claims["exp"].as_u64()), (Some(1_799_999_700), Some(1_800_000_600)));
    // The leaf first, though the file has its issuer first.
    let chain = header["x5c"].as_array().expect("a chain");
    let leaf = STANDARD.decode(chain[0].as_str().expect("text")).expect("base64");
    assert_eq!(chain.len(), 2);
    assert!(leaf.windows(8).any(|w| w == [0x30, 0x82, 1, 0x0a, 2, 0x82, 1, 1]));
}

#[test]
fn no_two_assertions_are_the_same() {
    let certificate = load("pkcs8.pem", None).expect("usable");
    let now = SystemTime::now();
    let id = || part(&certificate.assertion("a", "c", false, now).expect("signed"), 1)["jti"].to_string();
    assert_ne!(id(), id());
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_the_command_that_mends_it() {
    let cases = [
        ("certificate.pem", None, "holds no private key", "cat private.key certificate.crt"),
        ("aes256-sha256.pem", None, "is encrypted", "AZURE_CLIENT_CERTIFICATE_PASSWORD"),
        ("aes256-sha256.pem", Some("wrong"), "with another password", "AZURE_CLIENT_CERTIFICATE_PASSWORD"),
        ("des3.pem", Some(PASSWORD), "in a way that is not supported", "openssl pkcs8 -topk8 -v2 aes-256-cbc"),
        ("scrypt.pem", Some(PASSWORD), "in a way that is not supported", "openssl pkcs8 -topk8 -v2 aes-256-cbc"),
        ("pbes1.pem", Some(PASSWORD), "in a way that is not supported", "openssl pkcs8 -topk8 -v2 aes-256-cbc"),
        ("legacy.pem", Some(PASSWORD), "in a way that is not supported", "openssl pkcs8 -topk8 -v2 aes-256-cbc"),
        ("store.pfx", Some("x"), "is a PFX", "openssl pkcs12 -in store.pfx -out client.pem -nodes"),
        ("README.md", None, "is not a PEM file", "PRIVATE KEY"),
        ("missing.pem", None, "no such file", "may read"),
    ];
    for (name, password, what, hint) in cases {
        let error = problem(name, password);
        assert_eq!(error.code(), ErrorCode::AzureCertificateInvalid, "{name}");
        assert!(error.message().contains(what), "{name}: {error}");
        assert!(error.hint().contains(hint), "{name}: {error}");
        assert!(!error.to_string().contains(PASSWORD), "{name}");
    }
}

#[test]
fn a_certificate_counts_only_in_its_time() {
    let decades = |count: u64| Duration::from_secs(count * 10 * 365 * 86_400);
    let too_late = ClientCertificate::load(&file("pkcs8.pem", None), SystemTime::now() + decades(11));
    let too_early = ClientCertificate::load(&file("pkcs8.pem", None), SystemTime::now() - decades(2));
    for (result, words) in [(too_late, "has expired, on 21"), (too_early, "is not valid yet, but from 20")] {
        let error = result.err().expect("refused");
        assert_eq!(error.code(), ErrorCode::AzureCertificateExpired);
        assert!(error.message().contains(words), "{error}");
    }
}

/// A file that is damaged in any place is refused or still usable, and nothing breaks down.
#[test]
fn damaged_files_do_no_harm() {
    let folder = std::env::temp_dir().join(format!("azure-certificate-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let damaged = CertificateFile { path: folder.join("c.pem"), password: Some(PASSWORD.into()), send_chain: false };
    for name in ["pkcs8.pem", "pkcs1.pem", "aes256-sha256.pem", "store.pfx"] {
        let whole = std::fs::read(file(name, None).path).expect("test data");
        for place in (0..whole.len()).step_by(37) {
            for (byte, keep) in [(b'A', whole.len()), (b'-', whole.len()), (whole[place], place)] {
                let mut content = whole.clone();
                content[place] = byte;
                content.truncate(keep);
                std::fs::write(&damaged.path, &content).expect("written");
                if let Err(error) = ClientCertificate::load(&damaged, SystemTime::now()) {
                    assert!(!error.message().is_empty());
                }
            }
        }
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}
