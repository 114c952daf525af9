//! mobula-macros
