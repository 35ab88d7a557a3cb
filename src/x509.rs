//! The few facts of an X.509 certificate that we need: its validity, its key, and who signed it.
//!
//! Read with `der`, which the encrypted keys of Azure's certificates bring along. `x509-cert` and `x509-parser` would add
//! crates for nothing else, and the former also turns on a feature that the AWS SDK's crates share.

use std::time::SystemTime;

use der::asn1::{AnyRef, BitStringRef, GeneralizedTime, UtcTime};
use der::{Decode, SliceReader, Tag, Tagged as _};

/// The attributes of a name that people know it by, most telling first (RFC 5280, appendix A).
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANISATION: &[u8] = &[0x55, 4, 10];

/// A certificate's facts.
#[cfg_attr(
    not(feature = "azure"),
    expect(dead_code, reason = "only Azure's sign-in asks for the validity and the key")
)]
pub struct Certificate<'a> {
    /// From when on it is valid.
    pub begins: SystemTime,
    /// Until when it is valid.
    pub ends: SystemTime,
    /// The bytes of its public key.
    pub public_key: &'a [u8],
    /// Who signed it, in words: `Example Root CA (Example Ltd)`.
    pub issuer: String,
}

impl<'a> Certificate<'a> {
    /// Walks through a certificate (RFC 5280, section 4.1).
    pub fn read(der: &'a [u8]) -> der::Result<Self> {
        let mut certificate = SliceReader::new(AnyRef::from_der(der)?.value())?;
        let mut to_be_signed = SliceReader::new(AnyRef::decode(&mut certificate)?.value())?;
        let first = AnyRef::decode(&mut to_be_signed)?;
        if first.tag() != Tag::Integer {
            // That was the version, which the first edition of X.509 doesn't have; the serial number follows.
            AnyRef::decode(&mut to_be_signed)?;
        }
        let _signature_algorithm = AnyRef::decode(&mut to_be_signed)?;
        let issuer = AnyRef::decode(&mut to_be_signed)?.value();
        let mut validity = SliceReader::new(AnyRef::decode(&mut to_be_signed)?.value())?;
        let _subject = AnyRef::decode(&mut to_be_signed)?;
        let mut key_info = SliceReader::new(AnyRef::decode(&mut to_be_signed)?.value())?;
        let _key_algorithm = AnyRef::decode(&mut key_info)?;
        let public_key = BitStringRef::decode(&mut key_info)?;
        Ok(Self {
            begins: time(&mut validity)?,
            ends: time(&mut validity)?,
            public_key: public_key.raw_bytes(),
            issuer: name(issuer)?,
        })
    }
}

fn time(reader: &mut SliceReader<'_>) -> der::Result<SystemTime> {
    let since_1970 = match Tag::peek(reader)? {
        Tag::UtcTime => UtcTime::decode(reader)?.to_unix_duration(),
        _ => GeneralizedTime::decode(reader)?.to_unix_duration(),
    };
    Ok(SystemTime::UNIX_EPOCH + since_1970)
}

/// The common name and the organisation in a name, at most 100 characters of each: a stranger wrote them.
fn name(der: &[u8]) -> der::Result<String> {
    let (mut common_name, mut organisation) = (None, None);
    let mut parts = SliceReader::new(der)?;
    while !der::Reader::is_finished(&parts) {
        let mut attributes = SliceReader::new(AnyRef::decode(&mut parts)?.value())?;
        let mut attribute = SliceReader::new(AnyRef::decode(&mut attributes)?.value())?;
        let kind = AnyRef::decode(&mut attribute)?.value();
        let text = AnyRef::decode(&mut attribute)?.value();
        let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(100).collect();
        match kind {
            COMMON_NAME => common_name = Some(text),
            ORGANISATION => organisation = Some(text),
            _ => {}
        }
    }
    Ok(match (common_name, organisation) {
        (Some(name), Some(organisation)) => format!("{name} ({organisation})"),
        (Some(name), None) | (None, Some(name)) => name,
        (None, None) => "somebody without a name".to_owned(),
    })
}
