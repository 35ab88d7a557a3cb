//! A service principal's certificate: read from PEM, checked, and signed with. No OpenSSL.
//!
//! <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>

use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::cipher::{AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_SHA256};
use aws_lc_rs::{digest, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use der::asn1::{AnyRef, OctetStringRef};
use der::{Decode, Tag, Tagged as _};
use pkcs8::EncryptedPrivateKeyInfo;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::{self, Kdf, Pbkdf2Prf};
use serde_json::json;
use zeroize::Zeroizing;

use super::settings::CertificateFile;
use crate::error::{Error, ErrorCode, Result};
use crate::http::plain_io;
use crate::secret::SecretString;
use crate::settings::variables as var;
use crate::x509::Certificate;

/// No file with a key and a chain is larger.
const MAX_FILE: u64 = 1 << 20;

/// For how long an assertion holds, and how far back it begins, so that a clock that is a little off does no harm.
const ASSERTION_LIFE: Duration = Duration::from_secs(600);
const CLOCK_SLACK: Duration = Duration::from_secs(300);

/// A certificate that is valid now, with its private key.
pub struct ClientCertificate {
    key: KeyPair,
    leaf: Vec<u8>,
    others: Vec<Vec<u8>>,
}

/// What is wrong with a file, before the file is named.
struct Problem {
    code: ErrorCode,
    what: String,
    hint: String,
}

/// A PEM block.
struct Block {
    label: String,
    /// Whether the older way of encryption, with headers inside the block, was used.
    has_headers: bool,
    der: Zeroizing<Vec<u8>>,
}

impl ClientCertificate {
    /// Reads the file, which must hold a PEM private key and its certificate, in any order, valid at `now`.
    ///
    /// # Errors
    /// [`ErrorCode::AzureCertificateInvalid`], [`ErrorCode::AzureCertificateExpired`].
    pub fn load(file: &CertificateFile, now: SystemTime) -> Result<Self> {
        Self::read(file, now).map_err(|problem| {
            Error::new(
                problem.code,
                format!("{} names {}, {}", var::AZURE_CLIENT_CERTIFICATE_PATH.name, file.path.display(), problem.what),
                problem.hint,
            )
        })
    }

    fn read(file: &CertificateFile, now: SystemTime) -> std::result::Result<Self, Problem> {
        let text = Zeroizing::new(read_file(&file.path)?);
        let blocks = blocks(&text);
        if blocks.is_empty() {
            return Err(not_pem(&file.path, &text));
        }
        let key = private_key(&blocks, file)?;
        let certificates: Vec<_> = blocks.iter().filter(|block| block.label == "CERTIFICATE").collect();
        let mut leaf = None;
        for (index, block) in certificates.iter().enumerate() {
            let facts =
                Certificate::read(&block.der).map_err(|_| invalid("in which a certificate is damaged", RECREATE))?;
            if facts.public_key == key.public_key().as_ref() {
                leaf = Some((index, facts));
                break;
            }
        }
        let (index, facts) = leaf.ok_or_else(|| no_certificate(certificates.len()))?;
        in_time(&facts, now)?;
        let others = certificates.iter().enumerate().filter(|(other, _)| *other != index);
        Ok(Self {
            key,
            leaf: certificates[index].der.to_vec(),
            others: others.map(|(_, block)| block.der.to_vec()).collect(),
        })
    }

    /// A signed statement that we are `client_id`, for the token endpoint `audience`, valid around `now`.
    ///
    /// # Errors
    /// [`ErrorCode::AzureCertificateInvalid`] where the key can't sign, [`ErrorCode::FetchInternal`] without randomness.
    pub fn assertion(&self, audience: &str, client_id: &str, send_chain: bool, now: SystemTime) -> Result<String> {
        let epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut id = [0_u8; 16];
        getrandom::fill(&mut id).map_err(|_| internal("the system gives no random numbers"))?;
        let thumbprint = digest::digest(&digest::SHA256, &self.leaf);
        let mut header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": URL_SAFE_NO_PAD.encode(thumbprint)});
        if send_chain {
            let chain: Vec<_> = [&self.leaf].into_iter().chain(&self.others).map(|der| STANDARD.encode(der)).collect();
            header["x5c"] = json!(chain);
        }
        let claims = json!({
            "aud": audience,
            "iss": client_id,
            "sub": client_id,
            "jti": URL_SAFE_NO_PAD.encode(id),
            "iat": epoch(now - CLOCK_SLACK),
            "nbf": epoch(now - CLOCK_SLACK),
            "exp": epoch(now + ASSERTION_LIFE),
        });
        let encode = |part: &serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let mut text = format!("{}.{}", encode(&header), encode(&claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PSS_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| internal("the certificate's key does not sign"))?;
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(text)
    }
}

const RECREATE: &str = "write the file again, with the private key and the certificate";

fn read_file(path: &Path) -> std::result::Result<Vec<u8>, Problem> {
    let unreadable = |e: std::io::Error| {
        invalid(format!("which can't be read: {}", plain_io(&e)), "name a file that this process may read")
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_FILE {
        return Err(invalid("which is larger than 1 MiB", RECREATE));
    }
    std::fs::read(path).map_err(unreadable)
}

/// Every PEM block of the text that is whole. The crates that read PEM know other labels, or insist on line lengths.
fn blocks(text: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(text);
    let mut blocks = Vec::new();
    let mut rest = text.as_ref();
    while let Some(start) = rest.find("-----BEGIN ") {
        rest = &rest[start + "-----BEGIN ".len()..];
        let Some((label, body)) = rest.split_once("-----") else { break };
        let Some(end) = body.find(&format!("-----END {label}-----")) else { continue };
        let has_headers = body[..end].contains(':');
        let base64: Zeroizing<String> =
            Zeroizing::new(body[..end].chars().filter(|c| !c.is_ascii_whitespace()).collect());
        let der = STANDARD.decode(base64.as_bytes());
        if let Ok(der) = der.or_else(|e| if has_headers { Ok(Vec::new()) } else { Err(e) }) {
            blocks.push(Block { label: label.to_owned(), has_headers, der: Zeroizing::new(der) });
        }
        rest = &body[end..];
    }
    blocks
}

fn private_key(blocks: &[Block], file: &CertificateFile) -> std::result::Result<KeyPair, Problem> {
    let find = |label: &str| blocks.iter().find(|block| block.label == label);
    let key = if let Some(block) = find("ENCRYPTED PRIVATE KEY") {
        KeyPair::from_pkcs8(&decrypted(&block.der, file.password.as_ref())?)
    } else if let Some(block) = find("PRIVATE KEY") {
        KeyPair::from_pkcs8(&block.der)
    } else if let Some(block) = find("RSA PRIVATE KEY") {
        if block.has_headers {
            return Err(unsupported_encryption());
        }
        KeyPair::from_der(&block.der)
    } else if find("EC PRIVATE KEY").is_some() {
        return Err(not_rsa());
    } else {
        return Err(invalid(
            "which holds no private key",
            "put both into one file: `cat private.key certificate.crt > client.pem`",
        ));
    };
    key.map_err(|_| not_rsa())
}

/// The PKCS#8 key inside an encrypted one. The parameters are read by `pkcs5`; aws-lc does the arithmetic.
fn decrypted(der: &[u8], password: Option<&SecretString>) -> std::result::Result<Zeroizing<Vec<u8>>, Problem> {
    let Some(password) = password else {
        return Err(invalid(
            "whose private key is encrypted",
            format!("set {} to its password", var::AZURE_CLIENT_CERTIFICATE_PASSWORD.name),
        ));
    };
    let info = EncryptedPrivateKeyInfo::<&OctetStringRef>::from_der(der).map_err(|_| unsupported_encryption())?;
    let EncryptionScheme::Pbes2(parameters) = &info.encryption_algorithm else { return Err(unsupported_encryption()) };
    let key = derived_key(parameters, password)?;
    let (algorithm, iv) = match parameters.encryption {
        pbes2::EncryptionScheme::Aes128Cbc { iv } => (&AES_128, iv),
        pbes2::EncryptionScheme::Aes192Cbc { iv } => (&AES_192, iv),
        pbes2::EncryptionScheme::Aes256Cbc { iv } => (&AES_256, iv),
        _ => return Err(unsupported_encryption()),
    };
    let mut data = Zeroizing::new(info.encrypted_data.as_bytes().to_vec());
    let cipher = UnboundCipherKey::new(algorithm, &key).and_then(PaddedBlockDecryptingKey::cbc_pkcs7);
    let context = DecryptionContext::Iv128(FixedLength::from(&iv));
    let plain =
        cipher.and_then(|cipher| cipher.decrypt(&mut data, context).map(|plain| Zeroizing::new(plain.to_vec())));
    // A wrong password shows as bad padding, or as something that is no key.
    let plain =
        plain.ok().filter(|plain| AnyRef::from_der(plain.as_slice()).is_ok_and(|any| any.tag() == Tag::Sequence));
    plain.ok_or_else(|| {
        invalid(
            "whose private key is encrypted with another password",
            format!("set {} to the password of this file", var::AZURE_CLIENT_CERTIFICATE_PASSWORD.name),
        )
    })
}

fn derived_key(
    parameters: &pbes2::Parameters,
    password: &SecretString,
) -> std::result::Result<Zeroizing<Vec<u8>>, Problem> {
    let Kdf::Pbkdf2(kdf) = &parameters.kdf else { return Err(unsupported_encryption()) };
    let algorithm = match kdf.prf {
        Pbkdf2Prf::HmacWithSha1 => pbkdf2::PBKDF2_HMAC_SHA1,
        Pbkdf2Prf::HmacWithSha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        Pbkdf2Prf::HmacWithSha384 => pbkdf2::PBKDF2_HMAC_SHA384,
        Pbkdf2Prf::HmacWithSha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        _ => return Err(unsupported_encryption()),
    };
    let rounds = std::num::NonZeroU32::new(kdf.iteration_count).ok_or_else(unsupported_encryption)?;
    let mut key = Zeroizing::new(vec![0; parameters.encryption.key_size()]);
    pbkdf2::derive(algorithm, rounds, kdf.salt.as_ref(), password.expose().as_bytes(), &mut key);
    Ok(key)
}

fn in_time(facts: &Certificate<'_>, now: SystemTime) -> std::result::Result<(), Problem> {
    let problem =
        |what: String, hint: &str| Problem { code: ErrorCode::AzureCertificateExpired, what, hint: hint.into() };
    if facts.ends <= now {
        return Err(problem(
            format!("whose certificate has expired, on {}", shown(facts.ends)),
            "make a new certificate, register it for the application in Microsoft Entra ID, and put it into the file",
        ));
    }
    if facts.begins > now + CLOCK_SLACK {
        return Err(problem(
            format!("whose certificate is not valid yet, but from {}", shown(facts.begins)),
            "check this machine's clock, or use a certificate that is valid already",
        ));
    }
    Ok(())
}

/// A time as people write it, in UTC.
pub(super) fn shown(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map(|time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
        .unwrap_or_else(|_| "a time out of range".to_owned())
}

fn invalid(what: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { code: ErrorCode::AzureCertificateInvalid, what: what.into(), hint: hint.into() }
}

fn no_certificate(count: usize) -> Problem {
    match count {
        0 => invalid(
            "which holds no certificate",
            "put both into one file: `cat private.key certificate.crt > client.pem`",
        ),
        _ => invalid(
            "whose private key belongs to none of its certificates",
            "put the key into the file that the certificate was made with",
        ),
    }
}

fn not_rsa() -> Problem {
    invalid(
        "whose private key is not an RSA key of 2048 to 8192 bits",
        "Microsoft Entra ID signs applications in with RSA keys only: make one with `openssl req -x509 -newkey rsa:2048 -nodes -keyout private.key -out certificate.crt -days 365`",
    )
}

fn unsupported_encryption() -> Problem {
    invalid(
        "whose private key is encrypted in a way that is not supported",
        "convert the key with `openssl pkcs8 -topk8 -v2 aes-256-cbc -in private.key -out converted.key`, and put that into the file",
    )
}

/// The file is no PEM: tell a PFX from the rest, because it only has to be converted.
fn not_pem(path: &Path, text: &[u8]) -> Problem {
    let named_pfx = path
        .extension()
        .is_some_and(|extension| ["pfx", "p12", "pkcs12"].iter().any(|known| extension.eq_ignore_ascii_case(known)));
    // PFX ::= SEQUENCE { version INTEGER (3), … }
    let begins_as_pfx = AnyRef::from_der(text)
        .ok()
        .filter(|any| any.tag() == Tag::Sequence)
        .is_some_and(|any| any.value().starts_with(&[2, 1, 3]));
    if named_pfx || begins_as_pfx {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return invalid(
            "which is a PFX (PKCS#12) file, not PEM",
            format!(
                "convert it with `openssl pkcs12 -in {name} -out client.pem -nodes` (add -legacy for a file of an older Windows), and name client.pem"
            ),
        );
    }
    invalid("which is not a PEM file", "name a text file with a block PRIVATE KEY and a block CERTIFICATE")
}

fn internal(what: &str) -> Error {
    Error::new(ErrorCode::FetchInternal, what, "report this with the output of `mlflow-secrets-auth info`")
}
