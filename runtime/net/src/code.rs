//! Codes of the errors that are no [`mobula_proto::Failure`]: those of a cluster's processes and of the people who
//! run them. A failure's codes are in `mobula_proto::failure`; together they are all there are. Errors for which a
//! reader would do the same have the same code. Each has its page under `docs/errors/`, shown by `mobula explain`.

/// A port could not be opened.
pub const PORT: &str = "MOB1003";
/// The two sides do not speak the same protocol.
pub const PROTOCOL: &str = "MOB1004";
/// The head's HTTP API does not understand a request.
pub const REQUEST: &str = "MOB1005";
/// A setting or argument that cannot be used.
pub const SETTING: &str = "MOB5001";
/// A file, folder or other thing of the system that cannot be used.
pub const SYSTEM: &str = "MOB5002";
/// A head or node that did not start, or ended by itself.
pub const PROCESS: &str = "MOB5003";
/// Something runs in this home already, or nothing does.
pub const HOME: &str = "MOB5004";
/// A join token that is missing or not good.
pub const JOIN: &str = "MOB6001";
/// One side does not accept the other.
pub const PEER: &str = "MOB6002";
/// The head's admin token is missing or wrong.
pub const ADMIN: &str = "MOB6003";
