//! CVE-2020-15257: abstract Unix sockets of the host belong to its network namespace, not to a directory.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use sbxrt_tests::Fixtures;

use crate::{attack, python};

#[test]
fn the_hosts_abstract_sockets_cannot_be_reached() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    let image = fixtures.python_rootfs();
    let name = format!("sbxrt-test-{}", std::process::id());
    let _listener =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let program = format!(
        r"
import socket
try:
    socket.socket(socket.AF_UNIX).connect('\0{name}')
    print('reached')
except OSError:
    pass
print(open('/proc/net/unix').read().count('{name}'))
"
    );
    attack(|sbxrt| {
        assert_eq!(python(sbxrt, &image, &[], &program).success(), "0\n");
    });
}
