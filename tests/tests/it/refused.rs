//! Ways out that do not exist: each attack is refused, nothing arrives where it aimed, and the
//! record names the reason.

use anyhow::{Result, ensure};
use bottle_core::backend::ExitStatus;
use bottle_core::event::Happening;
use bottle_core::policy::Reason;
use bottle_tests::bench::Bench;
use bottle_tests::frame::in_shared_bottle;

const PROXY: &str = "http://198.18.0.1:3128";

/// Two-sided: the same request to `allowed.test` is answered 200 (see `egress`).
#[test]
fn an_unlisted_host_is_refused_with_an_explanation() {
    in_shared_bottle(async |bench| {
        let ways: [&[&str]; 3] = [
            &["https://transparent.example.org/x"],
            &["http://plain.example.org/x"],
            &["-x", PROXY, "https://proxied.example.org/x"],
        ];
        let names = [
            "transparent.example.org",
            "plain.example.org",
            "proxied.example.org",
        ];
        for (way, name) in ways.into_iter().zip(names) {
            let mark = bench.mark().await?;
            let mut args = vec!["-i"];
            args.extend(way);
            let output = bench.curl(&args).await?;
            // A proxy may refuse CONNECT itself; then curl names the status on standard error.
            let told = format!(
                "{}{}",
                output.text(),
                String::from_utf8_lossy(&output.stderr)
            );
            ensure!(told.contains("403"), "{name}: {output}");
            if way[0] != "-x" {
                ensure!(
                    output.success()?.contains(name),
                    "it does not say which host: {output}"
                );
            }
            bench.refused(mark, name, Reason::HostNotAllowed).await?;
        }
        Ok(())
    });
}

#[test]
fn a_listed_host_on_an_unlisted_port_is_refused() {
    in_shared_bottle(async |bench| {
        let mark = bench.mark().await?;
        // 8443 is captured, because another name may use it.
        let told = bench
            .curl(&["-i", "https://allowed.test:8443/"])
            .await?
            .success()?;
        ensure!(
            told.lines()
                .next()
                .is_some_and(|line| line.contains(" 403")),
            "{told}"
        );
        bench
            .refused(mark, "allowed.test", Reason::PortNotAllowed)
            .await?;
        // A port that nothing uses is refused at once, as on a host without a server.
        let told = bench
            .curl(&["--connect-timeout", "5", "https://allowed.test:4711/"])
            .await?;
        // 7: could not connect; 28 would be a silence.
        assert_eq!(told.status, ExitStatus::Exited(7), "{told}");
        Ok(())
    });
}

/// Fails if an address were dialled because the guest chose it.
#[test]
fn an_address_literal_is_refused() {
    in_shared_bottle(async |bench| {
        for (host, url) in [
            ("1.2.3.4", "https://1.2.3.4/"),
            ("1.2.3.5", "http://1.2.3.5/"),
            ("2606:4700::1111", "https://[2606:4700::1111]/"),
            ("2606:4700::1112", "http://[2606:4700::1112]/"),
        ] {
            let mark = bench.mark().await?;
            let args = ["-g", "-k", "-o", "/dev/null", "-w", "%{http_code}", url];
            let output = bench.curl(&args).await?;
            ensure!(
                output.text() == "403" || output.failure().is_ok(),
                "{url}: {output}"
            );
            bench.refused(mark, host, Reason::IpLiteral).await?;
        }
        let mark = bench.mark().await?;
        let output = bench.curl(&["-k", "-x", PROXY, "https://1.2.3.6/"]).await?;
        ensure!(
            output.text().contains("403") || output.failure().is_ok(),
            "{output}"
        );
        bench.refused(mark, "1.2.3.6", Reason::IpLiteral).await?;
        Ok(())
    });
}

#[test]
fn the_metadata_service_is_refused() {
    in_shared_bottle(async |bench| {
        let mark = bench.mark().await?;
        let url = "http://169.254.169.254/latest/meta-data/";
        let output = bench.curl(&["-w", "%{http_code}", url]).await?;
        ensure!(
            output.text().ends_with("403") || output.failure().is_ok(),
            "{output}"
        );
        let refused = bench.event(
            mark,
            "an event that the metadata address was refused",
            |what| {
                matches!(what, Happening::Refused { host, reason, .. } if host == "169.254.169.254"
                && matches!(reason, Reason::IpLiteral | Reason::AddressNotAllowed))
            },
        );
        refused.await?;
        Ok(())
    });
}

