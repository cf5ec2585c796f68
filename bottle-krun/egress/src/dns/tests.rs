//! The filter as a whole; hickory-proto writes the questions and reads the answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

use bottle_core::policy::{DEFAULT_MAX_NAMES, Rule};
use bottle_core::secret::Secret;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use proptest::prelude::{any, prop};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::message::MAX_GROWTH;
use super::*;
use crate::scan::testing::github_token;

#[derive(Debug, Default)]
struct Events(Mutex<Vec<Happening>>);

impl EventSink for Events {
    fn record(&self, what: Happening) {
        self.0.lock().unwrap().push(what);
    }
}

impl Events {
    fn dns(&self) -> Vec<(String, String, String)> {
        let events = self.0.lock().unwrap();
        let mut dns = Vec::new();
        for event in events.iter() {
            if let Happening::Dns {
                name,
                qtype,
                answer,
            } = event
            {
                dns.push((name.clone(), qtype.clone(), answer.clone()));
            }
        }
        dns
    }
}

struct Bed {
    filter: DnsFilter,
    names: Arc<NameTable>,
    events: Arc<Events>,
}

const KNOWN: &str = "correct-horse-battery";

impl Bed {
    fn new(rules: &[&str]) -> Self {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let policy = Policy::new(rules);
        let names = Arc::new(NameTable::new(&policy));
        let scanner = Scanner::new(&[Secret::new("canary", KNOWN).unwrap()]).unwrap();
        let events = Arc::new(Events::default());
        let filter = DnsFilter::new(
            Arc::new(policy),
            Arc::clone(&names),
            Arc::new(scanner),
            Arc::clone(&events) as Arc<dyn EventSink>,
        );
        Self {
            filter,
            names,
            events,
        }
    }

