//! Every question is answered by the filter, wherever it was sent.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use bottle_core::event::Happening;
use bottle_tests::bench::Bench;
use bottle_tests::frame::in_shared_bottle;

/// Asks a server for a name over UDP: `SERVER NAME QTYPE`. Prints the response code and the data
/// of the answers in hexadecimal.
const ASK: &str = "
import os, socket, struct, sys
server, name, qtype = sys.argv[1], sys.argv[2], int(sys.argv[3])
labels = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\\0'
query = os.urandom(2) + struct.pack('>HHHHH', 0x100, 1, 0, 0, 0) + labels + struct.pack('>HH', qtype, 1)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(20)
udp.sendto(query, (server, 53))
answer, peer = udp.recvfrom(4096)
assert answer[:2] == query[:2], 'another id'
assert peer == (server, 53), peer
flags, _, count = struct.unpack('>HHH', answer[2:8])
at, data = 12 + len(labels) + 4, []
for _ in range(count):
    while answer[at]:
        if answer[at] >= 0xc0:
            at += 1
            break
        at += 1 + answer[at]
    kind, _, _, length = struct.unpack('>HHIH', answer[at + 1:at + 11])
    data.append(answer[at + 11:at + 11 + length].hex())
    at += 11 + length
print(flags & 15, *data)
";

const A: &str = "1";
const TXT: &str = "16";
const AAAA: &str = "28";

#[test]
fn a_listed_name_resolves_to_an_address_of_the_gateways_own() {
    in_shared_bottle(async |bench| {
        let told = bench
            .run(["getent", "ahostsv4", "allowed.test"])
            .await?
            .success()?;
        let address: Ipv4Addr = told
            .split_whitespace()
            .next()
            .context("no address")?
            .parse()?;
        ensure!(address.octets()[..2] == [198, 18], "{address}");
        Ok(())
    });
}

/// Fails if a question to another server leaves: the answer would then be that server's, or none.
#[test]
fn a_question_to_another_server_gets_the_filters_answer() {
    in_shared_bottle(async |bench| {
        for server in ["8.8.8.8", "127.0.0.1", "10.1.2.3"] {
            let listed = ask(bench, server, "allowed.test", A).await?;
            ensure!(listed.starts_with("0 c612"), "{server}: {listed}");
        }
        let mark = bench.mark().await?;
        let unlisted = ask(bench, "8.8.8.8", "dns.unlisted.example.org", A).await?;
        ensure!(unlisted.starts_with("0 c613"), "{unlisted}");
        let recorded = bench.event(mark, "an event for the unlisted name", |what| {
            matches!(what, Happening::Dns { name, answer, .. }
                if name == "dns.unlisted.example.org" && answer == "unlisted")
        });
        recorded.await?;
        Ok(())
    });
}

/// Data in the question cannot leave by recursion, nor come back in the answer.
#[test]
fn the_filter_answers_no_other_type_than_addresses() {
    in_shared_bottle(async |bench| {
        for (name, qtype) in [
            ("allowed.test", TXT),
            ("allowed.test", AAAA),
            ("x.example.org", TXT),
        ] {
            let told = ask(bench, "8.8.8.8", name, qtype).await?;
            ensure!(
                told.split_whitespace().count() == 1,
                "{name} {qtype}: {told}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_name_of_the_hosts_network_does_not_exist() {
    in_shared_bottle(async |bench| {
        for name in ["metadata.google.internal", "printer.local", "fileserver"] {
            let told = ask(bench, "8.8.8.8", name, A).await?;
            assert_eq!(told, "3", "{name}");
        }
        Ok(())
    });
}

/// Asks over TCP, as a resolver does after a truncated answer.
#[test]
fn a_question_over_tcp_gets_no_other_answer() {
    in_shared_bottle(async |bench| {
        let program = "
import socket, struct, sys
query = bytes.fromhex('123401000001000000000000') + b'\\x07allowed\\x04test\\0' + b'\\0\\1\\0\\1'
try:
    tcp = socket.create_connection(('8.8.8.8', 53), 20)
    tcp.settimeout(20)
    tcp.sendall(struct.pack('>H', len(query)) + query)
    print('answer', tcp.recv(4096).hex())
except OSError as error:
    print('closed', error)
";
        let told = bench.python(program, &[]).await?.success()?;
        // The filter's answer, or none: both are right, another server's is not.
        ensure!(
            told.starts_with("closed") || told == "answer" || told.contains("c612"),
            "{told}"
        );
        Ok(())
    });
}

async fn ask(bench: &Bench, server: &str, name: &str, qtype: &str) -> Result<String> {
    bench.python(ASK, &[server, name, qtype]).await?.success()
}
