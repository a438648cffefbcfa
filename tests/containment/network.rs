//! The network: without `--network host` there is none, neither a route nor a packet socket.

use std::net::TcpListener;

use sbxrt_tests::Fixtures;

use crate::{attack, python};

#[test]
fn nothing_on_the_hosts_network_can_be_reached() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = format!(
        r"
import socket
def attempt(what, function):
    try:
        function()
        print('reached', what)
    except OSError:
        pass
attempt('loopback', lambda: socket.create_connection(('127.0.0.1', {port}), 1))
attempt('outside', lambda: socket.create_connection(('192.0.2.1', 80), 1))
attempt('outside v6', lambda: socket.create_connection(('2001:db8::1', 80), 1))
attempt('datagram', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53)))
attempt('packet socket', lambda: socket.socket(17, socket.SOCK_RAW, 0))
attempt('raw socket', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt('vsock', lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 1)))
"
    );
    attack(|sbxrt| {
        let output = python(sbxrt, &image, &[], &program);
        assert_eq!(output.success(), "", "{output}");
    });
}

#[test]
fn loopback_works_inside() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let program = r"
import socket
server = socket.create_server(('127.0.0.1', 0))
socket.create_connection(server.getsockname(), 1)
print('connected')
";
    attack(|sbxrt| {
        assert_eq!(python(sbxrt, &image, &[], program).success(), "connected\n");
    });
}
