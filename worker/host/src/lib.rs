//! mobula-host
