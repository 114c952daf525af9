//! What the machine allows, measured in the same run.

pub mod memory;
pub mod pair;
pub mod quic;

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Command, Stdio},
};

use crate::measure::Result;

/// This program, executed again as the other end. It ends when its socket does.
pub struct Peer(Child);

impl Peer {
    /// Starts it with these arguments and one end of a socket as its standard input.
    fn start(arguments: &[&str], socket: UnixStream) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The socket that [`Peer::start`] gave this process.
fn own_socket() -> Result<UnixStream> {
    use std::os::fd::AsFd;
    Ok(UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?))
}
