//! The filter as a whole; hickory-proto writes the questions and reads the answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Mutex;

use bottle_core::policy::Rule;
use bottle_core::secret::Secret;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::{any, prop};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::message::MAX_GROWTH;
use super::*;
use crate::names::WILDCARD_QUOTA;
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
        let dns = events.iter().filter_map(|event| match event {
            Happening::Dns {
                name,
                qtype,
                answer,
            } => Some((name.clone(), qtype.clone(), answer.clone())),
            _ => None,
        });
        dns.collect()
    }
}
