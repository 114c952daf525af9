//! mobula-net
