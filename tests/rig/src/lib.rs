//! mobula-rig
