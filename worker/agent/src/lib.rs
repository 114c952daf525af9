//! mobula-agent