/// A listener on the host's 127.0.0.1, on a port that the policy names (and so is captured), sees
/// no connection whatever the guest dials. Fails with an unjailed TSI, which reached it at the
/// first attempt, and with a gateway that dials what a name resolves to without a check.
#[test]
fn the_hosts_loopback_is_out_of_reach() {
    in_shared_bottle(async |bench| {
        let port = bench.tripwire.address.port();
        let program = "
import socket, sys
port = int(sys.argv[1])
for host in sys.argv[2:]:
    try:
        kind = socket.AF_INET6 if ':' in host else socket.AF_INET
        with socket.socket(kind) as tcp:
            tcp.settimeout(15)
            tcp.connect((host, port))
            tcp.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
            print(host, 'answered', tcp.recv(12))
    except OSError as error:
        print(host, 'failed', error)
";
        let addresses = [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "10.200.0.1",
            "10.200.0.2",
            "10.0.2.2",
            "192.168.127.1",
            "198.18.0.1",
            "172.17.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "fd00:b::1",
        ];
        let mut args = vec![port.to_string()];
        args.extend(addresses.map(str::to_owned));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let told = bench.python(program, &args).await?.success()?;
        assert_eq!(told.lines().count(), addresses.len(), "{told}");
        for line in told.lines() {
            let refused = line.contains("failed")
                || line.contains("HTTP/1.0 403")
                || line.contains("HTTP/1.1 403")
                || line.contains("HTTP/1.1 400")
                || line.contains("HTTP/1.0 400")
                || line.ends_with("b''");
            ensure!(refused, "{line}");
        }
        assert_eq!(bench.tripwire.connections(), 0, "{told}");
        Ok(())
    });
}

/// The policy names `localhost` with the listener's port: only the address check stands between.
#[test]
fn a_listed_name_that_leads_to_the_hosts_loopback_is_refused() {
    in_shared_bottle(async |bench| {
        let port = bench.tripwire.address.port();
        let mark = bench.mark().await?;
        let url = format!("https://localhost:{port}/");
        let output = bench
            .curl(&["--noproxy", "", "-k", "-i", "-x", PROXY, &url])
            .await?;
        ensure!(
            output.text().contains("403") || output.failure().is_ok(),
            "{output}"
        );
        bench
            .refused(mark, "localhost", Reason::AddressNotAllowed)
            .await?;
        assert_eq!(bench.tripwire.connections(), 0);
        Ok(())
    });
}

/// Fails if datagrams leave, and if they vanish: a client of QUIC must fall back at once.
#[test]
fn a_datagram_to_another_port_than_dns_is_refused_at_once() {
    in_shared_bottle(async |bench| {
        let program = "
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(10)
udp.connect((sys.argv[1], int(sys.argv[2])))
try:
    udp.send(b'x' * 48)
    print('answered', udp.recv(100))
except OSError as error:
    print(type(error).__name__)
";
        for port in [123, 443] {
            let mark = bench.mark().await?;
            let told = bench
                .python(program, &["8.8.8.8", &port.to_string()])
                .await?
                .success()?;
            assert_eq!(told, "ConnectionRefusedError", "port {port}");
            let event = bench
                .refused(mark, "8.8.8.8", Reason::UdpNotAllowed)
                .await?;
            ensure!(
                matches!(event.what, Happening::Refused { port: seen, .. } if seen == port),
                "{event:?}"
            );
        }
        Ok(())
    });
}

/// Two-sided: the same request with the right name is answered 200.
#[test]
fn a_request_for_another_host_than_its_connections_is_refused() {
    in_shared_bottle(async |bench| {
        for flag in ["--http1.1", "--http2"] {
            let mark = bench.mark().await?;
            let url = "https://allowed.test/host-not-sni";
            let told = bench
                .curl(&["-i", flag, "-H", "Host: other.test", url])
                .await?
                .success()?;
            let status = told.lines().next().unwrap_or_default();
            ensure!(status.contains(" 403") || status.contains(" 421"), "{told}");
            bench.event(mark, "an event of two names", mismatch).await?;
        }
        assert_eq!(bench.upstream.seen("/host-not-sni").len(), 0);
        bench
            .curl(&[
                "-H",
                "Host: allowed.test",
                "https://allowed.test/host-is-sni",
            ])
            .await?
            .success()?;
        assert_eq!(bench.upstream.seen("/host-is-sni").len(), 1);
        Ok(())
    });
}

