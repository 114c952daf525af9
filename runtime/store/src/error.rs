//! What can go wrong in the store of one process.

use std::io;

use mobula_proto::failure::Kind;

/// Why the store refused, with the limit that was met and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system has no memory, address space or descriptor left.
    #[error(
        "no memory for {what} of {bytes} bytes ({source}): free objects, raise the memory or descriptor limit of \
         this process, or lower the store's size"
    )]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// How much was asked for.
        bytes: u64,
        /// The system's own answer.
        source: io::Error,
    },
    /// A call to the operating system failed for another reason.
    #[error("{what} failed: {source}")]
    Os {
        /// Which call, in words.
        what: &'static str,
        /// The system's own answer.
        source: io::Error,
    },
    /// A region of a size that cannot be.
    #[error("a region has 1 to {max} bytes, not {bytes}", max = crate::region::BYTES_MAX)]
    RegionSize {
        /// The size asked for.
        bytes: u64,
    },
    /// A descriptor that was offered as a region is no memory file.
    #[error(
        "the descriptor offered as a region is not a memory file: only what a region's writer shares can be mapped"
    )]
    NotARegion,
    /// A memory file that was offered as a region could still be written, resized or unsealed.
    #[error("the region lacks the seals {missing}: its writer must seal it before it shares it")]
    Unsealed {
        /// The seals that are not there, by name.
        missing: String,
    },
    /// A region or a destination is not as large as was said.
    #[error("{what} has {found} bytes where {expected} were expected")]
    WrongSize {
        /// What was measured.
        what: &'static str,
        /// The size that was said.
        expected: u64,
        /// The size that it has.
        found: u64,
    },
    /// A range that is not inside what it was cut from.
    #[error("the range of {len} bytes at {offset} is not inside the {size} bytes of the {what}")]
    OutOfBounds {
        /// What was to be cut.
        what: &'static str,
        /// Where the range starts.
        offset: u64,
        /// How long it is.
        len: u64,
        /// How long the whole is.
        size: u64,
    },
    /// A number of a region that the heap already has.
    #[error("the heap has a region numbered {seq} already: number regions anew, never twice")]
    RegionExists {
        /// The number.
        seq: u32,
    },
    /// A heap with as many regions as it may have.
    #[error(
        "the heap has {max} regions, as many as it may: drop empty ones or make them larger (region_bytes_min)",
        max = crate::heap::REGIONS_MAX
    )]
    TooManyRegions,
    /// A number of a region that the heap does not have.
    #[error("the heap has no region numbered {seq}")]
    NoRegion {
        /// The number.
        seq: u32,
    },
    /// An object with more buffers than the format allows.
    #[error(
        "an object has at most {max} buffers, this one {buffers}: join small buffers into one",
        max = crate::layout::BUFFERS_MAX
    )]
    TooManyBuffers {
        /// How many it has.
        buffers: u64,
    },
    /// Bytes that are no encoded object.
    #[error("malformed object of {bytes} bytes: {detail}")]
    Malformed {
        /// How many bytes there are.
        bytes: u64,
        /// What is wrong with them.
        detail: &'static str,
    },
    /// An archive that is not of the type it should be.
    #[error(
        "the object of {bytes} bytes holds no valid `{type_name}`: {detail}; writer and reader must use one \
         definition of the type"
    )]
    Invalid {
        /// The type that was expected.
        type_name: &'static str,
        /// How long the archive is.
        bytes: u64,
        /// What the validation found.
        detail: String,
    },
    /// A disk for spilled objects, or a file on it, cannot be used.
    #[error("{what}: {}: {source}; give the spill folder more room, or choose another", path.display())]
    Disk {
        /// What was being done.
        what: &'static str,
        /// The file or folder.
        path: std::path::PathBuf,
        /// The system's own answer.
        source: io::Error,
    },
    /// A place for spilled objects that is no folder cannot be used.
    #[error("{what} {target}: {detail}; see that it can be reached and has room, or spill to another place")]
    Target {
        /// What was being done.
        what: &'static str,
        /// The file, or the place.
        target: String,
        /// What it said.
        detail: String,
    },
    /// A file of spilled objects, or a part of it, is not there (any more).
    #[error("{what} {target}: {detail}: leave what lies in the spill place to the node that writes there")]
    Missing {
        /// What was being done.
        what: &'static str,
        /// The file.
        target: String,
        /// What is missing.
        detail: String,
    },
    /// A spilled object is not what was written.
    #[error(
        "{bytes} bytes at {offset} of spill file {file} are damaged: look after the disk of the spill folder"
    )]
    Damaged {
        /// The file's number.
        file: u64,
        /// Where the object begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },
}

impl Error {
    /// Sorts an answer of the system: exhausted, or something else.
    pub(crate) fn os(what: &'static str, bytes: u64, errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        let source = io::Error::from(errno);
        match errno {
            Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOSPC | Errno::FBIG => {
                Self::OutOfMemory { what, bytes, source }
            }
            _ => Self::Os { what, source },
        }
    }

    /// Whether what was to be read is gone for good: missing, damaged, or where the disk itself cannot read any more. All
    /// else may be better later, and says nothing about what lies there.
    pub fn is_loss(&self) -> bool {
        let io = rustix::io::Errno::IO.raw_os_error();
        match self {
            Self::Damaged { .. } | Self::Missing { .. } => true,
            Self::Disk { source, .. } => {
                let gone = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof);
                gone || source.raw_os_error() == Some(io)
            }
            _ => false,
        }
    }

    /// What it is to the author of a job, with the code under which it is documented.
    pub fn kind(&self) -> Kind {
        match self {
            Self::OutOfMemory { .. } | Self::TooManyRegions | Self::Disk { .. } | Self::Target { .. } => {
                Kind::StoreFull
            }
            Self::Damaged { .. } | Self::Missing { .. } => Kind::ObjectLost,
            Self::RegionSize { .. } => Kind::ObjectTooLarge,
            Self::TooManyBuffers { .. } | Self::Malformed { .. } | Self::Invalid { .. } => Kind::Codec,
            Self::Os { .. }
            | Self::NotARegion
            | Self::Unsealed { .. }
            | Self::WrongSize { .. }
            | Self::OutOfBounds { .. }
            | Self::RegionExists { .. }
            | Self::NoRegion { .. } => Kind::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_of_the_moment_is_no_loss() {
        let disk = |errno: rustix::io::Errno| {
            let source = io::Error::from(errno);
            Error::Disk { what: "reading", path: "spill/1".into(), source }
        };
        use rustix::io::Errno;
        for passing in
            [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::ACCESS, Errno::TIMEDOUT, Errno::NOSPC]
        {
            assert!(!disk(passing).is_loss(), "{passing}");
        }
        for lasting in [Errno::NOENT, Errno::IO] {
            assert!(disk(lasting).is_loss(), "{lasting}");
        }
        let outage = Error::Target { what: "reading", target: "s3://b/1".into(), detail: "503".into() };
        assert!(!outage.is_loss());
        assert!(Error::Damaged { file: 1, offset: 0, bytes: 9 }.is_loss());
    }
}
