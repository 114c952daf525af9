//! mobula-examples