    /// Asks, and checks what has to hold for every answer.
    #[track_caller]
    fn ask(&self, message: &Message) -> Message {
        let query = message.to_vec().unwrap();
        let bytes = self.filter.answer(&query).unwrap();
        assert!(bytes.len() <= query.len() + MAX_GROWTH, "{bytes:?}");
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.id, message.metadata.id);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert!(answer.metadata.recursion_available && !answer.metadata.truncation);
        assert_eq!(
            answer.metadata.recursion_desired,
            message.metadata.recursion_desired
        );
        assert_eq!(answer.edns.is_some(), message.edns.is_some());
        assert_eq!(answer.queries, message.queries);
        assert!(answer.authorities.is_empty());
        answer
    }

    #[track_caller]
    fn look_up(&self, name: &str, rtype: RecordType) -> (ResponseCode, Vec<IpAddr>) {
        let answer = self.ask(&question(name, rtype));
        let addresses = answer.answers.iter().map(|record| {
            assert_eq!(
                record.name.to_string(),
                Name::from_ascii(name).unwrap().to_string()
            );
            record.data.ip_addr().unwrap()
        });
        (answer.metadata.response_code, addresses.collect())
    }

    #[track_caller]
    fn address(&self, name: &str) -> Ipv4Addr {
        match self.look_up(name, RecordType::A) {
            (ResponseCode::NoError, found) => match found[..] {
                [IpAddr::V4(address)] => address,
                ref other => panic!("{name}: {other:?}"),
            },
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn question(name: &str, rtype: RecordType) -> Message {
    question_of(Name::from_ascii(name).unwrap(), rtype)
}

fn question_of(mut name: Name, rtype: RecordType) -> Message {
    let mut message = Message::new(0xbeef, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    name.set_fqdn(true);
    message.add_query(Question::query(name, rtype));
    message
}

#[test]
fn a_listed_name_has_its_pinned_address_in_any_case() {
    let bed = Bed::new(&["allowed.test", "*.wild.test"]);
    let address = bed.address("allowed.test.");
    assert_eq!(address.octets()[..2], [198, 18]);
    assert_eq!(bed.address("AlLoWeD.tEsT."), address);
    assert_eq!(bed.names.name_of(address).unwrap().as_str(), "allowed.test");
    assert_eq!(bed.address("a.b.wild.test.").octets()[..2], [198, 18]);
    assert_eq!(bed.events.dns(), []);
}

#[test]
fn an_unlisted_name_has_a_shared_address_and_one_event() {
    let bed = Bed::new(&["allowed.test", "*.wild.test"]);
    for name in ["other.test.", "wild.test.", "www.allowed.test."] {
        assert_eq!(bed.address(name).octets()[..2], [198, 19], "{name}");
        assert_eq!(bed.address(name).octets()[..2], [198, 19], "{name}");
        assert_eq!(
            bed.look_up(name, RecordType::AAAA),
            (ResponseCode::NoError, vec![])
        );
    }
    let expected = ["other.test", "wild.test", "www.allowed.test"]
        .map(|name| (name.to_owned(), "A".to_owned(), "unlisted".to_owned()));
    assert_eq!(bed.events.dns(), expected);
}

#[test]
fn other_records_of_a_name_are_empty_or_refused() {
    let bed = Bed::new(&["allowed.test"]);
    for name in ["allowed.test.", "unlisted.test."] {
        for rtype in [
            RecordType::AAAA,
            RecordType::HTTPS,
            RecordType::SVCB,
            RecordType::SOA,
            RecordType::NS,
            RecordType::CNAME,
            RecordType::MX,
            RecordType::TXT,
        ] {
            assert_eq!(
                bed.look_up(name, rtype),
                (ResponseCode::NoError, vec![]),
                "{rtype}"
            );
        }
        for rtype in [
            RecordType::ANY,
            RecordType::AXFR,
            RecordType::SRV,
            RecordType::NULL,
        ] {
            assert_eq!(
                bed.look_up(name, rtype),
                (ResponseCode::Refused, vec![]),
                "{rtype}"
            );
        }
        assert_eq!(
            bed.look_up(name, RecordType::PTR),
            (ResponseCode::NXDomain, vec![])
        );
    }
}

#[test]
fn special_names_do_not_exist_unless_a_rule_lists_them() {
    let bed = Bed::new(&["db.internal", "*.corp.internal", "*.google.internal"]);
    for name in [
        "printer.local.",
        "x.onion.",
        "x.invalid.",
        "x.alt.",
        "other.internal.",
        "metadata.google.internal.",
        "metadata.goog.",
        "1.0.0.127.in-addr.arpa.",
        "ipv4only.arpa.",
        "host.docker.internal.",
        "wpad.",
        "com.",
        "169.254.169.254.",
        "0x7f.1.",
    ] {
        for rtype in [RecordType::A, RecordType::PTR, RecordType::AAAA] {
            assert_eq!(
                bed.look_up(name, rtype),
                (ResponseCode::NXDomain, vec![]),
                "{name}"
            );
        }
    }
    assert_eq!(bed.address("db.internal.").octets()[..2], [198, 18]);
    assert_eq!(bed.address("a.corp.internal.").octets()[..2], [198, 18]);
    assert_eq!(
        bed.events.dns()[0],
        ("printer.local".into(), "A".into(), "nxdomain".into())
    );
    assert_eq!(bed.events.dns().len(), 14, "one event for each name");
    let bed = Bed::new(&["metadata.google.internal", "box"]);
    assert_eq!(
        bed.address("metadata.google.internal.").octets()[..2],
        [198, 18]
    );
    assert_eq!(bed.address("box.").octets()[..2], [198, 18]);
}

#[test]
fn localhost_is_loopback() {
    let bed = Bed::new(&[]);
    for name in ["localhost.", "a.b.LOCALHOST."] {
        assert_eq!(bed.address(name), Ipv4Addr::LOCALHOST);
        let six = bed.look_up(name, RecordType::AAAA);
        assert_eq!(
            six,
            (ResponseCode::NoError, vec![Ipv6Addr::LOCALHOST.into()])
        );
        assert_eq!(
            bed.look_up(name, RecordType::MX),
            (ResponseCode::NoError, vec![])
        );
    }
    assert_eq!(bed.address("notlocalhost.test.").octets()[..2], [198, 19]);
    assert_eq!(
        bed.look_up("notlocalhost.", RecordType::A).0,
        ResponseCode::NXDomain
    );
}

#[test]
fn a_wildcard_carries_short_labels_and_a_quota_of_names() {
    let bed = Bed::new(&["*.wild.test"]);
    let ask = |name: String| bed.look_up(&name, RecordType::A).0;
    assert_eq!(
        ask(format!("{}.wild.test.", "a".repeat(40))),
        ResponseCode::NoError
    );
    assert_eq!(
        ask(format!("{}.wild.test.", "a".repeat(41))),
        ResponseCode::Refused
    );
    assert_eq!(
        ask(format!("x.{}.y.wild.test.", "a".repeat(41))),
        ResponseCode::Refused
    );
    for index in 1..DEFAULT_MAX_NAMES {
        assert_eq!(ask(format!("n{index}.wild.test.")), ResponseCode::NoError);
    }
    assert_eq!(ask("one-more.wild.test.".to_owned()), ResponseCode::Refused);
    assert_eq!(ask("n1.wild.test.".to_owned()), ResponseCode::NoError);
    let last = bed.events.dns().pop().unwrap();
    assert_eq!(
        last,
        ("one-more.wild.test".into(), "A".into(), "refused".into())
    );
}

#[test]
fn a_name_with_a_secret_is_refused_and_not_recorded() {
    let bed = Bed::new(&["*.wild.test"]);
    let token = github_token();
    let hex: String = KNOWN.bytes().map(|b| format!("{b:02x}")).collect();
    let (left, right) = hex.split_at(20);
    for name in [
        format!("{token}.wild.test."),
        format!("{KNOWN}.wild.test."),
        format!("{left}.{right}.wild.test."),
        format!("{hex}.unlisted.test."),
        format!("{hex}.local."),
    ] {
        let answer = bed.look_up(&name, RecordType::A);
        assert_eq!(answer, (ResponseCode::Refused, vec![]), "{name}");
    }
    let events = format!("{:?}", bed.events.dns()).to_lowercase();
    for secret in [&token, KNOWN, left, right] {
        assert!(!events.contains(&secret.to_lowercase()), "{events}");
    }
    assert_eq!(bed.events.dns().len(), 1);
}

#[test]
fn what_is_no_plain_query_gets_the_code_that_says_so() {
    let bed = Bed::new(&["allowed.test"]);
    let plain = question("allowed.test.", RecordType::A);
    let code = |message: &Message| {
        let bytes = bed.filter.answer(&message.to_vec().unwrap()).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(answer.answers.is_empty());
        answer.metadata.response_code
    };

    let mut chaos = plain.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);

    let mut two = plain.clone();
    two.add_query(plain.queries[0].clone());
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut none = plain.clone();
    none.queries.clear();
    assert_eq!(code(&none), ResponseCode::FormErr);

    for op_code in [OpCode::Status, OpCode::Notify, OpCode::Update] {
        let mut other = plain.clone();
        other.metadata.op_code = op_code;
        assert_eq!(code(&other), ResponseCode::NotImp, "{op_code:?}");
    }

    let mut future = plain.clone();
    future
        .set_edns(Edns::new())
        .edns
        .as_mut()
        .unwrap()
        .set_version(1);
    assert_eq!(bed.ask(&future).metadata.response_code.high(), 1);
    assert_eq!(code(&question(".", RecordType::NS)), ResponseCode::Refused);

    let bytes = plain.to_vec().unwrap();
    let mut trailing = bytes.clone();
    trailing.push(0);
    let mut pointer = bytes[..12].to_vec();
    pointer.extend([0xc0, 0x0c, 0, 1, 0, 1]);
    for broken in [&bytes[..bytes.len() - 1], &bytes[..12], &trailing, &pointer] {
        let answer = bed.filter.answer(broken).unwrap();
        assert_eq!((answer.len(), answer[3] & 0xf), (12, 1), "{broken:?}");
    }
    let mut response = bytes.clone();
    response[2] |= 0x80;
    assert_eq!(
        bed.filter.answer(&response),
        None,
        "an answer is not answered"
    );
    assert_eq!(bed.filter.answer(&bytes[..11]), None);
    assert_eq!(bed.filter.answer(&[]), None);
}

#[test]
fn an_edns_query_is_answered_with_edns() {
    let bed = Bed::new(&["allowed.test"]);
    let mut message = question("allowed.test.", RecordType::A);
    message.set_edns(Edns::new());
    message.edns.as_mut().unwrap().set_max_payload(4096);
    let answer = bed.ask(&message);
    assert_eq!(answer.answers.len(), 1);
    let edns = answer.edns.unwrap();
    assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
}

proptest! {
    #[test]
    fn any_bytes_get_a_short_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let bed = Bed::new(&["*.wild.test"]);
        if let Some(answer) = bed.filter.answer(&bytes) {
            prop_assert!(answer.len() <= bytes.len() + MAX_GROWTH);
            prop_assert!(bytes[2] & 0x80 == 0 && answer[2] & 0x80 != 0);
        }
    }

    /// One changed byte reaches deeper than noise does.
    #[test]
    fn a_damaged_query_gets_a_short_answer_or_none(at in 0..64_usize, byte in any::<u8>()) {
        let bed = Bed::new(&["allowed.test", "*.wild.test"]);
        let mut message = question("some.wild.test.", RecordType::A);
        message.set_edns(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Some(answer) = bed.filter.answer(&bytes) {
            prop_assert!(answer.len() <= bytes.len() + MAX_GROWTH);
            prop_assert_eq!(&answer[..2], &bytes[..2]);
        }
        bed.filter.answer(&bytes[..at]);
    }

    #[test]
    fn every_name_that_can_be_asked_for_is_asked_back(
        labels in prop::collection::vec("[a-zA-Z0-9_-]{1,20}", 1..8),
        rtype in any::<u16>(),
        id in any::<u16>(),
    ) {
        let bed = Bed::new(&["*.wild.test"]);
        let name = Name::from_labels(labels.iter().map(String::as_bytes)).unwrap();
        let mut message = question_of(name, RecordType::from(rtype));
        message.metadata.id = id;
        bed.ask(&message);
    }
}