/// CONNECT to one listed name, TLS for another one. Two-sided: with equal names it is answered.
#[test]
fn a_tls_name_other_than_the_name_of_connect_is_refused() {
    in_shared_bottle(async |bench| {
        let program = "
import socket, ssl, sys
connect, sni, path = sys.argv[1:4]
tcp = socket.create_connection(('198.18.0.1', 3128), 30)
tcp.sendall(f'CONNECT {connect}:443 HTTP/1.1\\r\\nHost: {connect}:443\\r\\n\\r\\n'.encode())
head = b''
while b'\\r\\n\\r\\n' not in head:
    piece = tcp.recv(1)
    if not piece: break
    head += piece
status = head.split(b' ')[1].decode() if b' ' in head else 'closed'
if status == '200':
    try:
        tls = ssl.create_default_context().wrap_socket(tcp, server_hostname=sni)
        tls.sendall(f'GET {path} HTTP/1.1\\r\\nHost: {sni}\\r\\nConnection: close\\r\\n\\r\\n'.encode())
        status = tls.recv(100).split(b' ')[1].decode()
    except (OSError, IndexError) as error:
        status = f'closed: {error}'
print(status)
";
        let mark = bench.mark().await?;
        let args = ["allowed.test", "stall.test", "/connect-not-sni"];
        let told = bench.python(program, &args).await?.success()?;
        ensure!(told != "200", "{told}");
        bench.event(mark, "an event of two names", mismatch).await?;
        assert_eq!(bench.upstream.seen("/connect-not-sni").len(), 0);
        let args = ["allowed.test", "allowed.test", "/connect-is-sni"];
        assert_eq!(bench.python(program, &args).await?.success()?, "200");
        assert_eq!(bench.upstream.seen("/connect-is-sni").len(), 1);
        Ok(())
    });
}

fn mismatch(what: &Happening) -> bool {
    matches!(
        what,
        Happening::Refused {
            reason: Reason::AuthorityMismatch,
            ..
        }
    )
}

/// No packet can leave: there is no device for it. An echo may at most be answered by the guest's
/// own kernel (which owns every address), so its time to live says that no router was passed.
#[test]
fn there_is_no_network_device_and_no_answer_to_raw_packets_from_outside() {
    in_shared_bottle(async |bench| {
        let program = "
import socket
names = sorted(name for _, name in socket.if_nameindex())
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw.settimeout(2)
raw.sendto(bytes.fromhex('0800f7fd00010001'), ('8.8.8.8', 0))
echo = 'silence'
try:
    while True:
        packet = raw.recv(2000)
        kind = packet[(packet[0] & 15) * 4]
        if kind == 0:
            echo = f'ttl {packet[8]}'
            break
except TimeoutError:
    pass
print(*names, '/', echo)
";
        let told = bench
            .run_as_root(["python3", "-c", program])
            .await?
            .success()?;
        let (names, echo) = told.split_once(" / ").unwrap_or((&told, ""));
        assert_eq!(
            names.split(' ').count(),
            2,
            "loopback and one end of a pair: {told}"
        );
        ensure!(names.split(' ').any(|name| name == "lo"), "{told}");
        ensure!(echo == "silence" || echo == "ttl 64", "{told}");
        Ok(())
    });
}

/// AF_VSOCK has no namespaces, so any process can dial the host's ports: the shim took one
/// connection before the workload existed, and cuts off and records all others. Fails if it served
/// them, or went on listening without a word.
#[test]
fn the_control_port_cannot_be_dialled_a_second_time() {
    in_shared_bottle(async |bench| {
        let program = "
import socket, sys
for port in map(int, sys.argv[1:]):
    vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    vsock.settimeout(3)
    try:
        vsock.connect((2, port))
        vsock.sendall(b'\\0' * 64)
        got = vsock.recv(1)
        print(port, 'answered' if got else 'closed')
    except OSError as error:
        print(port, 'refused', error)
";
        let ports = [
            "5000", "5000", "1", "22", "620", "1024", "1025", "1029", "5001",
        ];
        let argv: Vec<&str> = ["python3", "-c", program]
            .into_iter()
            .chain(ports)
            .collect();
        let mark = bench.mark().await?;
        let told = bench.run_as_root(argv.clone()).await?.success()?;
        ensure!(
            told.lines().count() == ports.len() && !told.contains("answered"),
            "{told}"
        );
        bench
            .event(mark, "an event that the port was dialled", |what| {
                matches!(what, Happening::Violation { what } if what.contains("control port"))
            })
            .await?;
        let told = bench.run(argv).await?.success()?;
        ensure!(
            told.lines().count() == ports.len() && !told.contains("answered"),
            "{told}"
        );
        works(bench).await
    });
}

