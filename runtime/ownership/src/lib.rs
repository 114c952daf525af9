//! mobula-ownership
