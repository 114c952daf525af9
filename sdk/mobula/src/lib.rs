//! mobula
