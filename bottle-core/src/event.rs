//! What a bottle did, as values that become one JSON line each.
//!
//! Guest-chosen strings travel raw in here (JSON escapes controls by itself); whoever prints one
//! for a person goes through [`Escaped`](crate::text::Escaped). No event ever carries matched
//! secret text, a body, a header value or an environment value.

use std::fmt::Debug;
use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::policy::Reason;

/// One line of a bottle's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the record, from 1, without gaps.
    pub seq: u64,
    /// Milliseconds since the Unix epoch, host time.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened. The tag `event` is a stable name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Happening {
    /// A stage of the start ended well.
    Stage {
        /// Its name, as [`Stage::name`](crate::reporter::Stage::name).
        stage: String,
        /// How long it took.
        took_ms: u64,
    },
    /// The start failed.
    StartFailed {
        /// The stage that failed.
        stage: String,
        /// The whole chain of causes.
        reason: String,
    },
    /// A DNS question was answered with something else than an address of a listed name.
    Dns {
        /// The name as asked, lower case, no trailing dot.
        name: String,
        /// The record type, as `A`.
        qtype: String,
        /// The verdict, as `unlisted`, `nxdomain`, `refused`, `empty`, `allowed`.
        answer: String,
    },
    /// An HTTP request or a whole flow was allowed.
    Allowed {
        /// The decision's id: `<8 base32 characters>`.
        id: String,
        /// The host by name.
        host: String,
        /// The port.
        port: u16,
        /// The request method; absent for a flow that is no HTTP.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        method: Option<String>,
        /// The path without its query.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path: Option<String>,
        /// The rule that allowed it, as written.
        rule: String,
        /// The status that came back, if one did.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        status: Option<u16>,
        /// The address that was dialled.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        dialled: Option<IpAddr>,
    },
    /// A flow that was allowed without being looked into has ended.
    Closed {
        /// The id of its permission.
        id: String,
        /// Bytes from the bottle.
        sent: u64,
        /// Bytes to the bottle.
        received: u64,
        /// How long it was open.
        took_ms: u64,
    },
    /// A request or flow was refused.
    Refused {
        /// The decision's id.
        id: String,
        /// The host by name, or the literal address.
        host: String,
        /// The port.
        port: u16,
        /// The request method, where one was read.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        method: Option<String>,
        /// The path without its query, unless it is what was refused.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path: Option<String>,
        /// The machine-readable reason.
        reason: Reason,
        /// The reason in words, as the guest saw it.
        detail: String,
    },
    /// A decision was taken again so often that it was only counted; a later line with the same id
    /// has the higher count.
    Repeated {
        /// The id of the last one that was recorded.
        id: String,
        /// How many like it have come after it.
        count: u64,
    },
    /// A request carried a secret, and its rule let the rest of it pass.
    SecretSeen {
        /// The finding's own id.
        id: String,
        /// The host by name.
        host: String,
        /// The port.
        port: u16,
        /// The request method, unless it is what holds the secret.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        method: Option<String>,
        /// The path without its query, unless it is what holds the secret.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path: Option<String>,
        /// The rule, as written.
        rule: String,
        /// Whether the secret was overwritten; it has left otherwise.
        overwritten: bool,
        /// What was found, and where: its kind or name, never its text.
        detail: String,
    },
    /// Something other than the workload broke the control protocol, or tried a closed door.
    Violation {
        /// What was seen.
        what: String,
    },
    /// A waiver of a layer was asked for and granted.
    Waiver {
        /// The layer's name.
        layer: String,
    },
    /// The bottle was frozen, since it could not go on without harm.
    Frozen {
        /// Why, and what to do.
        why: String,
    },
    /// A frozen bottle goes on.
    Thawed {},
    /// The guest's kernel killed a process for want of memory.
    OutOfMemory {
        /// Its process id in the guest.
        pid: u32,
        /// What it called itself.
        name: String,
    },
    /// The bottle ran as long as it may, and is stopped.
    TimedOut {
        /// How long, in milliseconds.
        limit_ms: u64,
    },
    /// The bottle ended; the last line, unless it is started again.
    End {
        /// How: `exited 0`, `killed by signal 9`, `stopped`, `crashed: …`.
        how: String,
        /// The exit status of its main process, as a shell tells it, if that had ended.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        code: Option<u8>,
    },
}

/// Takes events; gives them their number and time.
///
/// An implementation must not lose an event silently and must not block the caller for long.
pub trait EventSink: Send + Sync + Debug {
    /// Records what happened now.
    fn record(&self, what: Happening);
}

/// Returns milliseconds since the Unix epoch; zero for a clock before it.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_refusal_is_one_json_line_with_stable_names() {
        let event = Event {
            seq: 7,
            time_ms: 1,
            what: Happening::Refused {
                id: "abcd2345".to_owned(),
                host: "evil.test".to_owned(),
                port: 443,
                method: Some("POST".to_owned()),
                path: None,
                reason: Reason::SecretFound,
                detail: "request body contains secret: GitHub Token\n".to_owned(),
            },
        };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(
            line,
            r#"{"seq":7,"time_ms":1,"event":"refused","id":"abcd2345","host":"evil.test","port":443,"method":"POST","reason":"secret-found","detail":"request body contains secret: GitHub Token\n"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }

    #[test]
    fn the_names_of_all_events_are_stable() {
        let text = String::new;
        let all = [
            Happening::Stage {
                stage: text(),
                took_ms: 0,
            },
            Happening::StartFailed {
                stage: text(),
                reason: text(),
            },
            Happening::Dns {
                name: text(),
                qtype: text(),
                answer: text(),
            },
            Happening::Allowed {
                id: text(),
                host: text(),
                port: 0,
                method: None,
                path: None,
                rule: text(),
                status: None,
                dialled: None,
            },
            Happening::Closed {
                id: text(),
                sent: 0,
                received: 0,
                took_ms: 0,
            },
            Happening::Repeated {
                id: text(),
                count: 0,
            },
            Happening::SecretSeen {
                id: text(),
                host: text(),
                port: 0,
                method: None,
                path: None,
                rule: text(),
                overwritten: false,
                detail: text(),
            },
            Happening::Violation { what: text() },
            Happening::Waiver { layer: text() },
            Happening::End {
                how: text(),
                code: None,
            },
        ];
        let names: Vec<_> = all
            .iter()
            .map(|what| serde_json::to_value(what).unwrap()["event"].clone())
            .collect();
        assert_eq!(
            names,
            [
                "stage",
                "start-failed",
                "dns",
                "allowed",
                "closed",
                "repeated",
                "secret-seen",
                "violation",
                "waiver",
                "end"
            ]
        );
    }

    #[test]
    fn a_clock_before_the_epoch_is_zero() {
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(unix_ms(epoch - Duration::from_secs(1)), 0);
        assert_eq!(unix_ms(epoch + Duration::from_millis(1500)), 1500);
    }
}
