//! mobula-head
