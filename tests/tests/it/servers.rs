//! Servers inside a bottle work with clients inside it: the workload's loopback is its own.

use anyhow::{Result, ensure};
use bottle_tests::frame::in_shared_bottle;

/// Serves one connection on `ADDRESS PORT` and is its own client at `CLIENT`.
const SERVE: &str = "
import socket, sys, threading
address, port, client = sys.argv[1], int(sys.argv[2]), sys.argv[3]
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((address, port))
server.listen()
port = server.getsockname()[1]
def serve():
    stream, _ = server.accept()
    stream.sendall(stream.recv(100).upper())
    stream.close()
threading.Thread(target=serve, daemon=True).start()
stream = socket.create_connection((client, port), 20)
stream.settimeout(20)
stream.sendall(b'ping')
print(port, stream.recv(100).decode())
";

#[test]
fn a_server_on_port_zero_works() {
    in_shared_bottle(async |bench| {
        let told = bench
            .python(SERVE, &["127.0.0.1", "0", "127.0.0.1"])
            .await?
            .success()?;
        ensure!(told.ends_with(" PING") && !told.starts_with("0 "), "{told}");
        Ok(())
    });
}

/// 443 is also the port on which egress is captured: the two do not meet.
#[test]
fn a_server_on_port_443_of_the_loopback_works_beside_egress_to_443() {
    in_shared_bottle(async |bench| {
        let args = ["python3", "-c", SERVE, "127.0.0.1", "443", "127.0.0.1"];
        assert_eq!(bench.run_as_root(args).await?.success()?, "443 PING");
        bench
            .curl(&["https://allowed.test/beside-a-server"])
            .await?
            .success()?;
        // Nobody serves it now, and the gateway does not either.
        let told = bench.curl(&["-k", "https://127.0.0.1/"]).await?.failure()?;
        ensure!(
            told.contains("refused") || told.contains("connect"),
            "{told}"
        );
        Ok(())
    });
}

#[test]
fn a_server_on_all_addresses_works_by_loopback_and_by_the_bottles_own_address() {
    in_shared_bottle(async |bench| {
        let told = bench
            .python(SERVE, &["0.0.0.0", "8080", "127.0.0.1"])
            .await?
            .success()?;
        assert_eq!(told, "8080 PING");
        let own = "
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(('198.18.0.1', 3128))
print(udp.getsockname()[0])
";
        let own = bench.python(own, &[]).await?.success()?;
        let told = bench
            .python(SERVE, &["0.0.0.0", "8080", &own])
            .await?
            .success()?;
        assert_eq!(told, "8080 PING");
        Ok(())
    });
}

#[test]
fn a_web_server_of_the_image_serves_the_images_curl() {
    in_shared_bottle(async |bench| -> Result<()> {
        let script = "
mkdir -p /tmp/www && echo page >/tmp/www/index.html
python3 -u -m http.server -d /tmp/www --bind 127.0.0.1 8000 >/tmp/server.log 2>&1 &
server=$!
curl -sS --retry 30 --retry-connrefused --retry-delay 1 --max-time 60 http://127.0.0.1:8000/
kill $server
";
        assert_eq!(bench.run(["sh", "-c", script]).await?.success()?, "page");
        Ok(())
    });
}
