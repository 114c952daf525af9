//! mobula-e2e
