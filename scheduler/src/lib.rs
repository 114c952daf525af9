//! mobula-scheduler
