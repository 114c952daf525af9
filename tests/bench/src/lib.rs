//! mobula-bench
