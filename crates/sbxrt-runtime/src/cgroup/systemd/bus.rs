//! As much of D-Bus as it takes to call a method of a service manager on its own socket and to hear what becomes of it
//! (D-Bus specification, "Message Protocol" and "Authentication Protocol").
//!
//! By hand, because it is one call: zbus would bring some forty crates, an asynchronous runtime and a thread, and its
//! format alone cannot write a message's header. What is read comes from a process of the same user or of root;
//! nevertheless nothing in it is believed, and everything has a bound.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};

/// The largest message that is read. A manager's signals are a few KiB.
const MESSAGE_LIMIT: usize = 1 << 20;
/// The largest line of the authentication that is read.
const LINE_LIMIT: usize = 1 << 10;
/// How every message here begins: the byte order, without which nothing else can be read.
const LITTLE_ENDIAN: u8 = b'l';

/// Types of messages.
mod kind {
    pub(super) const CALL: u8 = 1;
    pub(super) const RETURN: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const SIGNAL: u8 = 4;
}

/// Fields of a header.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

/// A method to call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) name: &'a str,
    /// The types of its arguments.
    pub(super) signature: &'a str,
}

/// What the other side says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The call was taken.
    Return,
    /// The call was refused.
    Error { name: String, text: String },
    /// Something has happened.
    Signal { member: String, body: Values },
}

/// A connection to a service's own socket, with no bus between: it says no `Hello` and knows no names.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    deadline: Instant,
}

impl Connection {
    /// Connects to `socket` and calls `method` with `arguments`. Nothing here waits beyond `deadline`, which fails as
    /// [`io::ErrorKind::TimedOut`].
    ///
    /// The call is made when the service has answered once: one that hangs must not find it later, when nobody waits for it
    /// any more and the numbers in it mean something else.
    pub(super) fn call(
        path: &Path,
        deadline: Instant,
        method: &Method<'_>,
        arguments: &Values,
    ) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // It does not wait: where the queue of a hanging service is full, it fails.
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        if getsockopt(&socket, PeerCredentials)?.pid() == 0 {
            // The numbers of processes mean something else to it.
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it runs in another pid namespace",
            ));
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        let mut connection = Self { stream, deadline };
        let mut packet = b"\0AUTH EXTERNAL ".to_vec();
        // The user's number in decimal digits, and the digits in hexadecimal.
        for digit in nix::unistd::geteuid().to_string().bytes() {
            write!(packet, "{digit:02x}")?;
        }
        packet.extend(b"\r\nBEGIN\r\n");
        connection.write(&packet)?;
        connection.authenticated()?;
        connection.write(&call(method, arguments))?;
        Ok(connection)
    }

    /// Writes what is small enough for the socket's buffer.
    fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(packet).map_err(timed_out)
    }

    /// Reads the answer to the authentication.
    fn authenticated(&mut self) -> io::Result<()> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == LINE_LIMIT {
                return Err(malformed("an endless line"));
            }
            let mut byte = [0];
            self.read(&mut byte)?;
            line.extend(byte);
        }
        if line.starts_with(b"OK ") {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line);
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("authentication was answered with {:?}", line.trim_end()),
        ))
    }

    /// Waits for the next message.
    pub(super) fn receive(&mut self) -> io::Result<Message> {
        loop {
            let mut start = vec![0; 16];
            self.read(&mut start)?;
            let length = message_length(&start)?;
            start.resize(length, 0);
            self.read(&mut start[16..])?;
            if let Some(message) = decode(start)? {
                return Ok(message);
            }
        }
    }

    /// Fills `buffer`.
    fn read(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => buffer = &mut buffer[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error)),
            }
        }
        Ok(())
    }

    fn left(&self) -> io::Result<std::time::Duration> {
        match self.deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// The kernel's word for a time-out of a socket is that of a socket that does not wait.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not D-Bus: {what}"))
}

/// The whole message of a call.
fn call(method: &Method<'_>, arguments: &Values) -> Vec<u8> {
    let fields = [
        (field::PATH, "o", method.path),
        (field::INTERFACE, "s", method.interface),
        (field::MEMBER, "s", method.name),
        (field::DESTINATION, "s", method.destination),
        (field::SIGNATURE, "g", method.signature),
    ];
    // A call without arguments has no signature, not an empty one.
    let fields = &fields[..fields.len() - usize::from(method.signature.is_empty())];
    encode(kind::CALL, fields, arguments)
}

