//! Messages between sbxrt's own processes: one JSON document and any number of descriptors per packet of a
//! `SOCK_SEQPACKET` socket.
//!
//! Packets keep their borders, an ended peer reads as the end of the stream, and descriptors arrive with the message
//! that they belong to. Documents are small; what may be large (a request with its arguments and environment)
//! travels as a sealed-off memory file beside it.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::report::{Report, Space};
use crate::seccomp::Blocked;
use crate::sys;

/// The largest document. Reports with long reasons stay well below it.
const MESSAGE_LIMIT: usize = 64 << 10;
/// The most descriptors in one packet: the kernel's own limit (`SCM_MAX_FD`).
pub(crate) const DESCRIPTOR_LIMIT: usize = 253;

/// From the launcher to the caller, about one execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The container of an execution that was prepared stands ready.
    Ready,
    /// The program runs. Its terminal, where it has one, comes along.
    Started,
    /// It is over. Processes that are left nevertheless come along, as pidfds: their pids are others in the caller's pid
    /// namespace.
    ///
    /// Before them comes the list of outputs, as [`enclose`] writes it, where there is one.
    Finished {
        report: Box<Report>,
        has_outputs: bool,
    },
    /// It never ran.
    Failed(Failure),
}

/// From the caller to the launcher, about one execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Start the program of a container that was prepared. An [`Assignment`](crate::request::Assignment) comes along, as
    /// [`enclose`] writes it, then the program's standard streams, and to the launcher the directories that copies of its
    /// outputs go to.
    Begin,
    /// Send this signal to the program.
    Signal(i32),
    /// End everything now: the program has written more than it may.
    EndOutput,
    /// End everything now.
    Cancel,
}

/// From the builder to the launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BuildEvent {
    /// The container's first process exists, by this pid, and has been told to go on. Where outputs are asked for, the tree
    /// that they are in comes along.
    Created {
        pid: i32,
        prepare_micros: u64,
        create_micros: u64,
    },
    /// It could not be made.
    Failed(Failure),
}

/// From the container's first process to the launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InitEvent {
    /// About to start the program. What a watchdog must see of the inside comes along: the list of System V segments
    /// first, if `segments`, then the file systems in memory.
    Objects { segments: bool },
    /// Everything is done that can be done before it is known what the program is.
    Ready,
    /// The program runs. Its terminal, where it has one, comes along.
    Started {
        start_micros: u64,
        /// The version of Landlock that it is under.
        landlock: Option<u32>,
    },
    /// The program could not be executed.
    NotExecuted { errno: i32, reason: String },
    /// A step before that failed.
    Failed(Failure),
    /// The program ended with this wait status.
    Exited {
        status: i32,
        wall_micros: u64,
        user_micros: u64,
        system_micros: u64,
        largest_process: u64,
        processes: u64,
        full: Vec<Space>,
        /// The system call that the filter ended it for.
        blocked: Option<Blocked>,
    },
}

/// A connected pair of sockets, both close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// Sends `message` with `descriptors`. A peer that is gone is an error (`EPIPE`), never a signal.
///
/// The kernel refuses (`ETOOMANYREFS`) where all processes of the user, those of sandboxes too, have more descriptors on
/// their way than this process may have open. Then it is tried again under the hard limit, for that moment.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    match try_send(socket, message, descriptors) {
        Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
            sys::with_most_files(|| try_send(socket, message, descriptors))?
        }
        other => other,
    }
}

fn try_send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let document = serde_json::to_vec(message)?;
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let bytes = [IoSlice::new(&document)];
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &bytes,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Receives one message, or `None` where the peer has closed its end. Waits, unless the socket is non-blocking. A message
/// whose descriptors this process has no room for is lost (`ENOBUFS`).
pub(crate) fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut document = vec![0; MESSAGE_LIMIT];
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTOR_LIMIT]);
    let (length, descriptors) = loop {
        let mut buffers = [IoSliceMut::new(&mut document)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut control), flags) {
            // Said once, before all else, by the socket of a peer that has ended without having heard everything. What it has
            // said itself comes next.
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNRESET) => {}
            Err(error) => return Err(error.into()),
            Ok(received) => {
                let mut descriptors = Vec::new();
                for message in received.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(fds) = message {
                        descriptors.extend(sys::own_received(&fds));
                    }
                }
                break (received.bytes, descriptors);
            }
        }
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((
        serde_json::from_slice(&document[..length])?,
        descriptors,
    )))
}

/// Puts `document` in a memory file, for what does not fit in a packet.
pub(crate) fn enclose(document: &impl Serialize) -> io::Result<OwnedFd> {
    let file = memory_file()?;
    write_document(file.as_fd(), document)?;
    Ok(file)
}

/// An empty memory file, for [`write_document`] by another process.
pub(crate) fn memory_file() -> io::Result<OwnedFd> {
    Ok(memfd_create(c"document", MFdFlags::MFD_CLOEXEC)?)
}

/// Writes what [`disclose`] reads.
pub(crate) fn write_document(file: BorrowedFd<'_>, document: &impl Serialize) -> io::Result<()> {
    let mut file = std::fs::File::from(file.try_clone_to_owned()?);
    file.write_all(&serde_json::to_vec(document)?)?;
    file.rewind()
}

/// Reads back what [`enclose`] wrote.
pub(crate) fn disclose<D: DeserializeOwned>(file: OwnedFd) -> io::Result<D> {
    let mut bytes = Vec::new();
    std::fs::File::from(file).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Makes [`receive`] fail with `WouldBlock` instead of waiting.
pub(crate) fn set_nonblocking(socket: &impl AsFd) -> io::Result<()> {
    let flags = nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_GETFL)?;
    let flags = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// A duration as messages carry it: whole microseconds.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_with_their_message_and_the_end_is_seen() {
        let (here, there) = pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        send(here.as_fd(), &Order::Signal(15), &[writer.as_fd()]).unwrap();
        drop((here, writer));
        let (order, descriptors) = receive::<Order>(there.as_fd()).unwrap().unwrap();
        assert_eq!(order, Order::Signal(15));
        nix::unistd::write(&descriptors[0], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&reader, &mut byte).unwrap(), 1);
        assert!(receive::<Order>(there.as_fd()).unwrap().is_none());
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_are_heard() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), &Order::Cancel, &[]).unwrap();
        send(there.as_fd(), &Order::Signal(15), &[]).unwrap();
        drop(there);
        let (order, _) = receive::<Order>(here.as_fd()).unwrap().unwrap();
        assert_eq!(order, Order::Signal(15));
        assert!(receive::<Order>(here.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_memory_file_carries_more_than_a_packet() {
        let long = vec!["x".repeat(1 << 20)];
        assert_eq!(
            disclose::<Vec<String>>(enclose(&long).unwrap()).unwrap(),
            long
        );
    }
}
