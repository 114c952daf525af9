//! mobula-store