/// A whole message. Each field of its header is a code, a type and a value.
fn encode(kind: u8, fields: &[(u8, &str, &str)], body: &Values) -> Vec<u8> {
    let mut message = Values::default();
    for byte in [LITTLE_ENDIAN, kind, 0, 1] {
        message.byte(byte);
    }
    message.u32(length_of(&body.bytes));
    // Its number: a connection carries one from each side that anybody refers to.
    message.u32(1);
    message.array(8, |header| {
        for &(code, signature, value) in fields {
            header.align(8);
            header.byte(code);
            header.variant(signature, |field| match signature {
                "g" => field.signature(value),
                _ => field.string(value),
            });
        }
    });
    message.align(8);
    message.bytes.extend(&body.bytes);
    message.bytes
}

/// The length of a message by its first 16 bytes.
fn message_length(start: &[u8]) -> io::Result<usize> {
    let mut start = Values::from(start.to_vec());
    if start.take_byte()? != LITTLE_ENDIAN {
        return Err(malformed("the byte order is not this machine's"));
    }
    start.read = 4;
    let body = start.take_u32()? as usize;
    start.take_u32()?;
    let fields = start.take_u32()? as usize;
    let length = 16 + fields.next_multiple_of(8).saturating_add(body);
    if length > MESSAGE_LIMIT {
        return Err(malformed("a message of more than 1 MiB"));
    }
    Ok(length)
}

/// What a whole message says, or `None` where it is of no interest.
fn decode(message: Vec<u8>) -> io::Result<Option<Message>> {
    let mut values = Values::from(message);
    values.read = 1;
    let kind = values.take_byte()?;
    values.read = 12;
    let end = 16 + values.take_u32()? as usize;
    let (mut member, mut error_name) = (None, None);
    while values.read < end {
        values.skip_to(8);
        let code = values.take_byte()?;
        match &*values.take_signature()? {
            "s" | "o" => {
                let text = values.take_string()?;
                match code {
                    field::MEMBER => member = Some(text),
                    field::ERROR_NAME => error_name = Some(text),
                    _ => {}
                }
            }
            "g" => drop(values.take_signature()?),
            "u" => drop(values.take_u32()?),
            _ => return Err(malformed("a header field of an unknown type")),
        }
    }
    values.skip_to(8);
    // The body is aligned as if it stood alone, since it starts at a multiple of eight.
    Ok(match (kind, member, error_name) {
        (kind::RETURN, ..) => Some(Message::Return),
        (kind::ERROR, _, Some(name)) => Some(Message::Error {
            name,
            // By convention, an error's first value is a sentence.
            text: values.take_string().unwrap_or_default(),
        }),
        (kind::SIGNAL, Some(member), _) => Some(Message::Signal {
            member,
            body: values,
        }),
        _ => None,
    })
}

/// Values in a row, in the format of the wire: written at the end, read from the front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Values {
    bytes: Vec<u8>,
    read: usize,
}

impl From<Vec<u8>> for Values {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, read: 0 }
    }
}

impl Values {
    fn align(&mut self, alignment: usize) {
        let length = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(length, 0);
    }

    fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// `u`, and `b` as 0 or 1.
    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    /// `s` and `o`.
    pub(super) fn string(&mut self, value: &str) {
        self.u32(length_of(value.as_bytes()));
        self.bytes.extend(value.as_bytes());
        self.byte(0);
    }

    /// `g`.
    fn signature(&mut self, value: &str) {
        self.byte(u8::try_from(value.len()).expect("ours are a few characters"));
        self.bytes.extend(value.as_bytes());
        self.byte(0);
    }

    /// `v`: a value of the type `signature`.
    fn variant(&mut self, signature: &str, value: impl FnOnce(&mut Self)) {
        self.signature(signature);
        value(self);
    }

    /// `a…`: the elements that `write` appends, whose type begins at multiples of `alignment`.
    pub(super) fn array(&mut self, alignment: usize, write: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length = self.bytes.len();
        self.align(alignment);
        let start = self.bytes.len();
        write(self);
        let bytes = length_of(&self.bytes[start..]);
        self.bytes[length - 4..length].copy_from_slice(&bytes.to_le_bytes());
    }

    /// `(sv)`: a named value of the type `signature`.
    pub(super) fn property(&mut self, name: &str, signature: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.string(name);
        self.variant(signature, value);
    }

    fn skip_to(&mut self, alignment: usize) {
        self.read = self.read.next_multiple_of(alignment);
    }

    fn take(&mut self, length: usize) -> io::Result<&[u8]> {
        let start = self.read;
        let taken = self.bytes.get(start..start.saturating_add(length));
        self.read += taken.map_or(0, <[u8]>::len);
        taken.ok_or_else(|| malformed("a value beyond the end"))
    }

