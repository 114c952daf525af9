//! A lane beside a ring: descriptors that belong to its messages, one to each that says so.
//!
//! What a ring carries is taken out by a thread that waits for it. Over a link the descriptor would wake another thread
//! first, and that one the thread that waits. A descriptor lies in its lane before its message lies in the ring, so whoever
//! takes out the message finds it there and never waits. Descriptors are given and taken in the order of their messages.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
    },
};

use super::Error;

/// The side that gives, as a descriptor for another process, and the side that takes.
pub fn lane() -> Result<(OwnedFd, Taker), Error> {
    let (give, take) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(system("socketpair"))?;
    Ok((give, Taker(take)))
}

fn system(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::System { call, source: errno.into() }
}

/// Gives descriptors.
#[derive(Debug)]
pub struct Giver(pub(super) OwnedFd);

impl Giver {
    /// Of a lane that another process made: it may be anything, and is taken only for what [`lane`] makes.
    pub fn new(socket: OwnedFd) -> Result<Self, Error> {
        let family = sockopt::socket_domain(&socket).map_err(system("getsockopt"))?;
        let kind = sockopt::socket_type(&socket).map_err(system("getsockopt"))?;
        if (family, kind) != (AddressFamily::UNIX, SocketType::SEQPACKET) {
            return Err(Error::Malformed { detail: "a lane for descriptors that is none" });
        }
        Ok(Self(socket))
    }

    /// Lays a duplicate into the lane, of which the next message is to say so. Never waits: `false` where the lane has no
    /// room or nobody takes from it, so that the descriptor has to go another way.
    #[must_use]
    pub fn give(&self, descriptor: BorrowedFd<'_>) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(&descriptor)));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            // A descriptor travels with at least one byte.
            match rustix::net::sendmsg(&self.0, &[IoSlice::new(&[0])], &mut control, flags) {
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Takes descriptors.
#[derive(Debug)]
pub struct Taker(OwnedFd);

impl Taker {
    /// The one that belongs to the message just taken out of the ring. One that was lost on arrival is an error, and the
    /// next message finds its own.
    pub fn take(&self) -> Result<OwnedFd, Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut byte = [0];
        let (got, descriptors) = loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut byte)], &mut control, flags) {
                Ok(got) => {
                    let rights = |message| match message {
                        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                        _ => None,
                    };
                    let descriptors: Vec<OwnedFd> = control.drain().filter_map(rights).flatten().collect();
                    break (got, descriptors);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system("recvmsg")(errno)),
            }
        };
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::DescriptorsLost);
        }
        descriptors.into_iter().next().ok_or(Error::MissingDescriptors { announced: 1, arrived: 0 })
    }
}