/// Speaks TSI by hand, as guest kernels with it do: makes a proxy socket on the host, connects it
/// to the listener on the host's loopback, asks for a listener. Fails if the device was added with
/// a TSI flag and the VMM was not jailed: the listener then sees a connection.
#[test]
fn hand_made_tsi_packets_reach_nothing() {
    in_shared_bottle(async |bench| {
        let program = "
import socket, struct, sys
target = int(sys.argv[1])
CREATE, CONNECT, GETNAME, SENDTO, DATA, LISTEN, ACCEPT, RELEASE = range(1024, 1032)
address = struct.pack('<H', socket.AF_INET) + struct.pack('>H', target) + bytes([127, 0, 0, 1]) + bytes(8)
count = 0
for kind in (1, 2):
    try:
        vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_DGRAM)
        vsock.bind((socket.VMADDR_CID_ANY, 2000 + kind))
        vsock.settimeout(1)
    except OSError as error:
        print('no datagrams:', error)
        continue
    peer = 3000 + kind
    for port, packet in (
        (CREATE, struct.pack('<IHH', peer, socket.AF_INET, kind)),
        (CONNECT, struct.pack('<II', peer, len(address)) + address),
        (GETNAME, struct.pack('<III', peer, 2000 + kind, 1)),
        (SENDTO, struct.pack('<II', peer, len(address)) + address),
        (DATA, b'GET / HTTP/1.0'),
        (LISTEN, struct.pack('<IIII', peer, 4000, 1, len(address)) + address),
        (ACCEPT, struct.pack('<II', peer, 0)),
        (RELEASE, struct.pack('<II', peer, 2000 + kind)),
        (620, b'x'),
    ):
        try:
            vsock.sendto(packet, (2, port))
            count += 1
            print(port, 'answered', vsock.recv(200).hex())
        except OSError as error:
            print(port, type(error).__name__)
print('sent', count)
";
        let port = bench.tripwire.address.port().to_string();
        let argv = ["python3", "-c", program, &port];
        let told = bench.run_as_root(argv).await?.success()?;
        ensure!(!told.contains("answered"), "{told}");
        assert_eq!(bench.tripwire.connections(), 0, "{told}");
        works(bench).await
    });
}

/// Where the guest kernel knows the family, a connection gets nowhere either.
#[test]
fn a_tsi_socket_gets_nowhere() {
    in_shared_bottle(async |bench| {
        let program = "
import ctypes, os, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
for kind in (1, 2):
    fd = libc.socket(46, kind, 0)
    if fd < 0:
        print('no socket:', os.strerror(ctypes.get_errno()))
        continue
    port = int(sys.argv[1])
    address = struct.pack('<H', socket.AF_INET) + struct.pack('>H', port) + bytes([127, 0, 0, 1]) + bytes(8)
    if os.fork():
        # Nobody answers the kernel's own questions either: it may wait for ever.
        os.waitpid(-1, 0)
        continue
    signal.alarm(5)
    code = libc.connect(fd, address, len(address))
    print('connect', code, os.strerror(ctypes.get_errno()) if code else '')
    sys.exit(0)
";
        let port = bench.tripwire.address.port().to_string();
        bench
            .run_as_root(["python3", "-c", program, &port])
            .await?
            .success()?;
        assert_eq!(bench.tripwire.connections(), 0);
        works(bench).await
    });
}

/// The bottle must have survived an attack.
async fn works(bench: &Bench) -> Result<()> {
    assert_eq!(bench.run(["echo", "well"]).await?.success()?, "well");
    bench.curl(&["https://allowed.test/"]).await?.success()?;
    Ok(())
}
