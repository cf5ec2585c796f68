//! Reads the name out of a TLS handshake that the gateway passes on instead of ending it. Pure.

/// What a ClientHello says about where it wants to go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Hello {
    /// The name, if there is one.
    pub(crate) name: Option<String>,
    /// Whether a second, encrypted name may be inside (ECH, or its forerunner ESNI).
    pub(crate) is_veiled: bool,
}

/// The bytes do not begin with a ClientHello.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Malformed;

/// Reads the first handshake message of a connection; `None` if more bytes are needed.
///
/// # Security
///
/// Whatever a server might read in another way (two names, two name extensions, bytes behind the
/// message in its record) is malformed.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<Hello>, Malformed> {
    let mut records = Reader(bytes);
    let mut message = Vec::new();
    loop {
        if let Some((head, _)) = message.split_at_checked(4) {
            let length =
                usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            if head[0] != CLIENT_HELLO || length > MAX_HELLO || message.len() > 4 + length {
                return Err(Malformed);
            }
            if message.len() == 4 + length {
                break;
            }
        }
        let Some(head) = records.take(5) else {
            return match records.0.first() {
                None | Some(&HANDSHAKE) => Ok(None),
                Some(_) => Err(Malformed),
            };
        };
        let length = usize::from(head[3]) << 8 | usize::from(head[4]);
        if head[0] != HANDSHAKE || head[1] != 3 || length == 0 || length > MAX_RECORD {
            return Err(Malformed);
        }
        match records.take(length) {
            Some(payload) => message.extend_from_slice(payload),
            None => return Ok(None),
        }
    }
    body(&mut Reader(&message[4..])).map(Some).ok_or(Malformed)
}

fn body(hello: &mut Reader<'_>) -> Option<Hello> {
    hello.take(2 + 32)?;
    let session = hello.vector8()?;
    let suites = hello.vector16()?;
    let compression = hello.vector8()?;
    if session.len() > 32 || suites.is_empty() || compression.is_empty() {
        return None;
    }
    let mut extensions = Reader(hello.vector16()?);
    if !hello.0.is_empty() {
        return None;
    }
    let mut found = Hello {
        name: None,
        is_veiled: false,
    };
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let content = extensions.vector16()?;
        match kind {
            SERVER_NAME if found.name.is_none() => found.name = Some(server_name(content)?),
            SERVER_NAME => return None,
            ENCRYPTED_CLIENT_HELLO | ENCRYPTED_SERVER_NAME => found.is_veiled = true,
            _ => {}
        }
    }
    Some(found)
}

/// One name of the one type there is.
fn server_name(content: &[u8]) -> Option<String> {
    let mut content = Reader(content);
    let mut list = Reader(content.vector16()?);
    let kind = list.take(1)?;
    let name = list.vector16()?;
    if kind != [0] || !list.0.is_empty() || !content.0.is_empty() {
        return None;
    }
    str::from_utf8(name).ok().map(str::to_owned)
}

/// Takes bytes from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}

/// The most bytes that a handshake may take until its name is known, records included.
pub(crate) const MAX_OPENING: usize = MAX_HELLO + (4 << 10);
const MAX_HELLO: usize = 32 << 10;
const MAX_RECORD: usize = 16 << 10;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::{any, prop};
    use proptest::sample::Index;
    use proptest::{prop_assert, prop_assert_eq, proptest};
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::ServerName;
    use rustls::server::Acceptor;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// What rustls writes as a client.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn named(name: Option<&str>) -> Result<Option<Hello>, Malformed> {
        Ok(Some(Hello {
            name: name.map(str::to_owned),
            is_veiled: false,
        }))
    }

    /// A hello with these extensions and nothing else worth a name.
    fn made(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut list = Vec::new();
        for (kind, content) in extensions {
            list.extend(kind.to_be_bytes());
            list.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
            list.extend(*content);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
        body.extend(list);
        let mut message = vec![1, 0];
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        let mut record = vec![22, 3, 1];
        record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        record.extend(message);
        record
    }

    const A: &[u8] = &[0, 9, 0, 0, 6, b'a', b'.', b't', b'e', b's', b't'];

    #[test]
    fn the_name_is_read_from_whole_and_cut_records() {
        let whole = hello("api.test");
        assert_eq!(read(&whole), named(Some("api.test")));
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), Ok(None), "{end}");
        }
        let mut cut = Vec::new();
        for piece in whole[5..].chunks(50) {
            cut.extend([22, 3, 1, 0, u8::try_from(piece.len()).unwrap()]);
            cut.extend(piece);
        }
        assert_eq!(read(&cut), named(Some("api.test")));
        assert_eq!(read(&hello("127.0.0.1")), named(None));
        // What follows in a record of its own is early data.
        assert_eq!(
            read(&[&whole[..], &[23, 3, 3, 0, 1, 0]].concat()),
            named(Some("api.test"))
        );
    }

    #[test]
    fn a_second_name_is_malformed_and_an_encrypted_one_is_seen() {
        assert_eq!(read(&made(&[(0, A)])), named(Some("a.test")));
        assert_eq!(read(&made(&[(0, A), (0, A)])), Err(Malformed));
        let two = [&[0, 18][..], &A[2..], &A[2..]].concat();
        assert_eq!(read(&made(&[(0, &two)])), Err(Malformed));
        let other = [&[0, 9, 1][..], &A[3..]].concat();
        assert_eq!(read(&made(&[(0, &other)])), Err(Malformed));
        for kind in [0xfe0d, 0xffce] {
            let hello = read(&made(&[(0, A), (kind, b"x")])).unwrap().unwrap();
            assert!(hello.is_veiled, "{kind}");
        }
    }

    #[test]
    fn what_is_no_hello_is_malformed() {
        let whole = made(&[(0, A)]);
        let mut behind = whole.clone();
        behind.push(0);
        behind[4] += 1;
        let mut server = whole.clone();
        server[5] = 2;
        let mut endless = whole.clone();
        endless[6] = 255;
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[22, 2, 0, 0, 1],
            &[22, 3, 1, 0, 0],
            &behind,
            &server,
            &endless,
        ] {
            assert_eq!(read(bytes), Err(Malformed), "{bytes:?}");
        }
    }

    proptest! {
        /// Damage is either seen, or rustls reads the same name.
        #[test]
        fn no_server_reads_another_name(damage in any::<(Index, u8)>(), second in any::<(Index, u8)>()) {
            let mut bytes = hello("api.test");
            for (at, byte) in [damage, second] {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(Some(hello)) = read(&bytes) {
                let mut acceptor = Acceptor::default();
                acceptor.read_tls(&mut &bytes[..]).unwrap();
                if let Ok(Some(accepted)) = acceptor.accept() {
                    let theirs = accepted.client_hello().server_name().map(str::to_owned);
                    // A name that rustls refuses as one is none to it.
                    prop_assert!(theirs.is_none() || theirs == hello.name.map(|n| n.to_ascii_lowercase()) , "{:?}", theirs);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_to_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
            let _ = read(&[&[22, 3, 1, 1, 0, 1, 0, 0, 252][..], &bytes].concat());
            prop_assert_eq!(read(&[]), Ok(None));
        }
    }
}