    fn take_byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// `u`.
    pub(super) fn take_u32(&mut self) -> io::Result<u32> {
        self.skip_to(4);
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// `s` and `o`.
    pub(super) fn take_string(&mut self) -> io::Result<String> {
        let length = self.take_u32()? as usize;
        self.take_text(length)
    }

    fn take_signature(&mut self) -> io::Result<String> {
        let length = usize::from(self.take_byte()?);
        self.take_text(length)
    }

    fn take_text(&mut self, length: usize) -> io::Result<String> {
        let Ok(text) = String::from_utf8(self.take(length)?.to_vec()) else {
            return Err(malformed("text that is not UTF-8"));
        };
        match self.take_byte()? {
            0 => Ok(text),
            _ => Err(malformed("text without an end")),
        }
    }
}

fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("what is written here is a few hundred bytes")
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a manager says when a job is over.
    pub(in super::super) fn job_removed(unit: &str, result: &str) -> Vec<u8> {
        let mut body = Values::default();
        body.u32(7);
        for text in ["/org/freedesktop/systemd1/job/7", unit, result] {
            body.string(text);
        }
        let fields = [
            (field::PATH, "o", "/org/freedesktop/systemd1"),
            (field::MEMBER, "s", "JobRemoved"),
            (field::SIGNATURE, "g", "uoss"),
        ];
        encode(kind::SIGNAL, &fields, &body)
    }

    /// What a manager says when it does not do as it is told.
    pub(in super::super) fn refusal(name: &str, text: &str) -> Vec<u8> {
        let mut body = Values::default();
        body.string(text);
        let fields = [(field::ERROR_NAME, "s", name), (field::SIGNATURE, "g", "s")];
        encode(kind::ERROR, &fields, &body)
    }

    #[test]
    fn a_call_is_written_as_the_specification_has_it() {
        let method = Method {
            destination: "a.b",
            path: "/a",
            interface: "c.d",
            name: "E",
            signature: "sau",
        };
        let mut arguments = Values::default();
        arguments.string("x");
        arguments.array(4, |numbers| numbers.u32(258));
        let expected = [
            // Little-endian, a call, no flags, version 1; the lengths of the body, its number, the length of the fields.
            &b"l\x01\x00\x01\x10\x00\x00\x00\x01\x00\x00\x00\x49\x00\x00\x00"[..],
            b"\x01\x01o\x00\x02\x00\x00\x00/a\x00\x00\x00\x00\x00\x00",
            b"\x02\x01s\x00\x03\x00\x00\x00c.d\x00\x00\x00\x00\x00",
            b"\x03\x01s\x00\x01\x00\x00\x00E\x00\x00\x00\x00\x00\x00\x00",
            b"\x06\x01s\x00\x03\x00\x00\x00a.b\x00\x00\x00\x00\x00",
            b"\x08\x01g\x00\x03sau\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x01\x00\x00\x00x\x00\x00\x00\x04\x00\x00\x00\x02\x01\x00\x00",
        ];
        assert_eq!(
            call(&method, &arguments).escape_ascii().to_string(),
            expected.concat().escape_ascii().to_string()
        );
    }

    #[test]
    fn messages_are_understood_or_passed_over() {
        let signal = decode(job_removed("a.scope", "done")).unwrap();
        let Some(Message::Signal { member, mut body }) = signal else {
            panic!("{signal:?}");
        };
        assert_eq!(
            (member.as_str(), body.take_u32().unwrap()),
            ("JobRemoved", 7)
        );
        let error = Message::Error {
            name: "a.b".to_owned(),
            text: "no".to_owned(),
        };
        assert_eq!(decode(refusal("a.b", "no")).unwrap(), Some(error));
        let nothing = encode(kind::CALL, &[], &Values::default());
        assert_eq!(decode(nothing).unwrap(), None);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused() {
        let mut start = job_removed("a.scope", "done");
        start.truncate(16);
        assert!(message_length(&start).is_ok());
        for (place, length) in [(4, u32::MAX), (12, u32::MAX), (4, 1 << 20)] {
            let mut start = start.clone();
            start[place..place + 4].copy_from_slice(&length.to_le_bytes());
            assert!(message_length(&start).is_err(), "{place}: {length}");
        }
        start[0] = b'B';
        assert!(message_length(&start).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(
            message in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..256),
                (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(place, byte)| {
                    let mut message = job_removed("a.scope", "done");
                    let place = place.index(message.len());
                    message[place] = byte;
                    message
                }),
            ],
        ) {
            if message.len() >= 16 {
                drop(message_length(&message));
            }
            if let Ok(Some(Message::Signal { mut body, .. })) = decode(message) {
                drop((body.take_u32(), body.take_string(), body.take_string()));
            }
        }
    }
}
